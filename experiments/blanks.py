"""Ways to fill a blank whose length nobody tells, on lines of held-out Python (docs/blanks.md), by one command:

python experiments/blanks.py                       # a base, three adaptations of it, and a table: runs/blanks/results.json
python experiments/blanks.py --base 300 --steps 60 --lines 40          # the same, smaller
python experiments/blanks.py --source runs/duel_base --data data/duel/train --marks 2 3 4 --length 192 \
    --held-out $(python -c 'import networkx; print(networkx.__path__[0])')     # from another base, of what it has not read

A model of 0.8 million parameters reads the standard library from left to right, byte by byte. From it three models are
adapted, each for the same number of steps with the same batch and rate:

    search   `infill`: a span is blanked and nothing says where it ends; every length is tried, and the likeliest text taken
    slack    `open`: the span ends with a token of its own, and what follows stands behind a gap
    fim      what follows is read before the span, as objective fim has it; the span ends with a token of its own

Spans of the first two are of up to an eighth of a window, those of fim of any part of it. Three ways take the base as it is:
`left only`, up to the line's end; `suffix first`, which reads what follows, a line's end, and then what is before; and
`slack, untrained`, a gap before what follows in a model that never saw one.

The lines are of idlelib, which no model has read, and have 4 to 31 bytes without their indentation, which is given; there is
room for 32 tokens. Every piece of text is tokenized by itself. Passes and rows are counted until a blank has its text: a row
is one token's prediction, or its reading in a score.
"""

import argparse
import dataclasses
import json
import os
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import a3jax
from a3jax.config import AdaptConfig, Config, DataConfig, FimConfig, ModelConfig, OptimizerConfig, Stage, TrainConfig
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.decode.document import lay_out
from a3jax.decode.template import Open, Range, Template
from a3jax.generate.infill import infill
from a3jax.generate.lengths import CANDIDATES
from a3jax.generate.middle import middle_last
from a3jax.likelihood.scoring import token_log_likelihood
from a3jax.train.loop import train

OUT = Path("runs/blanks")
LIBRARY = Path(os.__file__).parent
GAP = 32
BEFORE, AFTER = 160, 64
"""Bytes that are seen around a line."""
MODEL = ModelConfig(
    family="llama",
    vocab=261,
    width=128,
    ff_width=384,
    layers=4,
    query_heads=4,
    kv_heads=2,
    head_width=32,
    context=1024,
    tied_head=True,
    start_token=256,
    end_tokens=(257,),
)
MARKS = (258, 259, 260)
ARMS: dict[str, dict[str, Any]] = {
    "search": {"stage": Stage(None, "infill", given=0.875)},
    "slack": {"stage": Stage(None, "open", given=0.875, slack=GAP)},
    "fim": {"stage": Stage(None), "objective": "fim", "fim": FimConfig(tokens=MARKS)},
}


