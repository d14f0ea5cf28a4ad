"""What a run changes, and what it leaves bit for bit."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from chosen import long_after
from flax import nnx
from test_step import batch, experiment, fresh, mesh  # noqa: F401, two of them fixtures

from a3jax.config import AdaptConfig, OptimizerConfig, settled
from a3jax.curriculum.stage import Stage
from a3jax.errors import UserError
from a3jax.model.parameters import shapes
from a3jax.train.state import init_state, random_params
from a3jax.train.step import make_step
from a3jax.train.trained import changes, trained_model


def names(tree) -> set[str]:
    return {str(path[-1]) for path, _ in nnx.to_flat_state(tree)}


CASES = {
    "all": (AdaptConfig(), {}, None),
    "without embeddings and norms": (
        AdaptConfig(frozen=("embeddings", "norms", "query_seed")),
        {},
        {"query", "key", "value", "output", "gate", "up", "down"},
    ),
    "adapters of the query stream": (
        AdaptConfig(rank=2),
        {"adapter_rank": 2},
        {f"{name}_{side}" for name in ("query", "output", "gate", "up", "down") for side in ("in", "out")} | {"query_seed"},
    ),
    "adapters of both": (
        AdaptConfig(frozen=("query_seed",), rank=2, stream="both"),
        {"adapter_rank": 2, "adapter_stream": "both"},
        {f"{name}_{side}" for name in ("query", "key", "value", "output", "gate", "up", "down") for side in ("in", "out")},
    ),
}


@pytest.mark.parametrize(
    ("case", "accumulate"),
    long_after(2, dict.fromkeys([("all", 2), ("adapters of the query stream", 1), *itertools.product(CASES, [1, 2])])),
)
def test_two_steps_change_what_they_are_to_change_and_nothing_else(case, accumulate, tiny, batch, mesh):  # noqa: F811
    adapt, adapters, expected = CASES[case]
    config = experiment(tiny(layers=2), accumulate)
    config = dataclasses.replace(
        config, adapt=adapt, model=trained_model(dataclasses.replace(config, adapt=adapt), config.model)
    )
    assert config.model == tiny(layers=2, **adapters)
    state = fresh(config, mesh)
    before = jax.tree.map(np.asarray, dict(nnx.to_flat_state(state.params)))
    moments = {
        path[-1].key
        for path, _ in jax.tree_util.tree_leaves_with_path(state.optimizer)
        for path in [path[:-1]]
        if path and hasattr(path[-1], "key")
    }
    with jax.set_mesh(mesh):
        step = make_step(config, config.model, config.curriculum[0], mesh)
        for _ in range(2):  # the second factor of an adapter is zero at first, and so is the first one's gradient
            state, metrics = step(state, batch)
    assert np.isfinite(metrics.loss)
    after = dict(nnx.to_flat_state(state.params))
    moved = {str(path[-1]) for path in before if (np.asarray(after[path][...]) != before[path][...]).any()}
    everything = {str(path[-1]) for path in before}
    assert moved == (everything if expected is None else expected)
    assert moments == moved


@pytest.mark.long
def test_weight_decay_acts_on_what_an_adaptation_trains_by_default(tiny, batch, mesh):  # noqa: F811
    """The decay is decoupled: the same step with and without it differs by lr x weight decay x the parameter."""
    after = {}
    for decay in (0.0, 0.1):
        config = dataclasses.replace(experiment(tiny(layers=2)), source="models/source")
        optimizer = dataclasses.replace(config.optimizer, weight_decay=decay, schedule="constant")
        model = dataclasses.replace(trained_model(config, config.model), adapter_rank=2)
        config = dataclasses.replace(config, model=model, optimizer=optimizer)
        state = fresh(config, mesh)
        before = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state.params)}
        with jax.set_mesh(mesh):
            state, _ = make_step(config, model, config.curriculum[0], mesh)(state, batch)
        after[decay] = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state.params)}
    decaying = {f"{name}_in" for name in ("query", "output", "gate", "up", "down")}  # the other factors are zero at first
    for path, old in before.items():
        moved = after[0.1][path] - after[0.0][path]
        expected = -1e-2 * 0.1 * old if path[-1] in decaying else np.zeros_like(old)
        np.testing.assert_allclose(moved, expected, atol=1e-7, err_msg=str(path))
        assert np.abs(expected).max() > 1e-5 or path[-1] not in decaying


def gradient_norm(config, mesh, batch, source, stage):  # noqa: F811
    """Of the first step of a model that starts as its source."""
    with jax.set_mesh(mesh):
        params, teacher = (jax.tree.map(jax.numpy.copy, source) for _ in range(2))
        state = init_state(config, params, config.model, mesh)._replace(teacher=teacher)
        _, metrics = make_step(config, config.model, stage, mesh)(state, batch)
    return float(metrics.gradient_norm)


@pytest.mark.long
@pytest.mark.parametrize("stage", [Stage(1), Stage(1, "in_order", 1, prefix=0.5)], ids=["one stream", "two streams"])
def test_a_model_has_nothing_to_learn_from_itself(stage, tiny, batch, mesh):  # noqa: F811
    """From left to right the source's own distribution is matched from the first step; the tokens themselves are not."""
    config = experiment(tiny(layers=2))
    source = random_params(config, config.model, mesh)
    norms = {}
    for share in (1e-9, 1.0):
        config = dataclasses.replace(config, adapt=AdaptConfig(distill=share))
        norms[share] = gradient_norm(config, mesh, batch, source, stage)
    assert norms[1.0] < 1e-4 * norms[1e-9]
    other = gradient_norm(config, mesh, batch, source, Stage(1, "random", 4))
    assert other > 1e-2 * norms[1e-9], "in another order it has"


