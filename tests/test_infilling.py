"""The Python interface on a model folder of a tiny random model with the byte tokenizer."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

import a3jax
from a3jax import scoring
from a3jax.data.tokenizer import byte_codec
from a3jax.decode import groups
from a3jax.errors import UserError

TEMPLATE = "def area(r): [[8]] * r  # [[5]]\n"


def test_importing_the_package_does_not_import_jax():
    code = "import sys, a3jax; assert 'jax' not in sys.modules; assert 'infill' in dir(a3jax)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        a3jax.nothing  # noqa: B018


def test_load(model_folder, model):
    assert model.config.vocab == 300
    assert model.record.source == "random"
    assert model.checkpoint.folder == model_folder
    half = a3jax.load(model_folder, dtype="bfloat16")
    assert half.params["embedding"][...].dtype == "bfloat16"
    with pytest.raises(UserError, match="dtype 'float16' is unknown"):
        a3jax.load(model_folder, dtype="float16")
    with pytest.raises(UserError, match="does not exist"):
        a3jax.load(model_folder / "nothing")


@pytest.mark.parametrize("order", ["ar", "random_4"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_infill(model, order, temperature):
    filled = a3jax.infill(model, TEMPLATE, order=order, seed=3, temperature=temperature)
    assert [len(blank.tokens) for blank in filled.blanks] == [8, 5]
    assert filled.tokens[0] == 256
    assert filled.tokens[1:] == (*b_ids("def area(r): "), *filled.blanks[0].tokens, *b_ids(" * r  # "),
                                 *filled.blanks[1].tokens, *b_ids("\n"))  # fmt: skip
    assert all(token < 256 for token in filled.tokens[1:])
    assert filled.forwards == (13 if order == "ar" else 4)
    assert filled.text == "".join(text for text, _ in filled.pieces)
    assert [is_filled for _, is_filled in filled.pieces] == [False, True, False, True, False]
    assert filled.text.startswith("def area(r): ")
    assert filled.text.endswith("\n")
    again = a3jax.infill(model, TEMPLATE, order=order, seed=3, temperature=temperature)
    assert dataclasses.replace(again, seconds=0) == dataclasses.replace(filled, seconds=0)
    if temperature:
        assert a3jax.infill(model, TEMPLATE, order=order, seed=4, temperature=temperature).text != filled.text


def b_ids(text):
    return byte_codec().encode(text)


@pytest.mark.parametrize("order", ["ar", "in_order_4", "random_1", "random_4", "spans_4"])
def test_decoding_and_teacher_forcing_agree(model, order):
    filled = a3jax.infill(model, TEMPLATE, order=order, seed=7, temperature=1.0)
    score = a3jax.token_log_likelihood(model, filled.tokens, filled.given, order=order, seed=7)
    assert score.total == pytest.approx(filled.log_prob, abs=1e-4)
    assert score.tokens == sum((blank.tokens for blank in filled.blanks), ())
    for blank, log_probs in zip(filled.blanks, (score.log_probs[:8], score.log_probs[8:])):
        assert blank.log_prob == pytest.approx(sum(log_probs), abs=1e-4)


def test_a_batch_is_its_templates_one_by_one(model):
    templates = [TEMPLATE, "[[3]] a longer text than the other", TEMPLATE, "[[31]]"]
    batch = a3jax.infill_batch(model, templates, order="random_4", seed=1, temperature=1.0)
    for i, filled in enumerate(batch):
        alone = a3jax.infill(model, templates[i], order="random_4", seed=1 + i, temperature=1.0)
        assert filled.tokens == alone.tokens
        assert filled.log_prob == pytest.approx(alone.log_prob, abs=1e-4)


def test_a_character_may_be_filled_in_part(model):
    # Greedy bytes of a random model are no UTF-8; the given second half of a character must not be lost or doubled.
    filled = a3jax.infill(model, "ä[[4]]ö[[4]]", temperature=1.0)
    assert filled.text == "".join(text for text, _ in filled.pieces)
    assert filled.pieces[0] == ("ä", False)


def test_special_tokens_are_never_filled_in(model):
    fillable = np.asarray(model.fillable)
    assert fillable[:256].all()
    assert not fillable[256:].any()


def test_nothing_is_compiled_twice(model):
    def use(seed, text, **options):
        filled = a3jax.infill(model, text, seed=seed, **options)
        a3jax.log_likelihood(model, filled.text, order="random_4", seed=seed)

    use(0, "ab [[6]] cd", order="random_4")
    counts = [f._cache_size() for f in (groups.decode_group, scoring._log_probs)]
    use(1, "abc [[4]] cd", order="in_order_4", temperature=0.7, top_k=3, top_p=0.9)
    use(2, "[[9]]", order="spans_4", temperature=1)
    assert [f._cache_size() for f in (groups.decode_group, scoring._log_probs)] == counts


def test_log_likelihood_of_text(model):
    score = a3jax.log_likelihood(model, "area")
    assert score.tokens == tuple(b_ids("area"))
    assert score.total == pytest.approx(sum(score.log_probs), abs=1e-4)
    assert all(log_prob < 0 for log_prob in score.log_probs)
    # The chain rule over the text itself, left to right.
    parts = [a3jax.log_likelihood(model, f"{'area'[:i]}[[1]]", blanks=["area"[i]]).total for i in range(4)]
    np.testing.assert_allclose(parts, score.log_probs, atol=1e-4)
    other = a3jax.log_likelihood(model, "area", order="random_1", seed=1)
    assert other.tokens == score.tokens
    assert other.total != pytest.approx(score.total, abs=1e-3)


def test_log_likelihood_of_what_fills_a_template(model):
    filled = a3jax.infill(model, "x = [[1]]\n", order="ar")
    text = filled.blanks[0].text
    if filled.blanks[0].tokens == tuple(b_ids(text)):
        assert a3jax.log_likelihood(model, "x = [[1]]\n", blanks=[text]).total == pytest.approx(filled.log_prob, abs=1e-4)
    longer = a3jax.log_likelihood(model, "x = [[1]]\n", blanks=["y + 1"])
    assert longer.tokens == tuple(b_ids("y + 1"))


def test_bad_requests(model):
    context = model.config.context
    for call, complaint in {
        lambda: a3jax.infill(model, "plain"): "no blank",
        lambda: a3jax.infill(model, f"ab [[{context - 3}]]"): f"is {context + 1} tokens, the model's context only {context}",
        lambda: a3jax.infill(model, "[[999999]]"): "is 1000000 tokens",
        lambda: a3jax.infill(model, TEMPLATE, order="left"): "order 'left' is unknown",
        lambda: a3jax.infill(model, TEMPLATE, seed=-1): "seed is -1",
        lambda: a3jax.infill(model, TEMPLATE, temperature=-1): "temperature is -1",
        lambda: a3jax.infill_batch(model, []): "no template",
        lambda: a3jax.log_likelihood(model, ""): "nothing to score",
        lambda: a3jax.log_likelihood(model, "x" * context): f"is {context + 1} tokens",
        lambda: a3jax.log_likelihood(model, TEMPLATE, blanks=["x"]): "has 2 blanks, and 1 texts",
        lambda: a3jax.token_log_likelihood(model, [1, 2], [True]): "2 tokens but 1 marks",
        lambda: a3jax.token_log_likelihood(model, [1, 2], [False, False]): "first token of a document cannot",
        lambda: a3jax.token_log_likelihood(model, [1, 300], [True, False]): "token 300 is not in",
        lambda: a3jax.token_log_likelihood(model, [], []): "nothing to score",
    }.items():
        with pytest.raises(UserError, match=complaint):
            call()


def test_the_longest_template_fits(model):
    filled = a3jax.infill(model, f"ab [[{model.config.context - 4}]]", order="random_1000")
    assert filled.forwards == 1
    assert len(filled.tokens) == model.config.context


def test_without_a_start_token(model):
    codec = dataclasses.replace(model.codec, start=None)
    bare = dataclasses.replace(model, codec=codec)
    with pytest.raises(UserError, match="no start token"):
        a3jax.infill(bare, "[[2]] a")
    filled = a3jax.infill(bare, "a[[2]]")
    assert filled.text.startswith("a")
    assert a3jax.log_likelihood(bare, "area").tokens == tuple(b_ids("rea"))
