"""`python -m jworld.train` with a toy system: a two-layer network on records of noise."""

import os
import pathlib
import sys
import time
from typing import Any

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

TESTS = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "training"), str(TESTS.parent)]

import toy  # noqa: E402

from jworld import systems, train  # noqa: E402
from jworld.data import records, training_data  # noqa: E402
from jworld.systems import base, training_job  # noqa: E402
from jworld.utils import errors  # noqa: E402

FRAMES, RECORDS = 8, 64


class Noise:
    """Records whose values depend on their index only."""

    def __len__(self) -> int:
        return RECORDS - (os.environ.get("TOY_OTHER_DATA_IN") == str(jax.process_index()))

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(index)
        return {"index": np.int32(index), "x": rng.normal(size=(FRAMES, toy.WIDTH)).astype(np.float32)}


class Example(grain.transforms.RandomMap):
    def __init__(self, wait: float) -> None:
        self.wait = wait

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        time.sleep(self.wait)
        record = element["record"]
        return record | {"y": record["x"][::-1] + rng.normal(size=record["x"].shape).astype(np.float32)}


class Data:
    """The part of `systems.base.TrainingData` that training uses."""

    def __init__(self, config: ml_collections.ConfigDict, spec: dict[str, records.ArraySpec]) -> None:
        self.config, self.spec = config, spec
        self.file = pathlib.Path(config.data.records) / "made"

    def prepare(self) -> None:
        if not self.file.exists():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            time.sleep(0.5)
            self.file.write_text(str(jax.process_index()))
            print("prepared")

    def batches(self, split: str) -> Any:
        assert self.file.read_text() == "0"
        if split == "val" and os.environ.get("TOY_VAL_FAILS_IN") == str(jax.process_index()):
            raise OSError("the disk of this host is gone")
        wait = float(os.environ.get("TOY_SECONDS_PER_BATCH", "0"))
        transform = Example(wait / self.config.global_batch)
        return training_data.batches(self.config, Noise(), transform, self.spec, split=split)

    def keep(self, directory: pathlib.Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)

    def find_problem(self, directory: pathlib.Path) -> str:
        return "a toy"


class System(base.BaseSystem[toy.Toy, None]):
    sample_name = "nothing"

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        super().__init__(config)
        self.data = Data(config, self.batch_spec(config.global_batch))

    def init(self, rngs: nnx.Rngs) -> toy.Toy:
        return toy.Toy(toy.WIDTH, rngs=rngs)

    def batch_spec(self, global_batch: int) -> dict[str, records.ArraySpec]:
        entry = records.ArraySpec((global_batch, FRAMES, toy.WIDTH), np.float32, ("batch", "frames", None))
        return {"x": entry, "y": entry}

    def loss(self, model: Any, batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        # As if this process took longer to compile: this line runs when the step is traced.
        time.sleep(float(os.environ.get("TOY_COMPILE_SECONDS", "0")) * (jax.process_index() == 1))
        noise = jax.random.normal(key, batch["x"].shape)
        return jnp.mean((model(batch["x"] + 0.1 * noise) - batch["y"]) ** 2), {}

    def step_flops(self, global_batch: int, sizes: Any = None) -> float:
        return 1.0

    def step_tokens(self, global_batch: int) -> int:
        return global_batch * FRAMES


if __name__ == "__main__":
    systems.REGISTRY["toy"] = System
    # A user error in one process only, such as a full disk on its host.
    if "--mistake" in sys.argv:
        sys.argv.remove("--mistake")

        def fail(*_: Any, **__: Any) -> None:
            raise errors.UserError("this host is out of order")

        training_job.check_encoders = fail
    train.main()
