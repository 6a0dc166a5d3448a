"""Export: the bytes that were imported, in both layouts and in several files; the EMA weights of a run."""

import json
import pathlib
import shutil
from typing import Any

import converted
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
from flax import nnx

from conversion import engine, exporting, families, folders, importing, inspecting, sources, verifying
from jworld import systems
from jworld.parallel import mesh as mesh_lib
from jworld.systems import runs
from jworld.training import checkpoints, optimizers, weights
from jworld.training import state as train_state
from jworld.utils import config as run_config
from jworld.utils import errors

ACTION, DIFFUSERS = "transformer_ar_train", "hunyuan_diffusers"
OPTIONS = importing.Options(settings=converted.SETTINGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Make downloads and imported folders: action/ in original keys and bfloat16, diffusers/ in those of diffusers."""
    folder = tmp_path_factory.mktemp("export")
    source = converted.download(folder / "action-download", ACTION)
    converted.rewrite(source, converted.as_bfloat16(converted.case(ACTION).weights))
    importing.import_weights(source, folder / "action", OPTIONS)
    importing.import_weights(
        converted.download(folder / "diffusers-download", DIFFUSERS), folder / "diffusers", OPTIONS
    )
    return folder


@pytest.mark.parametrize("name", ["action", "diffusers"])
def test_import_and_export_is_bit_exact(folder: pathlib.Path, tmp_path: pathlib.Path, name: str) -> None:
    summary = exporting.export_weights(folder / name, tmp_path / "out")
    assert converted.contents(tmp_path / "out") == converted.contents(folder / f"{name}-download")
    assert [file.name for file in summary.files] == [sources.WEIGHTS_NAME, "config.json"]
    # The exported config.json is complete and consistent: importing needs nothing else.
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    original = json.loads((folder / f"{name}-download" / "config.json").read_text())
    assert {key: config[key] for key in original.keys() & config.keys() if key not in ("attn_mode", "target_size")} == {
        key: original[key] for key in original.keys() & config.keys() if key not in ("attn_mode", "target_size")
    }
    with sources.open_source(tmp_path / "out") as source:
        again = importing.make_plan(source, importing.Options())
    assert again.published == []
    assert not list(tmp_path.glob(".*"))


def test_the_safetensors_library_reads_it(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    exporting.export_weights(folder / "diffusers", tmp_path / "weights.safetensors")
    expected = converted.case(DIFFUSERS).weights
    with safetensors.safe_open(tmp_path / "weights.safetensors", framework="numpy") as file:
        assert set(file.keys()) == set(expected)
        assert file.metadata() == {"format": "pt"}
        for name in file.keys():  # noqa: SIM118
            np.testing.assert_array_equal(file.get_tensor(name), expected[name])


def test_other_layout_and_back(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    exporting.export_weights(folder / "diffusers", tmp_path / "original", layout="original")
    record = importing.import_weights(tmp_path / "original", tmp_path / "imported", OPTIONS)[1]
    assert record["layout"] == "original"
    assert record["checksum"] == runs.import_record(folder / "diffusers")["checksum"]
    exporting.export_weights(tmp_path / "imported", tmp_path / "back", layout="diffusers")
    assert converted.contents(tmp_path / "back") == converted.contents(folder / "diffusers-download")


def test_large_models_are_several_files_with_an_index(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    limit = 200_000
    summary = exporting.export_weights(folder / "diffusers", tmp_path / "out", max_file=limit)
    total = sum(tensor.nbytes for tensor in converted.case(DIFFUSERS).weights.values())
    assert summary.size == total
    *shards, index, config = summary.files
    assert (index.name, config.name) == ("diffusion_pytorch_model.safetensors.index.json", "config.json")
    assert shards[0].name == f"diffusion_pytorch_model-00001-of-{len(shards):05}.safetensors"
    assert total / limit <= len(shards) <= 2 * total / limit
    assert all(shard.stat().st_size < limit + 30_000 for shard in shards)
    content = json.loads(index.read_text())
    assert content["metadata"]["total_size"] == total
    assert set(content["weight_map"].values()) == {shard.name for shard in shards}
    assert converted.contents(tmp_path / "out") == converted.contents(folder / "diffusers-download")
    assert verifying.verify(folder / "diffusers", tmp_path / "out").tensors == summary.tensors


@pytest.mark.parametrize(
    "weights, output, layout",
    [("diffusers", "named.safetensors", None), ("diffusers", "folder", "original"), ("action", "folder", None)],
)
def test_a_named_file_and_programs_that_read_one_file_get_one(
    folder: pathlib.Path, tmp_path: pathlib.Path, weights: str, output: str, layout: str | None
) -> None:
    summary = exporting.export_weights(folder / weights, tmp_path / output, layout=layout, max_file=1000)
    assert [file.suffix for file in summary.files] == [".safetensors", ".json"]
    assert summary.files[0].stat().st_size > summary.size > 1000
    assert verifying.verify(folder / weights, summary.files[0].parent).tensors == summary.tensors


def test_layouts_of_programs_that_read_one_file() -> None:
    found = {(name, key) for name, each in families.FAMILIES.items() for key, x in each.layouts.items() if x.one_file}
    original = {(name, "original") for name, each in families.FAMILIES.items() if "original" in each.layouts}
    assert found == original | {("theworld", "transformers4")}


def test_files_are_filled_in_order() -> None:
    def tensor(size: int) -> exporting.Tensor:
        place = engine.TensorPlacement("x", None, engine.IDENTITY, (size,), 0)
        return exporting.Tensor(str(size), place, np.dtype(np.uint8))

    parts = exporting.split([tensor(size) for size in (4, 3, 3, 20, 1)], max_file=10)
    assert [[part.size for part in group] for group in parts] == [[4, 3, 3], [20], [1]]


def test_other_dtype(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    exporting.export_weights(folder / "diffusers", tmp_path / "out", dtype="bfloat16")
    expected = converted.as_bfloat16(converted.case(DIFFUSERS).weights)
    assert converted.contents(tmp_path / "out") == {
        name: ("bfloat16", tensor.shape, tensor.tobytes()) for name, tensor in expected.items()
    }


# Exported weights


@pytest.fixture(scope="module")
def run(folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Make a run of the model in action/ that trains only the image stream, with EMA: steps 1 and 2."""
    run = tmp_path_factory.mktemp("run")
    config = run_config.load(folder / "action").copy_and_resolve_references()
    with config.unlocked():
        config.optimizer.update({"name": "adamw", "trainable": "blocks/image/.*", "ema_decay": 0.5})
    run_config.save(config, run)
    optimizer = optimizers.make_optimizer(
        run_config.section(optimizers.OptimizerConfig, config.optimizer, "optimizer"), steps=2
    )
    _, abstract, _ = train_state.abstract_state(
        systems.create(config).init,
        trainable=train_state.path_filter(config.optimizer.trainable),
        optimizer=optimizer,
        mesh=mesh_lib.make_mesh(devices=jax.devices()[:1]),
    )
    with checkpoints.Checkpoints(run / runs.CHECKPOINTS) as manager:
        for step in (1, 2):
            numbers = iter(range(1, 1000))
            state = jax.tree.map(lambda x, n=numbers: np.full(x.shape, next(n), x.dtype), abstract)
            state = jax.tree.map(jax.numpy.asarray, state.replace(step=np.int32(step)))
            ema = jax.tree.map(lambda x, step=step: x + 1000 * step, state.params)
            manager.save(state.replace(ema=ema), {})
    return run


@pytest.mark.parametrize("step, added", [(None, 2000), (1, 1000)])
def test_ema_weights_of_a_run(run: pathlib.Path, tmp_path: pathlib.Path, step: int | None, added: int) -> None:
    exporting.export_weights(run, tmp_path / "out", step=step)
    found = converted.contents(tmp_path / "out")
    assert found.keys() == converted.case(ACTION).weights.keys()
    values = {name: np.frombuffer(data, np.float32) for name, (_, _, data) in found.items()}
    assert all(len(set(value)) == 1 for value in values.values())
    for name, value in values.items():
        has_ema = "double_blocks" in name and ".img_" in name and "prope" not in name
        assert (value[0] > added) == has_ema, name
    # The text stream is frozen, and the same in every layer.
    assert values["double_blocks.0.txt_attn_k.bias"][0] == values["double_blocks.1.txt_attn_k.bias"][0]


def test_a_run_is_inspected_without_reading_it(run: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders.Folder, "read", lambda *_: pytest.fail("data was read"))
    rows = inspecting.inspect(run, step=1)
    tensors = converted.case(ACTION).weights
    assert rows["kind"] == "jworld, step 1 of a run"
    assert rows["parameters"] == f"{sum(tensor.size for tensor in tensors.values()):,}"
    assert (rows["layers"], rows["width"], rows["actions"]) == ("2", "64", "True")
    assert rows["dtypes"].startswith("float32 (")


def test_released_weights(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    released = tmp_path / "released"
    released.mkdir()
    shutil.copy(folder / "action" / "config.json", released)
    with nnx.use_eager_sharding(False):
        system = systems.create(run_config.load(released))
        params = nnx.state(nnx.eval_shape(lambda: system.init(nnx.Rngs(0))), nnx.Param)
    params, _ = runs.load_params(folder / "action", params)
    weights.save(params, released / runs.WEIGHTS, ml_dtypes.bfloat16)
    exporting.export_weights(released, tmp_path / "out")
    assert converted.contents(tmp_path / "out") == converted.contents(folder / "action-download")


# Errors


@pytest.mark.parametrize(
    "name, options, part",
    [
        ("action", {"layout": "diffusers"}, "its action and camera parameters have no place there"),
        ("action", {"layout": "wan"}, "--layout is 'wan', expected one of original, diffusers"),
    ],
)
def test_layouts_that_cannot_hold_the_model(
    folder: pathlib.Path, tmp_path: pathlib.Path, name: str, options: dict[str, Any], part: str
) -> None:
    with pytest.raises(errors.UserError, match=part):
        exporting.export_weights(folder / name, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_steps_that_do_not_exist(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.UserError, match="has no step 7, expected one of 1, 2: choose another --step"):
        exporting.export_weights(run, tmp_path / "out", step=7)


def test_only_an_earlier_export_is_replaced(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    exporting.export_weights(folder / "diffusers", tmp_path / "out")
    file = tmp_path / "file" / "weights.safetensors"
    exporting.export_weights(folder / "diffusers", file)
    for output in (tmp_path / "out", file):
        with pytest.raises(errors.UserError, match="exists already"):
            exporting.export_weights(folder / "diffusers", output)
        exporting.export_weights(folder / "diffusers", output, overwrite=True, dtype="bfloat16")
        assert {dtype for dtype, _, _ in converted.contents(output).values()} == {"bfloat16"}
    assert sorted(path.name for path in file.parent.iterdir()) == ["config.json", "weights.safetensors"]
    with pytest.raises(errors.UserError, match="contains other files"):
        exporting.export_weights(folder / "diffusers", folder / "action", overwrite=True)
    with pytest.raises(errors.UserError, match="is in the folder of the weights"):
        exporting.export_weights(folder / "action", folder / "action" / "weights.safetensors", overwrite=True)


def test_one_config_for_one_model(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Files of one model share a config.json; that of another model is never replaced."""
    exporting.export_weights(folder / "diffusers", tmp_path / "iter_1.safetensors")
    exporting.export_weights(folder / "diffusers", tmp_path / "iter_2.safetensors")
    before = (tmp_path / "config.json").read_text()
    message = r"config\.json, which belongs to iter_1\.safetensors, has other values than the config\.json of other\.pt"
    for overwrite in (False, True):
        with pytest.raises(errors.UserError, match=message):
            exporting.export_weights(folder / "action", tmp_path / "other.pt", overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "iter_1.safetensors",
        "iter_2.safetensors",
    ]
    with pytest.raises(errors.UserError, match=r"iter_2\.safetensors, has other values than .* iter_1\.safetensors"):
        exporting.export_weights(folder / "action", tmp_path / "iter_1.safetensors", overwrite=True)
    assert (tmp_path / "config.json").read_text() == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text("{}")
    with pytest.raises(errors.UserError, match=r"foreign/config\.json has other values than the config\.json of x\.pt"):
        exporting.export_weights(folder / "action", foreign / "x.pt", overwrite=True)


def test_values_that_do_not_fit_the_dtype_are_named(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    tensors = dict(converted.case(DIFFUSERS).weights)
    tensors["proj_out.bias"] = np.full_like(tensors["proj_out.bias"], 1e6)
    source = converted.rewrite(converted.download(tmp_path / "download", DIFFUSERS), tensors)
    importing.import_weights(source, tmp_path / "imported", OPTIONS)
    with pytest.raises(errors.UserError, match=r"1 tensors do not fit the model: non-finite proj_out\.bias"):
        exporting.export_weights(tmp_path / "imported", tmp_path / "out", dtype="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["download", "imported"]


def test_damaged_weights_are_not_exported(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(folder / "action", tmp_path / "action")
    largest = max((tmp_path / "action").rglob("d/*"), key=lambda path: path.stat().st_size)
    damaged = bytearray(largest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    largest.write_bytes(damaged)
    with pytest.raises(errors.UserError, match=r"are damaged or missing .*Digest mismatch"):
        exporting.export_weights(tmp_path / "action", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["action"]


# Verify


def test_verify_names_every_tensor_that_differs(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    tensors = {name: tensor.copy() for name, tensor in converted.case(DIFFUSERS).weights.items()}
    source = converted.download(tmp_path, DIFFUSERS)
    record = runs.import_record(folder / "diffusers")
    summary = verifying.verify(folder / "diffusers", source)
    assert (summary.tensors, summary.parameters) == (record["tensors"], record["parameters"])
    assert summary.checksum == record["checksum"]
    for name in ("proj_out.bias", "transformer_blocks.1.attn.to_k.weight"):
        tensors[name].flat[-1] = np.nextafter(tensors[name].flat[-1], np.inf, dtype=np.float32)
    converted.rewrite(source, tensors)
    with pytest.raises(errors.UserError) as error:
        verifying.verify(folder / "diffusers", source)
    assert f"2 of {len(tensors)} tensors of {source}" in str(error.value)
    assert "proj_out.bias" in str(error.value)
    assert "transformer_blocks.1.attn.to_k.weight" in str(error.value)


def test_verify_refuses_another_model(folder: pathlib.Path) -> None:
    with pytest.raises(errors.UserError, match="tensors do not fit the model: "):
        verifying.verify(folder / "action", folder / "diffusers-download")