def experiment(steps: int = 1500) -> Config:
    """The base, from left to right."""
    return Config(
        name="blanks",
        run=str(OUT / "base"),
        model=MODEL,
        data=DataConfig(path=str(OUT / "data"), length=256, batch=16),
        curriculum=(Stage(steps),),
        optimizer=OptimizerConfig(peak_lr=4e-3, warmup=steps // 15),
        train=TrainConfig(compute_dtype="float32", remat="none", eval_every=steps, save_every=steps, eval_windows=16),
    )


class Base(NamedTuple):
    """What is adapted."""

    run: Path
    data: Path
    marks: tuple[int, ...]
    """Tokens before prefix, suffix and middle, which it has not read."""
    held_out: Path
    """Python that it has not read."""
    length: int = 256
    """Tokens of a window; with a gap behind them they must fit its context."""


OWN = Base(OUT / "base", OUT / "data", MARKS, LIBRARY / "idlelib")


def adapted(name: str, steps: int, base: Base = OWN) -> Config:
    """One of `ARMS`, all weights trained."""
    arm = dict(ARMS[name])
    stage = dataclasses.replace(arm.pop("stage"), steps=steps)
    if "fim" in arm:
        arm["fim"] = FimConfig(tokens=base.marks)
    own = experiment(steps)
    return dataclasses.replace(
        own,
        run=str(OUT / name),
        model=None,
        source=str(base.run),
        data=dataclasses.replace(own.data, path=str(base.data), length=base.length),
        curriculum=(stage,),
        adapt=AdaptConfig(rank=0),
        optimizer=OptimizerConfig(peak_lr=1e-3, warmup=5),
        **arm,
    )


class Line(NamedTuple):
    """A line to be found."""

    before: str
    truth: str
    after: str


def lines(count: int, folder: Path = OWN.held_out) -> list[Line]:
    """Lines drawn evenly from all files of a folder."""
    found = []
    for file in sorted(folder.rglob("*.py")):
        if "test" in file.relative_to(folder).as_posix():
            continue
        text = file.read_text()
        if not text.isascii():
            continue
        at = 0
        for line in text.splitlines(keepends=True):
            truth = line.strip()
            begin = at + line.find(truth)
            if 4 <= len(truth) < GAP and begin >= 64 and len(text) - begin > 2 * GAP:
                end = begin + len(truth)
                found.append(Line(text[max(0, begin - BEFORE) : begin], truth, text[end : end + AFTER]))
            at += len(line)
    return random.Random(0).sample(found, count)


class Found(NamedTuple):
    """What a way put in a blank, and what it cost."""

    text: str
    passes: int
    rows: int
    nats: float | None
    """Of the truth and its end, where the way has a probability for both."""


Way = Callable[[a3jax.Model, Line], Found]


def slack(model: a3jax.Model, line: Line) -> Found:
    """A gap before what follows. The truth is scored in the same gap, places behind its end coming last."""
    filled = infill(model, Template((line.before, line.after), (Open(GAP),)), mode="ar", heal=False)
    document = lay_out((line.before, line.after), [line.truth], model.codec)
    (blank,) = document.blanks
    empty = GAP - (blank.stop - blank.start) - 1
    tokens = [*document.tokens[: blank.stop], model.config.end_tokens[0], *[0] * empty, *document.tokens[blank.stop :]]
    given = [*document.given[: blank.stop], False, *[False] * empty, *document.given[blank.stop :]]
    groups = [i if known else len(tokens) + i for i, known in enumerate(given)]
    score = token_log_likelihood(model, tokens, given, groups=groups)
    passes = len(filled.blanks[0].tokens) + (filled.finished == "stop")
    return Found(filled.blanks[0].text, passes, passes, -sum(score.log_probs[: blank.stop - blank.start + 1]))


def untrained(model: a3jax.Model, line: Line) -> Found:
    """The same in a model that is only said to know ends."""
    return slack(dataclasses.replace(model, record=dataclasses.replace(model.record, blanks_end=True)), line)


def search(model: a3jax.Model, line: Line) -> Found:
    """Every length, `CANDIDATES` to a batch, and the one taken once more."""
    filled = infill(model, Template((line.before, line.after), (Range(1, GAP),)), mode="ar", heal=False)
    largest = range(CANDIDATES, GAP + 1, CANDIDATES)
    chosen = len(filled.blanks[0].tokens)
    scored = sum(n + 1 + len(line.after) for n in range(1, GAP + 1))
    passes = sum(largest) + len(largest) + chosen
    return Found(filled.blanks[0].text, passes, CANDIDATES * sum(largest) + scored + chosen, None)


def fim(model: a3jax.Model, line: Line) -> Found:
    """What is around comes before."""
    filled = infill(model, Template((line.before, line.after), (Open(GAP),)), mode="fim", heal=False)
    document = lay_out((line.before, line.after), [line.truth], model.codec)
    moved = middle_last(document, document.tokens, 0, model.record.fim_tokens)
    score = token_log_likelihood(model, [*moved.tokens, model.config.end_tokens[0]], [*moved.given, False])
    passes = len(filled.blanks[0].tokens) + (filled.finished == "stop")
    return Found(filled.blanks[0].text, passes, passes, -score.total)


def left_only(model: a3jax.Model, line: Line) -> Found:
    """Up to the end of the line."""
    return _continued(model, line.before, line.truth)


def suffix_first(model: a3jax.Model, line: Line) -> Found:
    """What follows, and then what is before, in a model that never read that."""
    return _continued(model, line.after + "\n" + line.before, line.truth)


def _continued(model: a3jax.Model, before: str, truth: str) -> Found:
    (filled,) = a3jax.complete(model, [before], tokens=GAP, stop=("\n",), mode="ar", heal=False)
    document = lay_out((before, ""), [truth + "\n"], model.codec)
    score = token_log_likelihood(model, document.tokens, document.given)
    passes = len(filled.blanks[0].tokens)
    return Found(filled.blanks[0].text, passes, passes, -score.total)


WAYS: dict[str, tuple[str, Way]] = {
    "slack": ("slack", slack),
    "search": ("search", search),
    "fim": ("fim", fim),
    "slack, untrained": ("base", untrained),
    "suffix first": ("base", suffix_first),
    "left only": ("base", left_only),
}
"""Each with the model that it takes."""


class Figures(NamedTuple):
    """A mean over lines and its standard error."""

    mean: float
    error: float

    @staticmethod
    def of(each: Sequence[float]) -> "Figures":
        """At least two values."""
        return Figures(statistics.fmean(each), statistics.stdev(each) / len(each) ** 0.5)


def row(found: list[Found], asked: list[Line], slack_nats: list[float | None]) -> dict[str, Any]:
    """The figures of one way; `nats_above_slack` is of paired differences, line by line."""
    nats = [one.nats for one in found if one.nats is not None]
    above = [one.nats - other for one, other in zip(found, slack_nats) if one.nats is not None and other is not None]
    return {
        "exact": Figures.of([float(one.text.strip() == line.truth) for one, line in zip(found, asked)]),
        "length_error": Figures.of([float(abs(len(one.text) - len(line.truth))) for one, line in zip(found, asked)]),
        "nats": Figures.of(nats) if nats else None,
        "nats_above_slack": Figures.of(above) if above else None,
        "passes": statistics.fmean(one.passes for one in found),
        "rows": statistics.fmean(one.rows for one in found),
    }


def main() -> None:
    """All of it; what is there already is not done again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=int, default=1500, help="steps of the base")
    parser.add_argument("--steps", type=int, default=300, help="steps of each adaptation")
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--source", type=Path, help="a base that is there, a run; --base is then not trained")
    parser.add_argument("--data", type=Path, help="with --source: what is adapted on")
    parser.add_argument("--marks", type=int, nargs=3, help="with --source: tokens before prefix, suffix and middle")
    parser.add_argument("--held-out", type=Path, help="with --source: a folder of Python that it has not read")
    parser.add_argument("--length", type=int, default=256, help="with --source: tokens of a window")
    asked = parser.parse_args()
    other = asked.source, asked.data, asked.marks, asked.held_out
    if any(other) and not all(other):
        parser.error("--source, --data, --marks and --held-out belong together")
    base = Base(asked.source, asked.data, tuple(asked.marks), asked.held_out, asked.length) if all(other) else OWN
    if base is OWN and not (OUT / "data").exists():
        left_out = ("site-packages/*", "*test*", "idlelib/*", "lib2to3/*", "encodings/*")
        prepare([str(LIBRARY)], OUT / "data", Preparation("bytes", include=("*.py",), exclude=left_out, held_out=0.02))
    for config in (*([experiment(asked.base)] if base is OWN else []), *(adapted(name, asked.steps, base) for name in ARMS)):
        train(config)
    models = {"base": a3jax.load(base.run), **{name: a3jax.load(OUT / name) for name in ARMS}}
    held_out = lines(asked.lines, base.held_out)
    found = {name: [way(models[which], line) for line in held_out] for name, (which, way) in WAYS.items()}
    results = {name: row(each, held_out, [one.nats for one in found["slack"]]) for name, each in found.items()}
    for name, figures in results.items():
        print(name, json.dumps(figures))
    texts = [line._asdict() | {name: each[i].text for name, each in found.items()} for i, line in enumerate(held_out)]
    told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(asked).items()}
    (OUT / "results.json").write_text(json.dumps({"asked": told, "ways": results, "texts": texts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
