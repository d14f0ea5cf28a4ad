"""Windows of a training batch as a person reads them: `a3jax data show EXPERIMENT`.

Every token is written as its text. Its background is its document's, its number below tells the group that predicts it
(0 for given tokens), and for one chosen token what its query may see is told apart from all else. Without colour the
same is in the signs around each token.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array
from rich.text import Text

from a3jax.config import Config, Stage
from a3jax.data.pipeline import Batches, open_corpora
from a3jax.data.tokenizer import load_codec
from a3jax.errors import UserError
from a3jax.ordering import Order, draw_mixture, example_keys
from a3jax.outside_text import printable
from a3jax.terminal import Terminal
from a3jax.train.direct import with_corpora


@dataclass(frozen=True)
class Query:
    """What the query of one token may see."""

    token: int
    """Where it stands in the window."""
    sees: tuple[int, ...]
    """Where the tokens stand that it sees, in generation order."""


@dataclass(frozen=True)
class Window:
    """One row of a batch, in the order of its text. All tuples have one entry per token, padding left out."""

    row: int
    source: str
    padding: int
    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    document: tuple[int, ...]
    """Numbered from 1 in this window."""
    context: tuple[bool, ...]
    """Whether another window predicts the token."""
    group: tuple[int, ...]
    """The group of its document that predicts the token, from 1; 0 for what is given."""
    query: Query | None


@dataclass(frozen=True)
class Shown:
    """Windows of one step."""

    step: int
    order: str
    given: float
    windows: tuple[Window, ...]


def show(config: Config, step: int = 0, windows: int = 2, token: int | None = None) -> Shown:
    """The first rows of a step's batch (0 is the first step), exactly as training reads and orders them.

    `token` chooses a place in the windows whose query is looked at. Raises `UserError` for a step, a number of windows
    or a place that there is not.
    """
    schedule = config.schedule
    if not 0 <= step < schedule.steps:
        raise UserError(f"step is {step}; it must be from 0 to {schedule.steps - 1}")
    _, stage = schedule.at(step)
    size = schedule.windows(stage)
    if not 1 <= windows <= size:
        raise UserError(f"windows is {windows}; it must be from 1 to data.batch {size}")
    if token is not None and not 0 <= token < config.data.length:
        raise UserError(f"token is {token}; it must be from 0 to {config.data.length - 1}")
    corpora = open_corpora(with_corpora(config))
    rows = np.arange(windows)
    batches = Batches(corpora, config.data, schedule.steps, config.seed, {size: rows}, schedule.batch_S)
    batch, (source_R, _) = batches[step], batches.mixture.at(step, rows)
    changing = schedule.rows(step, windows)
    order = orders(config, step, batch["segments"], stage, changing.get("weights"), changing.get("sizes"))
    decode = load_codec(corpora[0].folder).decode
    result = []
    for row in rows.tolist():
        slots = jax.tree.map(lambda x, row=row: x[row], order)
        tokens_L, segment_L = batch["tokens"][row], batch["segments"][row]
        count = int(np.count_nonzero(segment_L))
        place = np.argsort(slots.token_index)  # window order -> slot
        result.append(
            Window(
                row=row,
                source=batches.names[source_R[row]],
                padding=len(tokens_L) - count,
                tokens=tuple(tokens_L[:count].tolist()),
                texts=tuple(decode([t]) for t in tokens_L[:count].tolist()),
                document=tuple(np.abs(segment_L[:count]).tolist()),
                context=tuple((segment_L[:count] < 0).tolist()),
                group=tuple(groups_of(slots)[:count].tolist()),
                query=None if token is None else _query(slots, place, token, count, row),
            )
        )
    return Shown(step, stage.name, max(part.given for part in stage.parts), tuple(result))


def orders(
    config: Config,
    step: int,
    segment_BxL: np.ndarray,
    stage: Stage,
    weight_BxP: np.ndarray | None = None,
    size_BxP: np.ndarray | None = None,
) -> Order:
    """Those of the first windows of a step, as training draws them, on the host; the rest as in `draw_mixture`."""
    drawn = _orders(
        np.uint32(config.seed), step, segment_BxL, stage.parts, config.seeding or "successor", weight_BxP, size_BxP
    )
    return jax.tree.map(np.asarray, drawn)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _orders(seed: Array, step: Array, segment_BxL: Array, *how: Any) -> Order:
    return draw_mixture(example_keys(seed, step, len(segment_BxL)), segment_BxL, *how)


def groups_of(slots: Order) -> np.ndarray:
    """For each token of one window the number of its group in its document, from 1; 0 where it is given. L, window order."""
    start_L, predicted_L = np.asarray(slots.start), np.asarray(slots.predicted)
    begins_L = predicted_L & (np.diff(slots.group_start, prepend=-1) != 0)
    count_L = np.cumsum(begins_L)
    return np.where(predicted_L, count_L - (count_L - begins_L)[start_L], 0)[np.argsort(slots.token_index)]


def _query(slots: Order, place_L: np.ndarray, token: int, count: int, row: int) -> Query:
    if token >= count:
        raise UserError(f"token is {token}, but row {row} holds {count} tokens before its padding; choose one of them")
    slot = place_L[token]
    seen = slots.token_index[slots.start[slot] : slots.group_start[slot]]
    return Query(token, tuple(seen.tolist()))


_DOCUMENTS = ("on grey15", "on dark_blue")
_ORDER = ("red", "dark_orange", "yellow", "green", "cyan", "blue", "magenta")
_CLOSING = {"[": "]", "{": "}"}
_SUBSCRIPT = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def print_shown(shown: Shown, console: Terminal | None = None) -> None:
    """Print windows for people: early groups are red, late ones magenta, given tokens grey, documents have backgrounds.

    Where there is no colour, ‖ begins a document, [ ] holds what is given and the small number is the group.
    """
    console = console or Terminal()
    console.print(f"step {shown.step}, {shown.order}, up to {shown.given:.0%} given besides the first token of a document")
    console.print("‖ a document begins  [given]  {context, another window predicts it}  x₃ in group 3")
    for window in shown.windows:
        facts = f"{len(window.tokens):,} tokens, {max(window.document, default=0)} documents, {window.padding:,} padding"
        console.print()
        console.rule(f"row {window.row} of {window.source}: {facts}")
        console.print(spelled(window), soft_wrap=False)
        if window.query is not None:
            _print_query(window, window.query, console)


def spelled(window: Window) -> Text:
    """The text of a window with the signs and colours that tell how it is drawn."""
    last: dict[int, int] = {}
    for document, group in zip(window.document, window.group):
        last[document] = max(last.get(document, 0), group)
    text, before, open_sign = Text(), 0, ""
    for i, (word, document, group) in enumerate(zip(window.texts, window.document, window.group)):
        sign = "{" if window.context[i] else "" if group else "["
        if open_sign and (sign != open_sign or document != before):
            text.append(_CLOSING[open_sign], "bold")
        if document != before:
            text.append("\n‖ " if before else "‖ ", "bold")
        if sign and (sign != open_sign or document != before):
            text.append(sign, "bold")
        before, open_sign = document, sign
        shade = _DOCUMENTS[document % 2]
        chosen = " reverse bold" if window.query and window.query.token == i else ""
        hue = "grey62" if sign else _ORDER[(group - 1) * len(_ORDER) // last[document]]
        text.append(_visible(word), f"{hue} {shade}{chosen}")
        if group:
            text.append(str(group).translate(_SUBSCRIPT), f"dim {shade}")
    text.append(_CLOSING.get(open_sign, ""), "bold")
    return text


def _print_query(window: Window, query: Query, console: Terminal) -> None:
    group = window.group[query.token]
    if not group:
        console.print(f"\ntoken {query.token} {window.texts[query.token]!r} is given: nothing predicts it")
        return
    seen = set(query.sees)
    console.print(
        f"\ntoken {query.token} {window.texts[query.token]!r}, group {group} of document {window.document[query.token]}: "
        f"its query sees {len(seen)} tokens; · is hidden from it, ▢ is the token itself",
    )
    text = Text()
    for i, (word, document) in enumerate(zip(window.texts, window.document)):
        if document != window.document[query.token]:
            continue
        if i == query.token:
            text.append("▢", "bold reverse")
        else:
            text.append(*((_visible(word), "bold green") if i in seen else ("·", "dim")))
    console.print(text)


def _visible(text: str) -> str:
    """Text with its line breaks to be seen, and still breaking lines."""
    return printable(text.replace("\t", "→").replace("\n", "⏎\n"))
