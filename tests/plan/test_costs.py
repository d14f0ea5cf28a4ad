"""Arithmetic, memory traffic and communication of compiled programs: against XLA's own analysis, and against hand counts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from collectives_process import AXES, SIZE, TRIPS

from a3jax.plan.costs import count
from a3jax.plan.hlo import Program


def xla(text):
    """The text as XLA prints it again, and its own counts; loops count once in these."""
    hlo, backend = pytest.importorskip("jaxlib._hlo"), pytest.importorskip("jaxlib._jax")
    module = hlo.hlo_module_from_text(text)
    return module.to_string(), backend.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)


def one(shapes, operation):
    """A program of one operation on its parameters."""
    parameters = "\n".join(f"  p{i} = {shape} parameter({i})" for i, shape in enumerate(shapes))
    return f"HloModule one\nENTRY e {{\n{parameters}\n  ROOT r = {operation}\n}}\n"


PRODUCTS = {
    "rows x weight": (["f32[7,16]", "f32[16,5]"], "f32[7,5] dot(p0, p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}"),
    "over two dimensions, in heads": (
        ["bf16[3,8,4,16]", "bf16[3,4,16,9]"],
        "bf16[3,8,9] dot(p0, p1), lhs_batch_dims={0}, rhs_batch_dims={0}, "
        "lhs_contracting_dims={2,3}, rhs_contracting_dims={1,2}",
    ),
    "as a convolution": (["bf16[7,16]", "bf16[16,5]"], "bf16[7,5] convolution(p0, p1), dim_labels=bf_io->bf"),
    "heads kept, width in two parts": (
        ["bf16[1,2,512,64]", "bf16[32,2,64,128]"],
        "bf16[512,32,128,1] convolution(p0, p1), "
        "window={size=32x2 pad=31_31x0_0 rhs_reversal=1x0}, dim_labels=01bf_01io->b0f1",
    ),
    "a batch by dilation": (
        ["bf16[8,64,128]", "bf16[8,128,256]"],
        "f32[8,64,256] convolution(p0, p1), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf",
    ),
    "a kernel with dilation and uneven padding": (
        ["f32[2,19,6]", "f32[4,6,10]"],
        "f32[2,7,10] convolution(p0, p1), window={size=4 stride=3 pad=2_6 rhs_dilate=2}, dim_labels=b0f_0io->b0f",
    ),
    "groups of features": (
        ["f32[2,9,12]", "f32[3,4,6]"],
        "f32[2,9,6] convolution(p0, p1), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f, feature_group_count=3",
    ),
    "groups of the batch": (
        ["f32[4,9,5]", "f32[9,5,6]"],
        "f32[2,1,6] convolution(p0, p1), window={size=9}, dim_labels=b0f_0io->b0f, batch_group_count=2",
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_multiplications_are_those_that_xla_counts(name):
    text, expected = xla(one(*PRODUCTS[name]))
    assert count(Program(text)).matmul_flops == expected["flops"]


MOVES = {
    "elementwise": (["f32[7,16]", "f32[7,16]"], "f32[7,16] add(p0, p1)"),
    "a cast": (["f32[64,16]"], "bf16[64,16] convert(p0)"),
    "a slice reads what it takes": (["f32[64,16]"], "f32[3,16] slice(p0), slice={[2:5], [0:16]}"),
    "a product": PRODUCTS["rows x weight"],
    "a transpose": (["f32[8,16]"], "f32[16,8] transpose(p0), dimensions={1,0}"),
}


@pytest.mark.parametrize("name", MOVES)
def test_bytes_are_those_that_xla_counts(name):
    text, expected = xla(one(*MOVES[name]))
    assert count(Program(text)).hbm_bytes == expected["bytes accessed"]


FUSION = """HloModule fusion

%fused (stack: f32[9,64,16], x: f32[64,16], at: s32[]) -> f32[9,64,16] {
  %stack = f32[9,64,16]{2,1,0} parameter(0)
  %x = f32[64,16]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %zero = s32[] constant(0)
  %old = f32[1,64,16]{2,1,0} dynamic-slice(%stack, %at, %zero, %zero), dynamic_slice_sizes={1,64,16}
  %new = f32[1,64,16]{2,1,0} bitcast(%x)
  %sum = f32[1,64,16]{2,1,0} add(%old, %new)
  ROOT %put = f32[9,64,16]{2,1,0} dynamic-update-slice(%stack, %sum, %at, %zero, %zero)
}

ENTRY %main (a: f32[9,64,16], b: f32[64,16], i: s32[]) -> f32[9,64,16] {
  %a = f32[9,64,16]{2,1,0} parameter(0)
  %b = f32[64,16]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %r = f32[9,64,16]{2,1,0} fusion(%a, %b, %i), kind=kLoop, calls=%fused
}
"""


def test_a_fusion_moves_what_it_takes_and_puts_of_a_stack_of_layers():
    layer = 64 * 16 * 4
    assert count(Program(FUSION)).hbm_bytes == 3 * layer + 4  # read of both, write of one, and the index
    _, expected = xla(FUSION)
    assert expected["bytes accessed"] == 3 * layer + 4


RELAYOUT = """HloModule relayout

