"""Traffic between devices in one step, by kind and by axis of the mesh, from the compiled program."""

import collections
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jworld.planning import hlo

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


class Traffic(NamedTuple):
    """Collectives of one kind among the devices along some axes of the mesh.

    Attributes:
      kind: one of `KINDS`.
      axes: the axes along which the members of a group differ, such as "fsdp" or "fsdp x sequence".
      runs: number of collectives in one step.
      sent: bytes that each device sends in a step, in the ring algorithm; it receives as many.
      outside: those of `sent` that go to devices which the fast links of a device do not reach.
    """

    kind: str
    axes: str
    runs: int
    sent: int
    outside: int = 0


def find(module: hlo.Module, mesh: Mapping[str, int], *, linked: int | None = None) -> list[Traffic]:
    """List the traffic of one run of a program for a mesh of these sizes, largest first.

    Collectives in the body of a loop count once per iteration. So many successive devices are `linked` (default: all).
    """
    counts: dict[tuple[str, str], list[int]] = collections.defaultdict(lambda: [0, 0, 0])
    linked = linked or math.prod(mesh.values())
    counted: set[tuple[str, str]] = set()
    for computation, times, holder in module.visits():
        for instruction in computation.instructions.values():
            kind = _kind(instruction, computation)
            if kind is None:
                continue
            # TPUs distribute one collective over several fusions, which share its channel. Elsewhere a channel does not
            # identify a collective: all of a `shard_map` have the same.
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            if channel and holder != computation.name:
                if (holder, channel[1]) in counted:
                    continue
                counted.add((holder, channel[1]))
            group = _first_group(instruction.attributes, math.prod(mesh.values()))
            sent = _sent(kind, _size(instruction) // _shrink(kind, instruction, len(group)), len(group))
            if sent:
                entry = counts[kind, _axes(group, mesh)]
                entry[0] += times
                entry[1] += times * sent
                entry[2] += times * _outside(kind, sent, group, linked)
    rows = [Traffic(kind, axes, *numbers) for (kind, axes), numbers in counts.items()]
    return sorted(rows, key=lambda row: -row.sent)


def _kind(instruction: hlo.Instruction, computation: hlo.Computation) -> str | None:
    opcode = instruction.opcode.removesuffix("-start")
    if opcode not in KINDS:
        return None
    # The TPU compiler's name for a fusion of an all-reduce and a slice, which is a reduce-scatter.
    if opcode == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        return "reduce-scatter"
    return opcode


def _size(instruction: hlo.Instruction) -> int:
    """Return the bytes of the result of a collective on one device."""
    parts = hlo.tuple_parts(instruction.shape)
    if instruction.opcode.endswith("-start") and instruction.opcode != "all-reduce-start":
        # (operands, results, ...), each of which may be a tuple; an all-reduce has its results only.
        return hlo.array_bytes(parts[1])
    return sum(hlo.array_bytes(part) for part in parts)


def _shrink(kind: str, instruction: hlo.Instruction, members: int) -> int:
    """Return the ratio of an all-reduce to the result of the fused reduce-scatter around it."""
    return members if kind == "reduce-scatter" and instruction.opcode.startswith("all-reduce") else 1


def _sent(kind: str, result: int, members: int) -> int:
    if members < 2:
        return 0
    match kind:
        case "all-gather" | "all-to-all":
            return result * (members - 1) // members
        case "reduce-scatter":
            return result * (members - 1)
        case "all-reduce":
            return 2 * result * (members - 1) // members
        case _:
            return result


def _outside(kind: str, sent: int, group: Sequence[int], linked: int) -> int:
    """Return the bytes that a device sends to others than the `linked` ones around it.

    Groups have equally many members on every host. A ring then leaves a host once for every member that it has there,
    each over the network of another device; an all-to-all sends every other member the same.
    """
    hosts = collections.Counter(position // linked for position in group)
    if len(hosts) == 1:
        return 0
    together = max(hosts.values())
    if kind == "all-to-all":
        return sent * (len(group) - together) // (len(group) - 1)
    return sent // together


def _first_group(attributes: str, devices: int) -> list[int]:
    """Return the devices of one group of a collective, as positions in the mesh."""
    if pairs := re.search(r"source_target_pairs=\{\{(.*?)\}\}", attributes):
        for pair in pairs[1].split("},{"):
            source, target = map(int, pair.split(","))
            if source != target:
                return [source, target]
        return [0]
    text = attributes[attributes.find("replica_groups=") :] if "replica_groups=" in attributes else ""
    if listed := re.match(r"replica_groups=\{\{([\d,]+)\}", text):
        return [int(position) for position in listed[1].split(",")]
    if iota := re.match(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return [int(position) for position in _iota(iota[2]).reshape(_numbers(iota[1]))[0]]
    if text.startswith("replica_groups=mesh["):
        return _named_group(text)
    return list(range(devices))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _iota(text: str) -> np.ndarray:
    """Parse "[2,4]T(1,0)" to the numbers from 0 in an array of that shape, transposed."""
    match = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    assert match is not None
    sizes = _numbers(match[1])
    return np.transpose(np.arange(math.prod(sizes)).reshape(sizes), _numbers(match[2]) if match[2] else None)


def _named_group(text: str) -> list[int]:
    """Parse `mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a':(2)2}`: axes, or factors of them, of the compiler's mesh.

    Source: xla/hlo/ir/mesh_and_axis.cc; 'a':(2)2 is the second factor of the axis a of size 4.
    """
    match = re.match(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\)?)\))?\s*\{(.*?)\}", text)
    if match is None:
        raise ValueError(f"unknown notation for groups of devices: {text[:200]}")
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
    chosen = dict(re.findall(r"'(\w+)'(?::\((\d+\)\d+))?", match[3]))
    positions = np.arange(math.prod(sizes.values()))
    if match[2]:
        positions = (_iota(match[2]) if match[2].startswith("[") else np.array(_numbers(match[2]))).reshape(-1)
    shape: list[int] = []
    index: list[int | slice] = []
    for name, size in sizes.items():
        before, own = _numbers(chosen[name].replace(")", ",")) if chosen.get(name) else (1, size)
        shape += [before, own, size // before // own]
        index += [0, slice(None) if name in chosen else 0, 0]
    return [int(position) for position in positions.reshape(shape)[tuple(index)].flat]


def _axes(group: Sequence[int], mesh: Mapping[str, int]) -> str:
    """Return the axes of the mesh along which the members differ."""
    positions = np.stack(np.unravel_index(list(group), tuple(mesh.values())))
    differ = [len(set(row)) > 1 for row in positions]
    return " x ".join(itertools.compress(mesh, differ))
