"""Actions of a robot arm from files: annotations of the Bridge data set, and scaled actions."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from jworld.cameras import robots
from jworld.utils.errors import UserError

RNG = np.random.default_rng(0)
ACTION = RNG.uniform(-0.02, 0.02, (13, 7))
GRIPPER = RNG.uniform(0, 1, 14)
STATE = np.cumsum(np.concatenate([np.zeros((1, 7)), ACTION]), axis=0)


def written(folder: pathlib.Path, content: Any) -> pathlib.Path:
    path = folder / "annotation.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def annotation(**changes: Any) -> dict[str, Any]:
    facts = {"texts": ["x"], "action": ACTION.tolist(), "continuous_gripper_state": GRIPPER.tolist()}
    return {key: value for key, value in (facts | changes).items() if value is not None}


def test_an_annotation_is_scaled_as_in_the_original(tmp_path: pathlib.Path) -> None:
    found = robots.read_motions(written(tmp_path, annotation(state=STATE.tolist())))
    assert found.is_annotation
    np.testing.assert_allclose(found.values, np.c_[20 * ACTION[:, :6], GRIPPER[1:]], rtol=1e-6)


def test_an_annotation_without_actions_gets_them_from_the_states(tmp_path: pathlib.Path) -> None:
    found = robots.read_motions(written(tmp_path, annotation(action=None, state=STATE.tolist())))
    assert found.is_annotation
    np.testing.assert_array_equal(found.values, robots.relative_actions(STATE[:, :6], GRIPPER))


def test_scaled_actions_are_used_as_they_are(tmp_path: pathlib.Path) -> None:
    found = robots.read_motions(written(tmp_path, {"action": ACTION.tolist()}))
    assert not found.is_annotation
    np.testing.assert_array_equal(found.values, ACTION.astype(np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ([], "holds a list, expected an object: give an object with 'action'"),
        ({}, "lacks the key 'action'"),
        ({"state": STATE.tolist()}, "lacks the key 'continuous_gripper_state'"),
        ({"action": ACTION.tolist(), "state": STATE.tolist()}, "lacks the key 'continuous_gripper_state'"),
        ({"action": ACTION[:, :6].tolist()}, r"'action' has shape \[13, 6\], expected rows of 7 numbers"),
        ({"action": [[10**400] * 7]}, "'action' is something else, expected rows of 7 numbers"),
        ({"action": []}, "'action' is something else"),
        ({"action": [[float("nan")] * 7]}, r"'action' has shape \[1, 7\], expected"),
        (annotation(continuous_gripper_state=GRIPPER[1:].tolist()), "'action' has 13 rows .* belongs to 12"),
        (annotation(action=ACTION[:, :5].tolist()), r"'action' has shape \[13, 5\], expected rows of 6 or more"),
        (annotation(action=None), "'state' is missing, expected rows of 6 or more numbers"),
        (annotation(action=None, state=STATE[1:].tolist()), "'state' has 13 rows .* belongs to 14"),
        (annotation(continuous_gripper_state="open"), "'continuous_gripper_state' is something else"),
    ],
)
def test_errors_name_file_and_key(tmp_path: pathlib.Path, content: Any, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=message) as caught:
        robots.read_motions(path)
    assert str(path) in str(caught.value)


def test_an_absent_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"no\.json is absent"):
        robots.read_motions(tmp_path / "no.json")
