"""Task `code`: a line, a block or an expression of a Python function is blanked, and filled in from both sides or the left.

A filling is exact if it is the truth, and parses if the function with it is Python. What was blanked follows from Python's
own syntax tree: a line is one whole simple statement, a block all lines below a header such as `if x:`.
"""

import ast
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from a3jax.errors import UserError
from a3jax.evaluate.blanks import Blanked, Filler, fillers, fitting
from a3jax.evaluate.options import Options, Ready
from a3jax.evaluate.task import Item
from a3jax.evaluate.texts import Text, read_texts


class Span(NamedTuple):
    """Of a source, in bytes."""

    begin: int
    end: int


class Code:
    """Exact match, share that parses, and nats per token of the truth, with both sides seen and from the left only."""

    name = "code"

    def __init__(
        self,
        fillers: Sequence[Filler],
        source: str,
        texts: Sequence[Text],
        left_out: Counter[str],
        skip_bad: bool = False,
        window: int = 1024,
        limit: int = 1000,
        seed: int = 0,
    ):
        """Blanks of each kind in functions and classes of `texts` until `limit` of a kind fit into `window` tokens.

        Raises `UserError` for a text that is no Python, unless such are to be counted in `left_out`.
        """
        self._fillers = fillers
        self.items: list[Item] = []
        found: Counter[str] = Counter()
        for cluster, unit in ((text.id, unit) for text in texts for unit in _units(text, skip_bad, left_out)):
            if all(found[kind] >= limit for kind in SPANS):
                break
            named = [(f"{kind}: {unit.id}", blank) for kind, blank in blanks(unit, seed) if found[kind] < limit]
            fit = fitting(named, fillers, window, left_out)
            found.update(item.id.partition(":")[0] for item in fit)
            self.items += [item._replace(cluster=cluster) for item in fit]
        self.protocol = {
            "seed": seed,
            "window": window,
            "blanks": "of each kind one for a function or class, drawn by seed",
            "pieces": "what is before, in and behind the blank is tokenized apart; an expression has the space before it",
            "length": "as many tokens as the truth",
            "decoding": {filler.sees: filler.decoding.recorded() for filler in fillers},
            "left_only": "the baseline decodes as many tokens from what is before",
            "exact": "share of fillings that are the truth, white space at the end aside",
            "errors": "blanks of one text count together",
            "parses": "share of fillings with which the function is Python, by the module ast",
        }
        self.data = {
            "source": source,
            **{f"{kind}_blanks": found[kind] for kind in SPANS},
            "left_out": dict(sorted(left_out.items())),
        }

    def evaluate(self, items: Sequence[Item], batch: int) -> list[dict[str, Any]]:
        """Fill and score every item with every filler."""
        each = [Blanked(*item.content) for item in items]
        rows: list[dict[str, Any]] = [{"truth": one.truth, "texts": {}, "figures": {}} for one in each]
        for filler in self._fillers:
            for item, one, filling, row in zip(items, each, filler.fill(each, batch), rows):
                row["texts"][filler.sees] = filling.text
                row["figures"].setdefault(item.id.partition(":")[0], {})[filler.sees] = {
                    "exact": (float(filling.text.rstrip() == one.truth.rstrip()), 1),
                    "parses": (float(is_python(one.before + filling.text + one.after)), 1),
                    "nats per token": (filling.nats, filling.tokens),
                }
        return rows


def is_python(text: str) -> bool:
    """Whether Python can parse it."""
    with warnings.catch_warnings(action="ignore"):
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def blanks(unit: Text, seed: int) -> Iterator[tuple[str, Blanked]]:
    """One blank of each kind that the source has, drawn by `seed`."""
    source = unit.text.encode()
    starts = [0, *(i + 1 for i, byte in enumerate(source) if byte == ord("\n"))]
    tree = ast.parse(unit.text)
    for kind, spans in SPANS.items():
        known = sorted(set(spans(tree, source, starts)))
        if known:
            begin, end = random.Random(f"{seed} {kind} {unit.id}").choice(known)
            yield kind, Blanked(source[:begin].decode(), source[begin:end].decode(), source[end:].decode())


def _units(text: Text, skip_bad: bool, left_out: Counter[str]) -> Iterator[Text]:
    """The functions and classes at the top level of a text, with their decorators."""
    source = text.text.replace("\r\n", "\n").replace("\r", "\n")
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if not skip_bad:
            where = f"{text.id}, line {error.lineno}," if isinstance(error, SyntaxError) else text.id
            raise UserError(f"{where} is not Python: {error}; mend it, or pass over such with --skip-bad") from None
        left_out["not Python"] += 1
        return
    lines = source.split("\n")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            yield Text(f"{text.id} {node.name}, line {first}", "\n".join(lines[first - 1 : node.end_lineno]) + "\n")


def _lines(tree: ast.AST, source: bytes, starts: list[int]) -> Iterator[Span]:
    """Lines that are one simple statement, indentation included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and node.lineno == node.end_lineno and not hasattr(node, "body"):
            begin, end = starts[node.lineno - 1], source.index(b"\n", starts[node.lineno - 1])
            if not source[begin : begin + node.col_offset].strip() and not _is_docstring(node):
                yield Span(begin, end)


def _blocks(tree: ast.AST, source: bytes, starts: list[int]) -> Iterator[Span]:
    """All lines of a body that begins on a line of its own."""
    for node in ast.walk(tree):
        for body in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            if isinstance(node, ast.stmt | ast.ExceptHandler) and isinstance(body, list) and body:
                first = min([body[0].lineno, *(one.lineno for one in getattr(body[0], "decorator_list", []))])
                begin, end = starts[first - 1], source.index(b"\n", starts[body[-1].end_lineno - 1])
                is_elif = source[begin:].lstrip().startswith(b"elif")
                if not source[begin : begin + body[0].col_offset].strip() and not is_elif:
                    yield Span(begin, end)


def _expressions(tree: ast.AST, source: bytes, starts: list[int]) -> Iterator[Span]:
    """Expressions of more than a name or a constant, with the space before them. Places inside f-strings are not known."""
    if isinstance(tree, ast.JoinedStr):
        return
    if isinstance(tree, ast.expr) and not isinstance(tree, ast.Name | ast.Constant | ast.Starred):
        end_line, end_column = tree.end_lineno or tree.lineno, tree.end_col_offset or 0
        begin, end = starts[tree.lineno - 1] + tree.col_offset, starts[end_line - 1] + end_column
        spaced = source[begin - 1 : begin] == b" " and source[begin - 2 : begin - 1].strip()
        yield Span(begin - 1 if spaced else begin, end)
    for child in ast.iter_child_nodes(tree):
        yield from _expressions(child, source, starts)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


SPANS: dict[str, Callable[[ast.AST, bytes, list[int]], Iterator[Span]]] = {
    "line": _lines, "block": _blocks, "expression": _expressions
}  # fmt: skip


PATTERNS = ("*.py", "*.jsonl*", "*.parquet")
"""Files of a folder that may hold Python."""


def read(_: str, options: Options, left_out: Counter[str]) -> Ready:
    """The Python of `options.code`. Raises `UserError` for what cannot be read."""
    decoding = options.decoding.checked()
    source, texts = read_texts(
        options.code, options.column, options.split, PATTERNS, decoding.seed, options.skip_bad, left_out
    )
    return lambda models: Code(
        fillers(models.model, models.baseline, decoding),
        source,
        texts,
        left_out,
        options.skip_bad,
        options.longest,
        options.limit,
        decoding.seed,
    )
