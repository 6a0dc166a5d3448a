"""Precomputation of records: contents by format, equal files after interruptions and in parts, and bad videos."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import commands
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny_autoencoders
import tiny_videos

from jworld.cameras import actions
from jworld.data import images, records
from jworld.data.inputs import clips, fitting, formats
from jworld.data.recording import episodes
from jworld.data.records import shards
from jworld.data.records import text_store as text_stores
from jworld.encoders import autoencoders
from jworld.encoders.model_encoders import EncoderOverrides
from jworld.models.autoencoders import linear
from jworld.precompute import __main__ as precompute
from jworld.precompute import job
from jworld.precompute.settings import Settings
from jworld.utils.errors import UserError

FRAMES = 13
SIZE: dict[str, Any] = {"width": 32, "height": 24}
LINEAR = linear.LinearConfig(channels=24, spatial_ratio=8)
WORDS = ["none", *["forward"] * 6, *["yaw_right"] * 12]
# A robot's hand that turns about z and moves forward, while its gripper closes.
HAND = np.stack([*np.zeros((5, 19)), np.radians(3.0) * np.arange(19), np.ones(19)], axis=1)
HAND[1:, 0] = np.cumsum(0.01 * np.cos(HAND[:-1, 5]))
HAND[1:, 1] = np.cumsum(0.01 * np.sin(HAND[:-1, 5]))
GRIPPER = np.linspace(1, 0.1, 19)


def wall(index: int, frames: int = FRAMES) -> np.ndarray:
    """Make a textured wall that shifts sideways, uint8 [T, 48, 64, 3]."""
    generator = np.random.default_rng(index)
    texture = generator.integers(0, 256, (6, 20, 3)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    return np.stack([texture[:, 2 * t : 2 * t + 64] for t in range(frames)])


def turning(frames: int = FRAMES) -> np.ndarray:
    """Return w2c [T, 4, 4] of a camera that turns right by 8 degrees per latent."""
    angles = np.radians(2.0) * np.arange(frames)
    w2c = np.tile(np.eye(4), (frames, 1, 1))
    w2c[:, 0, 0] = w2c[:, 2, 2] = np.cos(angles)
    w2c[:, 0, 2], w2c[:, 2, 0] = -np.sin(angles), np.sin(angles)
    return w2c


def write_episodes(directory: pathlib.Path, splits: list[str]) -> None:
    recorded = [
        episodes.Episode(
            name=f"episode_{index:05d}",
            split=split,
            caption=f"wall {index % 2}",
            fps=8.0,
            frames=wall(index),
            actions=["none"] + ["yaw_right"] * (FRAMES - 1),
            w2c=turning(),
            intrinsics=np.tile([0.5, 0.7, 0.5, 0.5], (FRAMES, 1)),
        )
        for index, split in enumerate(splits)
    ]
    for episode in recorded:
        episodes.write_episode(directory, episode)
    entries = [{"name": e.name, "split": e.split, "frames": FRAMES, "caption": e.caption} for e in recorded]
    episodes.write_manifest(directory, source="rooms", seed=0, fps=8.0, width=64, height=48, episodes=entries)


def write_videos(folder: pathlib.Path, form: str, names: str = "abc") -> pathlib.Path:
    """Write videos of 19 frames at 10 frames/s and return the path for --input."""
    below = {"videos": "", "cosmos": "videos"}.get(form, "clips")
    listed = []
    for index, name in enumerate(names):
        tiny_videos.write(folder / below / f"{name}.mp4", wall(index, len(WORDS)))
        caption, path = f"wall {index % 2}", f"{below}/{name}.mp4"
        if form == "videos":
            (folder / f"{name}.txt").write_text(caption)
        elif form == "cosmos":
            (folder / "metas").mkdir(exist_ok=True)
            (folder / "metas" / f"{name}.txt").write_text(caption)
        elif form == "bridge":
            notes = folder / "annotation" / "train" / f"{name}.json"
            notes.parent.mkdir(parents=True, exist_ok=True)
            facts = {"state": HAND.tolist(), "continuous_gripper_state": GRIPPER.tolist(), "texts": [caption]}
            notes.write_text(json.dumps(facts | {"videos": [{"video_path": path}, {"video_path": "another.mp4"}]}))
        elif form == "matrix":
            tokens = ",".join(["D"] * 8 + ["DL"] * 11)
            listed.append({"path": path, "caption": caption, "control_signal_seq": tokens})
        else:
            pose = [{"w2c": m.tolist(), "intrinsic": [[32, 0, 32], [0, 30, 24], [0, 0, 1]]} for m in turning(19)]
            (folder / f"{name}.json").write_text(json.dumps(dict(enumerate(pose))))
            view = [{"move_action": "W" if w == "forward" else "", "view_action": "LL"} for w in WORDS]
            (folder / f"{name}_actions.json").write_text(json.dumps(dict(enumerate(view))))
            paths = {"video_path": path, "pose_path": f"{name}.json"}
            # The last video has no actions, so its labels follow from the cameras.
            recorded = {} if index == len(names) - 1 else {"action_path": f"{name}_actions.json"}
            listed.append({**paths, **recorded, "caption": caption})
    if listed:
        (folder / "index.json").write_text(json.dumps({"list": listed} if form == "matrix" else listed))
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("raw")
    write_episodes(directory, ["train", "train", "train", "val"])
    return directory


def episode_settings(raw: pathlib.Path, **changes: Any) -> Settings:
    return Settings(
        **{"input": raw, **SIZE, "linear": LINEAR, "given": EncoderOverrides(text_encoder="hashed-words:16"), **changes}
    )


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory) -> shards.Summary:
    return job.precompute(episode_settings(raw), tmp_path_factory.mktemp("sets") / "records")


@pytest.fixture(scope="module")
def autoencoder_path(prepared) -> str:
    return str(prepared.directory / records.AUTOENCODER_FILE)


def video_settings(folder: pathlib.Path, autoencoder_path: str, **changes: Any) -> Settings:
    """Return settings for clips of 9 frames at 5 frames/s, one per video."""
    common: dict[str, Any] = {"format": "videos", **SIZE, "fps": 5, "frames": 9, "val_share": 0.0}
    return Settings(**{"input": folder, **common, "given": EncoderOverrides(autoencoder=autoencoder_path), **changes})


def cut_of(manifest: dict[str, Any]) -> clips.CutConfig:
    return clips.CutConfig(**manifest["cut"] | {"fit": fitting.Fit(**manifest["cut"]["fit"])})


def content(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_episodes_and_a_fitted_autoencoder(raw, prepared):
    assert prepared.clips == {"train": 3, "val": 1}
    output = prepared.directory
    names = {"manifest.json", "report.json", "autoencoder.safetensors"}
    files = {f"{split}-00000-of-00001.arrow" for split in ("train", "val", "text")}
    assert {path.name for path in output.iterdir()} == names | files

    network = linear.LinearAutoencoder.load(output / records.AUTOENCODER_FILE)
    train = records.RecordSource(output, "train", min_frames=4)
    assert train.episodes == ["episode_00000", "episode_00001", "episode_00002"]
    episode = episodes.read_episode(raw, "episode_00001")
    frames = images.resize(episode.frames, **SIZE)
    record = train[1]
    expected = np.asarray(network.encode(frames[None])[0])
    np.testing.assert_allclose(record["latent"].astype(np.float32), expected, rtol=1e-2, atol=1e-5)
    np.testing.assert_array_equal(record["image_cond"], record["latent"][:1])
    np.testing.assert_allclose(record["w2c"], episode.w2c[[0, 4, 8, 12]], atol=1e-6)
    np.testing.assert_allclose(record["intrinsics"][2], [[0.5, 0, 0.5], [0, 0.7, 0.5], [0, 0, 1]], atol=1e-6)
    assert [actions.label_name(label) for label in record["action"]] == ["none"] + ["yaw_right"] * 3
    assert record["vision_states"].shape == (12, 12)
    manifest = train.manifest
    assert manifest["prompts"] == ["", "wall 0", "wall 1"]
    assert manifest["prompts"][record["prompt"]] == "wall 1"
    store = text_stores.TextStore(output, manifest)
    expected = text_stores.hashed_words("wall 1", dim=16).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(store.prompt(int(record["prompt"]))["text_states"], expected)

    held_out = images.resize(episodes.read_episode(raw, "episode_00003").frames, **SIZE)
    decoded = linear.to_uint8(network.decode(network.encode(held_out[None])))[0]
    assert manifest["reconstruction_psnr"] == pytest.approx(linear.psnr(held_out, np.asarray(decoded)), abs=0.1)
    assert (manifest["fps"], manifest["source"], manifest["action_labels"]) == (8.0, "rooms", "cameras")
    other = linear.fit([episode.frames], network.config, seed=0)
    with pytest.raises(UserError, match=r"autoencoder\.hash"):
        records.check_manifest(manifest, {"autoencoder.hash": other.hash()}, path=output)


@pytest.mark.slow
def test_an_even_number_of_latents_is_measured(raw, tmp_path):
    """CogVideoX's autoencoder decodes the 4 latents of 13 frames to 16 frames."""
    folder = tiny_autoencoders.save(tmp_path / "vae", "cogvideox")
    settings = episode_settings(raw, given=EncoderOverrides(autoencoder=str(folder), text_encoder="hashed-words:16"))
    manifest = records.read_manifest(job.precompute(settings, tmp_path / "set").directory)
    held_out = images.resize(episodes.read_episode(raw, "episode_00003").frames, **SIZE)
    opened = autoencoders.load(folder)
    decoded = opened.decode(opened.encode(held_out[None]))[0]
    assert len(decoded) == 16
    assert manifest["reconstruction_psnr"] == pytest.approx(linear.psnr(held_out, decoded[3:]), abs=0.1)


