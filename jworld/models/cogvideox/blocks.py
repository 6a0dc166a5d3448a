"""Blocks of CogVideoX, with joint attention and expert adaptive norms, and the control block of The Matrix.

Sources: CogVideoX (arXiv 2408.06072), section 2.2; The Matrix `stage2/cogvideox/control_adapter.py`.
"""

import math

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.cogvideox.config import CogVideoXConfig
from jworld.models.layers.attention import attention
from jworld.models.layers.mlp import MLP
from jworld.models.layers.modulation import Modulation, gated
from jworld.models.layers.norms import layer_norm
from jworld.models.layers.projections import Projections
from jworld.parallel.axes import constrain, constrain_if_divisible

Streams = tuple[jax.Array, jax.Array]


class ExpertNorm(nnx.Module):
    """Layer norm shared by two streams, each with its own shift, scale and gate from the time embedding."""

    def __init__(self, cfg: CogVideoXConfig, *, rngs: nnx.Rngs):
        self.modulation = Modulation(cfg.time_dim, cfg.width, 6, param_dtype=cfg.param_dtype, rngs=rngs)
        self.norm = layer_norm(cfg.width, eps=cfg.norm_eps, param_dtype=cfg.param_dtype, rngs=rngs)

    def __call__(self, video: jax.Array, other: jax.Array, time: jax.Array) -> tuple[Streams, Streams]:
        """Normalize both streams; return them and their gates.

        Args:
          video: [B, F, S, D]; frame f has the parameters of its own time.
          other: [B, L, D] text or control, with the parameters of the last frame.
          time: [B, F, Dt] float32, or F = 1 for one time for all.
        """
        parts = self.modulation(time)
        shift, scale, gate = (part[:, :, None] for part in parts[:3])
        # The last frame is the noisiest; stage 3 of The Matrix uses its time for the text.
        other_shift, other_scale, other_gate = (part[:, -1:] for part in parts[3:])
        normed = (self.norm(video) * (1 + scale) + shift).astype(video.dtype)
        other_normed = (self.norm(other) * (1 + other_scale) + other_shift).astype(other.dtype)
        return (normed, other_normed), (gate, other_gate)


def projections(cfg: CogVideoXConfig, rngs: nnx.Rngs) -> Projections:
    return Projections(cfg.width, cfg.num_heads, norm="layer", dtype=cfg.dtype, param_dtype=cfg.param_dtype, rngs=rngs)


class JointBlock(nnx.Module):
    """Layer in which text and video attend to each other and share one MLP. Padding of the text is not masked."""

    def __init__(self, cfg: CogVideoXConfig, *, rngs: nnx.Rngs):
        self.implementation = cfg.attention
        self.attention_norm = ExpertNorm(cfg, rngs=rngs)
        self.attention = projections(cfg, rngs)
        self.mlp_norm = ExpertNorm(cfg, rngs=rngs)
        self.mlp = MLP(
            cfg.width,
            int(cfg.width * cfg.mlp_ratio),
            nnx.gelu,  # the tanh approximation
            dtype=cfg.dtype,
            param_dtype=cfg.param_dtype,
            rngs=rngs,
        )

    def __call__(self, video: jax.Array, text: jax.Array, time: jax.Array) -> Streams:
        """Apply the layer to [B, F, S, D], [B, L, D], [B, F or 1, Dt] -> the two streams."""
        (normed, text_normed), (gate, text_gate) = self.attention_norm(video, text, time)
        attended, text_attended = self._attend(normed, text_normed)
        video, text = gated(video, attended, gate), gated(text, text_attended, text_gate)
        (normed, text_normed), (gate, text_gate) = self.mlp_norm(video, text, time)
        return gated(video, self.mlp(normed), gate), gated(text, self.mlp(text_normed), text_gate)

    def _attend(self, video: jax.Array, text: jax.Array) -> Streams:
        tokens = jnp.concatenate([text, einops.rearrange(video, "b f s d -> b (f s) d")], axis=1)
        # Tokens stay sharded here, so that the exchange for attention moves activations and never reshards a kernel.
        q, k, v = (
            constrain_if_divisible(part, "batch", "sequence", None, None) for part in self.attention.heads(tokens)
        )
        out = attention(q, k, v, implementation=self.implementation)
        out = self.attention.out(einops.rearrange(out, "b l n k -> b l (n k)"))
        text_out, video_out = jnp.split(out, [text.shape[1]], axis=1)
        video_out = einops.rearrange(video_out, "b (f s) d -> b f s d", f=video.shape[1])
        return constrain(video_out, "batch", None, "sequence", None), text_out


class ControlBlock(nnx.Module):
    """Block in which video tokens attend to the control vectors of their own and of earlier frames.

    The original repeats the vector of a frame for each of its S tokens and masks causally by token. Token s of frame f
    attends to the vector of an earlier frame S times and to that of its own frame s + 1 times. The same softmax over F
    keys has log S and log(s + 1) added to its logits.
    """

    def __init__(self, cfg: CogVideoXConfig, *, rngs: nnx.Rngs):
        self.norm = ExpertNorm(cfg, rngs=rngs)
        self.attention = projections(cfg, rngs)

    def __call__(self, video: jax.Array, control: jax.Array, time: jax.Array) -> jax.Array:
        """Apply the block to [B, F, S, D], [B, F, D] embedded control, [B, F or 1, Dt] -> [B, F, S, D]."""
        (normed, control_normed), (gate, _) = self.norm(video, control, time)
        q, k, v = self.attention.heads(normed, control_normed)
        logits = jnp.einsum("bfsnk,bgnk->bnfsg", q, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
        weights = jax.nn.softmax(logits + causal_counts(*video.shape[1:3]), axis=-1).astype(v.dtype)
        out = jnp.einsum("bnfsg,bgnk->bfsnk", weights, v)
        return gated(video, self.attention.out(einops.rearrange(out, "b f s n k -> b f s (n k)")), gate)


def causal_counts(frames: int, tokens: int) -> jax.Array:
    """Return [F, S, F] float32: log of the number of repeats of frame g's control vector for token s of frame f.

    -inf for 0.
    """
    f, s, g = jnp.ogrid[:frames, :tokens, :frames]
    count = jnp.where(g < f, tokens, jnp.where(g == f, s + 1, 0))
    return jnp.log(count.astype(jnp.float32))
