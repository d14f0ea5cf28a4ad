"""The model a3 against lm-evaluation-harness's own Hugging Face backend on the same weights, and tasks on local data."""

import dataclasses
import json
import logging
import math
from collections import Counter

import lm_eval
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from chosen import long_after
from flax import nnx
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from typed import answer, fails

import a3jax
from a3jax.checkpoint.folder import find
from a3jax.evaluate import continuations
from a3jax.evaluate.continuations import Choice, seed_of, shared
from a3jax.evaluate.harness import A3
from a3jax.evaluate.local_data import read_rows
from a3jax.evaluate.questions import Questions, harness_task
from a3jax.export.exporter import export_model

ENDINGS = ["runs.", "eats [title] it.", "is.", "sees a big dog."]
ROWS = {
    "hellaswag": [
        {
            "activity_label": "Roof",
            "ctx_a": f"A man sits {n}.",
            "ctx_b": "he",
            "endings": ENDINGS,
            "label": str(n % 4),
            "ind": n,
        }
        for n in range(5)
    ],
    "winogrande": [
        {"sentence": "The cup is in the box as _ is small.", "option1": "cup", "option2": "the box", "answer": str(1 + n % 2)}
        for n in range(3)
    ],
    "social_iqa": [
        {"context": f"Al ran {n}.", "question": "Why?", "answerA": "a", "answerB": "so", "answerC": "hm ", "label": "2"}
        for n in range(3)
    ],
    "piqa": [{"goal": f"Eat {n}", "sol1": "use a fork", "sol2": "use mud", "label": n % 2} for n in range(3)],
    "triviaqa": [{"question": "Who", "answer": {"aliases": ["Al", "Bo!"], "value": "Al"}} for n in range(3)],
}
SUBSETS = {"winogrande": "winogrande_xl", "triviaqa": "rc.nocontext"}
CHOICE_TASKS = ("hellaswag", "winogrande", "social_iqa", "piqa")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with every data set, one of them in Parquet."""
    folder = tmp_path_factory.mktemp("data")
    for name, rows in ROWS.items():
        own = folder / name / SUBSETS.get(name, "data")
        own.mkdir(parents=True)
        (own / "test.jsonl").write_text("not of this split")
        if name == "piqa":
            pq.write_table(pa.Table.from_pylist(rows), own / "validation-00000-of-00001.parquet")
        else:
            (own / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def theirs(model_folder, tmp_path_factory):
    """The harness's backend with the same weights."""
    out = tmp_path_factory.mktemp("exported") / "model"
    export_model(find(model_folder), out, "llama")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return HFLM(pretrained=str(out), device="cpu", dtype="float32", batch_size=2)


def requests(*pairs: tuple[int, str, str]) -> list[Instance]:
    return [
        Instance("loglikelihood", {}, (context, continuation), i, ("t", doc, 1))
        for i, (doc, context, continuation) in enumerate(pairs)
    ]


PAIRS = requests(
    (0, "The cat sat on", " the mat."),
    (0, "The cat sat on", " a dog."),
    (1, "Q: what ", "spaces"),  # which end a context go to what follows
    (1, "Q: what  ", "spaces"),
    (2, "", "no context"),
    (2, "", "nor here"),
    (3, "The trophy", " is big"),
    (3, "The suitcase", " is big"),
    (4, "ä" * 17, "€" * 10),
    (4, "x" * 32, "y" * 32),  # with the start token 65, of which 64 are read
)


def test_log_likelihoods_are_those_of_the_hugging_face_backend(model, theirs):
    ours = A3(model, batch_size=2)
    expected = theirs.loglikelihood(PAIRS, disable_tqdm=True)
    found = ours.loglikelihood(PAIRS)
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    text = "def area(r): return 3 * r\n" * 8
    ids = ours.tok_encode("The cat sat")
    best = int(theirs.model(torch.tensor([ids])).logits[0, -1].argmax())
    (found,) = continuations.score(ours.model, [[Choice((*ids, token), len(ids)) for token in (best, best - 1)]], batch=2)
    assert [one.greedy for one in found] == [True, False]
    rolling = [Instance("loglikelihood_rolling", {}, (text[:n],), 0, ("t", n, 1)) for n in (1, 63, 64, 65, 200)]
    expected = theirs.loglikelihood_rolling(rolling, disable_tqdm=True)
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(expected, abs=1e-3)
    with_start = A3(model, batch_size=2, add_bos_token=True).loglikelihood(PAIRS[:2])
    expected = [a3jax.log_likelihood(model, f"{r.args[0]}[[1]]", blanks=[r.args[1]]).total for r in PAIRS[:2]]
    assert [nats for nats, _ in with_start] == pytest.approx(expected, abs=1e-3)


