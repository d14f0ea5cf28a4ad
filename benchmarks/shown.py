"""The picture of docs/shown.md, from the results of `a3jax evaluate` that experiments/results/shown keeps.

python benchmarks/shown.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from humaneval_table import KEPT as ITEMS
from humaneval_table import estimates

ROOT = Path(__file__).parents[1]
KEPT, PICTURE = ROOT / "experiments" / "results" / "shown", ROOT / "docs" / "shown.svg"
ROWS = (
    ("line", "a line of\nan unseen package", "code", "line", ""),
    ("expression", "an expression of\nan unseen package", "code", "expression", ""),
    ("HumanEval", "a line of HumanEval", "humaneval_infill", "SingleLineInfilling", ", white space given"),
)
"""Name, what is filled in, task, table, and the end of the rows' names."""
BARS = (
    ("both sides, the source", "source", "both sides", "#b8b8b8"),
    ("left only", "adapted", "left only", "#7a9cc6"),
    ("both sides, adapted", "adapted", "both sides", "#2f6f4e"),
)


def figure(who: str, task: str, table: str, row: str) -> dict[str, Any]:
    """Nats per token of the truth, with their error."""
    if task == "humaneval_infill":
        return estimates(json.loads(ITEMS.read_text())[who], row)["nats per token"]._asdict()
    tables = json.loads((KEPT / f"code_{who}.json").read_text())["tasks"][task]["tables"]
    return tables[table][row]["nats per token"]


def main() -> None:
    """Draw it."""
    plt.rcParams |= {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "shown"}
    picture, axes = plt.subplots(figsize=(7.2, 2.6))
    for place, (_, _, task, table, end) in enumerate(ROWS):
        for offset, (label, who, row, colour) in enumerate(BARS):
            found = figure(who, task, table, row + end)
            at = place + 0.27 * (offset - 1)
            axes.bar(at, found["value"], 0.25, yerr=found["error"], color=colour, label=label if not place else None)
            axes.text(at, found["value"] + found["error"] + 0.04, f"{found['value']:.2f}", ha="center", fontsize=8)
    axes.set_xticks(range(len(ROWS)), [what for _, what, *_ in ROWS])
    axes.set_ylabel("nats per token of the truth")
    axes.set_ylim(0, 3.6)
    axes.legend(frameon=False, ncol=3, loc="upper center")
    axes.spines[["top", "right"]].set_visible(False)
    picture.tight_layout()
    picture.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