def test_a_source_gets_adapters_unless_all_weights_are_to_be_trained(tiny):
    fresh, adapted = experiment(tiny()), dataclasses.replace(experiment(tiny()), source="models/source")
    assert trained_model(fresh, tiny()) == tiny()
    assert trained_model(adapted, tiny()) == tiny(adapter_rank=64, adapter_stream="query")
    whole = dataclasses.replace(adapted, adapt=AdaptConfig(rank=0))
    assert trained_model(whole, tiny()) == tiny()
    rates = [
        settled(dataclasses.replace(one, optimizer=OptimizerConfig())).optimizer.peak_lr for one in (fresh, adapted, whole)
    ]
    assert rates == [2e-5, 2e-4, 2e-5]
    with pytest.raises(UserError, match=r"adapt.rank is 0 \(query\), but the source has adapters of rank 2 \(both\)"):
        trained_model(whole, tiny(adapter_rank=2, adapter_stream="both"))


def test_a_stage_that_adapters_learn_nothing_from_is_refused(tiny):
    stages = Stage(0), Stage(1, "random", 4), Stage(1, "in_order", 1)
    config = dataclasses.replace(experiment(tiny()), source="models/source", curriculum=stages)
    with pytest.raises(UserError, match=r"curriculum.2 \(in_order_1\) would train nothing: .* adapt.rank 0"):
        trained_model(config, tiny())
    for other in (AdaptConfig(rank=0), AdaptConfig(stream="both")):
        trained_model(dataclasses.replace(config, adapt=other), tiny())
    trained_model(config, tiny(seeding="learned"))


def test_unknown_names_and_nothing_left_are_refused(tiny):
    with pytest.raises(UserError, match=r"adapt.frozen names 'embeding', .* did you mean 'embedd"):
        changes(AdaptConfig(frozen=("embeding",)), tiny())
    with pytest.raises(UserError, match="names all parameters"):
        changes(AdaptConfig(frozen=tuple(names(shapes(tiny())))), tiny())
    with pytest.raises(UserError, match=r"adapt.frozen names 'norms', but only adapters are trained; give adapt.rank 0"):
        changes(AdaptConfig(frozen=("norms",)), tiny(adapter_rank=2))


def test_adapters_of_the_source_are_kept_and_others_refused(tiny):
    config, source = experiment(tiny()), tiny(adapter_rank=2)
    assert trained_model(config, source) == source
    with pytest.raises(UserError, match=r"adapt.rank is 4 \(query\), but the source has adapters of rank 2 \(query\)"):
        trained_model(dataclasses.replace(config, adapt=AdaptConfig(rank=4)), source)
