"""One page on which an evaluation is read, or several compared: curves, tables, samples side by side, the protocol.

It needs nothing but itself. Samples are taken evenly over the items, shortest to longest, so that nobody chose them.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from a3jax.evaluate import by_order
from a3jax.evaluate.blanks import Blanked
from a3jax.evaluate.comparison import Compared, Line, tables_of, told
from a3jax.evaluate.plot import plot
from a3jax.evaluate.results import Estimate, Figures, Tables, columns, written
from a3jax.evaluate.task import Rows, Task
from a3jax.files.strict import flat
from a3jax.outside_text import printable
from a3jax.show.page import inline, page

SAMPLES = 12
"""Shown of a task, at most."""
CURVES = (by_order.BY_POSITION, by_order.BY_VISIBLE)
"""Tables that are shown as curves too."""
AROUND = 600
"""Characters shown on each side of a blank."""
Contents = Mapping[str, Mapping[str, Any]]
"""By task, what its items are about by their names."""


def report(results: Mapping[str, Any], evaluated: Sequence[tuple[Task, Rows, Tables]]) -> str:
    """The page, as HTML. `results` is what `results.json` holds."""
    model = results["models"]["model"]
    record = model["record"]
    title = f"Evaluation of {record['source']}" + (f" after {record['steps']} steps" if record["steps"] else "")
    models = _models(results["models"])
    tasks = {name: {**task, "tables": {}} for name, task in results["tasks"].items()}
    content = [f"<p>Weights {model['weights_sha256'][:16]}. Every figure comes with its standard error over items.</p>"]
    content += [_task(*each) for each in evaluated]
    content += ["<h2>Protocol</h2>", _facts({**results, "models": models, "tasks": tasks})]
    return page(_text(title), content)


def comparison_report(document: Mapping[str, Any], compared: Sequence[Compared], contents: Contents) -> str:
    """The page of a comparison, as HTML. `document` is what `comparison.json` holds.

    What stands around blanks is shown of items whose contents are known.
    """
    first, *others = document["compared"]
    content = [
        "<p>Every figure comes with its standard error over items. A difference is from "
        f"{_text(first)}, over the same items; its error is that of the paired difference.</p>"
    ]
    for one in compared:
        content += _compared(one, contents.get(one.task, {}))
    tasks = {name: {key: task[key] for key in ("protocol", "data", "items")} for name, task in document["tasks"].items()}
    facts = {name: {**one, "models": _models(one["models"])} for name, one in document["evaluations"].items()}
    content += ["<h2>Protocol</h2>", _facts({**facts, "tasks": tasks})]
    return page(_text(f"Comparison of {first} with {', '.join(others)}"), content)


def _models(models: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an evaluation by role, one that has several told once."""
    own = models.get("model")
    return {name: "the model itself" if name != "model" and one == own else one for name, one in models.items()}


def sampled(count: int, most: int = SAMPLES) -> list[int]:
    """At most so many of `count` items, first and last included, as far from each other as can be."""
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)}) if count else []


def _task(task: Task, rows: Rows, tables: Tables) -> str:
    parts = [f"<h2>{_text(task.name)}</h2>", f"<p>{len(rows)} items from {_text(task.data['source'])}.</p>"]
    curves = [name for name in CURVES if name in tables]
    if curves:
        parts.append(f'<div class="curves">{"".join(inline(plot(tables, [name])) for name in curves)}</div>')
    parts += [_table(name, table) for name, table in tables.items()]
    contents = {item.id: item.content for item in task.items}
    filled = [row for row in rows if "texts" in row]
    if filled:
        parts += _samples_head(len(filled))
        for row in (filled[i] for i in sampled(len(filled))):
            fillings = _fillings("filled in", row["texts"], row["figures"])
            parts.append(_sample(row["id"], Blanked(*contents[row["id"]][:3]), fillings))
    return "\n".join(parts)


def _compared(one: Compared, contents: Mapping[str, Any]) -> list[str]:
    """A task of several evaluations."""
    made_from, rows = one.first
    parts = [f"<h2>{_text(one.task)}</h2>", f"<p>{len(rows)} items from {_text(made_from.data.get('source'))}.</p>"]
    parts += [f"<p>{_text(line)}.</p>" for line in told(one)]
    if curves := _compared_curves(one):
        parts.append(f'<div class="curves">{"".join(curves)}</div>')
    parts += [_compared_table(*table) for table in tables_of(one)]
    filled = [place for place, row in enumerate(rows) if row.texts]
    if filled:
        parts += _samples_head(len(filled))
        for place in (filled[i] for i in sampled(len(filled))):
            row, of_all = rows[place], {name: results.rows[place] for name, results in one.results.items()}
            each = [_fillings(name, other.texts, other.figures) for name, other in of_all.items()]
            fillings = [part for seen in itertools.zip_longest(*each, fillvalue="") for part in seen]
            parts.append(_sample(row.id, Blanked(*contents.get(row.id, ("", row.truth, ""))[:3]), fillings))
    return parts


