"""a3jax evaluate as it is typed: twice the same, the same for every batch size, gone on with, and a line for each mistake."""

import json
import shutil

import pytest
from typed import answer, fails, run

STORIES = [{"sentences": ["Al ran.", "He fell.", f"It hurt {n}.", "He sat.", "Pain left."]} for n in range(3)]


@pytest.fixture
def stories(tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps(story) + "\n" for story in STORIES))
    return path


@pytest.mark.parametrize("name", ["results.json", "report.html"])
def test_results_of_somebody_else_are_not_replaced(name, model_folder, stories, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("years of work")
    words = ["evaluate", model_folder, "--tasks", "stories", "--stories", stories, "--settings", "one", "--out"]
    assert f"mine/{name} is there and" in fails(capsys, *words, tmp_path / "mine")
    assert (tmp_path / "mine" / name).read_text() == "years of work"


def figures(results: dict) -> dict[str, tuple]:
    return {
        f"{task} {table} {row} {column}": (one["value"], one["error"])
        for task, found in results["tasks"].items()
        for table, rows in found["tables"].items()
        for row, columns in rows.items()
        for column, one in columns.items()
    }


@pytest.mark.long
def test_an_evaluation(model_folder, stories, tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("def f(x): return x + 1\n" * 4)
    (tmp_path / "texts" / "b.txt").write_text("Some more text, which is short.")
    (tmp_path / "texts" / "c.png").write_bytes(b"\xff\xfe")
    words = ["evaluate", model_folder, "--tasks", "likelihood", "stories", "--text", tmp_path / "texts", "--orders", "ar"]
    words += ["random_4", "--stories", stories, "--settings", "one", "--out"]
    first = answer(capsys, *words, tmp_path / "first", "--batch", 2)
    assert json.loads((tmp_path / "first" / "results.json").read_text()).items() <= first.items()
    assert first["tasks"]["likelihood"]["data"]["left_out"] == {"not UTF-8 text": 1}
    assert first["tasks"]["likelihood"]["data"]["texts_cut_into_windows"] == 1
    assert first["tasks"]["stories"]["items"] == 3
    for name, task in first["tasks"].items():
        made_from = json.loads((tmp_path / "first" / f"{name}.jsonl").read_text().splitlines()[0])
        assert made_from["data"] == task["data"], "one evaluation, one hash"
    assert (tmp_path / "first" / "likelihood.svg").read_text().count("<svg") == 1

    shutil.copytree(tmp_path / "first", tmp_path / "torn")
    rows = (tmp_path / "first" / "stories.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "torn" / "stories.jsonl").write_bytes(b"".join(rows[:3]) + rows[3][:9])
    (tmp_path / "torn" / "results.json").unlink()
    assert answer(capsys, *words, tmp_path / "torn", "--batch", 2) == first
    for name in ("stories.jsonl", "likelihood.jsonl", "results.json", "likelihood.svg", "report.html"):
        assert (tmp_path / "torn" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()

    other = figures(answer(capsys, *words[:-1], "--batch", 3))
    assert other.keys() == figures(first).keys()
    for name, found in figures(first).items():
        assert other[name] == pytest.approx(found, abs=1e-4), name  # float32, summed in another order

    page = tmp_path / "first" / "report.html"
    page.unlink()
    run(*words, tmp_path / "first", "--batch", 2)
    assert page.read_bytes() == (tmp_path / "torn" / "report.html").read_bytes()
    shown = capsys.readouterr().out
    assert "ROUGE mean" in shown
    assert "left out: not UTF-8 text 1" in shown
    message = fails(capsys, *words, tmp_path / "first", "--seed", 5)
    assert "likelihood.jsonl has results with other" in message


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--tasks", "stories", "stories"], "each once"),
        (["--tasks", "likelihood", "--orders", "sideways"], "order 'sideways' is unknown"),
        (["--tasks", "likelihood", "--text", "/none.txt"], "/none.txt does not exist"),
        (["--tasks", "stories", "--stories", "/none.csv"], "/none.csv cannot be read"),
        (["--tasks", "stories", "--sizes", "9-4"], "--sizes is '9-4'"),
        (["--tasks", "stories", "--longest", "9"], "nothing is left to evaluate (longer than 9 tokens "),
        (["--tasks", "code", "--batch", "0"], "--batch is 0"),
        (["--tasks", "code", "--ends"], "leave --ends and --stop out"),
        (["--tasks", "cooking"], "cooking"),
    ],
)
def test_mistakes(model_folder, capsys, words, expected):
    assert expected in fails(capsys, "evaluate", model_folder, *words)


def test_broken_lines(model_folder, stories, capsys, tmp_path):
    with stories.open("a") as file:
        file.write('{"sentences": ["one"]}\n')
    words = ["evaluate", model_folder, "--tasks", "stories", "--settings", "one", "--stories", stories]
    assert f"{stories}:4: a story has 5 sentences" in fails(capsys, *words)
    results = answer(capsys, *words, "--skip-bad", "--batch", 2)
    assert results["tasks"]["stories"]["data"]["left_out"] == {"broken line": 1}
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "x = 1"}\n{"other": 1}\n')
    assert f"{texts}:2 has no 'text'" in fails(capsys, "evaluate", model_folder, "--tasks", "likelihood", "--text", texts)
