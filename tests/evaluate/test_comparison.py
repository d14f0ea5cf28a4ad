"""Several checkpoints compared: paired errors against other ways to them, one page, what is refused, and going on."""

import json
import math
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from browser import laid_out, viewed
from flax import nnx
from model_folders import save_model
from test_report import EVIL, Page
from typed import answer, fails, run

from a3jax.checkpoint.provenance import Provenance
from a3jax.data.tokenizer import byte_codec
from a3jax.errors import UserError
from a3jax.evaluate.candidates import candidates
from a3jax.evaluate.results import PERPLEXITY, difference, differences, ratio, tabulate
from a3jax.evaluate.results_folder import read


@pytest.fixture
def shares() -> np.ndarray:
    """Items x (x, y, x', y'): two ratios of other denominators, hard items being hard for both."""
    rng = np.random.default_rng(0)
    y, hard = rng.integers(5, 60, 300), rng.normal(0, 0.7, 300)
    other = y + rng.integers(0, 4, 300)
    noise = rng.normal(0, 0.2, (2, 300))
    return np.stack([y * (3 + hard + noise[0]), y, other * (2.5 + 0.8 * hard + noise[1]), other], 1).astype(float)


def by_item(column_N2: np.ndarray) -> dict[int, tuple[float, float]]:
    return {item: (float(x), float(y)) for item, (x, y) in enumerate(column_N2)}


@pytest.mark.parametrize(("column", "figure"), [("nats per token", lambda r: r), (PERPLEXITY, np.exp)])
def test_paired_errors_are_those_of_a_bootstrap_and_of_the_delta_method(shares, column, figure):
    found = difference(by_item(shares[:, :2]), by_item(shares[:, 2:]), column)

    def of(sums: np.ndarray) -> np.ndarray:
        return figure(sums[..., 2] / sums[..., 3]) - figure(sums[..., 0] / sums[..., 1])

    means = shares.mean(0)
    assert found.value == pytest.approx(of(means))
    small = 1e-5 * means
    slope = np.array([(of(means + step) - of(means - step)) / (2 * step.sum()) for step in np.diag(small)])
    assert found.error == pytest.approx(math.sqrt(slope @ np.cov(shares.T) @ slope / len(shares)), rel=1e-5)
    drawn = np.random.default_rng(1).integers(0, len(shares), (2000, len(shares)))
    assert found.error == pytest.approx(of(shares[drawn].mean(1)).std(), rel=0.08)
    pairs = [enumerate(pair.tolist()) for pair in (shares[:, :2], shares[:, 2:])]
    apart = [tabulate((str(i), {"t": {"r": {column: share}}}) for i, share in pair)["t"]["r"][column] for pair in pairs]
    apart = math.hypot(*(one.error for one in apart))
    assert found.error < 0.7 * apart, "what is hard for both is no difference"


def test_the_error_of_a_mean_is_that_of_paired_differences():
    before, after = [1.0, 2.0, 4.0, 8.5], [1.5, 2.0, 3.0, 9.5]
    pair = [by_item(np.array([(value, 1.0) for value in values])) for values in (before, after)]
    apart = [b - a for a, b in zip(before, after)]
    assert difference(*pair, "exact") == pytest.approx((statistics.mean(apart), statistics.stdev(apart) / 2, 4))
    assert difference(pair[0], pair[0], "exact") == (0.0, 0.0, 4)
    assert difference({0: (1.0, 2.0)}, {0: (3.0, 2.0)}, "exact") == (1.0, None, 1)


def test_an_item_without_a_share_moves_nothing():
    """Only the third item has a share of the second ratio besides the first two."""
    first, second = {0: (1.0, 1.0), 1: (3.0, 1.0)}, {0: (1.0, 1.0), 1: (3.0, 1.0), 2: (2.0, 1.0)}
    found = difference(first, second, "exact")
    padded = np.array([(1, 1, 1, 1), (3, 1, 3, 1), (0, 0, 2, 1)], float)
    means, count = padded.mean(0), 3
    slope = np.array([-1 / means[1], means[0] / means[1] ** 2, 1 / means[3], -means[2] / means[3] ** 2])
    assert found == pytest.approx((0.0, math.sqrt(slope @ np.cov(padded.T) @ slope / count), 3))