def test_a_continuation_inside_the_tokens_of_its_context_is_scored_all_the_same(worded):
    """A part of a word may have more tokens than the word."""
    ours, codec = A3(worded, batch_size=2), worded.codec
    text = "The sun had set behind the hills, and the village was quiet."
    cuts = [(text[:begin], text[begin:end]) for end in range(2, len(text) + 1) for begin in range(1, end)]
    swallowed = [
        (context, rest)
        for context, rest in cuts
        if len(ours.tok_encode(context + rest)) <= len(ours.tok_encode(context)) and not context.endswith(" ")
    ]
    assert swallowed
    for context, rest in swallowed[:3]:
        ((nats, _),) = ours.loglikelihood(requests((0, context, rest)))
        tokens, given = [*ours.tok_encode(context), *codec.encode(rest, inside=True)], len(ours.tok_encode(context))
        known = [i < given for i in range(len(tokens))]
        assert nats == pytest.approx(a3jax.token_log_likelihood(worded, tokens, known).total, abs=1e-4)
        assert nats < -0.1


def test_nothing_is_never_scored(worded):
    ours = A3(worded, batch_size=2)
    prefix = worded.codec.tokenizer.id_to_token(ours.prefix_token_id)
    ((nats, _),) = ours.loglikelihood(requests((0, "", prefix)))
    assert nats < -0.1  # the token that stands before a text without context is not the text itself
    for context in ("Hello", ""):
        with pytest.raises(a3jax.UserError, match="a continuation is empty; there is nothing to score"):
            ours.loglikelihood(requests((0, context, "")))
    with pytest.raises(a3jax.UserError, match="no token to score"):
        continuations.score(worded, [[Choice((1, 2), 2)]])


def test_every_kind_of_tokenizer_scores_as_the_hugging_face_backend(worded, worded_folder, tmp_path):
    export_model(find(worded_folder), tmp_path / "model", "llama")
    theirs = HFLM(pretrained=str(tmp_path / "model"), device="cpu", dtype="float32", batch_size=2)
    asked = [one for one in PAIRS if all(map(str.isascii, one.args)) and "y" not in one.args[1]]
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    found = A3(worded, batch_size=2).loglikelihood(asked)
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-3)


def asks(*how: dict) -> list[Instance]:
    return [Instance("generate_until", {}, ("The cat sat", one), 0, ("t", i, 1)) for i, one in enumerate(how)]


def test_text_is_written_as_the_task_says(model):
    ours = A3(model, batch_size=1, max_gen_toks=8)
    drawn = {"do_sample": True, "temperature": 1.0, "top_p": 0.9}
    whole, same, *sampled = ours.generate_until(asks({}, {"until": ["never"]}, drawn, drawn))
    infilled = a3jax.infill(ours.model, "The cat sat[[8]]", ends=True)
    assert whole == same == infilled.blanks[0].text
    assert sampled[0] == sampled[1] != whole
    stop = whole[3]
    assert ours.generate_until(asks({"until": stop})) == [whole[: whole.index(stop)]]
    with pytest.raises(a3jax.UserError, match="asks for num_beams"):
        ours.generate_until(asks({"num_beams": 2}))


@pytest.mark.parametrize(("order", "adapter_rank"), long_after(1, [("in_order_2", 3), ("random_2", 0), ("in_order_4", 0)]))
def test_any_order_is_that_of_teacher_forcing_whatever_the_batch(model, order, adapter_rank, network):
    if adapter_rank:
        net = network(dataclasses.replace(model.config, adapter_rank=adapter_rank))
        model = dataclasses.replace(model, config=net.config, params=nnx.state(net, nnx.Param))
    ours = A3(model, order=order, seed=3, batch_size=3)
    asked = PAIRS[:8]
    found = ours.loglikelihood(asked)
    assert ours.loglikelihood(asked) == found
    for choice, (nats, _) in zip(map(ours.choice, asked), found):
        given = [i < choice.given for i in range(len(choice.tokens))]
        expected = a3jax.token_log_likelihood(ours.model, choice.tokens, given, order=order, seed=seed_of(3, choice))
        assert nats == pytest.approx(expected.total, abs=1e-4)
    alone = [A3(model, order=order, seed=3, batch_size=1).loglikelihood([one])[0] for one in asked[::6]]
    assert [one for one, _ in alone] == pytest.approx([one for one, _ in found[::6]], abs=1e-4)


