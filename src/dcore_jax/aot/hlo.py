"""What an optimised program's text says: its collectives, its kernels, the arrays in it, each with how often it runs.

XLA counts the body of a loop once. Here an instruction inside a loop of known length counts as often as the loop turns; one in a
loop whose length depends on the data counts once, and says so.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8} | {
    f"{sign}{bits}": max(1, bits // 8) for sign in "su" for bits in (2, 4, 8, 16, 32, 64)
}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.$-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.$-]+) = (.*?) ([a-z][\w-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|async_computation)=%?([\w.$-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.$-]+)")
_BODY, _CONDITION = re.compile(r"\bbody=%?([\w.$-]+)"), re.compile(r"\bcondition=%?([\w.$-]+)")
_TRIPS = re.compile(r'known_trip_count[^}]*?"?n"?:"?(\d+)')
_TARGET = re.compile(r'custom_call_target="([^"]+)"')
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Custom calls that are kernels; the others are notes of a compiler to itself.
_KERNELS = ("tpu_custom_call", "__")


class Collective(NamedTuple):
    """One array that devices exchange."""

    op: str  # all-gather | all-reduce | reduce-scatter | all-to-all | collective-permute
    dtype: str  # on the wire, as HLO spells it: bf16, f32, s32, ...
    shape: tuple[int, ...]  # of the whole array: gathered, or before it is scattered
    group: int  # devices that exchange it
    times: int  # how often a run of the program does it
    in_open_loop: bool  # in a loop whose length depends on the data: `times` counts one turn of it

    @property
    def bytes(self) -> int:
        """Of the whole array, once."""
        return _bytes(self.dtype, self.shape)

    @property
    def wire_bytes(self) -> float:
        """That each device sends in a run, by a ring: an all-reduce passes everything around twice."""
        if self.op == "collective-permute":
            return float(self.times * self.bytes)
        passes = 2 if self.op == "all-reduce" else 1
        return passes * self.times * self.bytes * (self.group - 1) / max(1, self.group)


class Kernel(NamedTuple):
    """One custom call: a Pallas kernel by its name, or a library's by its target."""

    name: str
    target: str
    times: int
    in_open_loop: bool


class _Instruction(NamedTuple):
    name: str
    result: str
    op: str
    line: str


def read_hlo(text: str) -> tuple[tuple[Collective, ...], tuple[Kernel, ...]]:
    """The collectives and kernels of an optimised program, as `compiled.as_text()` has it."""
    computations, entry = _computations(text)
    runs = _runs(computations, entry)
    collectives: list[Collective] = []
    kernels: list[Kernel] = []
    for name, instructions in computations.items():
        if name not in runs:
            continue
        times, open_loop = runs[name]
        for instruction in instructions:
            op = instruction.op.removesuffix("-start")
            if op in _COLLECTIVES:
                collectives += _collectives(instruction, op, times, open_loop, name)
            elif op == "custom-call" and (found := _TARGET.search(instruction.line)):
                target = found[1]
                if target.startswith(_KERNELS):
                    own = target == "tpu_custom_call" or "triton" in target
                    kernel = re.sub(r"[.\d]+$", "", instruction.name) if own else target
                    kernels.append(Kernel(kernel, target, times, open_loop))
    return tuple(collectives), tuple(kernels)


def array_shapes(text: str) -> set[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of every array that an instruction of the program makes, also inside its fusions."""
    return {
        (dtype, shape)
        for instructions in _computations(text)[0].values()
        for instruction in instructions
        for dtype, shape in _arrays(instruction.result)
    }


def largest_arrays(text: str, count: int = 10) -> list[tuple[int, str, tuple[int, ...]]]:
    """(bytes, dtype, shape) of the largest of `array_shapes`."""
    return sorted(((_bytes(*found), *found) for found in array_shapes(text)), reverse=True)[:count]


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    found: dict[str, list[_Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if opening := _COMPUTATION.match(line):
            current = opening[2]
            found[current] = []
            entry = current if opening[1] else entry
        elif current and (instruction := _INSTRUCTION.match(line)):
            found[current].append(_Instruction(instruction[1], instruction[2], instruction[3], line))
    return found, entry


def _runs(computations: dict[str, list[_Instruction]], entry: str) -> dict[str, tuple[int, bool]]:
    """How often each computation runs, and whether a loop of unknown length is around it."""
    calls: dict[str, Counter[tuple[str, int, bool]]] = defaultdict(Counter)
    for name, instructions in computations.items():
        for instruction in instructions:
            for called, times, open_loop in _called(instruction, computations):
                calls[name][called, times, open_loop] += 1
    runs: dict[str, tuple[int, bool]] = {}

    def visit(name: str, times: int, open_loop: bool) -> None:
        before, was_open = runs.get(name, (0, False))
        runs[name] = before + times, was_open or open_loop
        for (called, turns, unknown), count in calls[name].items():
            visit(called, times * turns * count, open_loop or unknown)

    visit(entry, 1, False)
    return runs


def _called(
    instruction: _Instruction, computations: dict[str, list[_Instruction]]
) -> Iterator[tuple[str, int, bool]]:
    line = instruction.line
    if instruction.op == "while":
        body, condition = _BODY.search(line), _CONDITION.search(line)
        assert body is not None and condition is not None
        trips = (
            int(found[1]) if (found := _TRIPS.search(line)) else _trips(computations.get(condition[1], []))
        )
        yield body[1], 1 if trips is None else trips, trips is None
        return
    yield from ((name, 1, False) for name in _CALLED.findall(line))
    for several, one in _BRANCHES.findall(line):
        yield from ((name.strip().lstrip("%"), 1, False) for name in (several or one).split(","))


def _trips(condition: list[_Instruction]) -> int | None:
    """Turns of a loop that counts from 0 to a constant; None where the end is no constant."""
    compare = next((x for x in condition if x.op == "compare" and "direction=LT" in x.line), None)
    constants = {x.name: re.search(r"constant\((\d+)\)", x.line) for x in condition if x.op == "constant"}
    if compare is None:
        return None
    for name in re.findall(r"%?([\w.$-]+)", compare.line.split("compare(", 1)[1].split(")")[0]):
        if found := constants.get(name):
            return int(found[1])
    return None


def _collectives(
    instruction: _Instruction, op: str, times: int, open_loop: bool, computation: str
) -> Iterator[Collective]:
    arrays = _arrays(instruction.result)
    if instruction.op.endswith("-start") and op != "all-reduce":  # (what goes in, what comes out, ...)
        arrays = [max(arrays, key=lambda array: _bytes(*array))]
    group = _group(instruction.line)
    # A TPU's reduce-scatter is an all-reduce of which each device keeps its part, as one operation of that name.
    if op == "all-reduce" and "all-reduce-scatter" in computation:
        op = "reduce-scatter"
    for dtype, shape in arrays:
        if op == "reduce-scatter" and instruction.op.startswith("reduce-scatter"):
            axis = re.search(r"dimensions=\{(\d+)\}", instruction.line)
            at = int(axis[1]) if axis else 0
            shape = tuple(size * group if i == at else size for i, size in enumerate(shape))
        yield Collective(op, dtype, shape, group, times, open_loop)


def _group(line: str) -> int:
    """Devices of one group of `replica_groups`, in any of its three notations."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return found[1].count(",") + 1
    return 1


def _arrays(result: str) -> list[tuple[str, tuple[int, ...]]]:
    """The arrays of a result type, a tuple's one after the other; layouts and comments are passed over."""
    bare = re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", result)
    return [
        (dtype, tuple(int(size) for size in sizes.split(",") if size))
        for dtype, sizes in _ARRAY.findall(bare)
        if dtype in _BYTES
    ]


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * _BYTES[dtype]
