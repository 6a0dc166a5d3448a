"""Benchmark of WorldPlay's autoregressive rollout with a KV cache, compared with recomputing everything.

    python benchmarks/rollout.py
    python benchmarks/rollout.py --size middle --chunks 8 --steps 4 50 --json rollout.json

tiny is the model of configs/ar_mem.py; middle has 12 layers of width 512 and 8x8 latents. Without a KV cache, every
denoising step runs text, context frames and chunk through the model together. Both versions make the same latents,
which is checked, and alternate chunk by chunk. The distilled weights use 4 steps, the others 50.

The first chunk is timed from image and text, without the autoencoder. The lines below the table print lower bounds for
the published model: the operations of a denoising step and of encoding the context frames, by formula.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import pathlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
import train_step
from flax import nnx

from jworld import systems
from jworld.cameras import pose_strings
from jworld.diffusion import flow_matching
from jworld.models.hunyuan import flops
from jworld.models.hunyuan.blocks import DoubleBlock
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import FrameInputs, HunyuanTransformer
from jworld.models.layers.attention import attention
from jworld.models.layers.stack import scan_layers
from jworld.parallel.programs import Program
from jworld.systems.worldplay.autoregressive import AutoregressiveSession
from jworld.systems.worldplay.latents import Controls, Frames, LatentSession, SampleConfig, frame_inputs, known_frames
from jworld.systems.worldplay.system import WorldPlay
from jworld.utils import arguments as command_line
from jworld.utils import config as run_config

VERSIONS = ("chunk", "recomputed")
#: Largest difference of the two versions, relative to the largest value; GPUs and TPUs round float32 products more.
TOLERANCE = {"cpu": 1e-4}
ROUNDED = 3e-2


def whole_velocity(model: HunyuanTransformer, text: TextInputs, frames: FrameInputs, *, past: int) -> jax.Array:
    """Compute the velocity in one pass.

    Text attends to text, the first `past` frames to text and each other, the other frames to everything.
    """
    time = jnp.zeros(text.text.shape[0])
    tokens, text_mask = model.text(text, time)
    vector, context = model.time(time)[:, None], model._context(frames)
    mask = jnp.concatenate([text_mask, context.mask], axis=1)

    def layer(block: DoubleBlock, carry: tuple[jax.Array, jax.Array], _: None) -> tuple[Any, None]:
        image, tokens = carry
        tokens, words = block.text_only(tokens, vector, text_mask)
        modulation = block.image.modulation(context.vector)
        q, own = block._image_qkv(image, context, modulation)
        copies = q.shape[2] // words.keys.shape[2]
        k, v = (jnp.concatenate([jnp.tile(a, (1, 1, copies, 1)), b], axis=1) for a, b in zip(words, own, strict=True))
        cut = past * image.shape[2]
        visible = tokens.shape[1] + cut
        old = attention(q[:, :cut], k[:, :visible], v[:, :visible], key_mask=mask[:, :visible])
        new = attention(q[:, cut:], k, v, key_mask=mask)
        image = block._image_update(image, jnp.concatenate([old, new], axis=1), context, modulation)
        return (image, tokens), None

    (image, _), _ = scan_layers(model.blocks, layer, (model._embed(frames.video), tokens), remat="none")
    return model._velocity(image, context.vector, frames)


@functools.partial(jax.jit, static_argnames="cfg")
def recomputed_step(
    model: HunyuanTransformer,
    text: TextInputs,
    x: jax.Array,
    sigmas: tuple[jax.Array, jax.Array],
    image: np.ndarray,
    past: np.ndarray,
    context: Frames,
    chunk: Frames,
    *,
    cfg: SampleConfig,
) -> jax.Array:
    """Run one denoising step [f, H, W, C] -> [f, H, W, C], with text and context frames recomputed."""
    rows, known = text.text.shape[0], known_frames(model, past, context)
    time, size = (value * flow_matching.NUM_TIMESTEPS for value in (sigmas[0], sigmas[0] - sigmas[1]))
    old = frame_inputs(context, past, image, cfg.context_time, rows, step_sizes=0.0)
    new = frame_inputs(chunk, x, image, time, rows, known=known, step_sizes=size)
    # Positions have no axis of rows.
    inputs = FrameInputs(*(jnp.concatenate(pair, axis=min(pair[0].ndim - 1, 1)) for pair in zip(old, new, strict=True)))
    velocity = whole_velocity(model, text, inputs, past=len(past))[:, len(past) :]
    guided = velocity[0] if rows == 1 else velocity[0] + cfg.guidance * (velocity[1] - velocity[0])
    return flow_matching.euler_step(x, guided, *sigmas)


class RecomputingSession(LatentSession):
    """Rollout of the autoregressive model without a KV cache."""

    training_chunks = 1

    def programs(self, text: TextInputs, image: tuple[int, ...]) -> Iterator[Program]:
        """Compile nothing ahead: the first call is not timed."""
        return iter(())

    def _begin(self, text: TextInputs) -> None:
        self._text = text

    def _denoise(self, noise: jax.Array, past: np.ndarray, context: Frames, chunk: Frames) -> jax.Array:
        sigmas = flow_matching.sampling_sigmas(self.sample.num_steps, self.sample.shift)
        x = noise
        for pair in itertools.pairwise(sigmas):
            given = self._image, past, context, chunk
            x = recomputed_step(self.model, self._text, x, pair, *given, cfg=self.sample)
        return x


def random_model(system: WorldPlay) -> HunyuanTransformer:
    """Make a model without zero weights: zero-initialized layers would hide a difference."""
    with nnx.use_eager_sharding(False):
        graphdef, params = nnx.split(nnx.eval_shape(lambda: system.init(nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def drawn(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        fan_in = leaf.shape[-2] if len(leaf.shape) > 1 else leaf.shape[-1]
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) / np.sqrt(fan_in), leaf.dtype)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(drawn, params))


def random_text(system: WorldPlay, rows: int) -> TextInputs:
    clip, model = system.clip, system.model_config
    rng = np.random.default_rng(1)

    def states(tokens: int, width: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal((rows, tokens, width), np.float32))

    return TextInputs(
        states(clip.text_tokens, model.text_dim),
        jnp.ones((rows, clip.text_tokens), bool),
        states(clip.vision_tokens, model.vision_dim),
    )


def run_alternately(
    sessions: list[LatentSession], system: WorldPlay, chunks: int
) -> tuple[list[list[float]], list[float]]:
    """Run the sessions alternately, chunk by chunk, after a rollout of two chunks that compiles.

    Returns:
      For each session, the seconds of every chunk and the seconds from image and text to the first chunk.

    Raises:
      AssertionError: the latents differ.
    """
    size, cfg = system.clip.latent_size, system.model_config
    image = np.random.default_rng(2).standard_normal((1, *size, cfg.channels), np.float32)
    frames = system.chunk_frames * chunks
    path = pose_strings.path(f"w-{frames // 2}, right-{frames - frames // 2 - 1}")
    seconds: list[list[float]] = [[] for _ in sessions]
    for count, timed in ((2, False), (chunks, True)):
        starts = []
        for session in sessions:
            text = random_text(system, 1 if session.sample.guidance == 1 else 2)
            began = time.perf_counter()
            session.reset(image, text)
            starts.append(time.perf_counter() - began)
        for start in range(0, count * system.chunk_frames, system.chunk_frames):
            part = slice(start, start + system.chunk_frames)
            controls, made = Controls(path.action[part], path.w2c[part], path.intrinsics[part]), []
            for session, times in zip(sessions, seconds, strict=True):
                began = time.perf_counter()
                made.append(session.step(controls))
                times += [time.perf_counter() - began] * timed
            if cfg.dtype == "float32":
                tolerance = TOLERANCE.get(jax.default_backend(), ROUNDED)
                np.testing.assert_allclose(made[0], made[1], atol=tolerance * np.abs(made[0]).max())
    return seconds, [start + times[0] for start, times in zip(starts, seconds, strict=True)]


def chunk_flops(system: WorldPlay, steps: int, rows: int) -> tuple[flops.Flops, flops.Flops]:
    """Count the operations of one chunk after context frames, padding included; -> (with KV cache, without)."""
    cfg, clip = system.model_config, system.clip
    size = system.tokens_per_frame
    words = clip.text_tokens + clip.vision_tokens
    text = flops.text_pass_flops(cfg, text_tokens=clip.text_tokens, vision_tokens=clip.vision_tokens)
    past = flops.image_pass_flops(cfg, frames=clip.memory_frames, tokens_per_frame=size, cached_tokens=words)
    cached = words + clip.memory_frames * size
    chunk = flops.image_pass_flops(cfg, frames=system.chunk_frames, tokens_per_frame=size, cached_tokens=cached)
    nothing = flops.Flops(0, 0)
    return (
        nothing.plus(past.plus(chunk, steps), rows),
        nothing.plus(text.plus(past).plus(chunk), rows * steps),
    )


def floors() -> dict[str, float]:
    """Count the operations of the published model, one row without text: a chunk's denoising step, and its context."""
    system: WorldPlay = systems.create(run_config.load_recipe(f"{train_step.RECIPE}:8b"))
    clip, size = system.clip, system.tokens_per_frame
    past = flops.image_pass_flops(
        system.model_config, frames=clip.memory_frames, tokens_per_frame=size, cached_tokens=0
    )
    chunk = flops.image_pass_flops(
        system.model_config,
        frames=system.chunk_frames,
        tokens_per_frame=size,
        cached_tokens=clip.memory_frames * size,
    )
    return {"denoising_step_flops": chunk.total, "past_flops": past.total}


