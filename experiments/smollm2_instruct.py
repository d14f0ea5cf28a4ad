"""SmolLM2-135M learns to answer questions about Python's standard library, from left to right and in any order.

    make demo
    python experiments/smollm2_instruct.py demo/chats.jsonl
    a3jax train smollm2_instruct

The first command imports the model, the second makes the chats, of two turns each, from the library's own docstrings; the
third tunes on their answers.
"""

import ast
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from a3jax.config import AdaptConfig, Config, DataConfig, OptimizerConfig, Stage, TrainConfig

LONGEST = 400
"""Characters of an answer."""


def experiment() -> Config:
    """Adapters of both streams; half of the windows from left to right, so that plain answers are learned too."""
    return Config(
        name="instruct",
        source="demo/smollm2",
        run="demo/instruct",
        data=DataConfig(path="demo/chats.jsonl", chat=("messages",), length=256, batch=2, packing="best_fit"),
        curriculum=(Stage(60, "random", 4),),
        ar_share=0.5,
        adapt=AdaptConfig(rank=16, stream="both"),
        optimizer=OptimizerConfig(peak_lr=1e-3, warmup=4),
        train=TrainConfig(compute_dtype="float32", remat="dots", eval_every=60, save_every=60, eval_windows=8),
    )


def chats() -> Iterator[list[dict[str, str]]]:
    """What every public function of the library's modules is for, and how it is called."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-z]*.py")):
        for function in ast.parse(path.read_text("utf-8")).body:
            if not isinstance(function, ast.FunctionDef) or function.name.startswith("_"):
                continue
            if said := ast.get_docstring(function):
                name = f"{path.stem}.{function.name}"
                yield [
                    {"role": "user", "content": f"What does {name} do in Python?"},
                    {"role": "assistant", "content": " ".join(said.split("\n\n")[0].split())[:LONGEST]},
                    {"role": "user", "content": "How is it called?"},
                    {"role": "assistant", "content": f"{name}({ast.unparse(function.args)})"[:LONGEST]},
                ]


if __name__ == "__main__":
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"messages": chat}) + "\n" for chat in chats())
