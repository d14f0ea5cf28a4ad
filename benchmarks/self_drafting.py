"""Self-drafting: greedy tokens, passes and seconds of a model with query adapters, against its source model in transformers.

python benchmarks/self_drafting.py CHECKPOINT

The content stream of such a model is its source, which `a3jax export` writes as plain weights. Both get the same pieces of
source files and write the same number of tokens behind each, greedily and in float32. What the source's tokens are, its own
`generate` says.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import run, show
from prompts import Prompts, pieces

import a3jax
from a3jax import Decoding, Template
from a3jax.checkpoint.folder import find
from a3jax.decode.settings import Drafter
from a3jax.export.exporter import export_model

DRAFTERS: tuple[tuple[Drafter, str], ...] = (("both", "speculative"), ("text", "speculative, text drafts"))


@dataclass(frozen=True)
class Options(Prompts):
    """Self-drafting: greedy tokens, passes and seconds, against the source model in transformers.

    python benchmarks/self_drafting.py demo/run
    """

    drafts: tuple[int, ...] = (2, 4, 8)
    json: bool = False


def main(options: Options) -> None:
    """One row for each way to write the tokens."""
    model = a3jax.load(options.checkpoint)
    texts = [Template((text, ""), (options.new,)) for text in pieces(model, options.source, options.prompt)]
    with tempfile.TemporaryDirectory() as folder:
        export_model(find(options.checkpoint), Path(folder) / "source", style=model.config.family)
        generate = in_transformers(Path(folder) / "source", model, options.new)
    ways = [(Decoding(heal=False), "one by one", "")]
    for drafts in options.drafts:
        for drafter, name in DRAFTERS:
            ways.append((Decoding(mode="speculative", drafts=drafts, drafter=drafter, heal=False), name, f"{drafts} drafts"))
    ours = []
    for decoding, name, how in ways:
        a3jax.infill(model, texts[0], decoding)  # compiles
        filled = [a3jax.infill(model, text, decoding) for text in texts]
        written = [Written(one.tokens[-options.new :], one.forwards, one.seconds) for one in filled]
        prompts = [one.tokens[: -options.new] for one in filled]
        ours.append((name, "a3jax", how, written))
    generate(prompts[0])  # the first takes longer
    expected = [generate(prompt) for prompt in prompts]
    theirs = [("generate", "transformers", "", expected)]
    for drafts in options.drafts:
        written = [generate(prompt, prompt_lookup_num_tokens=drafts) for prompt in prompts]
        theirs.append(("generate, prompt lookup", "transformers", f"{drafts} drafts", written))
    rows = [_row(*one, expected) for one in (*theirs, *ours)]
    show(f"{len(texts)} texts, {options.prompt} + {options.new} tokens, {options.checkpoint}", rows, options.json)


@dataclass(frozen=True)
class Written:
    """The tokens written behind a prompt."""

    tokens: tuple[int, ...]
    passes: int
    seconds: float


def in_transformers(folder: Path, model: a3jax.Model, new: int) -> Callable[..., Written]:
    """Writes greedily behind a prompt in transformers, with the tokens that may stand in a blank of `model`."""
    import torch
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    network.generation_config = transformers.GenerationConfig()
    never = [token for token, may in enumerate(model.fillable.tolist()) if not may]
    passes = [0]
    network.register_forward_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))

    def generate(prompt: tuple[int, ...], **how: Any) -> Written:
        read = torch.tensor([prompt])
        greedy = {"max_new_tokens": new, "do_sample": False, "suppress_tokens": never, "pad_token_id": 0}
        passes[0], begun = 0, time.perf_counter()
        tokens = network.generate(read, attention_mask=torch.ones_like(read), **greedy, **how)
        return Written(tuple(tokens[0, len(prompt) :].tolist()), passes[0], time.perf_counter() - begun)

    return generate


def _row(name: str, where: str, how: str, written: list[Written], expected: list[Written]) -> dict[str, Any]:
    count = sum(len(one.tokens) for one in written)
    seconds = sum(one.seconds for one in written)
    return {
        "way": name,
        "in": where,
        "how": how,
        "tokens": count,
        "equal": sum(map(_alike, expected, written)),
        "passes / token": sum(one.passes for one in written) / count,
        "seconds": seconds,
        "tokens / s": count / seconds,
    }


def _alike(expected: Written, found: Written) -> int:
    """How many tokens are the same, from the first on."""
    pairs = zip(expected.tokens, found.tokens)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected.tokens), len(found.tokens)))


if __name__ == "__main__":
    run(main, Options)
