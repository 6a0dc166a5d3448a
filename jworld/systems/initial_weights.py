"""Initial weights of a training run: from another run, from imported files, or from several runs for several parts."""

import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jworld import systems
from jworld.models.layers import lora
from jworld.parallel import axes
from jworld.systems import runs
from jworld.training import state as train_state
from jworld.utils import config as run_config
from jworld.utils import errors, nnx_types


def load_parts(initial: nnx_types.State, parts: Mapping[str, pathlib.Path]) -> nnx_types.State:
    """Replace some parts of `initial` by weights of other runs; see `load_initial`.

    Args:
      initial: parameters of the new run.
      parts: first word of a part's parameter paths -> folder of its weights.
    """
    for name, directory in parts.items():
        own, rest = nnx.split_state(initial, lambda path, _, name=name: path[0] == name, ...)
        read, _ = load_initial(directory, own[name])
        initial = nnx.merge_state(rest, nnx.State({name: read}))
    return initial


def load_initial(
    directory: pathlib.Path, initial: nnx_types.State, *, copies: Sequence[str] = (), parts: Collection[str] = ()
) -> tuple[nnx_types.State, list[str]]:
    """Load the weights in `directory` to start training from.

    Parameters that the folder's model lacks, by its own config, keep their values in `initial`. So an action model
    starts from a base without actions. All others are read in the layout of `initial`. Its arrays are deleted first,
    because both copies might not fit on the devices. Adapters without a counterpart in this model are merged.

    Args:
      directory: folder of a run, or of released or imported weights.
      initial: parameters of the new run, or their descriptions, which stay where the folder's model has no value.
      copies: parts, by the first word of their paths, that get copies of the loaded weights.
      parts: parts that `load_parts` has loaded; they are not reported as new.

    Returns:
      The parameters, and notes for the user on differences from the folder's model.

    Raises:
      UserError: the folder's model has parameters that this one lacks; something is missing, misshapen or damaged.
    """
    graphdef, shapes, adapters = compare(directory, initial)
    stored = {path for path, _ in nnx.to_flat_state(shapes)}
    replaced, kept = nnx.split_state(initial, lambda path, _: path in stored, ...)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), replaced)
    _delete(replaced)
    if adapters:
        whole = _replicated(jax.tree.leaves(abstract)[0].sharding)
        added, _ = nnx.split_state(shapes, lambda path, _: path in adapters, ...)
        added = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), added)
        abstract = nnx.merge_state(abstract, added)
    params, _ = runs.load_params(directory, abstract)
    notes = []
    if adapters:
        model = nnx.merge(graphdef, params)
        lora.merge(model)
        params = nnx.state(model, nnx.Param)
        notes.append("adapters in those weights are merged")
    copied, kept = nnx.split_state(kept, lambda path, _: path[0] in copies and path[1:] in stored, ...)
    copied = _copies(copied, params)
    if new := ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(kept) if path[0] not in parts]:
        notes.append(f"not in those weights, so new: {', '.join(new)}")
    return nnx.merge_state(params, copied, kept), notes


def compare(
    directory: pathlib.Path, initial: nnx_types.State
) -> tuple[nnx_types.GraphDef, nnx_types.State, set[tuple[Any, ...]]]:
    """Compare the model of a folder with a new run, without reading weights.

    Args:
      directory: folder of a run, or of released or imported weights.
      initial: parameters of the new run; shapes are enough.

    Returns:
      Graph definition and shapes of the folder's model, and the paths of adapters that the new run lacks.

    Raises:
      UserError: the folder's model has parameters that the new run lacks, or parameters of other shapes.
    """
    base = systems.create(run_config.load(directory))
    with nnx.use_eager_sharding(False), nnx.logical_axis_rules(axes.RULES):
        graphdef, shapes = nnx.split(nnx.eval_shape(lambda: base.init(nnx.Rngs(0))), nnx.Param)
    here = {path: leaf.shape for path, leaf in nnx.to_flat_state(initial)}
    stored = {path: leaf.shape for path, leaf in nnx.to_flat_state(shapes)}
    is_adapter = train_state.path_filter(lora.TRAINABLE)
    adapters = {path for path in stored.keys() - here.keys() if is_adapter(path, None)}
    remedy = "set config.model to the values in its config.json, or choose other weights"
    if lost := sorted("/".join(map(str, path)) for path in stored.keys() - here.keys() - adapters):
        raise errors.UserError(
            f"config.init_from: the model in {directory} has parameters that this one lacks: {', '.join(lost)}: "
            f"{remedy}"
        )
    for path, shape in stored.items():
        if path not in adapters and here[path] != shape:
            raise errors.UserError(
                f"config.init_from: {'/'.join(map(str, path))} of the model in {directory} has the shape "
                f"{list(shape)}, this one has {list(here[path])}: {remedy}"
            )
    return graphdef, shapes, adapters


def _copies(parts: nnx_types.State, params: nnx_types.State) -> nnx_types.State:
    """Return `parts` with values from `params`, cast to the dtypes of `parts`.

    A path in `params` is the path in `parts` without its first word.
    """
    read, made = dict(nnx.to_flat_state(params)), []
    for path, leaf in nnx.to_flat_state(parts):
        dtype = leaf.dtype
        _delete(leaf)
        # A separate buffer, because a training step donates both.
        made.append((path, leaf.replace(jnp.array(read[path[1:]][...], dtype, copy=True))))
    return nnx.from_flat_state(made)


def _delete(tree: Any) -> None:
    """Delete the arrays of a tree; descriptions have none."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            leaf.delete()


def _replicated(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Return a sharding that replicates arrays on the devices of `sharding`."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding
