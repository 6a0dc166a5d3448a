"""The folder of a run: what training leaves there, and how the other commands open it.

config.json    the resolved config
encoders/      what sampling needs of the data set: its manifest and, of latents, the autoencoder
checkpoints/   Orbax checkpoints, one folder per step
metrics.jsonl, goodput.json, tensorboard/, samples/

Released weights have model.safetensors in the place of checkpoints/, imported ones (`python -m conversion import`) one
Orbax checkpoint weights/ with its description import.json.
"""

import dataclasses
import json
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from jworld import systems
from jworld.encoders.model_encoders import EncoderOverrides
from jworld.models.layers import lora
from jworld.parallel import mesh as mesh_lib
from jworld.training import optimizers, weights
from jworld.training import state as train_state
from jworld.training.checkpoints import Checkpoints
from jworld.utils import config as run_config
from jworld.utils import errors

CHECKPOINTS, ENCODERS, SAMPLES = "checkpoints", "encoders", "samples"
#: Weights outside a checkpoint, as the starter folder has them.
WEIGHTS = "model.safetensors"
#: Imported weights, and what is known of them.
IMPORTED, IMPORT_RECORD = "weights", "import.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model, ready to be sampled on its mesh."""

    config: ml_collections.ConfigDict
    system: Any
    model: nnx.Module
    encoders: Any  # what `system.data.encoders` opened
    step: int | None
    mesh: jax.sharding.Mesh


def load(
    directory: pathlib.Path,
    step: int | None = None,
    *,
    config: ml_collections.ConfigDict | None = None,
    mesh: jax.sharding.Mesh | None = None,
    encoders: pathlib.Path | None = None,
    given: EncoderOverrides | None = None,
    training: bool = False,
) -> Run:
    """Open a run's folder, or a folder of released or imported weights; averaged weights are preferred.

    Args:
      directory: the folder.
      step: the checkpoint; the newest by default.
      config: other settings of the same model; the folder's own by default.
      mesh: where the weights go; one device by default.
      encoders: folder of records, or of what a run keeps of them; the folder's own by default.
      given: encoders in place of those that the folder names, or where no folder names any.
      training: the model as training holds it, with its teacher if it has one.

    Raises:
      UserError: something is missing or damaged, or does not fit the model.
    """
    config = run_config.load(directory) if config is None else config
    system = systems.create(config)
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    kept = directory / ENCODERS if encoders is None else encoders
    opened = system.data.encoders(kept, given=given or EncoderOverrides(), mesh=mesh)
    # Released and imported weights are those of a model to use.
    training = training and (directory / CHECKPOINTS).is_dir()
    model, found = load_model(directory, config, step, mesh=mesh, training=training)
    return Run(config, system, model, opened, found, mesh)


def load_model(
    directory: pathlib.Path,
    config: ml_collections.ConfigDict,
    step: int | None = None,
    *,
    mesh: jax.sharding.Mesh | None = None,
    training: bool = False,
) -> tuple[nnx.Module, int | None]:
    """The model alone, and the step of its checkpoint; see `load`."""
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    optimizer = optimizers.make_optimizer(
        run_config.section(optimizers.OptimizerConfig, config.optimizer, "optimizer"), steps=config.steps
    )
    system = systems.create(config)
    init = systems.training_init(system) if training else system.init
    graphdef, abstract, _ = train_state.abstract_state(init, trainable=nnx.Param, optimizer=optimizer, mesh=mesh)
    params, found = load_params(directory, abstract.params, step)
    return nnx.merge(graphdef, params), found


def load_params(directory: pathlib.Path, abstract: nnx.State, step: int | None = None) -> tuple[nnx.State, int | None]:
    """All parameters of a run (with its step), of released or imported weights (None), in the layout of `abstract`."""
    if (directory / WEIGHTS).is_file():
        return weights.load(directory / WEIGHTS, abstract), None
    if (directory / IMPORTED).is_dir():
        return weights.restore(directory / IMPORTED, abstract, import_record(directory)["arrays"]), None
    trainable = train_state.path_filter(run_config.load(directory).optimizer.trainable)
    stored = _as_stored(directory, abstract)
    trained, frozen = nnx.split_state(stored, trainable, ...)
    checkpoints = Checkpoints(directory / CHECKPOINTS, create=False)
    found = checkpoints.latest_step() if step is None else step
    params = nnx.merge_state(checkpoints.restore_params(trained, found), checkpoints.restore_frozen(frozen))
    return jax.tree.map(lambda x, wanted: x.astype(wanted.dtype), params, abstract), found


