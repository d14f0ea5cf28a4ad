"""Which implementation runs where, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from a3jax.attention import attend, interface, splash
from a3jax.attention.blocks import Attended, Local, splash_block
from a3jax.attention.interface import choose
from a3jax.errors import UserError

MANY = interface.DENSE_KEYS + 1


@pytest.mark.parametrize(("platform", "expected"), [("cpu", "chunked"), ("tpu", "splash"), ("gpu", "flash")])
def test_auto_takes_the_kernel_of_the_platform(platform, expected):
    assert choose("auto", platform, MANY) == expected
    assert choose("auto", platform, interface.DENSE_KEYS) == "dense"  # one block holds all keys


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_what_is_plain_jax_runs_everywhere(platform, implementation):
    assert choose(implementation, platform, MANY) == implementation


@pytest.mark.parametrize(
    ("implementation", "platform", "reason"),
    [
        ("splash", "cpu", "runs on TPUs, and this is cpu"),
        ("splash", "gpu", "runs on TPUs, and this is gpu"),
        ("flash", "cpu", "runs on NVIDIA GPUs, and this is cpu"),
        ("flash", "tpu", "runs on NVIDIA GPUs, and this is tpu"),
    ],
)
def test_a_named_kernel_that_cannot_run_is_refused_with_the_reason(implementation, platform, reason):
    with pytest.raises(UserError, match=f"train.attention is '{implementation}', which {reason}") as error:
        choose(implementation, platform, MANY)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("capability", "runs"), [("7.5", False), ("8.0", True), ("9.0", True), ("12.0", True), ("gfx942", False), (None, True)]
)
def test_flash_needs_an_nvidia_gpu_from_ampere_on(monkeypatch, capability, runs):
    monkeypatch.setattr(interface, "compute_capability", lambda: capability)
    assert choose("auto", "gpu", MANY) == ("flash" if runs else "chunked")
    if runs:
        assert choose("flash", "gpu", MANY) == "flash"
    else:
        with pytest.raises(UserError, match=rf"compute capability 8.0 or more, and this one has {capability}"):
            choose("flash", "gpu", MANY)


def test_the_refusal_reaches_the_caller_of_a_compiled_step():
    heads, ranges = jnp.zeros((1, 4, 2, 8)), jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(UserError, match=r"train\.attention is 'splash', which runs on TPUs, and this is cpu"):
        jax.jit(lambda *a: attend(*a, "splash"))(heads, heads, heads, ranges, ranges)


def test_the_platform_is_that_of_the_mesh():
    assert interface.platform() == jax.default_backend()
    mesh = AbstractMesh(
        (1,), ("data",), (AxisType.Auto,), abstract_device=AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu")
    )
    with jax.sharding.use_abstract_mesh(mesh):
        assert interface.platform() == "tpu"


@pytest.mark.parametrize(
    ("length", "width", "context", "block"),
    [
        (2048, 128, 1, 512),
        (4096, 128, 1, 512),
        (8192, 128, 1, 1024),
        (8192, 256, 1, 512),
        (8192, 128, 4, 1024),  # pieces of 1024 rows
        (8192, 128, 8, 512),
        (32768, 64, 8, 1024),
        (9000, 128, 1, 512),
    ],
)
def test_splash_takes_larger_blocks_where_a_window_has_eight_and_no_piece_of_it_is_less(length, width, context, block):
    assert splash_block(length, width, context) == block
    assert (1 + splash_block(length, width, context) / length) / 2 <= 0.625


@pytest.mark.parametrize("given", [None, 256])
def test_a_block_that_is_given_is_taken(given, monkeypatch):
    taken = []
    monkeypatch.setattr(interface, "platform", lambda: "tpu")
    monkeypatch.setattr(
        splash, "splash_attention", lambda query, *_, block, **rest: taken.append(block) or Attended(query, None)
    )
    heads, ranges = jnp.zeros((1, 8192, 1, 128)), jnp.zeros((1, 8192), jnp.int32)
    attend(heads, heads, heads, ranges, ranges, block=given)
    assert taken == [given or 1024]


@pytest.mark.parametrize("what", ["local attention", "sinks"])
def test_local_attention_and_sinks_are_not_for_splash(what, monkeypatch):
    taken = []
    monkeypatch.setattr(interface, "platform", lambda: "tpu")
    made = Attended(heads := jnp.ones((1, 200, 1, 16)), jnp.zeros((1, 200, 1)))
    monkeypatch.setattr(interface, "chunked_attention", lambda *_, local=None, **rest: taken.append(local) or made)
    ranges = jnp.zeros((1, 200), jnp.int32)
    given = {"local": Local.within(8, ranges, ranges)} if what == "local attention" else {"sink_H": jnp.zeros(1)}
    out = attend(heads, heads, heads, ranges, ranges, **given)
    assert taken == [given.get("local")]
    np.testing.assert_array_equal(out, 0.5 if what == "sinks" else 1.0)
    with pytest.raises(UserError, match=rf"train\.attention is 'splash', which knows no {what}; give auto"):
        attend(heads, heads, heads, ranges, ranges, "splash", **given)
