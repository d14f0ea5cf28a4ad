"""Task `likelihood`: how well a model predicts text, by order, by position, and by how much of the text it sees already.

Of what is visible when a token is predicted, the order itself tells: its group sees the slots before the group's own.
"""

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from a3jax.curriculum.stage import BOUND, parse_order
from a3jax.errors import UserError
from a3jax.evaluate.options import Models, Options, Ready
from a3jax.evaluate.task import Item
from a3jax.evaluate.texts import Text, read_texts
from a3jax.generate.objective import check_order
from a3jax.likelihood.scoring import forced, token_log_likelihoods
from a3jax.ordering import Order
from a3jax.ordering.sequence import draw
from a3jax.weights.loading import Model

ORDERS = (
    "ar", "in_order_2", "in_order_4", "in_order_8", "random_1", "random_4", "random_8", "spans_4", "infill_1", "infill_4",
    "right_to_left",
)  # fmt: skip
SUMMARY, BY_POSITION, BY_VISIBLE = "likelihood", "nats per token by position", "nats per token by visible part of the text"
DRAWS = 16
"""Of masks for every window, whose mean is its bound."""
PARTS = 4
"""Of a text, by what is visible already."""
FIRST_OCTAVE = 5
"""Positions are told apart by powers of two, those below 2^5 not at all."""