def test_equal_input_gives_equal_files_and_a_complete_set_is_unchanged(raw, prepared, autoencoder_path, tmp_path):
    again = job.precompute(episode_settings(raw), tmp_path / "again")
    assert content(again.directory) == content(prepared.directory)
    times = {path: path.stat().st_mtime_ns for path in again.directory.iterdir()}
    assert job.precompute(episode_settings(raw), again.directory).clips == again.clips
    assert {path: path.stat().st_mtime_ns for path in again.directory.iterdir()} == times
    given = episode_settings(raw, given=EncoderOverrides(autoencoder=autoencoder_path, text_encoder="hashed-words:16"))
    with pytest.raises(UserError, match="was started with autoencoder = "):
        job.precompute(given, again.directory)
    expected = content(job.precompute(given, tmp_path / "given").directory)
    same = content(prepared.directory)
    assert {name for name in same if same[name] != expected[name]} == {records.MANIFEST}


COMMON = {"latent", "image_cond", "vision_states", "prompt"}
ARRAYS = {
    "videos": COMMON,
    "cosmos": COMMON,
    "bridge": COMMON | {"motion"},
    "matrix": COMMON | {"control"},
    "worldplay": COMMON | {"w2c", "intrinsics", "action"},
}


@pytest.mark.parametrize("form", ARRAYS)
def test_every_format(tmp_path, autoencoder_path, form):
    settings = video_settings(write_videos(tmp_path / "in", form), autoencoder_path, format=form, val_share=0.3)
    summary = job.precompute(settings, tmp_path / "set")
    manifest = summary.manifest
    assert manifest["arrays"].keys() == ARRAYS[form]
    assert manifest["request"]["cut"] == manifest["cut"]
    assert (manifest["cut"]["fit"]["mode"], manifest["cut"]["frames"], manifest["fps"]) == ("crop", 9, 5)
    network = linear.LinearAutoencoder.load(autoencoder_path)
    cut = cut_of(manifest)
    found = {}
    for split in summary.clips:
        if summary.clips[split]:
            source = records.RecordSource(tmp_path / "set", split)
            found |= {name: (split, source[i]) for i, name in enumerate(source.episodes)}
    listed = formats.list_items(form, settings.input, val_share=0.3).items
    assert len(found) == len(listed) == 3
    for item in listed:
        (clip,) = clips.read_clips(item, cut)
        split, record = found[clip.name]
        assert split == item.split
        expected = np.asarray(network.encode(clip.frames[None])[0])
        np.testing.assert_allclose(record["latent"].astype(np.float32), expected, rtol=1e-2, atol=1e-5)
        assert manifest["prompts"][record["prompt"]] == item.caption
        if form == "matrix":
            # Frames 0, 8 and 16 of the video, which has 10 frames/s.
            assert [manifest["controls"][number] for number in record["control"]] == ["D", "DL", "DL"]
        if form == "bridge":
            # Motions span two frames of the video, since clips have half its frame rate.
            ahead = 0.01 * (1 + np.cos(np.radians(3))), 0.01 * np.sin(np.radians(3))
            moved = [20 * ahead[0], 20 * ahead[1], 0, 0, 0, 20 * np.radians(6)]
            np.testing.assert_allclose(record["motion"][:, :6], np.tile(moved, (8, 1)), atol=1e-6)
            np.testing.assert_allclose(record["motion"][:, 6], GRIPPER[2:17:2], atol=1e-6)
        if form == "worldplay":
            np.testing.assert_allclose(record["w2c"], turning(19)[[0, 8, 16]], atol=1e-6)
            recorded = ["none", "yaw_left", "yaw_left"] if item.controls else ["none", "yaw_right", "yaw_right"]
            assert [actions.label_name(label) for label in record["action"]] == recorded


