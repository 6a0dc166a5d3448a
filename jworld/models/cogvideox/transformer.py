"""CogVideoX transformer, with one time per frame, control blocks and an optional guidance embedding.

Sources: CogVideoX (arXiv 2408.06072); The Matrix `stage{1,2,3,4}/cogvideox/transformer.py`. With the same time for all
frames it is the published CogVideoX-2B.
"""

import math
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from jworld.diffusion import v_prediction
from jworld.models.cogvideox.blocks import ControlBlock, JointBlock, Streams
from jworld.models.cogvideox.config import CogVideoXConfig
from jworld.models.layers.embeddings import ScalarEmbedding
from jworld.models.layers.joining import join_tokens
from jworld.models.layers.linear import linear, zeros_init
from jworld.models.layers.modulation import Modulation
from jworld.models.layers.norms import layer_norm
from jworld.models.layers.patches import from_patches, to_patches
from jworld.models.layers.stack import scan_layers, stack
from jworld.parallel.axes import constrain
from jworld.utils import nnx_types


class ControlEmbedding(nnx.Module):
    """Three linear layers with SiLU in between: [B, F, control_dim] -> [B, F, D], shared by all control blocks."""

    def __init__(self, cfg: CogVideoXConfig, *, rngs: nnx.Rngs):
        assert cfg.control_dim is not None
        common: dict[str, Any] = {"dtype": cfg.dtype, "param_dtype": cfg.param_dtype, "rngs": rngs}
        self.first = linear(cfg.control_dim, cfg.control_dim, (None, None), **common)
        self.second = linear(cfg.control_dim, cfg.width, (None, "embed"), **common)
        self.third = linear(cfg.width, cfg.width, ("embed", "mlp"), **common)

    def __call__(self, control: jax.Array) -> jax.Array:
        return self.third(nnx.silu(self.second(nnx.silu(self.first(control)))))


class CogVideoXTransformer(nnx.Module):
    """Transformer that predicts v from noisy latents, text and, with control, one vector per latent frame.

    `schedule` is the noise schedule of the timesteps, which a network needs that predicts clean latents.
    """

    def __init__(self, cfg: CogVideoXConfig, *, schedule: v_prediction.Schedule | None = None, rngs: nnx.Rngs):
        if cfg.prediction == "clean" and schedule is None:
            raise ValueError("v follows from clean latents only by a noise schedule: give `schedule`")
        self.cfg = cfg
        self.schedule = schedule
        pixels = cfg.patch_size**2
        common: dict[str, Any] = {"dtype": cfg.dtype, "param_dtype": cfg.param_dtype, "rngs": rngs}
        # Rows of the kernel are (channel, patch row, patch column), as in the flattened convolution of the original.
        self.patch_in = linear(cfg.channels * pixels, cfg.width, (None, "embed"), **common)
        self.text_in = linear(cfg.text_dim, cfg.width, (None, "embed"), **common)
        self.time = ScalarEmbedding(cfg.time_dim, frequency_dim=cfg.width, param_dtype=cfg.param_dtype, rngs=rngs)
        if cfg.guidance_dim is not None:
            self.guidance = nnx.Linear(
                cfg.guidance_dim,
                cfg.width,
                use_bias=False,
                kernel_init=zeros_init,
                param_dtype=cfg.param_dtype,
                kernel_metadata={"out_sharding": (None, "embed")},
                rngs=rngs,
            )
        self.blocks = stack(lambda rngs: JointBlock(cfg, rngs=rngs), cfg.num_layers, rngs)
        if cfg.control_dim is not None:
            start, stop = cfg.control_layers
            self.control_embedding = ControlEmbedding(cfg, rngs=rngs)
            self.control_blocks = stack(lambda rngs: ControlBlock(cfg, rngs=rngs), stop - start, rngs)
        self.final_norm = layer_norm(cfg.width, eps=cfg.norm_eps, param_dtype=cfg.param_dtype, rngs=rngs)
        self.out_modulation = Modulation(cfg.time_dim, cfg.width, 2, param_dtype=cfg.param_dtype, rngs=rngs)
        self.out_norm = layer_norm(cfg.width, eps=cfg.norm_eps, param_dtype=cfg.param_dtype, rngs=rngs)
        self.patch_out = linear(cfg.width, cfg.channels * pixels, ("embed", None), **common)
        if cfg.output_kernel > 1:
            self.join = join_tokens(cfg.channels, cfg.output_kernel, param_dtype=cfg.param_dtype, rngs=rngs)

    def __call__(
        self,
        latents: jax.Array,
        text: jax.Array,
        timestep: jax.Array,
        *,
        control: jax.Array | None = None,
        guidance: jax.Array | None = None,
    ) -> jax.Array:
        """Predict v of a window of F latent frames.

        Args:
          latents: [B, F, H, W, C] noisy.
          text: [B, L, text_dim] states, padding included: it is not masked.
          timestep: [B] or [B, F] diffusion time in 0..999.
          control: [B, F, control_dim] of a model with control, else None.
          guidance: [B] scale of classifier-free guidance, for a model with a guidance embedding, else None.

        Returns:
          v [B, F, H, W, C] float32.

        Raises:
          ValueError: text of another length than the model's positions allow.
        """
        cfg = self.cfg
        if text.shape[1] != cfg.text_tokens:
            raise ValueError(f"text has {text.shape[1]} tokens, the model's positions begin after {cfg.text_tokens}")
        time = self._time(timestep, guidance)
        carry = (self._embed(latents), self.text_in(text.astype(cfg.dtype)))
        if control is None:
            carry = self._joint(carry, time, 0, cfg.num_layers)
        else:
            start, stop = cfg.control_layers
            carry = self._joint(carry, time, 0, start)
            carry = self._controlled(carry, time, self.control_embedding(control.astype(cfg.dtype)))
            carry = self._joint(carry, time, stop, cfg.num_layers)
        return self._velocity(self._output(carry[0], time, latents.shape), latents, timestep)

    def _time(self, timestep: jax.Array, guidance: jax.Array | None) -> jax.Array:
        """Embed the time: [B, F or 1, Dt] float32."""
        timestep = timestep.reshape(len(timestep), -1)
        if guidance is None:
            return self.time(timestep)
        assert self.cfg.guidance_dim is not None
        added = self.guidance(guidance_embedding(guidance, self.cfg.guidance_dim))
        return self.time(timestep, added[:, None])

    def _embed(self, latents: jax.Array) -> jax.Array:
        """Embed [B, F, H, W, C] as tokens with positions [B, F, S, D]."""
        cfg, p = self.cfg, self.cfg.patch_size
        F, H, W = latents.shape[1:4]
        tokens = self.patch_in(to_patches(latents, (p, p)).astype(cfg.dtype))
        tokens = tokens + position_embedding(cfg, F, H // p, W // p).astype(cfg.dtype)
        return constrain(tokens, "batch", None, "sequence", None)

    def _joint(self, carry: Streams, time: jax.Array, start: int, stop: int) -> Streams:
        def layer(block: JointBlock, carry: Streams, _: None) -> tuple[Streams, None]:
            video, text = carry
            return block(video, text, time), None

        if start == stop:
            return carry
        return scan_layers(self.blocks, layer, carry, remat=self.cfg.remat, layers=(start, stop))[0]

    def _controlled(self, carry: Streams, time: jax.Array, control: jax.Array) -> Streams:
        """Run the layers that a control block follows."""
        graphdef, params = nnx.split(self.control_blocks)

        def layer(block: JointBlock, carry: Streams, control_params: nnx_types.State) -> tuple[Streams, None]:
            video, text = carry
            video, text = block(video, text, time)
            return (nnx.merge(graphdef, control_params)(video, control, time), text), None

        return scan_layers(self.blocks, layer, carry, params, remat=self.cfg.remat, layers=self.cfg.control_layers)[0]

    def _output(self, video: jax.Array, time: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Project tokens [B, F, S, D] to what the model predicts, [B, F, H, W, C] float32."""
        p = self.cfg.patch_size
        shift, scale = (part[:, :, None] for part in self.out_modulation(time))
        # Two norms in a row: in the original an adaptive norm with its own weights follows the last norm.
        normed = self.out_norm(self.final_norm(video)) * (1 + scale) + shift
        out = self.patch_out(normed.astype(self.cfg.dtype)).astype(jnp.float32)
        return from_patches(out, (shape[2], shape[3]), (p, p), channels_first=True)

    def _velocity(self, predicted: jax.Array, latents: jax.Array, timestep: jax.Array) -> jax.Array:
        """Return v [B, F, H, W, C] float32 of the prediction for noisy latents."""
        if self.cfg.prediction == "velocity":
            return predicted
        assert self.schedule is not None
        if self.cfg.output_kernel > 1:
            predicted += self.join(predicted)
        # Clean frames of a context may have a time before the first.
        a = v_prediction.at(self.schedule.alphas_cumprod(), jnp.maximum(timestep, 0))
        return v_prediction.velocity_from_clean(latents.astype(jnp.float32), predicted, a)


def position_embedding(cfg: CogVideoXConfig, frames: int, rows: int, columns: int) -> jax.Array:
    """Return [F, rows * columns, D] float32: channels for time (a quarter), then columns, then rows; sines first."""

    def axis(length: int, scale: float, dim: int) -> jax.Array:
        frequencies = 10_000.0 ** (-jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2))
        angles = (jnp.arange(length, dtype=jnp.float32) / scale)[:, None] * frequencies
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    time = axis(frames, cfg.temporal_scale, cfg.width // 4)[:, None, None]
    x = axis(columns, cfg.spatial_scale, 3 * cfg.width // 8)[None, None]
    y = axis(rows, cfg.spatial_scale, 3 * cfg.width // 8)[None, :, None]
    parts = [jnp.broadcast_to(part, (frames, rows, columns, part.shape[-1])) for part in (time, x, y)]
    return einops.rearrange(jnp.concatenate(parts, axis=-1), "f h w d -> f (h w) d")


def guidance_embedding(scale: jax.Array, dim: int) -> jax.Array:
    """Embed [B] -> [B, dim] float32: sines, then cosines, of 1000 * scale.

    Source: The Matrix `stage4/cogvideox/embedding.py`.
    """
    half = dim // 2
    # Not `sinusoidal`: here the slowest frequency is exactly 1/10000.
    frequencies = jnp.exp(jnp.arange(half, dtype=jnp.float32) * -(math.log(10_000) / (half - 1)))
    angles = 1000.0 * scale.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
