"""Conversion between frames of latents and tokens, one per patch."""

import einops
import jax

Patch = tuple[int, int]


def to_patches(video: jax.Array, patch: Patch) -> jax.Array:
    """Split frames into patches: [B, F, H, W, C] -> [B, F, h * w, C * patch], patches row by row.

    The entries of a token are ordered (channel, row, column).
    """
    return einops.rearrange(video, "b f (h p) (w q) c -> b f (h w) (c p q)", p=patch[0], q=patch[1])


def from_patches(tokens: jax.Array, size: tuple[int, int], patch: Patch, *, channels_first: bool) -> jax.Array:
    """Join patches to frames: [B, F, h * w, patch * C] -> [B, F, H, W, C].

    Args:
      tokens: one per patch, ordered as `to_patches` returns them.
      size: height H and width W of the frames.
      patch: height and width of a patch.
      channels_first: whether the entries of a token are ordered (channel, row, column) or (row, column, channel).
    """
    entries = "(c p q)" if channels_first else "(p q c)"
    (H, W), (p, q) = size, patch
    return einops.rearrange(tokens, f"b f (h w) {entries} -> b f (h p) (w q) c", h=H // p, w=W // q, p=p, q=q)
