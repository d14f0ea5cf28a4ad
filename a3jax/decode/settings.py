"""How blanks are to be filled: every choice a user has, checked in one place.

`DecodingOptions` are the choices as a command line or a line of JSONL makes them, some or all, one over the other; a
`Decoding` is made of them once all is known, and is valid.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from a3jax.curriculum.stage import Prefill, parse_order
from a3jax.errors import UserError

Certainty = Literal["confidence", "entropy", "margin", "random"]
Drafter = Literal["both", "text"]
_TYPES: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (lambda x: isinstance(x, Integral) and not isinstance(x, bool), "a whole number"),
    bool: (lambda x: isinstance(x, bool), "True or False"),
    str: (lambda x: isinstance(x, str), "a text"),
}
"""What options of these types are checked for; others have a check of their own."""
LARGEST = 2**31 - 1
"""Of what no option bounds: as many tokens as there are."""
LATER = ("drafter",)
"""Options that came when there were results already, which do not name them. Their defaults are what was done before."""


class _Rules(NamedTuple):
    """What is said of decoding in one mode alone."""

    options: tuple[str, ...] = ()
    """Options that other modes refuse."""
    program: tuple[str, ...] = ()
    """Those of them that a compiled pass depends on."""
    found: bool = False
    """Whether the order is found while decoding, and none can be named."""
    predicted: str = "order"
    """The option that says how many tokens one pass predicts; all that are open where it is `mode`."""
    prefills: bool = False
    """Whether what is given is read once, before anything is predicted, where it stands and as `prefill` says."""
    own: bool = False
    """Whether it is for models of the objective of its name alone."""


_MODES: dict[str, _Rules] = {
    "ar": _Rules(prefills=True),
    "groups": _Rules(prefills=True),
    "dynamic": _Rules(
        options=("certainty", "threshold", "commit", "window"),
        program=("certainty", "commit", "window"),
        found=True,
        predicted="window",
        prefills=True,
    ),
    "resample": _Rules(options=("certainty", "commit"), program=("certainty", "commit"), found=True, predicted="mode"),
    "speculative": _Rules(options=("drafts", "drafter"), program=("drafts", "drafter"), predicted="drafts", prefills=True),
    "diffusion": _Rules(
        options=("certainty", "steps", "remask"),
        program=("certainty", "steps", "remask"),
        found=True,
        predicted="mode",
        own=True,
    ),
    "block_diffusion": _Rules(
        options=("certainty", "steps", "block"),
        program=("certainty", "steps", "block"),
        found=True,
        predicted="block",
        own=True,
    ),
    "fim": _Rules(own=True),
}
"""All that is known of modes here; how they are done says `a3jax.decode.loop`."""
if TYPE_CHECKING:
    Mode = str
else:
    Mode = Literal[tuple(_MODES)]


@dataclass(frozen=True)
class DecodingOptions:
    """How blanks are filled. Options of one mode are refused in another."""

    mode: Mode = "groups"
    """ar: from left to right, one token a pass. groups: in the groups of `order`. dynamic: what the model is most certain
    of first. resample: the same as the authors of the method do it, reading everything anew in every pass. speculative: as
    one token at a time in `order`, in no more passes and often fewer. diffusion: in `steps` passes over the whole text.
    block_diffusion: block by block, each in `steps` passes. fim: as ar, each blank behind the text on both sides of it. These
    three are for models of the objectives of their names."""
    order: str = "ar"
    """ar, or in_order_N, random_N, spans_N, infill_N, right_to_left_N with N tokens predicted at once. All blanks share one
    order."""
    seed: int = 0
    """Draws the order and the tokens; the same seed gives the same text."""
    temperature: float = 0.0
    """0 takes the most probable token, 1 draws from the model's distribution."""
    top_k: int = 0
    """Draw from the k most probable tokens only; 0 for all."""
    top_p: float = 1.0
    """Draw from the most probable tokens that together have this probability."""
    min_p: float = 0.0
    """Draw only tokens at least this many times as probable as the most probable one."""
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens that are in the text already, and multiplies the negative ones."""
    certainty: Certainty = "confidence"
    """dynamic, resample, diffusion, block_diffusion: what a place is chosen by: its token's probability, exp(-entropy), the
    lead of the most probable token over the next, or chance. With the first, log-probabilities are not those of drawing the
    text, except in mode resample (docs/generate.md)."""
    threshold: float = 0.9
    """dynamic: commit every place with at least this certainty, and where there is none the first."""
    commit: int = 8
    """dynamic: at most so many places a pass; exactly so many where the threshold is 0. resample: exactly so many."""
    window: int = 32
    """dynamic: only the first so many open places are looked at."""
    drafts: int = 4
    """speculative: tokens drafted ahead."""
    drafter: Drafter = "both"
    """speculative: both: the text, where it repeats itself, else the model. text: the text alone, in passes of fewer rows."""
    steps: int = 16
    """diffusion: passes in which all blanks are filled, as many places in each; block_diffusion: passes for each block."""
    block: int = 0
    """block_diffusion: tokens of a block; 0 takes the model's own."""
    remask: int = 0
    """diffusion: so many decided places that are opened again in every pass but the first."""
    prefill: Prefill = "ar"
    """How given text is read: as autoregressive text, or as one group whose tokens all see each other. Mode resample reads it
    as one group in any case."""
    heal: bool = True
    """Whether the text before a blank gives back its last token, or a last space: the blank's first token is then one that
    begins with it, such as a line end with the indentation behind it. What is filled in comes behind the text, as ever."""
    revise: int = 0
    """Afterwards open so many of the least probable tokens again and refill them, while the blanks become more probable given
    the text on both sides, from left to right."""
    ends: bool = False
    """The last blank stands at the end of the text and may end early, with the model's end token or a stop string. Blanks of
    unknown length, [[..N]], always may."""
    stop: tuple[str, ...] = ()
    """Strings before which blanks that may end are cut."""

    def checked(self, **changes: Any) -> "Decoding":
        """With `changes`, once all is known. Raises `UserError` as `Decoding` does."""
        return Decoding(**{**dataclasses.asdict(self), **changes})


