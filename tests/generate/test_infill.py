"""The Python interface on a model folder of a tiny random model with the byte tokenizer."""

import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest
from chosen import long_after

import a3jax
from a3jax.data.tokenizer import byte_codec
from a3jax.decode import groups
from a3jax.errors import UserError
from a3jax.generate import filling
from a3jax.likelihood import scoring

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


def test_sizes_may_be_numpys_numbers(model):
    assert len(a3jax.infill(model, a3jax.Template(("x", ""), (np.int64(3),)), heal=False).blanks[0].tokens) == 3


def test_the_longest_template_fits(model):
    filled = a3jax.infill(model, f"ab [[{model.config.context - 4}]]", order="random_1000")
    assert filled.forwards == 1
    assert len(filled.tokens) == model.config.context


def test_without_a_start_token(model):
    codec = dataclasses.replace(model.codec, start=None)
    bare = dataclasses.replace(model, codec=codec)
    for stands_in, changes in [(256, {}), (257, {"bos": None})]:  # where there must be something, its own or the end token
        other = dataclasses.replace(model, codec=dataclasses.replace(codec, **changes))
        for filled in (a3jax.infill(other, "[[2]] a"), *a3jax.complete(other, [""], 2)):
            assert filled.tokens[:1] == (stands_in,)
            assert filled.given[:2] == (True, False)
    neither = dataclasses.replace(model, codec=dataclasses.replace(codec, bos=None, end=None))
    with pytest.raises(UserError, match="no token to stand before it; give some text first"):
        a3jax.infill(neither, "[[2]] a")
    filled = a3jax.infill(bare, "a[[2]]")
    assert filled.text.startswith("a")
    assert a3jax.log_likelihood(bare, "area").tokens == tuple(b_ids("rea"))


@pytest.mark.parametrize(
    "options",
    long_after(
        3,
        [
            {"mode": "dynamic", "threshold": 0.01},
            {"order": "random_4", "prefill": "group"},
            {"mode": "speculative", "order": "random_1", "prefill": "group"},
            {"order": "ar", "prefill": "group"},
            {"mode": "dynamic", "prefill": "group", "certainty": "margin", "threshold": 0.0, "commit": 3},
        ],
    ),
)
def test_every_mode_has_the_density_of_its_passes(model, options):
    filled = a3jax.infill(model, TEMPLATE, seed=7, temperature=1.0, **options)
    how = {"prefill": options.get("prefill", "ar")}
    how |= {"order": "random_1", "seed": 7} if options.get("mode") == "speculative" else {"groups": filled.passes}
    score = a3jax.token_log_likelihood(model, filled.tokens, filled.given, **how)
    assert score.total == pytest.approx(filled.log_prob, abs=1e-4)
    np.testing.assert_allclose(
        [x for x, known in zip(filled.log_probs, filled.given) if not known], score.log_probs, atol=1e-4
    )
    other = a3jax.token_log_likelihood(model, filled.tokens, filled.given, **{**how, "prefill": "ar"})
    assert how["prefill"] == "ar" or other.total != pytest.approx(score.total, abs=1e-3)


def test_modes_agree_where_they_mean_the_same(model):
    expected = a3jax.infill(model, TEMPLATE)
    for options in ({"mode": "ar"}, {"mode": "speculative"}, {"order": "in_order_1"}):
        filled = a3jax.infill(model, TEMPLATE, **options)
        assert filled.tokens == expected.tokens
        assert filled.forwards <= expected.forwards
    one_by_one = a3jax.infill(model, TEMPLATE, mode="dynamic", threshold=0, commit=1, window=1)
    assert one_by_one.tokens == expected.tokens


def test_completion_stops_at_an_end_token(model):
    long = a3jax.complete(model, ["def area(r): "], tokens=24, temperature=1.0, seed=3)[0]
    assert (long.finished, len(long.tokens)) == ("length", 1 + 13 + 24)
    ends = dataclasses.replace(model, config=dataclasses.replace(model.config, end_tokens=(long.tokens[20],)))
    short = a3jax.complete(ends, ["def area(r): "], tokens=24, temperature=1.0, seed=3)[0]
    first = long.tokens.index(long.tokens[20], 14)
    assert short.finished == "stop"
    assert short.tokens == long.tokens[:first]
    assert short.forwards <= first - 14 + 1
    assert short.text == "".join(text for text, _ in short.pieces)


@pytest.mark.parametrize("mode", long_after(1, ["dynamic", "ar", "speculative"]))
def test_completion_stops_before_a_string(model, mode):
    options = {"tokens": 24, "temperature": 1.0, "seed": 3, "mode": mode}
    long = a3jax.complete(model, ["def area(r): "], **options)[0]
    stop = long.blanks[0].text[5:7]
    short = a3jax.complete(model, ["def area(r): "], stop=("nowhere", stop), **options)[0]
    written = long.blanks[0].text
    assert short.finished == "stop"
    assert short.blanks[0].text == written[: written.index(stop)]
    assert short.text == "def area(r): " + short.blanks[0].text
    assert short.tokens == long.tokens[: len(short.tokens)]
    assert "".join(text for text, _ in short.pieces) == short.text
    other = a3jax.complete(model, ["def area(r): ", "x"], stop=(stop,), **options)
    assert other[0].text == short.text  # the other sequence goes on, and this one is cut all the same


