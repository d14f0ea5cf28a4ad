"""The model `a3` of lm-evaluation-harness: its tasks, scored with a model of ours in any order.

import a3jax.evaluate.harness
import lm_eval

lm_eval.simple_evaluate("a3", "checkpoint=demo/run,order=ar", tasks=["hellaswag"])

Texts are tokenized as the harness does it for Hugging Face models, so that from left to right its own backend gives the
same figures. One thing differs: what is longer than the model's context is an error here, and never cut.
"""

import dataclasses
import functools
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from a3jax.curriculum.stage import parse_order
from a3jax.data.chat_template import ChatTemplate, template_of
from a3jax.decode.document import lay_out
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Template
from a3jax.errors import UserError
from a3jax.evaluate.continuations import Choice, check_length, longest, score, seed_of
from a3jax.generate.request import Request, fill
from a3jax.model.network import check_context
from a3jax.weights.loading import Model, load

_END = "\ue000"
"""Stands behind the last message to find its end by: a letter that no text has."""


@register_model("a3")
class A3(TemplateLM):
    """A model of ours as the harness asks for it."""

    def __init__(
        self,
        checkpoint: str | Model,
        order: str = "ar",
        seed: int = 0,
        batch_size: int | str = 8,
        add_bos_token: bool | None = None,
        max_gen_toks: int = 256,
        dtype: str = "float32",
        step: int | None = None,
    ):
        """What `a3jax.load` takes, or what it returns. `order` is that in which continuations are scored and written.

        `add_bos_token` says whether texts begin with the start token; as documents of the model do if not given.
        Orders that are drawn follow from `seed` and the request. Raises `UserError` for a bad value.
        """
        super().__init__()
        parse_order(order)
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"batch_size is {batch_size}; it must be a number of at least 1")
        model = checkpoint if isinstance(checkpoint, Model) else load(checkpoint, dtype, step)
        codec, prefix = model.codec, model.codec.stand_in
        self.begins = codec.start is not None if add_bos_token is None else add_bos_token
        if self.begins and codec.start is None and codec.bos is None:
            raise UserError("add_bos_token is true, and the model has no start token; leave it out")
        if prefix is None:
            raise UserError("the model has neither a start nor an end token to score a text without context from")
        # A codec whose documents begin so lays a prompt out as the harness does.
        begun = dataclasses.replace(codec, start=prefix if self.begins else None, bos=prefix)
        self.model = dataclasses.replace(model, codec=begun)
        self.batch_size, self.max_gen_toks = int(batch_size), int(max_gen_toks)
        self.order, self.seed, self._prefix = order, seed, prefix

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text, or the one that stands for it."""
        return self._prefix if self.model.codec.end is None else self.model.codec.end

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        return self._prefix

    @property
    def max_length(self) -> int:
        """Tokens of a context and its continuation at most, the last aside."""
        return longest(self.model, self.order) - 1

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps requests by where it applies a chat template."""
        return self.model.codec.sha256

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The model's own. Raises `UserError` for a model without one, and for the name of another."""
        if isinstance(chat_template, str):
            raise UserError(f"the chat template '{chat_template}' is asked for by name; a model of ours has one, without")
        return self._template.source

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as the model's template writes them: up to what asks for an answer, or to the end of the last message.

        Raises `UserError` for a model without a template, and for messages that it refuses.
        """
        if add_generation_prompt:
            return self._template.render(chat_history, reply=True)
        *before, last = chat_history
        written = self._template.render([*before, last | {"content": f"{last['content']}{_END} "}])
        text, _, behind = written.rpartition(_END)
        return text if behind.startswith(" ") else text.rstrip()  # a template that trims what is said, trims its end

    @functools.cached_property
    def _template(self) -> ChatTemplate:
        return template_of(self.model.codec, self.model.name)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, with the start token where the harness would have the tokenizer put it."""
        codec = self.model.codec
        begins = self.begins and add_special_tokens is not False
        if add_special_tokens is None and self._begins(string):
            begins = False
        return ([self._prefix] if begins else []) + codec.encode(string)

    def _begins(self, string: str) -> bool:
        """Whether a text has the start token written out."""
        return has_bos_prefix(string, self.model.codec.decode([self._prefix]))

    def length(self, request: Instance) -> int:
        """Tokens of a request for a continuation or for text. Raises `UserError` if the context has no room for them."""
        if request.request_type == "generate_until":
            return self.prompt(request).length
        tokens = len(self.choice(request).tokens)
        check_length(self.model, self.order, tokens)
        return tokens

    def choice(self, request: Instance) -> Choice:
        """The tokens of a request for a continuation. Raises `UserError` for an empty one."""
        context, continuation = self._encoded(request)
        if not continuation:
            raise UserError("a continuation is empty; there is nothing to score")
        return _choice(context, continuation)

    def _encoded(self, request: Instance) -> tuple[list[int], list[int]]:
        context, continuation = request.args
        if context.strip():
            return self._encode_pair(context, continuation)
        ids = self.tok_encode(context + continuation, add_special_tokens=False)
        return (ids[:1], ids[1:]) if ids[:1] == [self._prefix] and ids[1:] else ([self._prefix], ids)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As the harness does it; a continuation of which that leaves no token is encoded alone, behind its context."""
        given, scored = super()._encode_pair(context, continuation)
        spaces = context[len(context.rstrip()) :]
        return given, scored or self.model.codec.encode(spaces + continuation, inside=True)

    def prompt(self, request: Instance) -> Request:
        """The request of ours for one of `generate_until`. Raises `UserError` for what is not to be had."""
        context, asked = request.args
        wanted = normalize_gen_kwargs(asked, self.max_gen_toks)
        until = [stop for stop in wanted.pop("until", []) if stop]
        tokens, temperature = wanted.pop("max_gen_toks"), wanted.pop("temperature", 0.0)
        wanted.pop("do_sample", None)
        known = {"top_p", "top_k", "min_p", "repetition_penalty"}
        if unknown := sorted(wanted.keys() - known):
            raise UserError(f"the task asks for {unknown[0]} when text is written; a3 knows {', '.join(sorted(known))}")
        decoding = Decoding(
            order=self.order,
            seed=seed_of(self.seed, context),
            temperature=temperature,
            ends=True,
            stop=tuple(until),
            heal=False,  # the context has the tokens that the harness gives it
            **wanted,
        )
        template = Template((context, ""), (tokens,), whole=self._begins(context))
        length = len(lay_out(template.pieces, [[0] * tokens], self.model.codec, whole=template.whole).tokens)
        check_context(self.model, length)
        return Request(template, decoding, length)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Nats of each continuation, and whether it is the greedy one. Those of one question stand next to each other."""
        questions: list[list[Choice]] = []
        last = None
        for request in requests:
            own = None if request.doc_id is None else (request.task_name, request.doc_id)
            if own is None or own != last:
                questions.append([])
            questions[-1].append(self.choice(request))
            last = own
        return self._scores(questions)

    def _loglikelihood_tokens(self, requests: list, **_: Any) -> list[tuple[float, bool]]:
        return self._scores([[_choice(context, continuation)] for _, context, continuation in requests])

    def _scores(self, items: list[list[Choice]]) -> list[tuple[float, bool]]:
        found = score(self.model, items, self.order, self.seed, self.batch_size)
        return [(one.log_prob, one.greedy) for item in found for one in item]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nats of each text, those longer than the context in windows that each have a token of the one before."""
        windows = [
            [
                [_choice(*make_disjoint_window(pair))]
                for pair in get_rolling_token_windows(self.tok_encode(text), self._prefix, self.max_length, context_len=1)
            ]
            for (text,) in (request.args for request in requests)
        ]
        found = iter(self._scores([window for each in windows for window in each]))
        return [sum(next(found)[0] for _ in each) for each in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context."""
        filled = fill(self.model, [self.prompt(request) for request in requests], self.batch_size)
        return [one.blanks[0].text for one in filled]


def _choice(context: list[int], continuation: list[int]) -> Choice:
    return Choice((*context, *continuation), len(context))
