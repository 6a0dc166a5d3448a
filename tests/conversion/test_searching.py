"""Weights in folders as users have them: runs of other trainers, pipelines, wrappers, and names that decide a model."""

import json
import pathlib
import shutil
from typing import Any

import adapted
import numpy as np
import pytest
import safetensors.numpy
import torch

from conversion import __main__ as conversion
from conversion import cogvideox_config, importing, inspecting, schedulers, searching, selecting, sources, worldplay
from jworld.systems import runs
from jworld.utils import config as run_config
from jworld.utils import errors

LATEST = "iter_000000003.pt"


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    """Make the folder of a training run of Cosmos-Predict2 with two checkpoints."""
    download = adapted.cosmos_original()
    checkpoints = tmp_path / "run" / "checkpoints"
    for folder in ("model", "optim", "scheduler", "trainer"):
        (checkpoints / folder).mkdir(parents=True)
    for number, name in ((0, "iter_000000002.pt"), (1, LATEST)):
        tensors = {key: torch.from_numpy(value + np.float32(number)) for key, value in download.weights.items()}
        torch.save(tensors, checkpoints / "model" / name)
        for folder in ("optim", "scheduler", "trainer"):
            torch.save({"iteration": torch.tensor(number)}, checkpoints / folder / name)
    (checkpoints / "latest_checkpoint.txt").write_text(f"{LATEST}\n")
    return tmp_path / "run"


@pytest.mark.parametrize("inner", ["", "checkpoints", "checkpoints/model"])
def test_the_newest_checkpoint_of_a_run(run: pathlib.Path, tmp_path: pathlib.Path, inner: str) -> None:
    folder = run / inner
    assert inspecting.inspect(folder)["files"] == f"1: {LATEST}"
    conversion.main(["import", str(folder), "--output", str(tmp_path / "out")])
    assert runs.import_record(tmp_path / "out")["files"] == [LATEST]
    conversion.main(["verify", str(tmp_path / "out"), str(folder)])


@pytest.mark.parametrize(
    "content, part",
    [
        ("iter_000000009.pt\n", "names 'iter_000000009.pt', but .* does not exist"),
        ("../../secret.pt", "holds '../../secret.pt', expected the name of one file"),
        ("", "holds '', expected the name of one file"),
        ("..", "expected the name of one file"),
    ],
)
def test_a_wrong_latest_checkpoint(run: pathlib.Path, content: str, part: str) -> None:
    (run / "checkpoints" / "latest_checkpoint.txt").write_text(content)
    with pytest.raises(errors.UserError, match=part):
        sources.open_source(run)


def test_several_checkpoints_without_the_name_of_one(run: pathlib.Path) -> None:
    (run / "checkpoints" / "latest_checkpoint.txt").unlink()
    with pytest.raises(errors.UserError, match=r"has 2 files of weights .*; give one of them"):
        sources.open_source(run / "checkpoints" / "model")
    with pytest.raises(errors.UserError, match=r"sub-folders .*'checkpoints/model'.*: give one of them"):
        sources.open_source(run)


def test_the_state_of_a_trainer_is_not_weights(tmp_path: pathlib.Path) -> None:
    """A checkpoint of stages 2 and 3 of The Matrix: the trainer's state next to transformer/."""
    download = adapted.matrix_control()
    download.write(tmp_path / "checkpoint-200" / "transformer")
    for name in ("scheduler.bin", "optimizer.bin", "optimizer_1.bin", "scaler.pt", "rng_state_0.pth"):
        torch.save({"x": torch.zeros(1)}, tmp_path / "checkpoint-200" / name)
    found = searching.find_weights(tmp_path / "checkpoint-200")
    assert found == tmp_path / "checkpoint-200" / "transformer" / sources.WEIGHTS_NAME
    with pytest.raises(errors.UserError, match="sub-folders 'checkpoint-200/transformer': give one of them"):
        searching.find_weights(tmp_path)


@pytest.mark.parametrize(
    "wrapper", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}", "model.diffusion_model.{}", "diffusion_model.{}"]
)
def test_names_of_wrappers(tmp_path: pathlib.Path, wrapper: str) -> None:
    download = adapted.matrix()
    tensors = {wrapper.format(name): value for name, value in download.weights.items()}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    with sources.open_source(tmp_path / "x.safetensors") as opened:
        assert opened.tensors.keys() == download.weights.keys()
        name = "proj_out.weight"
        np.testing.assert_array_equal(opened.read(name), download.weights[name])


