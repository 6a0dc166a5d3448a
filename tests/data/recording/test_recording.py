"""Recordings of both sources: cameras, labels, repeatability, errors."""

import contextlib
import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jworld.data.recording import doom, episodes, explorer, recorder, rooms
from jworld.utils import errors

ROOT = pathlib.Path(__file__).resolve().parents[3]
SIZE = {"width": 96, "height": 72}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9)))


def relative(w2c: np.ndarray) -> np.ndarray:
    """Return the pose of camera 4(i+1) relative to camera 4i, c2w [F - 1, 4, 4]."""
    latents = w2c[::4]
    return np.stack([before @ np.linalg.inv(after) for before, after in itertools.pairwise(latents)])


@pytest.fixture(scope="module", params=["rooms", "doom"])
def source(request):
    if request.param == "doom":
        pytest.importorskip("vizdoom")
    return request.param


@pytest.fixture(scope="module")
def data_set(source, tmp_path_factory):
    directory = tmp_path_factory.mktemp(source) / "episodes"
    recorder.record(directory, source=source, episodes=2, frames=121, seed=3, workers=2, **SIZE)
    return directory


def test_labels_match_the_camera_motion(source, data_set):
    words = set()
    for name in ("episode_00000", "episode_00001"):
        episode = episodes.read_episode(data_set, name)
        moves = relative(episode.w2c)
        for action, move in zip(episode.actions[1::4], moves, strict=True):
            keys = set(action.split("+"))
            words |= keys
            x, y, z = move[:3, 3]
            yaw = np.degrees(np.arctan2(move[0, 2], move[2, 2]))
            assert abs(yaw - 8 * (("yaw_right" in keys) - ("yaw_left" in keys))) < 0.3
            assert abs(y) < 1e-6
            if "yaw" not in action:
                assert abs(z - 0.24 * (("forward" in keys) - ("backward" in keys))) < 0.03
                assert abs(x - 0.24 * (("right" in keys) - ("left" in keys))) < 0.03
            elif "forward" in keys:
                assert z > 0.2
    assert {"forward", "yaw_left", "yaw_right"} <= words


def test_actions_are_held_for_one_latent(data_set):
    actions = episodes.read_episode(data_set, "episode_00000").actions
    assert actions[0] == "none"
    assert all(len(set(actions[i : i + 4])) == 1 for i in range(1, len(actions), 4))


def test_turning_right_moves_the_image_left(source):
    episode = recorder.record_scripted(source, seed=1, actions=["yaw_right"] * 2, **SIZE)
    before, after = (episode.frames[i].astype(float)[24:48].mean((0, 2)) for i in (0, 3))
    # Six degrees near the center of a 90 degree view are about 5 of 96 columns.
    errors_by_shift = {s: np.abs(after[30:66] - before[30 + s : 66 + s]).mean() for s in range(-15, 16)}
    assert 3 <= min(errors_by_shift, key=lambda shift: errors_by_shift[shift]) <= 7


def test_forward_is_along_the_optical_axis(source):
    episode = recorder.record_scripted(source, seed=2, actions=["forward"] * 4, **SIZE)
    assert episode.frames.shape == (17, 72, 96, 3)
    moves = relative(episode.w2c)
    assert np.all(moves[:, 2, 3] > 0.2)
    assert np.abs(moves[:, :2, 3]).max() < 0.02