def _as_stored(directory: pathlib.Path, abstract: nnx.State) -> nnx.State:
    """`abstract` in the types in which the run kept its parameters: what one stage freezes, the next may train."""
    init = systems.create(run_config.load(directory)).init
    with nnx.use_eager_sharding(False):
        own = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: init(nnx.Rngs(0))), nnx.Param))
    dtypes = {path: leaf.dtype for path, leaf in own}
    leaves = []
    for path, leaf in nnx.to_flat_state(abstract):
        described = jax.ShapeDtypeStruct(leaf.shape, dtypes.get(path, leaf.dtype), sharding=leaf.get_value().sharding)
        leaves.append((path, leaf.replace(described)))
    return nnx.from_flat_state(leaves)


def import_record(directory: pathlib.Path) -> dict[str, Any]:
    """What `python -m conversion import` noted of the weights in this folder.

    Raises:
      UserError: the record is missing or damaged.
    """
    path = directory / IMPORT_RECORD
    try:
        record = json.loads(path.read_text())
        record["arrays"].items()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise errors.UserError(f"{path} is missing or damaged ({error}): import the weights again") from error
    return record


def load_parts(initial: nnx.State, parts: Mapping[str, pathlib.Path]) -> nnx.State:
    """`initial` with weights of other runs in some parts: first word of their paths -> folder; see `load_initial`."""
    for name, directory in parts.items():
        own, rest = nnx.split_state(initial, lambda path, _, name=name: path[0] == name, ...)
        read, _ = load_initial(directory, own[name])
        initial = nnx.merge_state(rest, nnx.State({name: read}))
    return initial


def load_initial(
    directory: pathlib.Path, initial: nnx.State, *, copies: Sequence[str] = (), parts: Collection[str] = ()
) -> tuple[nnx.State, list[str]]:
    """The weights of `directory` to start training from, and notes for the user on what is not as it was there.

    The parameters that the model in `directory` does not have, by its own config, stay `initial`: an action model
    starts from a base without actions. All others are read, in the layout of `initial`, whose arrays are deleted
    before: both at once could be too much for the devices. Adapters that this model has no place for are merged.
    Parts whose paths begin with one of `copies` get copies of what was read. Of those that begin with one of `parts`,
    which `load_parts` has read, no note says that they are new.

    Raises:
      UserError: the folder's model has parameters that this one lacks; something is missing, misshapen or damaged.
    """
    base = systems.create(run_config.load(directory))
    with nnx.use_eager_sharding(False):
        graphdef, shapes = nnx.split(nnx.eval_shape(lambda: base.init(nnx.Rngs(0))), nnx.Param)
    here = {path for path, _ in nnx.to_flat_state(initial)}
    known = {path for path, _ in nnx.to_flat_state(shapes)}
    is_adapter = train_state.path_filter(lora.TRAINABLE)
    adapters = {path for path in known - here if is_adapter(path, None)}
    if lost := sorted("/".join(map(str, path)) for path in known - here - adapters):
        raise errors.UserError(
            f"config.init_from: the model in {directory} has parameters that this one lacks: {', '.join(lost)}: "
            "give config.model the values of its config.json, or choose other weights"
        )
    replaced, kept = nnx.split_state(initial, lambda path, _: path in known, ...)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), replaced)
    for array in jax.tree.leaves(replaced):
        array.delete()
    if adapters:
        whole = _replicated(jax.tree.leaves(abstract)[0].sharding)
        added, _ = nnx.split_state(shapes, lambda path, _: path in adapters, ...)
        added = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), added)
        abstract = nnx.merge_state(abstract, added)
    params, _ = load_params(directory, abstract)
    notes = []
    if adapters:
        model = nnx.merge(graphdef, params)
        lora.merge(model)
        params = nnx.state(model, nnx.Param)
        notes.append("adapters in those weights are merged")
    copied, kept = nnx.split_state(kept, lambda path, _: path[0] in copies and path[1:] in known, ...)
    copied = _copies(copied, params)
    if new := ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(kept) if path[0] not in parts]:
        notes.append(f"not in those weights, so new: {', '.join(new)}")
    return nnx.merge_state(params, copied, kept), notes


def _copies(parts: nnx.State, params: nnx.State) -> nnx.State:
    """`parts` with the values, in its own dtype, that `params` has under the same paths without their first words."""
    read, made = dict(nnx.to_flat_state(params)), []
    for path, leaf in nnx.to_flat_state(parts):
        dtype = leaf.dtype
        leaf[...].delete()
        # In a buffer of its own: a training step consumes both.
        made.append((path, leaf.replace(jnp.array(read[path[1:]][...], dtype, copy=True))))
    return nnx.from_flat_state(made)


def _replicated(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Every device of `sharding` has everything."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding
