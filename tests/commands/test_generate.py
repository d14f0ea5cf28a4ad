"""a3jax generate against the Python interface, and one line for every mistake."""

import dataclasses
import io
import json
import shutil

import pytest
from model_folders import load_arrays, save_model
from typed import answer, fails, piped, run

import a3jax
from a3jax.checkpoint.folder import find
from a3jax.checkpoint.provenance import Provenance
from a3jax.data.tokenizer import byte_codec
from a3jax.decode.template import Range, Template
from a3jax.generate import bulk
from a3jax.generate.request import Wanted
from a3jax.terminal import Terminal

TEMPLATE = "def area(r): [[5]] * r"
OPTIONS = {"order": "random_4", "seed": 3, "temperature": 1.0, "top_k": 40}
WORDS = ["--order", "random_4", "--seed", 3, "--temperature", 1, "--top-k", 40]


@pytest.fixture(autouse=True)
def nothing_piped(monkeypatch):
    piped(monkeypatch, b"")


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (WORDS, OPTIONS),
        (["--mode", "dynamic", "--threshold", 0.5], {"mode": "dynamic", "threshold": 0.5}),
    ],
)
def test_a_text_is_filled_as_by_infill(model_folder, model, capsys, words, options):
    printed = answer(capsys, "generate", model_folder, "--text", TEMPLATE, *words)
    filled = a3jax.infill(model, TEMPLATE, **options)
    assert printed["text"] == filled.text
    assert printed["blanks"][0]["tokens"] == list(filled.blanks[0].tokens)
    assert printed["log_prob"] == pytest.approx(filled.log_prob, abs=1e-4)
    assert printed["forwards"] == filled.forwards


@pytest.mark.parametrize(
    ("wanted", "template"),
    [
        (Wanted(text="a [[2]] b"), Template(("a ", " b"), (2,))),
        (Wanted(prompt="a [[2]]", tokens=3), Template(("a [[2]]", ""), (3,))),
        (Wanted(before="b [[1]]", tokens="5"), Template(("b [[1]]", ""), (5,))),
        (Wanted(after=" a", tokens="4-5"), Template(("", " a"), (Range(4, 5),))),
        (Wanted(text="a [[1]] c", rewrite="[[1]]"), Template(("a ", " c"), (5,))),
        (Wanted(text="a [[1]] c", rewrite="[[1]]", tokens="3"), Template(("a ", " c"), (3,))),
    ],
)
def test_every_form_is_a_template(model, wanted, template):
    wanted.check()
    assert wanted.template(model) == template


def test_the_middle_of_two_files(model_folder, model, capsys, tmp_path):
    (tmp_path / "before").write_bytes(b"b [[1]]\r\n")
    (tmp_path / "after").write_bytes(b"\n a")
    words = ["--before", tmp_path / "before", "--after", tmp_path / "after", "--tokens", 5]
    expected = a3jax.infill(model, Template(("b [[1]]\r\n", "\n a"), (5,)))
    assert answer(capsys, "generate", model_folder, *words)["text"] == expected.text


def test_a_prompt_is_continued_and_cut_at_a_stop_string(model_folder, model, capsys):
    words = ["generate", model_folder, "--prompt", "ab", "--tokens", 12, "--temperature", 1]
    (whole,) = a3jax.complete(model, ["ab"], 12, temperature=1.0)
    assert answer(capsys, *words)["text"] == whole.text
    stop = whole.text[5]
    assert answer(capsys, *words, "--stop", stop, "never")["text"] == whole.text[: whole.text.index(stop, 2)]


def test_a_chat_is_answered_as_the_template_has_it(model_folder, model, capsys, tmp_path):
    assert "model has no chat template" in fails(capsys, "generate", model_folder, "--chat", "ab")
    folder = shutil.copytree(model_folder, tmp_path / "chats")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    words = ["generate", folder, "--chat", "ab", "--tokens", 6, "--temperature", 1]
    (expected,) = a3jax.infill_batch(
        model, [Template(("<user>ab", ""), (6,), whole=True)], a3jax.Decoding(ends=True, temperature=1.0)
    )
    assert answer(capsys, *words)["blanks"][0]["text"] == expected.blanks[0].text
    assert expected.given.count(True) == len("<user>ab")  # and no start, which this template does not write
    run(*words)
    assert capsys.readouterr().out.startswith(f"{expected.blanks[0].text}\n")
    (tmp_path / "chats.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "ab"}], "tokens": 6}\n{"messages": [{"role": "me"}]}\n'
    )
    message = fails(capsys, "generate", folder, "--file", tmp_path / "chats.jsonl", "--temperature", 1, printed=1)
    assert f"{tmp_path / 'chats.jsonl'}:2: the chat has a message 1 in 'messages'" in message
    assert "prompt and messages are given together" in fails(capsys, *words, "--prompt", "x")


