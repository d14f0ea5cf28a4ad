"""The plots of a sweep's report, as SVG. Settings go by their numbers in `Report.best_first`: their names can be long."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from a3jax.show.pyplot import pyplot
from a3jax.sweep.curves import SOURCE, Curve, Report, StageEnd

COLUMNS = 3
"""Panels side by side."""
DASHES = ("-", "--", ":", "-.")
"""After ten settings the colors come again, with other dashes."""

Lines = Mapping[str, Sequence[float | None]]
"""Values at the ends of stages, by what they are of."""


def pareto_plot(report: Report) -> str:
    """What settings forget against what they gain; not done: hollow; on the front beyond noise: a star."""
    figure, (panel,) = _panels(1, width=8, height=5)
    for number, one in enumerate(report.best_first, 1):
        color = _style(number)["color"]
        panel.errorbar(
            one.gained, one.forgotten, one.forgotten_sd or 0, one.gained_sd or 0,
            color=color, markerfacecolor=color if one.done else "none", capsize=2,
            marker="*" if one.clear else "o", markersize=14 if one.clear else 6,
        )  # fmt: skip
        panel.annotate(f"{number}", (one.gained, one.forgotten), (5, 5), textcoords="offset points", color=color)
    if front := sorted((one.gained, one.forgotten) for one in report.settings if one.front):
        panel.plot(*zip(*front), color="black", linewidth=0.8, linestyle="--", label="Pareto front of the means")
        panel.legend()
    panel.set_xlabel(f"gained, {report.order}")
    panel.set_ylabel("forgotten, ar")
    panel.invert_yaxis()  # better is up and to the right
    return _svg(figure)


def plot_by(report: Report, axis: str) -> str:
    """A panel for each order: the mean of a setting's runs, and all of them between their lowest and highest."""
    compared = [curve for curve in report.curves if curve.compared]
    orders = list(dict.fromkeys(order for curve in compared for order in curve.points[0].nll))
    figure, panels = _panels(len(orders))
    boundaries = {tuple(getattr(end, axis) for end in curve.stages) for curve in compared}
    for panel, order in zip(panels, orders):
        for number, setting in enumerate(report.best_first, 1):
            curves = [curve for curve in compared if curve.setting == setting.name]
            places, values = _band(curves, axis, order)
            style = _style(number)
            panel.plot(places, [sum(v) / len(v) for v in values], label=f"{number}", marker=".", linewidth=1, **style)
            panel.fill_between(places, [min(v) for v in values], [max(v) for v in values], color=style["color"], alpha=0.2)
            if len(boundaries) > 1:
                _boundaries(panel, curves[0].stages[:-1], axis, style["color"])  # at the last one, the curve ends too
        if len(boundaries) == 1:
            _boundaries(panel, compared[0].stages, axis, "gray", named=True)
        panel.set_title(order)
        panel.set_xlabel(axis if axis == "tokens" else "FLOPs")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=16)
    return _svg(figure)


def stage_changes(curve: Curve, order: str) -> tuple[list[str], dict[str, Lines]]:
    """What a run forgot and gained of its start until the end of each stage: the names of these, and by panel, the changes.

    By order, and by parts of the two orders that matter.
    """
    ends, source = curve.stage_ends, curve.source
    assert source is not None, "a run with evaluations has one"

    def parts(part: str, of: str) -> Lines:
        now = [getattr(point, part).get(of, []) for _, point in ends]
        count = len(now[0])
        names = [f"{100 * i // count}-{100 * (i + 1) // count}%" for i in range(count)]
        return dict(
            zip(names, (_changes(before, values) for before, *values in zip(getattr(source, part).get(of, []), *now)))
        )

    panels: dict[str, Lines] = {
        "by order": {name: _changes(source.nll[name], [point.nll[name] for _, point in ends]) for name in source.nll}
    }
    for of in dict.fromkeys((SOURCE, order)):
        panels[f"{of} by rank in the order"] = parts("by_rank", of)
        panels[f"{of} by part of the window visible"] = parts("by_visible", of)
    return [f"{name}, step {point.step}" for name, point in ends], panels


def _changes(before: float | None, values: Sequence[float | None]) -> list[float | None]:
    return [None if before is None or now is None else now - before for now in values]


def stages_plot(ends: Sequence[str], panels: Mapping[str, Lines]) -> str:
    """What `stage_changes` gives."""
    figure, axes = _panels(len(panels), sharey=True)
    for panel, (title, lines) in zip(axes, panels.items()):
        for line, changes in lines.items():
            panel.plot(ends, [float("nan") if change is None else change for change in changes], label=line, marker=".")
        panel.set_title(title)
        panel.set_xticks(range(len(ends)), ends, rotation=30, ha="right")
        panel.legend(fontsize="small")
    return _svg(figure)


def _panels(count: int, width: float = 4.5, height: float = 4.0, **shared: bool) -> tuple[Any, list[Any]]:
    """A figure with so many panels, in rows."""
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    size = (width * columns, height * rows)
    figure, grid = pyplot().subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **shared)
    for unused in grid.flat[count:]:
        unused.remove()
    for panel in grid.flat[:count]:
        panel.grid(alpha=0.3)
    return figure, list(grid.flat[:count])


def _style(number: int) -> dict[str, Any]:
    """Color and dashes of a setting, the same in every plot."""
    colors = pyplot().get_cmap("tab10").colors
    dashes, color = divmod(number - 1, len(colors))
    return {"color": colors[color], "linestyle": DASHES[dashes % len(DASHES)]}


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    pyplot().close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]  # without the prologue of a file


def _band(curves: Sequence[Curve], axis: str, order: str) -> tuple[list[float], list[list[float]]]:
    """The evaluations that all runs of a setting have: where, and the values of each."""
    at = [{getattr(point, axis): point.nll[order] for point in curve.points} for curve in curves]
    places = sorted(set.intersection(*(set(one) for one in at)))
    return places, [[one[place] for one in at] for place in places]


def _boundaries(panel: Any, stages: Sequence[StageEnd], axis: str, color: Any, named: bool = False) -> None:
    begin = 0.0
    for end in stages:
        place = getattr(end, axis)
        panel.axvline(place, color=color, linestyle=":", linewidth=0.8)
        if named:
            panel.text(
                (begin + place) / 2, 1, end.name, rotation=90, fontsize=7, color=color, ha="center", va="top",
                transform=panel.get_xaxis_transform(),
            )  # fmt: skip
        begin = place
