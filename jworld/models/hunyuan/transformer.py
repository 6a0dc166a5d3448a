"""HunyuanVideo-1.5 transformer, with WorldPlay's actions, cameras and chunk-causal attention.

Source: HunyuanVideo-1.5 `hunyuanvideo_1_5_transformer.py`, HY-WorldPlay `ar_action_hunyuanvideo_1_5_transformer.py`.
"""

from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from jworld.cameras import projective
from jworld.diffusion import flow_matching
from jworld.models.hunyuan.blocks import DoubleBlock, FrameContext, KeyValues
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.hunyuan.text import TextEncoder, TextInputs
from jworld.models.layers.embeddings import ScalarEmbedding
from jworld.models.layers.joining import join_tokens
from jworld.models.layers.linear import linear, zeros_init
from jworld.models.layers.modulation import Modulation, modulated_norm
from jworld.models.layers.patches import from_patches, to_patches
from jworld.models.layers.rotary import rotary_tables
from jworld.models.layers.stack import scan_layers, stack
from jworld.parallel.axes import constrain


class FrameInputs(NamedTuple):
    """Per-frame inputs of the image stream.

    Attributes:
      video: [B, F, H, W, 2C + 1] noisy latents, condition latents, mask.
      timestep: [B, F] diffusion time in 0..1000.
      action: [B, F] integer labels, or None for the plain model.
      w2c: [B, F, 4, 4] world to camera, or None for the plain model.
      intrinsics: [B, F, 3, 3] normalized by image size, or None.
      position: rotary time positions, [F] for all samples or [B, F]; None counts from 0.
      mask: [B, F] bool, False for padding frames, which are masked in attention; None for no padding.
      step_size: [B, F] sizes of the denoising steps that the velocity serves, in the unit of `timestep`, for a model
        with `HunyuanConfig.step_sizes`; None for the velocity at the time itself, which is size 0.
    """

    video: jax.Array
    timestep: jax.Array
    action: jax.Array | None = None
    w2c: jax.Array | None = None
    intrinsics: jax.Array | None = None
    position: jax.Array | None = None
    mask: jax.Array | None = None
    step_size: jax.Array | None = None


class Cache(NamedTuple):
    """KV cache: entries that image queries attend to in addition to their own frames.

    Attributes:
      layers: `KeyValues` with a leading layer axis, [layers, B, L, heads, K].
      mask: [B, L] bool, False for padding.
    """

    layers: KeyValues
    mask: jax.Array


def _patch_in_init(noisy: int, total: int) -> jax.nn.initializers.Initializer:
    """Return an initializer: Xavier-uniform for the noisy channels, zero for condition and mask channels."""
    xavier = nnx.initializers.xavier_uniform()

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        pixels = shape[0] // total
        head = xavier(key, (noisy * pixels, shape[1]), dtype)
        return jnp.concatenate([head, jnp.zeros((shape[0] - noisy * pixels, shape[1]), dtype)])

    return init