def test_differences_are_of_what_both_have():
    one = [{"t": {"r": {"x": (1, 1), "old": (1, 1)}}, "gone": {}}, {"t": {"r": {"x": (2, 1)}}}]
    two = [{"t": {"r": {"x": (2, 1), "new": (1, 1)}, "s": {"x": (1, 1)}}}, {"t": {"r": {"x": (5, 1)}}}]
    assert differences(zip("ab", one), zip("ab", two)) == {"t": {"r": {"x": (2.0, 1.0, 2)}}}


MODEL = {"weights_sha256": "ab", "tokenizer_sha256": "cd", "record": {"source": "here", "steps": 9}}


def write(folder: Path, change: str = "", count: int = 30, better: float = 0.0) -> Path:
    """Results of a task as an evaluation leaves them; `change` says in what they are other ones."""
    rng = np.random.default_rng(0)
    models = {"model": {**MODEL, "weights_sha256": str(folder)}, "judge": {"weights_sha256": "j"}}
    made_from = {
        "models": models,
        "data": {"source": EVIL, "left_out": {"too long": 2}, "sha256": "ef"},
        "protocol": {"window": 64, "decoding": {"both sides": {"order": "ar", "temperature": 0.0}}},
    }
    if change == "items":
        made_from["data"]["sha256"] = "other"
    elif change == "protocol":
        made_from["protocol"]["window"] = 32
    elif change == "judge":
        made_from["models"]["judge"] = {"weights_sha256": "k"}
    elif change == "decoding":
        made_from["protocol"]["decoding"]["both sides"]["temperature"] = 0.9
    rows = []
    for number in range(count):
        exact, nats = float(rng.random() + better > 0.5), rng.normal(30, 3) - better
        figures = {
            "line": {"both sides": {"exact": (exact, 1), "nats per token": (nats, 10)}, "left only": {"exact": (0, 1)}}
        }
        texts = {"both sides": f"{folder.name} {number}", "left only": EVIL}
        rows.append({"id": f"line: {number}", "truth": f"truth {number}", "texts": texts, "figures": figures})
    folder.mkdir(parents=True)
    (folder / "code.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (made_from, *rows)))
    results = {"models": models, "jax": "0", "device": "cpu", "tasks": {"code": {"items": count}}}
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    return folder


def test_results_that_are_there_are_compared(tmp_path, capsys):
    first = write(tmp_path / "before")
    evil = write(tmp_path / EVIL.replace("/", "").strip(), "decoding", better=0.3)
    found = answer(capsys, "evaluate", first, evil, "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == found
    assert found["compared"] == ["before", evil.name]
    code = found["tasks"]["code"]
    assert code["decoding_differs"] == {evil.name: {"both sides.temperature": [0.0, 0.9]}}
    tables = [code["tables"][name]["line"]["both sides"] for name in found["compared"]]
    less = code["differences"][evil.name]["line"]["both sides"]
    rows = [read("x", folder, ("code",)).tasks["code"].rows for folder in (first, evil)]
    for column, one in less.items():
        pairs = [[row.figures["line"]["both sides"][column] for row in each] for each in rows]
        assert [table[column]["value"] for table in tables] == [ratio(pair).value for pair in pairs]
        assert one == difference(dict(enumerate(pairs[0])), dict(enumerate(pairs[1])), column)._asdict()
    assert less["nats per token"]["value"] == pytest.approx(-0.03)
    assert less["nats per token"]["error"] == pytest.approx(0, abs=1e-9)

    run("evaluate", first, evil)
    shown = capsys.readouterr().out
    assert "both sides.temperature is 0.9, there 0.0" in shown
    assert "left out: too long 2" in shown
    assert "-0.030 ± 0.000" in shown
    assert answer(capsys, "evaluate", tmp_path, "--tasks", "code")["compared"] == sorted(found["compared"])


@viewed
def test_a_browser_shows_the_page_by_day_and_night_and_on_a_phone(width, dark, tmp_path):
    folders = [write(tmp_path / name, better=number / 4) for number, name in enumerate(("before", "after" * 12))]
    run("evaluate", *folders, "--out", tmp_path / "out")
    laid_out(tmp_path / "out" / "report.html", width, dark, tmp_path)


def test_the_page_of_a_comparison(tmp_path, capsys):
    names = ["before", EVIL.replace("/", "").strip()]
    folders = [write(tmp_path / name, better=number / 4) for number, name in enumerate(names)]
    run("evaluate", *folders, "--out", tmp_path / "out")
    written = (tmp_path / "out" / "report.html").read_text()
    page = Page(written)
    elements = [name for name, _ in page.elements]
    assert "script" not in elements
    assert not {key for _, attributes in page.elements for key in attributes} & {"src", "href", "onload", "style"}
    shown = names[1].replace("\x1b", "␛")
    assert page.all("h1") == [f"Comparison of before with {shown}"]
    assert page.all("th").count(shown) == 2, "a line for each row"
    assert page.all("th").count("difference") == 2
    assert "color-scheme: light dark" in written, "what is not the page's own colour is the reader's scheme's"
    assert elements.count("article") == 12
    assert elements.count("figure") == 12 * (1 + 2 * 2)
    texts = page.all("p")
    assert [text for text in texts if text.startswith("before ")] == [
        f"before {n}" for n in (0, 3, 5, 8, 11, 13, 16, 18, 21, 24, 26, 29)
    ]
    assert f"{shown} 0" in texts
    captions = [text for text in page.all("figcaption") if text.endswith("seen")]
    assert captions == [f"{name}, {sees} seen" for sees in ("both sides", "left only") for name in ("before", shown)] * 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("items", "code: other is not about the same items as first"),
        ("protocol", "code: other is measured by another protocol than first: window is 32, there 64"),
        ("judge", "code: other has another judge than first"),
    ],
)
def test_what_cannot_be_compared(change, message, tmp_path, capsys):
    assert message in fails(capsys, "evaluate", write(tmp_path / "first"), write(tmp_path / "other", change))