def measure(size: str, steps: int, chunks: int) -> dict[str, Any]:
    """Measure one number of denoising steps."""
    system: WorldPlay = systems.create(train_step.make_config(size, None))
    sample = dataclasses.replace(system.sample, num_steps=steps)
    model = random_model(system)
    common: dict[str, Any] = {"sample": sample, "memory_config": system.memory, "points": system.points()}
    sessions: list[LatentSession] = [kind(model, **common) for kind in (AutoregressiveSession, RecomputingSession)]
    (cached, recomputed), (first, _) = run_alternately(sessions, system, chunks)
    cached_flops, whole = chunk_flops(system, steps, 1 if sample.guidance == 1 else 2)
    return {
        "steps": steps,
        **{
            f"{name}_p{p}_seconds": float(np.percentile(times, p))
            for name, times in zip(VERSIONS, (cached, recomputed), strict=True)
            for p in (50, 95)
        },
        "first_chunk_seconds": first,
        "time_ratio": sum(recomputed) / sum(cached),
        "latent_frames_per_second": chunks * system.chunk_frames / sum(cached),
        "chunk_flops": cached_flops.total,
        "recomputed_flops": whole.total,
        "flops_ratio": whole.total / cached_flops.total,
        "flops_per_second": cached_flops.total / statistics.median(cached),
    }


