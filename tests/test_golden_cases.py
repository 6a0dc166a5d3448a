import copy
import functools
import json
import math
import pathlib
from typing import Any

import golden_cases
import numpy as np
import parity_checks
import pytest
import recorded_json

from jworld.utils import errors

CHECKS: dict[str, golden_cases.Check] = golden_cases.merged(parity_checks, "CHECKS")
DOCUMENT = {"a": 1, "b": [1, 2, [3, 4]], "c": {"x": None, "y": []}, "d": {}}
EVERYTHING = ["a", "b.0", "b.1", "b.2.0", "b.2.1", "c.x", "c.y", "d"]


def test_the_longest_known_kind_wins() -> None:
    kinds = {"one/loss", "one/loss_memory", "two/loss"}
    assert golden_cases.kind_of("one/loss_memory_sample", kinds) == "one/loss_memory"
    assert golden_cases.kind_of("one/loss_window", kinds) == "one/loss"
    assert golden_cases.kind_of("one/lost", kinds) is None


def test_every_folder_with_a_config_is_a_case(tmp_path: pathlib.Path) -> None:
    for name in ("one/b", "one/a", "two/c", "two/empty"):
        (tmp_path / name).mkdir(parents=True)
        if name != "two/empty":
            (tmp_path / name / "config.json").write_text('{"seed": 3}')
    cases = golden_cases.discover(tmp_path)
    assert [case.name for case in cases] == ["one/a", "one/b", "two/c"]
    assert cases[0].config == {"seed": 3}


def test_errors_are_relative_and_never_hide_a_nan() -> None:
    assert golden_cases.relative_error([3.0, 4.4], [3.0, 4.0]) == pytest.approx(0.08)
    assert golden_cases.relative_error([0.5], [0.0]) == 0.5
    expected = {"a": np.ones(2), "b": np.ones(2)}
    assert math.isnan(golden_cases.largest_error({"a": np.array([np.nan, 1]), "b": np.zeros(2)}, expected))
    with pytest.raises(AssertionError, match="shape"):
        golden_cases.relative_error(np.ones(3), np.ones(2))
    with pytest.raises(KeyError):
        golden_cases.largest_error({"a": np.ones(2)}, expected)


def test_values_are_read_one_by_one() -> None:
    document = recorded_json.record(DOCUMENT)
    assert recorded_json.unread(document) == EVERYTHING
    assert document["a"] == 1
    assert document["b"][-1][0] == 3
    assert document["c"].get("x") is None
    assert document["c"].get("z", 5) == 5
    assert recorded_json.unread(document) == ["b.0", "b.1", "b.2.1", "c.y", "d"]
    first, *_ = document["b"]
    assert first == 1
    np.testing.assert_array_equal(document["b"][2], [3, 4])
    assert recorded_json.unread(document) == ["c.y", "d"]
    assert document["c"]["y"] == []
    assert document["d"] == {}
    assert recorded_json.unread(document) == []


def test_a_comparison_reads_everything_compared() -> None:
    document = recorded_json.record(DOCUMENT)
    assert document["b"] == [1, 2, [3, 4]]
    assert document["c"] != {"x": 0}
    assert recorded_json.unread(document) == ["a", "d"]
    assert recorded_json.whole(document) == DOCUMENT
    assert recorded_json.unread(document) == []


def test_copies_and_iteration_over_names_read_nothing() -> None:
    document = recorded_json.record(DOCUMENT)
    copies: list[Any] = [dict(document), {**document}, document | {}, copy.deepcopy(document), list(document.items())]
    assert all(len(each) == len(DOCUMENT) for each in copies)
    assert [*document, *document.keys()] == 2 * list(DOCUMENT)
    assert recorded_json.unread(document) == EVERYTHING


def make_case(folder: pathlib.Path, config: dict[str, Any]) -> golden_cases.GoldenCase:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return golden_cases.GoldenCase(folder)


def test_an_ignored_value_is_named_and_metadata_is_not(tmp_path: pathlib.Path) -> None:
    config = {"notes": "text", "seed": 3, "shapes": {"x": [1, 2]}, "args": {"eps": 1e-6, "sizes": [4, 5]}, "steps": 2}
    case = make_case(tmp_path / "one" / "case", config)
    (case.path / "more.json").write_text('{"extra": 1}')
    assert case.unread() == ["args.eps", "args.sizes.0", "args.sizes.1", "steps"]
    assert case.config["args"]["sizes"][1] == 5
    assert case.json("more").keys() == {"extra"}
    assert case.unread() == ["args.eps", "args.sizes.0", "steps", "extra"]
    assert all(golden_cases.METADATA.values()), "every exemption has a reason"


