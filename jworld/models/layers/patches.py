"""Frames of latents as tokens, one per patch, and back."""

import jax

Patch = tuple[int, int]


def to_patches(video: jax.Array, patch: Patch) -> jax.Array:
    """[B, F, H, W, C] -> [B, F, h * w, C * patch], rows of patches first.

    A token's entries are (channel, row, column).
    """
    B, F, H, W, C = video.shape
    ph, pw = patch
    tokens = video.reshape(B, F, H // ph, ph, W // pw, pw, C).transpose(0, 1, 2, 4, 6, 3, 5)
    return tokens.reshape(B, F, (H // ph) * (W // pw), C * ph * pw)


def from_patches(tokens: jax.Array, size: tuple[int, int], patch: Patch, *, channels_first: bool) -> jax.Array:
    """[B, F, h * w, patch * C] -> [B, F, H, W, C].

    Args:
      tokens: as of `to_patches`.
      size: height H and width W.
      patch: its height and width.
      channels_first: a token's entries are (channel, row, column), otherwise (row, column, channel).
    """
    B, F = tokens.shape[:2]
    (H, W), (ph, pw) = size, patch
    if channels_first:
        tokens = tokens.reshape(B, F, H // ph, W // pw, -1, ph, pw).transpose(0, 1, 2, 5, 3, 6, 4)
    else:
        tokens = tokens.reshape(B, F, H // ph, W // pw, ph, pw, -1).transpose(0, 1, 2, 4, 3, 5, 6)
    return tokens.reshape(B, F, H, W, -1)