DEFAULTS = DecodingOptions()


@dataclass(frozen=True)
class Decoding(DecodingOptions):
    """How blanks are filled. Raises `UserError` for a value that means nothing, and for choices that contradict."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name, choices in {"mode": Mode, "certainty": Certainty, "drafter": Drafter, "prefill": Prefill}.items():
            value, known = getattr(self, name), get_args(choices)
            if value not in known:
                raise UserError(f"{name} '{value}' is unknown; choose {', '.join(known)}")
        self._check_values()
        self._check_choices()

    def _check_values(self) -> None:
        for field in dataclasses.fields(self):
            if field.type in _TYPES:
                value, (is_one, wanted) = getattr(self, field.name), _TYPES[field.type]
                if not is_one(value):
                    raise UserError(f"{field.name.replace('_', '-')} is {value!r}; it must be {wanted}")
        checks: dict[str, tuple[Callable[[Any], bool], str]] = {
            "seed": (lambda x: 0 <= x < 2**32, f"at least 0 and below {2**32}"),
            "temperature": (lambda x: 0 <= x < float("inf"), "0 (the most probable token) or more, and finite"),
            "top_k": (lambda x: 0 <= x < 2**31, "0 (every token) or more"),
            "top_p": (lambda x: 0 < x <= 1, "above 0 and at most 1 (every token)"),
            "min_p": (lambda x: 0 <= x < 1, "at least 0 (every token) and below 1"),
            "repetition_penalty": (lambda x: 0 < x < float("inf"), "above 0; 1 changes nothing"),
            "threshold": (lambda x: 0 <= x <= 1, "from 0 to 1"),
            "commit": (lambda x: 1 <= x <= 1024, "from 1 to 1024"),
            "window": (lambda x: 1 <= x <= 1024, "from 1 to 1024"),
            "drafts": (lambda x: 1 <= x <= 32, "from 1 to 32"),
            "steps": (lambda x: 1 <= x <= 65536, "from 1 to 65536"),
            "remask": (lambda x: 0 <= x <= 1024, "from 0 to 1024"),
            "block": (lambda x: 0 <= x <= 1024, "from 1 to 1024, or 0 for the model's own"),
            "revise": (lambda x: 0 <= x <= 1024, "from 0 to 1024"),
            "stop": (lambda x: all(isinstance(one, str) and one for one in x), "strings of at least one character"),
        }
        for name, (check, wanted) in checks.items():
            value = getattr(self, name)
            try:
                good = check(value)
            except TypeError:  # no number at all
                good = False
            if not good:
                raise UserError(f"{name.replace('_', '-')} is {value}; it must be {wanted}")

    def _check_choices(self) -> None:
        _, size = parse_order(self.order)
        plain = {field.name: field.default for field in dataclasses.fields(self)}
        given = [name for name, default in plain.items() if getattr(self, name) != default]
        own = _MODES[self.mode].options
        if self.mode in ("ar", "fim") and self.order not in ("ar", "in_order_1"):
            raise UserError(
                f"mode {self.mode} fills from left to right; leave order '{self.order}' out, or choose mode groups"
            )
        if self.mode == "speculative" and size != 1:
            raise UserError(f"mode speculative fills one token at a time; order '{self.order}' has groups of {size}")
        if self.finds_order and "order" in given:
            raise UserError(f"mode {self.mode} finds its own order; leave order '{self.order}' out, or choose mode groups")
        for name in given:
            modes = [mode for mode, rules in _MODES.items() if name in rules.options]
            if modes and self.mode not in modes:
                raise UserError(f"{name} belongs to mode {' and '.join(modes)}, and the mode is {self.mode}")
        if "window" in own and self.commit > self.window:
            raise UserError(f"commit is {self.commit}; it must be at most the window of {self.window} places")
        if "threshold" in own and self.certainty == "random" and self.threshold:
            raise UserError("certainty random has no threshold; set threshold to 0")
        if self.revise and self.ends:
            raise UserError("revise is for blanks with text behind them; text that is continued is not revised")

    def recorded(self) -> dict[str, Any]:
        """The choices as results keep them, by which it is known whether two were made alike."""
        plain = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: x for name, x in dataclasses.asdict(self).items() if name not in LATER or x != plain[name]}

    @property
    def program(self) -> tuple[Any, ...]:
        """What sequences must have in common to be filled as one batch; all else is each one's own."""
        own = [getattr(self, name) for name in _MODES[self.mode].program]
        return (self.mode, parse_order(self.order)[1], self.prefill, self.revise, *own)

    @property
    def fills_to_ends(self) -> bool:
        """Whether a blank is filled from left to right, perhaps several tokens at once, so that it can end on the way."""
        return self.mode == "fim" or (self.mode in ("ar", "groups") and parse_order(self.order)[0] == "in_order")

    @property
    def is_left_to_right(self) -> bool:
        """Whether what is written is as if tokens came one by one from left to right, though several may come at once."""
        return self.mode in ("ar", "groups", "speculative") and self.order in ("ar", "in_order_1")

    @property
    def reads_in_order(self) -> bool:
        """Whether a given token is read seeing those before it alone, so that it depends on nothing that follows."""
        return self.prefill == "ar" and _MODES[self.mode].prefills

    @property
    def finds_order(self) -> bool:
        """Whether the order is found while decoding."""
        return _MODES[self.mode].found

    @property
    def objective(self) -> str | None:
        """The objective whose models it is for, if it is for those alone."""
        return self.mode if _MODES[self.mode].own else None

    @property
    def is_plain(self) -> bool:
        """Whether every group of the order takes one pass, and nothing else happens."""
        return not _MODES[self.mode].options

    @property
    def rows(self) -> tuple[str, int]:
        """How many tokens one pass predicts at most, behind the name of the option that says so."""
        name = _MODES[self.mode].predicted
        rows = {
            "order": parse_order(self.order)[1],
            "window": self.window,
            "drafts": self.drafts + 1,
            "block": self.block,
            "mode": LARGEST,
        }
        return name, rows[name]
