"""What one device does in a step, counted in the compiled program: arithmetic, memory traffic, communication.

    matrix products   2 x the multiplications of every `dot` and `convolution` (TPU compilers write products as
                      convolutions); elementwise work is left out, as it is in every count of FLOPs for MFU
    memory traffic    what every instruction outside a fusion reads from and writes to main memory (HBM): a fusion reads
                      its operands once and writes its result once, a slice only what it takes, an update in place only
                      what it puts. What stays in on-chip memory is free. Padding is not counted.
    communication     what the device sends, by kind of collective: of S bytes among n devices, ring algorithms send
                      S (n - 1) / n for a gather, a scatter or an all-to-all, and twice that for an all-reduce

Approximate: kernels (custom calls) show their operands and results, not what they read twice or compute, and a loop whose
trip count is data counts once. Both are attention, whose FLOPs `a3jax.train.flops` knows by hand; its memory traffic comes
out too low. Of a conditional both branches count.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from a3jax.plan.hlo import Array, Computation, Instruction, Program

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
KERNEL = "tpu_custom_call"
"""The custom call behind which the compiler cannot look: a Pallas kernel."""

_FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "call-start", "conditional",
     "async-start", "after-all", "partition-id", "replica-id", "opt-barrier", "domain")
)  # fmt: skip
"""Instructions that move nothing themselves."""

_SAME = ("bitcast", "copy", "convert", "reduce-precision")
"""Instructions whose result has the elements of their operand, one for one."""


@dataclass
class Costs:
    """Of one device in one step."""

    matmul_flops: int = 0
    """Of matrix products outside kernels and outside loops whose trip count is data."""
    hbm_bytes: int = 0
    sent_bytes: Counter[str] = field(default_factory=Counter)
    """By kind of collective."""
    collectives: Counter[str] = field(default_factory=Counter)
    """How many run, by kind."""
    hidden_matmuls: bool = False
    """Whether there are kernels, or products in loops whose trip count is data."""


def count(program: Program) -> Costs:
    """Count what one execution of `program` does on one device."""
    costs = Costs()
    for run in program.runs:
        flops = _matmul_flops(program, run.computation)
        if run.certain:
            costs.matmul_flops += run.times * flops
        costs.hidden_matmuls |= bool(flops) and not run.certain
        for instruction in run.computation.instructions.values():
            costs.hbm_bytes += run.times * _hbm_bytes(program, run.computation, instruction)
            costs.hidden_matmuls |= instruction.attribute("custom_call_target") == KERNEL
        for kind, sent in _sent(program, run.computation):
            costs.sent_bytes[kind] += run.times * sent
            costs.collectives[kind] += run.times
    return costs


def _fused(program: Program, instruction: Instruction) -> list[Computation]:
    return [program.computations[name] for name in instruction.called("calls")] if instruction.opcode == "fusion" else []


def _matmul_flops(program: Program, computation: Computation) -> int:
    total = 0
    for instruction in computation.instructions.values():
        if instruction.opcode == "dot":
            contracted = [int(i) for i in (instruction.attribute("lhs_contracting_dims") or "").split(",") if i]
            left = computation.operands(instruction)[0].arrays[0]
            total += 2 * instruction.arrays[0].elements * math.prod(left.dims[i] for i in contracted)
        elif instruction.opcode == "convolution":
            total += _convolution_flops(computation, instruction)
        total += sum(_matmul_flops(program, fused) for fused in _fused(program, instruction))
    return total


def _convolution_flops(computation: Computation, instruction: Instruction) -> int:
    """2 x multiplications of values, not of padding: a product over several axes is a convolution with wide padding."""
    left, kernel = (operand.arrays[0].dims for operand in computation.operands(instruction))
    (result,) = (array.dims for array in instruction.arrays)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None, f"{instruction.name} does not say which dimension is which"
    window = {name: value.split("x") for name, value in re.findall(r"(\w+)=(\S+)", instruction.attribute("window") or "")}
    multiplications = left[labels[1].index("b")] * result[labels[3].index("f")] * kernel[labels[2].index("i")]
    multiplications //= int(instruction.attribute("batch_group_count") or 1)
    for i, size in enumerate(window.get("size", [])):
        stride, left_dilation, right_dilation = (
            int(window[name][i]) if name in window else 1 for name in ("stride", "lhs_dilate", "rhs_dilate")
        )
        low = int(window["pad"][i].split("_")[0]) if "pad" in window else 0
        outputs = np.arange(result[labels[3].index(str(i))])
        inputs = left[labels[1].index(str(i))]
        pairs = 0
        for tap in range(int(size)):
            at = outputs * stride - low + tap * right_dilation
            pairs += int(((at % left_dilation == 0) & (at >= 0) & (at // left_dilation < inputs)).sum())
        multiplications *= pairs
    return 2 * multiplications


def _hbm_bytes(program: Program, computation: Computation, instruction: Instruction) -> int:
    """Bytes that an instruction outside a fusion reads from and writes to main memory."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0
    if opcode == "fusion":
        return _fusion_bytes(program, computation, instruction)
    operands = computation.operands(instruction)
    if opcode == "slice-start":
        taken = instruction.arrays[len(operands)]
        return taken.hbm_bytes + (taken.bytes if operands[0].arrays[0].in_hbm else 0)
    if opcode.endswith("-start"):  # the result holds the operands as well, and what the transfer needs
        read = sum(_hbm(operand) for operand in operands)
        return read + max(0, _hbm(instruction) - read)
    place_of_update = {"dynamic-update-slice": 1, "scatter": 2}.get(opcode)
    if place_of_update is not None:
        return 2 * _hbm(operands[place_of_update]) if instruction.arrays[0].in_hbm else _hbm(operands[place_of_update])
    if opcode in ("dynamic-slice", "slice", "gather"):
        return _hbm(instruction) + _taken(instruction, operands[0])
    return _hbm(instruction) + sum(_hbm(operand) for operand in operands)