def test_clips_of_one_video_without_text_and_image_encoders(tmp_path, autoencoder_path):
    given = EncoderOverrides(autoencoder=autoencoder_path, text_encoder="none", image_encoder="none")
    settings = video_settings(
        write_videos(tmp_path / "in", "videos", "a"), autoencoder_path, fps=10, stride=5, given=given
    )
    summary = job.precompute(settings, tmp_path / "set")
    assert summary.manifest["episodes"]["train"] == ["a@000000", "a@000005", "a@000010"]
    assert summary.hours == pytest.approx(3 * 9 / 10 / 3600)
    record = records.RecordSource(tmp_path / "set", "train")[0]
    assert record.keys() == {"latent", "image_cond", "index"}
    assert summary.manifest["prompts"] == summary.manifest["text"] == []
    assert not list((tmp_path / "set").glob("text-*"))


def test_a_network_and_its_posterior(tmp_path, autoencoder_path):
    folder = tiny_autoencoders.save(tmp_path / "wan", "wan")
    small: dict[str, Any] = {"width": 16, "height": 12, "keep_posterior": True, "autoencoder_dtype": "float32"}
    given = EncoderOverrides(autoencoder=str(folder))
    settings = video_settings(write_videos(tmp_path / "in", "videos"), autoencoder_path, given=given, **small)
    summary = job.precompute(settings, tmp_path / "set")
    assert summary.manifest["autoencoder"]["dtype"] == "float32"
    assert summary.manifest["autoencoder"]["source"] == str(folder / "autoencoder.safetensors")
    assert not (tmp_path / "set" / records.AUTOENCODER_FILE).exists()
    network = tiny_autoencoders.make("wan")
    cut = cut_of(summary.manifest)
    item = formats.list_items("videos", settings.input).items[1]
    (clip,) = clips.read_clips(item, cut)
    posterior = jax.jit(type(network).posterior)(network, clip.frames[None])
    record = records.RecordSource(tmp_path / "set", "train")[1]
    noise = np.random.default_rng(0).standard_normal(record["latent"].shape)
    drawn = np.asarray(posterior.mean[0]) + np.exp(0.5 * np.asarray(posterior.logvar[0])) * noise
    expected = np.asarray(network.config.normalisation.apply(jnp.asarray(drawn)))
    mean, logvar = record["latent"].astype(np.float32), record["logvar"].astype(np.float32)
    assert record["logvar"].dtype == np.float16
    np.testing.assert_allclose(mean + np.exp(0.5 * logvar) * noise, expected, atol=2e-2 * np.abs(expected).max())
    assert np.abs(np.exp(0.5 * logvar) * noise).mean() > 0.1 * np.abs(expected).mean()
    with pytest.raises(UserError, match="has no posterior"):
        job.precompute(
            dataclasses.replace(settings, given=EncoderOverrides(autoencoder=autoencoder_path)), tmp_path / "other"
        )
    sizes = dataclasses.replace(settings, width=None, height=None)
    with pytest.raises(UserError, match="give --width and --height"):
        job.precompute(sizes, tmp_path / "other")


