"""The report of a sweep: a table for the terminal, and a page that needs nothing but itself."""

import html
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table

from a3jax.evaluate.results import WIDTH
from a3jax.files.folders import write_whole
from a3jax.outside_text import show
from a3jax.show.page import TELLING, page
from a3jax.sweep.comparison import Report
from a3jax.sweep.curves import Curve
from a3jax.sweep.front import NOISE, Setting
from a3jax.sweep.plots import color_of, pareto_plot, plots_by, stage_changes, stages_plots
from a3jax.sweep.status import print_failed
from a3jax.terminal import Terminal

PAGE = "report.html"
UNFOLDED_LINES = 6
COLUMNS = ("setting", "runs", "tokens", "FLOPs", "forgotten, ar", "gained, {order}", "Pareto front")


def print_report(report: Report) -> None:
    """A line for every setting; failed runs by name."""
    console = Terminal(width=WIDTH)
    table = Table(
        *_titles(report),
        box=None,
        header_style="bold",
        title="Held-out nats per token, against the start (the source or, without one, random weights)",
        title_justify="left",
    )
    for column in table.columns[1:]:
        column.no_wrap = True
    for setting in report.best_first:
        table.add_row(*_cells(setting))
    if report.settings:
        console.print(table)
    else:
        print("no run has been evaluated yet")
    if caution := _caution(report):
        show(f"\n{caution}")
    print_failed(report.failed)


def write_page(report: Report, folder: Path) -> Path:
    """Write the page into the sweep's folder. Raises `UserError` where matplotlib is not installed."""
    compared = [curve for curve in report.curves if curve.compared]
    parts = [
        "<p>Held-out nats per token, against the start: the source model, or the random weights of a run without one. "
        "<i>Forgotten</i>: the left-to-right order now, less what it was at the start. "
        f"<i>Gained</i>: {html.escape(report.order)} at the start, less what it is now. On the Pareto front are settings "
        f"that no other equals in both; <i>within noise</i>: less than {NOISE:g} standard errors from some other.</p>",
        f"<p>{html.escape(_caution(report))}</p>",
        _settings(report),
    ]
    if compared:
        parts += [
            "<p>Numbers and colours in the plots are those of this table. Point at a plot, or touch it, for its values.</p>",
            "<h2>Retention against gain</h2>", _side_by_side([pareto_plot(report)]),
            "<p class='note'>Training losses are those of the orders that each step drew: compare them within a stage.</p>",
            "<h2>By tokens</h2>", _side_by_side(plots_by(report, "tokens")),
            "<h2>By FLOPs</h2>", _side_by_side(plots_by(report, "flops")),
        ]  # fmt: skip
    parts += ["<h2>Runs</h2>", _table(("run", "state", "changed from the baseline"), map(_changed, report.curves))]
    if compared:
        parts += ["<h2>Forgotten and gained at each stage</h2>", "<p>Against the start; below zero is gained.</p>"]
        parts += [part for curve in compared for part in _run(curve, report.order)]
    for one in report.failed:
        parts += [f"<h3>{html.escape(one.name)} failed</h3>", f"<pre>{html.escape(one.log)}</pre>"]
    write_whole(folder / PAGE, page(html.escape(folder.name), [*parts, TELLING]))
    return folder / PAGE


def _caution(report: Report) -> str:
    """A sentence about what is not compared with its source as it was; empty where all is."""
    names = dict.fromkeys(curve.setting for curve in report.curves if curve.compared and curve.untrained)
    if not names:
        return ""
    return (
        "No run with successor seeding shows the source of these, so they are compared with their own step 0, where their "
        f"query seed may be untrained: {'; '.join(names)}"
    )


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
        _front(setting),
    ]


def _front(setting: Setting) -> str:
    if not setting.front:
        return ""
    return "yes" if setting.clear else "within noise" if setting.runs > 1 else "one seed"


def _changed(curve: Curve) -> tuple[str, str, str]:
    changes = [f"{name}: {json.dumps(old)} → {json.dumps(new)}" for name, (old, new) in curve.changes.items()]
    return curve.name, curve.state, "\n".join(changes)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "facts") -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_cell(cell)}</{tag}>" for cell in cells) + "</tr>"

    return _framed("".join([row(titles, "th"), *(row(cells, "td") for cells in rows)]), kind)


def _settings(report: Report) -> str:
    """Every setting with its number, in the colour that it has in the plots."""
    titles = "".join(f"<th>{_cell(title)}</th>" for title in ("", *_titles(report)))
    rows = [f"<tr>{titles}</tr>"]
    for number, setting in enumerate(report.best_first, 1):
        cells = "".join(f"<td>{_cell(cell)}</td>" for cell in _cells(setting))
        rows.append(f'<tr><td><b style="color: {color_of(number)}">{number}</b></td>{cells}</tr>')
    return _framed("".join(rows), "settings")


def _framed(rows: str, kind: str) -> str:
    """A table that can be moved aside where the page is narrower."""
    return f'<div class="wide"><table class="{kind}">{rows}</table></div>'


def _side_by_side(charts: Iterable[str]) -> str:
    return f'<div class="curves">{"".join(charts)}</div>'


def _cell(text: str) -> str:
    """Names break at their commas, and many lines are folded."""
    lines = re.sub(r",(?=[a-z])", ",<wbr>", html.escape(text)).split("\n")
    whole = "<br>".join(lines)
    return whole if len(lines) <= UNFOLDED_LINES else f"<details><summary>{len(lines)} fields</summary>{whole}</details>"


def _run(curve: Curve, order: str) -> list[str]:
    """A run at the end of each stage, to be unfolded; empty before its first stage has ended."""
    titles, panels = stage_changes(curve, order)
    if len(titles) < 2:
        return []
    rows = [
        (f"{panel}: {line}", *("" if change is None else f"{change:+.3f}" for change in changes))
        for panel, lines in panels.items()
        for line, changes in lines.items()
    ]
    summary = f"{html.escape(curve.name)}: forgotten {curve.forgotten:+.4f}, gained {curve.gained:+.4f}"
    numbers = f"<details><summary>as numbers</summary>{_table(('', *titles), rows)}</details>"
    return [f"<details><summary>{summary}</summary>", _side_by_side(stages_plots(titles, panels)), numbers, "</details>"]
