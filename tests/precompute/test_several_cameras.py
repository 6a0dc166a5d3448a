"""Records of several synchronized cameras: Cosmos-Predict2's multi-view folders, LeRobot sets, recorded rooms."""

import pathlib
import pickle
import re

import numpy as np
import precompute_inputs
import pytest
import tiny_videos

import jworld.precompute.__main__ as precompute
from jworld.data import camera_grids, records
from jworld.data.inputs import formats, items
from jworld.data.recording import episodes, recorder
from jworld.data.records import text_store
from jworld.encoders import autoencoders, registry
from jworld.precompute import validate
from jworld.systems.cosmos import import_t5
from jworld.utils.errors import UserError

CAMERAS = {"left": 5, "front": 0, "right": 1}
FRAMES, SIZE = 12, (64, 48)


def waymo(folder: pathlib.Path, names: tuple[str, ...] = ("drive", "park")) -> pathlib.Path:
    """Write the layout of the original's multi-view post-training; only the front camera is captioned."""
    for number, name in enumerate(names):
        for index, camera in enumerate(CAMERAS):
            tiny_videos.write(folder / "videos" / camera / f"{name}.mp4", video(index, number))
        meta = folder / "metas" / "front" / f"{name}.txt"
        meta.parent.mkdir(parents=True, exist_ok=True)
        meta.write_text(f"a car, {name}\n")
    return folder


def video(camera: int, number: int = 0) -> np.ndarray:
    """Return a video whose color is the camera's."""
    frames = precompute_inputs.wall(number, FRAMES).astype(int)
    frames[..., camera] = frames[..., camera] // 4 + 180
    return frames.astype(np.uint8)


def arguments(folder: pathlib.Path, *changes: str) -> list[str]:
    size = ["--width=32", "--height=24", "--fps=10", "--frames=5", "--stride=4", "--spatial-ratio=8", "--channels=24"]
    cameras = ",".join(f"{name}={number}" for name, number in CAMERAS.items())
    paths = ["--input", str(folder), "--output", str(folder / "records")]
    return ["--format=cosmos", *paths, "--camera", cameras, *size, "--val-share=0.4", "--image-encoder=none", *changes]