def test_wrappers_inside_of_names() -> None:
    names = ["blocks.0._checkpoint_wrapped_module.mlp.weight", "_fsdp_wrapped_module.head.weight"]
    assert list(sources.unwrapped(names)) == ["blocks.0.mlp.weight", "head.weight"]
    both = ["module.a", "a"]
    assert list(sources.unwrapped(both)) == both
    same = ["_orig_mod.a", "a"]
    assert list(sources.unwrapped(same)) == same


# Names of folders


@pytest.mark.parametrize(
    "path, stage",
    [
        ("/x/stage4_tests/models/stage2", "stage2"),
        ("/x/stage4_tests/models/stage2/transformer", "stage2"),
        ("/x/stage4_tests/models/stage2/transformer/diffusion_pytorch_model.safetensors", "stage2"),
        ("/x/stage3/weights", "stage2"),
        ("/x/stage2/weights/stage3.safetensors", "stage3"),
        ("/x/Matrix-Stage3-final", "stage3"),
        ("/x/stage_4", "stage4"),
        ("/x/stage10", "stage2"),
        ("/x/backstage3", "stage2"),
        ("/x/stage1_to_stage3", "stage3"),
    ],
)
def test_only_the_own_name_decides_the_stage(path: str, stage: str) -> None:
    assert cogvideox_config.guess_variant(pathlib.Path(path), {"control_dim": 768}) == stage


def test_a_name_with_two_stages() -> None:
    path = pathlib.Path("/x/stage2_to_stage3")
    with pytest.raises(errors.UserError, match="its name has stage2 and stage3, expected one stage: choose one with"):
        cogvideox_config.guess_variant(path, {"control_dim": 768})
    assert cogvideox_config.guess_variant(path, {"control_dim": None}) == "stage1"


@pytest.mark.parametrize(
    "path, variant",
    [
        ("/x/ar_rl_model_tests/ar_model", "ar"),
        ("/x/bidirectional_model/ar_rl_model", "rl"),
        ("/x/ar_model/ar_distilled_action_model/diffusion_pytorch_model.safetensors", "distilled"),
        ("/x/ar_rl_model/mine", "ar"),
    ],
)
def test_only_the_own_name_decides_the_model_of_worldplay(path: str, variant: str) -> None:
    assert worldplay.guess_variant(pathlib.Path(path), {"actions": True}) == variant


# Schedulers


def imported(tmp_path: pathlib.Path, download: adapted.Download, values: dict[str, Any], **options: Any) -> Any:
    """Import a pipeline with this scheduler; -> the config of the run."""
    pipeline = tmp_path / options.pop("name", "pipeline")
    download.write(pipeline / "transformer")
    (pipeline / "scheduler").mkdir()
    (pipeline / "scheduler" / "scheduler_config.json").write_text(json.dumps(values))
    importing.import_weights(pipeline, tmp_path / "out", importing.Options(**options))
    return run_config.load(tmp_path / "out")


def test_the_scheduler_of_cogvideox(tmp_path: pathlib.Path) -> None:
    values = {
        "_class_name": "CogVideoXDPMScheduler",
        "snr_shift_scale": 1.0,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "rescale_betas_zero_snr": False,
        "timestep_spacing": "linspace",
        "prediction_type": "v_prediction",
    }
    config = imported(tmp_path, adapted.matrix(), values)
    assert (config.loss.snr_shift, config.loss.beta_end, config.loss.beta_schedule) == (1.0, 0.02, "linear")
    assert config.loss.zero_terminal_snr is False
    assert (config.sample.rollout.spacing, config.sample.rollout.solver) == ("linspace", "dpm")


def test_a_stream_keeps_its_own_sampler(tmp_path: pathlib.Path) -> None:
    values = {"_class_name": "CogVideoXDDIMScheduler", "snr_shift_scale": 2.0, "timestep_spacing": "linspace"}
    config = imported(tmp_path, adapted.matrix_control(), values, name="stage3")
    assert config.loss.snr_shift == 2.0
    assert (config.sample.rollout.spacing, config.sample.rollout.solver) == ("trailing", "dpm")


def test_the_user_decides_against_a_scheduler(tmp_path: pathlib.Path) -> None:
    config = imported(tmp_path, adapted.matrix(), {"snr_shift_scale": 1.0}, settings=("loss.snr_shift=5.0",))
    assert config.loss.snr_shift == 5.0


