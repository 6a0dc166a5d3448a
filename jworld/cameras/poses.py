"""Rigid camera poses in float64 numpy: OpenCV axes (x right, y down, z forward), `w2c` or its inverse `c2w`."""

import numpy as np

#: Matrices come from float32 reconstructions and files with few digits. Real scale or shear exceeds this by far.
RIGID_TOLERANCE = 1e-3


def are_rigid(matrices: np.ndarray) -> np.ndarray:
    """Test matrices [..., 4, 4] -> bool [...].

    A rigid matrix is a rotation without scale or mirror, a translation, and the last row 0, 0, 0, 1.
    """
    matrices = np.asarray(matrices, np.float64)
    rotation = matrices[..., :3, :3]
    error = np.abs(rotation @ rotation.swapaxes(-1, -2) - np.eye(3)).max(axis=(-1, -2))
    error = np.maximum(error, np.abs(matrices[..., 3, :] - [0, 0, 0, 1]).max(axis=-1))
    rigid: np.ndarray = (error <= RIGID_TOLERANCE) & (np.linalg.det(rotation) > 0)
    return rigid


def invert_rigid(matrices: np.ndarray) -> np.ndarray:
    """Invert rigid matrices [..., 4, 4], which converts w2c to c2w and back."""
    matrices = np.asarray(matrices, np.float64)
    rotation_t = np.swapaxes(matrices[..., :3, :3], -1, -2)
    inverse = np.zeros_like(matrices)
    inverse[..., :3, :3] = rotation_t
    inverse[..., :3, 3] = -(rotation_t @ matrices[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1
    return inverse


def steps(w2c: np.ndarray) -> np.ndarray:
    """Return the motion that led to every frame, in the axes of the previous frame: inv(c2w[i-1]) c2w[i].

    w2c [F, 4, 4] -> [F, 4, 4]; the first is the identity.
    """
    w2c = np.asarray(w2c, np.float64)
    relative = np.broadcast_to(np.eye(4), w2c.shape).copy()
    relative[1:] = w2c[:-1] @ invert_rigid(w2c[1:])
    return relative


def relative_to_first(w2c: np.ndarray) -> np.ndarray:
    """Express a path in the axes of its first camera, which becomes the identity: w2c [F, 4, 4] -> [F, 4, 4]."""
    w2c = np.asarray(w2c, np.float64)
    relative: np.ndarray = w2c @ invert_rigid(w2c[0])
    return relative


def intrinsics_matrices(parameters: np.ndarray) -> np.ndarray:
    """Build matrices [..., 3, 3] from (fx, fy, cx, cy) [..., 4], in the unit of the parameters."""
    fx, fy, cx, cy = np.moveaxis(np.asarray(parameters, np.float64), -1, 0)
    matrices = np.zeros((*fx.shape, 3, 3))
    matrices[..., 0, 0], matrices[..., 1, 1], matrices[..., 2, 2] = fx, fy, 1
    matrices[..., 0, 2], matrices[..., 1, 2] = cx, cy
    return matrices


def normalize_intrinsics(intrinsics: np.ndarray) -> np.ndarray:
    """Divide intrinsics [..., 3, 3] in pixels by the image size, twice the principal point; then cx = cy = 0.5."""
    intrinsics = np.asarray(intrinsics, np.float64)
    fx = intrinsics[..., 0, 0] / (2 * intrinsics[..., 0, 2])
    fy = intrinsics[..., 1, 1] / (2 * intrinsics[..., 1, 2])
    half = np.full_like(fx, 0.5)
    return intrinsics_matrices(np.stack([fx, fy, half, half], axis=-1))
