"""The text of compiled programs: shapes, and how often every computation runs."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from a3jax.plan.hlo import Program

LOOP = """HloModule loop

%condition (state: (s32[], f32[4])) -> pred[] {
  %state = (s32[]{:T(128)}, f32[4]{0:T(128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %limit = s32[]{:T(128)} constant(LIMIT)
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (state.1: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state.1 = (s32[]{:T(128)}, f32[4]{0:T(128)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %by = s32[]{:T(128)} constant(STEP)
  %next = s32[]{:T(128)} add(%i.1, %by)
  %x = f32[4]{0:T(128)S(1)} get-tuple-element(%state.1), index=1
  ROOT %out = (s32[]{:T(128)}, /*index=1*/f32[4]{0:T(128)S(1)}) tuple(%next, %x)
}

ENTRY %main (a: f32[4], n: s32[]) -> (s32[], f32[4]) {
  %a = f32[4]{0:T(128)} parameter(0)
  %n = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(FIRST)
  %first = s32[]{:T(128)} copy(%zero)
  %start = (s32[]{:T(128)}, f32[4]{0:T(128)}) tuple(START, %a)
  ROOT %while = (s32[]{:T(128)}, f32[4]{0:T(128)S(1)}) while(%start), condition=%condition, body=%body
}
"""


def loop(first=0, limit=10, step=1, start="%first", more=""):
    values = {"FIRST": first, "LIMIT": limit, "STEP": step, "START": start}
    text = LOOP
    for name, value in values.items():
        text = text.replace(name, str(value))
    return Program(text.replace("body=%body", f"body=%body{more}"))


def times(program):
    return Counter({run.computation.name: run.times for run in program.runs})


@pytest.mark.parametrize(("first", "limit", "step", "trips"), [(0, 10, 1, 10), (3, 10, 1, 7), (0, 10, 4, 3), (9, 5, 1, 0)])
def test_trips_of_a_counting_loop(first, limit, step, trips):
    program = loop(first, limit, step)
    assert times(program) == {"main": 1, "body": trips}
    assert all(run.certain for run in program.runs)


def test_a_loop_from_data_is_taken_once_and_said_to_be_uncertain():
    assert [(run.computation.name, run.times, run.certain) for run in loop(start="%n").runs] == [
        ("main", 1, True),
        ("body", 1, False),
    ]


def test_the_compilers_own_trip_count_is_believed():
    noted = ', backend_config={"known_trip_count":{"n":"6"},"dynamic":false}'
    assert times(loop(start="%n", more=noted))["body"] == 6


def test_shapes_sizes_and_memory_spaces():
    entry = loop().runs[0].computation
    array = entry.instructions["a"].arrays[0]
    assert (array.dims, array.bits, array.bytes, array.hbm_bytes) == ((4,), 32, 16, 16)
    counter, value = entry.instructions["while"].arrays
    assert (counter.dims, counter.bytes) == ((), 4)
    assert (value.bytes, value.hbm_bytes) == (16, 0)
    assert entry.root.name == "while"
    assert entry.instructions["while"].called("body", "condition") == ["body", "condition"]


def test_attributes_that_go_over_several_lines():
    broken = ', frontend_attributes={kernel_metadata={\n"x":"{\\"block\\": 512}"\n}}, metadata={op_name="loop"}'
    program = loop(more=broken)
    assert times(program) == {"main": 1, "body": 10}
    assert program.runs[0].computation.root.attribute("op_name") == "loop"


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        Program("nothing of the kind")


def test_scans_multiply_and_loops_over_data_do_not():
    """What this machine's compiler writes: 3 x 5 matrix products, and one in a loop whose bound is an argument."""

    def program(x, n):
        def inner(x, _):
            return jnp.tanh(x @ x), None

        def outer(x, _):
            return jax.lax.scan(inner, x, None, length=5)[0], None

        x = jax.lax.scan(outer, x, None, length=3)[0]
        return jax.lax.fori_loop(0, n, lambda _, x: x @ x, x)

    compiled = jax.jit(program).lower(jax.ShapeDtypeStruct((64, 64), "float32"), jax.ShapeDtypeStruct((), "int32")).compile()
    runs = Program(compiled.as_text()).runs
    assert max(run.times for run in runs if run.certain) == 15
    assert max(run.times for run in runs if not run.certain) == 1
