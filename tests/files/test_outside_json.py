"""JSON from outside: what cannot be relied on is one line that names the file, wherever it is read."""

import json
import shutil
from pathlib import Path

import pytest
from typed import fails, piped, run

from a3jax.data.corpus import read_manifest
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.data.tokenizer_files import open_tokenizer
from a3jax.errors import UserError
from a3jax.experiment.files import load_experiment
from a3jax.files.outside_json import DEEPEST, parse, parse_object, value_of
from a3jax.serve.completions import Completion
from a3jax.serve.requests import Refused, read_request
from a3jax.train import goodput, hosts

DEEP = b"[" * 100_000
DEEP_OBJECTS = b'{"a":' * 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (DEEP, f"x is not JSON: it is nested deeper than {DEEPEST} lists and objects"),
        (DEEP_OBJECTS, "x is not JSON: it is nested deeper"),
        (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), "x is not JSON: it is nested deeper"),
        (b'{"a": {"b": 1, "b": 2}}', "x is not JSON: 'b' stands there twice"),
        (b"[NaN]", "x is not JSON: NaN is no number of JSON"),
        (b"[-Infinity]", "x is not JSON: -Infinity is no number"),
        (b"[-1e999]", "x is not JSON: -1e999 is more than a number can be"),
        (b"1" * 9000, "x is not JSON: a number in it has thousands of digits"),
        (b'["\xff"]', "x is not UTF-8 text: byte 0xff after byte 2"),
        ("[1]".encode("utf-16"), "x is not UTF-8 text: byte 0xff after byte 0"),
        (b'{"\\ud800": 1}', "x is not Unicode text: it holds a lone surrogate"),
        (b"", "x is not JSON: Expecting value"),
        (b"[1] 2", "x is not JSON: Extra data"),
    ],
)
def test_what_cannot_be_relied_on_is_one_line(content, message):
    with pytest.raises(UserError) as error:
        parse(content, "x")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_what_json_allows_is_read():
    assert parse(b"\xef\xbb\xbf" + b"[" * DEEPEST + b"]" * DEEPEST, "x")
    assert parse(b'["\\ud83d\\ude00", "' + b"[" * 9999 + b'", 1e308, 123456789012345678901234567890]', "x")[0] == "😀"
    assert value_of(b'{"other": "\\ud800", "text": "a"}', "x")["text"] == "a"
    with pytest.raises(UserError, match="x is not a JSON object"):
        parse_object(b"[1]", "x")


@pytest.fixture
def texts(tmp_path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + DEEP + b'\n{"text": "two"}\n' + DEEP_OBJECTS + b'\n{"text": "3"}\n')
    return path


def test_a_deep_record_ends_prepare_with_its_line_or_is_passed_over(texts, tmp_path, capsys):
    command = ["prepare", texts, tmp_path / "out", "--tokenizer", "bytes", "--workers", 1, "--held-out", 0]
    assert f"{texts}:2 is not JSON: it is nested deeper" in fails(capsys, *command)
    run(*command, "--on-error", "skip")
    assert read_manifest(tmp_path / "out").passed_over == {"not JSON": 2}
    assert read_manifest(tmp_path / "out").train.documents == 3


