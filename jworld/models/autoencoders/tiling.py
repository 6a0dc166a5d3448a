"""Processing of large frames in overlapping tiles with linear blending, in the memory of one tile.

The published autoencoders tile in space only, with the same blending. Values change in and near the seams and, if a
norm or an attention spans the frame, everywhere.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jworld.utils.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiling:
    """Size (height, width) of the tiles and their stride in pixels; the overlap is blended.

    The last tile of a row or column may be smaller.
    """

    tile: tuple[int, int]
    stride: tuple[int, int]

    def __post_init__(self) -> None:
        for tile, stride in zip(self.tile, self.stride, strict=True):
            if not 0 < stride <= tile <= 2 * stride:
                raise UserError(
                    f"tiles of {tile} pixels with stride {stride}: expected tile/2 <= stride <= tile, change the stride"
                )

    def scaled(self, ratio: int) -> "Tiling":
        """Convert to units of latents of `ratio` pixels."""
        if any(size % ratio for size in (*self.tile, *self.stride)):
            raise UserError(f"tiles {self.tile} and stride {self.stride} must be multiples of {ratio} pixels")
        return Tiling(
            tile=(self.tile[0] // ratio, self.tile[1] // ratio),
            stride=(self.stride[0] // ratio, self.stride[1] // ratio),
        )


def tiled(function: Callable[[jax.Array], jax.Array], x: jax.Array, *, inputs: Tiling, outputs: Tiling) -> jax.Array:
    """Apply `function` ([B, F, H, W, C] -> [B, F', H', W', C']) to the tiles `inputs` of x.

    Its results tile as `outputs`.
    """
    if x.shape[2] <= inputs.tile[0] and x.shape[3] <= inputs.tile[1]:
        return function(x)
    tiles = _on_tiles(function, x, inputs)
    fade = [tile - stride for tile, stride in zip(outputs.tile, outputs.stride, strict=True)]
    rows: list[list[jax.Array]] = []
    for row in tiles:
        faded: list[jax.Array] = []
        for j, tile in enumerate(row):
            if rows:
                tile = _fade(rows[-1][j], tile, fade[0], 2)
            if faded:
                tile = _fade(faded[-1], tile, fade[1], 3)
            faded.append(tile)
        rows.append(faded)
    height, width = outputs.stride
    return jnp.concatenate(
        [jnp.concatenate([tile[:, :, :height, :width] for tile in row], axis=3) for row in rows], axis=2
    )


def _on_tiles(function: Callable[[jax.Array], jax.Array], x: jax.Array, tiling: Tiling) -> list[list[jax.Array]]:
    """Compute rows of results. Tiles of one size share one program and run one after the other."""
    tops, lefts = (range(0, x.shape[2 + axis], tiling.stride[axis]) for axis in (0, 1))
    corners: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for top in tops:
        for left in lefts:
            size = (min(tiling.tile[0], x.shape[2] - top), min(tiling.tile[1], x.shape[3] - left))
            corners.setdefault(size, []).append((top, left))
    results: dict[tuple[int, int], jax.Array] = {}
    for (height, width), positions in corners.items():
        sizes = (x.shape[0], x.shape[1], height, width, x.shape[4])

        def one(corner: jax.Array, sizes: tuple[int, ...] = sizes) -> jax.Array:
            return function(jax.lax.dynamic_slice(x, (0, 0, corner[0], corner[1], 0), sizes))

        results |= dict(zip(positions, jax.lax.map(one, jnp.array(positions)), strict=True))
    return [[results[top, left] for left in lefts] for top in tops]


def _fade(before: jax.Array, after: jax.Array, length: int, axis: Literal[2, 3]) -> jax.Array:
    """Blend the first `length` rows or columns of `after` linearly with the last ones of `before`."""
    length = min(length, before.shape[axis], after.shape[axis])
    shape = [1] * after.ndim
    shape[axis] = length
    weight = (jnp.arange(length) / max(length, 1)).reshape(shape).astype(after.dtype)
    end = jax.lax.slice_in_dim(before, before.shape[axis] - length, before.shape[axis], axis=axis)
    start = jax.lax.slice_in_dim(after, 0, length, axis=axis)
    rest = jax.lax.slice_in_dim(after, length, after.shape[axis], axis=axis)
    return jnp.concatenate([end * (1 - weight) + start * weight, rest], axis=axis)
