"""A further system, defined in this file alone, passes through the commands; mypy refuses one that lacks a member."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import PIL.Image
import pytest
import rich.console
from flax import nnx

from jworld import doctor, evaluate, generate, systems, train
from jworld.data import pipeline, records, training_data
from jworld.encoders.choices import EncoderOverrides
from jworld.evaluation import results
from jworld.systems import base, options

ROOT = pathlib.Path(__file__).parents[2]
SIZE = (16, 16, 3)


def get_config() -> ml_collections.ConfigDict:
    """Return the recipe: this file is also the one that --config names."""
    config = ml_collections.ConfigDict()
    config.system, config.seed, config.steps, config.global_batch, config.init_from = "fading", 0, 2, 8, ""
    config.mesh = {"data": 1, "fsdp": -1, "sequence": 1}
    config.data = {"threads": 1, "prefetch": 1, "records": ""}
    config.optimizer = {"name": "adamw", "trainable": ".*", "learning_rate": 0.01, "schedule": "constant"}
    config.checkpoint = {"interval": 2, "max_to_keep": 1, "step": -1}
    config.log = {"interval": 1, "watchdog_minutes": 0.0}
    config.model, config.loss, config.sample = {}, {}, {}
    return config.lock()


class Network(nnx.Module):
    """Network from a frame [B, H, W, 3] to the next one."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.pixel = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, frame: jax.Array) -> jax.Array:
        return self.pixel(frame)


class Videos:
    """Videos of two frames, the second of which is darker; also what sampling needs of the data."""

    fps = 4.0

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> records.Record:
        first = np.random.default_rng(index).uniform(size=SIZE).astype(np.float32)
        return {"index": np.asarray(index, np.int32), "frames": np.stack([first, first / 2])}


class Unchanged(grain.transforms.RandomMap):
    """Transform that takes a record as an example."""

    def random_map(self, element: Mapping[str, Any], rng: np.random.Generator) -> records.Record:
        record: records.Record = element["record"]
        return record


class Data:
    """The data set; see `base.TrainingData`."""

    def __init__(self, config: ml_collections.ConfigDict, spec: dict[str, records.ArraySpec]) -> None:
        self.config, self.spec = config, spec

    def prepare(self) -> None: ...

    def batches(self, split: str) -> pipeline.BatchIterator:
        return training_data.batches(self.config, Videos(), Unchanged(), self.spec, split=split)

    def keep(self, directory: pathlib.Path) -> None: ...

    def check_kept(self, directory: pathlib.Path) -> None: ...

    def find_problem(self, directory: pathlib.Path) -> str:
        return ""

    def encoders(
        self, directory: pathlib.Path, *, given: EncoderOverrides, mesh: jax.sharding.Mesh, stored: bool = False
    ) -> Videos:
        return Videos()


class Session:
    """Generation of a video; see `sessions.VideoSession`."""

    def __init__(self, model: Network) -> None:
        self.model = model

    def reset(
        self, first_frame: np.ndarray | None, prompt: str, *, seed: int = 0, negative_prompt: str | None = None
    ) -> None:
        assert first_frame is not None
        self.frame = jnp.asarray(first_frame, jnp.float32) / 255

    def step(self, action: Any) -> np.ndarray:
        self.frame = self.model(self.frame[None])[0]
        return np.asarray(jnp.clip(self.frame[None] * 255, 0, 255), np.uint8)


class Fading(options.VideoOptions, base.BaseSystem[Network, Videos]):
    """The system; see `base.VideoSystem`."""

    model_config = None
    sample_name = "fading"
    steering = "--pose"
    needs_image = True

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        super().__init__(config)
        self.data = Data(config, self.batch_spec(config.global_batch))

    def init(self, rngs: nnx.Rngs) -> Network:
        return Network(rngs)

    def batch_spec(self, global_batch: int) -> dict[str, records.ArraySpec]:
        return {"frames": records.ArraySpec((global_batch, 2, *SIZE), np.float32, ("batch", *[None] * 4))}

    def loss(self, model: Network, batch: base.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        first, second = batch["frames"][:, 0], batch["frames"][:, 1]
        return jnp.mean((model(first) - second) ** 2), {}

    def step_tokens(self, global_batch: int) -> int:
        return global_batch

    def step_flops(self, global_batch: int, sizes: Any = None) -> None:
        return None

    def make_sample(self, model: Network, encoders: Videos, config: ml_collections.ConfigDict) -> results.Comparison:
        truth = (encoders[0]["frames"] * 255).astype(np.uint8)
        session = self.session(model, encoders)
        session.reset(truth[0], "")
        chunk = results.Chunk(start=0, stop=1, action="darker")
        return results.Comparison(title="", prediction=session.step(None), truth=truth[1:], chunks=[chunk])

    def evaluate(
        self,
        model: Network,
        encoders: Videos,
        config: ml_collections.ConfigDict,
        options: results.Options,
        console: rich.console.Console,
    ) -> results.Report:
        sample = self.make_sample(model, encoders, config)
        assert sample.truth is not None
        error = float(np.abs(sample.prediction.astype(float) - sample.truth).mean())
        return results.Report(numbers={"error": error}, summary=[("error", f"{error:.1f}")], curves={"error": [error]})

    def controls(self, steering: str | None, windows: int | None, length: str | None = None) -> list[results.Action]:
        return [results.Action(control=None, name=word) for word in (steering or "darker").split()]

    def session(self, model: Network, encoders: Videos) -> Session:
        return Session(model)


def test_commands(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = f"--config={__file__}", tmp_path / "run"
    with pytest.raises(SystemExit):
        train.main([config, f"--workdir={run}"])
    assert "config.system is 'fading', expected one of worldplay" in capsys.readouterr().err

    monkeypatch.setitem(systems.REGISTRY, "fading", Fading)
    doctor.main([config])
    assert "no backend is chosen" in capsys.readouterr().out

    train.main([config, f"--workdir={run}"])
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert (run / "samples" / "fading.mp4").is_file()

    PIL.Image.fromarray(np.full(SIZE, 200, np.uint8)).save(tmp_path / "first.png")
    request = [f"--image={tmp_path / 'first.png'}", "--pose=darker darker darker", f"--out={tmp_path / 'out.mp4'}"]
    generate.main([f"--checkpoint={run}", *request])
    assert json.loads((tmp_path / "out.json").read_text())["chunks"][-1]["stop"] == 3
    assert (tmp_path / "out.mp4").is_file()

    evaluate.main([f"--checkpoint={run}"])
    assert json.loads((run / "evaluation" / "evaluation.json").read_text())["held_out_loss"] < losses[0]


REFUSED = 'expression has type "type[Fading]", target has type "SystemType['


@pytest.mark.slow
@pytest.mark.parametrize(
    "part, replacement, answer",
    [
        ("", "", "Success: no issues found"),
        ("def loss(", "def _loss(", REFUSED),
        ("global_batch: int) -> int:", "global_batch: str) -> int:", REFUSED),
        ("def controls(", "def _controls(", REFUSED),
        ("length: str | None = None) -> list", "length: str) -> list", REFUSED),
        ("def step(self, action: Any)", "def step(self)", REFUSED),
        ("def find_problem(", "def _find_problem(", REFUSED),
        ("fps = 4.0", "", "must be a subtype"),
    ],
)
def test_the_registry_takes_whole_systems_only(
    part: str, replacement: str, answer: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mypy import api

    source = pathlib.Path(__file__).read_text().replace(part, replacement, 1)
    (tmp_path / "fading.py").write_text(source + '\n\nsystems.VIDEO["fading"] = Fading\n')
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    out, _, _ = api.run([*options, str(tmp_path / "fading.py")])
    assert answer in out
