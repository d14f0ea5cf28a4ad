"""A small world that has, under the names of the pages, what a reader would have.

It is made by the commands themselves where there is one for it.
"""

import csv
import gzip
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pages import ROOT
from small_models import save_chat_model
from tokenizers import Tokenizer, processors
from typed import run

MODELS = [
    *("CHECKPOINT", "PATH", "demo/smollm2", "models/llama", "models/llama-8b", "models/smollm2", "models/smollm2-code"),
    *("models/source", "bucket/models/llama", "demo/smollm2-code"),
]
SOURCES = ["SOURCE", "home/models/Llama-3.1-8B", "home/models/Llama-3.2-1B", "home/models/Qwen3-30B-A3B-FP8"]
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf", ".cache/SmolLM2-135M-Instruct.Q4_1.gguf"
CORPORA = ["data/fineweb-llama3", "data/fineweb-llama3-open", "data/mine", "data/packages", "data/study", "demo/corpus"]
RUN = "RUN"
RUNS = ["demo/run", "demo/instruct", "runs/mine", "runs/new", "runs/other", "runs/paper-8b"]
RESULTS = ["results/drawn", "results/greedy", "results/source"]
ADAPTERS = "adapters/smollm2-135m-code"
EXPERIMENTS = ["EXPERIMENT", "mine", "my_experiment"]
"""One small thing each, under all the names by which the pages call such a thing."""

MINE = """
from a3jax.config import Config, DataConfig, Stage, TrainConfig
from a3jax.curriculum import Plateau
from a3jax.sweep import seeds

def experiment():
    stages = Stage(1, "in_order", 4), Stage(1, "random", 4), Stage(2, "random", 4, plateau=Plateau())
    return Config(
        "NAME",
        source="models/llama",
        data=DataConfig("data/mine", length=64, batch=2),
        curriculum=stages,
        train=TrainConfig(eval_windows=2, eval_every=2, save_every=2, compute_dtype="float32"),
    )

def sweep():
    return seeds(2)
"""
DIFFUSION = re.sub(r"stages = .*", "stages = (Stage(2),)", MINE).replace('"NAME"', '"diffusion", objective="diffusion"')
OPEN = re.sub(r"stages = .*", 'stages = (Stage(2, "open", 1, slack=8),)', MINE).replace("NAME", "open")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def lines(path: Path, rows: list) -> None:
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def make_texts(here: Path) -> None:
    """What a reader has: texts of many kinds, requests, chats and data sets."""
    prose = "The old man sat on the steps of his house and told the children how the river had once been a road. "
    for number in range(12):
        write(here / f"home/texts/{number}.txt", f"{number}: {prose * 6}")
    code = "def area(r):\n    pi = 3.14\n    return pi * r * r\n\n\ndef line(x):\n    return 3 * x\n"
    for name in ("UNSEEN/a.py", "a.py", "b.py", "a.txt", "text.txt"):
        write(here / name, code)
    for folder in ("src", "data/unseen", ".venv/lib/python3.11/site-packages/jax"):
        for number in range(12):
            write(here / folder / f"{number}.py", f"# {number}\n{code * 3}")
    write(here / "template.txt", "def area(r): [[8]] * r")
    with gzip.open(here / "notes.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": prose}) + "\n")
    texts = [{"text": f"{number} {prose * 9}"} for number in range(4)]
    for name in ("held_out.jsonl", "prompts.jsonl", "pile.jsonl", "texts.jsonl", "home/fineweb/a.jsonl"):
        lines(here / name, texts)
    (here / "bucket/fineweb").mkdir(parents=True)
    for name in ("bucket/fineweb/a.parquet", "x.parquet"):
        pq.write_table(pa.Table.from_pylist(texts), here / name)
    shutil.copytree(here / "home/texts", here / "bucket/texts")
    lines(here / "requests.jsonl", [{"text": "def area(r): [[8]] * r", "id": "area"}, {"prompt": "def", "tokens": 4}])
    shutil.copy(here / "requests.jsonl", here / "in.jsonl")

    def asked(number):
        return {"role": "user", "content": f"What is 3 plus {number}?"}

    def said(number):
        return {"role": "assistant", "content": f"It is {3 + number}."}

    lines(here / "chats.jsonl", [{"messages": [asked(n), said(n)] * (1 + n % 2)} for n in range(20)])
    write(here / "keys.txt", "0123456789abcdef\n")
    rows = {
        "hellaswag": {"activity_label": "Sun", "ctx_a": "A man sat.", "ctx_b": "he", "endings": ["sat", "a", "b", "c"]},
        "winogrande": {"sentence": "The man sat as _ was old.", "option1": "he", "option2": "it", "answer": "1"},
        "social_iqa": {"context": "He sat.", "question": "Why?", "answerA": "a", "answerB": "so", "answerC": "b"},
        "piqa": {"goal": "Eat it", "sol1": "on steps", "sol2": "a road", "label": 1},
        "triviaqa": {"question": "Who sat?", "answer": {"aliases": ["the man"], "value": "the man"}},
    }
    for name, row in rows.items():
        label = {} if "label" in row else {"label": "1"}
        lines(here / f"datasets/{name}/validation.jsonl", [{**row, **label}] * 3)
    lines(here / "datasets/lambada/test.jsonl", [{"text": " He sat on the road."}] * 3)
    for name in ("cloze_test_val.csv", "cloze_test_val__spring2016.csv"):
        with (here / name).open("w", newline="") as file:
            told = csv.writer(file)
            told.writerow([f"sentence{n}" for n in range(1, 6)])
            told.writerows([["Al ran.", "He fell.", f"It hurt {n}.", "He sat.", "He left."] for n in range(1001)])
    test = "def check(f):\n    assert f(3) == 9\n"
    infilled = {"prompt": "def f(x):\n", "canonical_solution": "    y = x\n", "suffix": "    return 3 * y\n"}
    written = {"prompt": "def f(x):\n", "canonical_solution": "    return 3 * x\n"}
    tested = {"test": test, "entry_point": "f"}
    lines(here / "human-eval/HumanEval.jsonl", [{"task_id": "HumanEval/0", **written, **tested}])
    with gzip.open(here / "human-eval/HumanEval-SingleLineInfilling.jsonl.gz", "wt") as file:
        file.write(json.dumps({"task_id": "SingleLineInfilling/HumanEval/0/L0", **infilled, **tested}) + "\n")
    shutil.copy(here / "human-eval/HumanEval-SingleLineInfilling.jsonl.gz", here)


