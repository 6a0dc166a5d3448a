"""Cameras and controls of every format, tested with a hand-made path: a step forward, a turn to the right."""

import json

import numpy as np
import pytest
import tiny_videos

from jworld.cameras import actions, poses
from jworld.data.inputs import clips, fitting, formats
from jworld.data.recording import episodes
from jworld.utils.errors import UserError

FRAMES = 9
WORDS = ["none"] + ["forward"] * 4 + ["yaw_right"] * 4
ENTRIES = [{"move_action": "", "view_action": "-"}] + [{"move_action": "W", "view_action": "-"}] * 4
ENTRIES += [{"move_action": "", "view_action": "LR"}] * 4
# A camera of 1920x1080 pixels whose video is stored with 32x24.
PIXELS = [[960.0, 0, 960], [0, 945.0, 540], [0, 0, 1]]
STRETCH = fitting.Fit(width=16, height=12, mode="stretch")


def write_as_episodes(path, w2c) -> None:
    episode = episodes.Episode(
        name="walk",
        split="train",
        caption="a path",
        fps=10.0,
        frames=tiny_videos.numbered(FRAMES),
        actions=WORDS,
        w2c=w2c,
        intrinsics=np.tile([0.5, 0.875, 0.5, 0.5], (FRAMES, 1)),
    )
    episodes.write_episode(path, episode)
    entry = {"name": "walk", "split": "train", "frames": FRAMES, "caption": "a path"}
    episodes.write_manifest(path, source="rooms", seed=0, fps=10, width=32, height=24, episodes=[entry])


def write_as_worldplay(path, w2c, *, entries=ENTRIES) -> None:
    tiny_videos.write(path / "videos" / "walk.mp4", tiny_videos.numbered(FRAMES))
    # Frames follow the order in the file, not the names.
    names = [f"frame {9 - t}" for t in range(FRAMES)]
    frames = {name: {"w2c": m.tolist(), "intrinsic": PIXELS} for name, m in zip(names, w2c, strict=False)}
    (path / "pose.json").write_text(json.dumps(frames))
    (path / "action.json").write_text(json.dumps({str(t): entry for t, entry in enumerate(entries)}))
    index = {"video_path": "videos/walk.mp4", "pose_path": "pose.json", "action_path": "action.json", "caption": "x"}
    (path / "index.json").write_text(json.dumps([index]))


WRITERS = {"episodes": write_as_episodes, "worldplay": write_as_worldplay}


def read(name, path, **options) -> list[clips.Clip]:
    (item,) = formats.list_items(name, path).items
    return list(clips.read_clips(item, clips.CutConfig(**{"fit": STRETCH, "frames": FRAMES, **options})))


@pytest.mark.parametrize("name", WRITERS)
def test_motions_have_the_right_signs(tmp_path, name):
    WRITERS[name](tmp_path, np.linalg.inv(tiny_videos.camera_path()))
    (clip,) = read(name, tmp_path)
    assert clip.w2c.dtype == np.float64

    # A point 5 units ahead of the first camera: nearer after the step, on the left after the turn.
    projected = clip.w2c @ np.array([0, 0, 5.0, 1])
    np.testing.assert_allclose(projected[[0, 4]], [[0, 0, 5, 1], [0, 0, 4.8, 1]], atol=1e-8)
    np.testing.assert_allclose(projected[8, 0], -4.8 * np.sin(4 * tiny_videos.TURN), atol=1e-8)
    # A point above the axis (y is down) stays above it.
    assert ((clip.w2c @ np.array([0, -1.0, 5, 1]))[:, 1] < -0.99).all()
    np.testing.assert_allclose(clip.w2c @ tiny_videos.camera_path(), np.tile(np.eye(4), (FRAMES, 1, 1)), atol=1e-8)

    labels = actions.labels_from_poses(clip.w2c[::4], min_translation=actions.TRAINING_MIN_TRANSLATION)
    assert labels.tolist() == [0, 9, 1]
    assert [actions.label_from_name(word) for word in clip.controls.words[::4]] == [0, 9, 1]
    assert clip.controls.words == tuple(WORDS)
    np.testing.assert_allclose(clip.intrinsics, np.tile([[0.5, 0, 0.5], [0, 0.875, 0.5], [0, 0, 1]], (FRAMES, 1, 1)))


@pytest.mark.parametrize("name", WRITERS)
def test_cameras_follow_resampling_and_crop(tmp_path, name):
    w2c = np.linalg.inv(tiny_videos.camera_path())
    WRITERS[name](tmp_path, w2c)
    (clip,) = read(name, tmp_path, fps=5, frames=5, fit=fitting.Fit(width=12, height=12))
    assert tiny_videos.numbers(clip.frames) == [0, 2, 4, 6, 8]
    np.testing.assert_allclose(clip.w2c, w2c[::2], atol=1e-8)
    assert clip.controls.words == tuple(WORDS[::2])
    # 32x24 -> 16x12 -> the middle 12x12: the focal length is a larger share of a narrower image.
    expected = [[0.5 * 16 / 12, 0, 0.5], [0, 0.875, 0.5], [0, 0, 1]]
    np.testing.assert_allclose(clip.intrinsics, np.tile(expected, (5, 1, 1)), atol=1e-12)


