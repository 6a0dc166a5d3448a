"""Import: the files written, golden outputs on any mesh, and errors."""

import json
import pathlib
import shutil
import types
from typing import Any

import converted
import golden_cases
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from parity_checks import hunyuan as parity

from conversion import __main__ as conversion
from conversion import families, importing, resolving, sources, store, worldplay
from jworld import systems
from jworld.models.hunyuan.transformer import FrameInputs, HunyuanTransformer
from jworld.parallel import axes
from jworld.parallel import mesh as mesh_lib
from jworld.systems import initial_weights, runs, training_job
from jworld.training import optimizers, weights
from jworld.training import state as train_state
from jworld.utils import config as run_config
from jworld.utils import errors

ACTION, BASE = "transformer_ar_train", "base"
FORWARD = jax.jit(HunyuanTransformer.__call__, static_argnames="chunk_frames")
OPTIMIZER = optimizers.make_optimizer(optimizers.OptimizerConfig(name="adamw"), steps=1)


def import_case(source: pathlib.Path, output: pathlib.Path, **options: Any) -> dict[str, Any]:
    settings = (*converted.SETTINGS, *options.pop("settings", ()))
    return importing.import_weights(source, output, importing.Options(settings=settings, **options))[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Make download/ and imported/ of an action model, base-download/ and base/ of a plain one of the same sizes."""
    folder = tmp_path_factory.mktemp("import")
    import_case(converted.download(folder / "download", ACTION), folder / "imported")
    import_case(converted.download(folder / "base-download", BASE), folder / "base")
    return folder


def plan(source: pathlib.Path, **options: Any) -> importing.Plan:
    with sources.open_source(source) as opened:
        return importing.make_plan(opened, importing.Options(**options))


def abstract(directory: pathlib.Path, mesh: jax.sharding.Mesh | None = None) -> tuple[nnx.GraphDef, nnx.State]:
    """Return the abstract model of a folder, with the shardings of training on that mesh or on one device."""
    mesh = mesh or mesh_lib.make_mesh(devices=jax.devices()[:1])
    system = systems.create(run_config.load(directory))
    with jax.set_mesh(mesh), nnx.logical_axis_rules(axes.RULES):
        graphdef, params = nnx.split(nnx.eval_shape(lambda: system.init(nnx.Rngs(0))))
        shardings = nnx.get_named_sharding(params, mesh)
    return graphdef, jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings)


def golden_error(model: HunyuanTransformer, case: golden_cases.GoldenCase) -> float:
    inputs = case.inputs
    video = jnp.asarray(parity.channels_last(inputs["hidden_states"]))
    action = jnp.asarray(inputs["action"]).reshape(video.shape[:2])
    time = jnp.asarray(inputs["timestep"]).reshape(video.shape[:2])
    frames = FrameInputs(video, time, action, jnp.asarray(inputs["viewmats"]), jnp.asarray(inputs["Ks"]))
    text = parity.text_inputs(inputs, "text_states", "encoder_attention_mask")
    output = FORWARD(
        model, frames, text, jnp.asarray(inputs["timestep_txt"]), chunk_frames=case.config["chunk_latents"]
    )
    return golden_cases.relative_error(output, parity.channels_last(case.outputs["output"]))


# Files written


@pytest.mark.parametrize("data, fsdp", [(1, 1), (4, 2)])
def test_imported_weights_give_the_golden_output_on_any_mesh(folder: pathlib.Path, data: int, fsdp: int) -> None:
    mesh = mesh_lib.make_mesh(data=data, fsdp=fsdp, devices=jax.devices()[: data * fsdp])
    graphdef, params = abstract(folder / "imported", mesh)
    loaded, step = runs.load_params(folder / "imported", params)
    assert step is None
    assert jax.tree.map(lambda x: x.sharding, loaded) == jax.tree.map(lambda x: x.sharding, params)
    kernel = loaded["blocks"]["image"]["query"]["kernel"][...]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 64 // fsdp, 64)
    model = nnx.merge(graphdef, jax.device_put(loaded, jax.devices()[0]))
    assert golden_error(model, converted.case(ACTION)) < golden_cases.DEFAULT_TOLERANCE


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("data, fsdp", [(1, 1), (4, 2)])
def test_weights_are_read_in_pieces(
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    data: int,
    fsdp: int,
    param_dtype: str,
) -> None:
    """Every bit is that of whole arrays."""
    monkeypatch.setattr(store, "_CHUNK", 1000)
    import_case(folder / "download", tmp_path / "imported")
    mesh = mesh_lib.make_mesh(data=data, fsdp=fsdp, devices=jax.devices()[: data * fsdp])
    _, params = abstract(folder / "imported", mesh)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, param_dtype, sharding=x.sharding), params)
    whole, _ = runs.load_params(folder / "imported", params)
    monkeypatch.setattr(weights, "_PIECE", 1000)
    written = []
    original = weights._with_rows
    monkeypatch.setattr(weights, "_with_rows", lambda *given: written.append(given[2]) or original(*given))
    with jax.set_mesh(mesh):
        pieces, _ = runs.load_params(tmp_path / "imported", params)
    assert max(written) > 1
    for one, other in zip(jax.tree.leaves(pieces), jax.tree.leaves(whole), strict=True):
        assert one.sharding == other.sharding
        np.testing.assert_array_equal(one, other)


def test_the_record_describes_the_import(folder: pathlib.Path) -> None:
    record = runs.import_record(folder / "imported")
    tensors = converted.case(ACTION).weights
    assert record["tensors"] == len(tensors)
    assert record["parameters"] == sum(tensor.size for tensor in tensors.values())
    assert (record["family"], record["layout"], record["variant"]) == ("worldplay", "original", "ar")
    assert (record["dtype"], record["ignored"], record["initial"]) == ("float32", [], [])
    assert not list(folder.glob(".*"))


def test_the_config_has_the_sizes_of_the_weights_and_else_the_published_values(folder: pathlib.Path) -> None:
    config = run_config.load(folder / "imported")
    constructor = converted.case(ACTION).config["constructor"]
    assert config.model.width == constructor["hidden_size"]
    assert tuple(config.model.rope_dims) == tuple(constructor["rope_dim_list"])
    assert config.model.actions
    assert config.data.clip.window_frames == 24
    assert dict(config.mesh) == {"data": 1, "fsdp": -1, "sequence": 1}
    assert not run_config.load(folder / "base").model.actions


def test_stored_dtype_is_that_of_the_file_or_the_option(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    source = converted.download(tmp_path / "download", BASE)
    tensors = converted.case(BASE).weights
    converted.rewrite(source, converted.as_bfloat16(tensors))
    narrow = import_case(source, tmp_path / "narrow")
    assert narrow["dtype"] == "bfloat16"
    # A cast during the import or before gives the same bits, so the same checksum.
    cast = import_case(folder / "base-download", tmp_path / "cast", dtype="bfloat16")
    assert cast["checksum"] == narrow["checksum"]
    _, params = abstract(tmp_path / "narrow")
    loaded, _ = runs.load_params(tmp_path / "narrow", params)
    value = loaded["patch_out"]["bias"][...]
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, tensors["final_layer.linear.bias"].astype(ml_dtypes.bfloat16))


def test_damage_after_the_import_is_noticed(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(folder / "base", tmp_path / "base")
    largest = max((tmp_path / "base").rglob("d/*"), key=lambda path: path.stat().st_size)
    damaged = bytearray(largest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    largest.write_bytes(damaged)
    _, params = abstract(tmp_path / "base")
    with pytest.raises(errors.UserError, match=r"are damaged .*Digest mismatch.*: import them again"):
        runs.load_params(tmp_path / "base", params)


# Hyper-parameters


def test_contradictions_name_both_places_and_values(tmp_path: pathlib.Path) -> None:
    source = converted.download(tmp_path, ACTION)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"heads_num": 8}))
    with pytest.raises(errors.UserError) as error:
        plan(source, settings=["model.width=128", "model.rope_theta=100"], recipe="configs/ar_mem.py:8b")
    message = str(error.value)
    assert f"model.num_heads is 4 by the tensors' shapes, but 8 by {source}/config.json" in message
    width = "the weights determine model.width, which is 64 by the tensors' shapes"
    assert f"{width}, but --config.model.width is 128" in message
    assert "model.num_layers is 2 by the tensors' shapes, but 54 by --config=configs/ar_mem.py:8b" in message
    theta = f"the weights determine model.rope_theta, which is 256.0 by {source}/config.json"
    assert f"{theta}, but --config.model.rope_theta is 100" in message


def test_a_size_that_no_source_gives_is_an_error(tmp_path: pathlib.Path) -> None:
    source = converted.download(tmp_path, ACTION, config=False)
    with pytest.raises(errors.UserError, match=r"no source gives rope_dims .* give --config\.model\.rope_dims=\.\.\."):
        plan(source)
    planned = plan(source, settings=["model.rope_dims=4,6,6"])
    assert planned.published == ["rope_theta"]
    assert planned.config.model.rope_dims == (4, 6, 6)


def test_a_recipe_gives_all_other_values(tmp_path: pathlib.Path) -> None:
    source = converted.download(tmp_path, ACTION)
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "import runpy\n"
        "def get_config():\n"
        "    config = runpy.run_path('configs/ar_mem.py')['get_config']('8b').copy_and_resolve_references()\n"
        "    config.unlock()\n"
        "    config.model = {'width': 64, 'num_layers': 2, 'remat': 'full'}\n"
        "    config.optimizer.learning_rate = 3e-4\n"
        "    config.mesh.sequence = 2\n"
        "    return config\n"
    )
    settings = ["optimizer.ema_decay=0.5", "model.remat=none"]
    config = plan(source, recipe=str(recipe), settings=settings, variant="distilled").config
    assert (config.optimizer.learning_rate, config.optimizer.ema_decay) == (3e-4, 0.5)
    assert (config.mesh.sequence, config.model.remat, config.model.num_heads) == (2, "none", 4)
    assert (config.sample.rollout.num_steps, config.sample.rollout.guidance) == (4, 1.0)


def test_options_replace_values_of_the_recipe(tmp_path: pathlib.Path) -> None:
    source = converted.download(tmp_path, ACTION, config=False)
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "import runpy\n"
        "def get_config():\n"
        "    config = runpy.run_path('configs/ar_mem.py')['get_config']('8b').copy_and_resolve_references()\n"
        "    config.unlock()\n"
        "    config.model = {'width': 64, 'num_layers': 2, 'rope_dims': (2, 7, 7), 'rope_theta': 10.0}\n"
        "    return config\n"
    )
    options = ["--config.model.rope_dims=4,6,6", "--config.model.rope_theta=256", "--config.sample.rollout.num_steps=3"]
    conversion.main(["import", str(source), f"--config={recipe}", "--output", str(tmp_path / "out"), *options])
    config = run_config.load(tmp_path / "out")
    assert (tuple(config.model.rope_dims), config.model.rope_theta) == ((4, 6, 6), 256.0)
    assert config.sample.rollout.num_steps == 3


@pytest.mark.parametrize(
    "setting, part",
    [
        ("model.width", "expected KEY=VALUE"),
        ("model.rope_theta=fast", "rope_theta"),
        ("model.widht=64", "config.model.widht: unknown key"),
        ("model.remat=sometimes", "remat is 'sometimes'"),
        ("model.rope_dims=4,6", "rope_dims: found (4, 6), expected a list of 3"),
        ("optimiser.name=muon", "did you mean 'optimizer'?"),
        ("optimizer.learning_rat=1", "did you mean 'learning_rate'?"),
        ("steps=many", "config.steps: expected an integer, got 'many' (it is 200000)"),
        ("system=matrices", "config.system is 'matrices'"),
    ],
)
def test_settings_that_are_none(tmp_path: pathlib.Path, setting: str, part: str) -> None:
    with pytest.raises(errors.UserError) as error:
        plan(converted.download(tmp_path, ACTION, config="rope_dims" not in setting), settings=[setting])
    assert part in str(error.value)


@pytest.mark.parametrize(
    "text, value",
    [
        ("16,56,56", (16, 56, 56)),
        ("[16, 56, 56]", (16, 56, 56)),
        ("2.5", 2.5),
        ("True", True),
        ("false", False),
        ("None", None),
        ("none", "none"),
        ("bfloat16", "bfloat16"),
        ("a=b", "a=b"),
    ],
)
def test_values_of_settings(text: str, value: Any) -> None:
    assert resolving.parse_settings([f"config.a.b={text}"]) == {"a.b": value}


@pytest.mark.parametrize(
    "path, actions, variant",
    [
        ("HY-WorldPlay/ar_model/diffusion_pytorch_model.safetensors", True, "ar"),
        ("HY-WorldPlay/ar_rl_model", True, "rl"),
        ("HY-WorldPlay/ar_distilled_action_model", True, "distilled"),
        ("HY-WorldPlay/bidirectional_model", True, "bidirectional"),
        ("HunyuanVideo-1.5/transformer/480p_i2v", False, "base"),
        ("somewhere/weights.safetensors", True, "ar"),
    ],
)
def test_variant_by_name(path: str, actions: bool, variant: str) -> None:
    assert worldplay.guess_variant(pathlib.Path(path), {"actions": actions}) == variant


def test_variants_are_settings_of_the_system(tmp_path: pathlib.Path) -> None:
    source = converted.download(tmp_path, ACTION)
    sampled = {name: systems.create(plan(source, variant=name).config).sample for name in worldplay.VARIANTS}
    assert sampled["bidirectional"].mode == "bidirectional"
    assert {name for name, sample in sampled.items() if sample.mode == "autoregressive"} == {"ar", "rl", "distilled"}
    assert (sampled["distilled"].num_steps, sampled["distilled"].guidance, sampled["distilled"].shift) == (4, 1.0, 5.0)
    assert (sampled["rl"].num_steps, sampled["rl"].guidance, sampled["rl"].shift) == (50, 6.0, 5.0)


@pytest.mark.parametrize(
    "folder, tensors, parameters",
    [("ar_distilled_action_model", 1905, 8_557_933_856), ("transformer/480p_i2v", 1793, 8_326_608_160)],
)
def test_published_models_need_no_setting(tmp_path: pathlib.Path, folder: str, tensors: int, parameters: int) -> None:
    """Headers of the 17 GB files suffice; other sizes are published values, which the recipe confirms."""
    directory = tmp_path / folder
    directory.mkdir(parents=True)
    actions = folder == "ar_distilled_action_model"
    size, _ = converted.published(directory / sources.WEIGHTS_NAME, layers=54, actions=actions)
    assert size == 2 * parameters
    planned = plan(directory, recipe="configs/ar_mem.py:8b" if actions else None)
    assert sum(map(len, planned.places.values())) == tensors
    assert planned.size == size
    assert planned.variant == ("distilled" if actions else "base")
    assert planned.published == ([] if actions else ["rope_dims", "rope_theta"])


# Tensors that do not fit


def spoiled() -> dict[str, np.ndarray]:
    """Return tensors of which one is missing, one unexpected and one misshapen."""
    tensors = dict(converted.case(ACTION).weights)
    del tensors["double_blocks.1.img_attn_prope_proj.weight"]
    tensors["guidance_in.mlp.0.weight"] = np.zeros((4, 4), np.float32)
    tensors["txt_in.c_embedder.linear_2.bias"] = np.zeros(63, np.float32)
    return tensors


def test_all_misfits_are_listed_before_any_data_is_read(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = converted.rewrite(converted.download(tmp_path / "download", ACTION), spoiled())
    monkeypatch.setattr(sources.Source, "read", lambda *_: pytest.fail("data was read"))
    with pytest.raises(errors.UserError) as error:
        import_case(source, tmp_path / "imported")
    for part in (
        "3 tensors do not fit",
        "missing double_blocks.1.img_attn_prope_proj.weight (for blocks/camera_out/kernel)",
        "unexpected guidance_in.mlp.0.weight",
        "misshapen txt_in.c_embedder.linear_2.bias: [63], for text/refiner/pooled_out/bias [64]",
    ):
        assert part in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["download"]


def test_all_values_that_are_not_finite_are_listed_and_nothing_stays(tmp_path: pathlib.Path) -> None:
    tensors = {name: tensor.copy() for name, tensor in converted.case(ACTION).weights.items()}
    tensors["double_blocks.1.txt_mlp.fc1.weight"][3, 4] = np.nan
    tensors["img_in.proj.bias"][0] = np.inf
    source = converted.rewrite(converted.download(tmp_path / "download", ACTION), tensors)
    with pytest.raises(errors.UserError) as error:
        import_case(source, tmp_path / "imported")
    assert "non-finite double_blocks.1.txt_mlp.fc1.weight; non-finite img_in.proj.bias" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["download"]


def test_deliberate_exceptions(tmp_path: pathlib.Path) -> None:
    tensors = spoiled()
    del tensors["txt_in.c_embedder.linear_2.bias"], tensors["cond_type_embedding.weight"]
    source = converted.rewrite(converted.download(tmp_path / "download", ACTION), tensors)
    allow = [r"guidance_in\..*", r".*prope_proj\.weight", "cond_type_embedding.weight", r"txt_in\..*linear_2\.bias"]
    with pytest.raises(errors.UserError, match=r"1 tensors do not fit the model: missing cond_type_embedding\.weight"):
        import_case(source, tmp_path / "imported", allow=[*allow[:2], allow[3]])
    record = import_case(source, tmp_path / "imported", allow=allow)
    assert record["ignored"] == ["guidance_in.mlp.0.weight"]
    missing = [
        "cond_type_embedding.weight",
        "double_blocks.1.img_attn_prope_proj.weight",
        "txt_in.c_embedder.linear_2.bias",
    ]
    assert sorted(record["initial"]) == missing
    _, params = abstract(tmp_path / "imported")
    loaded, _ = runs.load_params(tmp_path / "imported", params)
    # The model initializes its camera outputs to zero; the layer in the file keeps its values.
    kernel = loaded["blocks"]["camera_out"]["kernel"][...]
    np.testing.assert_array_equal(kernel[0], tensors["double_blocks.0.img_attn_prope_proj.weight"].T)
    np.testing.assert_array_equal(kernel[1], 0)


def test_patterns_are_checked(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.UserError, match=r"--allow '\(': is not a regular expression"):
        plan(converted.download(tmp_path, ACTION), allow=["("])


def test_layers_of_different_dtypes_need_a_choice(tmp_path: pathlib.Path) -> None:
    tensors = dict(converted.case(BASE).weights)
    name = "double_blocks.0.img_mlp.fc1.bias"
    tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)
    source = converted.rewrite(converted.download(tmp_path, BASE), tensors)
    with pytest.raises(errors.UserError, match="mixed blocks/image/mlp/up/bias: its tensors are bfloat16, float32"):
        plan(source)
    assert {str(leaf.dtype) for leaf in plan(source, dtype="float32").params.values()} == {"float32"}


def test_other_families_are_not_looked_for(tmp_path: pathlib.Path) -> None:
    assert set(families.FAMILIES) >= {"worldplay"}
    source = converted.rewrite(tmp_path, {"some.weight": np.zeros(3, np.float32)})
    with pytest.raises(errors.UserError, match="not weights of a known network"):
        plan(source, family="worldplay")


# Output folders


def test_only_an_earlier_import_is_replaced(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    output = tmp_path / "imported"
    shutil.copytree(folder / "base", output)
    with pytest.raises(errors.UserError, match="exists already: choose another folder, or give --overwrite"):
        import_case(folder / "base-download", output)
    (output / "notes.txt").write_text("old")
    options = importing.Options(settings=converted.SETTINGS)
    importing.import_weights(folder / "base-download", output, options, overwrite=True)
    assert sorted(path.name for path in output.iterdir()) == ["config.json", "import.json", "weights"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(errors.UserError, match="contains other files"):
        importing.import_weights(folder / "base-download", tmp_path / "mine", options, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_full_disk_is_reported_before_writing(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(errors.UserError, match=r"does not fit on the disk: it needs 1\.9 MB and 0\.\d MB are free"):
        import_case(folder / "base-download", tmp_path / "new" / "imported")
    assert not list(tmp_path.iterdir())


# Training from it


def start(directory: pathlib.Path, **model: Any) -> tuple[train_state.TrainState, str]:
    """Return the initial training state from the weights in `directory`, and the printed text."""
    config = run_config.load(directory).copy_and_resolve_references()
    with config.unlocked():
        config.init_from = str(directory)
        config.model.update(model)
    system = systems.create(config)
    job = types.SimpleNamespace(
        config=config,
        system=system,
        optimizer=OPTIMIZER,
        mesh=mesh_lib.make_mesh(devices=jax.devices()[:1]),
        trainable=train_state.path_filter(OPTIMIZER.config.trainable),
    )
    printed: list[str] = []
    manager = types.SimpleNamespace(latest_step=lambda: None)
    _, state, _ = training_job.start(job, None, manager, message=printed.append)
    return state, "\n".join(printed)


def flat(params: nnx.State) -> dict[str, np.ndarray]:
    return {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(params)}


def test_training_starts_from_all_imported_weights(folder: pathlib.Path) -> None:
    state, printed = start(folder / "imported")
    params, tensors = flat(state.params), converted.case(ACTION).weights
    np.testing.assert_array_equal(params["patch_out/bias"], tensors["final_layer.linear.bias"])
    np.testing.assert_array_equal(
        params["blocks/camera_out/kernel"][1], tensors["double_blocks.1.img_attn_prope_proj.weight"].T
    )
    assert "starting from the weights in" in printed
    assert "new" not in printed


def test_training_of_actions_starts_from_a_base_without_them(folder: pathlib.Path) -> None:
    """Parameters that the base lacks are initialized without effect, as in the reference."""
    state, printed = start(folder / "base", actions=True)
    params, tensors = flat(state.params), converted.case(BASE).weights
    new = ["action/hidden/bias", "action/hidden/kernel", "action/output/bias", "action/output/kernel"]
    new += ["blocks/camera_out/bias", "blocks/camera_out/kernel"]
    assert f"not in those weights, so new: {', '.join(new)}" in printed
    for name in new[2:]:
        assert not params[name].any()
    assert params["action/hidden/kernel"].std() > 0
    kernel = params["blocks/text/query/kernel"]
    for layer in range(len(kernel)):
        np.testing.assert_array_equal(kernel[layer], tensors[f"double_blocks.{layer}.txt_attn_q.weight"].T)


@pytest.mark.parametrize(
    "name, other, part",
    [
        ("imported", "base", "has parameters that this one lacks: action/hidden/bias, action/hidden/kernel"),
        ("base", "deeper", "blocks/image/key/bias of the model in {} has the shape [2, 64], this one has [3, 64]"),
    ],
)
def test_training_refuses_weights_of_another_model(
    folder: pathlib.Path, tmp_path: pathlib.Path, name: str, other: str, part: str
) -> None:
    deeper = run_config.load(folder / "imported").copy_and_resolve_references()
    with deeper.unlocked():
        deeper.model.num_layers = 3
    (tmp_path / "deeper").mkdir()
    run_config.save(deeper, tmp_path / "deeper")
    _, params = abstract((tmp_path if other == "deeper" else folder) / other)
    initial = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
    with pytest.raises(errors.UserError) as error:
        initial_weights.load_initial(folder / name, initial)
    assert part.replace("{}", str(folder / name)) in str(error.value)
