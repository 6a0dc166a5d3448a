"""Memory of the compiled programs of every system at published width: no program returns or copies the weights.

A program may hold its arguments, among them the weights, and output and temporaries within the bounds below. The layers
of a stack share one loop, so the temporaries do not grow with their number. Eight layers are enough for a copy of the
stack to exceed the bound. A train step donates its state, which counts once, and holds the gradients of all trained
parameters.
"""

import functools
import importlib.util
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import published_programs as programs
import published_training as training
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jworld.parallel import axes, mesh

LAYERS = 8
MIB = 2**20
UNOPTIMIZED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Bound(NamedTuple):
    """Largest output and temporaries of a program in MiB; donated arguments that become outputs do not count."""

    make: Any
    cpu: int
    tpu: int | None = None


def part(make: Any, *arguments: Any, **options: Any) -> Any:
    return functools.partial(make, *arguments, **options)


#: Frames have 8x8 latents. WorldPlay's first two programs return the KV cache, 102 MiB per layer.
BOUNDS = {
    "worldplay, text cache": Bound(part(programs.worldplay_autoregressive, program="start"), 1900),
    "worldplay, context cache": Bound(part(programs.worldplay_autoregressive, program="context"), 1900),
    "worldplay, chunk": Bound(part(programs.worldplay_autoregressive, program="denoise"), 1100),
    "worldplay, bidirectional chunks": Bound(programs.worldplay_bidirectional, 1900),
    "matrix, step of a clip": Bound(part(programs.matrix_clip, name="matrix_lora.py:2b"), 300),
    "matrix, step with control": Bound(part(programs.matrix_clip, name="matrix_control.py:2b"), 350),
    "matrix, window of the stream": Bound(part(programs.matrix_stream, name="matrix_swin_dpm.py:2b"), 400),
    "cosmos, window": Bound(programs.cosmos_window, 400, 300),
    # As in bfloat16: each layer is dequantized by itself. The stack in full precision would be another 1056 MiB.
    "cosmos, window in int8": Bound(part(programs.quantized_to, "int8", programs.cosmos_window), 400, 300),
    "cosmos, window in fp8": Bound(part(programs.quantized_to, "fp8", programs.cosmos_window), 400),
    "worldplay, chunk in int8": Bound(
        part(programs.quantized_to, "int8", programs.worldplay_autoregressive, program="denoise"), 1100
    ),
    "matrix, step with control in int8": Bound(
        part(programs.quantized_to, "int8", programs.matrix_clip, name="matrix_control.py:2b"), 350
    ),
    "matrix, window of the stream in fp8": Bound(
        part(programs.quantized_to, "fp8", programs.matrix_stream, name="matrix_swin_dpm.py:2b"), 400
    ),
    "theworld, images and world": Bound(part(programs.theworld, program="fuse"), 750),
    "theworld, prefill": Bound(part(programs.theworld, program="prefill"), 420),
    "theworld, decode step": Bound(part(programs.theworld, program="step"), 420, 150),
    "theworld, answer": Bound(part(programs.theworld, program="answer"), 420),
    # The largest kernel has 216 million values, which are widened; all others are an eighth of it, or less.
    "autoencoder, decoder's step": Bound(part(programs.autoencoder, program="step"), 950),
    "autoencoder, decoder": Bound(part(programs.autoencoder, program="decode"), 950),
    "autoencoder, encoder": Bound(part(programs.autoencoder, program="encode"), 650),
    "wan, decoder's step": Bound(part(programs.autoencoder, family="wan", program="step"), 40),
    "wan, decoder": Bound(part(programs.autoencoder, family="wan", program="decode"), 40),
    "wan, encoder": Bound(part(programs.autoencoder, family="wan", program="encode"), 40),
    "cogvideox, decoder's step": Bound(part(programs.autoencoder, family="cogvideox", program="step"), 90),
    "cogvideox, decoder": Bound(part(programs.autoencoder, family="cogvideox", program="decode"), 90),
    "cogvideox, encoder": Bound(part(programs.autoencoder, family="cogvideox", program="encode"), 75),
}
#: Train step of a recipe -> largest output and temporaries in MiB, without the state and one gradient of each trained
#: parameter. Not here: recipes whose temporaries are about the weights of eight layers or more (WorldPlay, TheWorld,
#: stages 3 and 4 of The Matrix), so that a copy would not be noticed, and other sizes of the same networks.
TRAINING: dict[str, int] = {
    "cosmos_video2world.py:2b": 600,
    "cosmos_video2world.py:2b_lora": 550,
    "matrix_lora.py:2b": 450,
    "matrix_control.py:2b": 600,
}
#: Loss of a recipe on held-out data -> largest output and temporaries in MiB.
HELD_OUT: dict[str, int] = {
    "cosmos_video2world.py:2b": 400,
    "matrix_lora.py:2b": 350,
    "matrix_swin_dpm.py:2b": 400,
    "matrix_scm.py:2b": 400,
}
#: Compiled in the ordinary suite.
FAST = ("cosmos, window", "cosmos, window in int8")


