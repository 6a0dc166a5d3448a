"""Import and export of Cosmos-Predict2's checkpoints: both layouts, training checkpoints, adapters, published sizes."""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import adapted
import converted
import golden_cases
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
from flax import nnx
from parity_checks import cosmos as parity

from conversion import __main__ as conversion
from conversion import cosmos, engine, exporting, families, importing, inspecting, selecting, sources, verifying
from conversion import lora as lora_keys
from jworld import systems
from jworld.models.cosmos.config import PUBLISHED, CosmosConfig
from jworld.models.cosmos.transformer import CosmosTransformer
from jworld.models.layers import lora
from jworld.systems import runs
from jworld.utils import config as run_config
from jworld.utils import errors

GOLDEN = pathlib.Path(golden_cases.__file__).parent / "golden" / "cosmos"
ITERATION = GOLDEN / "train_steps" / "run" / "checkpoints" / "model" / "iter_000000003.pt"
LAYOUTS = families.FAMILIES["cosmos"].layouts


def case(name: str) -> golden_cases.GoldenCase:
    return golden_cases.GoldenCase(GOLDEN / name)


def download(folder: pathlib.Path, weights: pathlib.Path, config: Mapping[str, Any] | None = None) -> pathlib.Path:
    folder.mkdir()
    shutil.copy(weights, folder / sources.WEIGHTS_NAME)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def import_weights(source: pathlib.Path, output: pathlib.Path, **options: Any) -> dict[str, Any]:
    chosen = importing.Options(settings=converted.SETTINGS, selection=selecting.Selection(**options))
    return importing.import_weights(source, output, chosen)[1]


def plan(source: pathlib.Path, **options: Any) -> importing.Plan:
    with sources.open_source(source) as opened:
        return importing.make_plan(opened, importing.Options(**options))


def load(directory: pathlib.Path) -> CosmosTransformer:
    system = systems.create(run_config.load(directory))
    with nnx.use_eager_sharding(False):
        graphdef, params = nnx.split(nnx.eval_shape(lambda: system.init(nnx.Rngs(0))))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), params)
    return nnx.merge(graphdef, runs.load_params(directory, target)[0])


def output_error(directory: pathlib.Path, golden: golden_cases.GoldenCase, output: str) -> float:
    actual = parity.forward(load(directory), parity.model_inputs(golden.inputs))
    return golden_cases.relative_error(actual, parity.channels_last(golden.outputs[output]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Make a folder with the same weights in both layouts, as downloaded and as imported."""
    folder, golden = tmp_path_factory.mktemp("cosmos"), case("diffusers_parity")
    kwargs, config = golden.config["model_kwargs"], golden.config["diffusers_config"]
    import_weights(download(folder / "original", golden.path / "weights.safetensors", kwargs), folder / "a")
    renamed = download(folder / "diffusers", golden.path / "weights.safetensors", config)
    import_weights(converted.rewrite(renamed, golden.diffusers_weights), folder / "b")
    return folder


def test_both_layouts_are_the_same_model_with_the_golden_output(folder: pathlib.Path) -> None:
    records = [runs.import_record(folder / name) for name in "ab"]
    assert [record["layout"] for record in records] == ["original", "diffusers"]
    assert records[0]["checksum"] == records[1]["checksum"]
    assert records[0]["ignored"] == []
    configs = [run_config.load(folder / name) for name in "ab"]
    assert [tuple(config.model.rope_scale) for config in configs] == 2 * [(20 / 24, 3.0, 2.0)]
    assert output_error(folder / "a", case("diffusers_parity"), "output_original") < golden_cases.DEFAULT_TOLERANCE


def test_what_the_other_programs_get(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    golden = case("diffusers_parity")
    summary = exporting.export_weights(folder / "b", tmp_path / "iter_000000500.pt", layout="original")
    assert [file.name for file in summary.files] == ["iter_000000500.pt", "config.json"]
    content = torch.load(tmp_path / "iter_000000500.pt", weights_only=True)
    expected = {name: value for name, value in golden.weights.items() if not cosmos.IGNORED.fullmatch(name)}
    assert type(content) is dict
    assert content.keys() == {f"net.{name}" for name in expected}
    for name, value in expected.items():
        assert type(content[f"net.{name}"]) is torch.Tensor
        np.testing.assert_array_equal(content[f"net.{name}"].numpy(), value)
    assert verifying.verify(folder / "b", tmp_path / "iter_000000500.pt").tensors == len(expected)
    again = plan(tmp_path / "iter_000000500.pt")
    # config.json gives the values that do not follow from shapes, except for two that all models share.
    assert again.config is not None
    assert (again.config.model.rope_scale, set(again.published)) == ((20 / 24, 3.0, 2.0), {"action_dim", "patch_size"})
    half = exporting.export_weights(folder / "a", tmp_path / "half.pth", dtype="bfloat16", overwrite=True)
    assert {str(tensor.dtype) for tensor in torch.load(half.files[0], weights_only=True).values()} == {"torch.bfloat16"}
    assert not list(tmp_path.glob(".*"))

    exporting.export_weights(folder / "a", tmp_path / "transformer", layout="diffusers")
    weights = safetensors.numpy.load_file(tmp_path / "transformer" / sources.WEIGHTS_NAME)
    assert {name: value.tobytes() for name, value in weights.items()} == {
        name: value.tobytes() for name, value in golden.diffusers_weights.items()
    }
    config = json.loads((tmp_path / "transformer" / "config.json").read_text())
    assert config.items() >= golden.config["diffusers_config"].items()


@pytest.mark.parametrize("average", [False, True])
def test_a_training_checkpoint_has_two_sets_of_weights(tmp_path: pathlib.Path, average: bool) -> None:
    torch = pytest.importorskip("torch")
    import_weights(ITERATION, tmp_path / "imported", average=average)
    content = torch.load(ITERATION, weights_only=True)
    found = load(tmp_path / "imported").blocks.mlp.up.kernel[0]
    both = [content[f"{prefix}.blocks.0.mlp.layer1.weight"].numpy().T for prefix in ("net", "net_ema")]
    assert np.abs(both[0] - both[1]).max() > 0
    np.testing.assert_array_equal(found, both[average])
    assert verifying.verify(tmp_path / "imported", ITERATION).tensors == 27
    if average:
        exporting.export_weights(tmp_path / "imported", tmp_path / "out.pt")
        assert verifying.verify(tmp_path / "imported", tmp_path / "out.pt").tensors == 27
        assert inspecting.inspect(ITERATION)["EMA weights"] == "also in the file, for import --ema"


def test_adapters_are_merged(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    golden = case("lora")
    source = download(tmp_path / "lora", golden.path / "weights.safetensors", golden.config["model_kwargs"])
    assert inspecting.inspect(source)["adapters"].startswith("rank 4 on 20 layers with the factor 1 (assumed")
    import_weights(source, tmp_path / "merged", lora_alpha=golden.config["lora_alpha"])
    assert output_error(tmp_path / "merged", golden, "output_with_lora") < golden_cases.DEFAULT_TOLERANCE
    # A part of a matrix is merged like the whole.
    with sources.open_source(source) as opened:
        selected = selecting.Selected(opened, LAYOUTS["original"], selecting.Selection(lora_alpha=8))
        name = "net.blocks.1.mlp.layer1.weight"
        part = selected.read(name, (slice(3, 9), slice(10, 20)))
        np.testing.assert_allclose(part, selected.read(name)[3:9, 10:20], rtol=1e-6)
        alone = selecting.Selected(opened, LAYOUTS["original"], selecting.Selection()).read(name)
        base, down, up = (
            opened.read(f"blocks.1.mlp.layer1.{key}.weight")
            for key in ("base_layer", "lora_A.default", "lora_B.default")
        )
        np.testing.assert_allclose(alone, base + up @ down, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(selected.read(name), base + 2 * up @ down, rtol=1e-5, atol=1e-6)
    assert verifying.verify(tmp_path / "merged", source).tensors > 0
    exporting.export_weights(tmp_path / "merged", tmp_path / "out.safetensors")
    assert verifying.verify(tmp_path / "merged", tmp_path / "out.safetensors").tensors > 0

    with pytest.raises(errors.UserError, match="has no adapters: leave --lora-alpha out"):
        plan(folder / "original", selection=selecting.Selection(lora_alpha=8))
    with pytest.raises(errors.UserError, match="no separate EMA weights: leave --ema out"):
        plan(source, selection=selecting.Selection(average=True))
    broken = dict(golden.weights)
    broken["blocks.0.mlp.layer1.lora_A.default.weight"] = np.zeros((4, 5), np.float32)
    with pytest.raises(errors.UserError, match=r"adapters of net\.blocks\.0\.mlp\.layer1\.weight"):
        plan(converted.rewrite(source, broken))


def test_tensors_that_have_no_place(tmp_path: pathlib.Path) -> None:
    """Counters, rotary tables and states are ignored by name; any other tensor is an error, and none is used twice."""
    weights = {f"net.{name}": value for name, value in case("diffusers_parity").weights.items()}
    source = download(tmp_path / "x", case("diffusers_parity").path / "weights.safetensors")
    states = {"net.blocks.0.self_attn.attn_op._extra_state": np.zeros(3, np.uint8)}
    assert plan(converted.rewrite(source, weights | states)).ignored == []
    stray = {"blocks.0.mlp.layer1.weight": weights["net.blocks.0.mlp.layer1.weight"], "net.mlp.bias": np.ones(2)}
    with pytest.raises(errors.UserError, match=r"^.*: 2 tensors do not fit the model: unexpected ") as caught:
        plan(converted.rewrite(source, weights | stray))
    assert all(f"unexpected {name}" in str(caught.value) for name in stray)
    del weights["net.final_layer.linear.weight"]
    with pytest.raises(errors.UserError, match=r"missing net\.final_layer\.linear\.weight"):
        plan(converted.rewrite(source, weights), settings=["model.channels=8", "model.padding_mask=true"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name, count", [("2b", 1_956_413_440), ("14b", 14_265_285_632)])
def test_published_sizes(tmp_path: pathlib.Path, name: str, count: int, layout: str) -> None:
    """Headers alone determine the sizes; only the published recipe gives the rotary scales."""
    cfg = CosmosConfig(**PUBLISHED[name])
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: CosmosTransformer(cfg, rngs=nnx.Rngs(0)))
    places = engine.plan(engine.parameter_shapes(nnx.state(model, nnx.Param)), LAYOUTS[layout].rules(cfg))
    path = tmp_path / "model.safetensors"
    assert converted.headers_only(path, places) == 2 * count
    found = plan(path)
    assert (found.family.name, found.layout.name, found.variant) == ("cosmos", layout, name)
    assert set(found.published) == {"rope_scale", "action_dim", "patch_size"}
    assert found.config is not None
    assert tuple(found.config.model.rope_scale) == cfg.rope_scale
    assert sum(map(len, found.places.values())) == len(places)
    assert LAYOUTS["original"].limits(found.target.model_config) == []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"patch_spatial": 4}, "patch_spatial is 4, only 2 is supported"),
        ({"out_channels": 4}, "out_channels is 4, which contradicts channels 8"),
        ({"model_channels": "64", "concat_padding_mask": 1}, "model_channels is '64'.*concat_padding_mask is 1"),
        ({"rope_t_extrapolation_ratio": 0}, "rope_t_extrapolation_ratio is 0"),
    ],
)
def test_configs_of_other_networks(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        LAYOUTS["original"].from_config(case("diffusers_parity").config["model_kwargs"] | changes, "x")


def test_variants() -> None:
    guess, describe = families.FAMILIES["cosmos"].runs.guess_variant, families.FAMILIES["cosmos"].describe
    path = pathlib.Path("model.pt")
    assert guess(path, {"width": 2048}) == "2b"
    assert guess(path, {"width": 5120}) == "14b"
    assert guess(path, {"width": 2048, "action_dim": 84}) == "2b_action"
    assert describe({"action_dim": 84}) == "Cosmos-Predict2 Video2World with actions"
    assert guess(path, {"width": 2048, "views": 7}) == "2b_multiview"
    assert describe({"condition_mask": False}) == "Cosmos-Predict2 Text2Image"


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("model-720p-16fps.pt", "2b"),
        ("model-480p-16fps.pt", "2b_480p"),
        ("model-720p-10fps.pt", "2b_10fps"),
        ("model-480p-10fps.pt", "2b_480p_10fps"),
        ("model-480p-16fps-natten.pt", "2b_480p"),
        ("model-1480p.pt", "2b"),
    ],
)
def test_the_name_of_a_checkpoint_has_its_size_and_rate(name: str, variant: str) -> None:
    guess = families.FAMILIES["cosmos"].runs.guess_variant
    assert guess(pathlib.Path("/480p-tests/x", name), {"width": 2048}) == variant
    assert guess(pathlib.Path("/x", name), {"width": 5120}) == variant.replace("2b", "14b")


@pytest.mark.parametrize(
    ("name", "size", "latents", "frames", "rate"),
    [
        ("model-480p-16fps.pt", (768, 432), (54, 96), 24, 16.0),
        ("model-720p-10fps.pt", (1280, 704), (88, 160), 16, 10.0),
        ("model-480p-10fps.pt", (768, 432), (54, 96), 16, 10.0),
    ],
)
def test_checkpoints_of_other_sizes_and_rates(
    tmp_path: pathlib.Path, name: str, size: tuple[int, int], latents: tuple[int, int], frames: int, rate: float
) -> None:
    """Imported weights are sampled as they were trained, and the recipe of the same name trains them further."""
    tensors = {key: torch.from_numpy(value) for key, value in adapted.cosmos_original().weights.items()}
    torch.save(tensors, tmp_path / name)
    conversion.main(["import", str(tmp_path / name), "--output", str(tmp_path / "out")])
    variant = runs.import_record(tmp_path / "out")["variant"]
    recipe = run_config.load_recipe(f"configs/cosmos_video2world.py:{variant}")
    for config in (run_config.load(tmp_path / "out"), recipe):
        assert tuple(config.data.encoding.image_size) == size
        assert tuple(config.data.clip.latent_size) == latents
        assert config.data.clip.window_frames == frames
        assert systems.create(config).fps == rate
    assert recipe.init_from == f"checkpoints/cosmos-predict2-{variant.replace('_', '-')}"


def test_a_checkpoint_of_several_cameras(tmp_path: pathlib.Path) -> None:
    """Names as in the published file: the table of cameras in, buffers of every number of cameras out, and back."""
    sizes: dict[str, Any] = {"channels": 16, "width": 64, "num_heads": 2, "num_layers": 1, "text_dim": 1024}
    sizes |= {"text_width": 1024, "modulation_rank": 16, "views": 7, "view_dim": 7}
    cfg = CosmosConfig(**sizes, view_frames=8, rope_scale=(8 / 24, 3.0, 3.0), fps_modulation=True)
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: CosmosTransformer(cfg, rngs=nnx.Rngs(0)))
    places = engine.plan(engine.parameter_shapes(nnx.state(model, nnx.Param)), LAYOUTS["original"].rules(cfg))
    rng = np.random.default_rng(0)
    tensors = {
        name: torch.from_numpy(rng.standard_normal(place.source_shape).astype(np.float32))
        for name, place in places.items()
    }
    assert tensors["net.view_embeddings.weight"].shape == (7, 7)
    # 16 latents, two masks and the camera, of 2 x 2 pixels each.
    assert tensors["net.x_embedder.proj.1.weight"].shape == (64, 25 * 4)
    buffers = {
        f"net.pos_embedder_options.n_cameras_{count}.{name}": torch.zeros(3)
        for count in range(1, 8)
        for name in ("seq", "dim_spatial_range", "dim_temporal_range")
    }
    path = tmp_path / "model-720p-10fps-7views-29frames.pt"
    torch.save(tensors | buffers, path)
    conversion.main(["import", str(path), "--output", str(tmp_path / "in")])
    config = run_config.load(tmp_path / "in")
    found = systems.create(config).model_config
    assert {name: getattr(found, name) for name in sizes} == sizes
    assert (found.view_frames, found.rope_scale, found.fps_modulation) == (8, (8 / 24, 3.0, 3.0), True)
    assert runs.import_record(tmp_path / "in")["variant"] == "2b_multiview"
    assert (config.sample.rollout.lowest, config.sample.rollout.highest) == (0.01, 200.0)
    conversion.main(["export", str(tmp_path / "in"), "--output", str(tmp_path / "out.pt")])
    back = torch.load(tmp_path / "out.pt")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    written = LAYOUTS["original"].to_config(cfg)
    assert [written[key] for key in ("n_cameras_emb", "view_condition_dim", "state_t")] == [7, 7, 8]
    assert LAYOUTS["original"].from_config(written, "x")["view_frames"] == 8
    assert "state_t" not in LAYOUTS["original"].to_config(CosmosConfig())
    published = CosmosConfig(views=7, rope_scale=(8 / 24, 3.0, 3.0), fps_modulation=True)
    assert LAYOUTS["original"].limits(published) == []
    del tensors["net.view_embeddings.weight"]
    torch.save(tensors, path)
    with pytest.raises(errors.UserError, match=r"missing net\.view_embeddings\.weight"):
        plan(path)


def test_adapters_of_a_run_are_merged_at_export(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A run with the adapters of the golden case is exported as the original's merged weights."""
    golden = case("lora")
    source = download(tmp_path / "lora", golden.path / "weights.safetensors", golden.config["model_kwargs"])
    import_weights(source, tmp_path / "merged", lora_alpha=golden.config["lora_alpha"])
    config = run_config.load(tmp_path / "merged")
    targets = r"blocks/(self|cross)_attention/(query|key|value|out)", r"blocks/mlp/(up|down)"
    with config.unlocked():
        config.model.lora = {
            "targets": targets,
            "rank": golden.config["lora_rank"],
            "alpha": golden.config["lora_alpha"],
        }
        config.optimizer.trainable = lora.TRAINABLE
    released = tmp_path / "released"
    released.mkdir()
    run_config.save(config.lock(), released)
    params = importing.abstract_params(systems.create(run_config.load(released)))
    shapes = {path: leaf.shape for path, leaf in params.items()}
    rules = lora_keys.rules(LAYOUTS["original"].rules(parity.config_of(golden)), shapes)
    tensors = {f"net.{name}": value for name, value in golden.weights.items() if not cosmos.IGNORED.fullmatch(name)}
    places = engine.plan(shapes, rules)
    arrays = {
        path: engine.read_block(
            engine.places_of(places, path),
            engine.whole(shape),
            np.dtype(np.float32),
            lambda name, box: tensors[name][box],
        )
        for path, shape in shapes.items()
    }
    safetensors.numpy.save_file(arrays, released / runs.WEIGHTS)
    exporting.export_weights(released, tmp_path / "out")
    exporting.export_weights(tmp_path / "merged", tmp_path / "expected")
    mine, expected = (
        safetensors.numpy.load_file(tmp_path / name / sources.WEIGHTS_NAME) for name in ("out", "expected")
    )
    assert mine.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(mine[name], value, rtol=1e-5, atol=1e-6)