def test_what_choices_share_is_read_once_and_nothing_is_compiled_twice(model):
    items = [[Choice((*b"what was", *end), 8) for end in (b" it", b" that, then")] for _ in range(2)]
    assert shared(items[0]) == 7  # the last token of a context predicts the first of each choice
    assert shared([Choice((1, 2, 3, 4), 3), Choice((1, 5, 3, 4), 3)]) == 1
    continuations.score(model, items, batch=2)
    compiled = continuations._scores._cache_size()
    continuations.score(model, [[Choice((*b"and who else", *end), 12) for end in (b"?", b" was it, no")]], batch=2)
    assert continuations._scores._cache_size() == compiled
    with pytest.raises(a3jax.UserError, match="66 tokens are more than the 65"):
        continuations.score(model, [[Choice((1,) * 66, 2)]])


@pytest.mark.long
def test_tasks_are_the_harness_s_own(model, theirs, data, model_folder, capsys, tmp_path):
    words = ["evaluate", model_folder, "--tasks", *CHOICE_TASKS, "--data", data]
    found = answer(capsys, *words, "--batch", 2, "--out", tmp_path / "out")
    assert answer(capsys, *words, "--batch", 2, "--out", tmp_path / "out") == found
    tasks = [harness_task(name, [row.value for row in read_rows(data, name, False, Counter())]) for name in CHOICE_TASKS]
    expected = lm_eval.simple_evaluate(theirs, tasks=tasks, bootstrap_iters=10, log_samples=True)
    piqa = harness_task("piqa", [row.value for row in read_rows(data, "piqa", False, Counter())])
    named = lm_eval.simple_evaluate("a3", f"checkpoint={model_folder},order=ar", [piqa], batch_size=2, bootstrap_iters=0)
    assert named["results"]["piqa"]["acc,none"] == expected["results"]["piqa"]["acc,none"]
    for name in CHOICE_TASKS:
        figures = found["tasks"][name]["tables"][name]["ar"]
        assert figures.keys() == ({"acc", "acc_norm"} if name in ("hellaswag", "piqa") else {"acc"})
        for metric, one in figures.items():
            assert one["value"] == pytest.approx(expected["results"][name][f"{metric},none"])
            assert one["error"] == pytest.approx(expected["results"][name][f"{metric}_stderr,none"])
        rows = [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()[1:]]
        samples = {sample["doc_id"]: sample["resps"] for sample in expected["samples"][name]}
        for row in rows:
            each = [one for ((one, _),) in samples[int(row["id"].split(":")[1])]]
            assert [nats for nats, _ in row["answers"]] == pytest.approx(each, abs=1e-3)


def test_short_answers(model, data):
    rows = read_rows(data, "triviaqa", False, Counter())
    asked = Questions("triviaqa", A3(model, max_gen_toks=8), "here", rows, Counter(), limit=2)
    assert asked.items[0].content == [
        ("Question: Who?\nAnswer:", {"until": ["\n", ".", ","], "do_sample": False, "temperature": 0.0})
    ]
    for text, right in ((" bo", 1.0), ("Bo! ", 1.0), ("Boo", 0.0)):
        asked._model.generate_until = lambda requests, text=text: [text] * len(requests)
        found = asked.evaluate(asked.items, 2)
        assert [row["figures"]["triviaqa"]["ar"]["exact_match"] for row in found] == [(right, 1)] * 2
    del asked._model.generate_until
    (first, second) = asked.evaluate(asked.items, 2)
    assert first["answers"] == second["answers"]
    with pytest.raises(a3jax.UserError, match=r"validation.jsonl:1: .* 279 tokens, the model's context only 64; pass over"):
        Questions("triviaqa", A3(model), "here", rows, Counter())
    left_out: Counter[str] = Counter()
    assert Questions("triviaqa", A3(model), "here", rows, left_out, skip_bad=True).items == []
    assert left_out == {"longer than the context": 3}


