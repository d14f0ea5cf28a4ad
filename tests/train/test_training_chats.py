"""Chats in training: the loss on responses is that of transformers, packed or not; a run knows the template it learned."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from chosen import long_after
from flax import nnx
from pretrained_models import imported, pretrained  # noqa: F401, fixtures
from small_models import load

import a3jax
from a3jax.checkpoint.folder import load_params
from a3jax.config import AdaptConfig, Config, DataConfig, FimConfig, Stage, TrainConfig
from a3jax.data.chat_template import FILE
from a3jax.data.pipeline import Batches, open_corpora
from a3jax.data.preparation import Preparation
from a3jax.data.prepare import prepare
from a3jax.errors import UserError
from a3jax.likelihood.forward import predict
from a3jax.model.parameters import graph
from a3jax.model.two_stream import Compute
from a3jax.ordering import draw_order, example_keys
from a3jax.train.loop import train
from a3jax.train.metrics import read
from a3jax.train.objectives.any_order import AnyOrder

TEMPLATE = """{{ bos_token }}{% for message in messages %}{{ '<' + message.role + '>' }}{% if message.role == 'assistant' %}
{% generation %}{{ message.content + eos_token }}{% endgeneration %}
{% else %}{{ message.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""


def chat(rng: np.random.Generator, turns: int) -> list[dict]:
    said = ["".join(rng.choice(list("abc é"), rng.integers(1, 12))) for _ in range(2 * turns)]
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """Twelve chats of one to three turns, and the file that holds them."""
    rng = np.random.default_rng(0)
    made = [chat(rng, 1 + i % 3) for i in range(12)]
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in made))
    return made, path


@pytest.mark.parametrize("packing", long_after(1, ["best_fit", "truncate"]))
def test_the_loss_on_responses_is_that_of_transformers(packing, chats, pretrained, imported, tmp_path):  # noqa: F811
    import transformers

    messages, path = chats
    folder = pretrained("llama")
    (tmp_path / "mine.jinja").write_text(TEMPLATE)
    how = Preparation(str(folder), chat=("messages",), chat_template=str(tmp_path / "mine.jinja"), held_out=0.0, workers=1)
    prepare([path], tmp_path / "corpus", how)

    tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), load(folder)
    total = count = 0
    for each in messages:
        out = tokenizer.apply_chat_template(
            each, chat_template=TEMPLATE, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        labels = torch.where(out["assistant_masks"].bool(), out["input_ids"], -100)
        with torch.no_grad():
            total += float(model(out["input_ids"], labels=labels).loss) * int((labels >= 0).sum())
        count += int((labels >= 0).sum())

    data = DataConfig(str(tmp_path / "corpus"), length=160, batch=1, packing=packing)
    batches = Batches(open_corpora(data), data, 1, 0)
    windows = len(batches.packings[0])
    batch = Batches(open_corpora(data), dataclasses.replace(data, batch=windows), 1, 0)[0]
    checkpoint = imported("llama")
    params, keys = load_params(checkpoint), example_keys(0, 0, windows)
    sums = AnyOrder(checkpoint.config, Stage(1, "in_order", 1), Compute(), 40).sums(params, batch, keys)
    assert int(sums.tokens) == count
    assert float(sums.loss) / count == pytest.approx(total / count, abs=1e-4)
    order = draw_order(keys, batch["segments"], "in_order", 1, 0.0, "successor")
    both = predict(nnx.merge(graph(checkpoint.config), params), batch["tokens"], order, Compute()).nll_sum(40)
    assert float(both) / count == pytest.approx(total / count, abs=1e-4)


@pytest.mark.long
def test_a_run_on_chats_knows_their_template_and_ends_its_answers(chats, model_folder, tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    for path in model_folder.iterdir():
        (source / path.name).symlink_to(path)
    (source / FILE).write_text(TEMPLATE.replace("eos_token", "'<|start|>'"))  # an end of turns that the model did not have
    config = Config(
        "chats",
        source=str(source),
        run=str(tmp_path / "run"),
        data=DataConfig(str(chats[1]), length=48, batch=2, packing="best_fit", chat=("messages",)),
        curriculum=(Stage(2, "random", 4),),
        adapt=AdaptConfig(rank=2),
        train=TrainConfig(compute_dtype="float32", remat="none", eval_every=9, save_every=9),
    )
    train(config)
    model = a3jax.load(tmp_path / "run")
    assert model.config.end_tokens == (257, 256)
    prompt = "<|start|><user>ab<assistant>"
    filled = a3jax.chat(model, [{"role": "user", "content": "ab"}], tokens=5, temperature=1.0)
    assert filled.tokens[: len(model.codec.encode(prompt))] == tuple(model.codec.encode(prompt))
    (plain,) = a3jax.complete(model, [prompt.removeprefix("<|start|>")], 5, temperature=1.0)
    assert filled.blanks == plain.blanks  # this model begins documents as its template does
    assert filled.tokens == plain.tokens
    stage, weights = (Stage(2),), AdaptConfig(rank=0)
    fim = {"objective": "fim", "fim": FimConfig(tokens=(1, 2, 3)), "curriculum": stage, "adapt": weights}
    with pytest.raises(UserError, match=r"holds chats, which objective fim would rearrange"):
        train(dataclasses.replace(config, run=str(tmp_path / "fim"), **fim))
    with pytest.raises(UserError, match=r"holds chats, of which order open cannot draw its blanks"):
        train(dataclasses.replace(config, run=str(tmp_path / "open"), curriculum=(Stage(2, "open", 1, slack=4),)))


def test_prompts_that_fill_every_window_are_no_perfect_prediction(tmp_path, model_folder, capsys):
    """Held-out text of which nothing is predicted has no likelihood, nor has a step any loss."""
    path = tmp_path / "chats.jsonl"
    said = [[{"role": "user", "content": f"{i} " * 70}, {"role": "assistant", "content": "yes"}] for i in range(20)]
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in said))
    (tmp_path / "mine.jinja").write_text(TEMPLATE)
    config = Config(
        name="long",
        run=str(tmp_path / "run"),
        source=str(model_folder),
        data=DataConfig(str(tmp_path / "corpus"), length=64, batch=2, packing="truncate"),
        curriculum=(Stage(2, "random", 4),),
        train=TrainConfig(compute_dtype="float32", eval_windows=4),
    )
    for held_out in (0.5, 0.0):
        shutil.rmtree(tmp_path / "corpus", ignore_errors=True)
        how = Preparation(
            "bytes", chat=("messages",), chat_template=str(tmp_path / "mine.jinja"), held_out=held_out, workers=1
        )
        prepare([path], tmp_path / "corpus", how)
        if held_out:
            with pytest.raises(UserError, match=r"in windows of data.length 64 all held-out text is given: the prompts"):
                train(config)
    assert train(config).loss is None
    assert [row["loss"] for row in read(config.run_folder) if "loss" in row] == [None, None]
    assert "step 1 had nothing to learn" in capsys.readouterr().err
