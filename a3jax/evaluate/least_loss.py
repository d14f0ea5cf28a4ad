"""Multiple choice by loss: the answer is the choice whose tokens cost the fewest nats each, given what is before them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from a3jax.data.tokenizer import TextCodec
from a3jax.errors import UserError
from a3jax.evaluate.continuations import Choice, check_length, score
from a3jax.evaluate.local_data import Row
from a3jax.evaluate.pieces import TOKENS, items
from a3jax.evaluate.task import Item
from a3jax.weights.loading import Model


class Question(NamedTuple):
    """What is asked."""

    given: str
    choices: tuple[tuple[str, ...], ...]
    """Each in pieces, which are tokenized one by one, and all scored."""
    right: int


class LeastLoss:
    """The share of questions of which the right choice has the least mean loss per token."""

    def __init__(
        self,
        name: str,
        model: Model,
        ask: Callable[[Mapping[str, Any]], Question],
        order: str,
        seed: int,
        source: str,
        rows: Sequence[Row],
        left_out: Counter[str],
        skip_bad: bool = False,
        limit: int = 1000,
    ):
        """The first `limit` rows. Raises `UserError` as `pieces.items` for one that is too long, or has an empty choice."""
        self.name, self._model, self._order, self._seed = name, model, order, seed

        def asked(row: Mapping[str, Any]) -> tuple[int, Any]:
            question = ask(row)
            choices = [_choice(question.given, pieces, model.codec) for pieces in question.choices]
            _check(model, order, choices)
            return max(len(choice.tokens) for choice in choices), (choices, question.right)

        self.items = items(name, rows[:limit], asked, skip_bad, left_out)
        self.protocol = {
            "score": "mean loss per token, the least of which is the answer; of equal ones the first",
            "tokens": TOKENS,
            "decoding": {"order": order, "seed": seed},
            "items": "the first, in the order of the files",
        }
        self.data = {
            "source": source, "questions": len(self.items), "of": len(rows), "left_out": dict(sorted(left_out.items())),
        }  # fmt: skip

    def evaluate(self, items: Sequence[Item], batch: int) -> list[dict[str, Any]]:
        """Score every choice in the order."""
        asked = [[Choice(*choice) for choice in item.content[0]] for item in items]
        rows = []
        for item, choices, scores in zip(items, asked, score(self._model, asked, self._order, self._seed, batch)):
            losses = [-one.log_prob / (len(choice.tokens) - choice.given) for choice, one in zip(choices, scores)]
            answer = losses.index(min(losses))
            figures = {"accuracy": (float(answer == item.content[1]), 1.0)}
            rows.append({"losses": losses, "answer": answer, "figures": {self.name: {self._order: figures}}})
        return rows


def _choice(given: str, pieces: Sequence[str], codec: TextCodec) -> Choice:
    known = codec.encode(given)
    head = codec.start if known else codec.stand_in
    known = known if head is None else [head, *known]
    return Choice((*known, *(token for piece in pieces for token in codec.encode(piece))), len(known))


def _check(model: Model, order: str, choices: Sequence[Choice]) -> None:
    for choice in choices:
        if choice.given == len(choice.tokens):
            raise UserError("a choice has no token to score")
        if not choice.given:
            raise UserError("nothing stands before the choices, and this model has no token to stand there")
        check_length(model, order, len(choice.tokens))
