"""The same model here and in llama.cpp, which reads the GGUF file that we write: greedy tokens and their log-probabilities.

python benchmarks/llama_cpp.py CHECKPOINT

It needs the package xllamacpp, which is llama.cpp with its own server. Prompts are given to both as the same token ids, and
weights and cache are float32 on both sides.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from common import run, show
from tyro.conf import Positional, arg

import a3jax
from a3jax.checkpoint.folder import find
from a3jax.errors import UserError
from a3jax.export.exporter import export_model

PROMPTS = (
    "The capital of France is",
    "def area(r):",
    "Once upon a time, there was",
    "import numpy as np\n\nx =",
    "Water boils at",
    "The three laws of motion were stated by",
    "for i in range(10):\n    print(",
    "Dear Sir or Madam,\n\n",
)


@dataclass(frozen=True)
class Options:
    """The same model here and in llama.cpp: greedy tokens and their log-probabilities.

    python benchmarks/llama_cpp.py demo/smollm2
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A model folder or a run folder; what goes to llama.cpp is its view from left to right."""
    tokens: int = 48
    """Written for each prompt."""
    json: bool = False


def main(options: Options) -> None:
    """One row for each prompt: how many tokens agree from the first on, and how far their log-probabilities are apart."""
    model = a3jax.load(options.checkpoint)
    filled = a3jax.complete(model, PROMPTS, options.tokens, order="ar", temperature=0, heal=False)
    with tempfile.TemporaryDirectory() as folder:
        export_model(find(options.checkpoint), Path(folder) / "model.gguf", "gguf")
        theirs = continued(Path(folder) / "model.gguf", [one.tokens[: sum(one.given)] for one in filled], options.tokens)
    rows: list[dict[str, Any]] = []
    for prompt, one, written in zip(PROMPTS, filled, theirs):
        begin = sum(one.given)
        ours = list(zip(one.tokens[begin:], one.log_probs[begin:]))
        same = next((i for i, (a, b) in enumerate(zip(ours, written)) if a[0] != b[0]), min(len(ours), len(written)))
        apart = max((abs(a[1] - b[1]) for a, b in zip(ours[:same], written[:same])), default=0.0)
        rows.append({"prompt": repr(prompt), "tokens": len(ours), "equal": same, "log-prob apart, nats": apart})
    show(f"{options.checkpoint} here and in llama.cpp", rows, options.json)


def continued(model: Path, prompts: list[tuple[int, ...]], tokens: int) -> list[list[tuple[int, float]]]:
    """Token ids and log-probabilities in nats that llama.cpp writes greedily behind each prompt."""
    try:
        import xllamacpp
    except ModuleNotFoundError:
        raise UserError("llama.cpp is not there; pip install xllamacpp") from None
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx = 1024
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    found = []
    for prompt in prompts:
        asked = {"prompt": list(prompt), "n_predict": tokens, "temperature": 0, "n_probs": 1, "cache_prompt": False}
        answer = server.handle_completions(asked)
        found.append([(token["id"], token["logprob"]) for token in answer["choices"][0]["logprobs"]["content"]])
    return found


if __name__ == "__main__":
    run(main, Options)