def _compared_curves(one: Compared) -> list[str]:
    """A chart of every order, with a curve for each evaluation."""
    (first, *_), names = one.figures.values(), list(one.figures)
    charts = []
    for name in CURVES:
        for order in first.get(name, {}):
            title = f"{order}: {name}"
            found = {who: one.figures[who][name][order] for who in names if order in one.figures[who].get(name, {})}
            charts.append(inline(plot({title: found}, [title])))
    return charts


def _compared_table(name: str, columns: Sequence[str], lines: Sequence[Line]) -> str:
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in columns)
    body = "".join(
        f'<tr class="{"difference" if line.is_difference else "figure"}"><td>{_text(line.row)}</td>'
        f'<th scope="row">{_text(line.name)}</th>{"".join(f"<td>{cell}</td>" for cell in line.cells)}</tr>'
        for line in lines
    )
    caption, head = f"<caption>{_text(name)}</caption>", f"<thead><tr><td></td><td></td>{head}</tr></thead>"
    return f'<div class="wide"><table class="compared">{caption}{head}<tbody>{body}</tbody></table></div>'


def _samples_head(count: int) -> list[str]:
    note = f"{len(sampled(count))} of {count}, evenly from the shortest to the longest."
    return ["<h3>Samples</h3>", f'<p class="note">{note}</p>']


def _table(name: str, table: Mapping[str, Mapping[str, Estimate]]) -> str:
    names = columns(table)
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in names)
    body = "".join(
        f'<tr><th scope="row">{_text(row)}</th>{"".join(f"<td>{written(found.get(column))}</td>" for column in names)}</tr>'
        for row, found in table.items()
    )
    caption = f"<caption>{_text(name)}</caption>"
    return f'<div class="wide"><table>{caption}<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _sample(name: str, blanked: Blanked, fillings: Sequence[str]) -> str:
    """A text with its blank marked, if anything is known to stand around it, and below what was filled in by whom."""
    before = ("…" if len(blanked.before) > AROUND else "") + blanked.before[-AROUND:]
    after = blanked.after[:AROUND] + ("…" if len(blanked.after) > AROUND else "")
    whole = _passage(f"{_text(before)}<mark>{_text(blanked.truth)}</mark>{_text(after)}") if before + after else ""
    truth = f'<figure class="truth"><figcaption>the truth</figcaption>{_passage(_text(blanked.truth))}</figure>'
    return f'<article><h3>{_text(name)}</h3>{whole}<div class="side">{truth}{"".join(fillings)}</div></article>'


def _fillings(whose: str, texts: Mapping[str, str], figures: Figures) -> list[str]:
    """What was put in a blank, by what was seen, with its figures."""
    shares = {sees: row for table in figures.values() for sees, row in table.items()}
    parts = []
    for sees, text in texts.items():
        scores = ", ".join(f"{name} {above / below:.3g}" for name, (above, below) in shares.get(sees, {}).items())
        filled = f"<figcaption>{_text(whose)}, {_text(sees)} seen</figcaption>{_passage(_text(text))}"
        parts.append(f"<figure>{filled}<figcaption>{_text(scores)}</figcaption></figure>")
    return parts


def _passage(marked: str) -> str:
    """Text with its line ends. In `pre` a first one would be lost."""
    return f'<p class="text">{marked}</p>'


def _facts(facts: Mapping[str, Any]) -> str:
    """Every one with its dotted name; of a list the entries together."""
    together: dict[str, list[str]] = {}
    for name, value in flat(facts):
        together.setdefault(re.sub(r"(\.\d+)+$", "", name), []).append(str(value))
    rows = [(_text(name).replace(".", ".<wbr>"), _text(", ".join(values))) for name, values in together.items()]
    body = "".join(f'<tr><th scope="row">{name}</th><td>{values}</td></tr>' for name, values in rows)
    return f'<table class="facts">{body}</table>'


def _text(value: Any) -> str:
    return escape(printable(str(value)))