def make_world() -> None:
    """All of it, in the working folder."""
    here = Path()
    make_texts(here)
    for file in ROOT.glob("experiments/*.py"):
        # The shape is that of the source, which is small here.
        write(here / "experiments" / file.name, re.sub(r"\n *model=LLAMA_.*", "", file.read_text()))
    for name in EXPERIMENTS:
        write(here / f"experiments/{name}.py", MINE.replace("NAME", name))
    write(here / "experiments/diffusion.py", DIFFUSION)
    write(here / "experiments/open.py", OPEN)
    save_chat_model(here / SOURCES[0])
    tokenizer = Tokenizer.from_file(str(here / SOURCES[0] / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    write(here / "data/duel/tokenizer/tokenizer.json", tokenizer.to_str())
    shutil.copy(here / SOURCES[0] / "tokenizer_config.json", here / "data/duel/tokenizer")
    run("import", SOURCES[0], MODELS[0])
    run("prepare", "home/texts", CORPORA[0], "--tokenizer", MODELS[0], "--held-out", 0.2)
    run("prepare", "home/texts", "data/tiny", "--tokenizer", "bytes", "--held-out", 0.2)
    for first, *others in (SOURCES, MODELS, CORPORA):
        for name in others:
            shutil.copytree(first, name)
    for out, stream in ((RUN, "both"), (RUNS[0], "query")):
        run("train", "experiments/mine.py", "--adapt.stream", stream, "--run", out, "--train.stop-at", 2)
    run("evaluate", MODELS[0], "--tasks", "stories", "--limit", 2, "--settings", "one", "--longest", 256, "--out", RESULTS[0])
    for first, *others in (RUNS, RESULTS):
        for name in others:
            shutil.copytree(first, name)
    for name in ("diffusion", "open"):
        run("train", f"experiments/{name}.py")
    run("export", RUNS[0], ADAPTERS, "--as", "adapters")
    for name in GGUF:
        Path(name).parent.mkdir(exist_ok=True)
        run("export", MODELS[0], name, "--as", "gguf")