def test_samples_have_the_seeds_that_follow_each_other(model_folder, model, capsys):
    printed = answer(capsys, "generate", model_folder, "--text", TEMPLATE, *WORDS, "--n", 3, "--batch", 2)["samples"]
    assert [one["text"] for one in printed] == [
        a3jax.infill(model, TEMPLATE, **{**OPTIONS, "seed": seed}).text for seed in (3, 4, 5)
    ]


def test_every_choice_of_decoding_is_an_option(capsys):
    with pytest.raises(SystemExit):
        run("generate", "--help")
    shown = capsys.readouterr().out
    for field in dataclasses.fields(a3jax.Decoding):
        name = field.name.replace("_", "-")
        assert f"--{name}" in shown or f"--no-{name}" in shown


def test_standard_input_is_the_text_where_none_is_given(model_folder, model, capsys, monkeypatch):
    piped(monkeypatch, TEMPLATE.encode())
    run("generate", model_folder)
    shown = capsys.readouterr().out
    filled = a3jax.infill(model, TEMPLATE)
    assert shown.startswith("".join(f"⟦{text}⟧" if is_filled else text for text, is_filled in filled.pieces))


REQUESTS = [
    {"text": "a [[3]] b"},
    {"prompt": "ab", "tokens": 4, "id": "second"},
    {"text": "a longer text [[3]]", "seed": 7, "temperature": 0.0},
    {"before": "x", "after": "y", "tokens": 2},
    {"text": "abc", "rewrite": "b"},
    {"text": "[[2]] end", "mode": "dynamic"},
    {"text": "a [[3]] b"},
]