class HunyuanTransformer(nnx.Module):
    """Transformer that predicts the velocity of latents from noisy latents, text, and (WorldPlay) actions and poses."""

    def __init__(self, cfg: HunyuanConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        pixels = cfg.patch_size[1] * cfg.patch_size[2]
        inputs = 2 * cfg.channels + 1
        common: dict[str, Any] = {"param_dtype": cfg.param_dtype, "rngs": rngs}
        # Rows of the kernel are (channel, patch row, patch column), as in the flattened convolution of the original.
        self.patch_in = linear(
            inputs * pixels,
            cfg.width,
            (None, "embed"),
            dtype=cfg.dtype,
            kernel_init=_patch_in_init(cfg.channels, inputs),
            **common,
        )
        self.time = ScalarEmbedding(cfg.width, **common)
        if cfg.actions:
            self.action = ScalarEmbedding(cfg.width, zero_output=True, **common)
        if cfg.step_sizes:
            self.step_size = ScalarEmbedding(cfg.width, zero_output=True, **common)
        self.text = TextEncoder(cfg, rngs=rngs)
        self.blocks = stack(lambda rngs: DoubleBlock(cfg, rngs=rngs), cfg.num_layers, rngs)
        self.final_modulation = Modulation(cfg.width, cfg.width, 2, **common)
        self.patch_out = linear(
            cfg.width,
            cfg.channels * pixels,
            ("embed", None),
            dtype=cfg.dtype,
            kernel_init=zeros_init,
            **common,
        )
        if cfg.references:
            self.copy_gate = linear(
                cfg.width,
                cfg.channels * pixels,
                ("embed", None),
                dtype=cfg.dtype,
                kernel_init=zeros_init,
                **common,
            )
        if cfg.output_kernel > 1:
            self.join = join_tokens(cfg.channels, cfg.output_kernel, **common)

    def __call__(
        self,
        frames: FrameInputs,
        text: TextInputs,
        text_timestep: jax.Array,
        *,
        chunk_frames: int | None,
        context_frames: int | None = None,
    ) -> jax.Array:
        """Predict the velocity of a whole clip in one pass.

        Args:
          frames: the clip.
          text: its conditioning.
          text_timestep: [B] time for the text side; always 0 for the autoregressive model.
          chunk_frames: latent frames per chunk of chunk-causal attention (autoregressive model), or None for full
            attention (bidirectional model). Weights trained with one mask do not work with the other.
          context_frames: number of first frames that are the context of the others, in place of `chunk_frames`. They
            attend to the text and each other, the others to everything: this is what `with_cache` computes in two
            passes for a chunk of a rollout.

        Returns:
          Velocity [B, F, H, W, C] float32.
        """
        tokens, text_mask = self.text(text, text_timestep)
        text_vector = self.time(text_timestep)[:, None]
        context = self._context(frames)

        def layer(block: DoubleBlock, carry: tuple[jax.Array, jax.Array], _: None) -> tuple[Any, None]:
            image, tokens = carry
            if context_frames is not None:
                return block.after_context(image, tokens, context, text_vector, text_mask, context_frames), None
            if chunk_frames is None:
                return block.bidirectional(image, tokens, context, text_vector, text_mask), None
            return block.chunk_causal(image, tokens, context, text_vector, text_mask, chunk_frames), None

        carry = (self._embed(frames.video), tokens)
        (image, _), _ = scan_layers(self.blocks, layer, carry, remat=self.cfg.remat)
        return self._velocity(image, context.vector, frames)

    def text_cache(self, text: TextInputs, text_timestep: jax.Array) -> Cache:
        """Prefill the KV cache with the text tokens, in every layer.

        Text attends only to text (autoregressive model).
        """
        tokens, mask = self.text(text, text_timestep)
        vector = self.time(text_timestep)[:, None]

        def layer(block: DoubleBlock, tokens: jax.Array, _: None) -> tuple[jax.Array, KeyValues]:
            return block.text_only(tokens, vector, mask)

        _, layers = scan_layers(self.blocks, layer, tokens, remat="none")
        return Cache(layers, mask)

    def with_cache(self, frames: FrameInputs, cache: Cache) -> tuple[jax.Array, Cache]:
        """Predict the velocity of frames that attend to the KV cache and to each other, without a causal mask.

        Args:
          frames: frames, not necessarily consecutive.
          cache: the KV cache of text and context frames.

        Returns:
          Velocity [B, F, H, W, C] float32, and the KV cache entries of the frames.
        """
        image, context = self._embed(frames.video), self._context(frames)

        def layer(block: DoubleBlock, image: jax.Array, prefix: KeyValues) -> tuple[jax.Array, KeyValues]:
            return block.image_only(image, context, prefix, cache.mask)

        image, layers = scan_layers(self.blocks, layer, image, cache.layers, remat="none")
        return self._velocity(image, context.vector, frames), Cache(layers, context.mask)

    def _embed(self, video: jax.Array) -> jax.Array:
        """Embed [B, F, H, W, 2C + 1] as tokens [B, F, T, D]."""
        patches = to_patches(video, self.cfg.patch_size[1:])
        return constrain(self.patch_in(patches.astype(self.cfg.dtype)), "batch", "frames", None, None)

    def _context(self, frames: FrameInputs) -> FrameContext:
        _, ph, pw = self.cfg.patch_size
        B, F, H, W = frames.video.shape[:4]
        time = jnp.arange(F) if frames.position is None else frames.position

        def rotary(time: jax.Array) -> tuple[jax.Array, jax.Array]:
            positions = (time, jnp.arange(H // ph), jnp.arange(W // pw))
            return rotary_tables(positions, self.cfg.rope_dims, self.cfg.rope_theta)

        cos, sin = rotary(time) if time.ndim == 1 else jax.vmap(rotary)(time)
        vector = self.time(frames.timestep)
        if frames.action is not None:
            vector = vector + self.action(frames.action)
        if self.cfg.step_sizes:
            sizes = jnp.zeros_like(frames.timestep) if frames.step_size is None else frames.step_size
            vector = vector + self.step_size(sizes)
        projection = None
        if frames.w2c is not None:
            projection = projective.projection_matrices(frames.w2c, frames.intrinsics)
        cos, sin = (einops.rearrange(table, "... f h w k -> ... f (h w) k") for table in (cos, sin))
        mask = jnp.ones((B, F), bool) if frames.mask is None else frames.mask
        return FrameContext(vector[:, :, None], (cos, sin), projection, jnp.repeat(mask, cos.shape[-2], axis=1))

    def _velocity(self, image: jax.Array, vector: jax.Array, frames: FrameInputs) -> jax.Array:
        """Project tokens [B, F, T, D] to the velocity [B, F, H, W, C] float32."""
        hidden = modulated_norm(image, *self.final_modulation(vector))

        def latents(tokens: jax.Array) -> jax.Array:
            size = frames.video.shape[2], frames.video.shape[3]
            return from_patches(tokens.astype(jnp.float32), size, self.cfg.patch_size[1:], channels_first=True)

        out = latents(self.patch_out(hidden))
        if self.cfg.prediction == "velocity":
            return out
        if self.cfg.output_kernel > 1:
            out += self.join(out)
        noisy, reference, closeness = jnp.split(
            frames.video.astype(jnp.float32), [self.cfg.channels, 2 * self.cfg.channels], axis=-1
        )
        if self.cfg.references:
            out += closeness * latents(self.copy_gate(hidden)) * (reference - out)
        # The least time is one step, because clean frames of a context may have time 0.
        sigma = jnp.maximum(frames.timestep, 1.0) / flow_matching.NUM_TIMESTEPS
        return flow_matching.velocity(out, noisy, sigma[:, :, None, None, None])