%same (whole: f32[9,64,16]) -> bf16[9,64,16] {
  %whole = f32[9,64,16]{2,1,0:T(8,128)} parameter(0)
  %other = f32[9,64,16]{2,1,0} copy(%whole)
  ROOT %rounded = bf16[9,64,16]{2,1,0} convert(%other)
}

%seen (p: f32[64,16]) -> f32[64,16] {
  %p = f32[64,16]{1,0} parameter(0)
  ROOT %q = f32[64,16]{1,0} bitcast(%p)
}

%fused (stack: f32[9,64,16], x: f32[64,16], at: s32[]) -> (bf16[64,16], f32[64,16]) {
  %stack = f32[9,64,16]{2,1,0:T(8,128)} parameter(0)
  %x = f32[64,16]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %zero = s32[] constant(0)
  %all = bf16[9,64,16]{2,1,0} fusion(%stack), kind=kLoop, calls=%same
  %one = bf16[1,64,16]{2,1,0} dynamic-slice(%all, %at, %zero, %zero), dynamic_slice_sizes={1,64,16}
  %layer = bf16[64,16]{1,0} bitcast(%one)
  %y = f32[64,16]{1,0} fusion(%x), kind=kLoop, calls=%seen
  %negative = f32[64,16]{1,0} negate(%y)
  ROOT %both = (bf16[64,16]{1,0}, f32[64,16]{1,0}) tuple(%layer, %negative)
}

ENTRY %main (a: f32[9,64,16], b: f32[64,16], i: s32[]) -> (bf16[64,16], f32[64,16]) {
  %a = f32[9,64,16]{2,1,0:T(8,128)} parameter(0)
  %b = f32[64,16]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %r = (bf16[64,16]{1,0}, f32[64,16]{1,0}) fusion(%a, %b, %i), kind=kLoop, calls=%fused
}
"""


def test_of_a_stack_in_another_layout_a_fusion_reads_the_layer_that_it_takes():
    """As libtpu writes it: a fusion inside the fusion turns the whole stack around, of which one layer is then wanted."""
    elements = 64 * 16
    taken, negated = (4 + 2) * elements, (4 + 4) * elements
    assert count(Program(RELAYOUT)).hbm_bytes == taken + negated + 4  # and the index
    whole = RELAYOUT.replace("dynamic-slice(%all, %at, %zero, %zero), dynamic_slice_sizes={1,64,16}", "fold(%all)")
    assert count(Program(whole)).hbm_bytes == taken + negated + 8 * 4 * elements


def test_what_stays_on_the_chip_is_free():
    on_chip = FUSION.replace("%b = f32[64,16]{1,0}", "%b = f32[64,16]{1,0:T(8,128)S(1)}")
    assert count(Program(FUSION)).hbm_bytes - count(Program(on_chip)).hbm_bytes == 64 * 16 * 4


ASYNCHRONOUS = """HloModule asynchronous

ENTRY %main (a: f32[64,128]) -> f32[8,128] {
  %a = f32[64,128]{1,0:T(8,128)} parameter(0)
  %start = ((f32[64,128]{1,0:T(8,128)}), f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[8:16], [0:128]}
  %part = f32[8,128]{1,0:T(8,128)S(1)} slice-done(%start)
  %back = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%part)
  ROOT %r = f32[8,128]{1,0:T(8,128)} copy-done(%back)
}
"""


def test_transfers_in_the_background_count_once_at_each_end():
    """A slice into on-chip memory is read from the main one; a copy back is written there."""
    assert count(Program(ASYNCHRONOUS)).hbm_bytes == 2 * 8 * 128 * 4


def test_a_scan_multiplies_the_bytes_of_its_layers():
    def bytes_of(layers):
        def scan(x, stack):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

        shapes = (jax.ShapeDtypeStruct((64, 128), "float32"), jax.ShapeDtypeStruct((layers, 128, 128), "float32"))
        return count(Program(jax.jit(scan).lower(*shapes).compile().as_text())).hbm_bytes

    weight, x = 128 * 128 * 4, 64 * 128 * 4
    one_layer = (bytes_of(12) - bytes_of(4)) / 8
    assert weight + 2 * x < one_layer < 3 * (weight + 2 * x)  # read, copied, written: not the whole stack once a layer


@pytest.fixture(scope="module")
def collectives(tmp_path_factory):
    """What a device sends in `collectives_process`."""
    out = tmp_path_factory.mktemp("collectives") / "step.hlo"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("collectives_process.py")
    done = subprocess.run([sys.executable, script, out], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return count(Program(out.read_text()))


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-gather", SIZE * (AXES["model"] - 1)),
        ("reduce-scatter", SIZE * (AXES["model"] - 1)),
        ("all-reduce", 2 * SIZE * (AXES["data"] - 1) / AXES["data"]),
        ("all-to-all", SIZE * (AXES["model"] - 1) / AXES["model"]),
        ("collective-permute", SIZE),
    ],
)
def test_a_device_sends_what_a_ring_needs(collectives, kind, sent):
    assert collectives.collectives[kind] == TRIPS
    assert collectives.sent_bytes[kind] == TRIPS * 4 * sent


TPU = """HloModule tpu

%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add = f32[] add(%x, %y)
}

%all-reduce-scatter (input: f32[64,32]) -> f32[16,32] {
  %input = f32[64,32]{1,0:T(8,128)} parameter(0)
  %all-reduce = f32[64,32]{1,0:T(8,128)} all-reduce(%input), channel_id=1, replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%sum
  %device = u32[] partition-id()
  %at = s32[] convert(%device)
  %zero = s32[] constant(0)
  ROOT %part = f32[16,32]{1,0:T(8,128)} dynamic-slice(%all-reduce, %at, %zero), dynamic_slice_sizes={16,32}
}

ENTRY %main (a: f32[64,32], b: bf16[16,32]) -> f32[16,32] {
  %a = f32[64,32]{1,0:T(8,128)} parameter(0)
  %b = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(1)
  %g = bf16[16,64]{1,0:T(8,128)(2,1)} all-gather(%b), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, dimensions={1}
  %h = bf16[32,32]{1,0:T(8,128)(2,1)} all-gather(%b), channel_id=3, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  ROOT %r = f32[16,32]{1,0:T(8,128)} fusion(%a), kind=kCustom, calls=%all-reduce-scatter
}
"""


OFFLOADED = """HloModule offloaded

%on_sparse_core (x: bf16[16,32]) -> bf16[64,32] {
  %x = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g = bf16[64,32]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}
}

ENTRY %main (a: bf16[16,32]) -> bf16[64,32] {
  %a = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(0)
  %start = ((bf16[16,32]{1,0:T(8,128)(2,1)}), bf16[64,32]{1,0:T(8,128)(2,1)}) call-start(%a), async_execution_thread="sparsecore", to_apply=%on_sparse_core
  ROOT %r = bf16[64,32]{1,0:T(8,128)(2,1)} call-done(%start)
}
"""  # noqa: E501


def test_collectives_that_run_beside_the_others_are_counted_where_they_are_called():
    costs = count(Program(OFFLOADED))
    assert costs.sent_bytes == {"all-gather": 16 * 32 * 2 * 3}
    assert costs.collectives == {"all-gather": 1}
    assert costs.hbm_bytes == (16 + 64) * 32 * 2


def test_the_forms_that_a_tpu_compiler_writes():
    costs = count(Program(TPU))
    assert costs.sent_bytes == {"all-gather": 2 * 16 * 32 * 2, "reduce-scatter": 64 * 32 * 4 * 3 // 4}
    assert not costs.hidden_matmuls


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("mesh['axis_0'=1,'axis_1'=32,'axis_2'=2], device_ids=([2,32]T(1,0)) {'axis_1'}", 32),
        ("mesh['axis_0'=8,'axis_1'=4] {'axis_0','axis_1'}", 32),
        ("mesh['axis_0'=8,'axis_1'=4] {'axis_0':(1)2}", 2),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("{{0,2,4,6},{1,3,5,7}}", 4),
        ("{}", 8),
    ],
)
def test_who_takes_part(groups, devices):
    text = TPU.replace("replica_groups=[4,2]<=[2,4]T(1,0)", f"replica_groups={groups}").replace(
        "tpu\n", "tpu, num_partitions=8\n", 1
    )
    gathered = count(Program(text)).sent_bytes["all-gather"]
    assert gathered == 16 * 32 * 2 + 16 * 32 * 2 * (devices - 1)


def test_a_form_that_is_not_known_is_no_guess():
    with pytest.raises(ValueError, match="h does not say which devices take part"):
        count(Program(TPU.replace("replica_groups=[4,2]<=[2,4]T(1,0)", "replica_groups=new")))


def test_kernels_and_products_in_loops_over_data_are_said_to_be_hidden():
    kernel = one(["f32[8,8]"], 'f32[8,8] custom-call(p0), custom_call_target="tpu_custom_call"')
    text, _ = xla(kernel)
    assert count(Program(text)).hidden_matmuls
    assert not count(Program(re.sub("tpu_custom_call", "Sharding", text))).hidden_matmuls

    def products(x, n):
        return jax.lax.fori_loop(0, n, lambda _, x: x @ x, x)

    compiled = jax.jit(products).lower(jax.ShapeDtypeStruct((64, 64), "float32"), jax.ShapeDtypeStruct((), "int32")).compile()
    costs = count(Program(compiled.as_text()))
    assert (costs.matmul_flops, costs.hidden_matmuls) == (0, True)
