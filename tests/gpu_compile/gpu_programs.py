"""Programs of every published recipe, compiled for H100s that are not there: two layers, otherwise published sizes."""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from jworld import systems
from jworld.encoders import autoencoders
from jworld.models.autoencoders import files
from jworld.parallel import axes, mesh
from jworld.planning import generation, recommendations, topologies
from jworld.planning.program import Program
from jworld.utils import config as run_config

CHIP, LAYERS, MIB = "h100", 2, 2**20
#: Targets of custom calls, by what computes them.
KERNELS = {"attention": r"__cudnn\$fmha[\w$]*", "convolution": r"__cudnn\$conv[\w$]*", "product": r"__cublas\$[\w$]+"}
#: Recipe -> topology that its mesh needs.
TRAINING = {
    "ar_mem:8b": f"{CHIP}-64",
    **{f"cosmos_video2world:{name}": f"{CHIP}-8" for name in ("2b", "14b", "2b_lora", "14b_lora", "2b_action")},
    **{f"{name}:2b": f"{CHIP}-8" for name in ("matrix_lora", "matrix_control", "matrix_swin_dpm", "matrix_scm")},
    **{f"theworld:{name}": f"{CHIP}-8" for name in ("projection", "vision", "language", "full")},
}
#: Recipes whose generation differs, on one chip.
GENERATION = (
    "ar_mem:8b",
    "cosmos_video2world:2b",
    "cosmos_video2world:14b",
    "matrix_lora:2b",
    "matrix_control:2b",
    "matrix_swin_dpm:2b",
    "matrix_scm:2b",
    "theworld:full",
)
#: Family of published autoencoders -> frames and size in pixels of the video that is encoded in one call.
ENCODERS = {"hunyuan15": (17, 256, 256), "wan": (17, 256, 256), "cogvideox": (17, 256, 256)}


class Figures(NamedTuple):
    """Figures of a compiled program: MiB of temporaries, and calls by `KERNELS`."""

    temporaries: int
    kernels: dict[str, int]


def figures(compiled: Any) -> Figures:
    text = compiled.as_text()
    counts = {name: len(re.findall(rf'custom_call_target="{target}"', text)) for name, target in KERNELS.items()}
    return Figures(round(compiled.memory_analysis().temp_size_in_bytes / MIB), counts)


def recipe(name: str) -> ml_collections.ConfigDict:
    """Load a recipe with two layers of every stack, without files of actions."""
    stem, _, variant = name.partition(":")
    loaded = run_config.load_recipe(f"configs/{stem}.py:{variant}")
    changes: dict[str, Any] = {"model.num_layers": LAYERS}
    if "control_layers" in loaded.model:
        changes |= {"model.control_layers": (LAYERS // 2, LAYERS), "data.clip.control_states": ""}
    if "vision_layers" in loaded.model:
        changes["model.vision_layers"] = LAYERS
    return recommendations.changed(loaded, changes)


def train_step(name: str, chip: str = CHIP) -> Any:
    """Lower the train step of a recipe for the GPUs that its mesh needs."""
    devices = topologies.devices(topologies.parse(TRAINING[name].replace(CHIP, chip)))
    return Program(recipe(name), devices).lower()


def attention_calls(lowered: Any) -> int:
    """Return the number of calls of cuDNN's attention in a program before compilation."""
    return len(re.findall(f'@"?{KERNELS["attention"]}', lowered.as_text()))


def generation_programs(name: str) -> Iterator[tuple[str, Callable[[], Figures]]]:
    """Yield the name of every program of generation, and what compiles it."""
    devices = mesh.make_mesh(devices=topologies.devices(topologies.parse(f"{CHIP}-1")))
    config = recipe(name)
    with config.unlocked():
        config.mesh = dict(devices.shape)
    system: Any = systems.create(config)
    system.check_sampling(devices)
    with axes.describing(devices):
        found = system.generation(generation.described_model(system, config, devices), devices)
        for program in (*found.network, *found.decoding):
            yield program.name, functools.partial(lambda one: figures(one.compiled), program)


def encode(family: str) -> Figures:
    make, settings = files.NETWORKS[family]
    frames, height, width = ENCODERS[family]
    devices = mesh.make_mesh(devices=topologies.devices(topologies.parse(f"{CHIP}-1")))
    with nnx.use_eager_sharding(False):
        config = settings(param_dtype=jnp.dtype("bfloat16"))
        network: Any = nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0)))

    def placed(x: Any) -> Any:
        is_array = isinstance(x, jax.ShapeDtypeStruct)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=axes.sharding(devices, ())) if is_array else x

    video = jax.ShapeDtypeStruct((1, frames, height, width, 3), jnp.uint8)
    with jax.set_mesh(devices):
        arguments = jax.tree.map(placed, (network, video))
        return figures(autoencoders.encode_program().lower(*arguments, posterior=False, tiling=None).compile())
