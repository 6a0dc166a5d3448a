"""Check of the sample logic against items of the original data set."""

from typing import Any

import golden_cases
import numpy as np

from jworld.cameras import actions, poses
from jworld.data import worldplay

CHUNK = 4


class ScriptedGenerator:
    """Stands in for numpy's generator: gives the draws that the original's generator gave."""

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
    """The negative prompt and the item's own one."""

    def __init__(self, inputs: dict[str, np.ndarray]) -> None:
        self._inputs = inputs

    def prompt(self, row: int) -> dict[str, np.ndarray]:
        prefix = "negative_" if row == worldplay.NEGATIVE_PROMPT else ""
        names = {
            "text_states": ("prompt_embeds", "prompt_mask"),
            "glyph_states": ("byt5_text_states", "byt5_text_mask"),
        }
        arrays = {key: [self._inputs[prefix + name][0] for name in pair] for key, pair in names.items()}
        return {key: states[mask.astype(bool)] for key, (states, mask) in arrays.items()}


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 0, -1)


def make_record(case: golden_cases.GoldenCase, *, uses_action_json: bool) -> dict[str, Any]:
    """The training record that the case's files amount to."""
    inputs, latents = case.inputs, case.config["latent_frames"]
    w2c = inputs["pose_w2c"][:: actions.FRAMES_PER_LATENT][:latents]
    if uses_action_json:
        labels = actions.labels_from_entries(list(case.config["action_json"].values()), latents)
    else:
        labels = actions.labels_from_poses(w2c, min_translation=actions.TRAINING_MIN_TRANSLATION)
    return {
        "latent": channels_last(inputs["latent"][0]),
        "image_cond": channels_last(inputs["image_cond"][0]),
        "vision_states": inputs["vision_states"][0],
        "w2c": w2c,
        "intrinsics": poses.normalise_intrinsics(inputs["pose_intrinsic"][:: actions.FRAMES_PER_LATENT][:latents]),
        "action": labels,
        "prompt": np.int32(1),
        "index": np.int32(0),
    }


def dataset_item(case: golden_cases.GoldenCase) -> float:
    """Every item from the original's random draws. Text is compared where its mask is set; `i2v_mask` is all ones."""
    return float(np.max([_item_error(case, name, item) for name, item in case.config["items"].items()]))


def _item_error(case: golden_cases.GoldenCase, name: str, item: dict[str, Any]) -> float:
    config = case.config
    clip = worldplay.ClipConfig(
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
    transform = worldplay.SampleWindow(
        clip, points=case.inputs["points_local"], text_store=Prompts(case.inputs), global_batch=1
    )
    record = make_record(case, uses_action_json=item["uses_action_json"])
    rng: Any = ScriptedGenerator(item["first_two_draws"], item.get("current_frame_idx"))
    example = transform.random_map({"record": record, "position": 0}, rng)
    expected = {key.removeprefix(f"{name}."): x for key, x in case.outputs.items() if key.startswith(f"{name}.")}
    flag = float(example["is_memory"] != item["select_window_out_flag"])
    selected = float(not np.array_equal(example["latent"], record["latent"][item["selected_latents"]]))
    return float(np.max([flag, selected, golden_cases.largest_error(_as_original(example, expected), expected)]))


def _as_original(example: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The example under the original's names and layouts; text at positions that the mask hides is not compared."""
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
