"""The report of a sweep: a table for the terminal, and a page that needs nothing but itself."""

import html
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from a3jax.evaluate.plot import pyplot
from a3jax.evaluate.results import WIDTH
from a3jax.folders import write_whole
from a3jax.sweep.curves import SOURCE, Curve, Report, Setting, StageEnd
from a3jax.sweep.status import print_failed

PAGE = "report.html"
COLUMNS = ("setting", "runs", "tokens", "FLOPs", "forgotten, ar", "gained, {order}", "Pareto front")


def print_report(report: Report) -> None:
    """A line for every setting; failed runs by name."""
    console = Console(highlight=False, width=WIDTH)
    table = Table(
        *_titles(report), box=None, header_style="bold", title="Held-out nats per token since step 0", title_justify="left"
    )
    for column in table.columns:
        column.no_wrap = True
    for setting in report.settings:
        table.add_row(*_cells(setting))
    if report.settings:
        console.print(table)
    else:
        print("no run has been evaluated yet")
    print_failed(report.failed)


def write_page(report: Report, folder: Path) -> Path:
    """Write the page into the sweep's folder. Raises `UserError` where matplotlib is not installed."""
    compared = [curve for curve in report.curves if curve.compared]
    parts = [
        f"<h1>{html.escape(folder.name)}</h1>",
        "<p>Held-out nats per token. <i>Forgotten</i>: the left-to-right order now, less what it was at step 0. "
        f"<i>Gained</i>: {html.escape(report.order)} at step 0, less what it is now.</p>",
        _table(_titles(report), map(_cells, report.settings)),
    ]
    if compared:
        parts += [
            "<h2>Retention against gain</h2>", _pareto(report),
            "<h2>By tokens</h2>", _by(report, "tokens"),
            "<h2>By FLOPs</h2>", _by(report, "flops"),
        ]  # fmt: skip
    parts += ["<h2>Runs</h2>", _table(("run", "state", "changed from the baseline"), map(_changed, report.curves))]
    if compared:
        parts += ["<h2>Forgotten and gained at each stage</h2>", "<p>Change since step 0; below zero is gained.</p>"]
        parts += [part for curve in compared for part in _stages(curve, report.order)]
    for one in report.failed:
        parts += [f"<h3>{html.escape(one.name)} failed</h3>", f"<pre>{html.escape(one.log)}</pre>"]
    write_whole(folder / PAGE, _FRAME.format(title=html.escape(folder.name), body="\n".join(parts)))
    return folder / PAGE