def print_table(rows: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    title = f"{settings['size']} on {settings['device']}, {settings['dtype']}, {settings['chunks']} chunks"
    columns = (
        "steps",
        "first chunk",
        "per chunk, p50 / p95",
        "recomputed",
        "time ratio",
        "GFLOP",
        "recomputed",
        "ratio",
    )
    table = rich.table.Table(*columns, title=title)
    for row in rows:
        milliseconds = {name: f"{row[name] * 1e3:,.1f}" for name in row if name.endswith("_seconds")}
        table.add_row(
            str(row["steps"]),
            f"{milliseconds['first_chunk_seconds']} ms",
            *(f"{milliseconds[f'{x}_p50_seconds']} / {milliseconds[f'{x}_p95_seconds']} ms" for x in VERSIONS),
            f"{row['time_ratio']:.2f}",
            *(f"{row[f'{x}_flops'] / 1e9:,.2f}" for x in VERSIONS),
            f"{row['flops_ratio']:.2f}",
        )
    floor = settings["published_floors"]
    rich.console.Console(highlight=False).print(
        table,
        f"lower bounds for the published model (8b), a chunk of 16 frames after 20 context latents: "
        f"{floor['denoising_step_flops'] / 1e15:.2f} PFLOP per denoising step, {floor['past_flops'] / 1e15:.2f} PFLOP "
        "for encoding the context",
        sep="\n",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=command_line.Formatter)
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--size", choices=("tiny", "middle"), default="tiny", help=f"model size {default}")
    add("--chunks", type=int, default=8, help=f"chunks of the rollout {default}")
    add("--steps", type=int, nargs="+", default=[4, 50], help="denoising steps, one row each (default: 4 50)")
    add("--json", type=pathlib.Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    rows = [measure(arguments.size, steps, arguments.chunks) for steps in arguments.steps]
    system: WorldPlay = systems.create(train_step.make_config(arguments.size, None))
    settings = {
        "size": arguments.size,
        "chunks": arguments.chunks,
        "device": jax.devices()[0].device_kind,
        "dtype": jnp.dtype(system.model_config.dtype).name,
        "published_floors": floors(),
    }
    print_table(rows, settings)
    if arguments.json:
        arguments.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
