"""Filters: each measure by hand, and limits that keep both their ends."""

import dataclasses

import pytest

from a3jax.data.filters import Filters, measures, refused

TEXT = "- a list, 12 # of\n- things...\n\nthe end…\nthe end…"


def test_every_measure_is_what_its_name_says():
    words = ["-", "a", "list,", "12", "#", "of", "-", "things...", "the", "end…", "the", "end…"]
    found = measures(TEXT)
    assert found == pytest.approx(
        {
            "characters": len(TEXT),
            "words": 12,
            "word_length": sum(map(len, words)) / 12,
            "alphabetic_words": 8 / 12,
            "symbols": 3 / 12,
            "bullets": 2 / 4,
            "ellipses": 3 / 4,
            "repeated_lines": 1 / 4,
            "repeated_characters": len("the end…") / len(TEXT.replace("\n", "")),
        }
    )
    assert all(value == 0 for value in measures(" \n").values() if value != len(" \n"))


def test_every_limit_has_a_measure_and_every_measure_a_limit():
    named = {field.name.partition("_")[2] for field in dataclasses.fields(Filters)}
    assert named == {*measures(TEXT), "tokens"}
    assert all(field.default is None for field in dataclasses.fields(Filters)), "all are off"


def test_limits_keep_their_ends_and_the_first_broken_one_is_told():
    limits = Filters(min_words=12, max_words=12, max_bullets=0.5).limits()
    assert refused(limits, measures(TEXT)) is None
    assert refused(limits, measures("- " + TEXT)) == "words above 12"
    assert refused(limits, measures("a b")) == "words below 12"
    assert refused({"max_repeated_lines": 0.2}, measures(TEXT)) == "repeated lines above 0.2"
    assert refused({"max_tokens": 3}, measures(TEXT)) is None, "what is not measured yet breaks no limit"
    assert refused({"max_tokens": 3}, {"tokens": 4}) == "tokens above 3"