@pytest.fixture(scope="module")
def multi_view(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return a data set with records made by the command."""
    folder = waymo(tmp_path_factory.mktemp("waymo"))
    precompute.main(arguments(folder, "--text-encoder=hashed-words:8"))
    return folder


def test_folders_of_cameras_become_one_record_per_moment(multi_view: pathlib.Path) -> None:
    """Every camera is encoded alone, in the order of --camera; the caption is the front camera's."""
    manifest = records.read_manifest(multi_view / "records")
    assert manifest["views"] == {"names": ["left", "front", "right"], "ids": [5, 0, 1]}
    splits = {split: count for split, count in manifest["clips"].items() if count}
    # Clips at the frames 0 and 4 of two videos.
    assert [length for lengths in splits.values() for length in lengths] == [2] * 4
    source = records.RecordSource(multi_view / "records", next(iter(splits)))
    record, name = source[1], source.episodes[1]
    assert name.endswith("@000004")
    assert record["latent"].shape == (3, 2, 3, 4, 24)
    autoencoder = autoencoders.load(multi_view / "records")
    decoded = autoencoder.decode(record["latent"].astype(np.float32))
    # The brightest channel is that of the camera.
    assert decoded.mean(axis=(1, 2, 3)).argmax(axis=-1).tolist() == [0, 1, 2]
    np.testing.assert_array_equal(record["image_cond"][:, 0], record["latent"][:, 0])
    prompts = [manifest["prompts"][row] for row in record["view_prompts"]]
    caption = f"a car, {name.partition('@')[0]}"
    assert prompts == ["", caption, ""]
    assert manifest["prompts"][int(record["prompt"])] == caption
    assert len(text_store.TextStore(multi_view / "records", manifest)) == 3
    result = validate.validate(multi_view / "records")
    assert (result.findings, result.notes, result.records) == ([], [], 4)


def test_other_models_refuse_the_records(multi_view: pathlib.Path) -> None:
    manifest = records.read_manifest(multi_view / "records")
    with pytest.raises(UserError, match=r"'views' is \{'names': .*the model expects None"):
        records.check_manifest(manifest, {}, path="x")


def short(folder: pathlib.Path) -> None:
    tiny_videos.write(folder / "videos" / "right" / "drive.mp4", video(2)[:-1])


def small(folder: pathlib.Path) -> None:
    tiny_videos.write(folder / "videos" / "right" / "drive.mp4", video(2)[:, :24])


def slow(folder: pathlib.Path) -> None:
    tiny_videos.write(folder / "videos" / "right" / "drive.mp4", video(2), fps=5)


def absent(folder: pathlib.Path) -> None:
    (folder / "videos" / "right" / "drive.mp4").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (short, r"right/drive\.mp4 has 11 frames, expected 12 as in .*left/drive\.mp4: videos of synchronized cameras"),
        (small, r"right/drive\.mp4 has 64x24 pixels, expected 64x48 as in"),
        (slow, r"right/drive\.mp4 has 5 frames/s and its own times, expected 10 as in"),
        (absent, r"right/drive\.mp4 is absent, expected the video of every camera"),
    ],
)
def test_cameras_that_disagree(
    damage, message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = waymo(tmp_path, ("drive",))
    damage(folder)
    with pytest.raises(SystemExit) as stopped:
        precompute.main(arguments(folder, "--val-share=0"))
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert re.search(message, said)


@pytest.mark.parametrize("text", ["a,a", "a=0,b", "a=0,b=0", "a=x,b=1", ",a", "a=0,b=64"])
def test_wrong_cameras(text: str, multi_view: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"--camera is '.*', expected different names"):
        formats.list_items("cosmos", multi_view, options=items.ListOptions(camera=text))


def test_one_camera_of_several(multi_view: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"has a folder per camera: name the cameras .*--camera front,left,right or"):
        formats.list_items("cosmos", multi_view)
    listing = formats.list_items("cosmos", multi_view, options=items.ListOptions(camera="front"))
    assert [item.video.parent.name for item in listing.items] == ["front", "front"]
    assert (listing.items[0].caption, listing.facts) == ("a car, drive", {"camera": "front"})
    prompted = items.ListOptions(camera="front,left", prompt="a road")
    (drive, _) = formats.list_items("cosmos", multi_view, options=prompted).items
    assert [view.caption for view in drive.views] == ["a car, drive", "a road"]


def test_embeddings_of_cameras(tmp_path: pathlib.Path) -> None:
    """t5_xxl/CAMERA/X.pkl, as the original's reader names them, and X.pickle, as its guide does."""
    folder = waymo(tmp_path, ("drive",))
    for camera, suffix in (("left", "pkl"), ("front", "pickle")):
        meta = folder / "metas" / camera / "drive.txt"
        meta.parent.mkdir(exist_ok=True)
        meta.write_text(f"seen by {camera}")
        states = np.full((2, 8), CAMERAS[camera], np.float16)
        (folder / "t5_xxl" / camera).mkdir(parents=True)
        (folder / "t5_xxl" / camera / f"drive.{suffix}").write_bytes(pickle.dumps([states]))
    import_t5.main(["--input", str(folder)])
    text, _ = registry.read_embeddings(folder / "t5_xxl.safetensors")
    found = text.encode(["seen by left", "seen by front"])
    assert [float(states[0, 0]) for states in found] == [5.0, 0.0]


def test_recorded_rooms(tmp_path: pathlib.Path) -> None:
    """The cameras of the recorder look to the side by their yaw: what one sees is what the other sees after a turn."""
    config = recorder.RecordingConfig(
        source="rooms",
        directory=str(tmp_path / "raw"),
        episodes=1,
        frames=5,
        image_size=SIZE,
        views=("front", "right"),
        yaws=(0.0, 8.0),
    )
    config.record()
    config.record()  # the same data set again is left as it is
    (item,) = formats.list_items("episodes", tmp_path / "raw").items
    assert [view.video.name for view in item.views] == ["video.mp4", "video_right.mp4"]
    front, right = (episodes.read_video(view.video) for view in item.views)
    world = recorder.make_world("rooms", [recorder.TRAIN_MAP, 0, 0], width=SIZE[0], height=SIZE[1])
    w2c = episodes.read_episode(tmp_path / "raw", item.name).w2c[0]
    x, _, z = -w2c[:3, :3].T @ w2c[:3, 3]
    yaw = np.arctan2(w2c[2, 0], w2c[2, 2])
    for seen, turn in ((front, 0.0), (right, 8.0)):
        expected = world.render(np.array([[x, z, yaw + np.radians(turn)]]))[0][0]
        assert np.abs(seen[0].astype(int) - expected).mean() < 4
    with pytest.raises(UserError, match=r"holds a data set with views \[\['front', 0\.0\], .*, expected None"):
        recorder.record(tmp_path / "raw", source="rooms", episodes=1, frames=5, width=SIZE[0], height=SIZE[1])
    for wrong in ({"views": ("a",), "yaws": (0.0,)}, {"views": ("a", "b"), "yaws": (1.0, 0.0)}, {"views": ("a", "b")}):
        with pytest.raises(ValueError, match="expected a direction for each of several cameras"):
            recorder.RecordingConfig(**wrong)


def test_grids() -> None:
    assert [camera_grids.shape(count) for count in range(1, 10)] == [
        *((1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (2, 3)),
        *((3, 3), (3, 3), (3, 3)),
    ]
    videos = np.random.default_rng(0).integers(1, 256, (5, 2, 4, 6, 3), dtype=np.uint8)
    grid = camera_grids.join(videos)
    assert grid.shape == (2, 8, 18, 3)
    np.testing.assert_array_equal(grid[:, :4, 6:12], videos[1])
    np.testing.assert_array_equal(grid[:, 4:, :6], videos[3])
    assert not grid[:, 4:, 12:].any()
    np.testing.assert_array_equal(camera_grids.split(grid, 5), videos)
    np.testing.assert_array_equal(camera_grids.stack(grid, 5)[:, 8:12], videos[2])
    with pytest.raises(UserError, match="has 6x5 pixels, expected a grid of 3x2 tiles for 5 cameras"):
        camera_grids.split(np.zeros((1, 5, 6, 3)), 5)
