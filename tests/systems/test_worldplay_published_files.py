"""The reader of published files: contents, and one error message for each possible problem."""

import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import published_set
import pytest

from jworld.cameras import actions
from jworld.systems.worldplay import published_files
from jworld.utils.errors import UserError

FRAMES = 5
VIDEO_FRAMES = 4 * FRAMES - 3


@pytest.fixture
def entry(tmp_path: pathlib.Path) -> published_files.Entry:
    pytest.importorskip("torch")
    item = published_set.save_clip(tmp_path, "clip", 1, FRAMES, prompt=3)
    (tmp_path / "index.json").write_text(json.dumps([item]))
    return published_files.read_index(tmp_path / "index.json")[0]


def read(entry: published_files.Entry, *, min_frames: int = 1) -> published_files.Clip:
    return published_files.read_clip(entry, channels=32, min_frames=min_frames)


def test_a_clip_is_read_channels_last_with_every_fourth_camera(entry: published_files.Entry) -> None:
    clip = read(entry, min_frames=FRAMES)
    arrays = {**published_set.latents(1, FRAMES), **published_set.text(3)}
    w2c, intrinsics = published_set.cameras(1, VIDEO_FRAMES)
    np.testing.assert_array_equal(clip.latent, arrays["latent"][0].transpose(1, 2, 3, 0))
    np.testing.assert_array_equal(clip.image_cond[0], arrays["image_cond"][0, :, 0].transpose(1, 2, 0))
    np.testing.assert_array_equal(clip.vision_states, arrays["vision_states"][0])
    np.testing.assert_array_equal(clip.w2c, w2c[[0, 4, 8, 12, 16]])
    np.testing.assert_array_equal(clip.intrinsics, intrinsics[::4])
    assert [actions.label_name(label) for label in clip.action] == ["none"] + ["forward+yaw_right"] * 4
    for states, key in ((clip.prompt.text_states, "prompt"), (clip.prompt.glyph_states, "byt5_text")):
        length = int(arrays[f"{key}_mask"].sum())
        assert 0 < length < arrays[f"{key}_mask"].shape[1]
        embeds = arrays["prompt_embeds" if key == "prompt" else "byt5_text_states"]
        np.testing.assert_array_equal(states, embeds[0, :length].astype(ml_dtypes.bfloat16))
    assert {x.dtype for x in (clip.latent, clip.image_cond, clip.vision_states, clip.prompt.text_states)} == {
        np.dtype(ml_dtypes.bfloat16)
    }
    assert clip.sizes == published_files.Sizes((2, 3, 32), (2, 9), 5, 7)


