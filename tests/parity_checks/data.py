"""WorldPlay's data: the reader and the sampling of clips, compared with items of the original data set."""

import importlib.util
import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import golden_cases
import ml_dtypes
import numpy as np
import published_set
import recorded_json

from jworld.cameras import actions, poses
from jworld.data import pipeline, records
from jworld.data.records import text_store
from jworld.systems.worldplay import data, import_data

CHUNK = 4
# Copied, never computed; bfloat16 in records.
STATES = ("latent", "image_cond", "vision_states", "prompt_embed", "byt5_text_states")


class ScriptedGenerator:
    """Replacement of numpy's generator that returns the draws of the original's generator."""

    def __init__(self, draws: list[float], current: int | None) -> None:
        self._draws, self._current = list(draws), current

    def random(self) -> float:
        return self._draws.pop(0)

    def integers(self, low: int, high: int, *, endpoint: bool) -> int:
        assert self._current is not None, "a chunk is drawn where the original draws none"
        assert endpoint, "both ends can be drawn"
        assert low <= self._current // CHUNK <= high, "the original's chunk is out of range"
        return self._current // CHUNK


class Prompts:
    """Text store with the negative prompt and the item's own prompt."""

    def __init__(self, inputs: dict[str, np.ndarray]) -> None:
        self._inputs = inputs

    def prompt(self, row: int) -> dict[str, np.ndarray]:
        prefix = "negative_" if row == data.NEGATIVE_PROMPT else ""
        names = {
            "text_states": ("prompt_embeds", "prompt_mask"),
            "glyph_states": ("byt5_text_states", "byt5_text_mask"),
        }
        arrays = {key: [self._inputs[prefix + name][0] for name in pair] for key, pair in names.items()}
        return {key: states[mask.astype(bool)] for key, (states, mask) in arrays.items()}


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 0, -1)


def make_record(case: golden_cases.GoldenCase, *, uses_action_json: bool) -> dict[str, Any]:
    """Make the training record of the case's files."""
    inputs, latents = case.inputs, case.config["latent_frames"]
    golden_cases.require(case.config, latent_frames=inputs["latent"].shape[2], video_frames=len(inputs["pose_w2c"]))
    w2c = inputs["pose_w2c"][:: actions.FRAMES_PER_LATENT][:latents]
    if uses_action_json:
        labels = actions.labels_from_entries(list(recorded_json.whole(case.config["action_json"]).values()), latents)
    else:
        labels = actions.labels_from_poses(w2c, min_translation=actions.TRAINING_MIN_TRANSLATION)
    return {
        "latent": channels_last(inputs["latent"][0]),
        "image_cond": channels_last(inputs["image_cond"][0]),
        "vision_states": inputs["vision_states"][0],
        "w2c": w2c,
        "intrinsics": poses.normalize_intrinsics(inputs["pose_intrinsic"][:: actions.FRAMES_PER_LATENT][:latents]),
        "action": labels,
        "prompt": np.int32(1),
        "index": np.int32(0),
    }


def dataset_item(case: golden_cases.GoldenCase) -> float:
    """Compare every item for the original's random draws. Text is compared where its mask is set; `i2v_mask` is ones.

    Items are made twice: from arrays in memory, in the precision of the case, and, with PyTorch, from imported files,
    which store latents and states as bfloat16.
    """
    clips = {kind: make_record(case, uses_action_json=kind) for kind in _kinds_of_labels(case)}
    errors = [_largest_error(case, clips, Prompts(case.inputs))]
    if importlib.util.find_spec("torch"):
        errors.append(from_files(case))
    return float(np.max(errors))


def from_files(case: golden_cases.GoldenCase) -> float:
    """Compare the items from published files, which are written, imported to records and read.

    Records store latents and states in bfloat16, so these must equal the rounded original.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = _imported(case, pathlib.Path(folder))
        source = records.RecordSource(output, "train")
        clips = {source.episodes[i] == "actions.pt": source[i] for i in range(len(source))}
        store = text_store.TextStore(output, source.manifest)
        return _largest_error(case, clips, store, rounded=True)


def _kinds_of_labels(case: golden_cases.GoldenCase) -> list[bool]:
    """Return the values of `uses_action_json` in the case's items."""
    return sorted({item["uses_action_json"] for item in case.config["items"].values()})


