"""Time and arithmetic of WorldPlay's autoregressive rollout, with kept keys against recomputing everything.

    python benchmarks/rollout.py
    python benchmarks/rollout.py --size middle --chunks 8 --steps 4 50 --json rollout.json

tiny is the model of configs/ar_mem.py; middle has 12 layers of width 512 and 8x8 latents. Without kept keys, every
denoising step runs text, past frames and chunk through the model together. Both versions make the same latents, which
is checked, and run by turns, chunk by chunk. Steps of 4 are those of the distilled weights, 50 those of the others.
The first chunk is timed from the image and the text on, without the autoencoder. Below the table stand the floors of
the published model: the operations of its denoising step and of encoding the past again, by formula.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import pathlib
import statistics
import time
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
from jworld.systems.worldplay.autoregressive import AutoregressiveSession
from jworld.systems.worldplay.latents import Controls, Frames, LatentSession, SampleConfig, frame_inputs
from jworld.systems.worldplay.system import WorldPlay
from jworld.utils import config as run_config

VERSIONS = ("chunk", "recomputed")
#: How far the two versions may be apart, as a share of the largest value: GPUs and TPUs round float32 products more.
TOLERANCE = {"cpu": 1e-4}
ROUNDED = 3e-2


def whole_velocity(model: HunyuanTransformer, text: TextInputs, frames: FrameInputs, *, past: int) -> jax.Array:
    """Velocity in one pass: text sees text, the first `past` frames see text and each other, the others everything."""
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
        seen = tokens.shape[1] + cut
        old = attention(q[:, :cut], k[:, :seen], v[:, :seen], key_mask=mask[:, :seen])
        new = attention(q[:, cut:], k, v, key_mask=mask)
        image = block._image_update(image, jnp.concatenate([old, new], axis=1), context, modulation)
        return (image, tokens), None

    (image, _), _ = scan_layers(model.blocks, layer, (model._embed(frames.video), tokens), remat="none")
    return model._output(image, context.vector, frames.video.shape)


@functools.partial(jax.jit, static_argnames="cfg")
def recomputed_step(
    model: HunyuanTransformer,
    text: TextInputs,
    x: jax.Array,
    sigmas: tuple[jax.Array, jax.Array],
    image: np.ndarray,
    past: np.ndarray,
    frames: Frames,
    *,
    cfg: SampleConfig,
) -> jax.Array:
    """One denoising step [f, H, W, C] -> [f, H, W, C], everything that the chunk sees included."""
    rows, known = text.text.shape[0], len(past)
    times = jnp.concatenate(
        [jnp.full(known, cfg.context_time), jnp.full(len(x), sigmas[0] * flow_matching.NUM_TIMESTEPS)]
    )
    inputs = frame_inputs(frames, jnp.concatenate([past, x]), image, times, rows)
    velocity = whole_velocity(model, text, inputs, past=known)[:, known:]
    guided = velocity[0] if rows == 1 else velocity[0] + cfg.guidance * (velocity[1] - velocity[0])
    return flow_matching.euler_step(x, guided, *sigmas)


class RecomputingSession(LatentSession):
    """The autoregressive model's rollout with nothing kept between denoising steps."""

    training_chunks = 1

    def _begin(self, text: TextInputs) -> None:
        self._text = text

    def _denoise(self, noise: jax.Array, past: np.ndarray, context: Frames, chunk: Frames) -> jax.Array:
        frames = Frames(*(np.concatenate(pair) for pair in zip(context, chunk, strict=True)))
        sigmas = flow_matching.sampling_sigmas(self.sample.num_steps, self.sample.shift)
        x = noise
        for pair in itertools.pairwise(sigmas):
            x = recomputed_step(self.model, self._text, x, pair, self._image, past, frames, cfg=self.sample)
        return x


def random_model(system: WorldPlay) -> HunyuanTransformer:
    """No weight at zero: new weights predict nothing, and so would hide a difference."""
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


def run_by_turns(
    sessions: list[LatentSession], system: WorldPlay, chunks: int
) -> tuple[list[list[float]], list[float]]:
    """(seconds of every chunk, seconds from image and text to the first chunk) of each session.

    A rollout of two chunks compiles before; the latents must agree.
    """
    size, cfg = system.clip.latent_size, system.model_config
    image = np.random.default_rng(2).standard_normal((1, *size, cfg.channels), np.float32)
    frames = system.chunk_frames * chunks
    path = pose_strings.path(f"w-{frames // 2}, right-{frames - frames // 2 - 1}")
    seconds: list[list[float]] = [[] for _ in sessions]
    for count, kept in ((2, False), (chunks, True)):
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
                times += [time.perf_counter() - began] * kept
            if cfg.dtype == "float32":
                tolerance = TOLERANCE.get(jax.default_backend(), ROUNDED)
                np.testing.assert_allclose(made[0], made[1], atol=tolerance * np.abs(made[0]).max())
    return seconds, [start + times[0] for start, times in zip(starts, seconds, strict=True)]


def chunk_flops(system: WorldPlay, steps: int, rows: int) -> tuple[flops.Flops, flops.Flops]:
    """Operations of one chunk that has a past, with kept keys and without; padding included, as it is computed."""
    cfg, clip = system.model_config, system.clip
    size = system.tokens_per_frame
    words = clip.text_tokens + clip.vision_tokens
    text = flops.text_pass_flops(cfg, text_tokens=clip.text_tokens, vision_tokens=clip.vision_tokens)
    past = flops.image_pass_flops(cfg, frames=clip.memory_frames, tokens_per_frame=size, cached_tokens=words)
    seen = words + clip.memory_frames * size
    chunk = flops.image_pass_flops(cfg, frames=system.chunk_frames, tokens_per_frame=size, cached_tokens=seen)
    nothing = flops.Flops(0, 0)
    return (
        nothing.plus(past.plus(chunk, steps), rows),
        nothing.plus(text.plus(past).plus(chunk), rows * steps),
    )


def floors() -> dict[str, float]:
    """Operations of the published model, one row, text left out: a denoising step of a chunk, and its past."""
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
    """All numbers of one number of denoising steps."""
    system: WorldPlay = systems.create(train_step.make_config(size, None))
    sample = dataclasses.replace(system.sample, num_steps=steps)
    model = random_model(system)
    common: dict[str, Any] = {"sample": sample, "memory_config": system.memory, "points": system.points()}
    sessions: list[LatentSession] = [kind(model, **common) for kind in (AutoregressiveSession, RecomputingSession)]
    (cached, recomputed), (first, _) = run_by_turns(sessions, system, chunks)
    kept, whole = chunk_flops(system, steps, 1 if sample.guidance == 1 else 2)
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
        "chunk_flops": kept.total,
        "recomputed_flops": whole.total,
        "flops_ratio": whole.total / kept.total,
        "flops_per_second": kept.total / statistics.median(cached),
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
        f"floors of the published model (8b), a chunk of 16 frames after 20 latents: "
        f"{floor['denoising_step_flops'] / 1e15:.2f} PFLOP per denoising step, {floor['past_flops'] / 1e15:.2f} PFLOP "
        "for encoding the past again",
        sep="\n",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "middle"), default="tiny")
    parser.add_argument("--chunks", type=int, default=8, help="chunks of the rollout that is measured")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 50], help="denoising steps; one row each")
    parser.add_argument("--json", type=pathlib.Path, help="also write the numbers to this file")
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
