"""Names, shapes and config.json of downloaded weights: the hyper-parameters in them, and refused values."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import converted
import jax.numpy as jnp
import pytest
from flax import nnx
from parity_checks import hunyuan as parity

from conversion import engine, families, sources
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.hunyuan.transformer import HunyuanTransformer
from jworld.utils.errors import UserError
from scripts import full_size_keys

WORLDPLAY = families.FAMILIES["worldplay"]
ORIGINAL, DIFFUSERS = WORLDPLAY.layouts["original"], WORLDPLAY.layouts["diffusers"]
BASE = HunyuanConfig(actions=False)

#: config.json of the published transformer, without `_class_name` and version.
PUBLISHED = {key: value for key, value in full_size_keys.WORLDPLAY.items() if key != "_class_name"}
#: config.json of the published weights in diffusers' layout.
PUBLISHED_DIFFUSERS: dict[str, Any] = {
    "attention_head_dim": 128,
    "image_embed_dim": 1152,
    "in_channels": 65,
    "mlp_ratio": 4.0,
    "num_attention_heads": 16,
    "num_layers": 54,
    "num_refiner_layers": 2,
    "out_channels": 32,
    "patch_size": 1,
    "patch_size_t": 1,
    "qk_norm": "rms_norm",
    "rope_axes_dim": [16, 56, 56],
    "rope_theta": 256.0,
    "target_size": 640,
    "task_type": "i2v",
    "text_embed_2_dim": 1472,
    "text_embed_dim": 3584,
    "use_meanflow": False,
}


def shapes_of(cfg: HunyuanConfig, layout: families.KeyLayout) -> dict[str, engine.Shape]:
    with nnx.use_eager_sharding(False):
        state = nnx.state(nnx.eval_shape(lambda: HunyuanTransformer(cfg, rngs=nnx.Rngs(0))))
    places = engine.plan(engine.parameter_shapes(state), layout.rules(cfg))
    return {name: place.source_shape for name, place in places.items()}


@pytest.mark.parametrize("name", ["transformer_ar_train", "base"])
def test_shapes_determine_all_sizes_of_the_original(name: str) -> None:
    case = converted.case(name)
    shapes = {name: weight.shape for name, weight in case.weights.items()}
    assert families.detect(shapes, "x") == (WORLDPLAY, ORIGINAL)
    expected = dataclasses.asdict(parity.config_of(case))
    found = ORIGINAL.from_shapes(shapes)
    assert found == {key: expected[key] for key in found}
    # Rotary options and options of a run have no weights; everything else follows from shapes.
    assert expected.keys() - found.keys() == {
        "rope_dims",
        "rope_theta",
        "dtype",
        "param_dtype",
        "remat",
        "attention",
        "prediction",
        "references",
        "output_kernel",
        "step_sizes",
    }
    config = ORIGINAL.from_config(case.config["constructor"], "x")
    assert config == {key: expected[key] for key in config}
    assert {"rope_dims", "rope_theta"} < config.keys()


@pytest.mark.parametrize("layout", [ORIGINAL, DIFFUSERS], ids=lambda layout: layout.name)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"patch_size": (1, 2, 2), "width": 96, "num_heads": 6, "rope_dims": (4, 6, 6), "channels": 3},
        {"refiner_layers": 3, "num_layers": 2, "mlp_ratio": 2.5, "glyph_hidden": 6, "glyph_out": 10},
    ],
)
def test_shapes_determine_all_sizes(layout: families.KeyLayout, changes: dict[str, Any]) -> None:
    cfg = dataclasses.replace(BASE, **changes)
    shapes = shapes_of(cfg, layout)
    assert families.detect(shapes, "x") == (WORLDPLAY, layout)
    found = layout.from_shapes(shapes)
    assert dataclasses.replace(cfg, **found) == cfg
    assert found.keys() > changes.keys() - {"rope_dims"}


@pytest.mark.parametrize("layout", [ORIGINAL, DIFFUSERS], ids=lambda layout: layout.name)
@pytest.mark.parametrize(
    "changes", [{"prediction": "clean"}, {"step_sizes": True}], ids=lambda changes: next(iter(changes))
)
def test_networks_that_the_originals_cannot_run(layout: families.KeyLayout, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"model.{next(iter(changes))} is"):
        layout.rules(dataclasses.replace(BASE, **changes))


def test_a_ratio_that_no_float_hits_exactly() -> None:
    shapes = {"img_in.proj.weight": (11, 9, 1, 1, 1)} | {"double_blocks.0.img_mlp.fc1.weight": (15, 11)}
    assert int(11 * (15 / 11)) == 14
    assert int(11 * ORIGINAL.from_shapes(shapes)["mlp_ratio"]) == 15


def test_variants() -> None:
    action = ORIGINAL.from_shapes(shapes_of(HunyuanConfig(num_layers=1), ORIGINAL))
    plain = ORIGINAL.from_shapes(shapes_of(HunyuanConfig(num_layers=1, actions=False, glyph_dim=None), ORIGINAL))
    assert (action["actions"], action["glyph_dim"]) == (True, 1472)
    assert (plain["actions"], plain["glyph_dim"]) == (False, None)
    assert "glyph_hidden" not in plain
    assert WORLDPLAY.describe(action) == "WorldPlay (HunyuanVideo-1.5 with actions and cameras)"
    assert WORLDPLAY.describe(plain) == "HunyuanVideo-1.5, without glyph input"
    assert WORLDPLAY.describe({}) == "HunyuanVideo-1.5"


def test_shapes_of_a_damaged_file_are_read_as_far_as_possible() -> None:
    shapes = {"img_in.proj.weight": (8, 3), "double_blocks.0.img_attn_q_norm.weight": (0,)}
    shapes |= {"double_blocks.99999999999999999999.x": (1,), "byt5_in.fc1.weight": (4,)}
    assert ORIGINAL.from_shapes(shapes) == {"actions": False, "num_layers": 2}
    assert ORIGINAL.from_shapes({}) == {"actions": False, "glyph_dim": None}


@pytest.mark.parametrize(
    "names, family, message",
    [
        (
            ["model.a", "model.b"],
            None,
            r"^x: not weights of a known network: .*img_attn_q.*found 2 tensors, first 'model.a'",
        ),
        ([], None, "found 0 tensors$"),
        # HunyuanVideo 1.0 shares most of its names, in both layouts.
        (["img_in.proj.weight", "double_blocks.0.img_attn_qkv.weight"], None, "not weights of a known network"),
        (["x_embedder.proj.weight", "transformer_blocks.0.attn.to_q.weight"], "worldplay", "looked for"),
        (["cond_type_embed.weight", "cond_type_embedding.weight"], None, "at once"),
        (["cond_type_embed.weight"], "wordplay", "--family is 'wordplay', expected one of worldplay"),
    ],
)
def test_names_of_other_things(names: list[str], family: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        families.detect(names, "x", family=family)


@pytest.mark.parametrize(
    "layout, config", [(ORIGINAL, PUBLISHED), (DIFFUSERS, PUBLISHED_DIFFUSERS)], ids=["original", "diffusers"]
)
def test_published_config(layout: families.KeyLayout, config: dict[str, Any]) -> None:
    found = layout.from_config(config | {"_diffusers_version": "0.36.0", "some_new_key": [1]}, "x")
    assert HunyuanConfig(**found) == HunyuanConfig()
    assert {key: value for key, value in layout.to_config(BASE).items() if key != "_class_name"} == config
    assert layout.limits(BASE) == []


def test_class_names() -> None:
    assert ORIGINAL.to_config(HunyuanConfig())["_class_name"] == "HunyuanVideo_1_5_DiffusionTransformer"
    assert DIFFUSERS.to_config(BASE)["_class_name"] == "HunyuanVideo15Transformer3DModel"


@pytest.mark.parametrize("layout", [ORIGINAL, DIFFUSERS], ids=lambda layout: layout.name)
def test_configs_go_out_and_come_back(layout: families.KeyLayout) -> None:
    cfg = dataclasses.replace(BASE, patch_size=(1, 2, 2), width=96, num_heads=6, rope_dims=(4, 6, 6), rope_theta=100.0)
    cfg = dataclasses.replace(cfg, channels=3, num_layers=5, mlp_ratio=2.5, text_dim=7, vision_dim=9)
    found = layout.from_config(json.loads(json.dumps(layout.to_config(cfg))), "x")
    assert dataclasses.replace(BASE, **found) == cfg


def test_config_without_glyphs() -> None:
    config = ORIGINAL.to_config(dataclasses.replace(BASE, glyph_dim=None))
    assert config["glyph_byT5_v2"] is False
    assert ORIGINAL.from_config(config, "x")["glyph_dim"] is None
    assert "glyph_dim" not in ORIGINAL.from_config(PUBLISHED, "x")


@pytest.mark.parametrize(
    "layout, changes, message",
    [
        (ORIGINAL, {"mm_single_blocks_depth": 40}, "^x: mm_single_blocks_depth is 40, only 0 is supported$"),
        (ORIGINAL, {"guidance_embed": True, "use_meanflow": True}, "guidance_embed is True.*use_meanflow is True"),
        (ORIGINAL, {"qk_norm_type": "layer"}, "qk_norm_type is 'layer'"),
        (ORIGINAL, {"out_channels": 16}, "out_channels is 16, which contradicts channels 32"),
        (ORIGINAL, {"hidden_size": "2048"}, "hidden_size is '2048', which is not a value of the right kind"),
        (ORIGINAL, {"hidden_size": True, "rope_dim_list": [64, 64]}, "hidden_size.*rope_dim_list"),
        (ORIGINAL, {"patch_size": [1, 2.5, 2]}, "patch_size"),
        (DIFFUSERS, {"use_meanflow": True}, "use_meanflow is True"),
        (DIFFUSERS, {"qk_norm": None}, "qk_norm is None"),
        (DIFFUSERS, {"in_channels": 32}, "in_channels is 32, expected .* 65"),
        (DIFFUSERS, {"attention_head_dim": -1}, "attention_head_dim is -1"),
    ],
)
def test_configs_of_other_networks(layout: families.KeyLayout, changes: dict[str, Any], message: str) -> None:
    config = (PUBLISHED if layout is ORIGINAL else PUBLISHED_DIFFUSERS) | changes
    with pytest.raises(UserError, match=message):
        layout.from_config(config, "x")


def test_partial_configs() -> None:
    assert ORIGINAL.from_config({"rope_theta": 256, "out_channels": None}, "x") == {"rope_theta": 256.0}
    assert DIFFUSERS.from_config({"patch_size": 2, "attention_head_dim": 4}, "x") == {}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"actions": True}, "action and camera parameters have no place there.*original layout"),
        ({"glyph_dim": None}, "its glyph input is missing"),
        ({"patch_size": (1, 2, 1)}, "patch_size .* is not square"),
    ],
)
def test_models_that_diffusers_does_not_support(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DIFFUSERS.to_config(dataclasses.replace(BASE, **changes))


def test_sizes_that_the_other_programs_fix_in_their_code() -> None:
    cfg = dataclasses.replace(BASE, refiner_layers=3, mlp_ratio=2.0, glyph_dim=12, glyph_out=10)
    assert ORIGINAL.limits(cfg) == [
        "refiner_layers is 3, always 2 there",
        "mlp_ratio is 2.0, always 4.0 there",
        "glyph_dim is 12, always 1472 there",
        "glyph_out is 10, always 2048 there",
    ]
    assert DIFFUSERS.limits(cfg) == ["mlp_ratio is 2.0, always 4.0 there", "glyph_out is 10, always 2048 there"]
    assert ORIGINAL.limits(dataclasses.replace(BASE, glyph_dim=None)) == []


def test_a_downloaded_diffusers_folder(tmp_path: pathlib.Path) -> None:
    """The folder that diffusers saves determines every parameter of our model, without settings."""
    case = converted.case("hunyuan_diffusers")
    folder = tmp_path / "transformer"
    folder.mkdir()
    shutil.copy(case.path / "weights.safetensors", folder / sources.WEIGHTS_NAME)
    (folder / "config.json").write_text(json.dumps(case.config["transformer_config"]))
    with sources.open_source(tmp_path) as source:
        shapes = {name: info.shape for name, info in source.tensors.items()}
        family, layout = families.detect(shapes, str(source.path))
        assert (family, layout) == (WORLDPLAY, DIFFUSERS)
        assert source.config is not None
        from_shapes, from_config = layout.from_shapes(shapes), layout.from_config(source.config, "x")
        assert all(from_shapes[key] == from_config[key] for key in from_shapes.keys() & from_config.keys())
        cfg = HunyuanConfig(**from_shapes | from_config)
        assert cfg == HunyuanConfig(
            channels=4,
            patch_size=(1, 2, 2),
            width=48,
            num_heads=4,
            num_layers=2,
            rope_dims=(2, 4, 6),
            rope_theta=100.0,
            text_dim=20,
            glyph_dim=14,
            glyph_hidden=10,
            glyph_out=10,
            vision_dim=18,
            actions=False,
            dtype=jnp.bfloat16,
        )
        assert shapes == shapes_of(cfg, layout)