def test_embeddings_from_a_file(tmp_path, autoencoder_path):
    folder = write_videos(tmp_path / "in", "videos")
    prompts = ["", "wall 0", "wall 1"]
    states = {f"text_states.{i}": np.full((i + 1, 6), i, np.float32) for i in range(3)}
    states |= {f"glyph_states.{i}": np.full((i, 4), i, np.float32) for i in range(3)}
    path = tmp_path / "states.safetensors"
    metadata = {"family": "t5", "prompts": json.dumps(prompts)}
    safetensors.numpy.save_file(states, path, metadata=metadata)
    options = [
        "--fps=5",
        "--frames=9",
        "--width=32",
        "--height=24",
        f"--autoencoder={autoencoder_path}",
        "--val-share=0",
    ]
    command = [f"--input={folder}", "--format=videos", f"--output={tmp_path / 'set'}", f"--text-embeddings={path}"]
    precompute.main([*command, *options])
    manifest = records.read_manifest(tmp_path / "set")
    assert manifest["prompts"] == prompts
    assert manifest["text_encoder"]["family"] == "t5"
    assert (manifest["text_encoder"]["dim"], manifest["glyph_encoder"]["dim"]) == (6, 4)
    stored = text_stores.TextStore(tmp_path / "set", manifest).prompt(2)
    np.testing.assert_array_equal(stored["text_states"], states["text_states.2"])
    np.testing.assert_array_equal(stored["glyph_states"], states["glyph_states.2"])
    with pytest.raises(SystemExit):
        precompute.main([*command, *options, "--text-encoder=none"])