class ByOrder:
    """Nats per token and bits per byte of windows of text, for each order."""

    name = "likelihood"

    def __init__(
        self,
        model: Model,
        source: str,
        texts: Sequence[Text],
        left_out: Counter[str],
        orders: Sequence[str] = ORDERS,
        window: int = 1024,
        limit: int = 1000,
        seed: int = 0,
    ):
        """At most `limit` windows of `window` tokens, or the model's context, of as many texts as can be.

        Raises `UserError` for an unknown order.
        """
        for order in orders:
            check_order(model, order)
        if not orders or len(set(orders)) < len(orders):
            raise UserError("orders are to be named once each, and at least one")
        self._model, self._orders, self._seed = model, tuple(orders), seed
        window = min(window, model.config.context)
        by_text: list[list[Item]] = []
        for text in texts:
            if len(by_text) >= limit:
                break
            windows = cut_windows(model, text, window)
            by_text += [windows] if windows else []
            left_out["no token to predict"] += not windows
        whole, cut = sum(len(windows) == 1 for windows in by_text), sum(len(windows) > 1 for windows in by_text)
        # The first window of every text, then the second: many texts tell more than many windows of one.
        rounds = itertools.zip_longest(*by_text)
        self.items = [item for each in rounds for item in each if item is not None][:limit]
        self.protocol = {
            "orders": list(self._orders),
            "seed": seed,
            "window": window,
            "given": "the first token of a window: the start token where the model has one",
            "windows": "a text longer than a window is cut; no window sees another",
            "errors": "windows of one text count together",
            "bound": f"of masked diffusion: an upper bound on nats, the mean of {DRAWS} draws of masks for each window",
            "infill_N": "one span of drawn place and size, at most half of the window, in random groups of N",
        }
        self.data = {
            "source": source,
            "texts_whole": whole,
            "texts_cut_into_windows": cut,
            "windows": len(self.items),
            "left_out": dict(sorted((+left_out).items())),
        }

    def evaluate(self, items: Sequence[Item], batch: int) -> list[dict[str, Any]]:
        """Nats of every window in every order; passes through the network are of one size whatever the `batch`."""
        found: dict[str, dict[str, Any]] = {item.id: {"figures": {}} for item in items}
        if BOUND in self._orders:
            for item, nats in zip(items, self._bounds(items)):
                tokens, size = item.content
                row = {"nats per token": (nats, len(tokens) - 1), "bits per byte": (nats / math.log(2), size)}
                found[item.id]["figures"][SUMMARY] = {BOUND: row}
        asked = [(item, name) for item in items for name in self._orders if name != BOUND]
        orders = jax.device_get([self._order(item, name) for item, name in asked])
        log_probs = forced(self._model, [item.content[0] for item, _ in asked], orders) if asked else []
        for (item, name), order, log_prob_L in zip(asked, orders, log_probs):
            place, visible = predicted(order)
            for table, row in _figures(item, name, place, visible, -log_prob_L[place].astype(float)).items():
                found[item.id]["figures"].setdefault(table, {})[name] = row
        return list(found.values())

    def _bounds(self, items: Sequence[Item]) -> list[float]:
        """Of every window a draw of the upper bound on its nats, as a mean of several."""
        texts = [item.content[0] for item in items]
        given = [[place == 0 for place in range(len(text))] for text in texts]
        block = self._model.record.mask_block
        found = token_log_likelihoods(self._model, texts, given, BOUND, self._seed, DRAWS, mask_block=block)
        return [-one.total for one in found]

    def _order(self, item: Item, name: str) -> Order:
        tokens, seed, seeding = item.content[0], f"{self._seed} {item.id}", self._model.config.seeding
        count, place = len(tokens), np.arange(len(tokens))
        given = place == 0
        if parse_order(name)[0] == "infill":
            drawn = random.Random(seed)
            size = drawn.randint(1, max(1, (count - 1) // 2))
            begin = drawn.randint(1, count - size)
            given = (place < begin) | (place >= begin + size)
        return draw(random.Random(seed).getrandbits(32), tokens, given.tolist(), name, seeding).order


def predicted(order: Order) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens of a text are predicted, by place, and how many each of them sees."""
    by_place = np.argsort(order.token_index)
    place = np.flatnonzero(order.predicted[by_place])
    return place, np.asarray(order.group_start)[by_place][place]


def cut_windows(model: Model, text: Text, window: int) -> list[Item]:
    """Consecutive windows of a text, each with its tokens, its start token included, and the bytes of what it predicts."""
    start = [] if model.codec.start is None else [model.codec.start]
    encoded = model.codec.tokenizer.encode(text.text, add_special_tokens=False)
    edges = [begin for begin, _ in encoded.offsets] + [len(text.text)]
    step, given = window - len(start), 1 - len(start)
    items = []
    for number, begin in enumerate(range(0, len(encoded.ids), step), 1):
        end = min(begin + step, len(encoded.ids))
        if end - begin > given:
            tokens = (*start, *encoded.ids[begin:end])
            size = len(text.text[edges[begin + given] : edges[end]].encode())
            items.append(Item(f"{text.id}#{number}", len(tokens), (tokens, size), cluster=text.id))
    return items


def _figures(item: Item, order: str, place: np.ndarray, visible: np.ndarray, nats: np.ndarray) -> dict[str, dict[str, Any]]:
    """A window's shares in the row `order` of every table."""
    tokens, size = item.content
    summary = {"nats per token": (float(nats.sum()), len(nats))}
    if parse_order(order)[0] != "infill":  # of whole windows the bytes are known
        summary["bits per byte"] = (float(nats.sum()) / math.log(2), size)

    def by(part: np.ndarray, name: Callable[[int], str]) -> dict[str, tuple[float, int]]:
        each = [(number, part == number) for number in np.unique(part).tolist()]
        return {name(number): (float(nats[chosen].sum()), int(chosen.sum())) for number, chosen in each}

    octave = np.maximum(np.frexp(place)[1], FIRST_OCTAVE)
    part = np.minimum(visible * PARTS // len(tokens), PARTS - 1)
    return {
        SUMMARY: summary,
        BY_POSITION: by(octave, lambda n: f"{1 << (n - 1) if n > FIRST_OCTAVE else 1}-{(1 << n) - 1}"),
        BY_VISIBLE: by(part, lambda n: f"{100 * n // PARTS}-{100 * (n + 1) // PARTS}%"),
    }


def read(_: str, options: Options, left_out: Counter[str]) -> Ready:
    """The texts of `options.text`. Raises `UserError` for those that cannot be read, and for an unknown order."""
    seed = options.decoding.seed
    for order in options.orders:
        if order != BOUND:
            parse_order(order)
    source, texts = read_texts(options.text, options.column, options.split, options.include, seed, options.skip_bad, left_out)

    def task(models: Models) -> ByOrder:
        own = ORDERS if models.model.record.mask_block is None else ("ar", BOUND)
        orders = options.orders or own
        return ByOrder(models.model, source, texts, left_out, orders, options.longest, options.limit, seed)

    return task
