"""Multiple choice: what the choices of a question share is read once, against scoring each choice whole.

python benchmarks/harness.py CHECKPOINT

Questions are cut out of the source of Python's standard library; contexts and choices are as long as HellaSwag's, whose
contexts have some 40 to 120 tokens and whose four endings some 15 to 40.
"""

import itertools
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from common import run, show
from tyro.conf import Positional, arg

import a3jax
from a3jax.evaluate.continuations import Choice, Item, score, shared
from a3jax.evaluate.texts import read_texts
from a3jax.generate.continued import single_stream


@dataclass(frozen=True)
class Options:
    """Multiple choice: what the choices of a question share is read once, against scoring each choice whole.

    python benchmarks/harness.py demo/smollm2
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A model folder or a run folder."""
    items: int = 32
    """Questions."""
    choices: int = 4
    context: tuple[int, int] = (40, 120)
    """Tokens of a context, least and most."""
    ending: tuple[int, int] = (15, 40)
    """Tokens of a choice, least and most."""
    order: str = "ar"
    batch: int = 8
    """Questions at once."""
    repeats: int = 3
    json: bool = False


def questions(options: Options, model: a3jax.Model) -> list[Item]:
    """Contexts with endings, the first of which is the true one."""
    _, texts = read_texts(None, "text", "train", ["*"], 0, False, {})  # type: ignore[arg-type]
    ids = list(itertools.islice(itertools.chain.from_iterable(model.codec.encode(text.text) for text in texts), 200_000))
    drawn = random.Random(0)
    found: list[Item] = []
    for _ in range(options.items):
        size, begin = drawn.randint(*options.context), drawn.randrange(len(ids) // 2)
        places = [begin + size, *(drawn.randrange(len(ids) // 2, len(ids) - 100) for _ in range(options.choices - 1))]
        endings = [ids[place : place + drawn.randint(*options.ending)] for place in places]
        found.append([Choice((*ids[begin : begin + size], *ending), size) for ending in endings])
    return found


def main(options: Options) -> None:
    """One table; the ways are measured in turn, so that what else the machine does falls on all of them alike."""
    model = a3jax.load(options.checkpoint)
    items = questions(options, model)
    whole = [[choice] for item in items for choice in item]
    given = [[i < choice.given for i in range(len(choice.tokens))] for (choice,) in whole]
    tokens = [choice.tokens for (choice,) in whole]
    ways = {
        "shared context": lambda: [
            one.log_prob for item in score(model, items, options.order, 0, options.batch) for one in item
        ],
        "each whole": lambda: [
            one.log_prob for (one,) in score(model, whole, options.order, 0, options.batch * options.choices)
        ],
        "a3jax.token_log_likelihoods": lambda: [
            one.total for one in a3jax.token_log_likelihoods(model, tokens, given, order=options.order)
        ],
    }
    results = {name: way() for name, way in ways.items()}  # compiles
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            begun = time.perf_counter()
            assert way() == results[name]
            times[name].append(time.perf_counter() - begun)
    seconds = {name: statistics.median(each) for name, each in times.items()}
    streams = 1 if single_stream(model.config, options.order) else 2
    reads = {
        "shared context": sum(shared(item) + streams * sum(len(c.tokens) - shared(item) for c in item) for item in items),
        "each whole": sum(c.given - 1 + streams * (len(c.tokens) - c.given + 1) for (c,) in whole),
        "a3jax.token_log_likelihoods": streams * sum(map(len, tokens)),
    }
    heads = {name: sum(len(c.tokens) - c.given + 1 for (c,) in whole) for name in ways}
    heads["a3jax.token_log_likelihoods"] = sum(map(len, tokens))
    first = next(iter(ways))
    rows: list[dict[str, Any]] = [
        {
            "way": name,
            "rows": reads[name],
            "GFLOP": flops(model, reads[name], heads[name]) / 1e9,
            "seconds": seconds[name],
            "seconds / shared": seconds[name] / seconds[first],
            "GFLOP / shared": flops(model, reads[name], heads[name]) / flops(model, reads[first], heads[first]),
            "largest difference": max(abs(a - b) for a, b in zip(results[name], results[first])),
        }
        for name in ways
    ]
    show(f"{len(items)} questions of {options.choices} choices, {options.order}, {options.checkpoint}", rows, options.json)


def flops(model: a3jax.Model, rows: int, heads: int) -> float:
    """Matrix products of so many rows, of which `heads` have logits; attention is little at these lengths."""
    c = model.config
    matrices = 2 * c.width * c.head_width * (c.query_heads + c.kv_heads) + 3 * c.width * c.ff_width
    return 2.0 * (rows * c.layers * matrices + heads * c.width * c.vocab)


if __name__ == "__main__":
    run(main, Options)
