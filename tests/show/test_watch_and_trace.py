"""Texts of tokens, the live view, and the page."""

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import laid_out, viewed
from hypothesis import given, settings
from hypothesis import strategies as st

import a3jax
from a3jax.data.tokenizer import byte_codec
from a3jax.decode.settings import Decoding
from a3jax.decode.spelling import spell
from a3jax.generate.filling import Tokens
from a3jax.show.trace import spelled, trace
from a3jax.show.watch import Watch, drawn
from a3jax.terminal import Terminal

CODEC = byte_codec()
LETTERS = st.sampled_from(["a", "é", "漢", "😀", "\ufffd", "(", "e\u0301"]).map(CODEC.encode)
BROKEN = st.lists(st.integers(0, 255), min_size=1, max_size=5) | st.sampled_from(CODEC.encode("😀漢é")).map(lambda x: [x])


@settings(max_examples=300)
@given(st.lists(LETTERS | BROKEN, max_size=8).map(lambda parts: [token for part in parts for token in part]))
def test_texts_of_tokens_join_to_the_text(tokens):
    pieces = spell(CODEC, tokens, inside=False)
    assert len(pieces) == len(tokens)
    assert "".join(pieces) == CODEC.decode(tokens)


def test_a_character_stands_where_it_is_complete():
    assert spell(CODEC, CODEC.encode("aé😀("), inside=False) == ["a", "", "é", "", "", "", "😀", "("]


def test_a_document_on_its_way():
    tokens = np.array([256, *CODEC.encode("aéb"), 0, 0, *CODEC.encode("d")])
    text = Tokens(tokens, np.log([1, 1, 0.5, 0.5, 0.99, 1, 1, 1]), np.array([0, 0, 1, 1, 2, -1, -1, 0]), 1)
    shown = drawn(CODEC, text, np.arange(8) == 4)
    assert shown.plain == "aéb░░d"
    styles = {shown.plain[span.start : span.end]: span.style for span in shown.spans}
    assert styles["b"].underline
    assert not styles["é"].underline
    red, green = ((styles[letter].color.triplet.red, styles[letter].color.triplet.green) for letter in "éb")
    assert red[0] >= red[1]
    assert green[0] < green[1]
    half = text._replace(passes=np.array([0, 0, 1, -1, 2, -1, -1, 0]))  # of é only the first byte
    assert drawn(CODEC, half, np.zeros(8, bool)).plain == "a\ufffd░b░░d"


def test_what_a_model_writes_does_not_rule_the_terminal():
    tokens = CODEC.encode("\x1b[2J\r\x9b\n\ta")
    text = Tokens(np.array([256, *tokens]), np.zeros(len(tokens) + 1), np.array([0] + [1] * len(tokens)), 1)
    assert drawn(CODEC, text, text.passes < 0).plain == "␛[2J␍\ufffd\n\ta"


def test_more_texts_than_lines_are_cut():
    console = Terminal(file=io.StringIO(), force_terminal=True, width=20, height=6)
    tokens = np.array([256, *CODEC.encode("ab")])
    with Watch(CODEC, console) as watch:
        watch([Tokens(tokens, np.zeros(3), np.array([0, 0, 1]), 1)] * 9)
        shown = console.file.getvalue()
    assert shown.count("\n") < 6


def test_a_revision_keeps_the_colours_of_what_it_does_not_open():
    console = Terminal(file=io.StringIO(), force_terminal=True, width=40, height=10, color_system="truecolor")
    tokens = np.array([256, *CODEC.encode("abc")])
    first = Tokens(tokens, np.log([1, 1, 0.5, 0.5]), np.array([0, 0, 1, 2]), 1)
    revision = Tokens(tokens, np.log([1, 1, 1, 1]), np.array([0, 0, 0, -1]), 1)
    with Watch(CODEC, console) as watch:
        watch([first])
        begin = len(console.file.getvalue())
        watch([revision])
    last = console.file.getvalue()[begin:]
    assert "░" in last
    assert re.search(r"\x1b\[[0-9;]*38;2;[0-9;]*mb", last)  # decided in the first round, and still coloured
    assert re.search(r"(?<!m)a", last)


def test_a_text_longer_than_the_terminal_shows_its_newest_lines():
    console = Terminal(file=io.StringIO(), force_terminal=True, width=20, height=4)
    tokens = np.array([256, *CODEC.encode("\n".join("bcdefghij"))])
    with Watch(CODEC, console) as watch:
        watch([Tokens(tokens, np.zeros(len(tokens)), np.arange(len(tokens)) // (len(tokens) - 1), 1)])
    shown = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]|pass", "", console.file.getvalue())
    assert "j" in shown
    assert "b" not in shown


class Page(HTMLParser):
    """Collects the tags of a page, and the data in it."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.data, self._in_data = "", False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        self._in_data = dict(attrs).get("id") == "data"

    def handle_data(self, data):
        self.data += data if self._in_data else ""


@pytest.mark.parametrize("text", ["plain", "</script><b>&\\u003c$data"])
def test_a_page_holds_the_result_and_nothing_breaks_out_of_it(model, text):
    decoding = Decoding(temperature=1.0)
    filled = a3jax.infill(model, f"{text} [[2]] é", decoding)
    page = Page(trace(model.codec, [(filled, decoding)]))
    empty = Page(trace(model.codec, []))
    assert page.tags == empty.tags
    assert page.links == []
    (section,) = json.loads(page.data)
    assert "".join(token["text"] for token in section["tokens"]) == filled.text
    for name, values in {"id": filled.tokens, "log_prob": filled.log_probs, "pass": filled.passes}.items():
        assert [token[name] for token in section["tokens"]] == list(values[1:])  # the start token is no text
    assert section["summary"]["mode"] == "groups"
    assert section["summary"]["passes"] == filled.forwards


@viewed
def test_a_browser_shows_the_page_by_day_and_night_and_on_a_phone(width, dark, model, tmp_path):
    filled = a3jax.infill(model, f"{'wide' * 9} [[4]] {'é' * 9}", Decoding())
    (tmp_path / "trace.html").write_text(trace(model.codec, [(filled, Decoding())]))
    laid_out(tmp_path / "trace.html", width, dark, tmp_path)


def test_what_follows_a_stop_string_is_not_spelled(model):
    (whole,) = a3jax.complete(model, ["ab"], 12, temperature=1.0)
    (cut,) = a3jax.complete(model, ["ab"], 12, temperature=1.0, stop=(whole.text[5],))
    assert cut.finished == "stop"
    texts = spelled(model.codec, cut.tokens, cut.parts)
    assert "".join(texts) == cut.text
    assert len(texts) == len(cut.tokens)