@pytest.fixture
def requests(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("\n\n".join(map(json.dumps, REQUESTS)))
    return path


def fill_file(folder, path, out, *more):
    run("generate", folder, "--file", path, "--out", out, "--batch", 1, "--temperature", 1, "--seed", 3, *more)
    return out.read_bytes()


def test_a_file_is_answered_line_by_line(model_folder, model, requests, tmp_path, capsys, monkeypatch):
    written = fill_file(model_folder, requests, tmp_path / "out.jsonl")
    answers = [json.loads(line) for line in written.splitlines()]
    assert [one["id"] for one in answers] == [1, "second", 5, 7, 9, 11, 13]
    assert [one["seed"] for one in answers] == [3, 4, 7, 5, 6, 7, 8]
    expected = [
        a3jax.infill(model, "a [[3]] b", seed=3, temperature=1.0),
        a3jax.complete(model, ["ab"], 4, seed=4, temperature=1.0)[0],
        a3jax.infill(model, "a longer text [[3]]", seed=7),
        a3jax.infill(model, "x[[2]]y", seed=5, temperature=1.0),
        a3jax.infill(model, "a[[1]]c", seed=6, temperature=1.0),
        a3jax.infill(model, "[[2]] end", seed=7, temperature=1.0, mode="dynamic"),
        a3jax.infill(model, "a [[3]] b", seed=8, temperature=1.0),
    ]
    assert [one["text"] for one in answers] == [filled.text for filled in expected]

    capsys.readouterr()
    piped(monkeypatch, requests.read_bytes())
    run("generate", model_folder, "--file", "-", "--batch", 1, "--temperature", 1, "--seed", 3)
    assert capsys.readouterr().out.encode() == written
    # In batches of two, with samples: each text is what it is alone, and they come in the order of the requests.
    many = fill_file(model_folder, requests, tmp_path / "many.jsonl", "--n", 2, "--batch", 2).splitlines()
    assert [json.loads(line)["id"] for line in many[:4]] == [1, 1, "second", "second"]
    assert [json.loads(line)["seed"] for line in many[:6]] == [3, 4, 5, 6, 7, 8]
    assert json.loads(many[0])["text"] == answers[0]["text"]
    assert json.loads(many[4])["text"] == answers[2]["text"]


def test_a_run_that_was_stopped_ends_as_one_that_was_not(model_folder, requests, tmp_path, monkeypatch):
    whole = fill_file(model_folder, requests, tmp_path / "whole.jsonl")
    out = tmp_path / "out.jsonl"
    for kept in (0, 3, len(whole) // 2, len(whole) - 1, len(whole)):  # lines torn anywhere
        out.write_bytes(whole[:kept])
        assert fill_file(model_folder, requests, out) == whole
    out.unlink()
    fill, calls = bulk.fill, []

    def stopping(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fill(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(bulk, "fill", stopping)
        with pytest.raises(SystemExit):
            fill_file(model_folder, requests, out)
    assert out.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    assert fill_file(model_folder, requests, out) == whole


def test_windows_are_the_same_after_a_stop(model_folder, requests, tmp_path, monkeypatch):
    fill, windows = bulk.fill, []

    def looking(model, rows, batch, **options):
        windows.append((rows, batch))
        return fill(model, rows, batch, **options)

    monkeypatch.setattr(bulk, "fill", looking)
    monkeypatch.setattr(bulk, "WINDOW", 2)
    whole = fill_file(model_folder, requests, tmp_path / "out.jsonl", "--batch", 2)
    once = list(windows)
    (tmp_path / "out.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    assert fill_file(model_folder, requests, tmp_path / "out.jsonl", "--batch", 2) == whole
    assert windows == once + once[1:]


def test_answers_to_anything_else_are_noticed(model_folder, requests, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    command = ["generate", model_folder, "--file", requests, "--batch", 1]
    run(*command, "--out", out)
    before = out.read_bytes()
    assert f"{out}:1 answers something else than {requests}:1" in fails(capsys, *command, "--out", out, "--top-k", 3)
    lines = requests.read_text().split("\n")
    requests.write_text("\n".join(lines[:4] + ['{"text": "another [[1]]"}'] + lines[5:]))
    assert f"{out}:3 answers something else than {requests}:5" in fails(capsys, *command, "--out", out)
    requests.write_text("\n".join(lines[:4]))
    assert "more answers than" in fails(capsys, *command, "--out", out)
    assert out.read_bytes() == before
    own = find(model_folder)
    other = load_arrays(own) | {"final_norm": 2 * load_arrays(own)["final_norm"]}
    save_model(tmp_path / "other", own.config, other, Provenance("random"), byte_codec().files)
    command[1] = tmp_path / "other"  # its record is the same
    assert f"{out}:1 answers something else than {requests}:1" in fails(capsys, *command, "--out", out)
    assert out.read_bytes() == before
    notes = tmp_path / "notes.txt"
    notes.write_text("what I must not lose")
    assert f"{notes}:1 is no answer" in fails(capsys, *command, "--out", notes)
    assert notes.read_text() == "what I must not lose"
    notes.write_text('{"id": 7, "prompt": "one line without an end", "tokens": 3}')
    assert f"{notes}:1 is no answer" in fails(capsys, *command, "--out", notes)
    assert notes.read_text().endswith("}")
    assert "both --file and --out" in fails(capsys, *command, "--out", requests)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "is not JSON"),
        (b'{"text": "[[1]]", "text": "[[2]]"}', "'text' stands there twice"),
        (b"[1]", "is not a JSON object"),
        (b'{"text": "a \xff"}', "is not UTF-8 text: byte 0xff after byte 12"),
        (b'{"text": "\\ud800 [[1]]"}', "lone surrogate"),
        (b'{"text": "none"}', "the text has no blank"),
        (b'{"text": "[[100]]"}', "the model's context only 64"),
        (b'{"text": "[[1]]", "tokens": 1}', "tokens is for"),
        (b'{"text": "[[1]]", "temprature": 1}', "unknown field 'temprature'; did you mean 'temperature'?"),
        (b'{"text": "[[1]]", "temperature": -1}', "temperature is -1"),
        (b'{"text": "[[1]]", "stop": ["x"]}', "stop strings are for"),
        (b'{"text": "[[1]] b", "ends": true}', "text stands behind"),
        (b'{"text": "[[1]] b", "mode": "diffusion"}', "mode diffusion is for models of objective diffusion"),
        (b'{"prompt": "a", "tokens": "1-3"}', "no sizes to choose"),
        (b'{"prompt": "a", "tokens": true}', "tokens is True"),
        (b'{"prompt": "a"}', "prompt needs tokens"),
    ],
)
def test_a_broken_line_is_named_and_nothing_before_it_lost(model_folder, tmp_path, capsys, line, message):
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(b'{"text": "a [[3]] b"}\n' + line + b'\n{"text": "a [[3]] b"}\n')
    printed = fails(capsys, "generate", model_folder, "--file", path, "--out", out)
    assert f"{path}:2" in printed
    assert message in printed
    assert [json.loads(one)["id"] for one in out.read_bytes().splitlines()] == [1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to fill is given"),
        (["--text", ""], "no blank"),
        (["--text", "[[1]]", "--prompt", "a"], "text and prompt are given together"),
        (["--text", "[[1]]", "--tokens", 3], "tokens is for"),
        (["--text", "[[1]]", "--after", __file__], "text and before or after are given together"),
        (["--prompt", "a"], "prompt needs tokens"),
        (["--prompt", "a", "--tokens", "many"], "tokens is 'many'"),
        (["--prompt", "a", "--tokens", 3, "--rewrite", "a"], "rewrite names a part of a text"),
        (["--prompt", "a", "--tokens", 3, "--revise", 3], "revise is for"),
        (["--text", "aa", "--rewrite", "a"], "rewrite is found 2 times"),
        (["--text", "aa", "--rewrite", "b"], "rewrite is found 0 times"),
        (["--text", "aa", "--rewrite", ""], "rewrite is found 0 times"),
        (["--text", "None", "--rewrite", "None", "--tokens", "None"], "tokens is 'None'"),
        (["--text", "[[1]]", "--stop", "a"], "stop strings are for"),
        (["--text", "[[1]]", "--mode", "ar", "--order", "random_2"], "mode ar fills from left to right"),
        (["--text", "[[1]]", "--mod", "ar"], "did you mean '--mode'"),
        (["--text", "[[1]]", "--temprature", 1], "did you mean '--temperature'"),
        (["--text", "[[1]]", "--out", "x"], "--out is for"),
        (["--text", "[[1]]", "--n", 0], "--n is 0"),
        (["--text", "[[1]]", "--batch", 0], "--batch is 0"),
        (["--text", "[[1]]", "--watch"], "standard error is none"),
        (["--text", "[[1]]", "--trace", "no/where.html"], "no is not a folder"),
        (["--text", "[[1]]", "--trace", "."], ". is there and is no page of --trace"),
        (["--before", "nothing", "--tokens", 3], "nothing cannot be read: No such file"),
        (["--file", "nothing"], "nothing cannot be read: No such file"),
        (["--file", "."], ". cannot be read: Is a directory"),
        (["--file", "x", "--text", "[[1]]"], "--text does not go with --file"),
        (["--file", "x", "--trace", "x.html"], "--trace does not go with --file"),
        (["--file", "x", "--watch"], "--watch does not go with --file"),
    ],
)
def test_a_mistake_is_one_line_before_a_model_is_loaded(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, "generate", "nowhere", *words)
    assert list(tmp_path.iterdir()) == []


def test_text_that_is_no_text(model_folder, tmp_path, capsys, monkeypatch):
    piped(monkeypatch, b"a \xff [[1]]")
    assert "standard input is not UTF-8 text: byte 0xff after byte 2" in fails(capsys, "generate", model_folder)
    (tmp_path / "before").write_bytes(b"\xfe")
    words = ["--before", tmp_path / "before", "--tokens", 1]
    assert "before is not UTF-8 text: byte 0xfe" in fails(capsys, "generate", model_folder, *words)
    assert "text is not valid Unicode" in fails(capsys, "generate", model_folder, "--text", "\udcff [[1]]")


def test_a_flood_of_blanks_is_refused(model_folder, capsys, monkeypatch):
    piped(monkeypatch, b"[[1]]" * 100_000)
    assert "is 100001 tokens, the model's context only 64" in fails(capsys, "generate", model_folder)


def test_watching_shows_the_text_and_changes_nothing(model_folder, model, capsys, monkeypatch):
    seen = io.StringIO()
    monkeypatch.setattr("a3jax.progress.console", Terminal(file=seen, force_terminal=True, width=80, height=20))
    printed = answer(capsys, "generate", model_folder, "--text", TEMPLATE, *WORDS, "--n", 2, "--watch")
    assert printed["samples"][0]["text"] == a3jax.infill(model, TEMPLATE, **OPTIONS).text
    assert "░" in seen.getvalue()
    assert "def area(r): " in seen.getvalue()


def test_a_trace_replaces_no_other_file(model_folder, capsys, tmp_path):
    source = tmp_path / "before.py"
    source.write_text("what I must not lose")
    words = ["--before", source, "--tokens", 1, "--trace", source]
    assert "before.py is there and is no page of --trace" in fails(capsys, "generate", model_folder, *words)
    assert source.read_text() == "what I must not lose"


def test_a_trace_is_written(model_folder, model, capsys, tmp_path):
    run("generate", model_folder, "--text", TEMPLATE, "--n", 2, "--trace", tmp_path / "trace.html")
    run("generate", model_folder, "--text", TEMPLATE, "--n", 2, "--trace", tmp_path / "trace.html")  # a page may be replaced
    page = (tmp_path / "trace.html").read_text()
    assert len(json.loads(page.split('type="application/json">')[1].split("</script>")[0])) == 2
