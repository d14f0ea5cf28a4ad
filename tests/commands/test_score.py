"""a3jax score against the Python interface, and one line for every mistake."""

import json
import math

import pytest
from typed import answer, fails, piped, run

import a3jax

TEXT = "def área(r): 3"


@pytest.fixture(autouse=True)
def nothing_piped(monkeypatch):
    piped(monkeypatch, b"")


def test_a_text(model_folder, model, capsys, tmp_path, monkeypatch):
    score = a3jax.log_likelihood(model, TEXT, order="random_2", seed=1, orders=3)
    words = ["--order", "random_2", "--seed", 1, "--orders", 3]
    printed = answer(capsys, "score", model_folder, "--text", TEXT, *words)
    assert printed["log_likelihood"] == pytest.approx(score.total, abs=1e-4)
    assert printed["totals"] == pytest.approx(list(score.totals), abs=1e-4)
    assert printed["spread"] == pytest.approx(score.spread, abs=1e-4)
    assert [token["id"] for token in printed["token_log_probs"]] == list(score.tokens)
    assert "".join(token["text"] for token in printed["token_log_probs"]) == TEXT
    assert sum(token["log_prob"] for token in printed["token_log_probs"]) == pytest.approx(score.total, abs=1e-3)
    count = len(TEXT.encode())  # of the byte tokenizer's tokens too
    assert printed["tokens"] == printed["bytes"] == count
    assert printed["perplexity"] == pytest.approx(math.exp(-score.total / count), rel=1e-5)
    assert printed["bits_per_byte"] == pytest.approx(-score.total / count / math.log(2), rel=1e-5)

    (tmp_path / "text.txt").write_text(TEXT)
    assert answer(capsys, "score", model_folder, "--file", tmp_path / "text.txt", *words) == printed
    piped(monkeypatch, TEXT.encode())
    run("score", model_folder)
    shown = capsys.readouterr().out
    assert "'á'" in shown
    assert "bits per byte" in shown


def test_what_stands_in_blanks(model_folder, model, capsys):
    printed = answer(capsys, "score", model_folder, "--text", "a [[1]] b [[1]]", "--blanks", "xyz", "é")
    score = a3jax.log_likelihood(model, "a [[1]] b [[1]]", blanks=["xyz", "é"])
    assert printed["log_likelihood"] == pytest.approx(score.total, abs=1e-4)
    assert (printed["tokens"], printed["bytes"]) == (5, 5)
    assert [token["text"] for token in printed["token_log_probs"]] == ["x", "y", "z", "", "é"]


def test_a_file_of_texts(model_folder, model, capsys, tmp_path, monkeypatch):
    texts = ["one", "a second, longer one", TEXT]
    path = tmp_path / "texts.jsonl"
    lines = [{"text": "x [[1]]", "blanks": ["y"], "id": "blank"}, *({"text": text} for text in texts)]
    path.write_text("\n".join(map(json.dumps, lines)))
    run("score", model_folder, "--file", path, "--json")
    *each, last = map(json.loads, capsys.readouterr().out.splitlines())
    expected = [a3jax.log_likelihood(model, "x [[1]]", blanks=["y"]), *a3jax.log_likelihoods(model, texts)]
    assert [one["id"] for one in each] == ["blank", 2, 3, 4]
    assert [one["log_likelihood"] for one in each] == pytest.approx([one.total for one in expected], abs=1e-4)
    assert last["texts"] == 4
    assert last["log_likelihood"] == pytest.approx(sum(one.total for one in expected), abs=1e-3)
    assert last["tokens"] == sum(len(one.tokens) for one in expected)

    piped(monkeypatch, path.read_bytes() + b'\n{"text": ""}\n')
    assert "standard input:5: there is nothing to score" in fails(capsys, "score", model_folder, "--file", "-", printed=4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", ""], "nothing to score"),
        (["--text", "a" * 64], "is 65 tokens, the model's context only 64"),
        (["--text", "a", "--orders", 0], "orders is 0"),
        (["--text", "a", "--orders", 8], "orders is 8, but order 'ar' is the same in every draw; leave orders out, or"),
        (["--text", "a", "--orders", 2, "--order", "right_to_left_4"], "'right_to_left_4' is the same in every draw"),
        (["--text", "a", "--order", "left"], "order 'left' is unknown"),
        (["--text", "a", "--seed", -1], "seed is -1"),
        (["--text", "a", "--file", "x"], "--text does not go with --file"),
        (["--file", "x.jsonl", "--blanks", "x"], "--blanks does not go with --file"),
        (["--file", "x.jsonl"], "x.jsonl cannot be read"),
        (["--text", "a", "--blanks", "x"], "no blank"),
        (["--text", "[[1]]", "--blanks", "x", "y"], "has 1 blanks, and 2 texts"),
    ],
)
def test_a_mistake_is_one_line(words, message, model_folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, "score", model_folder, *words)
