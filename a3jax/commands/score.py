"""a3jax score."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

from tyro.conf import Positional, arg

from a3jax.commands.commandline import PLAIN, Json, Loads, Text, check_shared
from a3jax.devices.joined import joined
from a3jax.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from a3jax.generate.scored import Subject
    from a3jax.weights.loading import Model


@dataclass(frozen=True)
class Score:
    """The exact log-likelihood of texts, every token predicted from those that come before it in an order.

    a3jax score demo/run --text "def area(r): return 3.14 * r * r" --order random_1 --orders 8

    a3jax score demo/run --text "def area(r): return [[8]]" --blanks "3.14 * r * r"

    Without an input, the text to score is read from standard input.
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A model folder, a run folder, or what a3jax import takes."""
    text: Text = None
    """A text; with --blanks, one in which [[8]] is a blank."""
    blanks: tuple[str, ...] = ()
    """What stands in the blanks: it alone is scored, all else is given."""
    file: Text = None
    """A file that holds one text; if it is called *.jsonl, {"text": ...} on each line; - for such lines on standard input."""
    heal: bool = True
    """Whether what stands in a blank is read with the last token of the text before it, as a3jax generate does it."""
    order: str = "ar"
    """ar, or in_order_N, random_N, spans_N, infill_N, right_to_left_N with N tokens predicted at once; bound for a model of
    masked diffusion, which has no exact likelihood."""
    orders: int = 1
    """The mean over so many orders, drawn with seed, seed + 1 and so on; of random_N, spans_N, infill_N or bound."""
    seed: int = 0
    """Draws the order."""
    loading: Loads = PLAIN
    json: Json = False

    def run(self) -> dict[str, Any]:  # noqa: D102
        from a3jax.curriculum.stage import BOUND, check_orders, parse_order

        if self.order != BOUND:
            parse_order(self.order)
        check_orders(self.order, self.orders)
        if self.file is not None and (self.text is not None or self.blanks):
            other = "text" if self.text is not None else "blanks"
            raise UserError(f"--{other} does not go with --file, which says what to score; leave one of them out")
        with joined(self.loading.devices) as mesh:
            check_shared(self.file)
            if self.file is not None and (self.file == "-" or self.file.endswith(".jsonl")):
                return self._many(self.file, mesh)
            return self._one(mesh)

    def _one(self, mesh: "Mesh | None") -> dict[str, Any]:
        """Score one text, token by token."""
        from a3jax.devices.writing import by_first
        from a3jax.files.reading import STDIN, has_input, whole_text
        from a3jax.generate.scored import Asked, score, subject
        from a3jax.show.likelihoods import print_tokens

        def given() -> str:
            if (self.text, self.file) == (None, None) and not has_input():
                raise UserError("nothing to score is given; give --text or --file")
            return whole_text(self.file or STDIN) if self.text is None else self.text

        text = by_first(given)
        model = self.loading.model(self.checkpoint, mesh)
        (scored,) = score(
            model, [subject(model, Asked(text, self.blanks or None), self.heal)], self.order, self.seed, self.orders
        )
        if self.json:
            return {"text": text, **scored.summary(), "token_log_probs": scored.tokens()}
        print_tokens(scored)
        return scored.summary()

    def _many(self, file: str, mesh: "Mesh | None") -> dict[str, Any]:
        """Score a text a line: an answer a line, and the figures of all texts together."""
        from a3jax.curriculum.stage import BOUND
        from a3jax.files.reading import lines, located, opened
        from a3jax.files.strict import build
        from a3jax.generate.scored import Asked, figures, score, subject, total_name

        def subjects(model: "Model", source: BinaryIO, name: str) -> "Iterator[Subject]":
            for line in lines(source, name):
                with located(line.where):
                    asked = build(Asked, {"id": line.number, **line.value}, line.where)
                    yield subject(model, asked, self.heal)

        texts, log_likelihood, tokens, count = 0, 0.0, 0, 0
        with opened(file) as (source, name):
            model = self.loading.model(self.checkpoint, mesh)
            for one in score(model, subjects(model, source, name), self.order, self.seed, self.orders):
                print(json.dumps({"id": one.id, **one.summary()}))
                texts, log_likelihood = texts + 1, log_likelihood + one.likelihood.total
                tokens, count = tokens + len(one.texts), count + one.bytes
        total = {total_name(self.order == BOUND): log_likelihood}
        return {"texts": texts, **total, **figures(log_likelihood, tokens, count)}
