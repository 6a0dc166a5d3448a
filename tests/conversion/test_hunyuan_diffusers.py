"""The key tables of HunyuanVideo-1.5 are bijections, at the published sizes and element by element at small ones."""

import dataclasses
import hashlib
import math

import converted
import numpy as np
import pytest
from flax import nnx
from parity_checks import hunyuan as parity

from conversion import engine, families
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.hunyuan.transformer import HunyuanTransformer

LAYOUTS = families.FAMILIES["worldplay"].layouts
BASE = HunyuanConfig(actions=False)
SMALL = HunyuanConfig(
    channels=4,
    patch_size=(1, 2, 2),
    width=48,
    num_heads=4,
    num_layers=3,
    rope_dims=(2, 4, 6),
    refiner_layers=1,
    text_dim=20,
    glyph_dim=14,
    vision_dim=18,
    actions=False,
)


def parameter_shapes(cfg: HunyuanConfig) -> dict[str, engine.Shape]:
    with nnx.use_eager_sharding(False):
        return engine.parameter_shapes(nnx.state(nnx.eval_shape(lambda: HunyuanTransformer(cfg, rngs=nnx.Rngs(0)))))


def digest(shapes: dict[str, engine.Shape]) -> str:
    lines = sorted(f"{name} {tuple(shape)}" for name, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


# Digests of state_dict() of diffusers 0.42.1's class, built on torch's meta device with these sizes. The numbers of the
# original are from HunyuanVideo-1.5's and HY-WorldPlay's classes.
@pytest.mark.parametrize(
    "layout, cfg, tensors, parameters, names",
    [
        ("diffusers", BASE, 1801, 8_326_608_160, "2d8c684aceb94d7a"),
        ("diffusers", SMALL, 151, 4_654_262, "0520768a6061e8e4"),
        ("original", BASE, 1793, 8_326_608_160, None),
        ("original", HunyuanConfig(), 1905, 8_557_933_856, None),
    ],
    ids=["diffusers", "diffusers_small", "base", "action"],
)
def test_tables_name_every_tensor_once(
    layout: str, cfg: HunyuanConfig, tensors: int, parameters: int, names: str | None
) -> None:
    ours = parameter_shapes(cfg)
    places = engine.plan(ours, LAYOUTS[layout].rules(cfg))
    theirs = {name: place.source_shape for name, place in places.items()}
    assert len(theirs) == tensors
    assert sum(math.prod(shape) for shape in theirs.values()) == parameters == sum(map(math.prod, ours.values()))
    assert names is None or digest(theirs) == names
    assert engine.problems(theirs, ours, places) == []


@pytest.mark.parametrize(
    "layout, cfg",
    [("diffusers", SMALL), ("original", SMALL), ("original", dataclasses.replace(SMALL, actions=True))],
    ids=["diffusers", "original", "action"],
)
def test_tables_are_bijections(layout: str, cfg: HunyuanConfig) -> None:
    """Every element of every parameter has its own number: a round trip loses, doubles or moves none."""
    ours = parameter_shapes(cfg)
    places = engine.plan(ours, LAYOUTS[layout].rules(cfg))
    parameters, start = {}, 0
    for path, shape in ours.items():
        size = math.prod(shape)
        parameters[path] = np.arange(start, start + size, dtype=np.int64).reshape(shape)
        start += size
    tensors = {name: place.take(parameters[place.path]) for name, place in places.items()}
    everything = np.concatenate([tensor.ravel() for tensor in tensors.values()])
    np.testing.assert_array_equal(np.sort(everything), np.arange(start))
    for path, parameter in parameters.items():
        own = {name: place for name, place in places.items() if place.path == path}
        index = engine.whole(parameter.shape)
        back = engine.read_block(own, index, np.dtype(np.int64), lambda name, box: tensors[name][box])
        np.testing.assert_array_equal(back, parameter)


def test_the_same_weights_in_both_layouts() -> None:
    """The original's tensors are compared with those of diffusers, above all where more than the name differs."""
    case = converted.case("base")
    cfg = parity.config_of(case)
    ours, original = parameter_shapes(cfg), case.weights
    read = engine.plan(ours, LAYOUTS["original"].rules(cfg))
    parameters = {}
    for path, shape in ours.items():
        own = {name: place for name, place in read.items() if place.path == path}
        index = engine.whole(shape)
        parameters[path] = engine.read_block(own, index, np.dtype(np.float32), lambda name, box: original[name][box])
    places = engine.plan(ours, LAYOUTS["diffusers"].rules(cfg))
    diffusers = {name: place.take(parameters[place.path]) for name, place in places.items()}

    for part in ("weight", "bias"):
        shift, scale = np.split(original[f"final_layer.adaLN_modulation.1.{part}"], 2)
        np.testing.assert_array_equal(diffusers[f"norm_out.linear.{part}"], np.concatenate([scale, shift]))
        fused = original[f"txt_in.individual_token_refiner.blocks.1.self_attn_qkv.{part}"]
        block = "context_embedder.token_refiner.refiner_blocks.1"
        for name, expected in zip(("to_q", "to_k", "to_v"), np.split(fused, 3), strict=True):
            np.testing.assert_array_equal(diffusers[f"{block}.attn.{name}.{part}"], expected)
        for theirs, name in (
            ("norm1.linear", "img_mod.linear"),
            ("norm1_context.linear", "txt_mod.linear"),
            ("attn.to_v", "img_attn_v"),
            ("attn.add_k_proj", "txt_attn_k"),
            ("attn.to_add_out", "txt_attn_proj"),
            ("ff_context.net.2", "txt_mlp.fc2"),
        ):
            expected = original[f"double_blocks.1.{name}.{part}"]
            np.testing.assert_array_equal(diffusers[f"transformer_blocks.1.{theirs}.{part}"], expected)
    np.testing.assert_array_equal(diffusers["x_embedder.proj.weight"], original["img_in.proj.weight"])
