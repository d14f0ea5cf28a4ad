"""Multiple choice by protocol diffullama: losses of a3jax evaluate against those of PyTorch on the same weights.

python benchmarks/diffullama.py CHECKPOINT

Questions are made from sentences of Python's own manual, in the formats of the data sets, unless --data names true ones. What
PyTorch is asked is written here once more, string by string, after the scripts and not after our code.
"""

import itertools
import json
import pydoc_data.topics
import random
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from common import run
from tyro.conf import Positional, arg

from a3jax.checkpoint.folder import find
from a3jax.cli import main as a3jax
from a3jax.evaluate.local_data import DATA_SETS
from a3jax.export.exporter import export_model

TASKS = ("hellaswag", "winogrande", "social_iqa", "piqa")


@dataclass(frozen=True)
class Options:
    """Multiple choice by protocol diffullama: losses of a3jax evaluate against PyTorch on the same weights.

    python benchmarks/diffullama.py demo/smollm2
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A model folder of a Llama, or a run folder."""
    data: Path | None = None
    """Folder of the data sets, their rows as JSONL."""
    items: int = 50
    """Questions of each."""


def made(folder: Path, count: int) -> Path:
    """Data sets of so many rows, in which nothing is right but by chance."""
    prose = " ".join(" ".join(pydoc_data.topics.topics.values()).split())
    found = [one for one in re.split(r"(?<=[a-z]\.) (?=[A-Z])", prose) if 30 < len(one) < 200 and "_" not in one]
    drawn = random.Random(0)
    drawn.shuffle(found)
    one = itertools.cycle(found)
    for name in TASKS:
        rows = []
        for number in range(count):
            words = next(one).split(" ")
            place = drawn.randrange(len(words))
            gap = " ".join([*words[:place], "_" + ("." if place == len(words) - 1 else ""), *words[place + 1 :]])
            rows.append(
                {
                    "hellaswag": {
                        "activity_label": words[0], "ctx_a": next(one), "ctx_b": next(one).split(",")[0], "label": number % 4,
                        "endings": [f"{next(one)} [step] {next(one)}" if i == number % 4 else next(one) for i in range(4)],
                    },
                    "winogrande": {"sentence": gap, "option1": words[place], "option2": next(one), "answer": 1 + number % 2},
                    "social_iqa": {
                        "context": next(one), "question": f"Why is {words[0]} so?", "answerA": next(one),
                        "answerB": next(one), "answerC": words[-1], "label": 1 + number % 3,
                    },
                    "piqa": {"goal": next(one), "sol1": next(one), "sol2": next(one), "label": number % 2},
                }[name]
            )  # fmt: skip
        own = folder / name / (DATA_SETS[name].subset or "")
        own.mkdir(parents=True)
        (own / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def main(options: Options) -> None:
    """Print for each data set the largest difference of a loss, and how many answers agree."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = options.data or made(folder / "data", options.items)
        words = ["evaluate", options.checkpoint, "--protocol", "diffullama", "--tasks", *TASKS, "--data", data]
        words += ["--limit", options.items, "--out", folder / "out"]
        a3jax([str(word) for word in words])
        export_model(find(options.checkpoint), folder / "model", "llama")
        for name in TASKS:
            print(f"{name}: {_compared(name, data, folder)}")


def _compared(name: str, data: Path, folder: Path) -> str:
    lines = (folder / "out" / f"{name}.jsonl").read_text().splitlines()[1:]
    (file,) = (data / name).rglob("validation*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    apart, agree = [], 0
    for line in map(json.loads, lines):
        losses = in_pytorch(folder / "model", name, rows[int(line["id"].split(":")[1])])
        apart += [abs(one - other) for one, other in zip(losses, line["losses"], strict=True)]
        agree += losses.index(min(losses)) == line["answer"]
    return f"{len(apart)} losses differ by {max(apart):.1e} at most; {agree} of {len(lines)} answers agree"


MODELS: dict[Path, Any] = {}


def in_pytorch(model: Path, name: str, row: dict[str, Any]) -> list[float]:
    """The mean loss per token of each choice of a question."""
    import torch
    import transformers

    if model not in MODELS:
        network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        MODELS[model] = network, transformers.AutoTokenizer.from_pretrained(model)
    network, tokenizer = MODELS[model]

    def clean(text: str) -> str:
        return re.sub("\\[.*?\\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")

    if name == "hellaswag":
        given = clean(row["activity_label"] + ": " + row["ctx_a"] + " " + row["ctx_b"].capitalize())
        choices = [[clean(ending)] for ending in row["endings"]]
    elif name == "winogrande":
        at = row["sentence"].index("_")
        given, after = row["sentence"][:at], row["sentence"][at + 1 :].strip()
        choices = [[row["option1"], after], [row["option2"], after]]
    elif name == "social_iqa":
        given = f"Question: {row['context']} {row['question']}\nAnswer: "
        choices = [[row[f"answer{letter}"]] for letter in "ABC"]
    else:
        given, choices = f"Question: {row['goal']}\nAnswer: ", [[" " + row["sol1"]], [" " + row["sol2"]]]
    losses = []
    for pieces in choices:
        known = tokenizer.encode(given) or [tokenizer.bos_token_id]
        ids = known + [i for piece in pieces for i in tokenizer.encode(piece, add_special_tokens=False)]
        with torch.no_grad():
            logits = network(torch.tensor([ids])).logits[0, len(known) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[len(known) :])).item())
    return losses


if __name__ == "__main__":
    run(main, Options)
