"""Decoding in any order with a cache, for the model of `modeling_a3.py`.

Letters of shapes: B batch, T tokens, S keys, K key-value heads, E head width, C content rows, Q query rows, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class A3Decoding:
    """What `A3ForCausalLM` can do beyond a forward pass."""

    config: Any
    model: Any
    logits: Any

    def infill(
        self, input_ids: Tensor, blank_mask: Tensor, group_size: int = 1, order: str | Tensor = "in_order", **choice: Any
    ) -> Tensor:
        """Fill the blanks of `input_ids` (B x T) where `blank_mask` is True; returns all ids.

        Blanks are filled `group_size` at a time, as if the other tokens had come first, one by one. `order` is "in_order"
        (left to right), "random", "spans" (neighbours together, in random order), or a rank for every token (B x T
        numbers; of the blanks those with smaller ones come first). Groups break at multiples of `group_size`, counted
        from the first given token ("spans": from the second token of the text), so the first and the last may be smaller.

        `choice` is `temperature` (0, the default, takes the likeliest token), a torch `generator`, `fillable` (V bool:
        tokens that may stand in a blank; by default those of plain text, as the configuration has it), and an
        `attention_mask` that is 0 at padding.
        """
        tokens = input_ids
        for tokens in self.steps(input_ids, blank_mask, group_size, order, **choice):  # noqa: B007, the last is returned
            pass
        return tokens

    @torch.no_grad()
    def steps(
        self,
        input_ids: Tensor,
        blank_mask: Tensor,
        group_size: int = 1,
        order: str | Tensor = "in_order",
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        attention_mask: Tensor | None = None,
        fillable: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """What `infill` does, yielding all ids after each group.

        Generation order with a cache: each forward pass holds the content rows of the group just committed and the
        query rows of the next. Rows of a batch may differ in how many tokens they give; -1 stands for no token.
        """
        real = torch.ones_like(blank_mask, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        blank, committed = blank_mask.bool() & real, real & ~blank_mask.bool()
        tokens, position = input_ids.masked_fill(blank, 0), (real.cumsum(-1) - 1).clamp(min=0)
        group = _groups(blank, committed, position, group_size, order, generator)
        never = ~(self._fillable() if fillable is None else fillable).to(tokens.device)
        content, cache = _where(committed), DynamicCache()
        known = content[:, :0] >= 0  # B x S: which cached keys stand for a token
        seen = position[:, :0]  # B x S: where these stand
        for number in range(int(group.max()) + 1):
            query = _where(group == number)
            new, (C, Q) = content >= 0, (content.shape[1], query.shape[1])
            known, seen = torch.cat([known, new], 1), torch.cat([seen, position.gather(1, content.clamp(min=0))], 1)
            visible = known[:, None].repeat(1, C + Q, 1)
            # Given tokens are groups of one. A later group sees itself whole, or each of its tokens what is on its left.
            if number == 0 or self.config.content == "slot":
                visible[:, :C, -C:] &= torch.ones(C, C, dtype=torch.bool, device=tokens.device).tril()
            at, before, behind = query.clamp(min=0), (query - 1).clamp(min=0), (query + 1).clamp(max=tokens.shape[1] - 1)
            follows = (query > 0) & committed.gather(1, before), (query < behind) & committed.gather(1, behind)
            here, where = content.clamp(min=0), position.gather(1, at)
            read, *beside = (self.model.scaled(self.model.embed_tokens(tokens.gather(1, i))) for i in (here, before, behind))
            seeds, seed_position = self.model.queries((beside[0], beside[1]), follows, where)
            last = seen.masked_fill(~known, -1).amax(-1, keepdim=True)
            causal = (known.sum(-1, keepdim=True) == where) & (last < where) & (last >= 0)
            rows = torch.cat([position.gather(1, here), seed_position], 1)
            hidden = self.model(
                torch.cat([read, seeds], 1),
                rows,
                visible,
                self.model.distance(rows, seen),
                causal,
                cache,
            )
            chosen = _choose(self.logits(hidden[:, C:]).masked_fill(never, -torch.inf), temperature, generator)
            row, column = (query >= 0).nonzero(as_tuple=True)
            tokens[row, query[row, column]] = chosen[row, column]
            committed[row, query[row, column]] = True
            content = query
            yield tokens

    def _fillable(self) -> Tensor:
        """V bool: the tokens that the configuration lets stand in a blank."""
        fillable = torch.ones(self.config.vocab_size, dtype=torch.bool)
        for first, last in self.config.unfillable:
            fillable[first : last + 1] = False
        return fillable


def _groups(
    blank: Tensor,
    given: Tensor,
    position: Tensor,
    group_size: int,
    order: str | Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """The group in which each blank is filled, numbered from 0 in each row, and -1 elsewhere. B x T."""
    index = torch.arange(blank.shape[1], device=blank.device).expand_as(blank)
    if isinstance(order, Tensor):
        rank = order.to(blank.device)
    elif order == "in_order":
        rank = index
    elif order in ("random", "spans"):
        rank = torch.rand(blank.shape, generator=generator, device=blank.device).argsort(dim=-1)  # no two are equal
    else:
        raise ValueError(f"order is '{order}'; it must be 'in_order', 'random', 'spans', or a tensor of ranks")
    spans = isinstance(order, str) and order == "spans"
    if spans:  # all tokens of a span have the rank of its first
        first = (position - 1).div(group_size, rounding_mode="floor") * group_size + 1
        rank = rank.gather(1, first.clamp(min=0) + index - position)
    by_rank = rank.argsort(dim=-1, stable=True)
    by_rank = by_rank.gather(1, (~blank).gather(1, by_rank).int().argsort(dim=-1, stable=True))  # blanks first
    if spans:
        sorted_rank = rank.gather(1, by_rank)
        number = sorted_rank.diff(prepend=sorted_rank[:, :1]).ne(0).cumsum(-1)
    else:  # a blank's slot is its place behind the given tokens
        count = given.sum(-1, keepdim=True)
        number = (count + index) // group_size - count // group_size
    return torch.empty_like(index).scatter(1, by_rank, number).masked_fill(~blank, -1)


def _where(mask: Tensor) -> Tensor:
    """Indices where `mask` (B x T) is True, from left to right; -1 fills shorter rows. At least one column."""
    count = mask.sum(-1, keepdim=True)
    index = (~mask).int().argsort(dim=-1, stable=True)
    number = torch.arange(mask.shape[1], device=mask.device)
    return index.masked_fill(number >= count, -1)[:, : max(1, int(count.max()))]


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """One token per query, B x Q: the likeliest, or a draw."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.float() / temperature).softmax(-1)
    return torch.multinomial(probabilities.flatten(0, 1), 1, generator=generator).view(logits.shape[:-1])