def test_the_user_decides_between_a_scheduler_and_a_recipe(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = tmp_path / "pipeline"
    adapted.cosmos_diffusers().write(pipeline / "transformer")
    (pipeline / "scheduler").mkdir()
    (pipeline / "scheduler" / "scheduler_config.json").write_text(json.dumps({"sigma_max": 200.0}))
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "import runpy\n"
        "def get_config():\n"
        "    config = runpy.run_path('configs/cosmos_video2world.py')['get_config']('2b').unlock()\n"
        "    config.model = {}\n"
        "    config.sample.rollout.highest = 80.0\n"
        "    return config\n"
    )
    command = ["import", str(pipeline), f"--config={recipe}", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        conversion.main(command)
    assert "sample.rollout.highest is 80.0 by --config" in capsys.readouterr().err
    conversion.main([*command, "--config.sample.rollout.highest=100"])
    assert run_config.load(tmp_path / "out").sample.rollout.highest == 100.0


def test_a_recipe_and_a_scheduler_must_agree() -> None:
    recipe = "configs/matrix_lora.py:2b"
    found = {"loss.snr_shift": 1.0}
    config = run_config.load_recipe(recipe).unlock()
    with pytest.raises(errors.UserError, match=r"loss\.snr_shift is 3\.0 by --config=.*:2b, but 1\.0 by x\.json"):
        schedulers.apply(config, found, "x.json", recipe)
    config = run_config.load_recipe(recipe).unlock()
    assert schedulers.apply(config, found, "x.json", None).loss.snr_shift == 1.0


@pytest.mark.parametrize(
    "values, part",
    [
        ({"prediction_type": "epsilon"}, "prediction_type is 'epsilon', only 'v_prediction' is supported"),
        ({"num_train_timesteps": 500}, "num_train_timesteps is 500, only 1000 is supported"),
        ({"snr_shift_scale": "high"}, "snr_shift_scale is 'high', which is not a value of the right kind"),
    ],
)
def test_other_schedulers_are_refused(tmp_path: pathlib.Path, values: dict[str, Any], part: str) -> None:
    with pytest.raises(errors.UserError, match=rf"scheduler_config\.json: {part}"):
        imported(tmp_path, adapted.matrix(), values)
    assert not (tmp_path / "out").exists()


def test_the_scheduler_of_cosmos(tmp_path: pathlib.Path) -> None:
    config = imported(tmp_path, adapted.cosmos_diffusers(), {"sigma_min": 0.01, "sigma_max": 200.0})
    assert (config.sample.rollout.lowest, config.sample.rollout.highest) == (0.01, 200.0)


def test_the_scheduler_of_hunyuan_video(tmp_path: pathlib.Path) -> None:
    assert imported(tmp_path, adapted.hunyuan_diffusers(), {"shift": 9.0}).sample.rollout.shift == 9.0


@pytest.mark.parametrize("variant, frames", [("stage3", 4), ("stage4", 2), ("stage4_live", 1)])
def test_window_sizes_of_the_published_stages(tmp_path: pathlib.Path, variant: str, frames: int) -> None:
    source = adapted.matrix_control().write(tmp_path / "source")
    importing.import_weights(source, tmp_path / "out", importing.Options(variant=variant))
    assert run_config.load(tmp_path / "out").sample.rollout.window_frames == frames


@pytest.mark.parametrize("variant, frames", [("2b", 2), ("2b_live", 1)])
def test_window_sizes_of_the_recipes(variant: str, frames: int) -> None:
    config = run_config.load_recipe(f"configs/matrix_scm.py:{variant}")
    assert config.sample.rollout.window_frames == frames
    assert config.data.clip.window_frames == 1 + 4 * frames


# Files that are not what their names say


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_pointers_of_adapters(tmp_path: pathlib.Path, name: str) -> None:
    source = adapted.matrix().write(tmp_path / "source")
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    pair = {f"proj_out.lora_{x}.weight": np.zeros((1, 1), np.float32) for x in "AB"}
    safetensors.numpy.save_file(pair, adapters / "adapter_model.safetensors")
    (adapters / "adapter_config.json").write_text("{}")
    (adapters / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    selection = selecting.Selection(adapters=str(adapters))
    with pytest.raises(errors.UserError, match=f"{name} is a Git LFS pointer and not the file itself"):
        importing.import_weights(source, tmp_path / "out", importing.Options(selection=selection))
    shutil.rmtree(adapters)
