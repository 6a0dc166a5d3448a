"""Double-stream block: separate weights for image and text tokens, joint attention, and a camera branch."""

import functools
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from jworld.cameras import projective
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.layers.attention import ChunkCausal, attention
from jworld.models.layers.linear import linear, zeros_init
from jworld.models.layers.mlp import MLP, gelu_tanh
from jworld.models.layers.modulation import Modulation, gated, modulated_norm
from jworld.models.layers.projections import Projections
from jworld.models.layers.rotary import rotate_interleaved
from jworld.parallel.axes import constrain, constrain_if_divisible


class FrameContext(NamedTuple):
    """Per-frame inputs of the image stream, the same for every layer.

    Attributes:
      vector: [B, F, 1, D] float32 time and action embedding.
      rope: cos and sin, [F, T, K/2] or [B, F, T, K/2] each, T tokens per frame.
      projection: P and its inverse, [B, F, 4, 4] each, or None without cameras.
      mask: [B, F * T] bool, False for tokens of padding frames.
    """

    vector: jax.Array
    rope: tuple[jax.Array, jax.Array]
    projection: tuple[jax.Array, jax.Array] | None
    mask: jax.Array


class KeyValues(NamedTuple):
    """Keys and values [B, L, N, K] each; with cameras 2N heads, rotary branch first."""

    keys: jax.Array
    values: jax.Array


