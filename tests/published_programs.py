"""Compiled programs of every system at published width, as functions and abstract arguments; nothing is allocated."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from jworld import systems
from jworld.diffusion import adams_bashforth
from jworld.encoders import autoencoders
from jworld.models.autoencoders import files
from jworld.models.autoencoders.hunyuan15 import Hunyuan15Autoencoder
from jworld.models.hunyuan.text import TextInputs
from jworld.models.layers import quantized
from jworld.models.theworld.model import TheWorld
from jworld.systems.cosmos.sampling import WindowSampler
from jworld.systems.matrix import sampling as matrix_sampling
from jworld.systems.theworld import answering
from jworld.systems.worldplay import autoregressive, bidirectional
from jworld.systems.worldplay.latents import Frames
from jworld.utils import config as run_config

#: Latents along a side of a frame: activations are small, so that copies of weights stand out.
SIDE = 8
S = jax.ShapeDtypeStruct


class Compilable(NamedTuple):
    """A jitted function with its abstract arguments, and the bytes of the stacked weights of its layers."""

    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    stack: int


def size(tree: Any) -> int:
    """Return the bytes of all arrays."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def recipe(name: str, layers: int, **changes: Any) -> ml_collections.ConfigDict:
    """Load a recipe of published size with so many layers; `changes` have dotted keys, two underscores for a dot."""
    config = run_config.load_recipe(f"configs/{name}")
    with config.unlocked():
        config.model.num_layers = layers
        config.init_from = ""
        for key, value in changes.items():
            node = config
            *parents, last = key.split("__")
            for parent in parents:
                node = node[parent]
            node[last] = value
    return config


def sampled(config: ml_collections.ConfigDict) -> tuple[Any, Any]:
    """Return the system of a config and its abstract model for sampling."""
    system = systems.create(config)
    with nnx.use_eager_sharding(False):
        return system, nnx.eval_shape(lambda: system.init(nnx.Rngs(0)))


def quantized_to(kind: str, make: Callable[..., Compilable], *arguments: Any, **options: Any) -> Compilable:
    """Return what `make` makes, for quantized weights; `stack` stays that of full precision."""
    found: Compilable = make(*arguments, **options)
    model, *others = found.arguments
    return found._replace(arguments=(quantized.described_model(model, kind), *others))


def compilable(function: Any, model: Any, *arguments: Any, **options: Any) -> Compilable:
    stacks = [leaf for path, leaf in nnx.to_flat_state(nnx.state(model)) if {"blocks", "layers"} & set(path)]
    return Compilable(function, (model, *arguments), options, size(stacks))


def _worldplay(layers: int, dtype: str, mode: str) -> tuple[Any, Any]:
    return sampled(
        recipe(
            "ar_mem.py:8b",
            layers,
            model__param_dtype=dtype,
            data__clip__latent_size=(SIDE, SIDE),
            sample__rollout__mode=mode,
            sample__rollout__num_steps=4,
        )
    )


def _text(system: Any) -> TextInputs:
    clip, cfg, rows = system.clip, system.model_config, 2
    glyph = None if cfg.glyph_dim is None else S((rows, clip.glyph_tokens, cfg.glyph_dim), jnp.float32)
    return TextInputs(
        text=S((rows, clip.text_tokens, cfg.text_dim), jnp.float32),
        text_mask=S((rows, clip.text_tokens), bool),
        vision=S((rows, clip.vision_tokens, cfg.vision_dim), jnp.float32),
        glyph=glyph,
        glyph_mask=None if glyph is None else S(glyph.shape[:2], bool),
    )


def _frames(count: int) -> Frames:
    return Frames(
        S((count,), jnp.int32),
        S((count,), jnp.int32),
        S((count,), bool),
        S((count,), jnp.int32),
        S((count, 4, 4), jnp.float32),
        S((count, 3, 3), jnp.float32),
    )


def _latents(system: Any, count: int) -> S:
    return S((count, SIDE, SIDE, system.model_config.channels), jnp.float32)


def worldplay_autoregressive(layers: int, dtype: str, *, program: str) -> Compilable:
    system, model = _worldplay(layers, dtype, "autoregressive")
    text, context = _text(system), system.memory.memory_frames
    tokens = context * system.tokens_per_frame
    start: Any = functools.partial(autoregressive.start_cache, context_tokens=tokens)
    if program == "start":
        return compilable(autoregressive.start_cache, model, text, context_tokens=tokens)
    cache, image = jax.eval_shape(start, model, text), _latents(system, 1)
    past = _latents(system, context), _frames(context)
    if program == "context":
        options: dict[str, Any] = {"cfg": system.sample, "context_tokens": tokens}
        return compilable(autoregressive.cache_context, model, cache, image, *past, **options)
    chunk = system.chunk_frames
    own = _latents(system, chunk), S((4, 2), jnp.float32), image
    return compilable(autoregressive.denoise_chunk, model, cache, *own, *past, _frames(chunk), cfg=system.sample)


def worldplay_bidirectional(layers: int, dtype: str) -> Compilable:
    system, model = _worldplay(layers, dtype, "bidirectional")
    context, chunk = system.memory.memory_frames, system.chunk_frames
    steps = S((4, 2), jnp.float32)
    arrays = _latents(system, chunk), steps, _latents(system, 1), _latents(system, context)
    frames = _frames(context), _frames(chunk)
    return compilable(bidirectional.denoise_chunk, model, _text(system), *arrays, *frames, cfg=system.sample)


