"""Import and export of The Matrix' checkpoints: the four stages, separate adapter files, published sizes."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import converted
import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from parity_checks import cogvideox as parity

from conversion import __main__ as cli
from conversion import (
    adapter_exports,
    cogvideox,
    cogvideox_config,
    engine,
    exporting,
    families,
    importing,
    inspecting,
    selecting,
    sources,
    verifying,
)
from conversion import lora as lora_keys
from jworld import systems
from jworld.models.cogvideox.config import CogVideoXConfig
from jworld.models.cogvideox.transformer import CogVideoXTransformer
from jworld.models.layers import lora
from jworld.systems import initial_weights, runs
from jworld.utils import config as run_config
from jworld.utils import errors

GOLDEN = pathlib.Path(golden_cases.__file__).parent / "golden" / "matrix"
FAMILY = families.FAMILIES["cogvideox"]
LAYOUT = FAMILY.layouts["diffusers"]
#: Options of the golden cases' class that its config.json lacks or names differently.
SETTINGS = (*converted.SETTINGS, "model.remat=none", "data.clip.latent_size=4,8", "data.clip.window_frames=5")


def case(name: str) -> golden_cases.GoldenCase:
    return golden_cases.GoldenCase(GOLDEN / name)


def download(folder: pathlib.Path, golden: golden_cases.GoldenCase) -> pathlib.Path:
    """Write the transformer of a golden case to the folder of a pipeline."""
    transformer = folder / "transformer"
    transformer.mkdir(parents=True)
    for name in ("vae", "text_encoder"):
        (folder / name).mkdir()
    (folder / "model_index.json").write_text("{}")
    (transformer / "config.json").write_text(json.dumps(golden.config["model"]))
    weights = {name: value for name, value in golden.weights.items() if not name.startswith(cogvideox.ADAPTER_PREFIX)}
    safetensors.numpy.save_file(weights, transformer / sources.WEIGHTS_NAME)
    return folder


def adapter_file(path: pathlib.Path, golden: golden_cases.GoldenCase, scale: float = 1.0) -> pathlib.Path:
    tensors = {name: value for name, value in golden.weights.items() if name.startswith(cogvideox.ADAPTER_PREFIX)}
    safetensors.numpy.save_file({name: np.float32(scale) * value for name, value in tensors.items()}, path)
    return path


def import_weights(source: pathlib.Path, output: pathlib.Path, **selection: Any) -> importing.Plan:
    chosen = importing.Options(settings=SETTINGS, selection=selecting.Selection(**selection))
    return importing.import_weights(source, output, chosen)[0]


def load(directory: pathlib.Path) -> CogVideoXTransformer:
    system = systems.create(run_config.load(directory))
    with nnx.use_eager_sharding(False):
        graphdef, params = nnx.split(nnx.eval_shape(lambda: system.init(nnx.Rngs(0))))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), params)
    return nnx.merge(graphdef, runs.load_params(directory, target)[0])


def output_error(directory: pathlib.Path, golden: golden_cases.GoldenCase, output: str) -> float:
    inputs = golden.inputs
    actual = parity.forward(
        load(directory),
        jnp.asarray(parity.channels_last(inputs["hidden_states"])),
        jnp.asarray(inputs["encoder_hidden_states"]),
        jnp.asarray(inputs["timestep"]),
        control=parity.optional(inputs, "control_emb"),
        guidance=parity.optional(inputs, "guidance_w"),
    )
    return golden_cases.relative_error(actual, parity.channels_last(golden.outputs[output]))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return download(tmp_path_factory.mktemp("base") / "pipeline", case("s1_lora"))


@pytest.mark.parametrize(
    ("name", "variant", "words"),
    [
        ("s2_transformer_forward", "stage2", "The Matrix (CogVideoX-2B with control blocks)"),
        ("s4_transformer_forward_wcond", "stage4", "The Matrix (CogVideoX-2B with control blocks)"),
    ],
)
def test_folders_of_the_stages_go_in_and_out(tmp_path: pathlib.Path, name: str, variant: str, words: str) -> None:
    golden = case(name)
    source = download(tmp_path / variant, golden)
    plan = import_weights(source, tmp_path / "mine")
    assert (plan.family.name, plan.layout.name, plan.variant) == ("cogvideox", "diffusers", variant)
    rollout = run_config.load(tmp_path / "mine").sample.rollout
    assert (rollout.mode, rollout.solver) == {"stage2": ("clip", "ddim"), "stage4": ("stream", "consistency")}[variant]
    found, expected = (dataclasses.asdict(cfg) for cfg in (plan.target.model_config, parity.config_of(golden)))
    assert {key for key in found if found[key] != expected[key]} <= {"dtype", "param_dtype", "remat"}
    assert verifying.verify(tmp_path / "mine", source).tensors == len(golden.weights)
    assert inspecting.inspect(source)["variant"] == words
    exporting.export_weights(tmp_path / "mine", tmp_path / "out")
    assert converted.contents(tmp_path / "out") == converted.contents(source)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    constructor = golden.config["model"]
    shared = {key: constructor[key] for key in config if key in constructor and not key.startswith("sample_")}
    assert shared.items() <= config.items()
    assert constructor.keys() - config.keys() <= {"control_zero_init"}
    if name == "s2_transformer_forward":
        assert output_error(tmp_path / "mine", golden, "output") < golden_cases.DEFAULT_TOLERANCE


def test_a_file_of_adapters_is_fused(base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    golden = case("s1_lora")
    adapters = adapter_file(tmp_path / "pytorch_lora_weights.safetensors", golden)
    cli.main(
        ["fuse", str(base), str(adapters), "--output", str(tmp_path / "fused")]
        + [part for setting in SETTINGS for part in ("--set", setting)]
    )
    assert output_error(tmp_path / "fused", golden, "output_fused") < golden_cases.DEFAULT_TOLERANCE
    assert verifying.verify(tmp_path / "fused", base).tensors > 0
    exporting.export_weights(tmp_path / "fused", tmp_path / "out")
    written = safetensors.numpy.load_file(tmp_path / "out" / sources.WEIGHTS_NAME)
    for name, value in golden.outputs.items():
        if name.startswith("fused."):
            np.testing.assert_allclose(written[name.removeprefix("fused.")], value, rtol=1e-5, atol=1e-6)
    # Twice the alpha equals twice the matrices.
    doubled = adapter_file(tmp_path / "doubled.safetensors", golden, scale=np.sqrt(2))
    import_weights(base, tmp_path / "a", adapters=str(adapters), lora_alpha=2 * golden.config["args"]["rank"])
    import_weights(base, tmp_path / "b", adapters=str(doubled))
    name = "blocks/attention/query/kernel"
    both = [nnx.to_flat_state(nnx.state(load(tmp_path / folder))) for folder in "ab"]
    kernels = [next(np.asarray(x[...]) for path, x in flat if "/".join(path) == name) for flat in both]
    np.testing.assert_allclose(kernels[0], kernels[1], rtol=1e-5, atol=1e-6)


def test_files_with_other_adapters(base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    stray = tmp_path / "stray.safetensors"
    pair = {f"transformer.transformer_blocks.7.attn1.to_q.lora_{x}.weight": np.zeros((4, 4)) for x in "AB"}
    safetensors.numpy.save_file(pair, stray)
    with pytest.raises(errors.UserError, match=r"2 of 2 tensors are not adapters of .*blocks\.7\.attn1"):
        import_weights(base, tmp_path / "out", adapters=str(stray))
    pair = {f"transformer.transformer_blocks.0.attn1.to_q.lora_{x}.weight": np.zeros((4, 4)) for x in "AB"}
    safetensors.numpy.save_file(pair, stray)
    with pytest.raises(errors.UserError, match=r"have shapes \[4, 4\] and \[4, 4\], expected \[rank, columns\]"):
        import_weights(base, tmp_path / "out", adapters=str(stray))
    assert not (tmp_path / "out").exists()


def test_adapters_of_a_run(base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Adapters of a run are exported as the original file, and merged in runs that start from this run."""
    golden = case("s1_lora")
    adapters = adapter_file(tmp_path / "adapters.safetensors", golden)
    import_weights(base, tmp_path / "base")
    import_weights(base, tmp_path / "fused", adapters=str(adapters))
    config = run_config.load(tmp_path / "base")
    rank = golden.config["args"]["rank"]
    with config.unlocked():
        # A factor of 2, which the file has no field for: the second matrices are halved here and doubled by the export.
        config.model.lora = {"targets": ("blocks/attention/(query|key|value|out)",), "rank": rank, "alpha": 2.0 * rank}
        config.optimizer.trainable = lora.TRAINABLE
    run = tmp_path / "run"
    run.mkdir()
    run_config.save(config.lock(), run)
    table = importing.abstract_params(systems.create(config))
    shapes = {path: leaf.shape for path, leaf in table.items()}
    rules = [
        *LAYOUT.rules(parity.config_of(golden)),
        *lora_keys.adapter_rules(LAYOUT.rules(parity.config_of(golden)), shapes, prefix=cogvideox.ADAPTER_PREFIX),
    ]
    with nnx.use_eager_sharding(False):
        abstract = nnx.state(nnx.eval_shape(lambda: systems.create(config).init(nnx.Rngs(0))), nnx.Param)
    arrays = engine.import_tensors(golden.weights, abstract, rules)
    halved = {name: x / 2 if name.endswith("/lora/b") else x for name, x in arrays.items()}
    safetensors.numpy.save_file(halved, run / runs.WEIGHTS)

    cli.main(["export", str(run), "--adapters", "--output", str(tmp_path / "out" / exporting.ADAPTERS_NAME)])
    written = safetensors.numpy.load_file(tmp_path / "out" / exporting.ADAPTERS_NAME)
    expected = safetensors.numpy.load_file(adapters)
    assert written.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(written[name], value)
    with pytest.raises(errors.UserError, match="has no adapters: leave --adapters out"):
        adapter_exports.export_adapters(tmp_path / "base", tmp_path / "none")

    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    initial = jax.tree.map(lambda x: jax.device_put(jnp.zeros(x.shape), place), nnx.state(load(tmp_path / "base")))
    params, notes = initial_weights.load_initial(run, initial)
    assert notes == ["adapters in those weights are merged"]
    fused = nnx.state(load(tmp_path / "fused"))
    for mine, other in zip(jax.tree.leaves(params), jax.tree.leaves(fused), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("cfg", "count", "variant"),
    [
        (CogVideoXConfig(), 1_693_783_872, "stage1"),
        (CogVideoXConfig(control_dim=768), 2_009_546_304, "stage2"),
        (CogVideoXConfig(control_dim=768, control_layers=(0, 30)), 2_319_553_344, "stage2"),
    ],
)
def test_published_sizes(tmp_path: pathlib.Path, cfg: CogVideoXConfig, count: int, variant: str) -> None:
    """Headers alone, with the config.json that an export writes."""
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: CogVideoXTransformer(cfg, rngs=nnx.Rngs(0)))
    places = engine.plan(engine.parameter_shapes(nnx.state(model, nnx.Param)), LAYOUT.rules(cfg))
    path = tmp_path / sources.WEIGHTS_NAME
    assert converted.headers_only(path, places) == 2 * count
    (tmp_path / "config.json").write_text(json.dumps(LAYOUT.to_config(cfg)))
    with sources.open_source(path) as opened:
        plan = importing.make_plan(opened, importing.Options())
    assert plan.variant == variant
    assert dataclasses.replace(plan.target.model_config, dtype=cfg.dtype, param_dtype=cfg.param_dtype) == cfg
    assert sum(map(len, plan.places.values())) == len(places)
    assert plan.published == []
    assert LAYOUT.limits(cfg) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_rotary_positional_embeddings": True}, "only False is supported"),
        ({"out_channels": 3}, "out_channels is 3, which contradicts channels 4"),
        ({"control_dim": 8, "control_start_layer": -1, "control_end_layer": 2}, "expected numbers of layers"),
    ],
)
def test_configs_of_other_networks(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        LAYOUT.from_config(case("s1_lora").config["model"] | changes, "x")


def test_notes_about_the_rest_of_a_folder(base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    lines = FAMILY.folder_notes(base)
    assert (
        lines
        == FAMILY.folder_notes(base / "transformer")
        == FAMILY.folder_notes(base / "transformer" / sources.WEIGHTS_NAME)
    )
    assert f"import {base / 'vae'}" in lines[0]
    assert f"t5-matrix:{base}" in lines[1]
    shutil.copytree(base / "transformer", tmp_path / "alone")
    assert FAMILY.folder_notes(tmp_path / "alone") == []
    guess = cogvideox_config.guess_variant
    assert guess(pathlib.Path("models/stage2/transformer"), {"control_dim": 768}) == "stage2"
    assert guess(pathlib.Path("models/stage2"), {"control_dim": None}) == "stage1"
    assert guess(pathlib.Path("models/stage3/transformer"), {"control_dim": 768}) == "stage3"


def test_networks_that_the_originals_cannot_run() -> None:
    with pytest.raises(errors.UserError, match=r"model\.prediction is 'clean', expected 'velocity'"):
        LAYOUT.rules(CogVideoXConfig(prediction="clean"))
