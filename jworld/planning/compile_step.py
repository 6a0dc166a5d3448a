"""From a config and a topology to a plan, in a process that was started for it."""

import re
import time
from typing import Any

import jax
import ml_collections

from jworld.planning import arithmetic, collectives, hlo, topologies
from jworld.planning.plans import Plan
from jworld.planning.program import Program
from jworld.training import state as train_state
from jworld.utils import errors, hardware

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def make(config: ml_collections.ConfigDict, topology: topologies.Topology) -> Plan:
    """Compile the train step for the topology and measure the program; without a compiler, the analytic part.

    Raises:
      UserError: the config does not fit itself or the topology.
    """
    compiled = topology.platform != "gpu" or _is_here(topology)
    program = Program(config, topologies.devices(topology))
    values = _analytic(config, topology, program)
    if not compiled:
        return Plan(compiled=False, problem=None, **values)
    began = time.perf_counter()
    try:
        executable = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        return Plan(compiled=True, compile_seconds=time.perf_counter() - began, **values, **_too_large(error))
    seconds = time.perf_counter() - began
    memory = executable.memory_analysis()
    return Plan(
        compiled=True,
        compile_seconds=seconds,
        temporaries=memory.temp_size_in_bytes,
        peak=peak_bytes(memory),
        xla_flops=executable.cost_analysis()["flops"] * topology.chips,
        **_traffic(executable, dict(program.mesh.shape)),
        **values,
    )


def _traffic(executable: Any, mesh: dict[str, int]) -> dict[str, Any]:
    """What the text of a program says of the bytes that it moves; nothing, where XLA cannot write the text."""
    try:
        module = hlo.Module(executable.as_text())
    except jax.errors.JaxRuntimeError:
        # A check of jaxlib refuses some asynchronous operations that the compiler for TPUs makes.
        return {}
    return {
        "memory_traffic": hlo.memory_traffic(module),
        "collectives": tuple(collectives.find(module, mesh)),
    }


def peak_bytes(memory: Any) -> int:
    """The most that a program has in memory at once, of `compiled.memory_analysis()`."""
    # The state is donated: its place is that of the new state, and counts once.
    return (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def _analytic(config: ml_collections.ConfigDict, topology: topologies.Topology, program: Program) -> dict[str, Any]:
    """The values of a plan that need no compiler."""
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
            config.global_batch, train_state.sizes(program.state.params, program.state.frozen)
        ),
        "flops": counted.all,
        "loops": counted.all / counted.bodies_once,
    }


def products(config: ml_collections.ConfigDict) -> arithmetic.Products:
    """Of the step on one processor, where attention is the reference, whose products can be seen; kernels do the same.

    A mesh changes who does them, not how many there are.
    """
    alone = config.copy_and_resolve_references()
    with alone.unlocked():
        alone.mesh = {"data": 1, "fsdp": 1, "sequence": 1}
    return arithmetic.count(Program(alone, jax.devices("cpu")[:1]).jaxpr())


def _is_here(topology: topologies.Topology) -> bool:
    there = [hardware.of_device(device) for device in jax.devices()]
    return len(there) >= topology.chips and there[0] == topology.chip


def _too_large(error: jax.errors.JaxRuntimeError) -> dict[str, Any]:
    """What a compiler that ran out of memory says that it would need."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        raise errors.UserError(f"--topology: the compiler failed: {text.splitlines()[0]}") from error
    used = re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)", text)
    if used is None:
        return {"problem": "the compiler ran out of memory for the program"}
    temporaries = int(float(used[1]) * _UNITS[used[2]])
    return {
        "temporaries": temporaries,
        "problem": f"temporaries alone need {used[1]} {used[2]}iB of the {used[3]} {used[4]}iB that a program may have",
    }
