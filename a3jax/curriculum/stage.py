"""What a curriculum is made of: stages, each with the orders that it draws and how long it lasts."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from a3jax.errors import UserError

Family = Literal["in_order", "random", "spans", "infill", "open", "right_to_left"]
Sizes = Literal["fixed", "uniform", "geometric"]
Prefill = Literal["ar", "group"]
"""How given tokens are read: one by one as they stand, or as one group whose tokens all see each other."""
HeldOutOrder = Literal["ar", "in_order_4", "random_1", "random_4", "random_8"]
"""The orders by which held-out NLL is reported."""
BOUND = "bound"
HeldOutFigure = Literal[HeldOutOrder, "bound"]
"""What a run can be judged by: NLL in one of these orders or, for masked diffusion, the bound on it."""

_OF_TEXTS = tuple(family for family in get_args(Family) if family != "open")
"""Those that are orders of a text as it stands; `open` draws where the text stands too, and is for training."""
_WORDS: dict[str, tuple[Family, int]] = {"ar": ("in_order", 1), "right_to_left": ("right_to_left", 1)}


def parse_order(name: str) -> tuple[Family, int]:
    """`"random_4"` -> ("random", 4); `"ar"` is `"in_order_1"`, and `"right_to_left"` without a number is one at a time.

    Raises `UserError` for anything else.
    """
    if name in _WORDS:
        return _WORDS[name]
    family, _, size = name.rpartition("_")
    if family not in _OF_TEXTS or not size.isdecimal() or len(size) > 99 or int(size) < 1:
        known = ", ".join(f"{family}_N" for family in _OF_TEXTS)
        raise UserError(f"order '{name}' is unknown; orders are ar, {known}, with N the group size")
    return cast(Family, family), int(size)


def check_orders(name: str | None, count: int) -> None:
    """Check that a mean over `count` orders of this name, or over groups that were given (None), is one of several.

    The name may be `bound` too, whose draws are of masks. Raises `UserError` for no order at all, for one that is unknown,
    and for several where all would be the same one.
    """
    if count < 1:
        raise UserError(f"orders is {count}; it must be at least 1")
    if name == BOUND:
        return
    same_in_every_draw = name is None or parse_order(name)[0] in ("in_order", "right_to_left")
    if count > 1 and same_in_every_draw:
        same = "groups are given" if name is None else f"order '{name}' is the same in every draw"
        raise UserError(f"orders is {count}, but {same}; leave orders out, or take an order that is drawn, such as random_1")


@dataclass(frozen=True)
class OrderKind:
    """One kind of order: how a document is split into ordered groups."""

    family: Family = "in_order"
    group_size: int = 1
    given: float = 0.0
    """Largest fraction of a window that is given as context; each window draws its own from [0, given]."""
    prefix: float = 0.0
    """Largest fraction of a document that is given as its beginning; each document draws its own from [0, prefix]."""
    sizes: Sizes = "fixed"
    """`fixed`: every group is of `group_size`; `uniform`: each window draws one size up to that; `geometric`: each group
    draws its own, with that mean, so that any partition can come ("any subset")."""
    slack: int = 32
    """`open`: up to so many places stay empty behind the end of a blank; each document draws its own from [0, slack]."""

    @property
    def blanks_end(self) -> bool:
        """Whether blanks have an unknown length, and end with the model's end token."""
        return self.family == "open"

    @property
    def order_kind(self) -> dict[str, Any]:
        """These fields by name, whatever else there is."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(OrderKind)}


@dataclass(frozen=True)
class _Weight:
    """What comes before a part's kind of order."""

    weight: float = 1.0
    """Relative to the weights of the other parts."""