def test_action_files_give_the_labels_of_training(tmp_path):
    moves, views = ["", "W", "S", "WD", "WS", "WSA", "AD", "SA", ["W", "A"], None], ["-", "LR", "LL", "LU", "LD", None]
    entries = [{"move_action": move, "view_action": view, "frame": 7} for move in moves for view in views]
    expected = [actions.labels_from_entries([entry] * 5, 2)[1] for entry in entries]
    for i in range(0, len(entries), FRAMES):
        part = entries[i : i + FRAMES]
        write_as_worldplay(tmp_path, np.linalg.inv(tiny_videos.camera_path()), entries=(part + ENTRIES)[:FRAMES])
        (clip,) = read("worldplay", tmp_path)
        found = [actions.label_from_name(word) for word in clip.controls.words[: len(part)]]
        assert found == expected[i : i + FRAMES]
    assert len(set(expected)) == 35  # seven different moves with five views


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"move_action": "w", "view_action": "LR"}, r"'move_action' is 'w' \(found 'w'\), expected .*upper case"),
        ({"move_action": "W", "view_action": "lr"}, r"'view_action' is 'lr', expected one of LR, LL, LU, LD"),
        ({"move_action": "W", "view_action": "RIGHT"}, r"'view_action' is 'RIGHT'"),
        ({"move_action": "jump", "view_action": ""}, r"'move_action' is 'jump' \(found 'j'\)"),
        ({"move_action": 3, "view_action": ""}, r"'move_action' is 3, expected letters of W, S, D, A"),
        ({"move_action": "W", "view_action": 3}, r"'view_action' is 3"),
        ({"move_action": "W"}, r"lacks the key 'view_action'"),
        (["W"], r"is \['W'\], expected an object with 'move_action' and 'view_action'"),
    ],
)
def test_unknown_actions_are_named(tmp_path, entry, message):
    entries = [*ENTRIES[:4], entry, *ENTRIES[5:]]
    write_as_worldplay(tmp_path, np.linalg.inv(tiny_videos.camera_path()), entries=entries)
    with pytest.raises(UserError, match=rf"action\.json: entry '4'.* {message}"):
        read("worldplay", tmp_path)


@pytest.mark.parametrize("name", WRITERS)
def test_invalid_cameras_are_refused(tmp_path, name):
    scaled, mirrored, broken = (np.linalg.inv(tiny_videos.camera_path()) for _ in range(3))
    scaled[5, :3, :3] *= 1.01
    mirrored[:, 0] *= -1
    broken[7, 0, 3] = np.nan
    for index, (w2c, message) in enumerate(
        (
            (scaled, "w2c of frame 5 is not rigid"),
            (mirrored, "w2c of frame 0 is not rigid"),
            (broken, "w2c hold numbers that are not finite"),
        )
    ):
        WRITERS[name](tmp_path / str(index), w2c)
        with pytest.raises(UserError, match=message):
            read(name, tmp_path / str(index))


def test_cameras_of_another_number_of_frames(tmp_path):
    w2c = np.linalg.inv(tiny_videos.camera_path())
    write_as_worldplay(tmp_path, w2c[:8])
    with pytest.raises(UserError, match=r"pose\.json has 8 poses, the video decodes to 9 frames"):
        read("worldplay", tmp_path)
    write_as_worldplay(tmp_path, w2c, entries=ENTRIES[:5])
    with pytest.raises(UserError, match=r"action\.json has 5 actions, the video decodes to 9 frames"):
        read("worldplay", tmp_path)
    write_as_episodes(tmp_path, w2c)
    tiny_videos.write(tmp_path / "walk" / "video.mp4", tiny_videos.numbered(7))
    with pytest.raises(UserError, match=r"holds 7 frames, expected 9 by the manifest and 9 by episode\.json"):
        read("episodes", tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"extrinsic": [], "K": []}, r"lacks the key 'w2c', expected w2c and intrinsic: files for generation"),
        ({"w2c": [[1.0]], "intrinsic": PIXELS}, "w2c are not matrices of numbers"),
        ({"w2c": np.eye(4).tolist(), "intrinsic": [[0.0] * 3] * 3}, "focal length 0 found"),
        (
            {"w2c": np.eye(4).tolist(), "intrinsic": [[9.0, 0, 0], [0, 9.0, 0], [0, 0, 1]]},
            "principal point is 0 pixels",
        ),
    ],
)
def test_pose_files_that_are_refused(tmp_path, change, message):
    write_as_worldplay(tmp_path, np.linalg.inv(tiny_videos.camera_path()))
    frames = json.loads((tmp_path / "pose.json").read_text())
    frames["frame 9"] = change
    (tmp_path / "pose.json").write_text(json.dumps(frames))
    with pytest.raises(UserError, match=message):
        read("worldplay", tmp_path)


@pytest.mark.parametrize("key", ["frames", "actions", "w2c", "intrinsics"])
def test_episode_files_that_are_refused(tmp_path, key):
    write_as_episodes(tmp_path, np.linalg.inv(tiny_videos.camera_path()))
    path = tmp_path / "walk" / "episode.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in good.items() if name != key}))
    with pytest.raises(UserError, match=f"lacks the key '{key}'"):
        read("episodes", tmp_path)
    path.write_text(json.dumps(good | {key: good[key][:4] if key != "frames" else 4}))
    with pytest.raises(UserError, match=rf"{'has 4 ' if key != 'frames' else 'and 4 by episode.json'}"):
        read("episodes", tmp_path)
    path.write_text(json.dumps(good | {"actions": ["jump"] * FRAMES}))
    with pytest.raises(UserError, match="frame 0: action 'jump' is unknown"):
        read("episodes", tmp_path)


def test_intrinsics_do_not_depend_on_the_video_size(tmp_path):
    """The clip's intrinsics equal `poses.normalize_intrinsics` of the pixels, for any size of the video."""
    write_as_worldplay(tmp_path, np.linalg.inv(tiny_videos.camera_path()))
    (clip,) = read("worldplay", tmp_path)
    np.testing.assert_array_equal(clip.intrinsics[3], poses.normalize_intrinsics(np.array(PIXELS)))
