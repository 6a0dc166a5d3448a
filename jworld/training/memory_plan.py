"""Decisions about emergency checkpoints that all processes of a run make alike, from what each one announced."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax

from jworld.training import memory_files

#: Generations that a host may hold at the same time: the complete one, and the one that is being written.
GENERATIONS = 2

#: Items and seats of the files that a process found in its memory.
Held = Mapping[str, Sequence[int]]


def seats(mesh: jax.sharding.Mesh) -> list[int]:
    """Return the seat of each process: its rank by the first position of its devices in the mesh.

    A process that takes over these positions after a restart needs the same shards, whatever its index.
    """
    owners = [device.process_index for device in mesh.devices.flat]
    order = list(dict.fromkeys(owners))
    return [order.index(process) for process in range(len(order))]


def layout(mesh: jax.sharding.Mesh) -> str:
    """Describe which positions of the mesh share a process, without naming the process."""
    owners = [device.process_index for device in mesh.devices.flat]
    ranks = {process: rank for rank, process in enumerate(dict.fromkeys(owners))}
    runs: list[list[int]] = []
    for owner in owners:
        if runs and runs[-1][0] == ranks[owner]:
            runs[-1][1] += 1
        else:
            runs.append([ranks[owner], 1])
    return f"{dict(mesh.shape)} {runs}"


def neighbors(places: Sequence[str]) -> list[int | None]:
    """Return for each process the one that keeps its copies: on the next host, in a ring; None on a single host.

    Args:
      places: where the memory of each process lies; processes of one host have the same.
    """
    hosts: dict[str, list[int]] = {}
    for process, place in enumerate(places):
        hosts.setdefault(place, []).append(process)
    ring = list(hosts.values())
    found: list[int | None] = [None] * len(places)
    if len(ring) > 1:
        for number, own in enumerate(ring):
            following = ring[(number + 1) % len(ring)]
            for rank, process in enumerate(own):
                found[process] = following[rank % len(following)]
    return found


def newest(held: Sequence[Held], count: int, *, has_frozen: bool) -> int | None:
    """Return the newest step of which the processes together hold all `count` seats; None if there is none.

    Frozen parameters, which are stored once, must be complete too.
    """
    everywhere: dict[str, set[int]] = {}
    for own in held:
        for item, found in own.items():
            everywhere.setdefault(item, set()).update(found)
    complete = {item for item, found in everywhere.items() if found >= set(range(count))}
    if has_frozen and memory_files.FROZEN not in complete:
        return None
    return max((int(item) for item in complete if item.isdecimal()), default=None)


def suppliers(held: Sequence[Held], item: str, seats: Sequence[int]) -> list[int]:
    """Return for each process the one that has the file of its seat: itself if possible."""
    found = []
    for process, seat in enumerate(seats):
        holders = [other for other, own in enumerate(held) if seat in own.get(item, ())]
        found.append(process if process in holders else holders[0])
    return found


@dataclasses.dataclass(frozen=True)
class Demand:
    """Bytes that a process writes, and the space of its host.

    Attributes:
      generation, frozen: bytes of a step, and of what is written once.
      free, used: free bytes of the folder, and those that this run's files already use.
    """

    generation: int
    frozen: int
    free: int
    used: int


def space(demands: Sequence[Demand], places: Sequence[str], process: int) -> tuple[int, int]:
    """Return the bytes that the host of a process needs for all its processes and their copies, and those it has."""
    place, receivers, needed = places[process], neighbors(places), 0
    for own, demand in enumerate(demands):
        receiver = receivers[own]
        files = (places[own] == place) + (receiver is not None and places[receiver] == place)
        needed += files * (GENERATIONS * demand.generation + demand.frozen)
    here = [demand for demand, other in zip(demands, places, strict=True) if other == place]
    return needed, min(demand.free + demand.used for demand in here)
