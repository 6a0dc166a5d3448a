"""Frames of several synchronized cameras as one video: a grid of tiles, one per camera, row by row."""

import math

import numpy as np

from jworld.utils.errors import UserError


def shape(cameras: int) -> tuple[int, int]:
    """Return rows and columns of the grid: up to three cameras are one row, more are nearly a square."""
    columns = cameras if cameras <= 3 else math.isqrt(cameras - 1) + 1
    return -(-cameras // columns), columns


def join(videos: np.ndarray) -> np.ndarray:
    """Return the grid [T, rows * H, columns * W, 3] of the videos [V, T, H, W, 3]; tiles without a camera are black."""
    cameras, frames, height, width, channels = videos.shape
    rows, columns = shape(cameras)
    grid = np.zeros((frames, rows, height, columns, width, channels), videos.dtype)
    for camera, video in enumerate(videos):
        row, column = divmod(camera, columns)
        grid[:, row, :, column] = video
    return grid.reshape(frames, rows * height, columns * width, channels)


def split(grid: np.ndarray, cameras: int) -> np.ndarray:
    """Return the videos [V, T, H, W, 3] of a grid [T, rows * H, columns * W, 3].

    Raises:
      UserError: rows or columns do not divide the size of the frames.
    """
    frames, height, width, channels = grid.shape
    rows, columns = shape(cameras)
    if height % rows or width % columns:
        raise UserError(
            f"the image has {width}x{height} pixels, expected a grid of {columns}x{rows} tiles for {cameras} cameras: "
            "give one image per camera"
        )
    tiles = grid.reshape(frames, rows, height // rows, columns, width // columns, channels)
    videos: np.ndarray = np.stack([tiles[:, i // columns, :, i % columns] for i in range(cameras)])
    return videos


def stack(grid: np.ndarray, cameras: int) -> np.ndarray:
    """Return a grid's videos above each other, [T, V * H, W, 3]: every pixel is one of a camera."""
    videos = split(grid, cameras)
    stacked: np.ndarray = np.concatenate(list(videos), axis=1)
    return stacked
