"""Weights that training starts from: those of another run, of imported files, or of several runs for several parts."""

import pathlib
from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jworld import systems
from jworld.models.layers import lora
from jworld.systems.runs import load_params
from jworld.training import state as train_state
from jworld.utils import config as run_config
from jworld.utils import errors


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
