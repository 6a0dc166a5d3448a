"""Make a plan of generation from a config and a topology; runs in the process that `launch` starts."""

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import ml_collections
from flax import nnx

from jworld import systems
from jworld.models.layers import quantized
from jworld.parallel import axes
from jworld.parallel import mesh as mesh_lib
from jworld.parallel.programs import Program
from jworld.planning import arithmetic, compile_step, topologies
from jworld.planning.generation_plans import Cost, GenerationPlan
from jworld.planning.program import shard_sizes
from jworld.systems import generation
from jworld.systems.base import PlannedSystem
from jworld.training import optimizers
from jworld.training import state as train_state
from jworld.utils import config as run_config
from jworld.utils import errors


def make(
    config: ml_collections.ConfigDict,
    topology: topologies.Topology,
    sizes: Mapping[str, int],
    quantize: str | None = None,
) -> GenerationPlan:
    """Compile the programs of generation for the first chips of the topology and measure them.

    Args:
      config: config of the model.
      topology: where it is generated.
      sizes: axes of the mesh; those that are missing have the size 1.
      quantize: type of quantized weights, a key of `quantized.DTYPES`, or None.

    Raises:
      UserError: the config is inconsistent, the mesh does not fit, or the system's generation cannot be planned.
    """
    mesh = make_mesh(topology, sizes)
    # The mesh of the config is that of training.
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.mesh = dict(mesh.shape)
    system = systems.create(config)
    if not isinstance(system, PlannedSystem):
        raise errors.UserError(
            f"the config is of the system {config.system!r}, whose generation cannot be planned: plan its training "
            "with python -m jworld.plan train"
        )
    system.check_sampling(mesh)
    if quantize is not None:
        generation.check_quantized(system, quantize)
    began, problem = time.perf_counter(), None
    with axes.describing(mesh):
        model = described_model(system, config, mesh)
        read = max(shard_sizes(nnx.state(model)))
        if quantize is not None:
            model = quantized.described_model(model, quantize)
        found = system.generation(model, mesh)
        network, decoding = _Part(), _Part()
        try:
            network.measure(found.network, mesh, compile_step.linked(topology))
            decoding.measure(found.decoding, mesh, compile_step.linked(topology))
        except jax.errors.JaxRuntimeError as error:
            problem = compile_step.too_large(error)["problem"]
    weights = list(shard_sizes(nnx.state(model)))
    autoencoder = sum(shard_sizes(jax.tree.leaves(found.autoencoder)))
    return GenerationPlan(
        topology=topology.name,
        available=topology.chips,
        chip=topology.chip.name if topology.chip else None,
        mesh=dict(mesh.shape),
        unit=found.unit,
        per_chunk=found.per_chunk,
        chunk=found.chunk,
        quantize=quantize,
        weights=sum(weights),
        autoencoder=autoencoder,
        cache=network.cache,
        decoder_cache=decoding.cache,
        # The autoencoder is opened first. Weights are quantized one by one.
        start=autoencoder + sum(weights) + read,
        programs=(
            *network.total(sum(weights) + autoencoder, decoding.cache),
            *decoding.total(sum(weights) + autoencoder + network.cache, 0),
        ),
        limit=topology.chip.memory_bytes if topology.chip else None,
        problem=problem,
        compile_seconds=time.perf_counter() - began,
    )


def make_mesh(topology: topologies.Topology, sizes: Mapping[str, int]) -> jax.sharding.Mesh:
    """Make the mesh on the first chips of a topology; the others stay idle.

    Raises:
      UserError: it needs more chips, or the compiler for them is not here.
    """
    if not topologies.can_compile(topology):
        raise errors.UserError(topologies.missing_gpu_compiler(topology))
    count = math.prod(sizes.values())
    if not 1 <= count <= topology.chips:
        raise errors.UserError(
            f"--mesh needs {count} chips, but {topology.name} has {topology.chips}: choose sizes whose product is at "
            f"most {topology.chips}"
        )
    return mesh_lib.make_mesh(**{"fsdp": 1, **sizes}, devices=topologies.devices(topology)[:count])


def described_model(system: Any, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> nnx.Module:
    """Return the model for sampling, with descriptions in place of its weights."""
    optimizer = optimizers.make_optimizer(
        run_config.section(optimizers.OptimizerConfig, config.optimizer, "optimizer"), steps=max(config.steps, 1)
    )
    graphdef, abstract, _ = train_state.abstract_state(system.init, trainable=nnx.Param, optimizer=optimizer, mesh=mesh)
    model: nnx.Module = nnx.merge(graphdef, abstract.params)
    return model


class _Part:
    """Costs of the programs of a network, and the bytes of its cache. Peaks are without what stays in memory."""

    def __init__(self) -> None:
        self.costs: list[Cost] = []
        self.cache = 0

    def measure(self, programs: Iterable[Program], mesh: jax.sharding.Mesh, linked: int) -> None:
        for program in programs:
            self.costs.append(cost(program, mesh, linked))
            self.cache = max(self.cache, sum(shard_sizes(program.cache)))

    def total(self, resident: int, later: int) -> list[Cost]:
        """Return the costs with `resident` other bytes in memory, and `later` bytes more after the start."""
        return [
            dataclasses.replace(one, peak=one.peak + resident + (self.cache + later if one.runs else 0))
            for one in self.costs
        ]


def cost(program: Program, mesh: jax.sharding.Mesh, linked: int | None = None) -> Cost:
    """Compile a program for a mesh, and measure it; its peak is without weights and its cache.

    So many chips are `linked`, as in `collectives.find`.
    """
    flops = products(program)
    compiled = program.compiled
    share, counted = 1.0, compiled.cost_analysis()
    if mesh.size > 1 and counted is None:
        # XLA counts nothing for absent GPUs. Only the axis of tokens splits the work on one video.
        share = 1 / mesh.shape["sequence"]
    elif mesh.size > 1:
        # Both counts have the body of a loop once, and no kernels.
        whole, own = program.lowered.cost_analysis()["flops"], counted["flops"]
        share = min(max(own / whole, 1 / mesh.size), 1.0) if whole > 0 else 1.0
    return Cost(
        name=program.name,
        runs=program.runs,
        peak=_own_bytes(program, compiled.memory_analysis()),
        flops=flops,
        share=share,
        **compile_step.traffic(compiled, dict(mesh.shape), linked=linked),
    )


def _own_bytes(program: Program, memory: Any) -> int:
    """Return the bytes of temporaries, outputs and inputs, without those of weights and caches between calls."""
    inputs = [argument for argument in program.arguments if not isinstance(argument, nnx.Module)]
    described = [leaf for leaf in jax.tree.leaves(inputs) if getattr(leaf, "sharding", None) is not None]
    own = sum(shard_sizes(described)) - sum(shard_sizes(program.cache))
    return int(own + memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes)


def products(program: Program) -> float:
    """Count the products of a program on one CPU, where attention is the reference; kernels have the same products."""
    with jax.set_mesh(mesh_lib.make_mesh(devices=jax.devices("cpu")[:1])):
        return arithmetic.count(program.jaxpr()).all
