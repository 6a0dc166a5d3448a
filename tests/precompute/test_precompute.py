"""Precomputation of records: contents by format, and equal files when it is repeated."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny_autoencoders
from flax import nnx
from precompute_inputs import (
    GRIPPER,
    SIZE,
    content,
    cut_of,
    episode_settings,
    turning,
    video_settings,
    write_videos,
)

from jworld.cameras import actions
from jworld.data import images, records
from jworld.data.inputs import clips, formats
from jworld.data.recording import episodes
from jworld.data.records import text_store as text_stores
from jworld.encoders import autoencoders, model_encoders
from jworld.encoders.choices import EncoderOverrides
from jworld.models.autoencoders import files as autoencoder_files
from jworld.models.autoencoders import linear, patch
from jworld.precompute import __main__ as precompute
from jworld.precompute import job
from jworld.utils.errors import UserError


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


def test_a_small_network_is_stored_with_the_set(tmp_path, autoencoder_path):
    """The file of an autoencoder for two cores is copied; its own place may be lost then."""
    given = tmp_path / "given.safetensors"
    config = patch.PatchConfig(latent_channels=4, blocks=0, width=8, rank=2, spatial_ratio=4)
    autoencoder_files.save(patch.PatchAutoencoder(config, rngs=nnx.Rngs(0)), given)
    settings = video_settings(
        write_videos(tmp_path / "in", "videos"),
        autoencoder_path,
        given=EncoderOverrides(autoencoder=str(given)),
        width=16,
        height=12,
    )
    summary = job.precompute(settings, tmp_path / "set")
    assert "source" not in summary.manifest["autoencoder"]
    assert (tmp_path / "set" / records.AUTOENCODER_FILE).read_bytes() == given.read_bytes()
    given.unlink()
    model_encoders.copy(tmp_path / "set", tmp_path / "encoders")
    assert model_encoders.open_set(tmp_path / "encoders").autoencoder.family == "patch"
    (tmp_path / "encoders" / records.AUTOENCODER_FILE).unlink()
    with pytest.raises(UserError, match=r"autoencoder.safetensors is absent: restore it, or give --autoencoder FILE"):
        model_encoders.open_set(tmp_path / "encoders")


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
