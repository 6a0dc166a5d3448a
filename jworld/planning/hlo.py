"""Parser of the text of a compiled program: computations with their number of runs, and memory traffic."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][\w-]*)\(")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')


class Instruction(NamedTuple):
    """Instruction on one line: `name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool


class Computation(NamedTuple):
    """Function of the program; `parameters` are names in the order of the arguments."""

    name: str
    instructions: dict[str, Instruction]
    parameters: tuple[str, ...]
    root: str


class Visit(NamedTuple):
    """Computation that runs, its number of runs, and the scheduled computation that contains it.

    The latter is the computation itself unless it is fused.
    """

    computation: Computation
    times: int
    holder: str


class Module:
    """Compiled program, from `compiled.as_text()`."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        lines: list[str] | None = None
        name = ""
        for line in text.splitlines():
            if lines is None:
                if head := _HEAD.match(line):
                    name, lines = head[2], []
                    self.entry = name if head[1] else self.entry
            elif line.rstrip() == "}":
                self.computations[name] = _computation(name, lines)
                lines = None
            elif _LINE.match(line):
                lines.append(line)
            elif lines:
                # The description of a kernel spans several lines.
                lines[-1] += line

    def visits(self) -> Iterator[Visit]:
        """Yield every computation that runs, outermost first; the body of a loop counts once per iteration."""
        pending = [Visit(self.computations[self.entry], 1, self.entry)]
        while pending:
            visit = pending.pop()
            yield visit
            for instruction in visit.computation.instructions.values():
                # The other halves of an asynchronous call refer to the same computation.
                if instruction.opcode in ("async-update", "async-done"):
                    continue
                times = visit.times * (self._trips(instruction) if instruction.opcode == "while" else 1)
                for name in _called(instruction):
                    holder = visit.holder if instruction.opcode in ("fusion", "async-start") else name
                    pending.append(Visit(self.computations[name], times, holder))

    def _trips(self, loop: Instruction) -> int:
        """Return the number of iterations of a loop: the annotation, else the constant in its condition."""
        if annotated := _TRIPS.search(loop.attributes):
            return int(annotated[1])
        name = re.search(r"condition=%?([\w.-]+)", loop.attributes)
        condition = self.computations[name[1]] if name else None
        if condition is not None:
            root = condition.instructions[condition.root]
            for operand in root.operands:
                value = condition.instructions[operand].attributes if operand in condition.instructions else ""
                if root.opcode == "compare" and (constant := re.match(r"constant=(\d+)$", value)):
                    return int(constant[1])
        return 1


def _computation(name: str, lines: list[str]) -> Computation:
    instructions, parameters, root = {}, {}, ""
    for line in lines:
        instruction = _instruction(line)
        if instruction is None:
            continue
        instructions[instruction.name] = instruction
        root = instruction.name if instruction.is_root else root
        if instruction.opcode == "parameter":
            parameters[int(instruction.operands[0])] = instruction.name
    return Computation(name, instructions, tuple(parameters[i] for i in sorted(parameters)), root)


def _instruction(line: str) -> Instruction | None:
    line = re.sub(r"/\*.*?\*/", "", line)
    head = _LINE.match(line)
    if head is None:
        return None
    start = head.end()
    stop = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    opcode = _OPCODE.match(line, stop)
    if opcode is None:
        return None
    close = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : close - 1]
    attributes = line[close:]
    operands: tuple[str, ...] = ()
    if opcode[1] == "constant":
        attributes = f"constant={inside}"
    else:
        # Some versions write each operand's shape before its name.
        operands = tuple(part.split()[-1].lstrip("%") for part in _split(inside) if part.strip())
    return Instruction(head[2], line[start:stop], opcode[1], operands, attributes, head[1] is not None)


def _closing(text: str, start: int) -> int:
    """Return the position after the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    return len(text)


def _split(text: str) -> list[str]:
    """Split at the commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for match in re.compile(r"[][(){},]").finditer(text):
        if match[0] == "," and depth == 0:
            parts.append(text[start : match.start()])
            start = match.end()
        elif match[0] != ",":
            depth += 1 if match[0] in "([{" else -1
    return [*parts, text[start:]]


def _called(instruction: Instruction) -> Iterator[str]:
    for kind, name in _CALLED.findall(instruction.attributes):
        # The operator of a reduction is not a separate program.
        if kind != "to_apply" or instruction.opcode == "call":
            yield name
    if branches := _BRANCHES.search(instruction.attributes):
        yield from (name.strip().lstrip("%") for name in branches[1].split(","))


def array_bytes(shape: str, *, main_memory: bool = False) -> int:
    """Return the bytes of all arrays in the text of a shape.

    With `main_memory`, without those in a TPU's on-chip memory.
    """
    total = 0.0
    for dtype, sizes, layout in _ARRAY.findall(shape):
        if main_memory and re.search(r"S\([1-9]\)", layout):
            continue
        width = _BYTES.get(dtype)
        if width is None:
            bits = re.search(r"\d+", dtype)
            width = int(bits[0]) / 8 if bits else 0
        total += math.prod(int(size) for size in sizes.split(",") if size) * width
    return int(total)


def tuple_parts(shape: str) -> list[str]:
    """Return the elements of a tuple's shape, or the shape itself."""
    return [part.strip() for part in _split(shape[1:-1])] if shape.startswith("(") else [shape]


_NO_TRAFFIC = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "iota",
    "opt-barrier",
    "async-update",
}


def memory_traffic(module: Module) -> int:
    """Estimate the bytes that one device reads from and writes to its main memory in one run.

    Values inside a fusion cost nothing. A fusion that slices a large array, as in a loop over stacked layers, reads
    only the slice. Arrays in a TPU's on-chip memory cost nothing.
    """
    total = 0
    for visit in module.visits():
        if visit.holder == visit.computation.name:
            total += visit.times * sum(
                _traffic(module, visit.computation, i) for i in visit.computation.instructions.values()
            )
    return total


def _traffic(module: Module, holder: Computation, instruction: Instruction) -> int:
    if instruction.opcode in _NO_TRAFFIC or instruction.opcode.endswith("-done"):
        return 0
    inner = _inner(module, instruction)
    written = array_bytes(instruction.shape, main_memory=True)
    if inner is not None:
        written = min(written, _written(module, inner, inner.root))
    if instruction.opcode.endswith("-start"):
        written = max((array_bytes(p, main_memory=True) for p in tuple_parts(instruction.shape)), default=0)
    if instruction.opcode == "dynamic-update-slice":
        update = holder.instructions[instruction.operands[1]].shape
        return 2 * array_bytes(update, main_memory=True)
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * written
    read = 0
    for index, operand in enumerate(instruction.operands):
        source = holder.instructions.get(operand)
        if source is None:
            continue
        size = array_bytes(source.shape, main_memory=True)
        if inner is not None and index < len(inner.parameters):
            size = min(size, _read(module, inner, inner.parameters[index]))
        read += size
    return read + written


def _inner(module: Module, instruction: Instruction) -> Computation | None:
    called = re.search(r"\bcalls=%?([\w.-]+)", instruction.attributes)
    return module.computations[called[1]] if instruction.opcode == "fusion" and called else None


def _read(module: Module, fused: Computation, name: str) -> int:
    """Return the bytes of the array `name` that a fused computation reads."""
    whole, total = array_bytes(fused.instructions[name].shape, main_memory=True), 0
    for user in fused.instructions.values():
        for index, operand in enumerate(user.operands):
            if operand != name:
                continue
            inner = _inner(module, user)
            if user.opcode == "dynamic-slice" and index == 0:
                total += array_bytes(user.shape)
            elif user.opcode == "bitcast":
                total += _read(module, fused, user.name)
            elif user.opcode == "dynamic-update-slice" and index == 0:
                continue
            elif inner is not None and index < len(inner.parameters):
                total += _read(module, inner, inner.parameters[index])
            else:
                total += whole
    return min(whole, total)


def _written(module: Module, fused: Computation, name: str) -> int:
    """Return the bytes that a fused computation writes for its result `name`."""
    instruction = fused.instructions[name]
    inner = _inner(module, instruction)
    if instruction.opcode == "dynamic-update-slice":
        return array_bytes(fused.instructions[instruction.operands[1]].shape)
    if instruction.opcode in ("tuple", "bitcast"):
        return sum(_written(module, fused, operand) for operand in instruction.operands)
    if inner is not None:
        return _written(module, inner, inner.root)
    return 0 if instruction.opcode == "parameter" else array_bytes(instruction.shape)
