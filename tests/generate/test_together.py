"""Texts that come and go between passes: each is filled as if alone, whatever joins when, and nothing is compiled twice."""

import dataclasses

import numpy as np
import pytest
from chosen import long_after

import a3jax
from a3jax.decode import dynamic, groups, joining
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Open, Template, parse
from a3jax.generate.filling import Tokens
from a3jax.generate.together import Together

WORDS = "the quick brown fox jumps over a lazy dog, twice; and so on, until nobody listens any more to what it says"


def prompt(rng, **how):
    """A text that is continued, from a few characters or many."""
    begin = int(rng.integers(len(WORDS) - 1))
    template = Template((WORDS[begin : begin + int(rng.integers(1, 40))], ""), (int(rng.integers(1, 16)),))
    return template, Decoding(**{"ends": True, "seed": int(rng.integers(99)), "temperature": 1.0, **how})


def blanks(rng, count=2, **how):
    """A text with blanks of different sizes."""
    pieces = [WORDS[begin : begin + 9] for begin in rng.integers(0, 90, count + 1).tolist()]
    template = Template(tuple(pieces), tuple(rng.integers(1, 14, count).tolist()))
    return template, Decoding(**{"seed": int(rng.integers(99)), "temperature": 1.0, **how})


def together(model, texts, rng, most=4, every=3, left=()):
    """What became of texts that joined at random moments, and the passes. Those of numbers `left` leave on their way."""
    running, found, gone, waiting = Together(model, most), {}, set(), list(enumerate(texts))
    while len(found) + len(gone) < len(texts):
        if waiting and running.has_room(waiting[0][1][1]) and rng.integers(every) == 0:
            number, text = waiting.pop(0)
            running.join(number, *text)
        running.advance()
        for number, new in running.news().items():
            if not isinstance(new, Tokens):
                found[number] = new
            elif number in left:
                running.leave(number)
                gone.add(number)
    running.advance()
    assert running.news() == {}
    return found, running.passes


def check(model, text, one):
    if isinstance(one, Exception):
        raise one
    alone = a3jax.infill(model, *text)
    assert (one.tokens, one.text, one.finished, one.passes) == (alone.tokens, alone.text, alone.finished, alone.passes)
    np.testing.assert_allclose(one.log_probs, alone.log_probs, atol=1e-4)


KINDS = {
    "orders": lambda rng: blanks(rng, order=str(rng.choice(["random_4", "spans_4", "in_order_4", "right_to_left_4"]))),
    "continued": lambda rng: prompt(rng, top_p=0.9, stop=("e", "st")),
    "dynamic": lambda rng: blanks(rng, mode="dynamic", threshold=float(rng.choice([0.05, 0.5])), window=8, commit=4),
    "by chance": lambda rng: blanks(rng, mode="dynamic", certainty="random", threshold=0, window=8, commit=2),
    "speculative": lambda rng: prompt(rng, mode="speculative", drafts=3),
    "speculative by text": lambda rng: prompt(rng, mode="speculative", drafts=3, drafter="text"),
    "resample": lambda rng: blanks(rng, mode="resample", commit=3),
    "healed": lambda rng: blanks(rng, count=int(rng.integers(1, 3)), heal=True, repetition_penalty=1.2),
    "open": lambda rng: (parse(rng.choice(["ab[[..9]]cd", "a[[..3]]b[[..5]]c"])), Decoding(seed=int(rng.integers(9)))),
    "revised": lambda rng: blanks(rng, revise=2),
    "sizes": lambda rng: (parse("ab[[2-4]]cd"), Decoding(seed=int(rng.integers(9)), temperature=1.0)),
}


@pytest.mark.parametrize("kind", long_after(1, KINDS))
def test_who_joins_is_filled_as_if_alone(kind, model):
    rng = np.random.default_rng(len(kind))
    texts = [KINDS[kind](rng) for _ in range(9)]
    found, passes = together(model, texts, rng)
    for number, text in enumerate(texts):
        check(model, text, found[number])
    assert passes < sum(one.forwards for one in found.values())


