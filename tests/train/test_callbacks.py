"""Who looks on at a run: metrics as values, evaluations with the model as it is, saves, and texts that are filled."""

import dataclasses
import json
import re

import pytest

import a3jax
from a3jax.config import Stage
from a3jax.train.callbacks import Samples
from a3jax.train.metrics import last_evaluation


class Onlooker(a3jax.Callback):
    def __init__(self):
        self.lines, self.models, self.kept = [], {}, []

    def metrics(self, values):
        self.lines.append(values)

    def evaluated(self, step, nll, model):
        score = a3jax.log_likelihood(model, "one two")
        self.models[step] = nll, score.total, repr(model)

    def saved(self, step, run):
        self.kept.append(step)


def test_a_sample_that_cannot_be_filled_is_refused_before_the_first_step(experiment):
    for sample, message in {"no blank": "the text has no blank", "a [[0]]": r"\[\[0\]\]"}.items():
        config = experiment(sample=sample)
        with pytest.raises(a3jax.UserError, match=message):
            a3jax.fit(config)
        assert not config.run_folder.exists()


@pytest.mark.parametrize(("sample", "objective"), [("a [[..4]] b", "a3"), ("a [[..4]] b", "diffusion"), ("a [[4]] b", "a3")])
def test_what_is_sampled_can_be_filled(experiment, sample, objective):
    """Every decoding of a sample is one that its blanks and its model allow."""
    config = experiment()
    if objective != "a3":
        config = dataclasses.replace(config, objective=objective, curriculum=(Stage(8),))
    seen = Samples(config, sample)
    decoding = a3jax.Decoding(**seen._how)
    assert decoding.fills_to_ends or "[[4]]" in sample
    assert decoding.objective in (None, objective)


@pytest.mark.long
def test_callbacks_see_what_is_written_the_model_of_each_evaluation_and_saves(experiment, capsys):
    onlooker = Onlooker()
    config = experiment(sample="one [[3]] two")
    summary = a3jax.fit(config, callbacks=[onlooker])
    told = capsys.readouterr().err
    lines = [json.loads(line) for line in (config.run_folder / "metrics.jsonl").read_text().splitlines()]
    assert onlooker.lines == lines
    assert list(onlooker.models) == [0, 4, 8]
    assert onlooker.kept == [3, 6, 8]
    assert summary.nll_step == 8 == last_evaluation(config.run_folder).step
    assert onlooker.models[8][0] == summary.nll
    trained = a3jax.load(summary.run)
    assert onlooker.models[8][1] == pytest.approx(a3jax.log_likelihood(trained, "one two").total, abs=1e-4)
    assert onlooker.models[0][1] != onlooker.models[4][1]
    assert "\n" not in onlooker.models[0][2]
    filled = a3jax.infill(trained, "one [[3]] two", order="random_1")
    samples = re.findall(r"^step (\d+): one ⟦(.*)⟧ two$", told, re.M)
    assert [int(step) for step, _ in samples] == [0, 4, 8]
    assert samples[-1][1] == filled.blanks[0].text
    for word in ("drawing weights", "a3jax: train: 0 of 8 steps; evaluating", "; compiling "):
        assert word in told
