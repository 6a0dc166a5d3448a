"""Config changes for a step that does not fit, and candidate meshes."""

from collections.abc import Iterator
from typing import Any

import ml_collections

from jworld import systems
from jworld.planning.plans import Plan
from jworld.utils import errors

#: Dotted keys of a config and their new values.
Changes = dict[str, Any]

#: From fast to small; the last two trade time for memory.
REMAT_ORDER = ("none", "attention", "full", "offload")


def changed(config: ml_collections.ConfigDict, changes: Changes) -> ml_collections.ConfigDict:
    """Copy a config with new values of dotted keys."""
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
    """Return whether mesh, batch and system are consistent; the dimensions of parameters are not checked."""
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
    """Yield the changes for every valid mesh, least split first: fewer pieces of a sample need less communication."""
    sizes = [size for size in range(1, chips + 1) if chips % size == 0]
    for data in sizes:
        for sequence in sizes:
            if chips % (data * sequence):
                continue
            mesh = {"mesh.data": data, "mesh.fsdp": chips // (data * sequence), "mesh.sequence": sequence}
            if is_valid(changed(config, mesh), chips):
                yield mesh


def advise(config: ml_collections.ConfigDict, plan: Plan) -> list[str]:
    """Return config changes in the order to try them; empty if the step fits or the fit is unknown."""
    if plan.fits is not False or plan.limit is None:
        return []
    lines, mesh = [], plan.mesh
    base = changed(config, {f"mesh.{axis}": size for axis, size in mesh.items()})
    share = f"state and gradients take {plan.least / plan.limit:.0%} of a chip"
    if plan.least > plan.limit // 2 and mesh["data"] > 1:
        lines.append(f"--config.mesh.data=1: {share}, and the {mesh['data']} replicas do not split them")
    elif plan.least > plan.limit:
        lines.append(f"more chips, or chips with more memory: {share}")
    if plan.least > plan.limit // 2 and plan.ema:
        lines.append("--config.optimizer.ema_decay=0: the EMA is a copy of the weights")
    rows = plan.global_batch // (mesh["data"] * mesh["fsdp"]) // plan.accumulate
    if rows > 1:
        lines.append(
            f"--config.optimizer.accumulate={plan.accumulate * rows}: one sample at a time in every group of chips "
            f"instead of {rows}; activations shrink likewise, weights are gathered more often"
        )
    smaller = REMAT_ORDER[REMAT_ORDER.index(plan.remat) + 1 :] if plan.remat in REMAT_ORDER else ()
    for remat in smaller:
        if is_valid(changed(base, {"model.remat": remat}), plan.chips):
            lines.append(f"--config.model.remat={remat}: stores fewer activations on the chip for the backward pass")
    accumulate = 2 * plan.accumulate * rows
    wider = {"mesh.sequence": 2 * mesh["sequence"], "mesh.fsdp": mesh["fsdp"] // 2, "optimizer.accumulate": accumulate}
    if is_valid(changed(base, wider), plan.chips):
        flags = " ".join(f"--config.{key}={value}" for key, value in wider.items())
        lines.append(f"{flags}: twice as many chips share a sample, one sample at a time")
    return lines