_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em }}
table {{ border-collapse: collapse }} td, th {{ padding: .2em .8em; text-align: left; border-bottom: 1px solid #ddd }}
svg {{ max-width: 100%; height: auto }}
</style></head><body>
{body}
</body></html>
"""


def _titles(report: Report) -> list[str]:
    return [column.format(order=report.order) for column in COLUMNS]


def _cells(setting: Setting) -> list[str]:
    def with_spread(value: float, spread: float | None) -> str:
        return f"{value:+.4f}" + ("" if spread is None else f" ± {spread:.4f}")

    return [
        setting.name,
        f"{setting.runs}" if setting.done else f"{setting.runs}, not done",
        f"{setting.tokens:,}",
        f"{setting.flops:.3g}",
        with_spread(setting.forgotten, setting.forgotten_sd),
        with_spread(setting.gained, setting.gained_sd),
        "yes" if setting.front else "",
    ]


def _changed(curve: Curve) -> tuple[str, str, str]:
    changes = [f"{name}: {json.dumps(old)} → {json.dumps(new)}" for name, (old, new) in curve.changes.items()]
    return curve.name, curve.state, "\n".join(changes)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell).replace(chr(10), '<br>')}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + "".join([row(titles, "th"), *(row(cells, "td") for cells in rows)]) + "</table>"


def _colors(report: Report) -> dict[str, Any]:
    """A color for each setting, the same in every plot."""
    palette = pyplot().get_cmap("tab10" if len(report.settings) <= 10 else "tab20").colors
    return {setting.name: palette[i % len(palette)] for i, setting in enumerate(report.settings)}


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    pyplot().close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]  # without the prologue of a file


def _pareto(report: Report) -> str:
    figure, panel = pyplot().subplots(figsize=(8, 5), layout="constrained")
    colors = _colors(report)
    for one in report.settings:
        marker = "*" if one.front else "o"
        panel.errorbar(
            one.gained, one.forgotten, one.forgotten_sd or 0, one.gained_sd or 0,
            label=one.name, color=colors[one.name], marker=marker, markersize=14 if one.front else 6, capsize=2,
        )  # fmt: skip
    front = sorted((one.gained, one.forgotten) for one in report.settings if one.front)
    panel.plot(*zip(*front), color="black", linewidth=0.8, linestyle="--", label="Pareto front") if front else None
    panel.set_xlabel(f"gained, {report.order}")
    panel.set_ylabel("forgotten, ar")
    panel.invert_yaxis()  # better is up and to the right
    panel.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return _svg(figure)


def _by(report: Report, axis: str) -> str:
    """A panel for each order: the mean of a setting's runs, and all of them between their lowest and highest."""
    compared = [curve for curve in report.curves if curve.compared]
    orders = list(dict.fromkeys(order for curve in compared for order in curve.points[0].nll))
    figure, panels = pyplot().subplots(1, len(orders), figsize=(4.5 * len(orders), 4.5), squeeze=False, layout="constrained")
    colors = _colors(report)
    boundaries = {tuple(getattr(end, axis) for end in curve.stages) for curve in compared}
    for panel, order in zip(panels[0], orders):
        for setting in report.settings:
            curves = [curve for curve in compared if curve.setting == setting.name]
            places, values = _band(curves, axis, order)
            color = colors[setting.name]
            panel.plot(places, [sum(v) / len(v) for v in values], label=setting.name, color=color, marker=".", linewidth=1)
            panel.fill_between(places, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.2)
            if len(boundaries) > 1:
                _boundaries(panel, curves[0].stages, axis, color)
        if len(boundaries) == 1:
            _boundaries(panel, compared[0].stages, axis, "gray", named=True)
        panel.set_title(order)
        panel.set_xlabel(axis if axis == "tokens" else "FLOPs")
        panel.grid(alpha=0.3)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", fontsize="small")
    return _svg(figure)


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


def _stages(curve: Curve, order: str) -> list[str]:
    """What a run forgot and gained until the end of each stage, by order and by parts of the two that matter."""
    ends = curve.stage_ends
    if len(ends) < 2:
        return []
    titles = [f"{name}, step {point.step}" for name, point in ends]
    panels = [
        ("by order", {name: _changes([point.nll[name] for _, point in ends]) for name in ends[0][1].nll}),
        *(
            (f"{of} by {what}", _quarters([getattr(point, part).get(of, []) for _, point in ends]))
            for of in dict.fromkeys((SOURCE, order))
            for part, what in (("by_rank", "rank in the order"), ("by_visible", "part of the window visible"))
        ),
    ]
    rows = [
        (f"{panel}: {line}", *("" if change is None else f"{change:+.3f}" for change in changes))
        for panel, lines in panels
        for line, changes in lines.items()
    ]
    figure, axes = pyplot().subplots(1, len(panels), figsize=(4.5 * len(panels), 3.5), sharey=True, layout="constrained")
    for axis, (title, lines) in zip(axes, panels):
        for line, changes in lines.items():
            axis.plot(titles, [float("nan") if change is None else change for change in changes], label=line, marker=".")
        axis.set_title(title)
        axis.set_xticks(range(len(titles)), titles, rotation=30, ha="right")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    table = _table(("", *titles), rows)
    return [f"<h3>{html.escape(curve.name)}</h3>", _svg(figure), f"<details><summary>as numbers</summary>{table}</details>"]


def _changes(values: Sequence[float | None]) -> list[float | None]:
    """Since the first value."""
    first = values[0]
    return [None if first is None or now is None else now - first for now in values]


def _quarters(values: Sequence[Sequence[float | None]]) -> dict[str, list[float | None]]:
    """The same for each part, by name."""
    return {
        f"{100 * i // len(values[0])}-{100 * (i + 1) // len(values[0])}%": _changes(part)
        for i, part in enumerate(zip(*values))
    }