def test_results_that_are_not_whole(tmp_path, capsys):
    first, other = write(tmp_path / "first"), write(tmp_path / "other")
    both = ["evaluate", first, other]
    assert "has no results of stories; it has those of code" in fails(capsys, *both, "--tasks", "stories")
    file = other / "code.jsonl"
    whole = file.read_text().splitlines(keepends=True)
    for broken, message in {
        "".join(whole[:-1]): "has 29 of 30 items",
        "".join([*whole[:-1], '{"id": "x", "figures": {"t": 3}}\n']): "code.jsonl:31: figures",
        "".join([*whole[:-1], '{"id": "x", "figures": {"t": {"r": {"c": [1]}}}}\n']): "code.jsonl:31: figures",
        "".join([whole[0], whole[2], whole[1], *whole[3:]]): "do not stand as those of first",
        whole[0].replace(str(other), "x") + "".join(whole[1:]): "is about other models than results.json",
        "": "code.jsonl is empty",
        "{\n": "code.jsonl:1 is not JSON",
    }.items():
        file.write_text(broken)
        assert message in fails(capsys, *both)
    file.unlink()
    assert "code.jsonl cannot be read" in fails(capsys, *both)
    (other / "results.json").write_text('{"tasks": 3}')
    assert "results.json: tasks is 3" in fails(capsys, *both)


def test_names(tmp_path):
    results = [write(tmp_path / name) for name in ("a/last", "b/last", "several/2", "several/1")]
    (tmp_path / "several" / "notes").mkdir()
    model = tmp_path / "model"
    shutil.copytree(results[0], model)
    (model / "config.json").write_text("{}")
    found = candidates(
        [*results[:2], tmp_path / "c" / ".." / "c" / "last", tmp_path / "report.html", tmp_path / "several", model]
    )
    last = f"{tmp_path.name}"
    assert [(one.name, one.is_results) for one in found] == [
        ("last", True),
        ("b-last", True),
        ("c-last", False),
        (f"{last}-report.html", False),
        ("1", True),
        ("2", True),
        ("model", False),
    ]
    with pytest.raises(UserError, match="last is given twice"):
        candidates([results[0], tmp_path / "b" / ".." / "a" / "last"])