def test_stated_values_must_be_those_found() -> None:
    config = recorded_json.record({"size": 3, "shape": [1, 2], "scale": [0.1, 5.0], "mode": "causal"})
    golden_cases.require(config, size=3, shape=(1, 2), scale=np.array([0.1, 5.0], np.float32), absent=7)
    golden_cases.without_effect(config, "mode", "absent")
    assert recorded_json.unread(config) == []
    wrong: list[dict[str, Any]] = [
        {"size": 4},
        {"shape": [1, 3]},
        {"scale": np.array([0.1, 5.1])},
        {"mode": "full"},
    ]
    for values in wrong:
        with pytest.raises(AssertionError, match=f"{next(iter(values))} is"):
            golden_cases.require(config, **values)


def copied(case: str, folder: pathlib.Path, name: str, value: object) -> golden_cases.GoldenCase:
    """Copy a golden case with another value at a dotted name of its config."""
    source, target = golden_cases.DEFAULT_ROOT / case, folder / case
    config = json.loads((source / "config.json").read_text())
    *path, last = name.split(".")
    node = functools.reduce(lambda node, key: node[int(key) if isinstance(node, list) else key], path, config)
    assert node[last] != value
    node[last] = value
    made = make_case(target, config)
    for file in source.iterdir():
        if file.name != "config.json":
            (target / file.name).symlink_to(file)
    return made


def run(case: golden_cases.GoldenCase) -> float:
    kind = golden_cases.kind_of(case.name, CHECKS)
    assert kind is not None
    return CHECKS[kind](case)


@pytest.mark.parametrize(
    ("case", "name", "value"),
    [
        ("worldplay/memory_selection_random", "fov_h_deg", 50.0),
        ("worldplay/memory_selection_random", "fov_v_deg", 25.0),
        ("worldplay/memory_selection_turn_back", "radius", 5.0),
        ("worldplay/muon_fp32", "nesterov", False),
        ("cosmos/rope3d", "entries.4.base_fps", 30),
        ("cosmos/action_labels", "scale", [20.0, 20.0, 20.0, 20.0, 20.0, 20.0, 2.0]),
        ("matrix/scheduler_base", "scheduler.beta_end", 0.02),
        ("matrix/scheduler_base", "scheduler.beta_schedule", "linear"),
        ("matrix/scheduler_base", "scheduler.rescale_betas_zero_snr", False),
        ("matrix/scheduler_swin", "args.original_inference_steps", 50),
        ("matrix/s1_lora", "args.lora_alpha", 8),
        ("matrix/s1_lora", "args.lora_scale", 0.5),
        ("matrix/s2_transformer_forward", "model.norm_eps", 1e-2),
        ("worldplay/transformer_ar_train", "constructor.rope_theta", 100),
        ("theworld/gemma3_text", "text_config.rope_scaling.factor", 4.0),
    ],
)
def test_another_value_changes_the_result(case: str, name: str, value: object, tmp_path: pathlib.Path) -> None:
    """The check of an original's result fails once its config states another value."""
    assert not run(copied(case, tmp_path, name, value)) < golden_cases.DEFAULT_TOLERANCE


@pytest.mark.parametrize(
    ("case", "name", "value", "message"),
    [
        ("matrix/scheduler_base", "scheduler.prediction_type", "epsilon", "prediction_type is 'epsilon'"),
        ("matrix/scheduler_base", "scheduler.set_alpha_to_one", False, "set_alpha_to_one is False"),
        ("matrix/s2_transformer_forward", "model.use_rotary_positional_embeddings", True, "use_rotary_positional"),
        ("matrix/s2_transformer_forward", "args.H", 7, "H is 7"),
        ("cosmos/dit_v2w", "model_kwargs.pos_emb_cls", "sincos", "pos_emb_cls is 'sincos'"),
        ("cosmos/dit_v2w", "model_kwargs.atten_backend", "natten", "atten_backend is 'natten'"),
        ("worldplay/transformer_ar_train", "constructor.mm_single_blocks_depth", 1, "mm_single_blocks_depth is 1"),
        ("theworld/gemma3_text", "text_config.attn_logit_softcapping", 50.0, "attn_logit_softcapping is 50.0"),
    ],
)
def test_a_value_that_is_not_supported_is_refused(
    case: str, name: str, value: object, message: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises((AssertionError, errors.UserError), match=message):
        run(copied(case, tmp_path, name, value))
