"""Chats: what the corpus gives is context, and no answer sees a later question, whichever order is drawn."""

import jax
import numpy as np
import pytest

from a3jax.curriculum.stage import Part
from a3jax.ordering import draw_mixture, example_keys
from a3jax.ordering.sequence import left_to_right

# Two chats and padding: a question of 3, an answer of 4, a question of 2, an answer of 5; an answer alone after 1, of 6.
TURN = np.array([1] * 7 + [2] * 7 + [3] * 7 + [0] * 3)
CONTEXT = np.array([1] * 3 + [0] * 4 + [1] * 2 + [0] * 5 + [0] * 7 + [0] * 3, bool)
DOCUMENT = np.array([1] * 14 + [2] * 7 + [0] * 3)
SEGMENTS = (DOCUMENT * np.where(CONTEXT, -1, 1)).astype(np.int32)[None]
DRAWS = 40


@pytest.mark.parametrize("name", ["ar", "in_order_3", "random_2", "right_to_left_2", "spans_2", "infill_2"])
def test_an_answer_sees_its_own_question_and_all_turns_before_it_and_nothing_later(name):
    part = Part.named(name)
    drawn = draw_mixture(example_keys(0, 0, DRAWS), np.repeat(SEGMENTS, DRAWS, 0), (part,), "successor")
    blanks = set()
    for order in (jax.tree.map(lambda x, i=i: np.asarray(x[i]), drawn) for i in range(DRAWS)):
        answers = np.flatnonzero(~CONTEXT & (TURN > 0) & (np.diff(DOCUMENT, prepend=0) == 0))
        predicted = np.sort(order.token_index[order.predicted])
        assert set(predicted) <= set(answers)
        if part.family != "infill":
            assert set(predicted) == set(answers)
        for slot in np.flatnonzero(DOCUMENT[order.token_index]):
            token, seen = (
                order.token_index[slot],
                set(order.token_index[order.start[slot] : order.group_start[slot]].tolist()),
            )
            before = {t for t in range(24) if DOCUMENT[t] == DOCUMENT[token] and TURN[t] < TURN[token]}
            own = {t for t in range(24) if TURN[t] == TURN[token]}
            assert before <= seen <= before | own - {token}
            if order.predicted[slot]:
                assert {t for t in own if CONTEXT[t]} <= seen
                assert order.predecessor[slot] == (token - 1 if token - 1 in seen else -1)
        blanks.add(tuple(predicted))
    if name == "ar":
        assert left_to_right(jax.tree.map(lambda x: np.asarray(x[0]), drawn), 21)
    if part.family == "infill":  # a span of every answer, which is never empty
        assert len(blanks) > 10
        for turn, least in ((1, 3), (2, 9), (3, 15)):
            assert all(any(TURN[t] == turn and t >= least for t in blank) for blank in blanks)
