"""The page of an evaluation: whole, harmless whatever the texts say, and with samples that nobody chose."""

import re
from html.parser import HTMLParser
from types import SimpleNamespace

from a3jax.evaluate.by_order import BY_POSITION, BY_VISIBLE, SUMMARY
from a3jax.evaluate.report import SAMPLES, report, sampled
from a3jax.evaluate.results import tabulate
from a3jax.evaluate.task import Item

EVIL = "\n<script>alert('x')</script> & \"$title\" </p></article>\x1b"


class Page(HTMLParser):
    """The elements of a page, and its text by element. Every element that is opened must be closed."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "wbr"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data))

    def all(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def task(name: str, rows: list[dict], items: list[Item]) -> tuple:
    described = SimpleNamespace(name=name, items=items, data={"source": EVIL, "left_out": {}}, protocol={"seed": 0})
    return described, rows, tabulate((row["id"], row["figures"]) for row in rows)


def page_of(*tasks: tuple) -> str:
    model = {"weights_sha256": "ab" * 32, "record": {"source": EVIL, "steps": 90}}
    results = {"models": {"model": model}, "tasks": {each.name: {"protocol": each.protocol} for each, *_ in tasks}}
    return report(results, tasks)


def stories(count: int) -> tuple:
    figures = {sees: {"exact": (0.0, 1), "nats per token": (6.0, 4)} for sees in ("both sides", "left only")}
    texts = {"both sides": f"both {EVIL}", "left only": f"left {EVIL}"}
    rows = [{"id": f"s{n}", "truth": EVIL, "texts": texts, "figures": {"sentence 3": figures}} for n in range(count)]
    return task("stories", rows, [Item(f"s{n}", n, (f"{n} {EVIL}", EVIL, "z" * 5000, None)) for n in range(count)])


def test_texts_are_texts():
    written = page_of(stories(30))
    page = Page(written)
    names = {name for name, _ in page.elements}
    assert "script" not in names
    assert not {key for _, attributes in page.elements for key in attributes} & {"src", "href", "onload", "onerror"}
    shown = EVIL.replace("\x1b", "␛")
    assert page.all("h1") == [f"Evaluation of {shown} after 90 steps"]
    assert page.all("mark") == [shown] * SAMPLES
    fills = page.all("p")
    for text in (f"both {shown}", f"left {shown}", shown):
        assert fills.count(text) == SAMPLES
    assert max(map(len, fills)) < 1000, "far from the blank the text is cut"
    assert "exact 0, nats per token 1.5" in page.all("figcaption")
    assert "1.500 ± 0.000" in page.all("td")
    assert "ab" * 32 in page.all("td")


def test_samples_are_taken_evenly():
    assert sampled(0) == []
    assert sampled(1) == [0]
    assert sampled(5) == [0, 1, 2, 3, 4]
    assert sampled(12 * 11 + 1) == list(range(0, 133, 12))
    assert len(sampled(1000)) == SAMPLES
    ids = [text for text in Page(page_of(stories(23))).all("h3") if text != "Samples"]
    assert ids == [f"s{n}" for n in range(0, 23, 2)]


def test_curves_stand_in_the_page_and_follow_its_colours():
    by = {"ar": {"1-31": (3.0, 2), "32-63": (1.0, 1)}, "random_4": {"1-31": (5.0, 2)}}
    tables = {SUMMARY: {"ar": {"nats per token": (4.0, 3)}}, BY_POSITION: by, BY_VISIBLE: {"ar": {"0-25%": (1.0, 1)}}}
    rows = [{"id": f"w{n}", "figures": tables} for n in range(3)]
    page = Page(written := page_of(task("likelihood", rows, [])))
    assert [name for name, _ in page.elements].count("svg") == 2
    assert {BY_POSITION, BY_VISIBLE, "ar", "random_4", "32-63"} <= set(page.all("text"))
    assert re.search(r"#000000|#ffffff|https?://(?!www.w3.org)", written) is None
    assert "article" not in {name for name, _ in page.elements}
