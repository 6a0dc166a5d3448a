"""The Matrix' training data: from its index file to batches of scaled-down recipes."""

import json
import pathlib
from typing import Any

import ml_collections
import ml_dtypes
import numpy as np
import pytest
import tiny_videos

from jworld import systems
from jworld.cameras import driving
from jworld.data import records
from jworld.encoders.choices import EncoderOverrides
from jworld.models.autoencoders import linear
from jworld.precompute import __main__ as precompute
from jworld.precompute import job
from jworld.precompute.settings import Settings
from jworld.systems.matrix import data
from jworld.utils import config as run_config

RECIPES = pathlib.Path(__file__).parents[2] / "configs"
LINEAR = linear.LinearConfig(channels=16, spatial_ratio=8)
#: Tokens of every frame of a video with 10 frames per second.
TOKENS = ["N"] * 2 + ["D"] * 8 + ["DL"] * 8 + ["BR"] * 6


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two clips of a drive from frame 2 on, at the video's frame rate."""
    raw = tmp_path_factory.mktemp("matrix")
    tiny_videos.write(raw / "clips" / "drive.mp4", fps=10)
    entry = {"path": "clips/drive.mp4", "caption": "a road", "control_signal_seq": ",".join(TOKENS)}
    (raw / "index.json").write_text(json.dumps({"list": [entry | {"valid_frame_idx": 2}]}))
    given = EncoderOverrides(text_encoder="hashed-words:6", image_encoder="none")
    settings = Settings(
        input=raw, format="matrix", fps=10, frames=9, val_share=0.0, linear=LINEAR, given=given, width=32, height=16
    )
    summary = job.precompute(settings, raw / "records")
    assert summary is not None
    assert "configs/matrix_lora.py:base" in precompute.next_command(summary)[0]
    return raw / "records"


def recipe(name: str, directory: pathlib.Path, **clip: Any) -> ml_collections.ConfigDict:
    """Load a published recipe and scale it down to latents of 2 x 4 and a global batch of 3."""
    config = run_config.load_recipe(str(RECIPES / name))
    with config.unlocked():
        config.global_batch = 3
        config.mesh = {"data": 1, "fsdp": 1, "sequence": 1}
        config.model.update({"width": 48, "num_heads": 2, "num_layers": 2, "text_dim": 6, "text_tokens": 5})
        if config.model.control_dim is not None:
            config.model.update({"control_dim": 8, "control_layers": (1, 2)})
            config.data.clip.control_states = ""
        config.data.update({"records": str(directory), "threads": 1})
        config.data.clip.update({"latent_size": (2, 4), "window_frames": 3, "posterior": False, **clip})
    return config


