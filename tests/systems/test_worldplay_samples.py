import pathlib
from typing import Any

import golden_cases
import grain
import ml_dtypes
import numpy as np
import pytest
from parity_checks import data as parity

from jworld.cameras import memory, pose_strings, poses
from jworld.data import pipeline
from jworld.systems.worldplay import data
from jworld.utils.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
POINTS = memory.monte_carlo_points(1000, seed=0)
FRAMES = 50
SETTINGS: dict[str, Any] = {
    "latent_size": (2, 3),
    "window_frames": 16,
    "memory_frames": 12,
    "temporal_context": 4,
    "curriculum": ((0, 32), (10, FRAMES)),
    "text_tokens": 5,
    "glyph_tokens": 2,
}


class Store:
    def prompt(self, row: int) -> dict[str, np.ndarray]:
        return {
            "text_states": np.full((2 + row, 6), row, np.float32),
            "glyph_states": np.full((row, 3), row, np.float32),
        }


def clip(frames: int = FRAMES) -> dict[str, Any]:
    path = pose_strings.path(f"w-4, right-{frames - 5}")
    start = pose_strings.path("left-9, d-3").w2c[-1]
    latent = np.arange(frames, dtype=np.float32)[:, None, None, None]
    return {
        "latent": np.broadcast_to(latent, (frames, 2, 3, 4)).astype(ml_dtypes.bfloat16),
        "image_cond": np.zeros((1, 2, 3, 4), ml_dtypes.bfloat16),
        "vision_states": np.zeros((2, 5), ml_dtypes.bfloat16),
        "w2c": (path.w2c @ start).astype(np.float32),
        "intrinsics": path.intrinsics.astype(np.float32),
        "action": path.action,
        "prompt": np.int32(1),
        "index": np.int32(7),
    }


def transform(**settings: Any) -> data.SampleWindow:
    clip_config = data.ClipConfig(**{**SETTINGS, **settings})
    return data.SampleWindow(clip_config, points=POINTS, text_store=Store(), global_batch=4)


def draw(seed: int, *, max_frames: int = 48, **settings: Any) -> tuple[np.ndarray, bool]:
    clip_config = data.ClipConfig(**{**SETTINGS, **settings})
    rng = np.random.default_rng(seed)
    return data.sample_indices(rng, clip_config, w2c=clip()["w2c"], max_frames=max_frames, points=POINTS)


def test_curriculum_holds_a_value_until_the_next_first_step() -> None:
    schedule = ((0, 32), (500, 64), (1000, 96))
    assert [data.max_frames_at(step, schedule) for step in (0, 499, 500, 5000)] == [32, 32, 64, 96]


def test_memory_samples_reach_every_chunk_after_the_window_and_no_other() -> None:
    drawn = [draw(seed) for seed in range(300)]
    currents = {int(indices[-4]) for indices, is_memory in drawn if is_memory}
    assert currents == set(range(16, 48, 4))
    share = np.mean([is_memory for _, is_memory in drawn])
    assert 0.7 < share < 0.9
    for indices, is_memory in drawn:
        assert len(indices) == 16
        assert np.all(np.diff(indices) > 0)
        if not is_memory:
            assert indices.tolist() == list(range(16))


def test_a_clip_without_a_chunk_after_the_window_gives_window_samples() -> None:
    for seed in range(20):
        indices, is_memory = draw(seed, max_frames=19, memory_probability=1.0)
        assert (indices.tolist(), is_memory) == (list(range(16)), False)
        indices, is_memory = draw(seed, max_frames=20, memory_probability=1.0)
        assert (indices[-4:].tolist(), is_memory) == ([16, 17, 18, 19], True)