def test_questions_in_a_chat_are_asked_as_the_harness_asks_them(model, theirs, data, monkeypatch):
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    files = model.codec.files | {"chat_template.jinja": template.encode()}
    ours = A3(dataclasses.replace(model, codec=dataclasses.replace(model.codec, files=files)))
    monkeypatch.setattr(theirs.tokenizer, "chat_template", template)
    rows = read_rows(data, "piqa", False, Counter())
    asked = Questions("piqa", ours, "here", rows, Counter(), limit=2, chat=True)
    task = harness_task("piqa", [row.value for row in rows[:2]])
    task.build_all_requests(apply_chat_template=True, chat_template=theirs.apply_chat_template)
    assert [one for item in asked.items for one in item.content] == [request.args for request in task.instances]
    assert "<user>" in asked.items[0].content[0][0]
    history = [{"role": "user", "content": "Eat "}, {"role": "assistant", "content": " use "}]
    assert ours.apply_chat_template(history, False) == theirs.apply_chat_template(history, False)
    with pytest.raises(a3jax.UserError, match="has no chat template"):
        Questions("piqa", A3(model), "here", rows, Counter(), chat=True)


def test_mistakes_in_data(model_folder, data, capsys, tmp_path):
    words = ["evaluate", model_folder, "--tasks", "winogrande"]
    assert "needs --data" in fails(capsys, *words)
    assert "has no folder 'winogrande'" in fails(capsys, *words, "--data", tmp_path)
    own = tmp_path / "winogrande"
    own.mkdir()
    assert f"{own} has no validation split" in fails(capsys, *words, "--data", tmp_path)
    file = own / "validation.jsonl"
    good = ROWS["winogrande"][0]
    for bad, expected in [
        ('{"sentence"', ":2 is not JSON"),
        (json.dumps({**good, "sentence": "no blank"}), ":2: 'sentence' has no _"),
        (json.dumps({**good, "answer": ""}), ":2: 'answer' is ''; it must be one of 1, 2"),
        (json.dumps({"sentence": "_"}), ":2: has no 'option1'; winogrande needs sentence, option1"),
    ]:
        file.write_text(f"{json.dumps(good)}\n{bad}\n")
        assert f"{file}{expected}" in fails(capsys, *words, "--data", tmp_path)
    found = answer(capsys, *words, "--data", tmp_path, "--skip-bad", "--batch", 2)
    assert found["tasks"]["winogrande"]["data"]["left_out"] == {"broken line": 1}
    (own / "validation.parquet").write_bytes(b"PAR1")
    assert "has the validation split twice" in fails(capsys, *words, "--data", tmp_path)
    file.unlink()
    assert f"{own / 'validation.parquet'} cannot be read" in fails(capsys, *words, "--data", tmp_path)
    assert "leave --mode dynamic out" in fails(capsys, *words, "--data", data, "--mode", "dynamic")


def test_perplexity_under_a_judge(model, model_folder, theirs, capsys, tmp_path):
    texts = [f"def area{n}(r):\n    return {n} * r\n" for n in range(3)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, "short"]))
    judge = theirs.model.config._name_or_path
    words = ["evaluate", model_folder, "--tasks", "continuation", "--text", tmp_path / "texts.jsonl", "--judge", judge]
    words += ["--prompt-tokens", 12, "--new-tokens", 10, "--batch", 2, "--out", tmp_path / "out", "--temperature", 1]
    found = answer(capsys, *words)
    assert found["models"].keys() == {"model", "baseline", "judge"}
    assert found["tasks"]["continuation"]["data"]["left_out"] == {"shorter than 22 tokens": 1}
    figures = found["tasks"]["continuation"]["tables"]["continuation"]
    true = [a3jax.log_likelihood(model, f"{text[:12]}[[10]]", blanks=[text[12:22]]) for text in texts]
    nats = -sum(one.total for one in true) / 30
    assert figures["true"]["nats per token"]["value"] == pytest.approx(nats, abs=1e-3)
    assert figures["true"]["perplexity"]["value"] == pytest.approx(math.exp(nats), rel=1e-3)
    error = figures["true"]["perplexity"]["error"] / figures["true"]["perplexity"]["value"]
    assert error == pytest.approx(figures["true"]["nats per token"]["error"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "continuation.jsonl").read_text().splitlines()[1:]]
    for row in rows:
        scored = a3jax.log_likelihood(model, f"{row['prompt']}[[10]]", blanks=[row["text"]])
        assert row["figures"]["continuation"]["written"]["perplexity"] == pytest.approx(
            [-scored.total, len(scored.tokens)], rel=1e-4
        )
    assert answer(capsys, *words) == found
    assert "needs --judge" in fails(capsys, "evaluate", model_folder, "--tasks", "continuation")
    assert "leave --ends" in fails(capsys, *words[:-4], "--ends")
    assert "--new-tokens is 0" in fails(capsys, *words[:8], "--new-tokens", 0)
    assert "the model's context only 64" in fails(capsys, *words[:8], "--new-tokens", 60)
