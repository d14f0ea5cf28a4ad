"""Lines of HumanEval whose length nobody tells, filled in several ways by one model (docs/blanks.md).

python benchmarks/unknown_lengths.py --model models/smollm2-code --data HumanEval-SingleLineInfilling.jsonl.gz

The model is one that was trained on `open` orders, and is taken to know a blank's end, whatever its record says; all ways
take the same weights. A line's indentation is given, and so is its end, with which what follows begins. Ways: `slack`, a gap
up to its own end; `search`, every size, and the likeliest text taken; `suffix first`, what follows, a line's end and then
what is before, up to a line's end; `left only`, up to a line's end; and `length told`, as many tokens as the truth has.
Tokens are the most probable ones, and the text before a blank gives its end back.

Problems are drawn as `a3jax evaluate --limit N --seed 0` draws them, and the shortest come first. Each is a line in OUT as it
is done; the same command goes on, and one with fewer problems prints the table of what is there.
"""

import dataclasses
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import common

import a3jax
from a3jax.decode.template import Open, Range, Size, Template
from a3jax.evaluate.humaneval import INFILLED, Problem, drawn, read_problems
from a3jax.execute.case import PASSED
from a3jax.execute.sandbox import Sandbox
from a3jax.progress import Progress

ROOM = 32
"""Tokens of a gap, sizes that are searched, and tokens up to a line's end."""


@dataclass(frozen=True)
class Options:
    """Fill lines of unknown length."""

    model: Path
    """What `a3jax generate` takes, trained on `open` orders."""
    data: Path
    """HumanEval-SingleLineInfilling.jsonl.gz."""
    out: Path = Path("results/unknown_lengths.jsonl")
    problems: int = 300
    """The shortest of so many."""
    drawn: int = 300
    """Problems that are drawn by seed 0."""


class Line(NamedTuple):
    """A problem whose blank is a line between its indentation and its end."""

    problem: Problem
    before: str
    truth: str
    after: str


def line_of(problem: Problem) -> Line:
    """The problem, its white space moved out of the blank."""
    truth = problem.truth.strip()
    begin = problem.truth.index(truth)
    indentation, rest = problem.truth[:begin], problem.truth[begin + len(truth) :]
    return Line(problem, problem.before + indentation, truth, rest + problem.after)


Way = Callable[[a3jax.Model, Line], a3jax.Infilled]


def blank(size: Callable[[a3jax.Model, Line], Size]) -> Way:
    """What follows stands behind the blank."""

    def way(model: a3jax.Model, line: Line) -> a3jax.Infilled:
        return a3jax.infill(model, Template((line.before, line.after), (size(model, line),)), mode="ar")

    return way


def continued(before: Callable[[Line], str]) -> Way:
    """Nothing stands behind it."""

    def way(model: a3jax.Model, line: Line) -> a3jax.Infilled:
        return a3jax.complete(model, [before(line)], tokens=ROOM, stop=("\n",), mode="ar")[0]

    return way


WAYS: dict[str, Way] = {
    "slack": blank(lambda model, line: Open(ROOM)),
    "search": blank(lambda model, line: Range(1, ROOM)),
    "suffix first": continued(lambda line: f"{line.after}\n{line.before}"),
    "left only": continued(lambda line: line.before),
    "length told": blank(lambda model, line: len(model.codec.encode(line.truth, inside=True))),
}


def measured(model: a3jax.Model, line: Line, way: Way, sandbox: Sandbox) -> dict[str, Any]:
    """What a way writes for a line, and what comes of it."""
    begun = time.perf_counter()
    text = way(model, line).blanks[0].text
    seconds = time.perf_counter() - begun
    (outcome,) = sandbox.run([line.problem._replace(before=line.before, after=line.after).program(text)])
    figures = {"exact": text.strip() == line.truth, "pass": outcome == PASSED, "off": abs(len(text) - len(line.truth))}
    return {"text": text, "outcome": outcome, "seconds": round(seconds, 2), **figures}


def main(options: Options) -> None:
    """Go on with the lines that are missing, and print the table."""
    problems = drawn(read_problems(options.data, INFILLED, False, Counter()), options.drawn, 0)
    lines = {id: line_of(problem) for id, problem in problems}
    chosen = sorted(lines, key=lambda id: len(lines[id].before) + len(lines[id].after))[: options.problems]
    rows = [json.loads(row) for row in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {row["id"] for row in rows}
    missing = [id for id in chosen if id not in done]
    if missing:
        model, sandbox = a3jax.load(options.model), Sandbox(confined=True)
        model = dataclasses.replace(model, record=dataclasses.replace(model.record, blanks_end=True))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a") as out, Progress("lines", len(missing), "lines") as bar:
            for id in missing:
                found = {name: measured(model, lines[id], way, sandbox) for name, way in WAYS.items()}
                rows.append({"id": id, "truth": lines[id].truth, "ways": found})
                out.write(json.dumps(rows[-1]) + "\n")
                out.flush()
                bar.advance()
    shown = [row for row in rows if row["id"] in set(chosen)]
    print(f"| {len(shown)} lines | exact | pass@1 | off in length, characters | seconds, median |\n|---|---|---|---|---|")
    for name in WAYS:
        each = [row["ways"][name] for row in shown]
        exact, passed, off = (mean([float(one[figure]) for one in each]) for figure in ("exact", "pass", "off"))
        print(f"| {name} | {exact} | {passed} | {off} | {statistics.median(one['seconds'] for one in each):.1f} |")
    for name, other in (("search", "slack"), ("suffix first", "search"), ("suffix first", "left only")):
        above = [float(row["ways"][name]["exact"]) - float(row["ways"][other]["exact"]) for row in shown]
        print(f"{name} less {other}, exact, line by line: {mean(above)}")


def mean(values: list[float]) -> str:
    """With its standard error."""
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values) / len(values) ** 0.5:.3f}"


if __name__ == "__main__":
    common.run(main, Options)