def _hbm(instruction: Instruction) -> int:
    return sum(array.hbm_bytes for array in instruction.arrays)


def _taken(taker: Instruction, source: Instruction) -> int:
    """Bytes of main memory that a slice or gather reads."""
    return sum(array.bytes for array in taker.arrays) if source.arrays[0].in_hbm else 0


def _fusion_bytes(program: Program, computation: Computation, instruction: Instruction) -> int:
    (fused,) = _fused(program, instruction)
    read = 0
    for number, operand in enumerate(computation.operands(instruction)):
        if _hbm(operand):
            read += _read(program, fused, fused.parameter(number)) * operand.arrays[0].bits // 8
    results = fused.operands(fused.root) if fused.root.opcode == "tuple" else [fused.root]
    written = sum(_written(program, fused, result, array) for result, array in zip(results, instruction.arrays))
    return read + written


def _read(program: Program, fused: Computation, source: Instruction) -> int:
    """Elements of `source` that a fusion reads: all, unless every use takes or replaces a part.

    Inside a fusion nothing is made that is not wanted: of a copy, a conversion, another layout, which a fusion within the
    fusion may be, only that part is read that is used of the result.
    """
    whole, total = source.arrays[0].elements, 0
    for user, place in fused.users(source.name):
        (result, *others) = user.arrays
        if user.opcode in ("dynamic-slice", "slice", "gather") and place == 0:
            total += result.elements
        elif user.opcode == "dynamic-update-slice" and place == 0:
            pass
        else:
            used = whole
            if user.opcode == "fusion":
                (inner,) = _fused(program, user)
                used = _read(program, inner, inner.parameter(place))
            elif user.opcode not in _SAME:
                return whole
            if used >= whole and not user.root and not others and result.elements == whole:
                used = _read(program, fused, user)
            total += used
    return min(whole, total)


def _written(program: Program, fused: Computation, result: Instruction, array: Array) -> int:
    """Bytes of a fusion's result that it writes: all, unless it replaces a part of an operand."""
    while result.opcode == "bitcast":
        (result,) = fused.operands(result)
    if result.opcode == "dynamic-update-slice":
        return min(array.hbm_bytes, fused.operands(result)[1].arrays[0].bytes)
    if result.opcode == "fusion":
        (inner,) = _fused(program, result)
        if inner.root.opcode != "tuple":
            return _written(program, inner, inner.root, array)
    return array.hbm_bytes


def _sent(program: Program, computation: Computation, inside: bool = False) -> list[tuple[str, int]]:
    """The kind and bytes sent of every collective of a computation, fusions included."""
    found = []
    for instruction in computation.instructions.values():
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            size = sum(array.bytes for operand in computation.operands(instruction) for array in operand.arrays)
            if (
                inside
                and kind == "all-reduce"
                and any(u.opcode == "dynamic-slice" for u, _ in computation.users(instruction.name))
            ):
                kind = "reduce-scatter"  # how a TPU compiler writes it: a fusion that keeps one slice of the sum
            found.append(
                (kind, size if kind == "collective-permute" else _ring(kind, size, _group_size(program, instruction)))
            )
        for fused in _fused(program, instruction):
            # One that runs beside arithmetic stands in the fusions that begin, accompany and end it: it is counted once.
            if not (fused.name.startswith("async_collective_fusion") or instruction.name.startswith("async-collective-done")):
                found += _sent(program, fused, inside=True)
    return found


def _ring(kind: str, size: int, devices: int) -> int:
    """Bytes that each of `devices` sends when its operand has `size` bytes."""
    if kind == "all-gather":
        return size * (devices - 1)
    return (2 if kind == "all-reduce" else 1) * size * (devices - 1) // devices


def _group_size(program: Program, instruction: Instruction) -> int:
    """How many devices take part together, in any of the forms in which XLA lists them: by mesh axis, as iota, one by one."""
    text = instruction.attributes
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[2])  # an axis, or a part of one
        return math.prod(int(part or sizes[name]) for name, part in parts)
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(iota[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return listed[1].count(",") + 1
    if "replica_groups={}" in text:
        return program.devices
    raise ValueError(f"{instruction.name} does not say which devices take part: {text[:200]}")