def test_the_parts_of_two_processes_equal_one_run(tmp_path, autoencoder_path):
    folder = write_videos(tmp_path / "in", "videos", "abcdefg")
    settings = video_settings(folder, autoencoder_path, items_per_shard=2, val_share=0.4)
    whole = job.precompute(settings, tmp_path / "whole")
    assert min(whole.clips.values()) > 0
    assert job.precompute(settings, tmp_path / "parts", shard=(1, 2)) is None
    halfway = set(content(tmp_path / "parts"))
    assert records.MANIFEST not in halfway
    assert job.precompute(settings, tmp_path / "parts", shard=(1, 2)) is None
    parts = job.precompute(settings, tmp_path / "parts", shard=(0, 2))
    assert parts.clips == whole.clips
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    # Another number of processes resumes the work of the stopped ones.
    assert job.precompute(settings, tmp_path / "three", shard=(2, 3)) is None
    job.precompute(settings, tmp_path / "three", shard=(0, 1))
    assert content(tmp_path / "three") == content(tmp_path / "whole")
    with pytest.raises(UserError, match="--shard is 2/2"):
        job.precompute(settings, tmp_path / "more", shard=(2, 2))
    alone = dataclasses.replace(settings, given=EncoderOverrides())
    with pytest.raises(UserError, match="only one process can fit the autoencoder"):
        job.precompute(alone, tmp_path / "more", shard=(0, 2))
    assert not (tmp_path / "more").exists()


def test_two_processes_at_once(tmp_path, autoencoder_path):
    folder = write_videos(tmp_path / "in", "videos", "abcde")
    argv = [
        f"--input={folder}",
        "--format=videos",
        f"--autoencoder={autoencoder_path}",
        "--fps=5",
        "--frames=9",
        "--val-share=0",
    ]
    argv += ["--width=32", "--height=24", "--items-per-shard=1"]
    parts = [
        commands.start("jworld.precompute", *argv, f"--output={tmp_path / 'parts'}", f"--shard={i}/2") for i in range(2)
    ]
    printed = [part.communicate()[0] for part in parts]
    assert [part.returncode for part in parts] == [0, 0], printed
    assert any("5 train, 0 val clips" in text for text in printed), printed
    precompute.main([*argv, f"--output={tmp_path / 'whole'}"])
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from jworld.precompute import __main__ as precompute
from jworld.data.records import shards
write, count = shards.ShardWriter.{method}, [0]
def killed(*arguments):
    count[0] += 1
    if count[0] == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    write(*arguments)
