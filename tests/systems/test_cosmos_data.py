"""Cosmos-Predict2's training data: from folders of its input formats to batches of scaled-down published recipes."""

import json
import pathlib
import pickle
from typing import Any

import ml_collections
import ml_dtypes
import numpy as np
import PIL.Image
import pytest
import tiny_videos

from jworld import systems
from jworld.cameras import robots
from jworld.data import records
from jworld.data.inputs import video
from jworld.encoders.choices import EncoderOverrides
from jworld.models.autoencoders import linear
from jworld.precompute import __main__ as precompute
from jworld.precompute import job, validate
from jworld.precompute.settings import Settings
from jworld.systems.cosmos import import_t5
from jworld.utils import config as run_config

RECIPES = pathlib.Path(__file__).parents[2] / "configs"
SIZE: dict[str, Any] = {"width": 32, "height": 16, "fit": "stretch", "resampling": "bilinear"}
LINEAR = linear.LinearConfig(channels=16, spatial_ratio=8)


def recipe(variant: str, directory: pathlib.Path, **clip: Any) -> ml_collections.ConfigDict:
    """Load a published recipe and scale it down to latents of 2 x 4 and a global batch of 2."""
    config = run_config.load_recipe(f"{RECIPES / 'cosmos_video2world.py'}:{variant}")
    with config.unlocked():
        config.global_batch = 2
        config.mesh = {"data": 1, "fsdp": 1, "sequence": 1}
        config.model.update({"width": 48, "num_heads": 2, "num_layers": 1, "text_dim": 6, "text_width": 6})
        config.data.update({"records": str(directory), "threads": 1})
        config.data.clip.update({"latent_size": (2, 4), "text_tokens": 5, **clip})
    return config


def first_batch(config: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
    """Return the first batch of a training run; the data set is checked against the system."""
    system = systems.create(config)
    batch = next(system.data.batches("train"))
    for name, spec in system.batch_spec(2).items():
        assert (batch[name].shape, batch[name].dtype) == (spec.shape, spec.dtype), name
    return {name: np.asarray(value) for name, value in batch.items()}


def test_videos_with_pickled_embeddings(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, rng = tmp_path / "raw", np.random.default_rng(0)
    states = rng.normal(size=(3, 6)).astype(np.float16)
    for name in ("metas", "t5_xxl"):
        (raw / name).mkdir(parents=True)
    for name in "ab":
        # Two clips and one extra frame.
        tiny_videos.write(raw / "videos" / f"{name}.mp4", tiny_videos.numbered(19), fps=10)
        (raw / "metas" / f"{name}.txt").write_text("a red door\n")
        (raw / "t5_xxl" / f"{name}.pickle").write_bytes(pickle.dumps([states]))
    import_t5.main(["--input", str(raw)])
    given = EncoderOverrides(text_encoder=f"stored:{raw / 't5_xxl.safetensors'}", image_encoder="none")
    settings = Settings(input=raw, format="cosmos", fps=10, frames=9, val_share=0.0, linear=LINEAR, given=given, **SIZE)
    summary = job.precompute(settings, tmp_path / "set")
    assert summary is not None
    assert summary.manifest["arrays"].keys() == {"latent", "image_cond", "prompt"}
    assert summary.manifest["episodes"]["train"] == [f"{name}@{start:06d}" for name in "ab" for start in (0, 9)]
    batch = first_batch(recipe("2b", tmp_path / "set", window_frames=3))
    expected = np.zeros((5, 6), ml_dtypes.bfloat16)
    expected[:3] = states
    np.testing.assert_array_equal(batch["text_states"], [expected, expected])

    # Every frame is used, and stretched rather than cropped.
    frames = list(video.open_video(raw / "videos" / "a.mp4").frames())[:9]
    images = [PIL.Image.fromarray(frame).resize((32, 16), PIL.Image.Resampling.BILINEAR) for frame in frames]
    network = linear.LinearAutoencoder.load(tmp_path / "set" / records.AUTOENCODER_FILE)
    latent = np.asarray(network.encode(np.stack([np.asarray(image) for image in images])[None]))[0]
    found = records.RecordSource(tmp_path / "set", "train")[0]["latent"].astype(np.float32)
    np.testing.assert_allclose(found, latent, rtol=1e-2, atol=1e-4)
    validate.main([str(tmp_path / "set")])
    assert "--config=configs/cosmos_video2world.py:base --config.data" in precompute.next_command(summary)[0]
    capsys.readouterr()


def test_recordings_of_a_robot(tmp_path: pathlib.Path) -> None:
    raw, rng = tmp_path / "raw", np.random.default_rng(1)
    notes = raw / "annotation" / "train" / "7.json"
    notes.parent.mkdir(parents=True)
    tiny_videos.write(raw / "videos" / "7" / "rgb.mp4", tiny_videos.numbered(12), fps=5)
    hand, gripper = rng.normal(scale=0.3, size=(12, 7)), rng.uniform(size=12)
    facts = {"state": hand.tolist(), "continuous_gripper_state": gripper.tolist()}
    notes.write_text(json.dumps(facts | {"videos": [{"video_path": "videos/7/rgb.mp4"}], "texts": ["open it"]}))
    given = EncoderOverrides(text_encoder="none:6", image_encoder="none")
    settings = Settings(
        input=raw, format="bridge", fps=5, frames=9, stride=1, val_share=0.0, linear=LINEAR, given=given, **SIZE
    )
    summary = job.precompute(settings, tmp_path / "set")
    assert summary is not None
    assert summary.manifest["arrays"]["motion"] == {"dtype": "F32", "shape": [8, 7]}
    assert summary.manifest["episodes"]["train"] == [f"train/7@{start:06d}" for start in range(4)]
    validate.main([str(tmp_path / "set")])
    config = recipe("2b_action", tmp_path / "set", window_frames=3)
    with config.unlocked():
        config.model.action_dim = 8 * 7
    batch = first_batch(config)
    assert not batch["text_states"].any()
    whole = robots.relative_actions(hand[:, :6], gripper)
    for motion in batch["motion"]:
        assert any(np.array_equal(motion, whole[start : start + 8]) for start in range(4))
