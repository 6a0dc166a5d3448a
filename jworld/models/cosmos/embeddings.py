"""Conditioning of the blocks: times, actions, positions; all float32."""

from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.cosmos.config import CosmosConfig
from jworld.models.layers.embeddings import sinusoidal
from jworld.models.layers.linear import linear, truncated_init, zeros_init
from jworld.models.layers.mlp import gelu_tanh
from jworld.models.layers.norms import rms_norm
from jworld.models.layers.rotary import extrapolated_theta, rotary_tables
from jworld.parallel.axes import constrain_if_divisible


class TimeEmbedding(nnx.Module):
    """Embedding of times [B, F] in 0..1 and the clip's action: [B, F, D], and the modulations' common term [B, F, 3D].

    With AdaLN-LoRA the two layers compute the common term, and the embedding is the normalized sinusoid. Without it
    they compute the embedding, and there is no common term.
    """

    def __init__(self, cfg: CosmosConfig, *, rngs: nnx.Rngs):
        self.width, self.common_term = cfg.width, cfg.modulation_rank is not None
        common: dict[str, Any] = {
            "dtype": jnp.float32,
            "param_dtype": cfg.param_dtype,
            "kernel_init": truncated_init,
            "rngs": rngs,
        }
        outputs = 3 * cfg.width if self.common_term else cfg.width
        self.hidden = linear(cfg.width, cfg.width, ("embed", "mlp"), use_bias=not self.common_term, **common)
        self.output = linear(cfg.width, outputs, ("embed", "mlp"), use_bias=False, **common)
        self.norm = rms_norm(cfg.width, eps=1e-6, param_dtype=cfg.param_dtype, rngs=rngs)

    def __call__(
        self, time: jax.Array, action: tuple[jax.Array, jax.Array] | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Embed; `action` is its addition to the sinusoid, [B, D], and to the common term, [B, 3D]."""
        sinusoid = self._placed(sinusoidal(time, self.width))
        output = self._placed(self.output(self._placed(nnx.silu(self.hidden(sinusoid)))))
        vector, offset = (sinusoid, output) if self.common_term else (output, None)
        if action is not None:
            assert offset is not None
            vector, offset = vector + action[0][:, None], offset + action[1][:, None]
        return self._placed(self.norm(vector)), offset

    def _placed(self, x: jax.Array) -> jax.Array:
        """Keep [B, F, D] where its samples and frames are, instead of where the kernels' shards are."""
        return constrain_if_divisible(x, "batch", "frames", None)


class ActionPerceptron(nnx.Module):
    """Perceptron from the numbers of an action to [B, outputs]; an action-conditioned model has two.

    Its output is zero at initialization, so that a model which starts from weights without actions computes what these
    do. In the original it is random there (docs/cosmos.md).
    """

    def __init__(self, cfg: CosmosConfig, outputs: int, *, rngs: nnx.Rngs):
        assert cfg.action_dim is not None
        hidden = int(cfg.width * cfg.mlp_ratio)
        common: dict[str, Any] = {"dtype": jnp.float32, "param_dtype": cfg.param_dtype, "rngs": rngs}
        self.hidden = linear(cfg.action_dim, hidden, (None, "embed"), **common)
        self.output = linear(hidden, outputs, ("embed", None), kernel_init=zeros_init, **common)

    def __call__(self, action: jax.Array) -> jax.Array:
        return self.output(gelu_tanh(self.hidden(action)))


class PositionTables(nnx.Module):
    """Learned positions: one table per axis; their sum is scaled to a root mean square of one for each token."""

    def __init__(self, cfg: CosmosConfig, *, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(0.02)

        def table(size: int) -> nnx.Param[jax.Array]:
            return nnx.Param(normal(rngs.params(), (size, cfg.width), cfg.param_dtype), out_sharding=(None, "embed"))

        self.time, self.height, self.width = (table(size) for size in cfg.max_patches)

    def __call__(self, frames: int, height: int, width: int) -> jax.Array:
        """Return the positions [frames, height * width, D]."""
        sizes = zip((self.time, self.height, self.width), (frames, height, width), strict=True)
        time, rows, columns = (table[:size].astype(jnp.float32) for table, size in sizes)
        total = time[:, None, None] + rows[None, :, None] + columns[None, None, :]
        scale = jnp.sqrt(jnp.mean(jnp.square(total), axis=-1, keepdims=True)) + 1e-6
        return einops.rearrange(total / scale, "f h w d -> f (h w) d")


def video_rotary(
    cfg: CosmosConfig, *, frames: int, height: int, width: int, fps: jax.Array | float | None
) -> tuple[jax.Array, jax.Array]:
    """Compute cos and sin [frames, height, width, K/2]; a head's rotary channels are ordered time, height, width.

    Args:
      cfg: the model.
      frames: latent frames of one view.
      height, width: patches.
      fps: frames per second of the video; only read with `cfg.fps_modulation`.

    Raises:
      ValueError: more patches than `cfg.max_size` allows, or a missing frame rate.
    """
    limits = cfg.max_patches
    if height > limits[1] or width > limits[2] or frames > max(limits):
        raise ValueError(f"{frames} frames of {height} x {width} patches: the model's max_size allows {limits}")
    time = jnp.arange(frames, dtype=jnp.float32)
    if cfg.fps_modulation and frames > 1:
        if fps is None:
            raise ValueError("this model needs the frame rate of a video")
        time = time / fps * cfg.base_fps
    thetas = [extrapolated_theta(ratio, dim) for ratio, dim in zip(cfg.rope_scale, cfg.rope_dims, strict=True)]
    return rotary_tables((time, jnp.arange(height), jnp.arange(width)), cfg.rope_dims, thetas)
