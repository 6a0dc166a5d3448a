"""Cameras set by hand."""

import numpy as np

from jworld.cameras import poses


def camera(x: float = 0.0, yaw: float = 0.0) -> np.ndarray:
    """Return the w2c of a camera at x on the right, turned right by degrees."""
    angle = np.radians(yaw)
    c2w = np.eye(4)
    c2w[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    c2w[0, 3] = x
    return poses.invert_rigid(c2w).astype(np.float32)
