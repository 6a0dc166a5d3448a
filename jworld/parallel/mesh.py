"""The device mesh: `data` (replicas), `fsdp` (sharded weights and optimizer), `sequence` (tokens of one sample)."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from jworld import errors

AXIS_NAMES = ("data", "fsdp", "sequence")


def make_mesh(*, data: int = 1, fsdp: int = -1, sequence: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (all by default).

    One of the axes may be -1: it takes the devices that the others leave.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, sequence]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise errors.UserError(
            f"config.mesh is data={data}, fsdp={fsdp}, sequence={sequence}: every axis must be a positive number, "
            "and at most one may be -1 (all remaining devices)"
        )
    if -1 in sizes:
        rest = -data * fsdp * sequence
        sizes[sizes.index(-1)] = max(len(devices) // rest, 1)
    if sizes[0] * sizes[1] * sizes[2] != len(devices):
        raise errors.UserError(
            f"config.mesh is data={data}, fsdp={fsdp}, sequence={sequence} = {sizes[0] * sizes[1] * sizes[2]} devices, "
            f"but {len(devices)} are there: choose sizes whose product is {len(devices)} (fsdp=-1 takes what is left)"
        )
    # jax.make_mesh defaults to Explicit axes; sharding constraints and flax's logical axes need Auto ones.
    return jax.make_mesh(tuple(sizes), AXIS_NAMES, axis_types=(AxisType.Auto,) * 3, devices=devices)