def first_batch(config: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
    """Return the first batch of a training run; the data set is checked against the system."""
    system = systems.create(config)
    batch = next(system.data.batches("train"))
    for name, spec in system.batch_spec(3).items():
        assert (batch[name].shape, batch[name].dtype) == (spec.shape, spec.dtype), name
    return {name: np.asarray(value) for name, value in batch.items()}


def test_tokens_are_stored_per_latent(directory: pathlib.Path) -> None:
    manifest = records.read_manifest(directory)
    assert manifest["controls"] == list(driving.TOKENS)
    source = records.RecordSource(directory, "train")
    found = [[driving.TOKENS[i] for i in source[index]["control"]] for index in range(len(source))]
    # Frames 2, 6, 10 of the video, and 11, 15, 19.
    assert found == [["D", "D", "DL"], ["DL", "DL", "BR"], ["BR", "BR", "BR"]]


def test_batches_of_a_stage_with_control(directory: pathlib.Path) -> None:
    batch = first_batch(recipe("matrix_control.py:2b", directory, control_dropout=0.0))
    table, source = data.control_table("", 8), records.RecordSource(directory, "train")
    for row, index in enumerate(batch["index"]):
        record = source[int(index)]
        np.testing.assert_array_equal(batch["control"][row], table[record["control"]])
        np.testing.assert_array_equal(batch["latent"][row], record["latent"])
    dropped = first_batch(recipe("matrix_control.py:2b", directory, control_dropout=1.0))
    np.testing.assert_array_equal(dropped["control"], np.broadcast_to(table[-1], dropped["control"].shape))


def test_batches_of_captions_alone(directory: pathlib.Path) -> None:
    batch = first_batch(recipe("matrix_lora.py:2b", directory))
    assert batch.keys() == {"latent", "text_states", "index"}
    # "a road" has three tokens: a start token, which every prompt has, and two words. The others are zeros.
    assert (batch["text_states"][:, :3] != 0).any(axis=-1).all()
    assert (batch["text_states"][:, 3:] == 0).all()
    dropped = first_batch(recipe("matrix_lora.py:2b", directory, text_dropout=1.0))
    assert (dropped["text_states"][:, 1:] == 0).all()
    np.testing.assert_array_equal(dropped["text_states"][:, 0], batch["text_states"][:, 0])


class Texts:
    def prompt(self, row: int, /) -> dict[str, np.ndarray]:
        return {"text_states": np.ones((2, 6), ml_dtypes.bfloat16)}


def test_latents_are_drawn_from_the_posterior() -> None:
    clip = data.ClipConfig(latent_size=(2, 2), window_frames=3, posterior=True)
    assert clip.arrays == ("latent", "prompt", "logvar")
    transform = data.TakeLatents(clip, text_store=Texts(), text_tokens=4, table=None)
    mean = np.zeros((4, 2, 2, 500), ml_dtypes.bfloat16)
    logvar = np.full(mean.shape, 2 * np.log(0.5), np.float16)
    logvar[1] = 2 * np.log(3)
    record = {"latent": mean, "logvar": logvar, "prompt": np.int32(0), "index": np.int32(0)}
    drawn = transform.random_map({"record": record, "position": 0}, np.random.default_rng(0))["latent"]
    assert drawn.shape == (3, 2, 2, 500)
    np.testing.assert_allclose(drawn.astype(np.float32).std(axis=(1, 2, 3)), [0.5, 3, 0.5], rtol=0.1)


def test_labels_of_episodes_become_controls() -> None:
    clip = data.ClipConfig(latent_size=(2, 2), window_frames=3, controls="labels", control_dropout=0.5)
    table = data.control_table("", 8)
    transform = data.TakeLatents(clip, text_store=Texts(), text_tokens=4, table=table)
    record = {
        "latent": np.zeros((4, 2, 2, 5), ml_dtypes.bfloat16),
        "action": np.array([0, 9, 10, 11], np.int32),
        "prompt": np.int32(0),
        "index": np.int32(0),
    }
    rng = np.random.default_rng(0)
    expected = table[[driving.TOKENS.index(token) for token in ("N", "D", "DR")]]
    drawn = [transform.random_map({"record": record, "position": 0}, rng)["control"] for _ in range(200)]
    is_expected = [bool((control == expected).all()) for control in drawn]
    is_null = [bool((control == table[-1]).all()) for control in drawn]
    assert all(a != b for a, b in zip(is_expected, is_null, strict=True))
    assert 60 < sum(is_expected) < 140


def test_windows_of_a_stream_start_anywhere_after_the_first_latent() -> None:
    """Latents and controls match, and the first latent, one frame, never occurs."""
    clip = data.ClipConfig(latent_size=(1, 1), window_frames=3, start="middle", controls="tokens", control_dropout=0.0)
    assert clip.least_latents == 4
    table = data.control_table("", 8)
    transform = data.TakeLatents(clip, text_store=Texts(), text_tokens=4, table=table, null_states=True)
    record = {
        "latent": np.arange(7).reshape(7, 1, 1, 1).astype(ml_dtypes.bfloat16),
        "control": np.arange(7, dtype=np.int32),
        "prompt": np.int32(3),
        "index": np.int32(0),
    }
    rng, firsts = np.random.default_rng(0), set()
    for _ in range(60):
        example = transform.random_map({"record": record, "position": 0}, rng)
        first = int(example["latent"][0, 0, 0, 0])
        np.testing.assert_array_equal(example["latent"].astype(int).ravel(), first + np.arange(3))
        np.testing.assert_array_equal(example["control"], table[first : first + 3])
        assert example["null_states"].rows.shape == (2, 6)
        firsts.add(first)
    assert firsts == {1, 2, 3, 4}
