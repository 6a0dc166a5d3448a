"""The option --quantize of generate, play and plan: videos close to those of full precision, meshes, and mistakes."""

import json
import pathlib
from typing import Any

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
import video_runs
from flax import nnx

from jworld import generate
from jworld.data.recording import episodes
from jworld.models.layers import quantized
from jworld.parallel import mesh as mesh_lib
from jworld.play import __main__ as play
from jworld.systems import key_logs, runs
from jworld.utils import config as run_config

STARTER = commands.ROOT / "assets" / "starter"
#: Least PSNR of decoded videos to full precision, in dB. Videos of two seeds have about 10, and on starter weights 22.
BOUNDS = {"int8": 30.0, "fp8": 20.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("quantize")


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    error = np.mean(np.square(found.astype(float) - expected.astype(float)))
    return float(10 * np.log10(255**2 / error))


def weight_bytes(model: nnx.Module) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "cosmos" else pytest.mark.slow) for name in video_runs.RUNS]
)
def test_generate(name: str, folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[runs.Run] = []
    own = runs.load
    monkeypatch.setattr(runs, "load", lambda *a, **k: (opened.append(own(*a, **k)), opened[-1])[1])
    videos = {}
    for kind in (None, *quantized.KINDS):
        out = tmp_path / f"{kind}.mp4"
        generate.main(video_runs.arguments(name, folder, out, *(() if kind is None else ("--quantize", kind))))
        videos[kind] = episodes.read_video(out)
        assert json.loads(out.with_suffix(".json").read_text())["quantize"] == kind
    found = {kind: psnr(videos[kind], videos[None]) for kind in quantized.KINDS}
    print(name, found)
    assert all(bound < found[kind] < 80 for kind, bound in BOUNDS.items())
    full, int8, fp8 = (weight_bytes(run.model) for run in opened)
    assert int8 == fp8 < 0.75 * full


@pytest.mark.slow
@pytest.mark.parametrize("kind, least", [("int8", 38.0), ("fp8", 30.0)])
def test_starter_weights(kind: str, least: float, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Trained weights, an image unlike those of training, 29 compressed frames: 40.8 dB were measured for int8."""
    common = ["--checkpoint", str(STARTER), "--image", str(video_runs.image(folder)), "--prompt", "a red room"]
    videos = []
    for extra in ([], ["--quantize", kind]):
        out = tmp_path / f"{len(videos)}.mp4"
        generate.main([*common, "--pose", "w-3, w+right-4", "--steps", "8", "--out", str(out), *extra])
        videos.append(episodes.read_video(out))
    assert psnr(videos[1], videos[0]) > least


def generated(name: str, folder: pathlib.Path, sizes: dict[str, int]) -> tuple[runs.Run, np.ndarray]:
    """Generate with int8 weights on a mesh of these sizes."""
    directory = video_runs.make(name, folder)
    count = int(np.prod(list(sizes.values())))
    mesh = mesh_lib.make_mesh(**sizes, devices=jax.devices()[:count])
    run = runs.load(directory, mesh=mesh, quantize="int8")
    steering: dict[str, Any] = {"worldplay": {"pose": "w-3"}, "stream": {"actions": "D*2"}}.get(name, {})
    image = None if name == "clip" else video_runs.image(folder)
    return run, run.generate(image=image, prompt="a red room", **steering)


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("worldplay", {"data": 1, "fsdp": 4, "sequence": 2}),
        pytest.param("cosmos", {"data": 1, "fsdp": 2, "sequence": 1}, marks=pytest.mark.slow),
        pytest.param("stream", {"data": 1, "fsdp": 2, "sequence": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_mesh_makes_the_same_video(name: str, sizes: dict[str, int], folder: pathlib.Path) -> None:
    """Quantized weights stay sharded as those in full precision are; scales are small, and sharded by output only."""
    _, expected = generated(name, folder, {"data": 1, "fsdp": 1, "sequence": 1})
    run, found = generated(name, folder, sizes)
    # Products are summed in another order: a pixel may be rounded to its neighbor.
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    parts = sizes["fsdp"] * sizes["sequence"]
    flat = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(run.model, nnx.Param))}
    leaves = {path: leaf.get_value() for path, leaf in flat.items() if path.startswith("blocks/")}
    kernels = {path: leaf for path, leaf in leaves.items() if path.endswith("/kernel")}
    assert len(kernels) > 5
    for path, kernel in kernels.items():
        assert kernel.qvalue.dtype == jnp.int8, path
        shard = kernel.qvalue.sharding.shard_shape(kernel.qvalue.shape)
        assert np.prod(shard) == kernel.qvalue.size // parts, path
        by_output = kernel.qvalue.shape[2] // shard[2]
        assert np.prod(kernel.scale.sharding.shard_shape(kernel.scale.shape)) == kernel.scale.size // by_output, path


def test_programs_are_compiled_for_quantized_weights_while_they_are_read(
    folder: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The rollout compiles no denoising steps: those for the descriptions of the weights are found again."""
    jax.clear_caches()
    # In this thread alone: that of the weights and of the rollout, not that of the programs compiled ahead.
    with jax.log_compiles():
        generate.main(video_runs.arguments("cosmos", folder, tmp_path / "out.mp4", "--quantize", "int8"))
    compiled = [text.split()[1] for text in caplog.messages if text.startswith("Compiling ")]
    assert "jit(quantized)" in compiled
    assert "jit(_steps)" not in compiled


@pytest.mark.slow
def test_play(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    common = ["--checkpoint", str(video_runs.make("worldplay", folder)), "--image", str(video_runs.image(folder))]
    found = play.make_parser().parse([*common, "--quantize", "int8", "--recordings", str(tmp_path), "--prompt=a room"])
    world = play.load(found, rich.console.Console(quiet=True)).world
    full = runs.load(video_runs.make("worldplay", folder))
    assert weight_bytes(world.run.model) < 0.75 * weight_bytes(full.model)
    # By which key logs know their weights.
    assert world.identity != key_logs.identity(full.model, full.encoders)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights are read."""

    def read(*arguments: Any, **options: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(runs, "load_params", read)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("wrong", ["value", "package"])
def test_mistakes_are_found_before_weights_are_read(
    wrong: str,
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if wrong == "package":
        monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda name: None)
    value = "int4" if wrong == "value" else "int8"
    with pytest.raises(SystemExit) as ended:
        generate.main(video_runs.arguments("cosmos", folder, tmp_path / "out.mp4", "--quantize", value))
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    expected = {
        "value": "--quantize: invalid choice: 'int4' (choose from 'int8', 'fp8')",
        "package": "qwix is not installed, which --quantize needs: pip install 'jworld[quantize]'",
    }
    assert expected[wrong] in line
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_weights")
def test_a_model_that_answers_in_text_has_no_such_option(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    run_config.save(run_config.load_recipe(str(commands.ROOT / "configs" / "theworld.py")), run)
    with pytest.raises(SystemExit) as ended:
        generate.main(["--checkpoint", str(run), "--prompt", "what is left?", "--quantize", "int8"])
    assert ended.value.code == 2
    assert "--quantize int8: the model answers in text: leave it out" in capsys.readouterr().err
