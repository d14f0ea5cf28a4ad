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
def acts(monkeypatch):
    """All that is done with texts, by name: who joins, who leaves, and every pass; and what is called before a pass."""
    seen, names, look = [], {}, []

    class Noted(batching.Told):
        def join(self, number, template, decoding):
            names[number] = template.pieces[0]
            seen.append(f"+{names[number]}")
            super().join(number, template, decoding)

        def leave(self, number):
            seen.append(f"-{names[number]}")
            super().leave(number)

        def advance(self):
            if self._texts:
                seen.append("pass")
                for one in look:
                    one()
            super().advance()

    monkeypatch.setattr(batching, "Told", Noted)
    return seen, look


def test_texts_that_come_while_others_are_filled_join_them_and_each_is_as_if_alone(model, acts):
    texts = [
        prompt("one", tokens=30, seed=1),
        prompt("two, longer", tokens=11, seed=5, temperature=0.5, top_k=9),
        Text(Template(("three", "four"), (7,)), Decoding(seed=2, temperature=1.0, order="in_order_1")),
    ]

    async def clients(batcher):
        return await asyncio.gather(*[result for text in texts for result in batcher.submit([text])])

    filled, batcher = using(model, clients)
    first = ["+.", "+one", "pass", "+two, longer", "pass", "+three"]
    assert acts[0][:6] == first, "first come, first served, one between two passes"
    assert set(acts[0][6:]) == {"pass"}
    assert (batcher.texts, batcher.warm) == (3, True)
    assert batcher.passes == max(one.forwards for one in filled) - 1
    for text, one in zip(texts, filled):
        alone = a3jax.infill(model, text.template, text.decoding)
        assert (one.tokens, one.text, one.finished) == (alone.tokens, alone.text, alone.finished)
        assert one.log_prob == pytest.approx(alone.log_prob, abs=1e-4)


def test_who_finds_no_room_waits_and_is_not_overtaken(model, acts):
    texts = [prompt(f"{i}", tokens=12 if i else 3, ends=False, mode="ar" if i % 2 else "groups") for i in range(5)]

    async def client(batcher):
        return await asyncio.gather(*batcher.submit(texts))

    filled, _ = using(model, client, max_batch=2)
    joined = [act for act in acts[0] if act != "pass"]
    assert joined == ["+.", "+0", "+1", "+2", "+3", "+4"]
    begin = acts[0].index("+0")
    assert acts[0][begin : begin + 5] == ["+0", "pass", "+1", "pass", "+2"], "the first is done after three passes, one alone"
    assert [one.tokens for one in filled] == [a3jax.infill(model, *text).tokens for text in texts]


def test_a_text_that_cannot_be_filled_fails_alone(model):
    async def client(batcher):
        bad = Text(Template(("bad" * 5000, ""), (6,)), Decoding())
        outcomes = await asyncio.gather(*batcher.submit([prompt("a"), bad, prompt("b")]), return_exceptions=True)
        return outcomes, await asyncio.gather(*batcher.submit([prompt("c")]))

    ((first, failed, last), (later,)), _ = using(model, client)
    assert isinstance(failed, a3jax.UserError)
    assert [first.tokens, last.tokens, later.tokens] == [a3jax.infill(model, *prompt(x)).tokens for x in "abc"]


def test_who_goes_away_is_dropped_and_leaves_its_row(model, acts):
    seen, look = acts
    gone, passes = threading.Event(), []
    look.append(lambda: gone.wait(60))

    async def client(batcher):
        begun = asyncio.Event()

        def watch(i, tokens):
            passes.append(int(tokens.passes.max()))
            begun.set()

        (running,) = batcher.submit([prompt("running", ends=False)], watch)
        await begun.wait()
        waiting, staying = batcher.submit([prompt("waiting"), prompt("staying")])
        running.cancel()
        waiting.cancel()
        gone.set()
        return await staying

    using(model, client, max_batch=1)
    assert [act for act in seen if act != "pass"] == ["+.", "+running", "-running", "+staying"]
    assert max(passes) < 6


def test_a_full_queue_and_the_end(model, acts):
    started, going = threading.Event(), threading.Event()
    acts[1].append(lambda: (started.set(), going.wait(60)))

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


def test_warming_up_leaves_no_text_on_its_way(worded):
    """Whatever longer tokens there are for what it fills behind."""
    batcher = Batcher(worded, Limits())
    batcher._warm_up()
    batcher._together.advance()
    assert batcher.warm
    assert batcher.passes == 0
