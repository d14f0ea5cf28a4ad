"""The protocol of DiffuLLaMA's scripts: losses as PyTorch computes them on the same weights, and what is asked and judged."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import transformers
from typed import answer, fails, run

from a3jax.checkpoint.folder import find
from a3jax.decode.document import lay_out
from a3jax.evaluate import diffullama
from a3jax.evaluate.pieces import by_itself
from a3jax.export.exporter import export_model

ROWS = {
    "hellaswag": [
        {
            "activity_label": "Sun",
            "ctx_a": "A man sat.",
            "ctx_b": "HE",
            "endings": ["sat [title] in.", "[x] ran  by."],
            "label": n,
        }
        for n in range(2)
    ],
    "winogrande": [
        {"sentence": "The man sat as _ was old. ", "option1": "he", "option2": "the road", "answer": "1"},
        {"sentence": "_ was old.", "option1": "He", "option2": "The road", "answer": "2"},
    ],
    "social_iqa": [
        {"context": "He sat.", "question": "Why?", "answerA": "a", "answerB": "so", "answerC": "old ", "label": "2"}
    ],
    "piqa": [{"goal": "Eat it", "sol1": "on steps", "sol2": "a road", "label": n} for n in range(2)],
    "triviaqa": [{"question": "Who sat?", "answer": {"aliases": ["the man", "a", "An old man!"]}}],
    "lambada": [{"text": " He sat on the  road. "}, {"text": "the old man"}],
}
CHOICE_TASKS = ("hellaswag", "winogrande", "social_iqa", "piqa")
STORY = ["Al ran.", "He fell.", "It hurt.", "He sat.", "He left."]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with every data set."""
    folder = tmp_path_factory.mktemp("data")
    for name, rows in ROWS.items():
        (folder / name).mkdir()
        split = "test" if name == "lambada" else "validation"
        (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    path = tmp_path_factory.mktemp("stories") / "stories.jsonl"
    path.write_text("".join(json.dumps({"sentences": STORY, "id": n}) + "\n" for n in range(1001)))
    return path


def asked(name: str, row: dict) -> tuple[str, list[list[str]]]:
    """What stands before the choices, and the strings of each."""
    if name == "hellaswag":
        return "Sun: A man sat. He", [["sat. in."], [" ran by."]]
    if name == "winogrande":
        before, after = ("The man sat as ", "was old.") if row["sentence"].startswith("The") else ("", "was old.")
        return before, [[row["option1"], after], [row["option2"], after]]
    if name == "social_iqa":
        return "Question: He sat. Why?\nAnswer: ", [["a"], ["so"], ["old "]]
    return "Question: Eat it\nAnswer: ", [[" on steps"], [" a road"]]


def test_losses_are_those_of_the_source_weights_in_pytorch(worded_folder, data, capsys, tmp_path):
    export_model(find(worded_folder), tmp_path / "model", "llama")
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")

    def loss(given: str, pieces: list[str]) -> float:
        known = tokenizer.encode(given) or [network.config.bos_token_id]
        ids = known + [token for piece in pieces for token in tokenizer.encode(piece, add_special_tokens=False)]
        logits = network(torch.tensor([ids])).logits[0, len(known) - 1 : -1]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[len(known) :])).item()

    words = ["evaluate", worded_folder, "--protocol", "diffullama", "--tasks", *CHOICE_TASKS, "--data", data, "--batch", 2]
    found = answer(capsys, *words, "--out", tmp_path / "out")
    for name in CHOICE_TASKS:
        first, *rows = [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        assert first["protocol"]["name"] == "diffullama"
        right = []
        for row in rows:
            source = ROWS[name][int(row["id"].split(":")[1])]
            given, choices = asked(name, source)
            losses = [loss(given, pieces) for pieces in choices]
            assert row["losses"] == pytest.approx(losses, abs=1e-4)
            label = int(source.get("label", source.get("answer"))) - (name in ("winogrande", "social_iqa"))
            right.append(losses.index(min(losses)) == label)
        assert len(rows) == len(ROWS[name])
        figures = found["tasks"][name]["tables"][name]["ar"]
        assert figures["accuracy"]["value"] == pytest.approx(sum(right) / len(right))


def test_strings_around_a_blank_have_the_tokens_that_they_have_alone(worded):
    """And a blank those of the third sentence, of the longest alias, or those that the last word adds."""
    codec = worded.codec
    alone = {text: tuple(codec.encode(text)) for text in ("Al ran. He fell.", "It hurt.", "He sat. He left.", "An old man!")}
    story = diffullama.BLANKS["stories"].ask({"sentences": STORY}, codec)
    assert (story.before, story.after, story.answers) == ("Al ran. He fell.", "He sat. He left.", ("It hurt.",))
    assert story.tokens == len(alone["It hurt."])
    document = lay_out((story.before, by_itself(story.after, codec)), [[7] * story.tokens], codec)
    head = () if codec.start is None else (codec.start,)
    blank = (7,) * story.tokens
    assert document.tokens == (*head, *alone["Al ran. He fell."], *blank, *alone["He sat. He left."])

    question = diffullama.BLANKS["triviaqa"].ask(ROWS["triviaqa"][0], codec)
    assert (question.before, question.tokens) == ("Question: Who sat??\nAnswer: ", len(alone["An old man!"]))
    word = diffullama.BLANKS["lambada"].ask(ROWS["lambada"][0], codec)
    assert (word.before, word.answers) == ("He sat on the", ("road.",))
    assert word.tokens == len(codec.encode("He sat on the  road.")) - len(codec.encode("He sat on the"))


@pytest.mark.long
def test_tokens_are_drawn_as_the_script_draws_them(model_folder, tmp_path, capsys):
    """From PyTorch's logits over 0.9, of which the most probable that reach 0.9 are kept: a blank of one byte, 600 times."""
    export_model(find(model_folder), tmp_path / "model", "llama")
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    (tmp_path / "triviaqa").mkdir()
    rows = [{"question": "Who", "answer": {"aliases": ["A"]}}] * 600
    (tmp_path / "triviaqa/validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["evaluate", model_folder, "--protocol", "diffullama", "--tasks", "triviaqa", "--data", tmp_path]
    answer(capsys, *words, "--batch", 200, "--out", tmp_path / "out")
    texts = [json.loads(line)["text"] for line in (tmp_path / "out/triviaqa.jsonl").read_text().splitlines()[1:]]

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    logits = network(torch.tensor([tokenizer.encode("Question: Who?\nAnswer: ")])).logits[0, -1, :256]
    falling, tokens = torch.softmax(logits / 0.9, -1).sort(descending=True)
    kept = falling * (falling.cumsum(0) - falling <= 0.9)
    expected = Counter()
    for token, probability in zip(tokens.tolist(), (kept / kept.sum()).tolist()):
        expected[tokenizer.decode([token])] += probability
    found = Counter(texts)
    assert all(expected[text] > 0 for text in found), {t: found[t] for t in found if not expected[t] > 0}
    for text, probability in expected.items():
        spread = (probability * (1 - probability) / len(texts)) ** 0.5
        assert found[text] / len(texts) == pytest.approx(probability, abs=4.5 * spread)


@pytest.mark.parametrize(
    ("name", "text", "answers", "right"),
    [
        ("triviaqa", " it was THE old-man, I say", ("no", "Oldman"), 1.0),
        ("triviaqa", "an old", ("the", "old man"), 0.0),  # of the first nothing is left to be found
        ("lambada", " road.\n", ("road.",), 1.0),
        ("lambada", "road", ("road.",), 0.0),
        ("lambada", "roads.", ("road.",), 0.0),
    ],
)
def test_when_an_answer_is_right(name, text, answers, right):
    assert diffullama.BLANKS[name].judge(text, answers) == {"accuracy": right}


def test_how_blanks_are_drawn(model_folder, data, stories, capsys, monkeypatch, tmp_path):
    seen = []

    def note(model, requests, batch):
        seen.extend(request.decoding for request in requests)
        return [SimpleNamespace(blanks=[SimpleNamespace(text="It hurt.")])] * len(requests)

    monkeypatch.setattr("a3jax.evaluate.drawn.fill", note)
    words = ["evaluate", model_folder, "--protocol", "diffullama", "--data", data, "--stories", stories, "--limit", 9999]
    found = answer(capsys, *words, "--tasks", "stories")
    assert found["tasks"]["stories"]["items"] == 1000 == len({decoding.seed for decoding in seen})
    assert found["tasks"]["stories"]["data"]["of"] == 1001
    assert found["tasks"]["stories"]["tables"]["stories"]["dynamic"]["ROUGE-1"]["value"] == 100
    told = found["tasks"]["stories"]["protocol"]["decoding"]
    assert (told["temperature"], told["top_p"], told["steps"]) == (0.9, 0.9, 32)
    assert {(one.temperature, one.top_p, one.mode, one.commit, one.threshold) for one in seen} == {
        (0.9, 0.9, "dynamic", 1, 0.0)
    }
    seen.clear()
    answer(capsys, *words, "--tasks", "lambada", "triviaqa", "--order", "random_2")
    assert [(one.temperature, one.top_p, one.mode, one.order) for one in seen] == [
        (1.0, 0.9, "groups", "random_2"),
        (1.0, 0.9, "groups", "random_2"),
        (0.9, 0.9, "groups", "random_2"),
    ]


def test_a_long_blank_takes_no_more_than_so_many_passes():
    theirs = diffullama.Pace(diffullama.DEFAULTS.checked(mode="dynamic", threshold=0.0, commit=1), 32)
    for tokens, commit in ((1, 1), (32, 1), (33, 2), (100, 4)):
        decoding = theirs.of(tokens, 5)
        assert (decoding.commit, decoding.seed) == (commit, 5)
        assert decoding.window >= tokens  # every open place is looked at


@pytest.mark.long
def test_the_same_twice(model_folder, data, stories, tmp_path):
    words = ["evaluate", model_folder, "--protocol", "diffullama", "--tasks", "lambada", "triviaqa", "stories", "--limit", 2]
    words += ["--data", data, "--stories", stories, "--batch", 2, "--out"]
    run(*words, tmp_path / "one")
    run(*words, tmp_path / "two")
    for name in ("lambada.jsonl", "triviaqa.jsonl", "stories.jsonl", "results.json", "report.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "one" / "stories.jsonl").read_text().splitlines()[1:]]
    assert len({row["text"] for row in rows}) == 2  # of the same story, each with a seed of its own


def test_what_cannot_be(model_folder, data, stories, capsys, tmp_path):
    words = ["evaluate", model_folder, "--data", data, "--tasks"]
    assert "protocol harness has no task lambada; it has likelihood" in fails(capsys, *words, "lambada")
    words[2:2] = ["--protocol", "diffullama"]
    assert "protocol diffullama has no task code; it has hellaswag" in fails(capsys, *words, "code")
    assert "leave --mode dynamic out" in fails(capsys, *words, "piqa", "--mode", "dynamic")
    expected = "draws triviaqa with temperature 0.9 and top-p 0.9; leave --temperature out"
    assert expected in fails(capsys, *words, "triviaqa", "--temperature", 1)
    assert "name their file with --stories" in fails(capsys, *words, "stories")
    assert "lambada needs --data" in fails(capsys, *words[:-3], "--tasks", "lambada")
    assert "needs --judge" in fails(capsys, *words, "continuation")

    words[words.index(data)] = tmp_path
    own = tmp_path / "lambada"
    own.mkdir()
    assert f"{own} has no test split; its files are called test*.jsonl" in fails(capsys, *words, "lambada")
    plain = own / "lambada_test_plain_text.txt"
    plain.write_text("he sat .\n\nalone\n")
    assert f"{plain}:3: 'text' has no word before its last one" in fails(capsys, *words, "lambada")
    plain.write_text("he sat .\n" + "so " * 64)
    assert f"{plain}:2: " in fails(capsys, *words, "lambada")
    found = answer(capsys, *words, "lambada", "--skip-bad", "--batch", 2)
    assert found["tasks"]["lambada"]["data"]["left_out"] == {"longer than the context, or empty": 1}
    (own / "test.jsonl").write_text('{"text": "a b"}\n')
    assert "has the test split twice" in fails(capsys, *words, "lambada")
