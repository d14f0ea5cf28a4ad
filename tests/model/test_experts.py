"""Experts: products of sorted rows against a loop, a training step against transformers, and what is told of routers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from chosen import long_after
from flax import nnx
from small_models import load, tokens

from a3jax.checkpoint.folder import load_params
from a3jax.config import AdaptConfig, Experts, Stage
from a3jax.model import grouped
from a3jax.model.experts import Routing
from a3jax.model.parameters import shapes
from a3jax.model.two_stream import Compute
from a3jax.ordering import example_keys
from a3jax.train import routers
from a3jax.train.objectives.any_order import AnyOrder
from a3jax.weights.fused import parts
from a3jax.weights.table import entries

SIZES = {
    "one row each": [1, 1, 1, 1],
    "rows of nobody": [5, 0, 21, 6],
    "several tiles": [70, 3, 0, 55],
    "nothing at the ends": [0, 40, 17, 0],
}


@pytest.mark.parametrize(
    ("name", "native"),
    long_after(2, [*((name, False) for name in SIZES), ("rows of nobody", True)]),
)
def test_each_row_is_multiplied_with_its_own_weight(name, native, monkeypatch):
    monkeypatch.setattr(grouped, "TILE", 16)
    sizes, draw = np.array(SIZES[name]), np.random.default_rng(0)
    rows = sizes.sum() + (9 if name == "rows of nobody" else 0)
    x, weight, wanted = (jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in ((rows, 6), (4, 6, 5), (rows, 5)))
    owner = np.repeat(np.arange(4), sizes)

    def by_loop(x, weight):
        out = jnp.stack([x[i] @ weight[owner[i]] if i < len(owner) else jnp.zeros(5) for i in range(rows)])
        return (out * wanted).sum(), out

    def ours(x, weight):
        out = grouped.grouped(x, weight, jnp.asarray(sizes), native)
        return (out * wanted).sum(), out

    both = (jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True)) for f in (ours, by_loop))
    (found, out), (expected, by_one) = (compute(x, weight)[::-1] for compute in both)
    for a, b in zip((*found, out[1]), (*expected, by_one[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(
    "case", ["mixtral", *(pytest.param(case, marks=pytest.mark.long) for case in ("qwen3_moe", "olmoe", "gpt_oss"))]
)
def test_a_loss_with_balance_and_its_gradients_are_those_of_transformers(case, pretrained, imported):
    checkpoint, ids, weight = imported(case), tokens(20), 0.7
    config, batch = checkpoint.config, {"tokens": jnp.asarray(ids), "segments": jnp.ones(ids.shape, jnp.int32)}
    objective = AnyOrder(config, Stage(1), Compute(attention="dense"), 64)

    @jax.jit
    def ours(params):
        sums = objective.sums(params, batch, example_keys(0, 0, 2))
        return (sums.loss + weight * sums.routers.balance) / sums.tokens, sums.routers.balance / sums.tokens

    (loss, balance), gradients = jax.value_and_grad(ours, has_aux=True)(load_params(checkpoint))
    model = load(pretrained(case))
    model.router_aux_loss_coef = weight
    theirs = model(torch.from_numpy(ids), labels=torch.from_numpy(ids), output_router_logits=True)
    theirs.loss.backward()
    np.testing.assert_allclose(balance, theirs.aux_loss.item(), rtol=1e-5)
    np.testing.assert_allclose(loss, theirs.loss.item(), rtol=1e-5)

    split = {name: tensor.grad.numpy() for name, tensor in model.named_parameters()}
    stored = parts({name: gradient.shape for name, gradient in split.items()}, config)
    split |= {name: part.read(lambda whole, index: split[whole][index], ()) for name, part in stored.items()}
    found, tree = nnx.to_pure_dict(gradients), nnx.to_pure_dict(shapes(config))
    for entry in entries(config):
        own, shape = np.asarray(entry.get(found)), entry.get(tree).shape
        for index, name in entry.names(shape).items():
            expected = entry.to_ours(of_one_expert(split, name, config.ff_width), shape[entry.stacked :])
            np.testing.assert_allclose(own[index], expected, atol=1e-5 * max(1, np.abs(expected).max()), err_msg=name)


def of_one_expert(tensors, name, width):
    """A tensor as a folder has it; in memory transformers stacks those of experts, gate upon up."""
    if name in tensors:
        return tensors[name]
    head, experts, rest = name.replace("block_sparse_moe", "mlp").partition(".experts.")
    if not experts:
        return tensors[head]
    number, kind, _ = rest.split(".")
    if kind in ("w2", "down_proj"):
        return tensors[f"{head}.experts.down_proj"][int(number)]
    gate, up = np.split(tensors[f"{head}.experts.gate_up_proj"][int(number)], [width])
    return gate if kind in ("w1", "gate_proj") else up


def test_what_is_told_of_routers(tiny):
    did = Routing(np.array([8.0, 8.0]), np.array([[4.0, 4, 4, 4], [8, 8, 0, 0]]), np.full((2, 4), 2.0))
    assert routers.facts(did) == {"expert_busiest": 2.0, "expert_idle": 0.25}
    assert float(Routing(*map(jnp.asarray, did)).balance()) == pytest.approx(2.0)  # k, as probabilities are even


@pytest.mark.parametrize(
    ("adapt", "rank", "expected"),
    [
        (AdaptConfig(), 0, 0.02),
        (AdaptConfig(balance=0.5), 0, 0.5),
        (AdaptConfig(frozen=("router",)), 0, 0.0),
        (AdaptConfig(balance=0.5), 4, 0.0),
    ],
)
def test_balance_counts_where_routers_are_trained(adapt, rank, expected, tiny):
    assert routers.balance_weight(adapt, tiny(experts=Experts(4, 2, balance=0.02), adapter_rank=rank)) == expected
    assert routers.balance_weight(AdaptConfig(), tiny()) == 0
