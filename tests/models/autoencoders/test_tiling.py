"""Tiles: their parts of the frame, and the blending of their overlaps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jworld.models.autoencoders.tiling import Tiling, tiled
from jworld.utils.errors import UserError

TILING = Tiling(tile=(8, 12), stride=(6, 8))


@pytest.mark.parametrize("size", [(8, 12), (9, 12), (20, 31), (7, 25)])
def test_pixelwise_functions_are_unchanged(size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, *size, 2)).astype(np.float32)
    result = jax.jit(lambda x: tiled(lambda tile: 2 * tile, x, inputs=TILING, outputs=TILING))(x)
    np.testing.assert_allclose(result, 2 * x, rtol=1e-5, atol=1e-6)


def test_the_blending_over_three_tiles() -> None:
    """Each tile has another value: 4 columns blend from one to the next, and the first still has the old value."""
    x = np.arange(24.0, dtype=np.float32).reshape(1, 1, 1, 24, 1)
    result = tiled(lambda tile: jnp.full_like(tile, 1) * tile[:, :, :, :1], x, inputs=TILING, outputs=TILING)
    seams = [8, 8 * 0.75 + 16 * 0.25, 12, 8 * 0.25 + 16 * 0.75]
    expected = [0] * 8 + [0, 2, 4, 6] + [8] * 4 + seams + [16] * 4
    np.testing.assert_allclose(result[0, 0, 0, :, 0], expected)


def test_results_of_another_size() -> None:
    """With a function that halves the size, tiles, seams and result are half as large."""
    x = np.random.default_rng(0).normal(size=(1, 1, 20, 28, 1)).astype(np.float32)
    result = tiled(lambda tile: tile[:, :, ::2, ::2], x, inputs=TILING, outputs=TILING.scaled(2))
    np.testing.assert_allclose(result, x[:, :, ::2, ::2], rtol=1e-5, atol=1e-6)


def test_tilings_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="must be multiples of 4 pixels"):
        Tiling(tile=(8, 12), stride=(6, 8)).scaled(4)
    with pytest.raises(UserError, match="tile/2 <= stride <= tile"):
        Tiling(tile=(8, 8), stride=(8, 9))