def test_prompts_are_distinguished_by_content(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("torch")
    states = published_set.text(3)
    paths = published_set.save_negative(tmp_path, states)
    prompt = published_files.read_negative(*paths)
    beyond = {**states, "prompt_embeds": states["prompt_embeds"] * states["prompt_mask"][..., None]}
    same = published_files.read_negative(*published_set.save_negative(tmp_path, beyond))
    other_text = published_files.Prompt(prompt.text_states + 1, prompt.glyph_states)
    no_glyphs = published_files.Prompt(prompt.text_states, prompt.glyph_states[:0])
    assert prompt.key == same.key
    assert len({prompt.key, other_text.key, no_glyphs.key}) == 3


def test_actions_come_from_their_file(entry: published_files.Entry, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "actions.json"
    frames: list[Any] = [{"move_action": "", "view_action": ""} for _ in range(VIDEO_FRAMES)]
    frames[4] = {"move_action": "WD", "view_action": "LL"}
    frames[16] = {"move_action": "S", "view_action": ""}
    with_actions = published_files.Entry(entry.name, entry.latent, entry.pose, path)

    def save(frames: list[Any]) -> None:
        path.write_text(json.dumps({str(1000 - i): frame for i, frame in enumerate(frames)}))

    save(frames)
    names = [actions.label_name(label) for label in read(with_actions).action]
    assert names == ["none", "forward+right+yaw_left", "none", "none", "backward"]
    save(frames[:-1])
    with pytest.raises(UserError, match=r"actions\.json: the action list has 16 frames; 5 latents need 17"):
        read(with_actions)
    # Only frames in use are read, and only the two keys.
    frames[7], frames[8] = ["W"], {"move_action": "", "view_action": None, "frame": 8, "keys": ["w"]}
    save(frames)
    assert [actions.label_name(label) for label in read(with_actions).action] == names


@pytest.mark.parametrize(
    "frame, message",
    [
        (["W"], r"frame 8 is \['W'\], expected an object"),
        ({"move_action": "W"}, r"frame 8 lacks the key 'view_action'"),
        ({"move_action": "wd", "view_action": "LR"}, r"frame 8: 'move_action' is 'wd' \(found 'w'\).*upper case"),
        (
            {"move_action": "W", "view_action": "turn_left"},
            r"frame 8: 'view_action' is 'turn_left', expected one of LR",
        ),
    ],
)
def test_wrong_actions(entry: published_files.Entry, tmp_path: pathlib.Path, frame: Any, message: str) -> None:
    path = tmp_path / "actions.json"
    frames: list[Any] = [{"move_action": "", "view_action": ""} for _ in range(VIDEO_FRAMES)]
    frames[8] = frame
    path.write_text(json.dumps({str(i): each for i, each in enumerate(frames)}))
    with pytest.raises(UserError, match=r"actions\.json: " + message):
        read(published_files.Entry(entry.name, entry.latent, entry.pose, path))


@pytest.mark.parametrize(
    "content, message",
    [
        ("[", r"index\.json is not valid JSON"),
        ("{}", r"index\.json holds a JSON dict, expected a list of objects"),
        ("[]", r"index\.json is empty"),
        ('[{"latent_path": "a.pt"}]', "item 0 has no 'pose_path'"),
        ('[{"latent_path": "a.pt", "pose_path": "a.json"}, 7]', "item 1 has no 'latent_path'"),
        ('[{"latent_path": "a.pt", "pose_path": "a.json", "action_path": 3}]', "item 0 has 'action_path' 3"),
    ],
)
def test_malformed_indexes(tmp_path: pathlib.Path, content: str, message: str) -> None:
    path = tmp_path / "index.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        published_files.read_index(path)


def test_paths_are_relative_to_the_index(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "index.json"
    items = [{"latent_path": "a/b.pt", "pose_path": "/c.json", "action_path": None}]
    path.write_text(json.dumps(items))
    entry = published_files.Entry("a/b.pt", tmp_path / "a/b.pt", pathlib.Path("/c.json"), None)
    assert published_files.read_index(path) == [entry]
    with pytest.raises(UserError, match=r"none\.json is absent: correct the path"):
        published_files.read_index(tmp_path / "none.json")


def with_nan(x: np.ndarray) -> np.ndarray:
    y = x.copy()
    y.reshape(-1)[-1] = np.nan
    return y


@pytest.mark.parametrize(
    "key, change, message",
    [
        ("latent", None, "the tensor 'latent' is missing"),
        ("latent", lambda x: x[0], r"'latent' is \[32, 5, 2, 3\], expected \[1, C, F, H, W\]"),
        ("latent", lambda x: np.concatenate([x, x]), r"'latent' is \[2, 32, 5, 2, 3\], expected \[1, C, F, H, W\]"),
        ("latent", lambda x: x[:, :16], "'latent' has 16 channels, expected 32"),
        ("latent", lambda x: x[:, :, :3], "'latent' has 3 frames, expected at least 4"),
        ("latent", with_nan, "'latent' has NaN or infinite"),
        ("latent", lambda x: np.ones(x.shape, np.int32), r"'latent' is torch\.int32, expected a floating-point dtype"),
        ("image_cond", lambda x: np.tile(x, (1, 1, 2, 1, 1)), r"'image_cond' is \[2, 2, 3, 32\] .*expected \[1, 2"),
        ("image_cond", lambda x: x[..., :2], r"'image_cond' is \[1, 2, 2, 32\]"),
        ("vision_states", lambda x: x[0], r"'vision_states' is \[2, 9\], expected \[1, tokens, width\]"),
        ("vision_states", lambda x: x[:, :0], r"'vision_states' is \[1, 0, 9\]"),
        ("prompt_mask", lambda x: x[:, :-1], "'prompt_mask' has 5 tokens, expected 6 like 'prompt_embeds'"),
        ("prompt_mask", lambda x: x[:, ::-1], "'prompt_mask' is not ones followed by zeros"),
        ("prompt_mask", lambda x: 2 * x, "'prompt_mask' is not ones followed by zeros"),
        ("prompt_mask", lambda x: 0 * x, "'prompt_mask' marks no token"),
        ("prompt_embeds", lambda x: x * np.float16(np.inf), "'prompt_embeds' has NaN or infinite"),
        ("byt5_text_mask", lambda x: x[:, ::-1], "'byt5_text_mask' is not ones followed by zeros"),
        ("byt5_text_states", None, "the tensor 'byt5_text_states' is missing"),
    ],
)
def test_wrong_tensors(
    entry: published_files.Entry, key: str, change: Callable[[np.ndarray], np.ndarray] | None, message: str
) -> None:
    arrays = {**published_set.latents(1, FRAMES), **published_set.text(3)}
    changed = {key: change(arrays[key])} if change else {}
    kept = {name: x for name, x in arrays.items() if name != key}
    published_set.save_pt(entry.latent, {**kept, **changed})
    with pytest.raises(UserError, match=r"clip\.pt: .*" + message):
        read(entry, min_frames=4)


def test_masked_values_are_not_checked(entry: published_files.Entry) -> None:
    arrays = {**published_set.latents(1, FRAMES), **published_set.text(3)}
    hidden = with_nan(arrays["prompt_embeds"])
    published_set.save_pt(
        entry.latent, {**arrays, "prompt_embeds": hidden, "byt5_text_mask": 0 * arrays["byt5_text_mask"]}
    )
    assert read(entry).prompt.glyph_states.shape == (0, 7)


def test_files_that_are_not_pt_files(entry: published_files.Entry) -> None:
    import torch

    whole = entry.latent.read_bytes()
    entry.latent.write_bytes(b"")
    with pytest.raises(UserError, match=r"clip\.pt is empty: download or copy it again"):
        read(entry)
    for damaged in (whole[: len(whole) // 2], b"no archive"):
        entry.latent.write_bytes(damaged)
        with pytest.raises(UserError, match=r"clip\.pt is not a .*\.pt file .*\(.+\): download") as caught:
            read(entry)
        assert "\n" not in str(caught.value)
    entry.latent.write_bytes(whole)
    for start, words in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a Git LFS pointer .*: run git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "is a web page and not the file itself"),
    ):
        for path in (entry.latent, entry.pose):
            good = path.read_bytes()
            path.write_bytes(start)
            with pytest.raises(UserError, match=rf"{path.name} {words}") as caught:
                read(entry)
            assert "\n" not in str(caught.value)
            path.write_bytes(good)
    # Code in a .pt file is not executed.
    torch.save({"latent": pathlib.PurePosixPath("x")}, entry.latent)
    with pytest.raises(UserError, match=r"clip\.pt is not a readable \.pt file"):
        read(entry)
    torch.save([1, 2], entry.latent)
    with pytest.raises(UserError, match=r"clip\.pt holds a list, expected a dict of tensors"):
        read(entry)
    entry.latent.unlink()
    with pytest.raises(UserError, match=r"clip\.pt does not exist"):
        read(entry)


def test_files_and_dtypes_of_other_versions(entry: published_files.Entry) -> None:
    import torch

    content = torch.load(entry.latent, weights_only=True)
    torch.save(content, entry.latent, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"clip\.pt has the file format of PyTorch before 1\.6, .* with torch\.save$"):
        read(entry)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8):
        torch.save(content | {"latent": content["latent"].to(dtype)}, entry.latent)
        with pytest.raises(UserError, match=rf"'latent' is {dtype}, expected a floating-point dtype of 16 or 32 bits"):
            read(entry)
    torch.save(content | {"latent": content["latent"].double()}, entry.latent)
    assert read(entry).latent.dtype == ml_dtypes.bfloat16


def test_deep_json_is_refused(entry: published_files.Entry) -> None:
    entry.pose.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"clip\.json is not valid JSON"):
        read(entry)


def matrix(**changes: Any) -> list[list[Any]]:
    """Return a unit matrix with the elements eij replaced."""
    values: list[list[Any]] = np.eye(4 if changes.pop("size", 4) == 4 else 3).tolist()
    for place, value in changes.items():
        values[int(place[1])][int(place[2])] = value
    return values


CAMERA = [[400, 0, 416], [0, 420, 240], [0, 0, 1]]


@pytest.mark.parametrize(
    "frame, pose, message",
    [
        (16, None, "has 16 poses, expected at least 17 for the 5 latent frames"),
        (8, 3, "frame 8 has no 'w2c'"),
        (8, {"w2c": matrix()}, "frame 8 has no 'intrinsic'"),
        (8, {"w2c": matrix(size=3), "intrinsic": CAMERA}, "'w2c' of frame 8 is not a 4x4 matrix"),
        (8, {"w2c": matrix(e00="x"), "intrinsic": CAMERA}, "'w2c' of frame 8 is not a 4x4 matrix"),
        (8, {"w2c": matrix(e03=float("nan")), "intrinsic": CAMERA}, "'w2c' of frame 8 has NaN"),
        (8, {"w2c": matrix(e00=1.01), "intrinsic": CAMERA}, "'w2c' of frame 8 is not rigid"),
        (8, {"w2c": matrix(e00=-1), "intrinsic": CAMERA}, "'w2c' of frame 8 is not rigid"),
        (8, {"w2c": matrix(e30=0.5), "intrinsic": CAMERA}, "'w2c' of frame 8 is not rigid"),
        (4, {"w2c": matrix(), "intrinsic": [[0, 0, 416], [0, 420, 240], [0, 0, 1]]}, "'intrinsic' of frame 4 has fx"),
        (4, {"w2c": matrix(), "intrinsic": [[400, 0, 416], [0, 420, -1], [0, 0, 1]]}, "'intrinsic' of frame 4 has fx"),
    ],
)
def test_wrong_poses(tmp_path: pathlib.Path, frame: int, pose: Any, message: str) -> None:
    poses: list[Any] = [{"w2c": matrix(), "intrinsic": CAMERA} for _ in range(VIDEO_FRAMES)]
    poses[frame : frame + 1] = [] if pose is None else [pose]
    path = tmp_path / "poses.json"
    path.write_text(json.dumps({str(i): pose for i, pose in enumerate(poses)}))
    with pytest.raises(UserError, match=r"poses\.json.* " + message):
        published_files.read_poses(path, FRAMES)


def test_without_pytorch_the_message_names_the_extra(
    entry: published_files.Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r'pip install "jworld\[torch\]"'):
        read(entry)
