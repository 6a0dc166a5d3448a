"""Cosmos-Predict2's training objective: rectified flow on all frames but the conditioning ones.

With several cameras, every camera has the same number of conditioning frames, its first ones (FIRST_RANDOM_N of the
original). All cameras share one noise level, which grows with the frames of one of them.

Source: cosmos-predict2 `models/video2world_model.py`, `models/multiview_model.py`, `conditioner.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jworld.diffusion import rectified_flow
from jworld.models.cosmos.transformer import CosmosInputs, CosmosTransformer, view_of_frames
from jworld.utils import ranges

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Values of the published post-training (`config.loss`).

    Attributes:
      kind: "flow", rectified flow.
      log_mean, log_std: mean and deviation of the noise level's logarithm, before the level is multiplied by the root
        of the number of frames.
      high_ratio: share of examples with a very high noise level.
      conditioning_frames: smallest and largest number of conditioning latent frames, of every camera; drawn uniformly
        per example.
      text_dropout: share of examples whose text is all zeros.
      given_sigma: noise level that the network receives for conditioning frames, which enter clean.
      scale: factor of the loss.
      sigma_floor: noise level (time, 0 to 1) below which the squared error counts as much as that of clean latents
        there, for a network that predicts them (`flow_matching.error_weights`). As published (0), all levels count
        alike.
    """

    kind: Literal["flow"] = "flow"
    log_mean: ranges.Logit = 0.0
    log_std: Annotated[float, ranges.Range(0, 100)] = 1.0
    high_ratio: ranges.Share = 0.05
    conditioning_frames: tuple[ranges.SizeOrZero, ranges.SizeOrZero] = (1, 2)
    text_dropout: ranges.Share = 0.2
    given_sigma: ranges.PositiveOrZero = rectified_flow.GIVEN_SIGMA
    scale: ranges.Positive = rectified_flow.LOSS_SCALE
    sigma_floor: ranges.Share = 0.0

    def __post_init__(self) -> None:
        ranges.check(self)
        check_conditioning_frames(self.conditioning_frames)


def check_conditioning_frames(frames: tuple[int, int]) -> None:
    """Raise a `ValueError` if a range of numbers of conditioning frames is not increasing."""
    least, most = frames
    if least > most:
        raise ValueError(f"conditioning_frames is {frames}, expected (least, most)")


class Draws(NamedTuple):
    """All random numbers of a loss.

    Attributes:
      sigma: noise levels [B, 1].
      noise: standard normal [B, F, H, W, C].
      given: number of conditioning frames, [B] int32.
      keep_text: [B] bool; false where the text is replaced by zeros.
    """

    sigma: jax.Array
    noise: jax.Array
    given: jax.Array
    keep_text: jax.Array


def draw(key: jax.Array, shape: tuple[int, ...], cfg: ObjectiveConfig, *, cameras: int = 1) -> Draws:
    """Draw the random numbers of a loss of latents of `shape` [B, F, H, W, C], F counting those of all cameras."""
    sigma_key, noise_key, given_key, text_key = jax.random.split(key, 4)
    batch, frames = shape[:2]
    return Draws(
        rectified_flow.sample_sigma(
            sigma_key, batch, frames=frames // cameras, high_ratio=cfg.high_ratio, mean=cfg.log_mean, std=cfg.log_std
        ),
        jax.random.normal(noise_key, shape),
        jax.random.randint(given_key, (batch,), cfg.conditioning_frames[0], cfg.conditioning_frames[1] + 1),
        jax.random.uniform(text_key, (batch,)) >= cfg.text_dropout,
    )


def loss(
    model: CosmosTransformer, batch: Batch, draws: Draws, cfg: ObjectiveConfig, view_ids: tuple[int, ...] = ()
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Compute the scalar float32 loss, and the metric "velocity_error": the mean error on predicted frames.

    `view_ids` are the cameras whose latents follow each other in a batch; () for one camera.
    """
    clean = batch["latent"].astype(jnp.float32)
    mask = conditioning_mask(draws.given, clean.shape[1], view_ids)
    value, per_frame = rectified_flow.training_loss(
        network_of(model, batch, mask, view_ids, keep_text=draws.keep_text),
        clean,
        draws.noise,
        draws.sigma,
        mask,
        given_sigma=cfg.given_sigma,
        scale=cfg.scale,
        sigma_floor=cfg.sigma_floor,
    )
    return value, {"velocity_error": jnp.sum(per_frame) / jnp.sum(1 - mask)}


def conditioning_mask(given: jax.Array, frames: int, view_ids: tuple[int, ...] = ()) -> jax.Array:
    """Return the [B, F] mask of the first `given` [B] frames of every camera; F is `frames`, of all cameras."""
    cameras = max(len(view_ids), 1)
    mask = rectified_flow.given_mask(given, frames // cameras)
    return mask if cameras == 1 else jnp.tile(mask, (1, cameras))


def predict(
    model: CosmosTransformer, batch: Batch, draws: Draws, cfg: ObjectiveConfig, view_ids: tuple[int, ...] = ()
) -> jax.Array:
    """Return the prediction of the clean latents of `loss`, [B, F, H, W, C] float32."""
    clean = batch["latent"].astype(jnp.float32)
    mask = conditioning_mask(draws.given, clean.shape[1], view_ids)
    network = network_of(model, batch, mask, view_ids, keep_text=draws.keep_text)
    return rectified_flow.predict(network, clean, draws.noise, draws.sigma, mask, given_sigma=cfg.given_sigma)


def network_of(
    model: CosmosTransformer,
    batch: Batch,
    mask: jax.Array,
    view_ids: tuple[int, ...] = (),
    *,
    keep_text: jax.Array | None = None,
) -> rectified_flow.Network:
    """Return the model as a function of scaled video and times only.

    Args:
      model: the network.
      batch: arrays of `Cosmos.batch_spec`.
      mask: [B, F] conditioning frames.
      view_ids: as for `loss`.
      keep_text: [B] bool; false where the text is replaced by zeros. None keeps all.
    """
    text = batch["text_states"]
    if keep_text is not None:
        text = text * keep_text[:, None, None].astype(text.dtype)
    view = view_of_frames(view_ids, mask.shape[1]) if view_ids else None
    # One rate for all clips, that of the data set.
    fps = batch["fps"][0] if "fps" in batch else None

    def network(video: jax.Array, time: jax.Array) -> jax.Array:
        return model(CosmosInputs(video, time, text, given=mask, action=batch.get("motion"), fps=fps, view=view))

    return network
