"""What is measured on each item, against the Python interface, and how a task is run, stopped and gone on with."""

import ast
import inspect
import json
import math
import re
import statistics
import textwrap
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

import a3jax
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Range, Template
from a3jax.evaluate import code, task
from a3jax.evaluate.blanks import BOTH, LEFT, Blanked, fillers
from a3jax.evaluate.by_order import BY_POSITION, BY_VISIBLE, SUMMARY, ByOrder, predicted
from a3jax.evaluate.code import Code, blanks, is_python
from a3jax.evaluate.results import ratio, tabulate
from a3jax.evaluate.rouge import rouge
from a3jax.evaluate.stories import CHOSEN, ONE, THREE, Stories, Story, read_stories
from a3jax.evaluate.synthetic_stories import synthetic_stories
from a3jax.evaluate.task import Item
from a3jax.evaluate.texts import Text

TEXT = "def área(r): return 3 * r\n" * 3
KEPT = Path(__file__).parents[2] / "experiments/results/shown/decoders"


def test_results_of_before_an_option_came_were_made_alike():
    first = json.loads((KEPT / "test/lines.jsonl").read_text().splitlines()[0])
    for way in first["protocol"]["ways"].values():
        del way["sees"]
        assert Decoding(**way).recorded() == way
    drafted = Decoding(mode="speculative", drafter="text").recorded()
    assert (drafted["drafter"], Decoding(**drafted).drafter) == ("text", "text")
    assert "drafter" not in Decoding(mode="speculative").recorded()


def test_standard_errors():
    values = [1.0, 2.0, 4.0, 8.5]
    found = ratio([(value, 1) for value in values])
    assert found.value == pytest.approx(statistics.mean(values))
    assert found.error == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)))
    assert ratio([(3.0, 2)]) == (1.5, None, 1)
    rng = np.random.default_rng(0)
    counts = rng.integers(5, 50, 4000)
    sums = counts * 2 + rng.normal(size=4000) * counts
    parts = [ratio(list(zip(x, y))) for x, y in zip(sums.reshape(100, 40), counts.reshape(100, 40))]
    spread = statistics.stdev(part.value for part in parts)  # of an estimate, over a hundred samples of 40
    assert statistics.mean(part.error for part in parts) == pytest.approx(spread, rel=0.2)


def test_tables_keep_the_order_of_rows_and_add_up_what_items_share():
    each = [{"t": {"b": {"x": (1, 2)}, "a": {"x": (1, 1)}}}, {"t": {"b": {"x": (3, 2), "y": (1, 1)}}}]
    found = tabulate(zip("cd", each))["t"]
    assert list(found) == ["b", "a"]
    assert (found["b"]["x"].value, found["b"]["x"].items, found["a"]["x"].items) == (1.0, 2, 1)


def test_windows_of_one_text_are_no_independent_items():
    """Nine windows of each of 60 texts that differ in what they are about: the error is that of other draws of 60 texts."""
    rng = np.random.default_rng(0)
    values, errors = [], []
    for _ in range(200):
        hard = rng.normal(3, 1, 60)
        nats = hard[:, None] * 100 + rng.normal(0, 30, (60, 9))
        found = tabulate(
            (f"text #{i}", {"t": {"r": {"nats per token": (nats[i, j], 100)}}}) for i in range(60) for j in range(9)
        )["t"]["r"]["nats per token"]
        assert found.value == pytest.approx(nats.sum() / (100 * 540))
        assert found.items == 60
        values.append(found.value)
        errors.append(found.error)
    assert statistics.mean(errors) == pytest.approx(statistics.stdev(values), rel=0.15)
    alone = tabulate(("text", {"t": {"r": {"x": (1.0 + j, 1)}}}) for j in range(3))["t"]["r"]["x"]
    assert alone == (2.0, None, 1), "what other texts are like, one text does not tell"