shards.ShardWriter.{method} = killed
precompute.main({argv!r})
"""


def test_a_killed_command_resumes(tmp_path, autoencoder_path):
    folder = write_videos(tmp_path / "in", "videos", "abcde")
    argv = [
        f"--input={folder}",
        "--format=videos",
        f"--autoencoder={autoencoder_path}",
        "--fps=5",
        "--frames=9",
        "--val-share=0",
    ]
    argv += ["--width=32", "--height=24", "--items-per-shard=2"]
    precompute.main([*argv, f"--output={tmp_path / 'whole'}"])
    output = tmp_path / "killed"
    for method, at, left in (("write_prompt", 2, {".progress"}), ("write", 4, {".progress", "text", "train"})):
        code = KILLED.format(root=str(commands.ROOT), method=method, at=at, argv=[*argv, f"--output={output}"])
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=os.environ)
        assert done.returncode == -signal.SIGKILL, done.stderr
        found = {path.name.split("-")[0] for path in output.iterdir()} - {records.AUTOENCODER_FILE}
        assert found == left
    complete = output / "train-00000-of-00003.arrow"
    assert [path.name for path in output.glob("train-*")] == [complete.name]
    written = complete.stat().st_mtime_ns
    precompute.main([*argv, f"--output={output}"])
    assert complete.stat().st_mtime_ns == written
    assert content(output) == content(tmp_path / "whole")


def test_a_bad_video_stops_the_command_until_it_is_repaired(tmp_path, autoencoder_path, capsys):
    folder = write_videos(tmp_path / "in", "videos", "abcd")
    good = (folder / "c.mp4").read_bytes()
    (folder / "c.mp4").write_bytes(good[: len(good) // 2])
    tiny_videos.write(folder / "d.mp4", wall(0, 7))
    argv = [
        f"--input={folder}",
        "--format=videos",
        f"--autoencoder={autoencoder_path}",
        "--fps=5",
        "--frames=9",
        "--val-share=0",
    ]
    argv += ["--width=32", "--height=24", "--items-per-shard=2"]
    skipped, output = tmp_path / "skipped", tmp_path / "set"

    def fails(*extra: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            precompute.main([*argv, *extra])
        assert stopped.value.code == 2
        captured = capsys.readouterr()
        return captured.out + captured.err

    printed = fails(f"--output={output}")
    assert "c.mp4 is damaged or not a video" in printed
    assert "--on-error skip" in printed
    assert not (output / records.MANIFEST).exists()
    assert (output / "train-00000-of-00002.arrow").exists()
    printed = fails(f"--output={skipped}", "--on-error=skip")
    assert f"{skipped}: 2 train, 0 val clips" in printed
    assert f"left out 2 bad videos, see {skipped / 'report.json'}" in printed
    report = json.loads((skipped / shards.REPORT).read_text())
    assert report["items"] == 4
    assert [item["item"] for item in report["skipped"]] == ["c", "d"]
    assert "a clip needs 9" in report["skipped"][1]["reason"]
    fails(f"--output={skipped}")  # it stays incomplete

    (folder / "c.mp4").write_bytes(good)
    tiny_videos.write(folder / "d.mp4", wall(3, len(WORDS)))
    precompute.main([*argv, f"--output={output}"])
    printed = capsys.readouterr().out
    assert "4 train, 0 val clips of 4x3 latents with 24 channels, 7.2 seconds of video, " in printed
    assert "GB per hour" in printed
    assert (
        f"next: python -m jworld.train --config=configs/cosmos_video2world.py --config.data.records={output}" in printed
    )


def test_a_video_without_caption_is_found_first(tmp_path, autoencoder_path):
    folder = write_videos(tmp_path / "in", "videos")
    (folder / "b.txt").unlink()
    settings = video_settings(folder, autoencoder_path)
    with pytest.raises(UserError, match=r"b\.mp4 has no caption.*1 of 3 videos.*--on-error skip"):
        job.precompute(settings, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    summary = job.precompute(settings, tmp_path / "set", skip_errors=True)
    assert summary.clips["train"] == 2
    assert [item["item"] for item in summary.skipped] == ["b"]
    allowed = dataclasses.replace(settings, allow_missing_captions=True)
    assert job.precompute(allowed, tmp_path / "all").clips["train"] == 3


def refuse(tmp_path: pathlib.Path, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        job.precompute(Settings(**settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_settings(raw, autoencoder_path, tmp_path):
    common: dict[str, Any] = {"input": raw, **SIZE, "linear": LINEAR}
    refuse(tmp_path, {**common, "input": tmp_path / "absent"}, "manifest.json is absent")
    refuse(tmp_path, {**common, "width": 36}, "image size is 36x24, expected multiples of the spatial ratio 8")
    refuse(tmp_path, {**common, "width": None}, "give both --width and --height")
    refuse(tmp_path, {**common, "given": EncoderOverrides(autoencoder=str(tmp_path / "none"))}, "does not exist")
    refuse(tmp_path, {**common, "given": EncoderOverrides(text_encoder="bert:x")}, "there is no text encoder 'bert'")
    refuse(tmp_path, {**common, "frames": 12}, "a clip has 12 frames")
    refuse(tmp_path, {**common, "format": "videos"}, "may have any frame rate: give --fps")
    refuse(tmp_path, {**common, "format": "avi"}, "format is 'avi'")
    refuse(tmp_path, {**common, "keep_posterior": True}, "no posterior")
    refuse(tmp_path, {**common, "items_per_shard": 0}, "--items-per-shard is 0")
    everything = write_videos(tmp_path / "in", "videos")
    held_out = {**common, "input": everything, "format": "videos", "fps": 5, "val_share": 1.0}
    refuse(tmp_path, held_out, "no video is in the split 'train'")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        job.precompute(Settings(**common), tmp_path / "file" / "set")


def test_episodes_that_differ_from_their_manifest(tmp_path):
    directory = tmp_path / "raw"
    write_episodes(directory, ["train", "val"])
    path = directory / episodes.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["episodes"][0]["frames"] = 9
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="holds 13 frames, expected 9 by the manifest"):
        job.precompute(episode_settings(directory), tmp_path / "out")
    assert not (tmp_path / "out" / records.MANIFEST).exists()


def test_encoders_that_differ_between_processes(tmp_path, autoencoder_path, monkeypatch):
    monkeypatch.setattr(job.prompts, "PROMPTS_PER_SHARD", 1)
    settings = video_settings(write_videos(tmp_path / "in", "videos"), autoencoder_path)
    job.precompute(settings, tmp_path / "set", shard=(0, 2))
    for path in (tmp_path / "set" / shards.PROGRESS).glob("text-*.json"):
        result = json.loads(path.read_text())
        result["facts"]["text_encoder"]["hash"] = "another"
        path.write_text(json.dumps(result))
    with pytest.raises(UserError, match="text were encoded by different encoders"):
        job.precompute(settings, tmp_path / "set", shard=(1, 2))


def test_videos_of_another_rate_than_the_set(raw, tmp_path):
    write_episodes(tmp_path / "raw", ["train", "train"])
    path = tmp_path / "raw" / episodes.MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"fps": 12.0}))
    with pytest.raises(UserError, match="has 8 frames/s, the data set has 12: give --fps"):
        job.precompute(episode_settings(tmp_path / "raw"), tmp_path / "out")


def test_batches_over_the_devices_change_nothing(tmp_path, autoencoder_path):
    """Four clips of two lengths leave seven rows of the last batches empty."""
    folder = write_videos(tmp_path / "in", "videos", "abcd")
    tiny_videos.write(folder / "b.mp4", wall(1, 15))
    settings = video_settings(folder, autoencoder_path, frames=None)
    job.precompute(settings, tmp_path / "set")
    source = records.RecordSource(tmp_path / "set", "train")
    assert source.clips == [3, 2, 3, 3]
    autoencoder = autoencoders.load(autoencoder_path)
    cut = cut_of(source.manifest)
    for i, item in enumerate(formats.list_items("videos", folder, val_share=0).items):
        (clip,) = clips.read_clips(item, cut)
        expected = autoencoder.encode(clip.frames[None])[0]
        np.testing.assert_allclose(source[i]["latent"].astype(np.float32), expected, rtol=1e-2, atol=1e-5)
