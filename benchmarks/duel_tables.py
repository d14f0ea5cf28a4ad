"""The tables of docs/duel.md, from what `duel_figures.py` keeps of each duel.

python benchmarks/duel_tables.py
"""

import json
import re
import runpy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "duel.md"
DUELS = {name: runpy.run_path(str(ROOT / "experiments" / f"{name}.py"))["DUEL"] for name in ("duel", "duel_small")}
ARMS = tuple(DUELS["duel"].arms)
"""Of both, in the order of rows."""
TABLE = r"(<!-- table {}( \S+)? -->\n).*?(<!-- end -->)"

Found = dict[str, Any]
"""Of a setting: its rate, steps and seeds, and its figures."""


def main() -> None:
    """Write every table into its place."""
    page = PAGE.read_text()
    for duel, each in DUELS.items():
        kept = {name: json.loads((each.kept / f"{name}.json").read_text()) for name in ("rates", "figures")}
        page = put(page, f"{duel} rates", lambda _, kept=kept: rates(kept["rates"]))
        for name, table in {"likelihood": likelihood, "lines": lines, "decoders": decoders, "written": written}.items():
            page = put(page, f"{duel} {name}", lambda budget, table=table, kept=kept: table(kept["figures"], budget))
    PAGE.write_text(page)


def put(page: str, name: str, table: Any) -> str:
    """The page with a table in each of its places, which say `<!-- table DUEL NAME BUDGET -->` and `<!-- end -->`."""
    place = re.compile(TABLE.format(name), re.DOTALL)
    return place.sub(lambda found: found[1] + table((found[2] or "").strip()) + found[3], page)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *rows])


def rates(found: dict[str, Found]) -> str:
    """Nats on dev files by learning rate, the chosen one bold."""
    tried = sorted({rate for each in found.values() for rate in each["nats"]}, key=float)
    rows = []
    for arm, each in found.items():
        cells = [f"{each['nats'][rate]:.3f}" if rate in each["nats"] else "" for rate in tried]
        rows.append([arm, *(f"**{cell}**" if float(rate) == each["chosen"] else cell for rate, cell in zip(tried, cells))])
    return markdown(["arm", *tried], rows)


def settings(found: dict[str, Found], budget: str) -> list[tuple[str, Found]]:
    """The base, and every arm at a budget, in the order of the arms."""
    at_budget = [(arm, found[f"{arm}, {budget}"]) for arm in ARMS if f"{arm}, {budget}" in found]
    return [("the base", found["base"]), *at_budget]


def value(one: Found, name: str, digits: int = 3, scale: float = 1) -> str:
    """A figure with half the width of its interval, empty where there is none."""
    if (figure := one["figures"].get(name)) is None:
        return ""
    low, high = figure["interval"]
    return f"{scale * figure['value']:.{digits}f} ± {scale * (high - low) / 2:.{digits}f}"


def above(one: Found, name: str, other: str, digits: int = 3, scale: float = 1) -> str:
    """What a figure is above that of the reference or the base, with the interval; bold where that leaves 0 out."""
    if (figure := one["figures"].get(name, {}).get(other)) is None or figure["interval"] == [0, 0]:
        return ""
    low, high = (scale * end for end in figure["interval"])
    text = f"{scale * figure['value']:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def is_bound(one: Found) -> bool:
    """Whether its likelihood is only bounded."""
    return "likelihood/bound/nats per token" in one["figures"]


def likelihood(found: dict[str, Found], budget: str) -> str:
    """Nats per token by order."""
    orders = ("ar", "in_order_4", "infill_1", "random_4", "random_1", "bound")
    head = ["arm", "seeds", "steps", *(f"`{order}`" for order in orders), "forgotten", "any order, above `direct`"]
    rows = []
    for arm, one in settings(found, budget):
        cells = [value(one, f"likelihood/{order}/nats per token") for order in orders]
        compared = [above(one, "likelihood/ar/nats per token", "above_base"), above(one, "any order", "above_reference")]
        rows.append(
            [arm, *([str(len(one["seeds"])), f"{one['steps']:,}"] if "steps" in one else ["", ""]), *cells, *compared]
        )
    return markdown(head, rows)


def decoders_of(one: Found) -> list[str]:
    """The names of a setting's decoders."""
    return [name.split("/")[1] for name in one["figures"] if re.fullmatch(r"lines/[^/]*/exact", name)]


def columns(one: Found, decoder: str) -> list[str]:
    """The figures of a decoder: quality, and what it costs."""
    name = f"lines/{decoder}"
    quality = [value(one, f"{name}/exact", 1, 100), value(one, f"{name}/ROUGE-L", 1), value(one, f"{name}/parses", 1, 100)]
    nats = value(one, f"truth/{decoder}/nats per token")
    bound = "≤ " if is_bound(one) and decoder != "left only" else ""
    passes, milliseconds = (one["figures"][f"{name}/{cost} per token"]["value"] for cost in ("passes", "milliseconds"))
    return [*quality, bound + nats, f"{passes:.2f}", f"{milliseconds:.2f}"]


COLUMNS = ["exact, %", "ROUGE-L", "parses, %", "nats of the truth", "passes a token", "ms a token"]


def lines(found: dict[str, Found], budget: str) -> str:
    """Of every arm its best decoder, and from the left alone."""
    rows = []
    for arm, one in settings(found, budget):
        if one["decoder"] is None:
            continue
        compared = [
            above(one, f"best/{column}", "above_reference", 1, scale) for column, scale in (("exact", 100), ("ROUGE-L", 1))
        ]
        rows.append(
            [arm, one["decoder"], *columns(one, one["decoder"]), *compared, value(one, "lines/left only/exact", 1, 100)]
        )
    return markdown(
        ["arm", "decoder", *COLUMNS, "exact, above `direct`", "ROUGE-L, above `direct`", "left only: exact, %"], rows
    )


def decoders(found: dict[str, Found], budget: str) -> str:
    """Every decoder of every arm."""
    each = [(arm, one, name) for arm, one in settings(found, budget) for name in decoders_of(one)]
    rows = [[arm, name, *columns(one, name)] for arm, one, name in each if name != "left only" or len(decoders_of(one)) == 1]
    return markdown(["arm", "decoder", *COLUMNS], rows)


def written(found: dict[str, Found], budget: str) -> str:
    """What was written, judged."""
    rows = []
    for arm, one in settings(found, budget):
        for way in ("one a pass", "two a pass"):
            name = f"continuation by {way}"
            if f"{name}/written/perplexity" in one["figures"]:
                grams = value(one, f"{name}/written/distinct 4-grams", 2)
                rows.append([arm, way, value(one, f"{name}/written/perplexity", 1), grams])
    if rows:
        true = found["base"]
        cells = [value(true, f"continuation by one a pass/true/{column}", 1) for column in ("perplexity", "distinct 4-grams")]
        rows.append(["the text itself", "", *cells])
    return markdown(["arm", "tokens", "perplexity", "distinct 4-grams"], rows)


if __name__ == "__main__":
    main()
