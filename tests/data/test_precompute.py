"""From raw episodes to records: contents, reproducibility, an existing codec, and inputs that are refused."""

import json

import ml_dtypes
import numpy as np
import pytest

from jworld import precompute
from jworld.cameras import actions
from jworld.data import episodes, images, records, text
from jworld.errors import UserError
from jworld.models.autoencoders import linear

FRAMES = 13


def make_episode(index: int, split: str) -> episodes.Episode:
    """A textured wall that shifts sideways while the camera turns right by 8 degrees per latent."""
    generator = np.random.default_rng(index)
    wall = generator.integers(0, 256, (6, 20, 3)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    frames = np.stack([wall[:, 2 * t : 2 * t + 64] for t in range(FRAMES)])
    angles = np.radians(2.0) * np.arange(FRAMES)
    w2c = np.tile(np.eye(4), (FRAMES, 1, 1))
    w2c[:, 0, 0] = w2c[:, 2, 2] = np.cos(angles)
    w2c[:, 0, 2], w2c[:, 2, 0] = -np.sin(angles), np.sin(angles)
    return episodes.Episode(
        name=f"episode_{index:05d}",
        split=split,
        caption=f"wall {index % 2}",
        fps=8.0,
        frames=frames,
        actions=["none"] + ["yaw_right"] * (FRAMES - 1),
        w2c=w2c,
        intrinsics=np.tile([0.5, 0.7, 0.5, 0.5], (FRAMES, 1)),
    )


def write_episodes(directory, splits: list[str]) -> None:
    walks = [make_episode(i, split) for i, split in enumerate(splits)]
    for walk in walks:
        episodes.write_episode(directory, walk)
    entries = [{"name": w.name, "split": w.split, "frames": FRAMES, "caption": w.caption} for w in walks]
    episodes.write_manifest(directory, source="rooms", seed=0, fps=8.0, width=64, height=48, episodes=entries)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    directory = tmp_path_factory.mktemp("raw")
    write_episodes(directory, ["train", "train", "train", "val"])
    return directory


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    output = tmp_path_factory.mktemp("sets") / "records"
    return precompute.precompute(raw, output, width=32, height=24, spatial_ratio=8, channels=24, text_dim=16)


def test_contents(raw, prepared):
    assert prepared.clips == {"train": 3, "val": 1}
    assert prepared.latent_shape == (3, 4, 24)
    output = prepared.output
    names = {"manifest.json", "autoencoder.safetensors"}
    shards = {f"{split}-00000-of-00001.arrayrecord" for split in ("train", "val", "text")}
    assert {path.name for path in output.iterdir()} == names | shards
    assert [path.name for path in output.parent.iterdir()] == ["records"]

    codec = linear.LinearAutoencoder.load(output / records.AUTOENCODER_FILE)
    train = records.RecordSource(output, "train", min_frames=4)
    walk = episodes.read_episode(raw, "episode_00001")
    frames = images.resize(walk.frames, width=32, height=24)
    record = train[1]
    np.testing.assert_array_equal(record["latent"], codec.encode(frames).astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(record["image_cond"], codec.encode(frames[:1]).astype(ml_dtypes.bfloat16))
    np.testing.assert_allclose(record["w2c"], walk.w2c[[0, 4, 8, 12]], atol=1e-6)
    np.testing.assert_allclose(record["intrinsics"][2], [[0.5, 0, 0.5], [0, 0.7, 0.5], [0, 0, 1]], atol=1e-6)
    assert [actions.label_name(label) for label in record["action"]] == ["none"] + ["yaw_right"] * 3
    assert record["vision_states"].shape == (12, 12)
    prompts = train.manifest["prompts"]
    assert prompts[0] == "" and prompts[record["prompt"]] == "wall 1"  # noqa: PT018
    store = text.TextStore(output, train.manifest)
    assert len(store) == len(prompts)
    expected = text.hashed_words("wall 1", dim=16).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(store.prompt(int(record["prompt"]))["text_states"], expected)

    records.check_manifest(train.manifest, {"autoencoder.hash": codec.hash()}, path=output)
    other = linear.fit([walk.frames], codec.config, seed=0)
    with pytest.raises(UserError, match=r"autoencoder\.hash"):
        records.check_manifest(train.manifest, {"autoencoder.hash": other.hash()}, path=output)
    assert prepared.psnr > 15


def test_same_input_same_files_and_given_codec(raw, prepared, tmp_path):
    given = prepared.output / records.AUTOENCODER_FILE
    output = tmp_path / "again"
    again = precompute.precompute(
        raw, output, width=32, height=24, spatial_ratio=8, channels=24, text_dim=16, autoencoder=given
    )
    assert again.autoencoder_hash == prepared.autoencoder_hash
    for path in sorted(prepared.output.iterdir()):
        assert path.read_bytes() == (output / path.name).read_bytes(), path.name


def refuse(raw, tmp_path, match: str, **options) -> None:
    settings = {"width": 32, "height": 24, "spatial_ratio": 8, "channels": 24, **options}
    with pytest.raises(UserError, match=match):
        precompute.precompute(raw, tmp_path / "out", **settings)
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".*out*"))  # noqa: PT018


def test_wrong_settings(raw, prepared, tmp_path):
    codec = prepared.output / records.AUTOENCODER_FILE
    refuse(tmp_path / "absent", tmp_path, "manifest.json is absent")
    refuse(raw, tmp_path, "image size is 36x24, expected multiples of the spatial ratio 8", width=36)
    refuse(raw, tmp_path, "image size is 32x24, expected multiples of the spatial ratio 16", spatial_ratio=16)
    refuse(raw, tmp_path, "has spatial_ratio 8 and 24 channels, expected 8 and 32", autoencoder=codec, channels=32)
    refuse(raw, tmp_path, "does not exist", autoencoder=tmp_path / "none.safetensors")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        precompute.precompute(raw, tmp_path / "file" / "set", width=32, height=24, spatial_ratio=8, channels=24)
    with pytest.raises(UserError, match="exists already"):
        precompute.precompute(raw, prepared.output)


def test_wrong_episodes(tmp_path):
    directory = tmp_path / "raw"
    write_episodes(directory, ["train", "val"])
    path = directory / episodes.MANIFEST
    good = path.read_text()

    def change(key: str, value) -> None:
        manifest = json.loads(good)
        manifest["episodes"][1][key] = value
        path.write_text(json.dumps(manifest))

    change("frames", 12)
    refuse(directory, tmp_path, r"'episode_00001' has 12 frames, expected 4k\+1")
    change("frames", 9)
    refuse(directory, tmp_path, "'episode_00001' has 13 frames, its manifest says 9")
    change("split", "train")
    refuse(directory, tmp_path, "no episode has split 'val'")
    path.write_text(good)
    (directory / "episode_00001" / "video.mp4").write_bytes(b"no video")
    refuse(directory, tmp_path, "not a readable video")


def test_command_line(raw, tmp_path, capsys):
    options = ["--episodes", str(raw), "--width", "32", "--height", "24", "--spatial-ratio", "8", "--channels", "8"]
    precompute.main([*options, "--output", str(tmp_path / "set")])
    printed = capsys.readouterr().out
    assert "3 train, 1 val clips of 4x3 latents with 8 channels" in printed
    assert "dB" in printed
    with pytest.raises(SystemExit) as stopped:
        precompute.main([*options, "--output", str(tmp_path / "set")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: output folder")
