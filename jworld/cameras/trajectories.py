"""Camera paths as JSON files, in the format that HY-WorldPlay's inference reads: one pose per latent.

    {"0": {"extrinsic": 4x4 camera-to-world, "K": 3x3 intrinsics in pixels}, "1": ...}

The order is that of the file, whatever the names. Axes are OpenCV's (x right, y down, z forward). The image size is
twice the principal point, as in the original.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from jworld.cameras import pose_strings, poses
from jworld.utils import files
from jworld.utils.errors import UserError

POSE, INTRINSICS = "extrinsic", "K"


def is_file(pose: str) -> bool:
    """Return whether the value of --pose names a JSON file and is not a pose string."""
    return pose.lower().endswith(".json")


def read(path: pathlib.Path) -> pose_strings.CameraPath:
    """Read the control of a path from a file.

    Raises:
      UserError: the file has another format, a matrix is not rigid, or the path does not begin with the identity.
    """
    entries = _entries(path)
    c2w, pixels = np.empty((len(entries), 4, 4)), np.empty((len(entries), 3, 3))
    for i, (name, entry) in enumerate(entries.items()):
        where = f"{path}, entry '{name}'"
        c2w[i] = _matrix(entry, POSE, (4, 4), where)
        pixels[i] = _matrix(entry, INTRINSICS, (3, 3), where)
        if not poses.are_rigid(c2w[i]):
            raise UserError(
                f"{where}: '{POSE}' is not rigid, expected a rotation without scale or mirror, a translation, and the "
                "last row 0, 0, 0, 1: give the camera-to-world matrix"
            )
        if min(pixels[i, 0, 0], pixels[i, 1, 1], pixels[i, 0, 2], pixels[i, 1, 2]) <= 0:
            raise UserError(
                f"{where}: '{INTRINSICS}' is {pixels[i].tolist()}, expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in "
                "pixels, all four positive: give the intrinsics of the camera"
            )
    if np.abs(c2w[0] - np.eye(4)).max() > poses.RIGID_TOLERANCE:
        raise UserError(
            f"{path}: the first {POSE} is not the identity, but the model is trained on paths that begin there: "
            f"multiply every {POSE} from the left by the inverse of the first"
        )
    return dataclasses.replace(pose_strings.path_from_c2w(c2w), intrinsics=poses.normalize_intrinsics(pixels))


def _entries(path: pathlib.Path) -> dict[str, Any]:
    entries = files.read_json(path, None, fix="give a pose string or a file of poses")
    if not isinstance(entries, dict) or not entries or not all(isinstance(x, dict) for x in entries.values()):
        raise UserError(
            f"{path} is not a table of poses, expected one entry per latent: "
            f'{{"0": {{"{POSE}": 4x4, "{INTRINSICS}": 3x3}}, ...}}'
        )
    return entries


def _matrix(entry: dict[str, Any], key: str, shape: tuple[int, int], where: str) -> np.ndarray:
    if key not in entry:
        raise UserError(f"{where} lacks the key '{key}': every latent needs '{POSE}' and '{INTRINSICS}'")
    try:
        matrix = np.asarray(entry[key], np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.empty(0)
    if matrix.shape != shape or not np.isfinite(matrix).all():
        raise UserError(
            f"{where}: '{key}' is not a {shape[0]}x{shape[1]} matrix of finite numbers: write it row by row"
        )
    return matrix
