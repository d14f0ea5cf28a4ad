"""The plots of a sweep's report, as SVG. Settings go by their numbers in `Report.best_first`: their names can be long."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from a3jax.show.page import Said, chart
from a3jax.show.pyplot import pyplot
from a3jax.sweep.comparison import Report
from a3jax.sweep.curves import SOURCE, Curve, StageEnd

DASHES = ("-", "--", ":", "-.")
"""After ten settings the colors come again, with other dashes."""

Lines = Mapping[str, Sequence[float | None]]
"""Values at the ends of stages, by what they are of."""


def pareto_plot(report: Report) -> str:
    """What settings forget against what they gain; not done: hollow; on the front beyond noise: a star."""
    figure, panel = _panel()
    points = []
    for number, one in enumerate(report.best_first, 1):
        color = _style(number)["color"]
        panel.errorbar(
            one.gained, one.forgotten, one.forgotten_sd or 0, one.gained_sd or 0,
            color=color, markerfacecolor=color if one.done else "none", capsize=2,
            marker="*" if one.clear else "o", markersize=14 if one.clear else 6,
        )  # fmt: skip
        panel.annotate(f"{number}", (one.gained, one.forgotten), (5, 5), textcoords="offset points", color=color)
        said = f"{number}, {one.name}: forgotten {one.forgotten:+.4f}, gained {one.gained:+.4f}"
        points.append(Said(one.gained, one.forgotten, said))
    if front := sorted((one.gained, one.forgotten) for one in report.settings if one.front):
        panel.plot(*zip(*front), color="black", linewidth=0.8, linestyle="--", label="Pareto front of the means")
        panel.legend()
    panel.set_xlabel(f"gained in {report.order}, nats per token")
    panel.set_ylabel("forgotten in ar, nats per token")
    panel.invert_yaxis()  # better is up and to the right
    return chart(figure, panel, points)


def plots_by(report: Report, axis: str) -> list[str]:
    """By tokens or FLOPs: the training loss of every run, and of each order the held-out NLL of every setting.

    Of a setting's runs the mean is drawn, and all of them between their lowest and highest.
    """
    compared = [curve for curve in report.curves if curve.compared]
    orders = list(dict.fromkeys(order for curve in compared for order in curve.points[0].nll))
    losses = [_losses(report, compared, axis)] if any(curve.losses for curve in compared) else []
    return losses + [_held_out(report, compared, axis, order) for order in orders]


def _losses(report: Report, compared: Sequence[Curve], axis: str) -> str:
    figure, panel = _panel()
    points = []
    for number, setting in enumerate(report.best_first, 1):
        for curve in compared:
            if curve.setting != setting.name or not curve.losses:
                continue
            places, values = [getattr(one, axis) for one in curve.losses], [one.loss for one in curve.losses]
            panel.plot(places, values, linewidth=1, **_style(number))
            for place, one in zip(places, curve.losses):
                said = f"{number}, {curve.name}: training loss {one.loss:.4f} up to step {one.step:,}"
                points.append(Said(place, one.loss, said))
            _numbered(panel, number, places[-1], values[-1])
    _stages(panel, report, compared, axis)
    panel.set_title("training loss")
    return _labelled(figure, panel, points, axis, "nats per predicted token")


def _held_out(report: Report, compared: Sequence[Curve], axis: str, order: str) -> str:
    figure, panel = _panel()
    points = []
    for number, setting in enumerate(report.best_first, 1):
        curves = [curve for curve in compared if curve.setting == setting.name]
        places, values = _band(curves, axis, order)
        style, means = _style(number), [sum(v) / len(v) for v in values]
        panel.plot(places, means, marker=".", linewidth=1, **style)
        panel.fill_between(places, [min(v) for v in values], [max(v) for v in values], color=style["color"], alpha=0.2)
        for place, mean in zip(places, means):
            said = f"{place:,} tokens" if axis == "tokens" else f"{place:.3g} FLOPs"
            points.append(Said(place, mean, f"{number}, {setting.name}: {order} {mean:.4f} at {said}"))
        if places:
            _numbered(panel, number, places[-1], means[-1])
    _stages(panel, report, compared, axis)
    panel.set_title(order)
    return _labelled(figure, panel, points, axis, "held-out nats per token")


def _numbered(panel: Any, number: int, place: float, value: float) -> None:
    """A line's number at its end."""
    color = _style(number)["color"]
    panel.annotate(f"{number}", (place, value), (4, -3), textcoords="offset points", color=color, fontsize="small")


def _stages(panel: Any, report: Report, compared: Sequence[Curve], axis: str) -> None:
    """The ends of stages: by name where all have the same, else in a setting's colour, and its last is its curve's end."""
    if len({tuple(getattr(end, axis) for end in curve.stages) for curve in compared}) == 1:
        _boundaries(panel, compared[0].stages, axis, "gray", named=True)
        return
    for number, setting in enumerate(report.best_first, 1):
        curve = next(curve for curve in compared if curve.setting == setting.name)
        _boundaries(panel, curve.stages[:-1], axis, _style(number)["color"])


def _labelled(figure: Any, panel: Any, points: Iterable[Said], axis: str, values: str) -> str:
    panel.set_xlabel(axis if axis == "tokens" else "FLOPs")
    panel.locator_params(axis="x", nbins=6)
    panel.set_ylabel(values)
    return chart(figure, panel, points)


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


def stages_plots(ends: Sequence[str], panels: Mapping[str, Lines]) -> list[str]:
    """What `stage_changes` gives, all to one scale."""
    changes = [change for lines in panels.values() for line in lines.values() for change in line if change is not None]
    margin = 0.05 * (max(changes) - min(changes)) or 0.1
    drawn = []
    for title, lines in panels.items():
        figure, panel = _panel()
        points = []
        for line, values in lines.items():
            panel.plot(
                range(len(ends)), [float("nan") if change is None else change for change in values], label=line, marker="."
            )
            for place, (end, change) in enumerate(zip(ends, values)):
                if change is not None:
                    points.append(Said(place, change, f"{title}, {line}: {change:+.4f} at {end}"))
        panel.set_ylim(min(changes) - margin, max(changes) + margin)
        panel.set_title(title)
        panel.set_ylabel("nats per token against the start")
        panel.set_xticks(range(len(ends)), ends, rotation=30, ha="right")
        panel.legend(fontsize="small")
        drawn.append(chart(figure, panel, points))
    return drawn


def _panel() -> tuple[Any, Any]:
    """A figure with one panel: side by side on a page, one below the other on a phone."""
    figure, panel = pyplot().subplots(figsize=(4.5, 3.6), layout="constrained")
    panel.grid(alpha=0.3)
    return figure, panel


def color_of(number: int) -> str:
    """The color of a setting, as a page writes it."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in _style(number)["color"])


def _style(number: int) -> dict[str, Any]:
    """Color and dashes of a setting, the same in every plot."""
    colors = pyplot().get_cmap("tab10").colors
    dashes, color = divmod(number - 1, len(colors))
    return {"color": colors[color], "linestyle": DASHES[dashes % len(DASHES)]}


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