def test_rouge_is_that_of_rouge_score():
    # By hand: "the cat sat" against "the cat ran off": 2 of 3 and 2 of 4 words, 1 of 2 and 1 of 3 pairs.
    found = rouge("the cat sat", "The cat ran off!")
    assert found["ROUGE-1"] == pytest.approx(100 * 2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
    assert found["ROUGE-2"] == pytest.approx(100 * 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert found["ROUGE-L"] == found["ROUGE-1"]
    assert found["ROUGE mean"] == pytest.approx((2 * found["ROUGE-1"] + found["ROUGE-2"]) / 3)
    pair = "Anna was running to the stores.", "to the store Anna runs"
    expected = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(*pair)
    assert list(rouge(*pair).values())[:3] == [100 * score.fmeasure for score in expected.values()]
    assert set(rouge("a b", "").values()) == {0.0}


def test_likelihood_by_order(model):
    orders = ("ar", "in_order_4", "random_4", "infill_1", "right_to_left")
    measured = ByOrder(model, "here", [Text("t", TEXT), Text("empty", "")], left_out := Counter(), orders, window=40)
    assert measured.data["texts_cut_into_windows"] == 1
    assert left_out["no token to predict"] == 1
    windows = [item.content[0] for item in measured.items]
    assert [len(window) for window in windows] == [40, 40, 4]
    assert {item.cluster for item in measured.items} == {"t"}
    assert [token for window in windows for token in window[1:]] == model.codec.encode(TEXT)
    assert sum(item.content[1] for item in measured.items) == len(TEXT.encode())
    rows = measured.evaluate(measured.items, 3)

    item, figures = measured.items[0], rows[0]["figures"]
    tokens, given = item.content[0], [i == 0 for i in range(40)]
    for order in ("ar", "in_order_4"):
        expected = a3jax.log_likelihood(model, model.codec.decode(list(tokens[1:])), order=order).total
        assert figures[SUMMARY][order]["nats per token"] == (pytest.approx(-expected, abs=1e-3), 39)
    expected = a3jax.token_log_likelihood(model, tokens, given, groups=range(40, 0, -1)).total
    assert figures[SUMMARY]["right_to_left"]["nats per token"][0] == pytest.approx(-expected, abs=1e-3)
    place, visible = predicted(jax.device_get(measured._order(item, "random_4")))
    assert place.tolist() == list(range(1, 40))
    assert sorted(Counter(visible.tolist()).values()) == [3, *[4] * 9]  # groups of four, the given first token in one
    blanked = figures[SUMMARY]["infill_1"]["nats per token"][1]
    assert 1 <= blanked <= 19
    assert "bits per byte" not in figures[SUMMARY]["infill_1"]
    nats, count = figures[SUMMARY]["ar"]["bits per byte"]
    assert (nats, count) == (pytest.approx(figures[SUMMARY]["ar"]["nats per token"][0] / math.log(2)), item.content[1])
    for order in orders:
        for table in (BY_POSITION, BY_VISIBLE):
            total = tuple(map(sum, zip(*figures[table][order].values())))
            assert total == pytest.approx(figures[SUMMARY][order]["nats per token"])
    assert list(figures[BY_POSITION]["ar"]) == ["1-31", "32-63"]
    assert [count for _, count in figures[BY_VISIBLE]["ar"].values()] == [9, 10, 10, 10]


STORY = Story("s", ("Al ran.", "He fell.", "It hurt.", "He sat.", "Pain left."))


def test_stories_see_what_they_should(model):
    both = fillers(model, model, Decoding(order="random_2", seed=3))
    long = Story("long", ("A long one.",) * 5)
    measured = Stories(both, "here", [STORY, long], left_out := Counter(), (ONE, THREE), window=64)
    assert measured.protocol["decoding"][BOTH]["order"] == "random_2"
    assert [item.id for item in measured.items] == [f"{ONE}: s", f"{ONE}: long", f"{THREE}: s", f"{THREE}: long"]
    assert not left_out
    rows = measured.evaluate(measured.items[::2], 2)
    templates = ["Al ran. He fell.[[9]] He sat. Pain left.", "Al ran.[[26]] Pain left."]
    lefts = ["Al ran. He fell.[[9]]", "Al ran.[[26]]"]
    filled = a3jax.infill_batch(model, templates, [Decoding(order="random_2", seed=3)] * 2)
    from_left = a3jax.infill_batch(model, lefts, [Decoding(mode="ar")] * 2)
    for i, (row, truth) in enumerate(zip(rows, [" It hurt.", " He fell. It hurt. He sat."])):
        (figures,) = row["figures"].values()
        expected = a3jax.log_likelihood(model, templates[i], order="random_2", seed=3, blanks=[truth]).total
        assert figures[BOTH]["nats per token"] == (pytest.approx(-expected, abs=1e-3), len(truth))
        expected = a3jax.log_likelihood(model, lefts[i], blanks=[truth]).total
        assert figures[LEFT]["nats per token"] == (pytest.approx(-expected, abs=1e-3), len(truth))
        assert row["texts"] == {BOTH: filled[i].blanks[0].text, LEFT: from_left[i].blanks[0].text}
        assert row["truth"] == truth
        assert figures[BOTH]["exact"] == (float(row["texts"][BOTH].strip() == truth.strip()), 1)

    Stories(both, "here", [STORY, long], left_out, (ONE, CHOSEN), Range(2, 40), window=60)
    assert left_out == {"longer than 60 tokens": 2}  # the long one's blank could take forty


def test_a_length_that_is_chosen(model, monkeypatch):
    asked = []

    def note(model, requests, batch):
        asked.extend((request.template, request.decoding.mode, request.length) for request in requests)
        return [SimpleNamespace(blanks=[SimpleNamespace(text=" It was. And then")])] * len(requests)

    monkeypatch.setattr("a3jax.evaluate.blanks.fill", note)
    measured = Stories(fillers(model, model, Decoding()), "here", [STORY], Counter(), (CHOSEN,), Range(2, 20))
    (row,) = measured.evaluate(measured.items, 1)
    before, after = "Al ran. He fell.", " He sat. Pain left."
    assert asked == [
        (Template((before, after), (Range(2, 20),)), "groups", 1 + len(before + after) + 20),
        (Template((before, ""), (20,)), "ar", 1 + len(before) + 20),
    ]
    assert row["texts"] == {BOTH: " It was. And then", LEFT: "It was."}
    assert measured.items[0].length == 1 + len(before + after) + 20


def test_stories_of_files(tmp_path):
    names = "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4"
    names += ",RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding"
    path = tmp_path / "cloze.csv"
    path.write_text(f'\ufeff{names}\r\na,"One, two.",B.,C.,D.,First.,Second.,2\r\nb,A.,B.,"C\r\nc.",D.,First.,Second.,1\r\n')
    found = read_stories(str(path), False, Counter())
    assert found[0] == Story("a", ("One, two.", "B.", "C.", "D.", "Second."))
    assert found[1].sentences[2:] == ("C\r\nc.", "D.", "First.")

    path.write_text(f"{names}\na,A.,B.,C.,D.,E.,F.,1\nb,A.,B.,C.,D.,E.,F.,0\nc,A.,,C.,D.,E.,F.,1\nd,A.,B.\n")
    with pytest.raises(a3jax.UserError, match=r"cloze.csv:3: AnswerRightEnding is '0'; it must be 1 or 2"):
        read_stories(str(path), False, Counter())
    left_out: Counter[str] = Counter()
    assert [story.id for story in read_stories(str(path), True, left_out)] == ["a"]
    assert left_out == {"broken line": 3}

    path.write_text(names.replace("InputSentence3", "Other"))
    with pytest.raises(a3jax.UserError, match=r"has no column 'InputSentence3'"):
        read_stories(str(path), False, Counter())
    path = tmp_path / "five.jsonl"
    plain = {f"sentence{i}": "x" for i in range(1, 6)}
    path.write_text(
        "\n".join([json.dumps({"sentences": ["a"] * 5, "id": 7}), "", "{", json.dumps(plain), '{"sentences": []}'])
    )
    with pytest.raises(a3jax.UserError, match=r"five.jsonl:3 is not JSON"):
        read_stories(str(path), False, Counter())
    left_out.clear()
    assert [story.id for story in read_stories(str(path), True, left_out)] == ["7", f"{path}:4"]
    assert left_out == {"broken line": 2}
    with pytest.raises(a3jax.UserError, match="cannot be read"):
        read_stories(str(tmp_path / "none.csv"), False, Counter())


def test_only_the_end_of_a_synthetic_story_tells_its_fact():
    stories = synthetic_stories(200)
    assert synthetic_stories(20) == stories[:20]
    for story in stories:
        told = [story.fact in re.findall(r"\w+", sentence) for sentence in story.sentences]
        assert told == [False, False, True, False, True]


def test_code_that_is_blanked_is_python_again():
    texts = [Text(module.__name__, inspect.getsource(module)) for module in (textwrap, statistics, inspect)]
    units = [unit for text in texts for unit in code._units(text, False, Counter())]
    found = [(kind, blank) for unit in units for kind, blank in blanks(unit, 0)]
    assert Counter(kind for kind, _ in found).keys() == {"line", "block", "expression"}
    known = {unit.text for unit in units}
    for kind, blank in found:
        assert blank.before + blank.truth + blank.after in known
        assert is_python(blank.before + blank.truth + blank.after)
        if kind == "expression":
            ast.parse(f"({blank.truth})", mode="eval")
        else:
            assert blank.before.endswith("\n")
            assert blank.after.startswith("\n")
            (inside,) = ast.parse(f"if 1:\n{blank.truth}\n").body
            assert kind == "block" or len(inside.body) == 1


def test_what_is_measured_of_code(model):
    text = Text("m", 'def f(x):\n    """é"""\n    if x:\n        y = x * 2\n')
    measured = Code(fillers(model, model, Decoding()), "here", [text], left_out := Counter(), window=60)
    assert {item.id: Blanked(*item.content).truth for item in measured.items if "block" not in item.id} == {
        "line: m f, line 1": "        y = x * 2",
        "expression: m f, line 1": " x * 2",
    }
    assert not left_out
    assert {item.cluster for item in measured.items} == {"m"}, "blanks of one file are one sample"
    for item, row in zip(measured.items, measured.evaluate(measured.items, 2)):
        before, truth, after, _ = item.content
        (figures,) = row["figures"].values()
        expected = a3jax.log_likelihood(model, f"{before}[[1]]{after}", blanks=[truth]).total
        assert figures[BOTH]["nats per token"][0] == pytest.approx(-expected, abs=1e-3)
        assert figures[LEFT]["parses"][0] == is_python(before + row["texts"][LEFT] + after)
    with pytest.raises(a3jax.UserError, match=r"bad, line 1, is not Python"):
        list(code._units(Text("bad", "def ("), False, Counter()))
    assert Code(fillers(model, model, Decoding()), "here", [text], left_out, window=20).items == []
    assert left_out == {"longer than 20 tokens": 3}


class Lengths:
    """A task that needs no model: the length of each item. It can be stopped."""

    name = "lengths"

    def __init__(self, stop_at: int = 99):
        self.protocol, self.data = {"rounds": 1}, {"source": "here", "left_out": {}}
        self.items = [Item(f"i{n}", n % 4, "x" * n) for n in range(9)]
        self.seen: list[str] = []
        self._stop_at = stop_at

    def evaluate(self, items, batch):
        if len(self.seen) >= self._stop_at:
            raise KeyboardInterrupt
        self.seen += [item.id for item in items]
        return [{"figures": {"t": {"r": {"c": (len(item.content) / 3, 1)}}}} for item in items]


def test_a_stopped_task_goes_on(tmp_path, capsys):
    whole = task.run(Lengths(), {}, tmp_path / "whole", 2)
    with pytest.raises(KeyboardInterrupt):
        task.run(Lengths(stop_at=4), {}, tmp_path / "stopped", 2)
    assert "goes on from" in capsys.readouterr().err
    path = tmp_path / "stopped" / "lengths.jsonl"
    path.write_bytes(path.read_bytes() + whole_line(tmp_path, 5) + b'{"id": "i')  # killed while it wrote the next batch
    again = Lengths()
    assert json.dumps(task.run(again, {}, tmp_path / "stopped", 2)) == json.dumps(whole)
    assert len(again.seen) == 5
    assert path.read_bytes() == (tmp_path / "whole" / "lengths.jsonl").read_bytes()
    again = Lengths()
    assert json.dumps(task.run(again, {}, tmp_path / "stopped", 2)) == json.dumps(whole)
    assert again.seen == []
    for change in ("protocol", "models"):
        changed = Lengths()
        changed.protocol = {"rounds": 2} if change == "protocol" else changed.protocol
        with pytest.raises(a3jax.UserError, match=f"has results with other {change}"):
            task.run(changed, {"model": 1} if change == "models" else {}, tmp_path / "stopped", 2)
    path.write_text("mine\n")
    with pytest.raises(a3jax.UserError, match=r"lengths\.jsonl:1 is no result of a3jax evaluate"):
        task.run(Lengths(), {}, tmp_path / "stopped", 2)
    assert path.read_text() == "mine\n"


def test_results_say_what_their_items_are_parts_of(tmp_path):
    """Items in pairs that agree: half as many independent ones, told by what was kept as by what was just found."""
    paired = Lengths()
    paired.items = [item._replace(cluster=f"c{n // 2}") for n, item in enumerate(paired.items[:8])]
    rows = task.run(paired, {}, tmp_path, 2)
    assert {row["id"]: row["cluster"] for row in rows} == {f"i{n}": f"c{n // 2}" for n in range(8)}
    sums = [(4 * n + 1) / 3 for n in range(4)]
    expected = (sum(sums) / 8, statistics.stdev(sums) / 2 / math.sqrt(4), 4)
    assert tabulate(task.found(rows))["t"]["r"]["c"] == pytest.approx(expected)
    again = task.run(paired, {}, tmp_path, 2)
    assert tabulate(task.found(again)) == tabulate(task.found(rows))
    alone = [item._replace(cluster=None) for item in paired.items]
    assert task.digest(alone) == task.digest(paired.items), "the same items, however errors are counted"


def whole_line(folder, number: int) -> bytes:
    return (folder / "whole" / "lengths.jsonl").read_bytes().splitlines(keepends=True)[number]
