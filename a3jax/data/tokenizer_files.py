"""The files of a tokenizer, opened as transformers opens them.

`tokenizer.json` keeps the truncation and padding of the last call before it was saved; text is never cut or filled up
here. Tokens that only `tokenizer_config.json` and older files beside it know are added, with the ids that transformers
gives them. What is put around text says `tokenizer.json` alone: with it, transformers does not read `add_bos_token`.
"""

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from a3jax.errors import UserError, first_line
from a3jax.files.outside_json import parse_object

FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    "chat_template.jinja",
)
_NAMED = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
"""Roles of tokens, in the order in which transformers adds them."""
_AROUND = ("add_bos_token", "add_eos_token")
"""What older versions of transformers read in `tokenizer_config.json`, for some classes."""


def open_tokenizer(files: dict[str, bytes], where: str) -> Tokenizer:
    """The tokenizer of some files; `where` names their `tokenizer.json` in errors.

    Raises `UserError` for a file that cannot be read, and for a token that has two ids.
    """
    try:
        tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(f"{where} cannot be read: {first_line(error)}; download it again") from None
    settings = _settings(files, where)
    if tokenizer.padding:
        settings.setdefault("pad_token", tokenizer.padding["pad_token"])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        named = _special(settings)
        names = {token.content for token in named if token.special}
        listed = settings.get("added_tokens_decoder") or {}
        decoder = {int(index): _added(token, token["content"] in names) for index, token in listed.items()}
        tokens = [decoder[index] for index in sorted(decoder)]
        there = {token.content for token in [*tokenizer.get_added_tokens_decoder().values(), *tokens]}
        tokens += [token for token in named if token.content not in there]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{_beside(where, 'tokenizer_config.json')}: its tokens cannot be read; save it again") from None
    tokenizer.add_tokens(tokens)
    for index, token in decoder.items():
        if (own := tokenizer.token_to_id(token.content)) != index:
            says = f"{_beside(where, 'tokenizer_config.json')} gives '{token.content}' the id {index}"
            raise UserError(f"{says}, but by {where} it is {own}; correct one of them")
    return tokenizer


def settings_of(files: dict[str, bytes], where: str) -> dict[str, Any]:
    """What `tokenizer_config.json` says. Raises `UserError` if it cannot be read."""
    return _object(files, "tokenizer_config.json", where)


def token_of(tokenizer: Tokenizer, token: str | dict[str, Any] | None) -> int | None:
    """The id of a token as `tokenizer_config.json` writes it."""
    return None if token is None else tokenizer.token_to_id(_content(token))


def named_tokens(files: dict[str, bytes], where: str) -> dict[str, str]:
    """The texts of special tokens by their role, `bos_token` and the like, as templates name them."""
    settings = _settings(files, where)
    names = [name for name, token in settings.items() if name.endswith("_token") and _is_token(token)]
    return {name: _content(settings[name]) for name in names}


def around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer's own post-processor puts before and behind text."""
    for text in ("a", *tokenizer.get_vocab()):  # not every tokenizer knows the letter
        whole = tokenizer.encode(text)
        if inside := [i for i, part in enumerate(whole.sequence_ids) if part is not None]:
            return whole.ids[: inside[0]], whole.ids[inside[-1] + 1 :]
    return [], []


def put_before(files: dict[str, bytes], start: int | None, where: str) -> dict[str, bytes]:
    """The files of the tokenizer that puts `start` before text, or nothing, and never cuts it or fills it up.

    They are unchanged where it is so already.
    """
    tokenizer = open_tokenizer(files, where)
    before, after = around(tokenizer)
    wanted = [] if start is None else [start]
    described = json.loads(files["tokenizer.json"])
    if before == wanted and not described.get("truncation") and not described.get("padding"):
        return files
    described |= {"truncation": None, "padding": None}
    settings = settings_of(files, where)
    if before != wanted:
        tokenizer.post_processor = _template(tokenizer, wanted, after)
        described["post_processor"] = json.loads(tokenizer.to_str())["post_processor"]
        settings |= dict(zip(_AROUND, (bool(wanted), bool(after))))
        settings |= {} if start is None else {"bos_token": tokenizer.id_to_token(start)}
    changed = {"tokenizer.json": described, "tokenizer_config.json": settings}
    return files | {name: json.dumps(value, ensure_ascii=False).encode() for name, value in changed.items()}


def without_prefix(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer as it is in the middle of a text, where no space is put before what is read, and none is taken off."""
    described = json.loads(tokenizer.to_str())
    parts = ("normalizer", "pre_tokenizer", "decoder")
    plain = described | {part: _unprefixed(described[part]) for part in parts}
    return tokenizer if plain == described else Tokenizer.from_str(json.dumps(plain))


def _unprefixed(node: dict[str, Any] | None) -> dict[str, Any] | None:
    """A part of a tokenizer without what it does at the beginning of a text alone."""
    if node is None or node["type"] == "Prepend":
        return None
    if node["type"] == "Sequence":
        (name,) = node.keys() - {"type"}
        return node | {name: [part for each in node[name] if (part := _unprefixed(each)) is not None]}
    never = {"prepend_scheme": "never", "add_prefix_space": False} | ({"start": 0} if "content" in node else {})
    return node | {name: value for name, value in never.items() if name in node}


def _template(tokenizer: Tokenizer, before: Sequence[int], after: Sequence[int]) -> processors.TemplateProcessing:
    names = {token: tokenizer.id_to_token(token) for token in (*before, *after)}
    single, second = (
        [*(names[token] for token in before), text, *(names[token] for token in after)] for text in ("$A", "$B:1")
    )
    return processors.TemplateProcessing(single, single + second, [(name, token) for token, name in names.items()])


def _settings(files: dict[str, bytes], where: str) -> dict[str, Any]:
    """`tokenizer_config.json`, and where it lists no tokens what older files beside it say."""
    settings = settings_of(files, where)
    if "added_tokens_decoder" in settings:
        return settings
    settings |= _object(files, "special_tokens_map.json", where)
    special = {token.content for token in _special(settings)}
    older = _object(files, "added_tokens.json", where)
    listed = {id_: {"content": token, "normalized": token not in special, "special": token in special}
              for token, id_ in older.items()}  # fmt: skip
    return settings | {"added_tokens_decoder": listed}


def _special(settings: dict[str, Any]) -> list[AddedToken]:
    """Tokens that are named for what they do: those of fixed roles, of the model's own, and the others."""
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    named = {name: settings.get(name) for name in _NAMED}
    named |= {name: token for name, token in settings.items() if name.endswith("_token") and _is_token(token)}
    named |= extra if isinstance(extra, dict) else {}
    tokens = [(token, True) for token in named.values()]
    tokens += [(token, isinstance(token, str)) for token in (() if isinstance(extra, dict) else extra)]
    return [_added(token, special) for token, special in tokens if token]


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and "content" in value)


def _added(token: str | dict[str, Any], special: bool) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=special)
    flags = {name: bool(token[name]) for name in ("single_word", "lstrip", "rstrip", "normalized") if name in token}
    return AddedToken(token["content"], special=special or bool(token.get("special")), **flags)


def _content(token: str | dict[str, Any]) -> str:
    return str(token["content"]) if isinstance(token, dict) else token


def _object(files: dict[str, bytes], name: str, where: str) -> dict[str, Any]:
    return parse_object(files.get(name, b"{}"), _beside(where, name))


def _beside(where: str, name: str) -> str:
    """The name of a file that lies beside `tokenizer.json`."""
    return where.removesuffix("tokenizer.json") + name