def _one_is_slow(bounds: dict[str, int]) -> list[Any]:
    """Return the names as parameters: the first one for the slow suite, the others for `make test-long`."""
    marks = [pytest.mark.slow, *[pytest.mark.long] * (len(bounds) - 1)]
    return [pytest.param(name, marks=mark) for name, mark in zip(bounds, marks, strict=True)]


@pytest.fixture(autouse=True)
def uncached() -> Iterator[None]:
    """Programs from the cache lack their statistics."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in BOUNDS]
)
def test_cpu(name: str) -> None:
    """In bfloat16, which a CPU widens to float32: only parts of the weights at a time."""
    check(name, jax.devices()[0], BOUNDS[name].cpu)


@pytest.mark.parametrize("name", _one_is_slow(TRAINING))
def test_train_steps(name: str) -> None:
    device = jax.devices()[0]
    lowered = training.train_step(name, LAYERS, device)
    check_bytes(used(lowered.program, device) - lowered.gradients, TRAINING[name], lowered.stack)


@pytest.mark.parametrize("name", _one_is_slow(HELD_OUT))
def test_held_out_losses(name: str) -> None:
    device = jax.devices()[0]
    lowered = training.held_out_loss(name, LAYERS, device)
    check_bytes(used(lowered.program, device), HELD_OUT[name], lowered.stack)


@pytest.mark.slow
@pytest.mark.usefixtures("tpu_flags")
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")
@pytest.mark.parametrize("name", [name for name, bound in BOUNDS.items() if bound.tpu is not None])
def test_tpu(name: str) -> None:
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    device = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices[0]
    bound = BOUNDS[name].tpu
    assert bound is not None
    with jax.default_matmul_precision("default"):
        check(name, device, bound)


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="programs for GPUs can only be compiled on one")
@pytest.mark.parametrize("name", BOUNDS)
def test_gpu(name: str) -> None:
    check(name, jax.devices()[0], BOUNDS[name].cpu)


def check(name: str, device: jax.Device, bound: int) -> None:
    program = BOUNDS[name].make(LAYERS, "bfloat16")
    check_bytes(extra_bytes(program, device), bound, program.stack)


def check_bytes(found: int, bound: int, stack: int) -> None:
    assert found < bound * MIB, f"{found / MIB:.0f} MiB"
    # Else a copy would not be noticed.
    assert bound * MIB < stack


def extra_bytes(program: programs.Compilable, device: jax.Device) -> int:
    """Return the bytes of output and temporaries of a program compiled for one device."""
    devices = mesh.make_mesh(devices=[device])

    def placed(x: Any) -> Any:
        is_array = isinstance(x, jax.ShapeDtypeStruct)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=axes.sharding(devices, ())) if is_array else x

    with jax.set_mesh(devices):
        return used(program.function.lower(*jax.tree.map(placed, program.arguments), **program.options), device)


def used(lowered: Any, device: jax.Device) -> int:
    """Compile, and return the bytes of output and temporaries; on CPUs without the optimization of machine code.

    That takes most of the time and changes no buffer.
    """
    memory = lowered.compile(compiler_options=UNOPTIMIZED if device.platform == "cpu" else None).memory_analysis()
    return int(memory.output_size_in_bytes + memory.temp_size_in_bytes - memory.alias_size_in_bytes)
