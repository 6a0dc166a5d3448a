"""The device mesh: `data` (replicas), `fsdp` (sharded weights and optimizer), `sequence` (tokens of one sample)."""

from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from jworld.utils import errors

AXIS_NAMES = ("data", "fsdp", "sequence")
_MOST = 1 << 20
#: Start and stop of a shard along each axis.
Spans = tuple[tuple[int, int], ...]


def parse_sizes(text: str) -> tuple[tuple[str, int], ...]:
    """Parse "data=1,sequence=2" into pairs of different axes and sizes; a `ValueError` for anything else."""
    pairs = [item.partition("=") for item in text.split(",")]
    if len({name.strip() for name, _, _ in pairs}) < len(pairs):
        raise ValueError(text)
    for name, _, size in pairs:
        if name.strip() not in AXIS_NAMES or not size.strip().isdecimal() or not 0 < int(size) <= _MOST:
            raise ValueError(text)
    return tuple((name.strip(), int(size)) for name, _, size in pairs)


def make_mesh(*, data: int = 1, fsdp: int = -1, sequence: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make a mesh over `devices` (default: all).

    One of the axes may be -1: it takes the remaining devices.

    Raises:
      UserError: the product of the axes is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _sizes(data, fsdp, sequence, count=len(devices))
    if sizes[0] * sizes[1] * sizes[2] != len(devices):
        raise errors.UserError(
            f"config.mesh is data={data}, fsdp={fsdp}, sequence={sequence} = {sizes[0] * sizes[1] * sizes[2]} devices, "
            f"but there are {len(devices)}: choose sizes whose product is {len(devices)} "
            "(fsdp=-1 takes the remaining devices)"
        )
    # Axes of the mesh may share an axis of the hardware's torus, so every product that fits is allowed.
    grid = mesh_utils.create_device_mesh(tuple(sizes), devices, allow_split_physical_axes=True)
    # Axes are Explicit by default; sharding constraints and flax's logical axes need Auto.
    return Mesh(grid, AXIS_NAMES, axis_types=(AxisType.Auto,) * 3)


def describe_mesh(*, data: int = 1, fsdp: int = -1, sequence: int = 1) -> AbstractMesh:
    """Return the mesh of these sizes without devices; an axis of -1 takes those that there are.

    Raises:
      UserError: a size is invalid.
    """
    sizes = _sizes(data, fsdp, sequence, count=jax.device_count() if -1 in (data, fsdp, sequence) else 0)
    return AbstractMesh(tuple(sizes), AXIS_NAMES, axis_types=(AxisType.Auto,) * 3)


def _sizes(data: int, fsdp: int, sequence: int, *, count: int) -> list[int]:
    """Return the sizes of the axes, of which -1 takes the rest of `count` devices."""
    sizes = [data, fsdp, sequence]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise errors.UserError(
            f"config.mesh is data={data}, fsdp={fsdp}, sequence={sequence}: every axis must be a positive number, "
            "and at most one may be -1 (all remaining devices)"
        )
    if -1 in sizes:
        rest = -data * fsdp * sequence
        sizes[sizes.index(-1)] = max(count // rest, 1)
    return sizes


def check_batch(mesh: Mesh | AbstractMesh, global_batch: int, accumulate: int) -> None:
    """Raise a UserError if a batch does not divide over the devices and the gradient accumulation steps."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"] * accumulate
    if global_batch % shards:
        raise errors.UserError(
            f"config.global_batch is {global_batch}, expected a multiple of {shards} "
            "(mesh.data x mesh.fsdp x optimizer.accumulate)"
        )


def batch_part(mesh: Mesh) -> tuple[int, int]:
    """Return (index, count): this process's devices hold part `index` of `count` equal parts of a batch.

    Processes that share the tokens of the same samples (axis `sequence`) hold the same part.

    Raises:
      UserError: the processes' devices do not form equal parts.
    """
    sizes = mesh.devices.shape
    rows = mesh.devices.reshape(sizes[0] * sizes[1], sizes[2])
    held: dict[int, set[int]] = {}
    for row, devices in enumerate(rows):
        for device in devices:
            held.setdefault(device.process_index, set()).add(row)
    parts = sorted({tuple(sorted(part)) for part in held.values()})
    if sum(map(len, parts)) != len(rows) or len(set(map(len, parts))) != 1:
        raise errors.UserError(
            f"config.mesh is {', '.join(f'{name}={size}' for name, size in mesh.shape.items())} over "
            f"{len(held)} processes of {len(mesh.devices.flat) // len(held)} devices, which splits samples across "
            "them unevenly: choose sequence so that it divides the devices of a process, or is a multiple of them"
        )
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def local_shards(shape: tuple[int, ...], sharding: jax.sharding.Sharding) -> dict[Spans, list[jax.Device]]:
    """Return the distinct shards of an array on this process's devices, and the devices that hold each."""
    found: dict[Spans, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        spans = (part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True))
        found.setdefault(tuple(spans), []).append(device)
    return found
