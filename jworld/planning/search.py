"""Search over meshes, remat policies and gradient accumulation for the best plans."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import ml_collections

from jworld.planning import recommendations
from jworld.planning.plans import Plan, roofline
from jworld.planning.topologies import Topology
from jworld.utils import errors

RunPlan = Callable[[ml_collections.ConfigDict, Topology], Plan]
Report = Callable[[str], None]


class Found(NamedTuple):
    """Plan and the config changes that lead to it."""

    changes: recommendations.Changes
    plan: Plan


def search(
    config: ml_collections.ConfigDict, topology: Topology, run: RunPlan, *, tries: int, report: Report
) -> list[Found]:
    """Compile at most `tries` plans and return them, best first: those that fit, by the time of a step.

    Every valid mesh is tried with the config's own remat policy and accumulation. If it does not fit, it is tried again
    with one sample at a time, then with fewer activations stored for the backward pass. A mesh whose state alone does
    not fit is reported by its first plan and skipped.
    """
    found: list[Found] = []
    for mesh in recommendations.meshes(config, topology.chips):
        for changes in variants(config, mesh, topology.chips):
            if len(found) == tries:
                return ranked(found)
            report(describe(changes))
            try:
                plan = run(recommendations.changed(config, changes), topology)
            except errors.UserError as error:
                # For example, this mesh does not divide a dimension of a parameter.
                report(f"{describe(changes)}: {error}")
                break
            found.append(Found(changes, plan))
            if plan.fits is not False or (plan.limit is not None and plan.least > plan.limit):
                break
    return ranked(found)


def variants(
    config: ml_collections.ConfigDict, mesh: recommendations.Changes, chips: int
) -> Iterator[recommendations.Changes]:
    """Yield a mesh with the config's values first, then with less and less memory."""
    yield mesh
    given = config.optimizer.get("accumulate", 1)
    most = config.global_batch // (mesh["mesh.data"] * mesh["mesh.fsdp"])
    if most > given:
        mesh = mesh | {"optimizer.accumulate": most}
        yield mesh
    remat = config.model.get("remat", "none")
    order = recommendations.REMAT_ORDER
    for other in order[order.index(remat) + 1 :] if remat in order else ():
        changes = mesh | {"model.remat": other}
        if recommendations.is_valid(recommendations.changed(config, changes), chips):
            yield changes


def ranked(found: list[Found]) -> list[Found]:
    def rank(entry: Found) -> tuple[bool, float, float]:
        bounds = roofline(entry.plan)
        if bounds is None:
            return entry.plan.fits is False, sum(row.sent for row in entry.plan.collectives), 0.0
        return entry.plan.fits is False, bounds.step, bounds.network or 0.0

    return sorted(found, key=rank)


def describe(changes: recommendations.Changes) -> str:
    return " ".join(f"--config.{key}={value}" for key, value in changes.items())
