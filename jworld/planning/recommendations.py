"""Which values of a config to change when a step does not fit, and the meshes that are worth a try."""

from collections.abc import Iterator
from typing import Any

import ml_collections

from jworld import systems
from jworld.planning.plans import Plan
from jworld.utils import errors

#: Dotted keys of a config and their other values.
Changes = dict[str, Any]

#: From fast to small; the last two save memory for time.
REMAT_ORDER = ("none", "attention", "full", "offload")


def changed(config: ml_collections.ConfigDict, changes: Changes) -> ml_collections.ConfigDict:
    """A copy of a config with other values of dotted keys."""
    copy = config.copy_and_resolve_references()
    with copy.unlocked():
        for key, value in changes.items():
            *parents, name = key.split(".")
            node = copy
            for parent in parents:
                node = node[parent]
            node[name] = value
    return copy


def is_valid(config: ml_collections.ConfigDict, chips: int) -> bool:
    """Whether mesh, batch and system agree; the dimensions of parameters are not looked at."""
    mesh = config.mesh
    shards = mesh.data * mesh.fsdp * config.optimizer.get("accumulate", 1)
    if mesh.data * mesh.fsdp * mesh.sequence != chips or config.global_batch % shards:
        return False
    try:
        systems.create(config)
    except errors.UserError:
        return False
    return True


def meshes(config: ml_collections.ConfigDict, chips: int) -> Iterator[Changes]:
    """Changes that lead to every valid mesh, the least split first: fewer pieces of a sample mean less to exchange."""
    sizes = [size for size in range(1, chips + 1) if chips % size == 0]
    for data in sizes:
        for sequence in sizes:
            if chips % (data * sequence):
                continue
            mesh = {"mesh.data": data, "mesh.fsdp": chips // (data * sequence), "mesh.sequence": sequence}
            if is_valid(changed(config, mesh), chips):
                yield mesh


def advise(config: ml_collections.ConfigDict, plan: Plan) -> list[str]:
    """What to change, in the order to try it; empty where the step fits, or nothing is known."""
    if plan.fits is not False or plan.limit is None:
        return []
    lines, mesh = [], plan.mesh
    base = changed(config, {f"mesh.{axis}": size for axis, size in mesh.items()})
    share = f"state and gradients take {plan.least / plan.limit:.0%} of a chip"
    if plan.least > plan.limit // 2 and mesh["data"] > 1:
        lines.append(f"--config.mesh.data=1: {share}, and the {mesh['data']} replicas do not split them")
    elif plan.least > plan.limit:
        lines.append(f"more chips, or chips with more memory: {share}")
    if plan.least > plan.limit // 2 and plan.average:
        lines.append("--config.optimizer.ema_decay=0: the average of the weights is a copy of them")
    rows = plan.global_batch // (mesh["data"] * mesh["fsdp"]) // plan.accumulate
    if rows > 1:
        lines.append(
            f"--config.optimizer.accumulate={plan.accumulate * rows}: one sample at a time in every group of chips "
            f"instead of {rows}; activations shrink likewise, weights are gathered more often"
        )
    known = REMAT_ORDER[REMAT_ORDER.index(plan.remat) + 1 :] if plan.remat in REMAT_ORDER else ()
    for remat in known:
        if is_valid(changed(base, {"model.remat": remat}), plan.chips):
            lines.append(f"--config.model.remat={remat}: keeps less on the chip for the backward pass")
    accumulate = 2 * plan.accumulate * rows
    wider = {"mesh.sequence": 2 * mesh["sequence"], "mesh.fsdp": mesh["fsdp"] // 2, "optimizer.accumulate": accumulate}
    if is_valid(changed(base, wider), plan.chips):
        flags = " ".join(f"--config.{key}={value}" for key, value in wider.items())
        lines.append(f"{flags}: twice as many chips share a sample, one sample at a time")
    return lines
