"""Sizes of blanks chosen by likelihood: what is known before a blank is read once, and nothing else changes."""

import dataclasses

import numpy as np
import pytest
from chosen import long_after

import a3jax
from a3jax.decode import beginning, groups
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Range, Template, parse
from a3jax.generate import lengths
from a3jax.generate.filling import document_of

BEFORE = "def area(radius, height): return "


def one_by_one(model, template, i, how):
    """Nats per token from blank i on of every size, each filled and scored by itself."""
    scores = []
    for size in range(template.sizes[i].least, template.sizes[i].most + 1):
        sizes = [size if j == i else getattr(one, "most", one) for j, one in enumerate(template.sizes)]
        filled = a3jax.infill(model, Template(template.pieces, tuple(sizes)), how)
        given = [place < filled.places[2 * i + 1].start for place in range(len(filled.tokens))]
        score = a3jax.token_log_likelihood(model, filled.tokens, given)
        scores.append(score.total / len(score.tokens))
    return scores


@pytest.mark.parametrize(
    ("text", "how"),
    long_after(
        2,
        [
            ("ab[[2]]cd[[1-4]]ef[[2-3]]", {"order": "random_2", "temperature": 1.0}),
            ("ab[[2-4]]cd", {"mode": "dynamic", "threshold": 0.1}),
            ("[[2-4]]cd", {"mode": "resample", "commit": 2}),
            (BEFORE + "[[1-9]] * r", {}),
            ("ab[[1-4]]", {"mode": "speculative", "temperature": 1.0}),
            ("ab[[2-4]]cd", {"prefill": "group"}),
            ("ab[[2-4]]cd", {"seeding": "learned"}),
        ],
    ),
)
def test_every_size_has_the_score_that_it_has_alone(model, monkeypatch, text, how):
    how = dict(how)
    if (seeding := how.pop("seeding", None)) is not None:
        model = dataclasses.replace(model, config=dataclasses.replace(model.config, seeding=seeding))
    decoding, template = Decoding(seed=3, **how), parse(text)
    found, score = {}, lengths._scores

    def told(model, documents, i, decoding):
        found[i] = score(model, documents, i, decoding)
        return found[i]

    monkeypatch.setattr(lengths, "_scores", told)
    chosen = lengths.with_lengths(model, template, decoding)
    assert list(found) == [i for i, size in enumerate(template.sizes) if isinstance(size, Range)]
    for i, scores in found.items():
        np.testing.assert_allclose(scores, one_by_one(model, template, i, decoding), atol=2e-5)
        sizes = (*template.sizes[:i], template.sizes[i].least + int(np.argmax(scores)), *template.sizes[i + 1 :])
        template = Template(template.pieces, sizes)
    assert chosen == template


def test_more_sizes_than_a_batch_has_are_tried_from_the_same_beginning(model, monkeypatch):
    template = parse("ab[[1-11]]cd")
    documents = [document_of(model, Template(template.pieces, (size,))) for size in range(1, 12)]
    together = lengths._scores(model, documents, 0, Decoding())
    monkeypatch.setattr(lengths, "CANDIDATES", 8)
    np.testing.assert_allclose(lengths._scores(model, documents, 0, Decoding()), together, atol=2e-5)


def test_what_is_before_a_blank_is_read_once_and_nothing_is_compiled_twice(model, monkeypatch):
    read = []
    decode, begin = groups.decode_group, beginning._read

    def decode_group(network, state, plan, number, kind, rows):
        read.append(len(plan.given_B) * kind.content_rows)
        return decode(network, state, plan, number, kind, rows)

    def read_beginning(network, tokens_BxC, *rest):
        read.append(tokens_BxC.size)
        return begin(network, tokens_BxC, *rest)

    monkeypatch.setattr(groups, "decode_group", decode_group)
    monkeypatch.setattr(beginning, "_read", read_beginning)
    lengths.with_lengths(model, parse(BEFORE + "[[2-6]] * r"), Decoding())
    # Once what is before, and for each of eight sizes, of which three fill up the batch, what is behind, padded to 32; then
    # a token a pass.
    assert read == [40, 8 * 32, *[8] * 5]
    counts = [f._cache_size() for f in (decode, begin, lengths._log_probs)]
    lengths.with_lengths(model, parse(BEFORE + "ab [[1-6]] * x"), Decoding())
    lengths.with_lengths(model, parse(BEFORE[:-1] + "[[3-5]] + y"), Decoding())
    assert [f._cache_size() for f in (decode, begin, lengths._log_probs)] == counts
