"""The tables of task `likelihood` as curves."""

from pathlib import Path
from types import ModuleType

from a3jax.errors import UserError
from a3jax.evaluate.results import Tables


def pyplot() -> ModuleType:
    """matplotlib without a display. Raises `UserError` where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("the plot is drawn with matplotlib; pip install 'a3jax[evaluate]'") from None
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "a3jax"}
    import matplotlib.pyplot

    return matplotlib.pyplot


def plot(tables: Tables, names: tuple[str, ...], file: Path) -> None:
    """A panel for each named table, a curve with error bars for each of its rows, as SVG; the same bytes every time."""
    plt = pyplot()
    figure, panels = plt.subplots(1, len(names), figsize=(6 * len(names), 4.5), squeeze=False, layout="constrained")
    for panel, name in zip(panels[0], names):
        rows = tables[name]
        panel.set_prop_cycle(color=plt.get_cmap("tab20").colors)  # more than the usual ten
        columns = sorted({column for row in rows.values() for column in row}, key=lambda column: int(column.split("-")[0]))
        for row, found in rows.items():
            shown = [(columns.index(column), *estimate) for column, estimate in found.items()]
            places, values, errors, _ = zip(*sorted(shown))
            panel.errorbar(places, values, [error or 0 for error in errors], label=row, marker=".", capsize=2, linewidth=1)
        panel.set_xticks(range(len(columns)), columns)
        panel.set_title(name)
        panel.grid(alpha=0.3)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
