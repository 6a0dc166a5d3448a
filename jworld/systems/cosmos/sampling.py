"""Sampling of Cosmos-Predict2 in latent space: one window of frames from those that are given.

Source: cosmos-predict2 `pipelines/video2world.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jworld.diffusion import adams_bashforth, rectified_flow
from jworld.models.cosmos.transformer import CosmosInputs, CosmosTransformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How a window is sampled (`config.sample.rollout`).

    Attributes:
      num_steps: solver steps; the network is asked once more at the end.
      guidance: g of x + g (x - x_negative), which others call 1 + g; 0 leaves the negative prompt out.
      negative_prompt: what the video should not be; "" stands for the zero states that training drops the text to.
      given_frames: latent frames that a window continues: 1 (a picture) or 2 (five frames).
      lowest, highest: noise levels.
    """

    num_steps: int = 35
    guidance: float = 7.0
    negative_prompt: str = ""
    given_frames: int = 1
    lowest: float = 0.002
    highest: float = 80.0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}, must be at least 1")
        if self.given_frames not in (1, 2):
            raise ValueError(f"given_frames is {self.given_frames}, must be 1 or 2")

    @property
    def rows(self) -> int:
        """Texts that a window needs: the prompt's, after the negative one where there is guidance."""
        return 1 if self.guidance == 0 else 2


class WindowSampler:
    """Compiled once: every window has the same shape, however many frames are given."""

    def __init__(self, model: CosmosTransformer, sample: SampleConfig):
        self.model, self.sample = model, sample
        self._sigmas = adams_bashforth.noise_levels(sample.num_steps, lowest=sample.lowest, highest=sample.highest)
        self._run = nnx.jit(self._window)

    def __call__(
        self, given: np.ndarray, text: jax.Array, noise: jax.Array | np.ndarray, motion: np.ndarray | None = None
    ) -> jax.Array:
        """One window.

        Args:
          given: [n, H, W, C] latents of the first frames.
          text: [1, S, Dt] states of the prompt, or [2, S, Dt] with the negative prompt first.
          noise: [F, H, W, C] standard normal.
          motion: [steps, 7] of an action model.

        Returns:
          [F, H, W, C] float32; the first n as given.
        """
        if len(text) != self.sample.rows:
            raise ValueError(f"guidance {self.sample.guidance} needs text of batch {self.sample.rows}, got {len(text)}")
        frames = np.zeros(noise.shape, np.float32)
        frames[: len(given)] = given
        mask = (np.arange(len(frames)) < len(given)).astype(np.float32)
        told = None if motion is None else jnp.asarray(motion)
        return self._run(self.model, jnp.asarray(frames), jnp.asarray(mask), text, jnp.asarray(noise), told)

    def _window(
        self,
        model: CosmosTransformer,
        frames: jax.Array,
        mask: jax.Array,
        text: jax.Array,
        noise: jax.Array,
        motion: jax.Array | None,
    ) -> jax.Array:
        rows = self.sample.rows

        def repeated(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(x, (rows, *x.shape))

        given = rectified_flow.ConditioningFrames(repeated(frames), repeated(mask))
        action = None if motion is None else repeated(motion)

        def network(video: jax.Array, time: jax.Array) -> jax.Array:
            return model(CosmosInputs(video, time, text, given=given.mask, action=action))

        def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
            clean = rectified_flow.denoise(network, repeated(x[0]), jnp.broadcast_to(sigma, (rows,)), given)
            return clean if rows == 1 else rectified_flow.guided(clean[1:], clean[:1], self.sample.guidance)

        return adams_bashforth.sample(denoise, noise[None], self._sigmas)[0]
