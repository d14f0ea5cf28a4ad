"""What an adapted model does, and then the whole road on real weights: import, prepare, adapt, infill, export. `make demo`.

The adapted model is SmolLM2-135M with the adapters of this repository (adapters/smollm2-135m-code), which four minutes on a
GPU made by experiments/smollm2_code.py. The road is walked anew in a few steps, which show how, and not how far.

Every step is one `a3jax` command, printed before it runs, and is skipped where its result is there already: an
interrupted demo goes on where it stopped. Everything lies in demo/.
"""

import json
import re
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from a3jax.data.pipeline import held_out_windows, open_corpora
from a3jax.experiment.files import load_experiment

DEMO = Path("demo")
GGUF = Path(".cache/SmolLM2-135M-Instruct.Q4_1.gguf")
ADAPTERS = Path("adapters/smollm2-135m-code")
SHOWN = (
    ("import json\n\n\ndef load(path):\n    with", " as file:\n        return json.load(file)\n"),
    (
        "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n        self",
        "\n\n    def pop(self):\n        return self.items.pop()\n",
    ),
    ("def celsius(fahrenheit):\n    return", " * 5 / 9\n"),
    ("def total(prices):\n    sum =", "\n    for price in prices:\n        sum += price\n    return sum\n"),
    ('def area(r):\n    """The area of a circle."""\n    return', " * r ** 2\n"),
)
"""What is before a blank of two to eight tokens, and what is behind it. Chosen by hand; docs/shown.md has figures of many."""
LEAST, MOST = 2, 8
CODE = '''def mean(values):
    """Return the arithmetic mean of a list of numbers."""
    if not values:[[12]]
    return sum(values) / len(values)


def variance(values):
    """Return the mean squared distance from the mean."""
    center = mean(values)[[16]] for x in values) / len(values)
'''
console = Console(highlight=False, soft_wrap=True)