@pytest.mark.parametrize("content", [DEEP, DEEP_OBJECTS, b"\xff", b'{"a": 1, "a": 2}', b"null"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"])
def test_every_file_of_a_hugging_face_folder(name, content, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from a3jax.data.tokenizer import byte_codec

    config = transformers.LlamaConfig(
        vocab_size=258, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    for file, text in byte_codec().files.items():
        (tmp_path / "model" / file).write_bytes(text)
    if name == "model.safetensors.index.json":  # which is read where the weights are not one file
        (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / name).write_bytes(content)
    if name == "tokenizer_config.json":  # read where a document's start and end are looked up
        assert name in fails(capsys, "prepare", __file__, tmp_path / "out", "--tokenizer", tmp_path / "model")
    else:
        assert name in fails(capsys, "import", tmp_path / "model", tmp_path / "out")
    if name == "tokenizer.json" and content != b'{"a": 1, "a": 2}':
        assert name in fails(capsys, "prepare", __file__, tmp_path / "out", "--tokenizer", tmp_path / "model")


@pytest.mark.parametrize("content", [DEEP, DEEP_OBJECTS, b"\xff"])
@pytest.mark.parametrize("name", ["model.json", "record.json", "tokenizer.json"])
def test_every_file_of_a_model_folder(name, content, model_folder, tmp_path, capsys):
    shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "model" / name).write_bytes(content)
    assert name in fails(capsys, "generate", tmp_path / "model", "--text", "a [[1]]")


@pytest.mark.parametrize("content", [DEEP, DEEP_OBJECTS, b"\xff"])
def test_experiments_corpora_requests_and_bodies(content, model_folder, tmp_path, capsys, monkeypatch):
    file = tmp_path / "x.json"
    file.write_bytes(content)
    assert f"{file} is not" in fails(capsys, "train", file)
    lines = tmp_path / "x.jsonl"
    lines.write_bytes(b"\n" + content)
    assert f"{lines}:2 is not" in fails(capsys, "generate", model_folder, "--file", lines)
    assert f"{lines}:2 is not" in fails(capsys, "score", model_folder, "--file", lines)
    assert f"{lines}:2 is not" in fails(capsys, "evaluate", model_folder, "--tasks", "stories", "--stories", lines)
    assert f"{lines}:2 is not" in fails(capsys, "evaluate", model_folder, "--tasks", "likelihood", "--text", lines)
    piped(monkeypatch, content)
    assert "standard input:1 is not" in fails(capsys, "generate", model_folder, "--file", "-")
    prepare([__file__], tmp_path / "corpus", Preparation("bytes", workers=1))
    (tmp_path / "corpus" / "manifest.json").write_bytes(content)
    assert "manifest.json is not" in fails(capsys, "inspect", tmp_path / "corpus")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_bytes(content)
    assert "sweep.json is not" in fails(capsys, "sweep", "status", tmp_path / "sweep")
    with pytest.raises(Refused, match="the body is not"):
        read_request(Completion, content)


@pytest.mark.parametrize("content", [DEEP, b"[]", b"{}"])
def test_a_shard_whose_end_was_written_badly_is_written_again(content, tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(9)) + "broken\n")
    sources = [__file__, tmp_path / "in.jsonl"]
    with pytest.raises(UserError, match=r"in\.jsonl:10 is not JSON"):
        prepare(sources, tmp_path / "out", Preparation("bytes", workers=1))
    (done,) = (tmp_path / "out.partial").glob("*.done.json")
    done.write_bytes(content)
    manifest = prepare(sources, tmp_path / "out", Preparation("bytes", workers=1, on_error="skip"))
    assert manifest.train.documents + manifest.held_out.documents == 10


@pytest.mark.parametrize("content", [DEEP, b"[]", b'{"seconds": []}', b'{"seconds": {"training": []}}', b"\xff"])
def test_what_only_reports_is_passed_over_where_it_is_damaged(content, tmp_path):
    (tmp_path / goodput.FILE).write_bytes(content)
    assert goodput.shares(tmp_path) == {}
    assert goodput.Goodput(tmp_path, 0.0, 0.0).facts()["goodput"] == 0
    (tmp_path / hosts.FOLDER).mkdir()
    (tmp_path / hosts.FOLDER / "0.json").write_bytes(content)
    assert hosts.read(tmp_path) == {}


def test_a_tokenizer_is_opened_from_a_sound_file_alone():
    for content in (DEEP, b"{}", b'{"model": {"vocab": {"a": "1"}}}', b'{"model": {"vocab": {"a": 1}, "vocab": {}}}'):
        with pytest.raises(UserError, match=r"t\.json (is not|cannot be read)"):
            open_tokenizer({"tokenizer.json": content}, "t.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n\nimport missing_module", "line 3: ModuleNotFoundError: No module named"),
        ("def experiment():\n    return 1 +", "line 2: SyntaxError: invalid syntax"),
        ("def experiment():\n    return experiment()", "line 2: RecursionError"),
        ("x = " + "[" * 5000, "line 1: SyntaxError: too many nested parentheses"),
        ("raise ValueError('one\\ntwo')", "line 1: ValueError: one"),
        ("def experiment(): return 1", "experiment() returns int, not a Config"),
        (
            "import math\nfrom a3jax.config import Config\ndef experiment(): return Config('x', seed={1})",
            "seed is {1}; expected int",
        ),
        ("from a3jax.config import Config\ndef experiment(): return Config('a\\x1b[2J')", "name is 'a\\x1b[2J'"),
    ],
)
def test_an_experiment_file_fails_on_one_line_with_its_own(text, message, tmp_path):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(UserError) as error:
        load_experiment(str(tmp_path / "broken.py"))
    assert str(error.value).startswith(f"{tmp_path}/broken.py: {message}")
    assert "\n" not in str(error.value)


def test_what_is_written_can_be_read_back(tmp_path, capsys):
    experiment = "from a3jax.config import *\nfrom a3jax.curriculum import paper\n"
    experiment += (
        "def experiment(): return Config('x', source='nowhere', optimizer=OptimizerConfig(weight_decay=float('nan')))"
    )
    (tmp_path / "x.py").write_text(experiment)
    assert "optimizer.weight_decay is nan; it must be finite" in fails(capsys, "train", tmp_path / "x.py")
