"""One page on which an evaluation is read: curves, tables, samples side by side, the protocol. It needs nothing but itself.

Samples are taken evenly over the items, shortest to longest, so that nobody chose them.
"""

import importlib.resources
import re
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

from a3jax.evaluate import by_order
from a3jax.evaluate.blanks import Blanked
from a3jax.evaluate.plot import plot
from a3jax.evaluate.results import Estimate, Tables, columns, written
from a3jax.evaluate.task import Rows, Task
from a3jax.files.strict import flat
from a3jax.outside_text import printable

SAMPLES = 12
"""Shown of a task, at most."""
AROUND = 600
"""Characters shown on each side of a blank."""


def report(results: Mapping[str, Any], evaluated: Sequence[tuple[Task, Rows, Tables]]) -> str:
    """The page, as HTML. `results` is what `results.json` holds."""
    model = results["models"]["model"]
    record = model["record"]
    title = f"Evaluation of {record['source']}" + (f" after {record['steps']} steps" if record["steps"] else "")
    models = {
        name: "the model itself" if name != "model" and one == model else one for name, one in results["models"].items()
    }
    tasks = {name: {**task, "tables": {}} for name, task in results["tasks"].items()}
    content = [f"<p>Weights {model['weights_sha256'][:16]}. Every figure comes with its standard error over items.</p>"]
    content += [_task(*each) for each in evaluated]
    content += ["<h2>Protocol</h2>", _facts({**results, "models": models, "tasks": tasks})]
    page = (importlib.resources.files(__package__) / "report.html").read_text(encoding="utf-8")
    return Template(page).substitute(title=_text(title), content="\n".join(content))


def sampled(count: int, most: int = SAMPLES) -> list[int]:
    """At most so many of `count` items, first and last included, as far from each other as can be."""
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)}) if count else []


def _task(task: Task, rows: Rows, tables: Tables) -> str:
    parts = [f"<h2>{_text(task.name)}</h2>", f"<p>{len(rows)} items from {_text(task.data['source'])}.</p>"]
    curves = [name for name in (by_order.BY_POSITION, by_order.BY_VISIBLE) if name in tables]
    if curves:
        parts.append(f'<div class="curves">{"".join(_inline(plot(tables, [name])) for name in curves)}</div>')
    parts += [_table(name, table) for name, table in tables.items()]
    contents = {item.id: item.content for item in task.items}
    filled = [row for row in rows if "texts" in row]
    if filled:
        note = f"{len(sampled(len(filled)))} of {len(filled)}, evenly from the shortest to the longest."
        parts += ["<h3>Samples</h3>", f'<p class="note">{note}</p>']
        parts += [_sample(filled[i], Blanked(*contents[filled[i]["id"]][:3])) for i in sampled(len(filled))]
    return "\n".join(parts)


def _table(name: str, table: Mapping[str, Mapping[str, Estimate]]) -> str:
    names = columns(table)
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in names)
    body = "".join(
        f'<tr><th scope="row">{_text(row)}</th>{"".join(f"<td>{written(found.get(column))}</td>" for column in names)}</tr>'
        for row, found in table.items()
    )
    caption = f"<caption>{_text(name)}</caption>"
    return f'<div class="wide"><table>{caption}<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _sample(row: Mapping[str, Any], blanked: Blanked) -> str:
    """A text with its blank marked, and below what was filled in by whom."""
    before = ("…" if len(blanked.before) > AROUND else "") + blanked.before[-AROUND:]
    after = blanked.after[:AROUND] + ("…" if len(blanked.after) > AROUND else "")
    whole = _passage(f"{_text(before)}<mark>{_text(blanked.truth)}</mark>{_text(after)}")
    figures = {sees: shares for table in row["figures"].values() for sees, shares in table.items()}
    parts = [f'<figure class="truth"><figcaption>the truth</figcaption>{_passage(_text(blanked.truth))}</figure>']
    for sees, text in row["texts"].items():
        scores = ", ".join(f"{name} {above / below:.3g}" for name, (above, below) in figures[sees].items())
        filled = f"<figcaption>filled in, {_text(sees)} seen</figcaption>{_passage(_text(text))}"
        parts.append(f"<figure>{filled}<figcaption>{_text(scores)}</figcaption></figure>")
    return f'<article><h3>{_text(row["id"])}</h3>{whole}<div class="side">{"".join(parts)}</div></article>'


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


def _inline(svg: str) -> str:
    """The drawing without what only a file needs, or may be there once in a page, in the colours of the page."""
    svg = re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :])
    return svg.replace("#000000", "currentColor").replace("#ffffff", "none")
