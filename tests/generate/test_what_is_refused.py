"""What the Python interface refuses, each with one sentence that says why."""

import pytest

import a3jax
from a3jax.errors import UserError

TEMPLATE = "def area(r): [[8]] * r  # [[5]]\n"


def test_bad_requests(model):
    context = model.config.context
    for call, complaint in {
        lambda: a3jax.infill(model, "plain"): "no blank",
        lambda: a3jax.infill(model, f"ab [[{context - 3}]]"): f"is {context + 1} tokens, the model's context only {context}",
        lambda: a3jax.infill(model, "[[999999]]"): "is 1000000 tokens",
        lambda: a3jax.infill(model, TEMPLATE, order="left"): "order 'left' is unknown",
        lambda: a3jax.infill(model, TEMPLATE, seed=-1): "seed is -1",
        lambda: a3jax.infill(model, TEMPLATE, temperature=-1): "temperature is -1",
        lambda: a3jax.infill(model, TEMPLATE, temperature="hot"): "temperature is hot; it must be 0",
        lambda: a3jax.infill(model, TEMPLATE, temperatur=1): "decoding has no 'temperatur'; did you mean 'temperature'",
        lambda: a3jax.infill(model, 5): "a template is 5; it must be a text, or a Template",
        lambda: a3jax.infill(model, "\ud800 [[2]]"): "lone surrogate",
        lambda: a3jax.infill(model, "a [[2]]", {"mode": "ar"}): r"must be an a3jax\.Decoding",
        lambda: a3jax.Template(("a",), ()): "has no blank",
        lambda: a3jax.infill(model, a3jax.Template(("a",), (3,))): "template of 1 blanks has 1 pieces",
        lambda: a3jax.infill(model, a3jax.Template(("a", "b"), (0,))): "blank's size is 0",
        lambda: a3jax.infill(model, a3jax.Template(("a", "b"), (2.5,))): r"blank's size is 2\.5",
        lambda: a3jax.complete(model, ["a"], tokens=0): "blank's size is 0",
        lambda: a3jax.complete(model, "a", tokens=1): "prompts is a text; give a list",
        lambda: a3jax.infill_batch(model, TEMPLATE): "templates is a text; give a list",
        lambda: a3jax.log_likelihoods(model, "a"): "texts is a text; give a list",
        lambda: a3jax.infill_batch(model, []): "no template",
        lambda: a3jax.log_likelihood(model, ""): "nothing to score",
        lambda: a3jax.log_likelihood(model, "x" * context): f"is {context + 1} tokens",
        lambda: a3jax.log_likelihood(model, TEMPLATE, blanks=["x"]): "has 2 blanks, and 1 texts",
        lambda: a3jax.token_log_likelihood(model, [1, 2], [True]): "2 tokens but 1 marks",
        lambda: a3jax.token_log_likelihood(model, [1, 2], [False, False]): "first token of a document cannot",
        lambda: a3jax.token_log_likelihood(model, [1, 300], [True, False]): "token 300 is not in",
        lambda: a3jax.token_log_likelihood(model, [256, -1, 299], [True, False, False]): "token -1 is not in",
        lambda: a3jax.token_log_likelihood(model, [], []): "nothing to score",
        lambda: a3jax.log_likelihoods(model, []): "no text is given",
    }.items():
        with pytest.raises(UserError, match=complaint):
            call()


def test_contradictions(model):
    for options, complaint in {
        (("mode", "fast"),): "mode 'fast' is unknown; choose ar, groups, dynamic, resample, speculative",
        (("mode", "ar"), ("order", "random_4")): "leave order 'random_4' out",
        (("mode", "speculative"), ("order", "random_4")): "has groups of 4",
        (("mode", "dynamic"), ("order", "random_1")): "finds its own order",
        (("threshold", 0.5),): "threshold belongs to mode dynamic, and the mode is groups",
        (("mode", "dynamic"), ("drafts", 2)): "drafts belongs to mode speculative",
        (("mode", "dynamic"), ("commit", 9), ("window", 4)): "commit is 9; it must be at most the window of 4",
        (("mode", "dynamic"), ("certainty", "random")): "certainty random has no threshold",
        (("stop", ("x",)),): "stop strings are for text that is continued",
        (("ends", True), ("revise", 2)): "text that is continued is not revised",
        (("ends", True),): "text stands behind the last blank",
        (("drafts", 0), ("mode", "speculative")): "drafts is 0; it must be from 1 to 32",
        (("drafter", "text"),): "drafter belongs to mode speculative",
        (("drafter", "model"), ("mode", "speculative")): "drafter 'model' is unknown; choose both, text",
        (("threshold", 1.5), ("mode", "dynamic")): "threshold is 1.5; it must be from 0 to 1",
        (("ends", True), ("stop", ("",))): "stop is",
        (("mode", "speculative"), ("drafts", 2.5)): "drafts is 2.5; it must be a whole number",
        (("seed", True),): "seed is True; it must be a whole number",
        (("heal", "no"),): "heal is 'no'; it must be True or False",
        (("order", None),): "order is None; it must be a text",
    }.items():
        with pytest.raises(UserError, match=complaint):
            a3jax.infill(model, TEMPLATE, **dict(options))
    for call, complaint in {
        lambda: a3jax.infill(model, "a [[5-2]] b"): r"write the smaller size first, as in \[\[2-5\]\]",
        lambda: a3jax.infill(model, "a [[5-900]] b"): "the model's context only 64",
        lambda: a3jax.infill(model, "[[1]]" * 100_000): "is 100001 tokens, the model's context only 64",
        lambda: a3jax.complete(model, ["x" * 60], tokens=10): "is 71 tokens",
        lambda: a3jax.log_likelihood(model, "area", orders=0): "orders is 0",
        lambda: a3jax.log_likelihood(model, "area", orders=8): "orders is 8, but order 'ar' is the same in every draw",
        lambda: a3jax.log_likelihood(model, "area", order="in_order_2", orders=2): "'in_order_2' is the same in every",
        lambda: a3jax.token_log_likelihood(model, (256, 97), (True, False), orders=2, groups=(0, 1)): "groups are given",
        lambda: a3jax.infill_batch(model, ["[[1]]"], [a3jax.Decoding()] * 2): "1 templates but 2 decodings",
    }.items():
        with pytest.raises(UserError, match=complaint):
            call()