def test_turning_away_and_back_restores_the_first_view(source):
    script = ["yaw_left"] * 8 + ["yaw_right"] * 8
    episode = recorder.record_scripted(source, seed=5, actions=script, **SIZE)
    assert psnr(episode.frames[-1], episode.frames[0]) > 30
    assert psnr(episode.frames[len(episode.frames) // 2], episode.frames[0]) < 22
    np.testing.assert_allclose(episode.w2c[-1], episode.w2c[0], atol=0.02)


def test_walking_out_and_back_restores_the_first_view(source):
    episode = recorder.record_scripted(source, seed=6, actions=["forward"] * 4 + ["backward"] * 4, **SIZE)
    assert psnr(episode.frames[-1], episode.frames[0]) > 24
    np.testing.assert_allclose(episode.w2c[-1], episode.w2c[0], atol=0.02)


def test_same_seed_same_bytes_for_any_number_of_workers(source, data_set, tmp_path):
    recorder.record(tmp_path / "again", source=source, episodes=2, frames=121, seed=3, workers=1, **SIZE)
    files = sorted(path.relative_to(data_set) for path in data_set.rglob("*") if path.is_file())
    assert len(files) == 5
    for file in files:
        assert (data_set / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


def test_manifest_and_splits(source, data_set):
    manifest = recorder.record(data_set, source=source, episodes=2, frames=121, seed=3, **SIZE)
    assert [entry["split"] for entry in manifest["episodes"]] == ["train", "val"]
    assert (manifest["source"], manifest["width"], manifest["height"]) == (source, 96, 72)
    with pytest.raises(errors.UserError, match="data set with seed 3, expected 4"):
        recorder.record(data_set, source=source, episodes=2, frames=121, seed=4, **SIZE)


def test_every_third_episode_of_worlds_is_doom(tmp_path):
    pytest.importorskip("vizdoom")
    for workers in (1, 2):
        directory = tmp_path / f"{workers}"
        recorder.record(directory, source="worlds", episodes=3, frames=9, seed=3, workers=workers, **SIZE)
    manifest = episodes.read_manifest(directory)
    assert manifest["source"] == "worlds"
    assert [entry["split"] for entry in manifest["episodes"]] == ["train", "train", "val"]
    recorded = [episodes.read_episode(directory, entry["name"]) for entry in manifest["episodes"]]
    assert [episode.caption for episode in recorded] == [entry["caption"] for entry in manifest["episodes"]]
    assert ["maze" in episode.caption for episode in recorded] == [False, False, True]
    # Cameras of each world: the engine stretches its images.
    np.testing.assert_allclose([episode.intrinsics[0, :2] for episode in recorded], [(1 / 2, 2 / 3)] * 2 + [(0.5, 0.8)])
    for file in directory.rglob("*.*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "1" / file.relative_to(directory)).read_bytes(), file
    # The same rooms as alone.
    recorder.record(tmp_path / "rooms", source="rooms", episodes=2, frames=9, seed=3, workers=1, **SIZE)
    first = pathlib.Path("episode_00000") / "video.mp4"
    assert (directory / first).read_bytes() == (tmp_path / "rooms" / first).read_bytes()


def test_shares_of_worlds():
    for episodes_of_a_split in (range(768), range(recorder.VAL_EVERY - 1, 768, recorder.VAL_EVERY)):
        found = [recorder.world_of("worlds", number) for number in episodes_of_a_split]
        assert (found.count("rooms"), found.count("doom")) == (2 * len(found) // 3, len(found) // 3)


def test_wall_corners_project_to_their_columns():
    world = rooms.Rooms(7, width=192, height=144)
    poses = explorer.Explorer(world, np.random.default_rng(0), blocks=20).explore()[0]
    frames, w2c, intrinsics = world.render(poses)
    checked = 0
    for frame, camera, (fx, fy, cx, cy) in zip(frames[::8], w2c[::8], intrinsics[::8], strict=True):
        eye_x, _, eye_z = -camera[:3, :3].T @ camera[:3, 3]
        room = next(r for r in world.rooms if r.x0 < eye_x < r.x1 and r.z0 < eye_z < r.z1)
        for x in (room.x0, room.x1):
            for z in (room.z0, room.z1):
                right, floor, ahead, _ = camera @ (x, rooms.EYE, z, 1.0)
                column, row = 192 * (fx * right / ahead + cx), 144 * (fy * floor / ahead + cy)
                if ahead < 0.5 or not 12 < column < 180 or row > 138:
                    continue
                # Walls of different colors meet in this column; floor and wall meet in this row.
                line = frame[72].astype(float)
                assert np.abs(line[round(column) - 3] - line[round(column) + 2]).max() > 20
                up = frame[:, round(column) - 4].astype(float)
                assert np.abs(up[round(row) - 4] - up[round(row) + 4]).max() > 8
                checked += 1
    assert checked > 5


def test_doom_floor_projects_to_its_row():
    pytest.importorskip("vizdoom")
    with contextlib.closing(doom.Doom("doom", 0, width=192, height=144)) as world:
        for distance in (80, 100, 120):
            # In the north-west room, looking at its gray wall over the brown floor.
            pose = np.array([480 * doom.SCALE, (128 - distance) * doom.SCALE, 0.0])
            frames, w2c, intrinsics = world.render(pose[None])
            floor = w2c[0] @ (480 * doom.SCALE, 0.0, 128 * doom.SCALE, 1.0)
            row = 144 * (intrinsics[0, 1] * floor[1] / floor[2] + 0.5)
            middle = frames[0, 72:, 86:106].astype(float).mean(1)
            assert abs(72 + np.argmax(middle[:, 0] - middle[:, 2] > 15) - row) < 2


def test_rooms_differ_by_seed_and_motion_is_smooth():
    maps = [rooms.Rooms([0, seed], width=64, height=48).walls for seed in range(3)]
    assert len({walls.tobytes() for walls in maps}) == 3
    world = rooms.Rooms(0, width=96, height=72)
    poses, actions = explorer.Explorer(world, np.random.default_rng(1), blocks=60).explore()
    frames = world.render(poses)[0].astype(float)
    assert np.abs(np.diff(frames, axis=0)).mean((1, 2, 3)).max() < 20
    assert explorer.clearance(poses[:, :2], world.walls).min() >= world.motion.margin
    assert sum("forward" in action for action in actions) >= 12


def test_exploration_returns():
    world = rooms.Rooms(0, width=16, height=16)
    actions = "".join(explorer.Explorer(world, np.random.default_rng(4), blocks=400).explore()[1])
    assert "yaw_left" * 6 + "yaw_right" * 6 in actions or "yaw_right" * 6 + "yaw_left" * 6 in actions
    assert "forwardbackward" in actions or "backwardforward" in actions


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"frames": 240}, "frames is 240, expected 4k"),
        ({"episodes": 0}, "episodes is 0"),
        ({"width": 97}, "width is 97"),
        ({"seed": -1}, "seed is -1"),
        ({"source": "quake"}, "source is 'quake', expected one of rooms, doom"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, tmp_path):
    with pytest.raises(errors.UserError, match=message):
        recorder.record(tmp_path / "out", **({"source": "rooms"} | arguments))
    assert not list(tmp_path.iterdir())


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(errors.UserError, match="holds other files"):
        recorder.record(tmp_path, source="rooms")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_missing_engine(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(doom, "available", lambda: False)
    for source in ("doom", "worlds"):
        with pytest.raises(errors.UserError, match="vizdoom, which is not installed"):
            recorder.record(tmp_path / source, source=source)
    assert not list(tmp_path.iterdir())
    # Scripts of a mixed source need the engine in the numbers of doom alone.
    assert "rooms" in recorder.record_scripted("worlds", seed=1, actions=["none"], **SIZE).caption
    with pytest.raises(errors.UserError, match="vizdoom, which is not installed"):
        recorder.record_scripted("worlds", seed=2, actions=["none"], **SIZE)
    assert recorder.resolve_source("auto") == "rooms"
    assert capsys.readouterr().out.count("\n") == 1


def test_impossible_scripts_are_refused():
    with pytest.raises(errors.UserError, match="action is 'jump'"):
        recorder.record_scripted("rooms", seed=0, actions=["jump"], **SIZE)
    with pytest.raises(errors.UserError, match="no start position of rooms"):
        recorder.record_scripted("rooms", seed=0, actions=["forward"] * 100, **SIZE)


def test_a_missing_turn_is_detected():
    planned = np.zeros((5, 3))
    planned[:, 2] = np.radians(2.0) * np.arange(5)
    doom.check_followed(planned, planned + np.array([0.0, 0.0, 2 * np.pi]))
    with pytest.raises(RuntimeError, match="left the planned path"):
        doom.check_followed(planned, np.zeros((5, 3)))


def test_command_line(tmp_path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "scripts" / "record_episodes.py"), *arguments]
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = run("--source=rooms", "--episodes=2", "--frames=9", "--size=32x24", "--output=out")
    assert done.returncode == 0, done.stderr
    assert "python -m jworld.precompute --input out" in done.stdout
    assert len(episodes.read_manifest(tmp_path / "out")["episodes"]) == 2
    wrong = run("--source=rooms", "--size=32by24")
    assert wrong.returncode == 2
    assert wrong.stderr == "error: --size is '32by24', expected WIDTHxHEIGHT, for example 192x144\n"
