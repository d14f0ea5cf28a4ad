"""`generation_config.json`: where a text starts and ends, which the model's configuration holds, and all its other settings.

These (sampling defaults, the padding token) change nothing here. They travel with the record, and an export says them again.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from a3jax.config import ModelConfig
from a3jax.errors import check_token

FILE = "generation_config.json"
_START, _END, _PAD = "bos_token_id", "eos_token_id", "pad_token_id"


def start_token(settings: Mapping[str, Any], where: str, vocab: int, silent: int | None = None) -> int | None:
    """The start token of a parsed `config.json` or `generation_config.json`; `silent` where it says nothing.

    Raises `UserError`, beginning with `where`, for what is no token.
    """
    if _START not in settings:
        return silent if silent is not None and silent < vocab else None
    value = settings[_START]
    return None if value is None else check_token(f"{where}: {_START}", value, vocab)


def end_tokens(settings: Mapping[str, Any], where: str, vocab: int, silent: int | None = None) -> tuple[int, ...]:
    """The end tokens, of which there may be none, one or several. As `start_token`."""
    if _END not in settings:
        return () if silent is None or silent >= vocab else (silent,)
    value = settings[_END]
    several = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(check_token(f"{where}: {_END}", token, vocab) for token in several))


def special_tokens(config: ModelConfig) -> dict[str, Any]:
    """The start and end tokens as both files have them."""
    ends = list(config.end_tokens)
    return {_START: config.start_token, _END: ends[0] if len(ends) == 1 else ends or None}


def united(config: ModelConfig, model: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> ModelConfig:
    """The model with the start token and all end tokens that its folder names, those of `config.json` first.

    `config` was read from `model`, the parsed `config.json`; `settings` is the parsed `generation_config.json`, and `where`
    its name in errors. transformers ends a text with the end tokens of the latter alone; a document ends with the former's.
    """
    start, ends = start_token(settings, where, config.vocab), end_tokens(settings, where, config.vocab)
    own = config.end_tokens if _END in model or not ends else ()
    first = config.start_token if _START in model or start is None else start
    return dataclasses.replace(config, start_token=first, end_tokens=tuple(dict.fromkeys((*own, *ends))))


def kept(model: Mapping[str, Any], settings: Mapping[str, Any], vocab: int) -> dict[str, Any]:
    """All other settings, and the padding token of `config.json` where `settings` have none.

    A padding token that is none, as -1, is left out.
    """
    result = {_PAD: model.get(_PAD), **settings}
    pad = result[_PAD]
    if type(pad) is not int or not 0 <= pad < vocab:
        del result[_PAD]
    return {
        name: value
        for name, value in result.items()
        if name not in (_START, _END, "transformers_version") and not name.startswith("_")
    }


def to_hf(config: ModelConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`generation_config.json` from the model's configuration and the settings that travelled with its record."""
    return {**settings, **{name: token for name, token in special_tokens(config).items() if token is not None}}


def padding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The padding token as `config.json` has it; None says that there is none, whatever the family's own is."""
    return {_PAD: settings.get(_PAD)}
