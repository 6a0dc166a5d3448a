"""Where the batches of a run come from: what the commands ask of a data set.

A system offers its data set as `system.data`; the commands know no more of it than `TrainingData`.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import grain
import jax
import ml_collections

from jworld.data import pipeline, records
from jworld.parallel import mesh as mesh_lib

Spec = Mapping[str, records.ArraySpec]


class TrainingData(Protocol):
    """The data set that a config names."""

    def prepare(self) -> None:
        """Make the set where it is absent and the config says how."""

    def batches(self, split: str) -> pipeline.BatchIterator:
        """This process's batches; `UserError` where the set is absent, damaged or made for another model."""

    def keep(self, directory: pathlib.Path) -> None:
        """Leave in `directory`, that of a run, what sampling needs of the set."""

    def check_kept(self, directory: pathlib.Path) -> None:
        """`UserError` where this set does not fit a model whose run kept `directory`."""

    def find_problem(self, directory: pathlib.Path) -> str:
        """Why `encoders` could not open what was kept, in one sentence; "" where it can."""

    def encoders(self, directory: pathlib.Path, *, given: Any, mesh: jax.sharding.Mesh) -> Any:
        """Open what was kept: an object with `fps`, the frame rate, and what else the system samples with.

        `given` are the encoders that the user names (`encoders.EncoderOverrides`), `mesh` that of the model.
        """


def batches(
    config: ml_collections.ConfigDict,
    source: pipeline.Source | pipeline.OrderedSource,
    transform: grain.transforms.RandomMap,
    spec: Spec,
    *,
    split: str,
) -> pipeline.BatchIterator:
    """Batches as `config.seed`, `config.global_batch` and `config.data` want them; held-out ones in order."""
    several = jax.process_count() > 1
    index, count = mesh_lib.batch_part(mesh_lib.make_mesh(**config.mesh)) if several else (0, 1)
    return pipeline.make_dataset(
        source,
        transform,
        spec,
        global_batch=config.global_batch,
        seed=config.seed,
        process_index=index,
        process_count=count,
        shuffle=split == "train",
        num_threads=config.data.threads,
        prefetch=config.data.prefetch,
    )
