"""The tables of task `likelihood` as curves."""

import io
from collections.abc import Sequence

from a3jax.evaluate.results import Tables
from a3jax.show.pyplot import pyplot


def plot(tables: Tables, names: Sequence[str]) -> str:
    """A panel for each named table, a curve with error bars for each of its rows, as SVG; the same every time."""
    plt = pyplot()
    figure, panels = plt.subplots(1, len(names), figsize=(5.5 * len(names), 5), squeeze=False, layout="constrained")
    for panel, name in zip(panels[0], names):
        rows = tables[name]
        colors = plt.get_cmap("tab20").colors
        panel.set_prop_cycle(color=[*colors[::2], *colors[1::2]])  # the usual ten, then their pale ones
        columns = sorted({column for row in rows.values() for column in row}, key=lambda column: int(column.split("-")[0]))
        for row, found in rows.items():
            shown = [(columns.index(column), *estimate) for column, estimate in found.items()]
            places, values, errors, _ = zip(*sorted(shown))
            panel.errorbar(places, values, [error or 0 for error in errors], label=row, marker=".", capsize=2, linewidth=1)
        panel.set_xticks(range(len(columns)), columns)
        panel.set_title(name)
        panel.set_ylabel("nats per token")
        panel.grid(alpha=0.3)
    legend = panels[0][0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=4 * len(names), fontsize="small")
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    plt.close(figure)
    return file.getvalue()
