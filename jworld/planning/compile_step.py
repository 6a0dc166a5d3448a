"""Make a plan from a config and a topology; runs in the process that `launch` starts."""

import re
import time
from typing import Any

import jax
import ml_collections

from jworld.planning import arithmetic, collectives, hlo, needed, topologies
from jworld.planning.plans import Plan
from jworld.planning.program import Program
from jworld.training import state as train_state
from jworld.utils import errors

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def make(config: ml_collections.ConfigDict, topology: topologies.Topology) -> Plan:
    """Compile the train step for the topology and measure the program; without a compiler, only the analytic part.

    Raises:
      UserError: the config is inconsistent or does not fit the topology.
    """
    compiled = topologies.can_compile(topology)
    program = Program(config, topologies.devices(topology))
    values = _analytic(config, topology, program)
    if not compiled:
        return Plan(compiled=False, problem=None, **values)
    began = time.perf_counter()
    try:
        executable = program.lower().compile()
        start = start_bytes(program)
    except jax.errors.JaxRuntimeError as error:
        return Plan(compiled=True, compile_seconds=time.perf_counter() - began, **values, **too_large(error))
    seconds = time.perf_counter() - began
    memory = executable.memory_analysis()
    return Plan(
        compiled=True,
        compile_seconds=seconds,
        temporaries=memory.temp_size_in_bytes,
        peak=peak_bytes(memory),
        start=start,
        xla_flops=_xla_flops(executable, topology.chips),
        **traffic(executable, dict(program.mesh.shape), linked=linked(topology)),
        **values,
    )


def _xla_flops(executable: Any, chips: int) -> float | None:
    """Return the compiler's count of operations; None for an absent GPU, for which XLA counts nothing."""
    costs = executable.cost_analysis()
    return None if costs is None else costs["flops"] * chips


def linked(topology: topologies.Topology) -> int:
    """Return the number of chips that fast links join: all, except for GPUs in several hosts."""
    if topology.chip is None or topology.chip.linked is None:
        return topology.chips
    per_host = int(topology.shape.split("x")[1])
    return topology.chip.linked if per_host == topology.chip.host_chips else per_host


def traffic(executable: Any, mesh: dict[str, int], *, linked: int | None = None) -> dict[str, Any]:
    """Analyze the text of a program for the bytes that it moves; empty if XLA cannot write the text."""
    try:
        module = hlo.Module(executable.as_text())
    except jax.errors.JaxRuntimeError:
        # jaxlib refuses some asynchronous operations of the TPU compiler.
        return {}
    return {
        "memory_traffic": hlo.memory_traffic(module),
        "collectives": tuple(collectives.find(module, mesh, linked=linked)),
    }


def start_bytes(program: Program) -> int:
    """Return the peak memory of a run before its first step, in bytes; it may draw its weights, or read them."""
    lowered = program.lower_start()
    return program.restore_bytes() if lowered is None else peak_bytes(lowered.compile().memory_analysis())


def peak_bytes(memory: Any) -> int:
    """Return the peak memory of a program from `compiled.memory_analysis()`, in bytes."""
    # The state is donated: old and new state share memory and count once.
    return int(
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def _analytic(config: ml_collections.ConfigDict, topology: topologies.Topology, program: Program) -> dict[str, Any]:
    """Compute the values of a plan that need no compiler."""
    counted = products(config)
    return {
        "topology": topology.name,
        "chips": topology.chips,
        "chip": topology.chip.name if topology.chip else None,
        "mesh": dict(program.mesh.shape),
        "global_batch": config.global_batch,
        "remat": config.model.get("remat", "none"),
        "accumulate": program.optimizer.config.accumulate,
        **program.shard_bytes(),
        "gradients": program.gradient_bytes(),
        "limit": topology.chip.memory_bytes if topology.chip else None,
        "tokens": program.system.step_tokens(config.global_batch),
        "useful_flops": program.system.step_flops(
            config.global_batch, train_state.sizes(program.state.params, program.state.others)
        ),
        "flops": counted.all,
        "loops": counted.all / counted.bodies_once,
        "needed": needed.of(program),
    }


def products(config: ml_collections.ConfigDict) -> arithmetic.Products:
    """Count the products of the step on one device, where attention is the reference; kernels have the same products.

    A mesh distributes the products and does not change their number.
    """
    alone = config.copy_and_resolve_references()
    with alone.unlocked():
        alone.mesh = {"data": 1, "fsdp": 1, "sequence": 1}
    return arithmetic.count(Program(alone, jax.devices("cpu")[:1]).jaxpr())


def too_large(error: jax.errors.JaxRuntimeError) -> dict[str, Any]:
    """Parse the memory need from the error of a compiler that ran out of memory."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        raise errors.UserError(f"--topology: the compiler failed: {text.splitlines()[0]}") from error
    used = re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)", text)
    if used is None:
        return {"problem": "the compiler ran out of memory for the program"}
    temporaries = int(float(used[1]) * _UNITS[used[2]])
    return {
        "temporaries": temporaries,
        "problem": f"temporaries alone need {used[1]} {used[2]}iB of the {used[3]} {used[4]}iB available to a program",
    }
