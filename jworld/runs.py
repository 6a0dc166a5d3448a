"""The folder of a run: what training leaves there, and how the other commands open it.

config.json    the resolved config
encoders/      manifest and autoencoder of the data set
checkpoints/   Orbax checkpoints, one folder per step
metrics.jsonl, tensorboard/, samples/
"""

import dataclasses
import pathlib
from typing import Any

import jax
import ml_collections
from flax import nnx

from jworld import config as run_config
from jworld import errors, systems
from jworld.data import pipeline, records, text
from jworld.data.encoders import Encoders
from jworld.parallel import mesh as mesh_lib
from jworld.training import optimizers, weights
from jworld.training import state as train_state
from jworld.training.checkpoints import Checkpoints

CHECKPOINTS, ENCODERS, SAMPLES = "checkpoints", "encoders", "samples"
#: Weights outside a checkpoint, as the starter folder has them.
WEIGHTS = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model, ready to be sampled on its mesh."""

    config: ml_collections.ConfigDict
    system: Any
    model: nnx.Module
    encoders: Encoders
    step: int | None
    mesh: jax.sharding.Mesh


def load(
    directory: pathlib.Path,
    step: int | None = None,
    *,
    config: ml_collections.ConfigDict | None = None,
    mesh: jax.sharding.Mesh | None = None,
    encoders: pathlib.Path | None = None,
) -> Run:
    """Open a run's folder, or a folder of released or imported weights; averaged weights are preferred.

    Args:
      directory: the folder.
      step: the checkpoint; the newest by default.
      config: other settings of the same model; the folder's own by default.
      mesh: where the weights go; one device by default.
      encoders: folder of the encoders; the folder's own by default.

    Raises:
      UserError: something is missing or damaged, or does not fit the model.
    """
    config = run_config.load(directory) if config is None else config
    system = systems.create(config)
    opened = _open_encoders(directory / ENCODERS if encoders is None else encoders, system)
    optimizer = optimizers.make_optimizer(
        run_config.section(optimizers.OptimizerConfig, config.optimizer, "optimizer"), steps=config.steps
    )
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    graphdef, abstract, _ = train_state.abstract_state(system.init, trainable=nnx.Param, optimizer=optimizer, mesh=mesh)
    params, found = load_params(directory, abstract.params, step)
    return Run(config, system, nnx.merge(graphdef, params), opened, found, mesh)


def _open_encoders(directory: pathlib.Path, system: Any) -> Encoders:
    if not (directory / records.MANIFEST).is_file():
        raise errors.UserError(
            f"{directory} has no {records.MANIFEST}, so nothing says which autoencoder and encoders the model knows: "
            "name a folder of records made for it with --encoders, or copy one's manifest and autoencoder there"
        )
    opened = Encoders.load(directory)
    records.check_manifest(opened.manifest, system.manifest_expectations(), path=directory)
    return opened


def load_params(directory: pathlib.Path, abstract: nnx.State, step: int | None = None) -> tuple[nnx.State, int | None]:
    """All parameters of a run (with its step) or of released weights (None), in the layout of `abstract`."""
    if (directory / WEIGHTS).is_file():
        return weights.load(directory / WEIGHTS, abstract), None
    trainable = train_state.path_filter(run_config.load(directory).optimizer.trainable)
    trained, frozen = nnx.split_state(abstract, trainable, ...)
    checkpoints = Checkpoints(directory / CHECKPOINTS, create=False)
    found = checkpoints.latest_step() if step is None else step
    params = nnx.merge_state(checkpoints.restore_params(trained, found), checkpoints.restore_frozen(frozen))
    return params, found


def open_dataset(config: ml_collections.ConfigDict, system: Any, *, split: str) -> pipeline.BatchIterator:
    """This process's batches of one split of the records that the config names, checked against the model.

    Raises:
      UserError: the records are absent, damaged, or made for another model.
    """
    directory = pathlib.Path(config.data.records)
    source = records.RecordSource(directory, split, min_frames=config.data.clip.window_frames)
    records.check_manifest(source.manifest, system.manifest_expectations(), path=directory)
    store = text.TextStore(directory, source.manifest)
    return pipeline.make_dataset(
        source,
        system.transform(store, config.global_batch),
        system.batch_spec(config.global_batch),
        global_batch=config.global_batch,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        shuffle=split == "train",
        num_threads=config.data.threads,
        prefetch=config.data.prefetch,
    )