def a3jax(*args: str, out: Path | None = None) -> dict[str, Any]:
    """Run one command and return its JSON; a result kept in `out` is taken from there."""
    if out and out.is_file():
        return json.loads(out.read_text())
    shown = " ".join(f"'{arg}'" if "\n" in arg or "*" in arg or " " in arg else arg for arg in args)
    console.print(f"\n[bold]$ a3jax {shown}[/bold]", markup=True)
    command = [sys.executable, "-m", "a3jax.cli", *args, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    result = json.loads(done.stdout.splitlines()[-1])
    if out:
        out.write_text(json.dumps(result))
    return result


def main() -> None:
    """Run every step, then print what they gave."""
    begun = time.perf_counter()
    DEMO.mkdir(exist_ok=True)
    source, corpus, run, exported = DEMO / "smollm2", DEMO / "corpus", DEMO / "run", DEMO / "exported"
    a3jax("import", str(GGUF), str(source), out=DEMO / "import.json")
    show_adapted(source)
    stdlib = sysconfig.get_path("stdlib")
    a3jax(
        *("prepare", stdlib, str(corpus), "--tokenizer", str(source), "--held-out", "0.02", "--include", "*.py"),
        *("--exclude", "site-packages/*", "*test*", "idlelib/*", "lib2to3/*", "encodings/*"),
        out=DEMO / "prepare.json",
    )
    infill = ("--text", CODE, "--order", "in_order_1")
    before = a3jax("generate", str(source), *infill, out=DEMO / "before.json")
    trained = a3jax("train", "smollm2_python")
    after = a3jax("generate", str(run), *infill, out=DEMO / "after.json")
    export = a3jax("export", str(run), str(exported), "--verify", out=DEMO / "export.json")
    a3jax("export", str(source), str(DEMO / "source"), "--as", "llama", out=DEMO / "source.json")
    own = source_nll(DEMO / "source")
    report(trained, own, before, after, export, time.perf_counter() - begun)


def show_adapted(source: Path) -> None:
    """Blanks filled from both sides by the adapted model, and from the left alone by its source; and how one fills in."""
    model, asked = DEMO / "smollm2-code", {"both": DEMO / "both.jsonl", "left": DEMO / "left.jsonl"}
    a3jax("import", str(GGUF), str(model), "--adapters", str(ADAPTERS), out=DEMO / "import-adapted.json")
    both = [{"text": f"{before}[[{LEAST}-{MOST}]]{after}"} for before, after in SHOWN]
    left = [{"prompt": before, "tokens": MOST, "stop": ["\n"]} for before, _ in SHOWN]
    for path, requests in zip(asked.values(), (both, left)):
        path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    answers = {}
    for name, checkpoint in (("both", model), ("left", source)):
        out = DEMO / f"{name}-filled.jsonl"
        a3jax("generate", str(checkpoint), "--file", str(asked[name]), "--out", str(out))
        answers[name] = [json.loads(line)["blanks"][0]["text"] for line in out.read_text().splitlines()]
    trace = ("--mode", "dynamic", "--threshold", "0.6", "--trace", str(DEMO / "trace.html"))
    a3jax("generate", str(model), "--text", CODE, *trace, out=DEMO / "trace.json")
    table = Table(title="SmolLM2-135M, adapted in four minutes on one GPU, fills ⟦ ⟧", title_justify="left")
    table.add_column("both sides seen, adapted")
    table.add_column("left only, the source")
    for (before, after), *texts in zip(SHOWN, answers["both"], answers["left"]):
        line, rest = before.splitlines()[-1].strip(), after.splitlines()[0]
        table.add_row(*(escape(f"{line}⟦{text}⟧{rest}") for text in texts))
    console.print()
    console.print(table)
    console.print(f"{DEMO / 'trace.html'} shows another text fill in, several tokens a pass.")


def source_nll(folder: Path) -> float:
    """Nats per token of the source model itself, run by transformers on the same held-out documents."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = load_experiment("smollm2_python")
    windows = held_out_windows(open_corpora(config.data), config.data.length, config.train.eval_windows)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total, count = 0.0, 0
    with torch.no_grad():
        for tokens_L, segment_L in zip(windows["tokens"], windows["segments"]):
            for segment in np.unique(segment_L[segment_L > 0]):
                ids = torch.from_numpy(tokens_L[segment_L == segment])[None].long()
                if (predicted := ids.shape[1] - 1) > 0:
                    total += float(model(ids, labels=ids).loss) * predicted
                    count += predicted
    return total / count


def report(
    trained: dict[str, Any],
    own: float,
    before: dict[str, Any],
    after: dict[str, Any],
    export: dict[str, Any],
    seconds: float,
) -> None:
    """The table and the texts at the end."""
    lines = [json.loads(line) for line in (DEMO / "run" / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if "nll/ar" in line)
    table = Table(title="Held-out NLL, nats per token of Python source", title_justify="left")
    for column in ("order", "before", "after"):
        table.add_column(column, justify="left" if column == "order" else "right")
    table.add_row("source model, in PyTorch", f"{own:.3f}", "")
    for order, value in trained["nll"].items():
        table.add_row(order, f"{first[f'nll/{order}']:.3f}", f"{value:.3f}")
    console.print()
    console.print(table)
    for name, result in (("before", before), ("after", after)):
        console.rule(f"infilled {name} adaptation", align="left")
        console.print(marked(result["blanks"]), markup=False)
    console.rule()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    speed = statistics.median(line["tokens_per_second"] for line in lines if "loss" in line)
    console.print(f"training            {speed:,.0f} tokens/s, {trained['steps']} steps")
    console.print(f"PyTorch export      largest logit difference {export['max_logit_difference']:.1e}")
    console.print(f"this demo           {seconds / 60:.1f} minutes, at most {peak:.1f} GiB in one process")
    console.print(f"\nGo on:  a3jax generate {DEMO / 'run'} --text 'def area(r): [[8]] * r'")


def marked(blanks: list[dict[str, Any]]) -> str:
    """The code with what was filled in between ⟦ and ⟧."""
    filled = iter(blanks)
    return re.sub(r"\[\[\d+\]\]", lambda _: f"⟦{next(filled)['text']}⟧", CODE)


if __name__ == "__main__":
    main()
