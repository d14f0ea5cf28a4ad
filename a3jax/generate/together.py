"""Texts that are filled together, and come and go between passes.

Each is a filling, whose steps are made in rows of batches; the batches, one for each way to fill, take turns. Sizes to be
chosen and revisions take passes of their own, for which all others wait.
"""

from dataclasses import dataclass

from a3jax.decode.joining import Batch
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Template
from a3jax.generate.filling import Filling, Step, Tokens, begun
from a3jax.generate.infill import Infilled, filling, infill
from a3jax.weights.loading import Model

News = dict[int, Tokens | Infilled | Exception]
"""Of texts by number: how they stand, what they became, or why they could not be filled."""


@dataclass
class _Text:
    template: Template
    decoding: Decoding
    filling: Filling[Infilled]
    step: Step | None = None


class Together:
    """At most `most` texts on their way."""

    def __init__(self, model: Model, most: int) -> None:
        self.model, self.most = model, most
        self.passes = 0
        self._texts: dict[int, _Text] = {}
        self._batches: dict[tuple[object, ...], Batch] = {}
        self._news: News = {}

    def has_room(self, decoding: Decoding) -> bool:
        """Whether there is a row for a text that is filled so."""
        sizes = {program: batch.size for program, batch in self._batches.items()}
        batch = self._batches.get(decoding.program)
        sizes[decoding.program] = 1 if batch is None else batch.size_with_one_more
        return len(self._texts) < self.most and sum(sizes.values()) <= self.most

    def join(self, number: int, template: Template, decoding: Decoding) -> None:
        """Begin a text, with its first pass."""
        self._texts[number] = _Text(template, decoding, filling(self.model, template, decoding))
        self._go_on(number, None)

    def leave(self, number: int) -> None:
        """Give up a text, if it is still on its way."""
        text = self._texts.pop(number, None)
        if text is not None:
            self._batch(text).free(number)

    def advance(self) -> None:
        """Make a pass of every batch."""
        for batch in list(self._batches.values()):
            try:
                stand = batch.advance()
            except Exception as error:
                self._each_alone(batch, error)
                continue
            self.passes += bool(stand)
            for number, filled in stand.items():
                step = self._texts[number].step
                assert step is not None
                self._news[number] = tokens = step.stands(filled)
                if step.is_done(self.model, tokens):
                    batch.free(number)
                    self._go_on(number, tokens)
        self._batches = {program: batch for program, batch in self._batches.items() if batch.names}

    def news(self) -> News:
        """What there is to say that was not said before, the newest of each text."""
        news, self._news = self._news, {}
        return news

    def _go_on(self, number: int, tokens: Tokens | None) -> None:
        """Begin a text's next step, the last being done; or end it."""
        text = self._texts[number]
        try:
            while True:
                text.step = text.filling.send(tokens)  # type: ignore[arg-type]  # None begins it
                rows = begun(self.model, text.step)
                self._news[number] = tokens = text.step.stands(rows.filled())
                if not text.step.is_done(self.model, tokens):
                    self._batch(text).put(number, rows)
                    return
        except StopIteration as end:
            self._news[number] = end.value
        except Exception as error:
            self._news[number] = error
        del self._texts[number]

    def _batch(self, text: _Text) -> Batch:
        """Where a text has its row. Its steps have one program, whatever that of its own decoding is."""
        program, model = text.decoding.program, self.model
        if program not in self._batches:
            decoding = text.decoding if text.step is None else text.step.decoding
            self._batches[program] = Batch(model.network, decoding, self.most)
        return self._batches[program]

    def _each_alone(self, batch: Batch, error: Exception) -> None:
        """Where a pass fails, each of its texts is filled alone, so that only the one at fault fails."""
        numbers = batch.names
        for number in numbers:
            batch.free(number)
            text = self._texts.pop(number)
            try:
                self._news[number] = error if len(numbers) == 1 else infill(self.model, text.template, text.decoding)
            except Exception as own:
                self._news[number] = own
