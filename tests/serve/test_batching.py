"""The queue and its worker, without HTTP: everyone gets what they would get alone."""

import asyncio
import threading

import pytest

import a3jax
from a3jax.decode.settings import Decoding
from a3jax.decode.template import Template
from a3jax.serve import batching
from a3jax.serve.batching import Batcher
from a3jax.serve.limits import Limits
from a3jax.serve.requests import Refused, Text


def prompt(words, tokens=6, **decoding):
    return Text(Template((words, ""), (tokens,)), Decoding(**{"ends": True, "temperature": 1.0, **decoding}))


def using(model, client, **limits):
    """What `client`, given a running batcher, returns; and the batcher."""

    async def run():
        batcher = Batcher(model, Limits(**limits))
        worker = asyncio.create_task(batcher.run())
        try:
            return await client(batcher), batcher
        finally:
            worker.cancel()

    return asyncio.run(asyncio.wait_for(run(), 120))


@pytest.fixture
def batches(monkeypatch):
    """The templates of every batch that is filled, the one that warms up aside."""
    seen = []

    def noted(model, templates, decodings, observe=None):
        if observe is not None:
            seen.append([template.pieces[0] for template in templates])
        return a3jax.infill_batch(model, templates, decodings, observe)

    monkeypatch.setattr(batching, "infill_batch", noted)
    return seen


def test_texts_that_come_together_are_filled_together_and_each_as_if_alone(model, batches):
    texts = [
        prompt("one", seed=1),
        prompt("two, longer", tokens=11, seed=5, temperature=0.5, top_k=9),
        Text(Template(("three", "four"), (7,)), Decoding(seed=2, temperature=1.0, order="in_order_1")),
    ]

    async def clients(batcher):
        return await asyncio.gather(*[result for text in texts for result in batcher.submit([text])])

    filled, batcher = using(model, clients, max_wait_ms=50)
    assert batches == [["one", "two, longer", "three", "one"]]  # padded to four
    assert (batcher.batches, batcher.texts, batcher.warm) == (1, 3, True)
    for text, one in zip(texts, filled):
        alone = a3jax.infill(model, text.template, text.decoding)
        assert (one.tokens, one.text, one.finished) == (alone.tokens, alone.text, alone.finished)
        assert one.log_prob == pytest.approx(alone.log_prob, abs=1e-4)


def test_a_batch_has_one_program_and_a_largest_size(model, batches):
    texts = [prompt(f"{i}", mode="ar" if i % 2 else "groups") for i in range(8)]

    async def client(batcher):
        return await asyncio.gather(*batcher.submit(texts))

    filled, _ = using(model, client, max_batch=3)
    assert batches == [["0", "2", "4", "0"], ["1", "3", "5", "1"], ["6"], ["7"]]
    assert [one.tokens for one in filled] == [a3jax.infill(model, *text).tokens for text in texts]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), a3jax.UserError("a mistake")])
def test_a_failing_text_fails_alone(model, monkeypatch, error):
    def failing(model, templates, decodings, observe=None):
        if any("bad" in template.pieces[0] for template in templates):
            raise error
        return a3jax.infill_batch(model, templates, decodings, observe)

    monkeypatch.setattr(batching, "infill_batch", failing)

    async def client(batcher):
        outcomes = await asyncio.gather(*batcher.submit([prompt("a"), prompt("bad"), prompt("b")]), return_exceptions=True)
        return outcomes, await asyncio.gather(*batcher.submit([prompt("c")]))

    ((first, failed, last), (later,)), _ = using(model, client)
    assert failed is error
    assert [first.tokens, last.tokens, later.tokens] == [a3jax.infill(model, *prompt(x)).tokens for x in "abc"]


def test_who_goes_away_is_dropped_and_a_batch_for_nobody_ends(model, monkeypatch):
    gone, batches, passes = threading.Event(), [], []

    def waiting_for_it(model, templates, decodings, observe=None):
        def look(texts):
            observe(texts)
            assert gone.wait(60)

        if observe is not None:
            batches.append([template.pieces[0] for template in templates])
        return a3jax.infill_batch(model, templates, decodings, look if observe else None)

    monkeypatch.setattr(batching, "infill_batch", waiting_for_it)

    async def client(batcher):
        seen = asyncio.Event()

        def watch(i, tokens):
            passes.append(int(tokens.passes.max()))
            seen.set()

        (running,) = batcher.submit([prompt("running")], watch)
        await seen.wait()
        waiting, staying = batcher.submit([prompt("waiting"), prompt("staying")])
        running.cancel()
        waiting.cancel()
        gone.set()
        return await staying

    using(model, client)
    assert batches == [["running"], ["staying"]]
    assert passes == [1]


def test_a_full_queue_and_the_end(model, monkeypatch):
    started, going = threading.Event(), threading.Event()

    def slow(model, templates, decodings, observe=None):
        if observe is not None:
            started.set()
            assert going.wait(60)
        return a3jax.infill_batch(model, templates, decodings, observe)

    monkeypatch.setattr(batching, "infill_batch", slow)

    async def client(batcher):
        (running,) = batcher.submit([prompt("running")])
        await asyncio.to_thread(started.wait)
        waiting = batcher.submit([prompt("a"), prompt("b")])
        with pytest.raises(Refused) as full:
            batcher.submit([prompt("c"), prompt("d")])
        waiting[0].cancel()  # makes room
        waiting += batcher.submit([prompt("c"), prompt("d")])
        batcher.close()
        with pytest.raises(Refused) as closed:
            batcher.submit([prompt("e")])
        going.set()
        outcomes = await asyncio.gather(*waiting[1:], return_exceptions=True)
        return await running, full.value, [*outcomes, closed.value]

    (running, full, closed), batcher = using(model, client, max_queue=3)
    assert running.finished in ("length", "stop")
    assert (full.http, full.retry_after) == (429, 1)
    assert [refused.http for refused in closed] == [503] * 4
    assert batcher.texts == 1
