"""What became slower: small benchmarks as ratios of one run, beside those that were committed last.

make bench

Each ratio is measured in several rounds, what is above and what is below it in turn. Its noise is how far the middle half of
the rounds lies apart: of eleven rounds that are normally distributed some 3.6 standard errors of their median, so that one
of two hundred equal medians is called slower. All are ours over something else that the same machine did in the same round,
so that less is better and machines can be compared, as far as they can: another machine has other caches. The new ratios are
written with the old ones; committing the file makes them the ones to compare with.
"""

import dataclasses
import json
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import attention
import jax
import loss
import step
from accelerator import random_model
from common import MODELS, matmul_peak, processor, run, seconds
from decoding import recompute

from a3jax.config import Stage
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Template
from a3jax.generate.infill import infill_batch
from a3jax.train import flops

RESULTS = Path(__file__).with_name("ratios.json")


@dataclass(frozen=True)
class Options:
    """What became slower: small benchmarks as ratios of one run, beside those that were committed last.

    python benchmarks/ratios.py
    """

    rounds: int = 11
    out: Path = RESULTS
    """Where the ratios are written."""
    only: tuple[str, ...] = ()
    """Those whose names begin so."""


class Ratio(NamedTuple):
    """Of the rounds of one run."""

    median: float
    noise: float
    """From the first quartile to the third, over the median."""


def main(options: Options) -> None:
    """Measure, compare, write and tell."""
    before = committed()
    now: dict[str, Ratio] = {}
    for name, make in RATIOS.items():
        if not options.only or name.startswith(options.only):
            now[name] = measured(make(), options.rounds)
            print(told(name, now[name], before.get(name)), flush=True)
    slow = slower(now, before)
    print("\n" + (f"slower than was committed, by more than the noise: {', '.join(slow)}" if slow else "nothing is slower"))
    facts = {"processor": processor(), "python": platform.python_version(), "jax": jax.__version__, "slower": slow}
    kept = {name: {"now": ratio, "before": before.get(name)} for name, ratio in now.items()}
    fields = {name: {when: one and one._asdict() for when, one in each.items()} for name, each in kept.items()}
    options.out.write_text(json.dumps({**facts, "rounds": options.rounds, "ratios": fields}, indent=1) + "\n")


def measured(round_: Callable[[], float], rounds: int) -> Ratio:
    """A ratio over so many rounds."""
    values = [round_() for _ in range(rounds)]
    first, median, third = statistics.quantiles(values, n=4)
    return Ratio(median, (third - first) / median)


def slower(now: Mapping[str, Ratio], before: Mapping[str, Ratio]) -> list[str]:
    """Which ratios are larger than they were by more than the noise of either run."""
    both = {name: (ratio, before[name]) for name, ratio in now.items() if name in before}
    return [name for name, (new, old) in both.items() if new.median > old.median * (1 + max(new.noise, old.noise))]


def committed() -> dict[str, Ratio]:
    """The ratios as they were committed last; none where none were, or there is no repository."""
    shown = subprocess.run(["git", "show", f"HEAD:./{RESULTS.name}"], capture_output=True, text=True, cwd=RESULTS.parent)
    if shown.returncode:
        return {}
    return {name: Ratio(**each["now"]) for name, each in json.loads(shown.stdout)["ratios"].items()}


def told(name: str, now: Ratio, before: Ratio | None) -> str:
    """A line."""
    was = "" if before is None else f"   was {before.median:.3f} ± {before.noise:.0%}"
    return f"{name:48} {now.median:.3f} ± {now.noise:.0%}{was}"


def _over(above: Callable[[], Any], below: Callable[[], Any]) -> Callable[[], float]:
    """A round: the time of one over that of the other, each after a call that is not counted."""
    return lambda: seconds(above, 1) / seconds(below, 1)


_STEP = step.Options(model="tiny", batch=4, length=256, remat="none")


def _step(stage: Stage) -> Callable[[], Any]:
    return step.ours(_STEP, stage)


def _of_the_peak() -> Callable[[], float]:
    stage, model = Stage(1, "random", 4), dataclasses.replace(MODELS["tiny"], width=256, ff_width=704, head_width=64)
    shape = dataclasses.replace(_STEP, length=512)
    MODELS["small"] = model
    run_step = step.ours(dataclasses.replace(shape, model="small"), stage)  # type: ignore[arg-type]
    work = shape.batch * flops.per_window(model, stage, shape.length)
    return lambda: seconds(run_step, 1) * matmul_peak("float32") / work


def _attention() -> Callable[[], float]:
    options = attention.Options()
    ours, dense = (attention.compiled(options, 1024, 8, path)[0] for path in ("chunked", "dense"))
    return _over(ours, dense)


def _loss() -> Callable[[], float]:
    programs = loss.compiled(loss.Options(rows=1024, chunk=512), 8000)
    return _over(programs["chunked"][0], programs["at once"][0])


def _decoding() -> Callable[[], float]:
    model = random_model(dataclasses.replace(MODELS["tiny"], context=512), "float32")
    text, new = "x" * 64, 64
    known = len(model.codec.encode(text)) + (model.codec.start is not None)
    tokens, given = [120] * (known + new), [True] * known + [False] * new
    decoding = Decoding(order="in_order_4")
    return _over(
        lambda: infill_batch(model, [Template((text, ""), (new,))], [decoding]),
        lambda: recompute(model, 1, tokens, given, "in_order_4"),
    )


RATIOS: dict[str, Callable[[], Callable[[], float]]] = {
    "step: two streams over one": lambda: _over(_step(Stage(1, "random", 4)), _step(Stage(1, "in_order", 1))),
    "step: ours over plain PyTorch": lambda: _over(_step(Stage(1, "random", 4)), step.plain_torch(_STEP)),
    "step: over its products at the matmul peak": _of_the_peak,
    "attention: in blocks over dense": _attention,
    "loss: in chunks over at once": _loss,
    "decoding: cached over recomputed": _decoding,
}
"""What makes a round of each."""


if __name__ == "__main__":
    run(main, Options)
