import json
import pathlib
from typing import Any

import numpy as np
import pytest

from jworld.cameras import pose_strings, poses, trajectories
from jworld.utils.errors import UserError

PIXELS = [[969.6969696969696, 0, 960], [0, 969.6969696969696, 540], [0, 0, 1]]


def entries(pose: str = "w-2, right-1") -> dict[str, Any]:
    c2w = poses.invert_rigid(pose_strings.path(pose).w2c)
    # Names in reverse order: only the order in the file counts.
    return {f"frame {9 - i}": {"extrinsic": pose.tolist(), "K": PIXELS} for i, pose in enumerate(c2w)}


def written(folder: pathlib.Path, content: Any) -> pathlib.Path:
    path = folder / "poses.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_file_is_read_as_the_pose_string_that_it_was_made_from(tmp_path: pathlib.Path) -> None:
    path, expected = trajectories.read(written(tmp_path, entries())), pose_strings.path("w-2, right-1")
    np.testing.assert_allclose(path.w2c, expected.w2c, atol=1e-12)
    np.testing.assert_allclose(path.intrinsics, expected.intrinsics, atol=1e-12)
    np.testing.assert_array_equal(path.action, expected.action)


def changed(pose: list[float] | None = None, key: str = "extrinsic", scale: float = 1.0) -> dict[str, Any]:
    """Return the entries with another matrix in the last one."""
    table = entries()
    last = table["frame 6"]
    last[key] = pose if pose is not None else (np.diag([scale, scale, scale, 1]) @ last[key]).tolist()
    return table


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ([], "is not a table of poses"),
        ({}, "is not a table of poses"),
        ({"0": 3}, "is not a table of poses"),
        ({"0": {"K": PIXELS}}, "entry '0' lacks the key 'extrinsic'"),
        ({"0": {"extrinsic": np.eye(4).tolist()}}, "entry '0' lacks the key 'K'"),
        ({"0": {"extrinsic": np.eye(3).tolist(), "K": PIXELS}}, "'extrinsic' is not a 4x4 matrix"),
        (changed([[1, 2], [3]]), "entry 'frame 6': 'extrinsic' is not a 4x4 matrix"),
        (changed([["a"]]), "'extrinsic' is not a 4x4 matrix"),
        (changed((np.eye(4) * np.nan).tolist()), "finite"),
        (changed(scale=1.1), "entry 'frame 6': 'extrinsic' is not rigid"),
        (changed(np.diag([1.0, 1, -1, 1]).tolist()), "not rigid"),
        (changed((np.eye(4) + np.eye(4, k=-3)).tolist()), "not rigid"),
        (changed([[900.0, 0, 0], [0, 900, 0], [0, 0, 1]], key="K"), "all four positive"),
        (dict(reversed(entries().items())), "multiply every extrinsic from the left by the inverse of the first"),
    ],
)
def test_errors_name_the_entry_and_the_fault(content: Any, message: str, tmp_path: pathlib.Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=message) as error:
        trajectories.read(path)
    assert str(path) in str(error.value)


def test_an_absent_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="is absent"):
        trajectories.read(tmp_path / "no.json")