def test_end_tokens_stand_only_where_a_text_may_end(model):
    texts = [a3jax.Template(("a", ""), (40,)), a3jax.Template(("a", ""), (40,))]
    decodings = [a3jax.Decoding(temperature=50.0, seed=1, ends=ends) for ends in (False, True)]
    closed, open_ = a3jax.infill_batch(model, texts, decodings)
    assert len(closed.tokens) == 42
    ends = np.flatnonzero(np.asarray(filling._allowed(model, decodings)).any(0) & ~np.asarray(model.fillable))
    assert ends.tolist() == [257]
    assert not {*closed.tokens, *open_.tokens} & {*ends.tolist()}


@pytest.mark.long
def test_a_length_is_chosen_by_likelihood(model):
    template = "def area(r): [[3-12]] * r  # [[2]]\n"
    chosen = a3jax.infill(model, template, order="random_2", seed=5)
    scores = {}
    for length in range(3, 13):
        filled = a3jax.infill(model, template.replace("3-12", str(length)), order="random_2", seed=5)
        seen = [i < 14 for i in range(len(filled.tokens))]  # the blank and all that follows it are scored
        score = a3jax.token_log_likelihood(model, filled.tokens, seen)
        scores[length] = (score.total / len(score.tokens), filled)
    best = max(scores.values(), key=lambda pair: pair[0])[1]
    assert chosen.tokens == best.tokens
    assert len({round(score, 3) for score, _ in scores.values()}) > 5


def test_a_revision_makes_the_text_more_likely(model):
    options = {"order": "random_8", "temperature": 1.0, "seed": 2}
    before = a3jax.infill(model, TEMPLATE, **options)
    likelihood = a3jax.token_log_likelihood(model, before.tokens, before.given).total
    seen = []
    after = a3jax.infill_batch(model, [TEMPLATE], observe=lambda texts: seen.append(texts[0]), revise=3, **options)[0]
    score = a3jax.token_log_likelihood(model, after.tokens, after.given)
    assert score.total > likelihood
    assert after.log_prob == pytest.approx(score.total, abs=1e-4)
    assert after.given == before.given
    assert [t for t, known in zip(after.tokens, after.given) if known] == [
        t for t, known in zip(before.tokens, before.given) if known
    ]
    assert max(after.passes) > max(before.passes)
    assert len(seen) > max(before.passes)


def test_observers_see_every_pass(model):
    seen = []
    filled = a3jax.infill_batch(model, [TEMPLATE], observe=lambda texts: seen.append(texts[0]), order="random_4")[0]
    assert len(seen) == filled.forwards
    for number, text in enumerate(seen, 1):
        decided = np.array(filled.passes) <= number
        np.testing.assert_array_equal(text.passes >= 0, decided)
        np.testing.assert_array_equal(text.tokens[decided], np.array(filled.tokens)[decided])


def test_a_batch_may_differ_in_all_but_its_program(model):
    each = [a3jax.Decoding(order=f"{family}_4", seed=i, temperature=i / 2) for i, family in enumerate(["random", "in_order"])]
    batch = a3jax.infill_batch(model, [TEMPLATE, "[[9]] else"], each)
    for template, decoding, filled in zip([TEMPLATE, "[[9]] else"], each, batch):
        assert filled.tokens == a3jax.infill(model, template, decoding).tokens
    with pytest.raises(UserError, match="differ in mode"):
        a3jax.infill_batch(model, ["[[2]]", "[[2]]"], [a3jax.Decoding(order="random_2"), a3jax.Decoding(order="random_4")])


@pytest.mark.parametrize(
    "options", long_after(1, [{"mode": "dynamic"}, {"revise": 1, "order": "random_4"}, {}, {"order": "random_2"}])
)
def test_given_text_comes_back_with_every_kind_of_tokenizer(worded, options):
    templates = ["ab[[2]]cd", " the[[3]] hills[[1]][[2]]\u00e9\u4e2d [[1]]", "[[2]] of a circle", "a [[1-3]]b"]
    for i, template in enumerate(templates):
        filled = a3jax.infill(worded, template, temperature=1.5, seed=i, **options)
        given = [text for text, is_filled in filled.pieces if not is_filled]
        assert given == list(a3jax.Template(tuple(re.split(r"\[\[[^]]*\]\]", template)), (1,) * (len(given) - 1)).pieces)
        assert filled.text == "".join(text for text, _ in filled.pieces)
        for blank, place in zip(filled.blanks, filled.places[1::2]):
            assert filled.tokens[place] == blank.tokens
        assert all(allowed_V[filled.tokens[place]] for place, allowed_V in filled.allowed.items())
        assert filled.places[0].start == (worded.codec.start is not None or template.startswith("[["))


def test_a_model_begins_its_documents_as_its_tokenizer_does(worded):
    start = [] if worded.codec.start is None else [worded.codec.start]
    (filled,) = a3jax.complete(worded, ["The sun"], 3, heal=False)
    assert list(filled.tokens[:-3]) == start + worded.codec.encode("The sun")
    scored = a3jax.log_likelihood(worded, "The sun had set")
    assert list(scored.tokens) == (start + worded.codec.encode("The sun had set"))[1:]
    for empty in a3jax.complete(worded, [""], 3), [a3jax.infill(worded, "[[3]]")]:
        assert empty[0].tokens[0] == worded.config.start_token
        assert empty[0].given == (True, False, False, False)


def test_a_model_is_one_line_and_a_filled_text_shows_itself_in_a_notebook(model, model_folder):
    assert repr(model).startswith(f"<a3jax.Model {model_folder}: llama, 2 layers of width 16, ")
    assert len(repr(model)) < 300
    filled = a3jax.infill(model, "<b> [[2]] & c")
    page = filled._repr_html_()
    assert "&lt;b&gt; <mark" in page
    assert page.endswith("</mark> &amp; c</pre>")
