"""What a compiled program says of itself: its text (XLA's HLO) as computations, instructions, and how often each runs.

XLA's own cost analysis counts the body of a loop once, whatever its trip count. A scanned layer is such a loop, so the
counts of `a3jax.plan.costs` are made here instead: every computation carries the number of times that a step runs it,
the product of the trip counts around it. A loop whose bounds are data has no trip count; it is run once and noted.
"""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_ARRAY = re.compile(r"\b([a-z]+)(\d*)([a-z0-9]*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = ("body", "to_apply", "calls", "branch_computations", "true_computation", "false_computation")
_SPACE = re.compile(r"S\((\d+)\)")


@dataclass(frozen=True)
class Array:
    """One array of an instruction's result."""

    bits: int
    """Per element; 0 for tokens."""
    dims: tuple[int, ...]
    in_hbm: bool
    """In the device's main memory, not in one of its scratchpads (VMEM, SMEM)."""

    @property
    def elements(self) -> int:
        """Their number."""
        return functools.reduce(int.__mul__, self.dims, 1)

    @property
    def bytes(self) -> int:
        """Size without the padding of the device's layout."""
        return self.elements * self.bits // 8

    @property
    def hbm_bytes(self) -> int:
        """Size, or 0 outside main memory."""
        return self.bytes if self.in_hbm else 0


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    """The result; more than one for a tuple."""
    operands: tuple[str, ...]
    arguments: str
    """What stands between the parentheses: operands, or the value of a constant."""
    attributes: str
    """What stands behind them."""
    root: bool

    def attribute(self, name: str) -> str | None:
        """The value of an attribute such as `dimensions={1}` or `direction=LT`, without braces, quotes and `%`."""
        found = re.search(rf'\b{name}=(?:\{{([^{{}}]*)\}}|"([^"]*)"|%?([\w.\-]+))', self.attributes)
        return next((group for group in found.groups() if group is not None), None) if found else None

    def called(self, *names: str) -> list[str]:
        """Computations named by these attributes."""
        values = [self.attribute(name) for name in names]
        return [part.strip().lstrip("%") for value in values if value for part in value.split(",")]


@dataclass
class Computation:
    """Instructions in the order of the text, by name."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        """The result."""
        return next(instruction for instruction in self.instructions.values() if instruction.root)

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions that make the operands."""
        return [self.instructions[name] for name in instruction.operands]

    def parameter(self, number: int) -> Instruction:
        """Parameter `number`."""
        wanted = str(number)
        return next(i for i in self.instructions.values() if i.opcode == "parameter" and i.arguments == wanted)

    def users(self, name: str) -> list[tuple[Instruction, int]]:
        """The instructions that take `name`, each with the place at which it does."""
        return [(i, place) for i in self.instructions.values() for place, operand in enumerate(i.operands) if operand == name]


@dataclass(frozen=True)
class Run:
    """A computation that a step executes as such (not inside a fusion), and how often."""

    computation: Computation
    times: int
    certain: bool
    """False inside a loop whose trip count is data: `times` then takes one trip for it."""


class Program:
    """The computations of one HLO module. Raises ValueError for text that is not HLO."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        entry, current = None, None
        for line in _whole_lines(text):
            if header := _COMPUTATION.match(line):
                current = self.computations[header[2]] = Computation(header[2])
                entry = header[2] if header[1] else entry
            elif line == "}":
                current = None
            elif current is not None and " = " in line:
                instruction = _instruction(line)
                current.instructions[instruction.name] = instruction
        if entry is None:
            raise ValueError("the text of the compiled program names no entry computation")
        partitions = re.match(r"HloModule .*\bnum_partitions=(\d+)", text)
        self.devices = int(partitions[1]) if partitions else 1
        """That run the program together."""
        self.runs = list(self._executed(Run(self.computations[entry], 1, True)))

    def _executed(self, run: Run) -> Iterator[Run]:
        yield run
        for instruction in run.computation.instructions.values():
            times, certain = run.times, run.certain
            if instruction.opcode == "while":
                trips = self.trip_count(run.computation, instruction)
                times, certain = times * (1 if trips is None else trips), certain and trips is not None
            elif instruction.opcode not in ("call", "call-start", "async-start", "conditional"):
                continue
            for name in instruction.called(*_CALLED):
                yield from self._executed(Run(self.computations[name], times, certain))

    def trip_count(self, computation: Computation, loop: Instruction) -> int | None:
        """How often a loop's body runs: XLA's own note, or a counter compared with a constant; None if it is data."""
        if noted := re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.attributes):
            return int(noted[1])
        condition = self.computations[loop.called("condition")[0]]
        compare = condition.root
        if compare.opcode != "compare" or compare.attribute("direction") != "LT":
            return None
        counter, limit = condition.operands(compare)
        if counter.opcode != "get-tuple-element" or limit.opcode != "constant":
            return None
        place = int(counter.attribute("index") or 0)
        first = _constant(computation, computation.operands(loop)[0], place)
        step = self._step(self.computations[loop.called("body")[0]], place)
        if first is None or step is None:
            return None
        return max(0, -(-(int(limit.arguments) - first) // step))

    def _step(self, body: Computation, place: int) -> int | None:
        """What one run of `body` adds to element `place` of its tuple."""
        if body.root.opcode != "tuple":
            return None
        added = _skip_copies(body, body.operands(body.root)[place])
        if added.opcode == "fusion":
            fused = self.computations[added.called("calls")[0]]
            added, body = fused.root, fused
        constants = [i for i in body.operands(added) if i.opcode == "constant"] if added.opcode == "add" else []
        return int(constants[0].arguments) if constants else None


def _whole_lines(text: str) -> Iterator[str]:
    """Lines of the text, those put together again that a string inside an attribute has broken."""
    whole = ""
    for line in text.splitlines():
        if whole and line != "}" and not line.startswith((" ", "%", "ENTRY", "HloModule")):
            whole += line
        else:
            yield whole
            whole = line
    yield whole


def _constant(computation: Computation, instruction: Instruction, place: int) -> int | None:
    """The integer constant at `place` of a tuple, or None."""
    if instruction.opcode == "tuple":
        element = _skip_copies(computation, computation.operands(instruction)[place])
        return int(element.arguments) if element.opcode == "constant" else None
    return None


def _skip_copies(computation: Computation, instruction: Instruction) -> Instruction:
    while instruction.opcode in ("copy", "copy-done", "copy-start", "bitcast"):
        instruction = computation.operands(instruction)[0]
    return instruction


def _instruction(line: str) -> Instruction:
    left, right = line.split(" = ", 1)
    left = left.strip()
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].lstrip()
    opened = rest.index("(")
    closed = _closing(rest, opened)
    arguments = rest[opened + 1 : closed]
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        opcode=rest[:opened],
        arrays=tuple(_arrays(shape)),
        operands=tuple(_NAME.findall(arguments)),
        arguments=arguments,
        attributes=rest[closed + 1 :],
        root=left.startswith("ROOT "),
    )


def _closing(text: str, opened: int) -> int:
    """Where the parenthesis opened at `opened` closes."""
    depth = 0
    for at in range(opened, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if not depth:
            return at
    raise ValueError(f"a parenthesis is not closed: {text[:100]}")


def _arrays(shape: str) -> Iterator[Array]:
    for kind, bits, _, dims, layout in _ARRAY.findall(shape):
        space = _SPACE.search(layout)
        width = int(bits) if bits else 8 if kind == "pred" else 0
        sizes = tuple(int(size) for size in dims.split(",") if size)
        yield Array(width, sizes, space is None or space[1] == "0")
