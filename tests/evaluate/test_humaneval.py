"""HumanEval: what is read, what is filled in and run, against the Python interface and the sets themselves."""

import dataclasses
import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from chosen import long_after
from typed import answer, fails, run

import a3jax
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Range, Template
from a3jax.evaluate.blanks import BOTH, LEFT
from a3jax.evaluate.humaneval import INFILLED, WRITTEN, HumanEval, Problem, drawn, function_of, read_problems
from a3jax.evaluate.infilling import sentinels, ways, white_space
from a3jax.evaluate.options import Models
from a3jax.execute.sandbox import Limits, Sandbox

DATA = Path(__file__).parents[2].parent / "shared" / "data"
TEST = "def check(f):\n    assert f(3) == 9\n"


def row(number: int, **changes) -> dict:
    before, truth, after = "def f(x):\n", "    y = x\n", f"    return {number} * y\n"
    parts = {"prompt": before, "canonical_solution": truth, "suffix": after, "test": TEST, "entry_point": "f"}
    return {"task_id": f"SingleLineInfilling/T/{number}", **parts, **changes}


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder with problems, of which number 3 is passed by its truth."""
    folder = tmp_path / "data"
    folder.mkdir()
    with gzip.open(folder / "HumanEval-SingleLineInfilling.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row(number)) + "\n" for number in range(3, 6))
    written = {"prompt": "def f(x):\n", "canonical_solution": "    return 3 * x\n", "test": TEST, "entry_point": "f"}
    (folder / "HumanEval.jsonl").write_text(json.dumps({"task_id": "HumanEval/0", **written}) + "\n")
    return folder


@pytest.fixture(scope="session")
def confined() -> Sandbox:
    try:
        return Sandbox(True, Limits(cpu_seconds=2))
    except a3jax.UserError as error:
        pytest.skip(str(error))


class Judge:
    """A sandbox that runs nothing, and says of every other program that it passes."""

    def __init__(self):
        self.facts, self.seen = {"confined": "entirely"}, []

    def run(self, programs):
        self.seen += programs
        return ["passed" if i % 2 == 0 else "AssertionError" for i in range(len(programs))]


@pytest.mark.parametrize("heal", long_after(1, [True, False]))
def test_every_setting_tells_what_it_should(heal, model, data):
    problems = read_problems(data, INFILLED, False, left_out := Counter())
    both, left = Decoding(order="random_2", seed=3, heal=heal), Decoding(mode="ar", seed=3, heal=heal)
    found = ways(Models(model, model, None), both, ("length", "space", "chosen", "fim"), Range(4, 12), 16)
    assert list(found) == [
        BOTH, LEFT, f"{BOTH}, white space given", f"{LEFT}, white space given", f"{BOTH}, length chosen"
    ]  # fmt: skip
    judge = Judge()
    measured = HumanEval(INFILLED, found, "here", problems, judge, left_out, {}, 64, 1, 0)
    (item,) = measured.items
    problem = Problem(*item.content)
    assert measured.data["SingleLineInfilling"] == 1
    assert measured.data["of"] == 3
    (result,) = measured.evaluate(measured.items, 1)
    before, truth, after = problem[:3]
    size, indent = len(truth), "    " if heal else "   "
    rest = size - len(indent) - 1
    asked = {
        BOTH: (Template((before, after), (size,)), both),
        LEFT: (Template((before, ""), (size,)), left),
        f"{BOTH}, white space given": (Template((before + indent, "\n" + after), (rest,)), both),
        f"{LEFT}, white space given": (Template((before + indent, ""), (rest,)), left),
        f"{BOTH}, length chosen": (Template((before, after), (Range(4, 12),)), both),
    }
    (figures,) = result["figures"].values()
    for number, (name, (template, decoding)) in enumerate(asked.items()):
        text = a3jax.infill(model, template, decoding).blanks[0].text
        text = f"{indent}{text}\n" if "space" in name else text
        assert result["texts"][name] == text, name
        program = f"{before}{text}{after}\n{TEST}\ncheck(f)"
        assert program in judge.seen
        assert figures[name]["exact"] == (float(text == truth), 1)
        assert figures[name]["pass@1"] == (1.0 - number % 2, 1)
    blanks = [truth[len(indent) : -1]]
    scored = a3jax.log_likelihood(model, f"{before}{indent}[[1]]\n{after}", order="random_2", seed=3, blanks=blanks)
    nats, tokens = figures[f"{BOTH}, white space given"]["nats per token"]
    assert (nats, tokens) == (pytest.approx(-scored.total, abs=1e-3), rest)
    without = HumanEval(INFILLED, found, "here", problems, None, left_out, {}, 64, 1, 0)
    (plain,) = without.evaluate(without.items, 1)
    assert all("pass@1" not in columns for columns in plain["figures"]["SingleLineInfilling"].values())
    assert plain["texts"] == result["texts"]


def test_white_space_is_cut_where_tokenizers_cut_it():
    truths = ["    x = 1\n", "\n        y", "x", " + 1 ", "\tx\n\n", "   ", ""]
    told = [("   ", "\n"), ("\n       ", ""), ("", ""), ("", " "), ("\t", "\n\n"), ("", ""), ("", "")]
    assert [white_space(truth) for truth in truths] == told
    healed = [("    ", "\n"), ("\n        ", ""), ("", ""), (" ", " "), ("\t", "\n\n"), ("", ""), ("", "")]
    assert [white_space(truth, healed=True) for truth in truths] == healed


def test_fim_tokens_stand_around_the_blank(model):
    codec = a3jax.data.tokenizer.byte_codec()
    names = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
    assert sentinels(model.codec) is None
    codec.tokenizer.add_special_tokens(names)
    own = dataclasses.replace(model, codec=codec)
    found = ways(Models(own, model, None), Decoding(seed=2), ("fim",), Range(4, 12), 16)
    assert list(found) == ["FIM tokens"], "the baseline's tokenizer has none"
    problems = [(f"S/{n}", Problem("def f(x):\n", "    y = x\n", f"    return {n} * y\n", TEST, "f")) for n in range(2)]
    measured = HumanEval(INFILLED, found, "here", problems, None, Counter(), {}, 64)
    ids = [codec.tokenizer.token_to_id(name) for name in names]
    for item, result in zip(measured.items, measured.evaluate(measured.items, 2)):
        before, _, after, *_ = item.content
        prompt = [256, ids[0], *codec.encode(before), ids[1], *codec.encode(after), ids[2]]
        (filled,) = a3jax.complete(own, ["".join((names[0], before, names[1], after, names[2]))], 16, mode="ar", seed=2)
        assert list(filled.tokens[: len(prompt)]) == prompt
        assert result["texts"] == {"FIM tokens": filled.blanks[0].text}
        assert item.length == len(prompt) + 16


def test_problems_of_one_function_are_one_sample():
    sets = ("SingleLineInfilling/HumanEval/7/L0", "MultiLineInfilling/HumanEval/7/L0_L3", "RandomSpanInfilling/HumanEval/7/1")
    assert {function_of(id) for id in (*sets, "HumanEval/7")} == {"HumanEval/7"}
    assert function_of("mine/7") == "mine/7"


def test_as_many_of_each_set_are_drawn():
    problems = [(f"{name}/{n}", None) for name in "AB" for n in range(20)]
    some = drawn(problems, 5, 1)
    assert Counter(name[0] for name, _ in some) == {"A": 5, "B": 5}
    assert some == drawn(problems, 5, 1) != drawn(problems, 5, 2)
    assert sorted(drawn(problems, 99, 1), key=str) == sorted(problems, key=str)


@pytest.mark.parametrize("name", long_after(2, ["", "SingleLineInfilling", "MultiLineInfilling", "RandomSpanInfillingLight"]))
def test_what_people_wrote_passes_and_nothing_fails(name, confined):
    file = DATA / f"HumanEval{name and '-'}{name}.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    problems = [problem for _, problem in read_problems(file, INFILLED if name else WRITTEN, False, Counter())]
    some = random.Random(0).sample(problems, 20)
    assert confined.run([one.program(one.truth) for one in some]) == ["passed"] * 20
    assert confined.run([one.program("") for one in some]).count("passed") <= 2


def test_programs_are_run_only_if_that_is_asked_for(model_folder, data, capsys, tmp_path, confined):
    words = ["evaluate", model_folder, "--tasks", "humaneval_infill", "humaneval", "--data", data, "--new-tokens", 16]
    words += ["--infilling", "length", "fim", "--batch", 2, "--out"]
    run(*words, tmp_path / "off")
    printed = capsys.readouterr()
    assert "pass@1" not in printed.out
    assert "humaneval: no pass@1" in printed.err
    assert "humaneval_infill: no row for FIM tokens" in printed.err
    words = ["evaluate", model_folder, "--execute", "confined", *words[2:]]
    run(*words, tmp_path / "on")
    printed = capsys.readouterr()
    assert "pass@1" in printed.out
    assert "humaneval_infill: PROGRAMS THAT THE MODEL WRITES ARE RUN ON THIS MACHINE" in printed.err
    kept = {path.name: path.read_bytes() for path in (tmp_path / "on").iterdir()}
    first, *_ = lines = kept["humaneval_infill.jsonl"].splitlines(keepends=True)
    assert json.loads(first)["protocol"]["execution"]["confined"] is True
    (tmp_path / "on" / "humaneval_infill.jsonl").write_bytes(b"".join(lines[:3]))
    run(*words, tmp_path / "on")
    run(*words, tmp_path / "again")
    for folder in ("on", "again"):
        assert {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} == kept
    off = answer(capsys, *words[:2], *words[4:-1])
    with pytest.raises(SystemExit):
        run(*words[:2], *words[4:], tmp_path / "on")
    assert "has results with other protocol" in capsys.readouterr().err
    assert off["tasks"]["humaneval"]["protocol"]["decoding"]["model"]["stop"][0] == "\nclass"


def test_a_truth_that_is_filled_in_passes(model, data, monkeypatch, confined):
    problems = read_problems(data, INFILLED, False, Counter())
    found = ways(Models(model, model, None), Decoding(), ("length",), Range(4, 12), 16)
    truth = Problem(*problems[0][1]).truth
    monkeypatch.setattr(
        "a3jax.evaluate.blanks.Filler.fill",
        lambda self, blanks, *_: [a3jax.evaluate.blanks.Filling(truth if self.sees == BOTH else "", 0, 0) for _ in blanks],
    )
    measured = HumanEval(INFILLED, found, "here", problems, confined, Counter(), {})
    results = {item.id: one for item, one in zip(measured.items, measured.evaluate(measured.items, 8))}
    right = results["SingleLineInfilling/T/3"]
    assert right["outcomes"] == {BOTH: "passed", LEFT: "NameError"}
    assert right["figures"]["SingleLineInfilling"][BOTH] == {"pass@1": (1.0, 1), "exact": (1.0, 1)}
    assert results["SingleLineInfilling/T/4"]["outcomes"][BOTH] == "AssertionError"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"suffix": None}, ":1: has no text 'suffix'; humaneval_infill needs task_id, prompt"),
        ({"task_id": "SingleLineInfilling/T/3"}, ":2: SingleLineInfilling/T/3 is there twice"),
    ],
)
def test_broken_problems(model_folder, tmp_path, capsys, changes, expected):
    file = tmp_path / "mine.jsonl"
    lines = [row(3), row(4, **changes)] if ":2" in expected else [row(4, **changes), row(3)]
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    words = ["evaluate", model_folder, "--tasks", "humaneval_infill", "--data", file, "--infilling", "length"]
    assert f"{file}{expected}" in fails(capsys, *words)
    result = answer(capsys, *words, "--skip-bad")
    assert result["tasks"]["humaneval_infill"]["data"]["left_out"] == {"broken line": 1}


def test_mistakes(model_folder, data, capsys):
    words = ["evaluate", model_folder, "--tasks", "humaneval_infill"]
    assert "humaneval_infill needs --data" in fails(capsys, *words)
    assert "has no problem of humaneval_infill" in fails(capsys, *words, "--data", Path(__file__).parent)
    assert "leave --ends and --stop out" in fails(capsys, *words, "--data", data, "--ends")
    gz = data / "HumanEval-SingleLineInfilling.jsonl.gz"
    assert "has a 'suffix', and so is a problem of humaneval_infill" in fails(
        capsys, "evaluate", model_folder, "--tasks", "humaneval", "--data", gz
    )
    gz.write_bytes(gz.read_bytes()[:40])
    assert f"{gz} cannot be read" in fails(capsys, *words, "--data", gz)
    assert "--sizes is '9-4'" in fails(capsys, *words, "--data", data, "--sizes", "9-4")
