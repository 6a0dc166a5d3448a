"""WorldPlay's training objective: a time per chunk, low noise on memory, loss on the last chunk of memory samples.

Source: HY-WorldPlay `trainer/training/ar_hunyuan_mem_training_pipeline.py`. Two options that it does not have work
against drift: `clean_context` and `own_errors`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jworld.diffusion import flow_matching
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import FrameInputs, HunyuanTransformer
from jworld.systems.worldplay import references
from jworld.utils import ranges

Batch = Mapping[str, jax.Array]


#: Diffusion time in whole steps of 1000.
Time = Annotated[int, ranges.Range(1, flow_matching.NUM_TIMESTEPS)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimesConfig:
    """Distribution of the times of flow matching, and the weights of their losses.

    Attributes:
      shift: shift of the training times towards noise.
      weighting: distribution of times, see `flow_matching.sample_unit_times`.
      logit_mean, logit_std: normal distribution of the logits of times, for "logit_normal".
      mode_scale: width of the distribution "mode".
      sigma_floor: noise level (0 to 1) below which the squared error counts as much as that of clean latents there: a
        network that predicts clean latents is wrong by error / sigma, and rare low levels would outweigh all others
        (as Min-SNR weighting does, arXiv 2303.09556). As published (0), all levels count alike.
    """

    shift: ranges.Shift = 3.0
    weighting: Literal["logit_normal", "mode", "uniform"] = "logit_normal"
    logit_mean: ranges.Logit = 0.0
    logit_std: Annotated[float, ranges.Range(0, 100)] = 1.0
    mode_scale: Annotated[float, ranges.Range(0, 2)] = 1.29
    sigma_floor: ranges.Share = 0.0

    def __post_init__(self) -> None:
        ranges.check(self)

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Draw times before the shift, in [0, 1)."""
        return flow_matching.sample_unit_times(
            key,
            shape,
            weighting=self.weighting,
            logit_mean=self.logit_mean,
            logit_std=self.logit_std,
            mode_scale=self.mode_scale,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(TimesConfig):
    """Values of the published launch script (`config.loss`).

    Attributes:
      kind: "flow", flow matching.
      memory_times: inclusive range of times (t of 1000) of the context frames of a memory sample.
      clean_context: share of the other samples with such a context too: their chunks before a random one. As published
        (0), the context of a clip's first chunks is as noisy as they are, which it never is in a rollout.
      own_errors: share of samples whose context is the model's own prediction of it from noisy frames, so that training
        sees what a rollout continues from (as in Matrix-Game 3 and DIAMOND). Above 0 it costs another forward pass.
    """

    kind: Literal["flow"] = "flow"
    memory_times: tuple[Time, Time] = (16, 500)
    clean_context: ranges.Share = 0.0
    own_errors: ranges.Share = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_memory_times(self.memory_times)


def check_memory_times(times: tuple[int, int]) -> None:
    """Raise a ValueError if the range of times of context frames is empty."""
    if times[0] > times[1]:
        raise ValueError(f"memory_times {times} must be an increasing pair within 1..1000")


class Draws(NamedTuple):
    """All random numbers of a loss.

    Attributes:
      u: times per chunk before the shift, [B, n] in [0, 1).
      memory_times: integer times [B, n] that replace those of memory chunks.
      noise: standard normal, in the shape of the latents.
      context: chunks [B] before those that count, for samples that are not memory samples; None is 0.
      own: whether the context is the model's own prediction, bool [B]; None is False.
    """

    u: jax.Array
    memory_times: jax.Array
    noise: jax.Array
    context: jax.Array | None = None
    own: jax.Array | None = None


def draw(key: jax.Array, shape: tuple[int, ...], chunk_frames: int, cfg: ObjectiveConfig) -> Draws:
    """Draw the random numbers of a loss of latents of `shape` [B, F, H, W, C]."""
    key_u, key_memory, key_noise = jax.random.split(key, 3)
    key_context, key_size, key_own = jax.random.split(jax.random.fold_in(key, 1), 3)
    chunks = (shape[0], shape[1] // chunk_frames)
    u = cfg.draw(key_u, chunks)
    low, high = cfg.memory_times
    memory_times = jax.random.randint(key_memory, chunks, low, high + 1)
    context = own = None
    if cfg.clean_context > 0:
        sizes = jax.random.randint(key_size, chunks[:1], 1, max(chunks[1], 2))
        context = jnp.where(jax.random.bernoulli(key_context, cfg.clean_context, chunks[:1]), sizes, 0)
    if cfg.own_errors > 0:
        own = jax.random.bernoulli(key_own, cfg.own_errors, chunks[:1])
    return Draws(u, memory_times, jax.random.normal(key_noise, shape), context, own)


def in_context(draws: Draws, is_memory: jax.Array) -> jax.Array:
    """Return which chunks are context alone, bool [B, n]: all but the last chunk of a memory sample."""
    count = draws.u.shape[1]
    others = jnp.zeros_like(is_memory, jnp.int32) if draws.context is None else draws.context
    return jnp.arange(count) < jnp.where(is_memory, count - 1, others)[:, None]


def chunk_timesteps(draws: Draws, is_memory: jax.Array, shift: float) -> jax.Array:
    """Return the times of chunks, [B, n] float32; context has memory times."""
    times = flow_matching.training_timesteps(draws.u, shift)
    return jnp.where(in_context(draws, is_memory), draws.memory_times.astype(jnp.float32), times)


def condition_video(image: jax.Array, is_first: jax.Array | np.ndarray) -> jax.Array:
    """Return condition and mask channels [B, F, H, W, C + 1]: image and ones in the first frame, zeros elsewhere.

    Args:
      image: latents of the first frame, [B, 1, H, W, C].
      is_first: bool, [F] for all samples or [B, F].
    """
    image = image.astype(jnp.float32)
    condition = jnp.concatenate([image, jnp.ones_like(image[..., :1])], axis=-1)
    return jnp.where(jnp.asarray(is_first)[..., None, None, None], condition, 0)


def text_inputs(batch: Batch) -> TextInputs:
    """Return the text inputs in a batch."""
    return TextInputs(
        text=batch["text_states"],
        text_mask=batch["text_mask"],
        vision=batch["vision_states"],
        glyph=batch.get("glyph_states"),
        glyph_mask=batch.get("glyph_mask"),
    )


def negative_inputs(batch: Batch) -> TextInputs:
    """Return the text inputs of the negative prompt, for a batch that has it; it has no glyphs, as in the original."""
    own = text_inputs(batch)
    return own._replace(
        text=batch["negative_states"],
        text_mask=batch["negative_mask"],
        glyph=None if own.glyph is None else jnp.zeros_like(own.glyph),
        glyph_mask=None if own.glyph_mask is None else jnp.zeros_like(own.glyph_mask),
    )


def unit_time(level: jax.Array, shift: float) -> jax.Array:
    """Return the time before the shift whose shifted time is `level` of 1; the inverse of `flow_matching.shifted`."""
    return level / (shift - (shift - 1) * level)


def loss(
    model: HunyuanTransformer, batch: Batch, draws: Draws, *, chunk_frames: int, shift: float, sigma_floor: float = 0.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Compute the mean over samples of the masked mean squared error of the velocity, float32; see `predict`."""
    return predict(model, batch, draws, chunk_frames=chunk_frames, shift=shift, sigma_floor=sigma_floor)[0], {}


def predict(
    model: HunyuanTransformer, batch: Batch, draws: Draws, *, chunk_frames: int, shift: float, sigma_floor: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Return the loss, a float32 scalar, and the model's prediction of the clean latents [B, F, H, W, C], float32.

    Args:
      model: model that predicts noise - clean.
      batch: arrays of `WorldPlay.batch_spec`.
      draws: the random numbers.
      chunk_frames: latent frames per chunk.
      shift: shift of the training times.
      sigma_floor: see `ObjectiveConfig`.
    """
    clean, is_memory = batch["latent"].astype(jnp.float32), batch["is_memory"]
    is_first = np.arange(clean.shape[1]) == 0

    def velocity(latents: jax.Array, chunk_times: jax.Array, known: jax.Array) -> tuple[jax.Array, jax.Array]:
        times = jnp.repeat(chunk_times, chunk_frames, axis=1)
        sigma = (times / flow_matching.NUM_TIMESTEPS)[:, :, None, None, None]
        noisy = flow_matching.add_noise(latents, draws.noise, sigma)
        condition = condition_video(batch["image_cond"], is_first)
        if model.cfg.references:
            found = references.find(batch["w2c"], references.Known(latents, batch["w2c"], known), batch["image_cond"])
            condition = jnp.where(known[:, :, None, None, None], condition, found)
        video = jnp.concatenate([noisy, condition], axis=-1)
        frames = FrameInputs(video, times, batch["action"], batch["w2c"], batch["intrinsics"])
        # The text of the autoregressive model always has time 0, so its KV cache is valid for a whole rollout.
        predicted = model(frames, text_inputs(batch), jnp.zeros(len(latents)), chunk_frames=chunk_frames)
        return predicted, noisy - sigma * predicted

    context = jnp.repeat(in_context(draws, is_memory), chunk_frames, axis=1)
    latents = clean
    if draws.own is not None:
        times = flow_matching.training_timesteps(draws.u, shift)
        made = jax.lax.stop_gradient(velocity(clean, times, jnp.zeros_like(context))[1])
        replaced = (context & draws.own[:, None])[:, :, None, None, None]
        latents = jnp.where(replaced, made, clean)
    chunk_times = chunk_timesteps(draws, is_memory, shift)
    predicted, denoised = velocity(latents, chunk_times, context)
    per_frame = jnp.mean(jnp.square(predicted - (draws.noise - clean)), axis=(2, 3, 4))
    levels = jnp.repeat(chunk_times, chunk_frames, axis=1) / flow_matching.NUM_TIMESTEPS
    per_frame *= flow_matching.error_weights(levels, sigma_floor)
    per_sample = jnp.sum(per_frame * ~context, axis=1) / jnp.sum(~context, axis=1)
    return jnp.mean(per_sample), denoised