@pytest.fixture(scope="module")
def checkpoints(model_folder, tiny, network, tmp_path_factory) -> list[Path]:
    """Three models, of which the last two have the same name."""
    config = tiny(layers=2, vocab=300, start_token=256, end_tokens=(257,))
    folders = [model_folder]
    for seed in (1, 2):
        out = tmp_path_factory.mktemp(f"run{seed}-") / "tuned"
        params = nnx.to_pure_dict(nnx.state(network(config, seed), nnx.Param))
        save_model(out, config, params, Provenance("random"), byte_codec().files)
        folders.append(out)
    return folders


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
def test_checkpoints_are_evaluated_each_as_if_alone_and_gone_on_with(checkpoints, tmp_path, capsys):
    file = tmp_path / "stories.jsonl"
    stories = [{"sentences": ["Al ran.", "He fell.", f"It hurt {n}.", "He sat.", "Pain left."]} for n in range(4)]
    file.write_text("".join(json.dumps(story) + "\n" for story in stories))
    words = [
        "--tasks",
        "stories",
        "code",
        "--stories",
        file,
        "--settings",
        "one",
        "--code",
        tmp_path / "code.py",
        "--batch",
        2,
    ]
    (tmp_path / "code.py").write_text("def f(x):\n    y = x * 2\n    return y\n")
    out = tmp_path / "out"
    first = answer(capsys, "evaluate", *checkpoints, *words, "--out", out)
    names = ["model", "tuned", f"{checkpoints[2].parent.name}-tuned"]
    assert first["compared"] == names
    assert sorted(path.name for path in out.iterdir()) == sorted(["comparison.json", "report.html", *names])
    run("evaluate", checkpoints[1], *words, "--out", tmp_path / "alone")
    assert contents(out / "tuned") == contents(tmp_path / "alone")
    page = Page((out / "report.html").read_text())
    assert page.all("mark").count(" It hurt 0.") == 1, "the text around a blank is known"

    whole = contents(out)
    lines = (out / "tuned" / "stories.jsonl").read_bytes().splitlines(keepends=True)
    (out / "tuned" / "stories.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:9])  # killed in the second of three
    for name in ("comparison.json", "report.html", "tuned/code.jsonl", "tuned/results.json", "tuned/report.html"):
        (out / name).unlink()
    shutil.rmtree(out / names[2])
    assert answer(capsys, "evaluate", *checkpoints, *words, "--out", out) == first
    assert contents(out) == whole

    again = answer(capsys, "evaluate", out / "model", checkpoints[1], out / names[2], *words, "--out", tmp_path / "mixed")
    assert again == first
    assert contents(tmp_path / "mixed" / "tuned") == contents(out / "tuned")
    found = answer(capsys, "evaluate", out)
    assert found["compared"] == sorted(names)
    assert found["tasks"] == first["tasks"]
    mistake = ["evaluate", out / "model", checkpoints[1], *words, "--limit", 3, "--out", tmp_path / "other"]
    assert "stories: tuned is not about the same items as model" in failure(capsys, *mistake)
    assert not (tmp_path / "other" / "tuned").exists()


def failure(capsys, *words: object) -> str:
    """The last line of a command that told before which checkpoint it was at."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_mistakes(model_folder, tmp_path, capsys):
    results = write(tmp_path / "results")
    tasks = ["--tasks", "code"]
    assert "nothing to evaluate or to compare" in fails(capsys, "evaluate", results)
    assert "nothing to evaluate or to compare" in fails(capsys, "evaluate")
    assert "--tasks names what to measure" in fails(capsys, "evaluate", model_folder)
    assert "need --out" in fails(capsys, "evaluate", model_folder, results, *tasks)
    assert "given twice" in fails(capsys, "evaluate", results, results)
    missing = ["evaluate", model_folder, tmp_path / "none", *tasks, "--out", tmp_path / "out"]
    assert "none does not exist" in fails(capsys, *missing), "before the first is evaluated"
    assert not (tmp_path / "out").exists()
    for name in ("results.json", "report.html", "comparison.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("years of work")
        words = ["evaluate", results, write(tmp_path / f"other-{name}"), "--out", tmp_path / name]
        assert f"{name} is there and" in fails(capsys, *words)
        assert (tmp_path / name / name).read_text() == "years of work"
