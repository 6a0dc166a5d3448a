"""WorldPlay's training objective: a time per chunk, low noise on memory, loss on the last chunk of memory samples.

Source: HY-WorldPlay `trainer/training/ar_hunyuan_mem_training_pipeline.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jworld.diffusion import flow_matching
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import FrameInputs, HunyuanTransformer

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Values of the published launch script (`config.loss`).

    Attributes:
      shift: shift of the training times towards noise.
      weighting: distribution of times, see `flow_matching.sample_unit_times`.
      logit_mean, logit_std: normal distribution of the logits of times, for "logit_normal".
      mode_scale: width of the distribution "mode".
      memory_times: inclusive range of times (t of 1000) of the context frames of a memory sample.
    """

    shift: float = 3.0
    weighting: str = "logit_normal"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    memory_times: tuple[int, int] = (16, 500)

    def __post_init__(self) -> None:
        if self.weighting not in ("logit_normal", "mode", "uniform"):
            raise ValueError(f"weighting is {self.weighting!r}, must be logit_normal, mode or uniform")
        if not 1 <= self.memory_times[0] <= self.memory_times[1] <= flow_matching.NUM_TIMESTEPS:
            raise ValueError(f"memory_times {self.memory_times} must be an increasing pair within 1..1000")


class Draws(NamedTuple):
    """All random numbers of a loss.

    Attributes:
      u: times per chunk before the shift, [B, n] in [0, 1).
      memory_times: integer times [B, n] that replace those of memory chunks.
      noise: standard normal, in the shape of the latents.
    """

    u: jax.Array
    memory_times: jax.Array
    noise: jax.Array


def draw(key: jax.Array, shape: tuple[int, ...], chunk_frames: int, cfg: ObjectiveConfig) -> Draws:
    """Draw the random numbers of a loss of latents of `shape` [B, F, H, W, C]."""
    key_u, key_memory, key_noise = jax.random.split(key, 3)
    chunks = (shape[0], shape[1] // chunk_frames)
    u = flow_matching.sample_unit_times(
        key_u,
        chunks,
        weighting=cfg.weighting,
        logit_mean=cfg.logit_mean,
        logit_std=cfg.logit_std,
        mode_scale=cfg.mode_scale,
    )
    low, high = cfg.memory_times
    memory_times = jax.random.randint(key_memory, chunks, low, high + 1)
    return Draws(u, memory_times, jax.random.normal(key_noise, shape))


def chunk_timesteps(draws: Draws, is_memory: jax.Array, shift: float) -> jax.Array:
    """Return the times of chunks, [B, n] float32; all but the last chunk of a memory sample have memory times."""
    times = flow_matching.training_timesteps(draws.u, shift)
    in_memory = is_memory[:, None] & (jnp.arange(times.shape[1]) < times.shape[1] - 1)
    return jnp.where(in_memory, draws.memory_times.astype(jnp.float32), times)


def condition_video(image: jax.Array, is_first: jax.Array | np.ndarray) -> jax.Array:
    """Return condition and mask channels [B, F, H, W, C + 1]: image and ones in the first frame, zeros elsewhere.

    Args:
      image: latents of the first frame, [B, 1, H, W, C].
      is_first: [F] bool.
    """
    image = image.astype(jnp.float32)
    condition = jnp.concatenate([image, jnp.ones_like(image[..., :1])], axis=-1)
    return jnp.where(jnp.asarray(is_first)[:, None, None, None], condition, 0)


def text_inputs(batch: Batch) -> TextInputs:
    """Return the text inputs in a batch."""
    return TextInputs(
        text=batch["text_states"],
        text_mask=batch["text_mask"],
        vision=batch["vision_states"],
        glyph=batch.get("glyph_states"),
        glyph_mask=batch.get("glyph_mask"),
    )


def unit_time(level: jax.Array, shift: float) -> jax.Array:
    """Return the time before the shift whose shifted time is `level` of 1; the inverse of `flow_matching.shifted`."""
    return level / (shift - (shift - 1) * level)


def loss(
    model: HunyuanTransformer, batch: Batch, draws: Draws, *, chunk_frames: int, shift: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Compute the mean over samples of the masked mean squared error of the velocity, float32; see `predict`."""
    return predict(model, batch, draws, chunk_frames=chunk_frames, shift=shift)[0], {}


def predict(
    model: HunyuanTransformer, batch: Batch, draws: Draws, *, chunk_frames: int, shift: float
) -> tuple[jax.Array, jax.Array]:
    """Return the loss, a float32 scalar, and the model's prediction of the clean latents [B, F, H, W, C], float32.

    Args:
      model: model that predicts noise - clean.
      batch: arrays of `WorldPlay.batch_spec`.
      draws: the random numbers.
      chunk_frames: latent frames per chunk.
      shift: shift of the training times.
    """
    clean = batch["latent"].astype(jnp.float32)
    B, F = clean.shape[:2]
    times = jnp.repeat(chunk_timesteps(draws, batch["is_memory"], shift), chunk_frames, axis=1)
    sigma = (times / flow_matching.NUM_TIMESTEPS)[:, :, None, None, None]
    noisy = flow_matching.add_noise(clean, draws.noise, sigma)
    video = jnp.concatenate([noisy, condition_video(batch["image_cond"], np.arange(F) == 0)], axis=-1)
    frames = FrameInputs(video, times, batch["action"], batch["w2c"], batch["intrinsics"])
    # The text of the autoregressive model always has time 0, so its KV cache is valid for a whole rollout.
    predicted = model(frames, text_inputs(batch), jnp.zeros(B), chunk_frames=chunk_frames)
    per_frame = jnp.mean(jnp.square(predicted - (draws.noise - clean)), axis=(2, 3, 4))
    counted = ~batch["is_memory"][:, None] | (jnp.arange(F) >= F - chunk_frames)
    per_sample = jnp.sum(per_frame * counted, axis=1) / jnp.sum(counted, axis=1)
    return jnp.mean(per_sample), noisy - sigma * predicted
