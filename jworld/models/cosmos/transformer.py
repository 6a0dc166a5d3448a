"""Cosmos-Predict2 transformer.

Source: cosmos-predict2 `models/text2image_dit.py`, `video2world_dit.py`, `video2world_action_dit.py`,
`multiview_dit.py`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from jworld.diffusion import flow_matching
from jworld.models.cosmos.blocks import Block, Context, modulation
from jworld.models.cosmos.config import CosmosConfig
from jworld.models.cosmos.embeddings import ActionPerceptron, PositionTables, TimeEmbedding, video_rotary
from jworld.models.layers.joining import join_tokens
from jworld.models.layers.linear import linear, truncated_init
from jworld.models.layers.mlp import gelu_exact
from jworld.models.layers.modulation import modulated_norm
from jworld.models.layers.patches import from_patches, to_patches
from jworld.models.layers.stack import scan_layers, stack
from jworld.parallel.axes import constrain

#: Least noise level of the conversion of clean latents to a velocity. Conditioning frames have lower ones.
_LEAST_TIME = 1e-3


class CosmosInputs(NamedTuple):
    """Batch for the network. With V views F counts the frames of all views, one view after the other.

    Attributes:
      video: [B, F, H, W, C] scaled noisy latents, clean ones in conditioning frames.
      time: [B, F] or [B, 1] diffusion time in 0..1.
      text: [B, S, text_dim], zero rows after a prompt; with views [B, V * S, text_dim].
      given: [B, F] 1 for conditioning frames, 0 for others; None (images) for none.
      padding: [B or 1, height, width] of any size, 1 for pixels outside the image; None for none.
      action: [B, ...], action_dim numbers per clip, or None for a model without actions.
      fps: frames per second of all clips, for models with `fps_modulation`.
      view: [B, F] camera of each frame; None for the cameras 0..V-1.
    """

    video: jax.Array
    time: jax.Array
    text: jax.Array
    given: jax.Array | None = None
    padding: jax.Array | None = None
    action: jax.Array | None = None
    fps: jax.Array | None = None
    view: jax.Array | None = None


class CosmosTransformer(nnx.Module):
    """Transformer that predicts the velocity (noise - clean) from noisy latents, conditioning frames, text and time."""

    def __init__(self, cfg: CosmosConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        pixels = cfg.patch_size[1] * cfg.patch_size[2]
        common: dict[str, Any] = {"dtype": cfg.dtype, "param_dtype": cfg.param_dtype, "rngs": rngs}
        bare: dict[str, Any] = {"use_bias": False, "kernel_init": truncated_init}
        # Rows of the kernel are (channel, patch row, patch column), as in the original.
        self.patch_in = linear(cfg.in_channels * pixels, cfg.width, (None, "embed"), **bare, **common)
        self.time = TimeEmbedding(cfg, rngs=rngs)
        if cfg.text_width != cfg.text_dim:
            self.text = linear(cfg.text_dim, cfg.text_width, (None, "embed"), **common)
        if cfg.absolute_positions:
            self.positions = PositionTables(cfg, rngs=rngs)
        if cfg.action_dim is not None:
            self.action = ActionPerceptron(cfg, cfg.width, rngs=rngs)
            self.action_offset = ActionPerceptron(cfg, 3 * cfg.width, rngs=rngs)
        if cfg.views is not None:
            self.views = nnx.Embed(
                cfg.views,
                cfg.view_dim,
                dtype=jnp.float32,
                param_dtype=cfg.param_dtype,
                embedding_metadata={"out_sharding": (None, None)},
                rngs=rngs,
            )
        self.blocks = stack(lambda rngs: Block(cfg, rngs=rngs), cfg.num_layers, rngs)
        self.final_modulation = modulation(cfg, 2, rngs)
        # Columns are (patch row, patch column, channel), unlike in the input.
        self.patch_out = linear(cfg.width, pixels * cfg.channels, ("embed", None), **bare, **common)
        if cfg.output_kernel > 1:
            self.join = join_tokens(cfg.channels, cfg.output_kernel, param_dtype=cfg.param_dtype, rngs=rngs)

    def __call__(self, inputs: CosmosInputs) -> jax.Array:
        """Predict the velocity [B, F, H, W, C] float32."""
        cfg = self.cfg
        F, H, W = inputs.video.shape[1:4]
        views = 1 if cfg.views is None else F // cfg.view_frames
        x = to_patches(self._channels(inputs, views), cfg.patch_size[1:])
        x = constrain(self.patch_in(x.astype(cfg.dtype)), "batch", "frames", None, None)
        context = self._context(inputs, views)

        def layer(block: Block, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return block(x, context, views), None

        x, _ = scan_layers(self.blocks, layer, x, remat=cfg.remat)
        x = modulated_norm(x, *self.final_modulation(context.vector, context.offset))
        out = self.patch_out(x).astype(jnp.float32)
        return self._velocity(from_patches(out, (H, W), cfg.patch_size[1:], channels_first=False), inputs)

    def _velocity(self, out: jax.Array, inputs: CosmosInputs) -> jax.Array:
        """Return the velocity [B, F, H, W, C] float32 of the last layer's output, which may be the clean latents."""
        if self.cfg.prediction == "velocity":
            return out
        if self.cfg.output_kernel > 1:
            out += self.join(out)
        time = jnp.maximum(inputs.time.astype(jnp.float32), _LEAST_TIME)[:, :, None, None, None]
        return flow_matching.velocity(out, inputs.video.astype(jnp.float32), time)

    def _channels(self, inputs: CosmosInputs, views: int) -> jax.Array:
        """Concatenate [B, F, H, W, in_channels]: latents, condition mask, padding, view."""
        cfg, (B, F, H, W, _) = self.cfg, inputs.video.shape
        parts = [inputs.video]

        def add(part: jax.Array) -> None:
            parts.append(jnp.broadcast_to(part, (B, F, H, W, part.shape[-1])).astype(inputs.video.dtype))

        if cfg.condition_mask:
            given = jnp.zeros((B, F)) if inputs.given is None else inputs.given
            add(given[:, :, None, None, None])
        if cfg.padding_mask:
            padding = jnp.zeros((1, H, W)) if inputs.padding is None else inputs.padding
            add(_resized(padding, H, W)[:, None, :, :, None])
        if cfg.views is not None:
            view = view_of_frames(range(views), F) if inputs.view is None else inputs.view
            add(self.views(view)[:, :, None, None])
        return jnp.concatenate(parts, axis=-1)

    def _context(self, inputs: CosmosInputs, views: int) -> Context:
        cfg, (B, F, H, W, _) = self.cfg, inputs.video.shape
        frames, height, width = F // views, H // cfg.patch_size[1], W // cfg.patch_size[2]
        action = None
        if cfg.action_dim is not None:
            assert inputs.action is not None
            numbers = inputs.action.reshape(B, cfg.action_dim)
            action = self.action(numbers), self.action_offset(numbers)
        vector, offset = self.time(inputs.time * cfg.time_scale, action)
        cos, sin = video_rotary(cfg, frames=frames, height=height, width=width, fps=inputs.fps)
        # Positions restart with each view.
        cos, sin = (einops.repeat(table, "f h w k -> (v f) (h w) k", v=views) for table in (cos, sin))
        text = inputs.text.astype(cfg.dtype)
        if cfg.text_width != cfg.text_dim:
            text = gelu_exact(self.text(text))
        position = None
        if cfg.absolute_positions:
            position = einops.repeat(self.positions(frames, height, width), "f t d -> (v f) t d", v=views)
        return Context(
            vector=vector[:, :, None],
            offset=None if offset is None else offset[:, :, None],
            rope=(cos, sin),
            text=text,
            position=position,
        )


def view_of_frames(ids: Sequence[int], frames: int) -> jax.Array:
    """Return the camera of each frame, int32 [1, F], of F `frames` that the cameras `ids` share equally, in order."""
    return jnp.repeat(jnp.array(ids), frames // len(ids))[None]


def _resized(mask: jax.Array, height: int, width: int) -> jax.Array:
    """Resize [B, h, w] -> [B, height, width]: row i is row floor(i * h / height) of the mask, likewise for columns."""
    rows = jnp.arange(height) * mask.shape[1] // height
    columns = jnp.arange(width) * mask.shape[2] // width
    return mask[:, rows][:, :, columns]