def _imported(case: golden_cases.GoldenCase, folder: pathlib.Path) -> pathlib.Path:
    """Write the case's inputs as published files and import them; -> the folder of records."""
    inputs = case.inputs
    negative = {name.removeprefix("negative_"): x for name, x in inputs.items() if name.startswith("negative_")}
    clip = {name: x for name, x in inputs.items() if name in {"latent", "image_cond", "vision_states", *negative}}
    published_set.save_poses(folder / "poses.json", inputs["pose_w2c"], inputs["pose_intrinsic"])
    items = [{"latent_path": "poses.pt", "pose_path": "poses.json"}]
    if True in _kinds_of_labels(case):
        (folder / "actions.json").write_text(json.dumps(recorded_json.whole(case.config["action_json"])))
        items.append({"latent_path": "actions.pt", "pose_path": "poses.json", "action_path": "actions.json"})
    for item in items:
        published_set.save_pt(folder / item["latent_path"], clip)
    (folder / "index.json").write_text(json.dumps(items))
    published = import_data.open_published(
        folder / "index.json",
        *published_set.save_negative(folder, negative),
        min_frames=case.config["window_frames"],
        channels=inputs["latent"].shape[1],
        skip_errors=False,
    )
    return import_data.import_worldplay(published, folder / "records").directory


def _largest_error(
    case: golden_cases.GoldenCase,
    clips: Mapping[bool, Mapping[str, np.ndarray]],
    store: data.TextStore,
    *,
    rounded: bool = False,
) -> float:
    errors = []
    for name, item in case.config["items"].items():
        outputs = {key.removeprefix(f"{name}."): x for key, x in case.outputs.items() if key.startswith(f"{name}.")}
        stored = {key: outputs[key].astype(ml_dtypes.bfloat16) for key in STATES} if rounded else {}
        expected = {**outputs, **stored}
        example = _example(case, item, clips[item["uses_action_json"]], store)
        actual = _as_original(example, expected)
        errors.append(float(example["is_memory"] != item["select_window_out_flag"]))
        errors += [float(not np.array_equal(actual[key], expected[key])) for key in STATES]
        errors.append(golden_cases.largest_error(actual, expected))
    return float(np.max(errors))


def _example(
    case: golden_cases.GoldenCase, item: dict[str, Any], record: Mapping[str, np.ndarray], store: data.TextStore
) -> dict[str, np.ndarray]:
    config = case.config
    length = min(config["max_frames"], config["latent_frames"]) // CHUNK * CHUNK
    golden_cases.require(item, max_length=length)
    clip = data.ClipConfig(
        latent_size=case.inputs["latent"].shape[-2:],
        window_frames=config["window_frames"],
        memory_frames=config["memory_frames"],
        temporal_context=config["memory_frames"] - 2 * CHUNK,
        memory_probability=0.8,
        text_dropout=item["cfg_rate"],
        curriculum=((0, config["max_frames"]),),
        text_tokens=case.inputs["prompt_mask"].shape[1],
        glyph_tokens=case.inputs["byt5_text_mask"].shape[1],
    )
    transform = data.SampleWindow(clip, points=case.inputs["points_local"], text_store=store, global_batch=1)
    rng: Any = ScriptedGenerator(list(item["first_two_draws"]), item.get("current_frame_idx"))
    example = transform.random_map({"record": record, "position": 0}, rng)
    example = {name: array[0] for name, array in pipeline.stack([example]).items()}
    assert np.array_equal(example["latent"], record["latent"][list(item["selected_latents"])]), (
        "other latents are selected"
    )
    return example


def _as_original(example: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert an example to the original's names and layouts; masked text is not compared."""
    prompt, glyph = example["text_mask"][:, None], example["glyph_mask"][:, None]
    return {
        "latent": np.moveaxis(example["latent"], -1, 0),
        "image_cond": np.moveaxis(example["image_cond"], -1, 0),
        "i2v_mask": np.ones_like(expected["i2v_mask"]),
        "vision_states": example["vision_states"],
        "prompt_embed": np.where(prompt, example["text_states"], expected["prompt_embed"]),
        "prompt_mask": example["text_mask"],
        "byt5_text_states": np.where(glyph, example["glyph_states"], expected["byt5_text_states"]),
        "byt5_text_mask": example["glyph_mask"],
        "w2c": example["w2c"],
        "intrinsic": example["intrinsics"],
        "action": example["action"],
        "action_for_pe": example["action"],
    }


CHECKS = {
    "worldplay/dataset_item": dataset_item,
}
