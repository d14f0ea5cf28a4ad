"""FLOPs by hand equal those of the traced step: each `dot_general` of its jaxpr, times the lengths of the scans around it."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from chosen import long_after

from a3jax.config import AdaptConfig, Config, DataConfig, Experts, MeshConfig, Stage, TrainConfig
from a3jax.curriculum.schedule import settle
from a3jax.curriculum.stage import Part
from a3jax.devices.mesh import make_mesh
from a3jax.likelihood.forward import one_stream_is_enough
from a3jax.model.adapters import content_is_fixed
from a3jax.model.parameters import count
from a3jax.ordering import draw_order, example_keys
from a3jax.train import flops
from a3jax.train.compiled import abstract_batch
from a3jax.train.counts import full_window
from a3jax.train.state import abstract_state
from a3jax.train.step import make_step

L, BATCH = 32, 2


def inner(equation):
    """The jaxprs inside an equation."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else [value]:
            if hasattr(item, "jaxpr") or hasattr(item, "eqns"):
                yield getattr(item, "jaxpr", item)


def products(jaxpr, times=1):
    """FLOPs of weight products and of attention, which alone has two batch dimensions: sequences and heads."""
    weights = attention = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), (batched, _) = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            here = times * 2 * math.prod(out) * math.prod(left[i] for i in contracted)
            weights, attention = (weights, attention + here) if len(batched) == 2 else (weights + here, attention)
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        for body in inner(equation):
            w, a = products(body, times * repeats)
            weights, attention = weights + w, attention + a
    return weights, attention


MIXTURE = (Part(1.0, "in_order", 1), Part(3.0, "random", 4, sizes="geometric"), Part(1.0, "right_to_left", 2, prefix=0.5))
RAMPED = settle((Stage(1), Stage(4, "random", 8, ramp=2, sizes="uniform")), BATCH, L, ar_share=0.1)[1]


@pytest.mark.parametrize(
    "stage",
    [
        *(Stage(1), Stage(1, given=0.5), Stage(1, "in_order", 4), Stage(1, "random", 8)),
        *(Stage(1, mixture=MIXTURE), RAMPED, Stage(1, mixture=MIXTURE[:1])),
    ],
    ids=lambda stage: f"{stage.name} {stage.given} {stage.changes}",
)
@pytest.mark.parametrize(
    "changes",
    long_after(
        4,
        [
            {},
            {"adapter_rank": 2},
            {"seeding": "two_sided"},
            {"seeding": "two_sided", "adapter_rank": 2},
            {"seeding": "learned"},
            {"tied_head": True, "kv_heads": 4, "layers": 1},
            {"qkv_bias": True, "query_key_norm": "full"},
            {"adapter_rank": 2, "adapter_stream": "both"},
        ],
    ),
    ids=str,
)
def test_the_step_does_what_is_counted(stage, changes, tiny):
    model = tiny(**changes)
    if content_is_fixed(model) and one_stream_is_enough(model, stage.is_ar):
        pytest.skip("there is nothing to train")
    weights, attention = step_products(model, stage)
    useful_attention = flops.attention(model, stage, full_window(L))
    assert weights == BATCH * (flops.per_window(model, stage, L) - useful_attention)
    if not model.adapter_rank:
        assert attention == BATCH * useful_attention * 2  # the dense path computes hidden keys as well


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        (Stage(1), {}),
        (Stage(1, "random", 8), {"seeding": "learned", "tied_head": True, "kv_heads": 4, "layers": 1}),
        (Stage(1, "random", 8), {"adapter_rank": 2}),
    ],
    ids=str,
)
def test_a_distilled_step_reads_its_windows_with_the_source_too(stage, changes, tiny):
    model = tiny(**changes)
    own, distilled = (step_products(model, stage, share) for share in (0.0, 0.5))
    attention = flops.source_attention(model, full_window(L))
    more = flops.per_window(model, stage, L, distilled=True) - flops.per_window(model, stage, L)
    assert (distilled[0] - own[0], distilled[1] - own[1]) == (BATCH * (more - attention), BATCH * attention * 2)


def test_of_experts_those_count_that_a_row_goes_to(tiny):
    """Two experts, 24 wide, cost what one feed-forward of 48 does, and the router D x X more for every row."""
    model, dense = tiny(experts=Experts(8, 2), seeding="learned"), tiny(ff_width=48, seeding="learned")
    stage = Stage(1, "random", 8)
    more = flops.per_window(model, stage, L) - flops.per_window(dense, stage, L)
    assert more == 3 * 2 * model.width * 8 * (2 * model.layers - 1) * L
    assert count(model) > 2 * count(dense)
    own = flops.of_experts(model, stage, full_window(L), recomputed=False)
    assert own == 3 * 2 * 2 * 3 * model.width * 24 * (2 * model.layers - 1) * L
    assert flops.of_experts(model, stage, full_window(L), recomputed=True) == own * 4 / 3


def step_products(model, stage, distill=0.0):
    train, adapt = TrainConfig(attention="dense", remat="none", loss_chunk=16), AdaptConfig(distill=distill)
    data = DataConfig(length=L, batch=BATCH)
    config = Config("test", model=model, data=data, curriculum=(stage,), train=train, adapt=adapt)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        traced = make_step(config, model, stage, mesh).trace(
            abstract_state(config, model, mesh), abstract_batch(config, stage, mesh)
        )
    return products(traced.jaxpr.jaxpr)


@pytest.mark.parametrize(
    ("family", "size"), [("in_order", 1), ("in_order", 4), ("right_to_left", 4), ("random", 4), ("random", 8)]
)
def test_rows_see_half_of_all_keys_on_average(family, size):
    length = 512
    keys, segments = example_keys(0, 0, 1), np.ones((1, length), np.int32)
    order = jax.tree.map(np.asarray, draw_order(keys, segments, family, size, 0.0, "successor"))
    for end in (order.group_end, order.group_start):
        assert (end - order.start).mean() / length == pytest.approx(0.5, abs=size / length)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 1153.5e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("cpu", None),
    ],
)
def test_the_peak_is_that_of_the_longest_name_that_fits(kind, expected):
    assert flops.peak(SimpleNamespace(device_kind=kind)) == expected