MASKED = {"objective": "diffusion", "mask_block": 0}
LEARNED = {
    "diffusion": (MASKED, lambda rng: blanks(rng, mode="diffusion", steps=int(rng.choice([3, 5])))),
    "remasked": (MASKED, lambda rng: blanks(rng, mode="diffusion", steps=6, remask=1)),
    "block_diffusion": (
        {"objective": "block_diffusion", "mask_block": 4},
        lambda rng: blanks(rng, mode="block_diffusion", steps=2, block=4),
    ),
    "fim": (
        {"objective": "fim", "fim_tokens": (70, 71, 72)},
        lambda rng: (
            Template((WORDS[: int(rng.integers(1, 30))], "cd"), (Open(int(rng.integers(2, 12))),)),
            Decoding(mode="fim", seed=int(rng.integers(99)), temperature=1.0, heal=False),
        ),
    ),
}
"""Of models of other objectives: what they record, and how they are asked."""


@pytest.mark.long
@pytest.mark.parametrize("kind", LEARNED)
def test_models_of_other_objectives_are_joined_too(kind, model):
    record, ask = LEARNED[kind]
    learned = dataclasses.replace(model, record=dataclasses.replace(model.record, **record))
    rng = np.random.default_rng(len(kind))
    texts = [ask(rng) for _ in range(9)]
    found, passes = together(learned, texts, rng)
    for number, text in enumerate(texts):
        check(learned, text, found[number])
    assert passes < sum(one.forwards for one in found.values())


@pytest.mark.long
def test_texts_of_all_kinds_take_turns(model):
    rng = np.random.default_rng(1)
    texts = [kind(rng) for kind in KINDS.values() for _ in range(2)]
    rng.shuffle(texts)
    found, _ = together(model, texts, rng, most=5, left=(3, 8))
    for number, one in found.items():
        check(model, texts[number], one)


def test_no_pass_is_compiled_once_all_sizes_were_seen(model):
    """And what moves rows, for each step from one size to the next at most."""

    def compiled():
        return [f._cache_size() for f in (groups.decode_group, dynamic.decode_certain, joining._put, joining._laid)]

    def text(given, tokens):
        return Template((WORDS[:given], ""), (tokens,)), Decoding(seed=given)

    rng = np.random.default_rng(2)
    short, long, passing = text(5, 14), text(40, 14), text(40, 3)
    # As many as there is room for, each size by itself; and one that is longer, for a while, among one, two and three.
    for texts in ([short] * 4, [text(25, 14)] + [long] * 4, *([short] * n + [passing] for n in (1, 2, 3))):
        together(model, texts, rng, most=4, every=1)
    before = compiled()
    texts = [prompt(rng, temperature=float(rng.integers(2)), ends=False) for _ in range(20)]
    together(model, texts, rng, most=4, left=(2, 5))
    passes, certain, put, laid = np.subtract(compiled(), before)
    sizes = 3 * 2  # one, two or four rows of 32 or 64 slots
    assert (passes, certain) == (0, 0)
    assert put <= sizes
    assert laid <= 4 * sizes


def test_a_batch_has_no_more_rows_than_it_may_and_gives_them_back(model):
    running = Together(model, 3)
    text = Template(("a", ""), (20,)), Decoding(seed=1)
    other = Template(("a", ""), (20,)), Decoding(seed=1, order="random_4")
    for number in range(2):
        running.join(number, *text)
    running.advance()
    assert running.has_room(text[1])
    assert running.has_room(other[1])
    running.join(2, *other)
    assert not running.has_room(text[1])
    running.leave(0)
    running.advance()  # the first batch has halved
    assert running.has_room(text[1])
    assert running.has_room(other[1])


def test_a_text_that_fails_fails_alone(model, monkeypatch):
    broken = dataclasses.replace(model)
    real = joining.Batch.advance

    def advance(self):
        if len(self.names) > 1:
            raise RuntimeError("out of memory")
        return real(self)

    monkeypatch.setattr(joining.Batch, "advance", advance)
    texts = [(Template((letter, ""), (5,)), Decoding(seed=1)) for letter in "abc"]
    found, _ = together(broken, texts, np.random.default_rng(0), every=1)
    for number, text in enumerate(texts):
        check(model, text, found[number])
    (none,) = together(model, [(Template(("a" * 5000, ""), (5,)), Decoding())], np.random.default_rng(0))[0].values()
    assert isinstance(none, a3jax.UserError)