def _matrix(name: str, layers: int, dtype: str) -> tuple[Any, Any, matrix_sampling.Conditions, int]:
    control = {} if name == "matrix_lora.py:2b" else {"model__control_layers": (layers // 2, layers)}
    sizes = {"data__clip__latent_size": (SIDE, SIDE), "model__param_dtype": dtype}
    system, model = sampled(recipe(name, layers, **sizes, **control))
    cfg = system.model_config
    stream = system.sample.mode == "stream"
    frames = system.sample.groups * system.sample.window_frames + 1 if stream else 5
    text = S((1 if system.sample.guidance == 1 else 2, cfg.text_tokens, cfg.text_dim), jnp.float32)
    vectors = S((1, frames, cfg.control_dim), jnp.float32) if control else None
    return system, model, matrix_sampling.Conditions(text, vectors), frames


def matrix_clip(layers: int, dtype: str, *, name: str) -> Compilable:
    system, model, conditions, frames = _matrix(name, layers, dtype)
    sampler = matrix_sampling.ClipSampler(model, system.sample, np.ones(1000))
    x = S((1, frames, SIDE, SIDE, system.model_config.channels), jnp.float32)
    return compilable(sampler._velocity, model, x, conditions, S((1,), jnp.int32), S((), jnp.float32), system.sample)


def matrix_stream(layers: int, dtype: str, *, name: str) -> Compilable:
    system, model, conditions, frames = _matrix(name, layers, dtype)
    sampler = matrix_sampling.StreamSampler(model, system.sample, np.linspace(0.999, 0.001, 1000))
    tail = (SIDE, SIDE, system.model_config.channels)
    window = S((1, frames, *tail), jnp.float32)
    noise = S((len(sampler.rows), 1, frames - 1, *tail), jnp.float32)
    new = S((1, system.sample.window_frames, *tail), jnp.float32)
    return compilable(sampler._pass, model, window, conditions, noise, new)


def cosmos_window(layers: int, dtype: str, *, name: str = "cosmos_video2world.py:2b") -> Compilable:
    sizes = {"data__clip__latent_size": (SIDE, SIDE), "model__param_dtype": dtype}
    system, model = sampled(recipe(name, layers, **sizes))
    cfg, frames = system.model_config, 3
    sampler = WindowSampler(model, system.sample, fps=16.0)
    video = S((frames, SIDE, SIDE, cfg.channels), jnp.float32)
    text = S((system.sample.rows, 64, cfg.text_dim), jnp.float32)
    noisy = S((1, *video.shape), jnp.float32)
    state, steps = adams_bashforth.State(noisy, noisy), adams_bashforth.all_steps(sampler._sigmas)
    return compilable(sampler._run, model, state, steps, video, S((frames,), jnp.float32), text, None)


def theworld(layers: int, dtype: str, *, program: str) -> Compilable:
    """Return a program for text; "fuse" is the part of the prefill that encodes images and the world."""
    changes = {"model__vision_layers": layers, "model__frozen_dtype": dtype, "model__param_dtype": dtype}
    system, model = sampled(recipe("theworld.py:projection", layers, **changes))
    gemma, world = system.model_config.gemma, system.model_config.world
    batch = {"tokens": S((1, 320), jnp.int32), "mask": S((1, 320), bool)}
    options = {"steps": 64, "frames": 0}
    if program == "fuse":
        pixels = S((1, 1, gemma.image_size, gemma.image_size, 3), jnp.float32)
        latents = S((1, world.frames, world.side, world.side, world.latent_channels), jnp.float32)
        return compilable(jax.jit(TheWorld.fuse), model, *batch.values(), pixels, latents)
    if program == "prefill":
        return compilable(answering.prefill, model, batch, **options)
    if program == "answer":
        return compilable(answering.answer, model, batch, ends=(1,), **options)
    state = jax.eval_shape(functools.partial(answering.prefill, **options), model, batch)
    return compilable(answering.step, model, S((1,), jnp.int32), state)


def autoencoder(layers: int, dtype: str, *, program: str, family: str = Hunyuan15Autoencoder.family) -> Compilable:
    """Return a program of a published autoencoder, for 17 frames, or CogVideoX' for 33; it has all its layers.

    CogVideoX' has pieces of two latents. With fewer frames its loop has one iteration, which compilers join with the
    piece before, and then they keep all kernels in float32 from one to the other.
    """
    make, settings = files.NETWORKS[family]
    with nnx.use_eager_sharding(False):
        config = settings(param_dtype=jnp.dtype(dtype))
        network: Any = nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0)))
    side = SIDE // 2
    count = 1 + 4 * (config.chunk or 1)
    latents = S((1, count, side, side, config.latent_channels), jnp.float32)
    weights, options = network.decoder, {}
    if program == "encode":
        weights, pixels = network.encoder, config.spatial_ratio * side
        function: Any = autoencoders.encode_program()
        inputs: tuple[Any, ...] = (S((1, 1 + 4 * (count - 1), pixels, pixels, 3), jnp.uint8),)
        options = {"posterior": False, "tiling": None}
    elif program == "decode":
        function, inputs, options = autoencoders.decode_program(), (latents,), {"tiling": None}
    else:
        function, one = autoencoders.step_program(), S((1, config.chunk or 1, *latents.shape[2:]), jnp.float32)
        inputs = (one, jax.eval_shape(function, network, one, None)[1])
    return Compilable(function, (network, *inputs), options, size(jax.tree.leaves(nnx.state(weights))))
