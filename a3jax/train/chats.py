"""What a run learns of the chats in its corpora beside their tokens: the template that wrote them, and how a turn ends.

Both belong to the model from then on: a run folder has the template beside its tokenizer, and the token that ends a turn
among its end tokens, so that whoever generates from it asks as it was trained, and stops where it does.
"""

import dataclasses
from collections.abc import Sequence

from a3jax.config import Config, ModelConfig
from a3jax.data.pipeline import Corpus
from a3jax.data.tokenizer import TextCodec, load_codec
from a3jax.errors import UserError


def with_chats(model: ModelConfig, codec: TextCodec, corpora: Sequence[Corpus]) -> tuple[ModelConfig, TextCodec]:
    """The model and its tokenizer, knowing the template of the chats in `corpora`; as they are where there are none.

    Raises `UserError` for corpora whose templates differ.
    """
    chats = [corpus for corpus in corpora if corpus.manifest.chats]
    if not chats:
        return model, codec
    from a3jax.data.chat_template import FILE, template_of  # Jinja, which nothing else needs

    templates = [template_of(load_codec(corpus.folder), str(corpus.folder)) for corpus in chats]
    for corpus, template in zip(chats, templates):
        if template.source != templates[0].source:
            both = f"{chats[0].folder} and {corpus.folder} have different chat templates"
            raise UserError(f"{both}; prepare one of them again with --chat-template")
    end = templates[0].turn_end(codec)
    if end is not None and end not in model.end_tokens:
        model = dataclasses.replace(model, end_tokens=(*model.end_tokens, end))
    return model, dataclasses.replace(codec, files=codec.files | {FILE: templates[0].source.encode()})


def check_chats(config: Config, corpora: Sequence[Corpus]) -> None:
    """Raise `UserError` for chats where the experiment makes nothing of prompts."""
    why = refuses_given(config)
    for corpus in corpora:
        if corpus.manifest.chats and why:
            raise UserError(f"{corpus.folder} holds chats, {why}")


def refuses_given(config: Config) -> str | None:
    """Why no token may be given in windows, such as a prompt's, if none may."""
    if config.objective == "fim":
        return "which objective fim would rearrange; take a3 or ar instead"
    if config.schedule.slack:
        return "of which order open cannot draw its blanks; take infill instead"
    return None