@dataclass(frozen=True)
class Part(OrderKind, _Weight):
    """A weight, and one kind of order. In a mixture every window draws its own part, by weight."""

    weight_from: float | None = None
    """The weight at the stage's first step, which goes to `weight` in a straight line over the stage's `ramp`."""
    size_from: int | None = None
    """The same of the group size."""

    @staticmethod
    def named(order: str) -> "Part":
        """The kind of order that `parse_order` reads of a name."""
        family, group_size = parse_order(order)
        return Part(family=family, group_size=group_size)

    @property
    def name(self) -> str:
        """`in_order_1`, `random_4`, `random_1_to_4`, `random_about_4`, ..."""
        return self.family + {"fixed": "_", "uniform": "_1_to_", "geometric": "_about_"}[self.sizes] + str(self.group_size)

    @property
    def changes(self) -> bool:
        """Whether it is not the same at all steps of its stage."""
        return self.weight_from is not None or self.size_from is not None

    @property
    def is_ar(self) -> bool:
        """Whether all tokens but the first are predicted one at a time from left to right."""
        alone = self.group_size == 1 and self.size_from in (None, 1)
        return alone and self.family == "in_order" and not self.given and not self.prefix


AR = Part()
"""Plain autoregression."""


@dataclass(frozen=True)
class Plateau:
    """When a stage ends early: held-out NLL in `order` has not been `delta` below its best for so many evaluations."""

    order: HeldOutFigure = "random_4"
    delta: float = 0.01
    """Nats per token."""
    evaluations: int = 3


@dataclass(frozen=True)
class _Steps:
    """What comes before a stage's kind of order, so that `Stage(20, "random", 4)` says both."""

    steps: int | None = None
    """How long it lasts: give one of `steps`, `tokens` and `fraction`. A stage of 0 steps is passed over."""


@dataclass(frozen=True)
class Stage(OrderKind, _Steps):
    """One stage of the curriculum: a length, and the parts that its windows draw from."""

    tokens: int | None = None
    """Training goes on for at least so many tokens of full windows, padding included; whole steps of them."""
    fraction: float | None = None
    """Of what other stages leave of `total_steps` or `total_tokens`."""
    mixture: tuple[Part, ...] = ()
    """Several kinds of order, in place of the stage's own."""
    ramp: int = 0
    """Steps over which the stage before it gives way to this one; 0 changes at once."""
    ramp_of: Literal["probability", "size"] = "probability"
    """What changes over the ramp: how likely a window draws an order of this stage, or the group size."""
    lr_factor: float = 1.0
    """Times the learning rate of the experiment's schedule."""
    batch: int | None = None
    """Windows per optimizer step, in place of `data.batch`."""
    plateau: Plateau | None = None
    """Ends the stage early; the steps left are passed over by the learning rate's schedule too."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """What it draws: its mixture, or the one kind of order that it has."""
        return self.mixture or (Part(**self.order_kind),)

    @property
    def is_ar(self) -> bool:
        """Whether it draws nothing but plain autoregression."""
        return all(part.is_ar for part in self.parts)

    @property
    def name(self) -> str:
        """For logs: `in_order_1`, `random_4`, ...; of a mixture, the parts that remain at its end."""
        return "+".join(dict.fromkeys(part.name for part in self.parts if part.weight))

    @property
    def changes(self) -> bool:
        """Whether what it draws is not the same at all of its steps."""
        return any(part.changes for part in self.parts)

    @property
    def slack_of_parts(self) -> int:
        """The most places that stay empty in any of its orders, 0 where no blank has an end."""
        return max(part.slack + 1 if part.blanks_end else 0 for part in self.parts)

    def drawing(self, parts: tuple[Part, ...]) -> "Stage":
        """The same stage with other parts; a part that stands alone and does not change becomes its own kind of order."""
        if len(parts) == 1 and not parts[0].changes:
            return dataclasses.replace(self, **parts[0].order_kind, mixture=())
        return dataclasses.replace(self, **AR.order_kind, mixture=parts)

    @property
    def program(self) -> "Stage":
        """What a compiled step depends on: all but how long the stage lasts."""
        return dataclasses.replace(self, steps=1, ramp=0, plateau=None)

    @property
    def length(self) -> int:
        """Optimizer steps, in a `a3jax.curriculum.schedule.Schedule`."""
        assert self.steps is not None, "a schedule counts its stages in steps"
        return self.steps