class Stream(Projections):
    """Weights of one stream, image or text: modulation, q/k/v with per-head RMS norm, output, MLP."""

    def __init__(self, cfg: HunyuanConfig, *, rngs: nnx.Rngs):
        common: dict[str, Any] = {"dtype": cfg.dtype, "param_dtype": cfg.param_dtype, "rngs": rngs}
        self.modulation = Modulation(cfg.width, cfg.width, 6, param_dtype=cfg.param_dtype, rngs=rngs)
        super().__init__(cfg.width, cfg.num_heads, **common)
        self.mlp = MLP(cfg.width, int(cfg.width * cfg.mlp_ratio), gelu_tanh, **common)

    def qkv(self, x: jax.Array, shift: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Project [..., D] to three [..., N, K]."""
        return self.heads(modulated_norm(x, shift, scale))

    def feed_forward(self, x: jax.Array, shift: jax.Array, scale: jax.Array, gate: jax.Array) -> jax.Array:
        return gated(x, self.mlp(modulated_norm(x, shift, scale)), gate)


class DoubleBlock(nnx.Module):
    """One layer. The image stream [B, F, T, D] keeps its frame axis: times, actions and cameras are per frame.

    The rotary and the camera (PRoPE) branch share one attention call as 2N heads, and both attend to the text keys.
    """

    def __init__(self, cfg: HunyuanConfig, *, rngs: nnx.Rngs):
        self.implementation = cfg.attention
        self.image = Stream(cfg, rngs=rngs)
        self.text = Stream(cfg, rngs=rngs)
        if cfg.actions:
            self.camera_out = linear(
                cfg.width,
                cfg.width,
                ("heads", "embed"),
                dtype=cfg.dtype,
                param_dtype=cfg.param_dtype,
                rngs=rngs,
                kernel_init=zeros_init,
            )

    def chunk_causal(
        self,
        image: jax.Array,
        text: jax.Array,
        frames: FrameContext,
        text_vector: jax.Array,
        text_mask: jax.Array,
        chunk_frames: int,
    ) -> tuple[jax.Array, jax.Array]:
        """Apply the layer for training of the autoregressive model.

        Text attends to text; a chunk of frames attends to text, itself and the past.
        """
        text, keys = self.text_only(text, text_vector, text_mask)
        mask = ChunkCausal(chunk=chunk_frames * image.shape[2], prefix=text.shape[1])
        image, _ = self.image_only(image, frames, keys, text_mask, mask)
        return image, text

    def after_context(
        self,
        image: jax.Array,
        text: jax.Array,
        frames: FrameContext,
        text_vector: jax.Array,
        text_mask: jax.Array,
        context_frames: int,
    ) -> tuple[jax.Array, jax.Array]:
        """Apply the layer as a rollout does for a chunk after its context.

        Text attends to text, the first `context_frames` frames to text and each other, and all others to everything.
        """
        text, keys = self.text_only(text, text_vector, text_mask)
        modulation = self.image.modulation(frames.vector)
        q, own = self._image_qkv(image, frames, modulation)
        k, v, key_mask = self._after_prefix(keys, text_mask, own, frames.mask)
        start = context_frames * image.shape[2]
        end = text.shape[1] + start
        attend = functools.partial(attention, implementation=self.implementation)
        parts = (
            attend(q[:, :start], k[:, :end], v[:, :end], key_mask=key_mask[:, :end]),
            attend(q[:, start:], k, v, key_mask=key_mask),
        )
        return self._image_update(image, jnp.concatenate(parts, axis=1), frames, modulation), text

    def bidirectional(
        self, image: jax.Array, text: jax.Array, frames: FrameContext, text_vector: jax.Array, text_mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Apply the layer with attention among all valid tokens; the text output comes from the rotary branch only."""
        modulation = self.image.modulation(frames.vector)
        text_modulation = self.text.modulation(text_vector)
        q, own = self._image_qkv(image, frames, modulation)
        tq, tk, tv = self._text_qkv(text, text_modulation)
        copies = q.shape[2] // self.text.num_heads
        keys = jnp.concatenate([einops.repeat(tk, "b s n k -> b s (c n) k", c=copies), own.keys], axis=1)
        values = jnp.concatenate([einops.repeat(tv, "b s n k -> b s (c n) k", c=copies), own.values], axis=1)
        key_mask = jnp.concatenate([text_mask, frames.mask], axis=1)
        out = attention(q, keys, values, key_mask=key_mask, implementation=self.implementation)
        N = self.text.num_heads
        text_out = attention(
            tq, keys[:, :, :N], values[:, :, :N], key_mask=key_mask, implementation=self.implementation
        )
        image = self._image_update(image, out, frames, modulation)
        return image, self._text_update(text, text_out, text_modulation)

    def text_only(self, text: jax.Array, text_vector: jax.Array, text_mask: jax.Array) -> tuple[jax.Array, KeyValues]:
        """Apply the layer to text that attends to text: [B, S, D] -> [B, S, D] and its keys and values, N heads."""
        modulation = self.text.modulation(text_vector)
        q, k, v = self._text_qkv(text, modulation)
        out = attention(q, k, v, key_mask=text_mask, implementation=self.implementation)
        return self._text_update(text, out, modulation), KeyValues(k, v)

    def image_only(
        self,
        image: jax.Array,
        frames: FrameContext,
        prefix: KeyValues,
        prefix_mask: jax.Array,
        mask: ChunkCausal | None = None,
    ) -> tuple[jax.Array, KeyValues]:
        """Apply the layer to images: [B, F, T, D] -> [B, F, T, D] and their own keys and values.

        Image queries attend to [prefix, image] keys. `prefix` has N heads (text) or as many as the image branch;
        `prefix_mask` is [B, length of the prefix].
        """
        modulation = self.image.modulation(frames.vector)
        q, own = self._image_qkv(image, frames, modulation)
        k, v, key_mask = self._after_prefix(prefix, prefix_mask, own, frames.mask)
        out = attention(q, k, v, mask=mask, key_mask=key_mask, implementation=self.implementation)
        return self._image_update(image, out, frames, modulation), own

    def _after_prefix(
        self, prefix: KeyValues, prefix_mask: jax.Array, own: KeyValues, own_mask: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return keys, values and key mask of [prefix, image]; a prefix of N heads serves both branches."""
        copies = own.keys.shape[2] // prefix.keys.shape[2]
        k = jnp.concatenate([einops.repeat(prefix.keys, "b s n k -> b s (c n) k", c=copies), own.keys], axis=1)
        v = jnp.concatenate([einops.repeat(prefix.values, "b s n k -> b s (c n) k", c=copies), own.values], axis=1)
        return k, v, jnp.concatenate([prefix_mask, own_mask], axis=1)

    def _text_qkv(self, text: jax.Array, modulation: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Project [B, S, D] to queries, keys and values [B, S, N, K]; as for images, no kernel is resharded."""
        q, k, v = (
            constrain_if_divisible(x, "batch", "sequence", None, None) for x in self.text.qkv(text, *modulation[:2])
        )
        return q, k, v

    def _image_qkv(
        self, image: jax.Array, frames: FrameContext, modulation: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, KeyValues]:
        """Project [B, F, T, D] to queries [B, F*T, N or 2N, K] and keys and values of the same shape."""
        # Tokens stay sharded here, so that the exchange for attention moves activations and never reshards a kernel.
        q, k, v = (constrain(x, "batch", "frames", None, None, None) for x in self.image.qkv(image, *modulation[:2]))
        rotated = [rotate_interleaved(x, *frames.rope) for x in (q, k)]
        if frames.projection is None:
            parts = [*rotated, v]
        else:
            # The camera branch starts from the unrotated q, k, v.
            matrix, inverse = frames.projection
            camera = [
                projective.apply(jnp.swapaxes(matrix, -1, -2), q),
                projective.apply(inverse, k),
                projective.apply(inverse, v),
            ]
            parts = [jnp.concatenate(pair, axis=-2) for pair in zip([*rotated, v], camera, strict=True)]
        q, k, v = (einops.rearrange(part, "b f t n k -> b (f t) n k") for part in parts)
        return q, KeyValues(k, v)

    def _image_update(
        self, image: jax.Array, out: jax.Array, frames: FrameContext, modulation: tuple[jax.Array, ...]
    ) -> jax.Array:
        """Add the attention output [B, F*T, N or 2N, K] and the MLP to the image stream."""
        out = einops.rearrange(out, "b (f t) n k -> b f t n k", f=image.shape[1])
        rotary, camera = jnp.split(out, [self.image.num_heads], axis=-2)
        update = self.image.out(einops.rearrange(rotary, "b f t n k -> b f t (n k)"))
        if frames.projection is not None:
            camera = projective.apply(frames.projection[0], camera)
            update = update + self.camera_out(einops.rearrange(camera, "b f t n k -> b f t (n k)"))
        image = gated(image, update, modulation[2])
        return self.image.feed_forward(image, *modulation[3:])

    def _text_update(self, text: jax.Array, out: jax.Array, modulation: tuple[jax.Array, ...]) -> jax.Array:
        text = gated(text, self.text.out(einops.rearrange(out, "b s n k -> b s (n k)")), modulation[2])
        return self.text.feed_forward(text, *modulation[3:])
