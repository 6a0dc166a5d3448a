"""Batches of a training run, built from its config."""

from collections.abc import Mapping

import grain
import jax
import ml_collections

from jworld.data import pipeline, records
from jworld.parallel import mesh as mesh_lib

Spec = Mapping[str, records.ArraySpec]


def batches(
    config: ml_collections.ConfigDict,
    source: pipeline.Source | pipeline.OrderedSource,
    transform: grain.transforms.RandomMap,
    spec: Spec,
    *,
    split: str,
    content: str = "",
) -> pipeline.BatchIterator:
    """Return batches by `config.seed`, `config.global_batch` and `config.data`; only split "train" is shuffled.

    `content` is the identity of the data set, which checkpoints remember; see `records.content`.
    """
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
        content=content,
    )
