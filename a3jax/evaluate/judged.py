"""Task `continuation`: prompts are continued, and an autoregressive model, the judge, says how likely the texts are.

That is conditional generation perplexity. A text that repeats itself is likely to any judge, so that the share of distinct
4-grams stands beside it, and so does what the judge says of the true continuation.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from a3jax.decode.document import lay_out
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Template
from a3jax.errors import UserError
from a3jax.evaluate.continuations import Choice, Score, score, seed_of
from a3jax.evaluate.options import Models, Options, Ready
from a3jax.evaluate.results import PERPLEXITY
from a3jax.evaluate.task import Item
from a3jax.evaluate.texts import Text, read_texts
from a3jax.files.reading import located
from a3jax.generate.request import Request, fill
from a3jax.model.network import check_context
from a3jax.weights.loading import Model

WRITTEN, TRUE = "written", "true"
GRAM = 4


class Judged:
    """Perplexity of continuations under a judge, and how many of their 4-grams are distinct."""

    name = "continuation"

    def __init__(
        self,
        model: Model,
        judge: Model,
        decoding: Decoding,
        source: str,
        texts: Sequence[Text],
        left_out: Counter[str],
        prompt: int = 64,
        new: int = 128,
        limit: int = 1000,
    ):
        """The first `limit` texts that have a prompt of `prompt` tokens and `new` ones behind it.

        Raises `UserError` where they do not fit into the model's context, and for a decoding of texts that may end.
        """
        if decoding.ends or decoding.stop:
            raise UserError("continuations that are judged have their length; leave --ends and --stop out")
        check_context(model, prompt + new + (model.codec.start is not None))
        self._model, self._judge, self._decoding, self._new = model, judge, decoding, new
        self.items: list[Item] = []
        for text in texts:
            if len(self.items) >= limit:
                break
            offsets = model.codec.tokenizer.encode(text.text, add_special_tokens=False).offsets
            if len(offsets) < prompt + new:
                left_out[f"shorter than {prompt + new} tokens"] += 1
                continue
            begin, end = offsets[prompt][0], offsets[prompt + new - 1][1]
            self.items.append(Item(text.id, prompt + new, (text.text[:begin], text.text[begin:end])))
        self.protocol = {
            "prompt_tokens": prompt,
            "new_tokens": new,
            "prompts": "the beginnings of texts, in an order drawn by the seed",
            "decoding": decoding.recorded(),
            "seeds": "of each text its own, from the seed and its name",
            "judge": "from left to right, its start token first where it has one; prompt and continuation tokenized apart",
            PERPLEXITY: "exp of the judge's nats over its tokens, of all continuations together",
            f"distinct {GRAM}-grams": "of the judge's tokens of a continuation, mean",
        }
        self.data = {"source": source, "prompts": len(self.items), "left_out": dict(sorted(left_out.items()))}

    def evaluate(self, items: Sequence[Item], batch: int) -> list[dict[str, Any]]:
        """Continue every prompt, and have both continuations judged."""
        requests = [self._request(item.content[0], item.id) for item in items]
        written = [filled.blanks[0].text for filled in fill(self._model, requests, batch)]
        asked = [[self._choice(item, text) for text in (each, item.content[1])] for item, each in zip(items, written)]
        rows = []
        for item, text, choices, scores in zip(items, written, asked, self._scores(asked, batch)):
            found = {row: _figures(*one) for row, one in zip((WRITTEN, TRUE), zip(choices, scores))}
            rows.append({"prompt": item.content[0], "text": text, "figures": {self.name: found}})
        return rows

    def _scores(self, asked: Sequence[Sequence[Choice]], batch: int) -> list[list[Score]]:
        """Of what was written and of the truth. Text that has no token to the judge counts for nothing."""
        some = [[choice for choice in each if choice.given < len(choice.tokens)] for each in asked]
        found = score(self._judge, some, batch=batch)
        return [[Score(0.0, True)] * (len(each) - len(own)) + own for each, own in zip(asked, found)]

    def _request(self, prompt: str, name: str) -> Request:
        decoding = dataclasses.replace(self._decoding, seed=seed_of(self._decoding.seed, name))
        template = Template((prompt, ""), (self._new,))
        return Request(template, decoding, len(lay_out(template.pieces, [[0] * self._new], self._model.codec).tokens))

    def _choice(self, item: Item, text: str) -> Choice:
        document = lay_out((item.content[0], ""), [text], self._judge.codec)
        with located(item.id):
            check_context(self._judge, len(document.tokens))
        return Choice(document.tokens, sum(document.given))


def _figures(choice: Choice, judged: Score) -> dict[str, tuple[float, float]]:
    tokens = choice.tokens[choice.given :]
    grams = [tokens[i : i + GRAM] for i in range(len(tokens) - GRAM + 1)]
    nats = (-judged.log_prob, len(tokens))
    distinct = len(set(grams)) / max(1, len(grams))
    return {PERPLEXITY: nats, "nats per token": nats, f"distinct {GRAM}-grams": (distinct, 1)}


def read(name: str, options: Options, left_out: Counter[str]) -> Ready:
    """The texts of `options.text`. Raises `UserError` for those that cannot be read, and where no judge is named."""
    decoding = options.decoding.checked(heal=False)  # a prompt ends where a token of the text does
    if options.judge is None:
        raise UserError(f"{name} needs --judge, the model that says how likely the texts are")
    source, texts = read_texts(
        options.text, options.column, options.split, options.include, decoding.seed, options.skip_bad, left_out
    )

    def ready(models: Models) -> Judged:
        assert models.judge is not None
        lengths = options.prompt_tokens, options.new_tokens, options.limit
        return Judged(models.model, models.judge, decoding, source, texts, left_out, *lengths)

    return ready