def test_an_example_has_the_chosen_frames_with_relative_cameras_and_padded_text() -> None:
    record = clip()
    indices = np.array([0, 1, 2, 3, 40, 41, 42, 43])
    clip_config = data.ClipConfig(**SETTINGS)
    example = data.build_example(record, indices, clip_config, is_memory=True, text=Store().prompt(1))
    example = {name: array[0] for name, array in pipeline.stack([example]).items()}
    assert example["latent"][:, 0, 0, 0].astype(int).tolist() == indices.tolist()
    np.testing.assert_allclose(example["w2c"][0], np.eye(4), atol=1e-6)
    np.testing.assert_allclose(example["w2c"], poses.relative_to_first(record["w2c"])[indices], atol=1e-6)
    np.testing.assert_array_equal(example["action"], record["action"][indices])
    assert example["text_mask"].tolist() == [True] * 3 + [False] * 2
    assert example["text_states"][:, 0].tolist() == [1, 1, 1, 0, 0]
    assert example["glyph_mask"].tolist() == [True, False]
    assert example["is_memory"].dtype == np.bool_
    assert example["w2c"].dtype == example["intrinsics"].dtype == np.float32
    assert example["action"].dtype == example["index"].dtype == np.int32


def test_without_glyph_text_the_entries_are_absent() -> None:
    example = transform(glyph_tokens=0).random_map({"record": clip(), "position": 0}, np.random.default_rng(0))
    assert not {"glyph_states", "glyph_mask"} & example.keys()


def test_a_prompt_that_is_too_long_is_refused() -> None:
    with pytest.raises(UserError, match="text_tokens is 2"):
        transform(text_tokens=2, text_dropout=0.0).random_map(
            {"record": clip(), "position": 0}, np.random.default_rng(0)
        )


def test_dropped_text_is_the_negative_prompt() -> None:
    element = {"record": clip(), "position": 0}
    for dropout, tokens in ((1.0, 2), (0.0, 3)):
        example = transform(text_dropout=dropout).random_map(element, np.random.default_rng(0))
        assert example["text_mask"].sum() == tokens


def test_position_sets_the_clip_length() -> None:
    last = {}
    for position in (39, 40):
        sampler = transform(memory_probability=1.0)
        element = {"record": clip(), "position": position}
        last[position] = max(
            int(sampler.random_map(element, np.random.default_rng(seed))["latent"].max()) for seed in range(60)
        )
    assert last == {39: 31, 40: 47}


def test_in_a_grain_pipeline_the_seed_fixes_every_example() -> None:
    def examples(seed: int) -> list[dict[str, np.ndarray]]:
        source = grain.MapDataset.range(12).seed(seed).map(lambda position: {"record": clip(), "position": position})
        return list(source.random_map(transform()).batch(1, batch_fn=pipeline.stack))

    first, again, other = examples(0), examples(0), examples(1)
    for one, two in zip(first, again, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    assert any(not np.array_equal(one["latent"], two["latent"]) for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_frames": 20}, "memory_frames is 12, expected window_frames - chunk_frames = 16"),
        ({"temporal_context": 6}, "temporal_context is 6"),
        ({"curriculum": ((0, 12),)}, "12 max_frames"),
        ({"curriculum": ((5, 32),)}, r"first steps are \[5\]"),
        ({"curriculum": ((0, 32), (9, 48), (3, 48))}, "increasing"),
        ({"curriculum": ()}, "first steps"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.ClipConfig(**{**SETTINGS, **options})


@pytest.mark.parametrize("name", ["relative_to_first", "normalize_intrinsics"])
def test_golden_check_notices_skipped_camera_conversions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poses, name, lambda matrices: matrices)
    case = golden_cases.GoldenCase(GOLDEN / "worldplay" / "dataset_item")
    assert parity.dataset_item(case) > 1e-2


def test_golden_check_notices_another_label_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity.actions, "TRAINING_MIN_TRANSLATION", 0.2)
    case = golden_cases.GoldenCase(GOLDEN / "worldplay" / "dataset_item")
    assert parity.dataset_item(case) > 1e-2
