"""The one table from logical axes to mesh axes, and the constraints that apply it to activations."""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_described: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("described", default=None)

MeshAxes = str | tuple[str, ...] | None

# Parameters use vocabulary, embed, heads, mlp and layer; activations use batch, frames, sequence and attention_heads.
# Ulysses is the pair (sequence, attention_heads): both map to the mesh axis `sequence`, never in the same array.
RULES: tuple[tuple[str, MeshAxes], ...] = (
    ("batch", ("data", "fsdp")),
    ("frames", "sequence"),
    # Image width in the autoencoders: neighbors exchange a column or two per convolution.
    ("width", "sequence"),
    ("sequence", "sequence"),
    ("attention_heads", "sequence"),
    # All tokens of a sample use the same weights, so weights are sharded over the sequence axis as well.
    ("embed", ("fsdp", "sequence")),
    # Replicated: sizes of published vocabularies do not divide evenly; the embedding width does.
    ("vocabulary", None),
    ("heads", None),
    ("mlp", None),
    ("layer", None),
)


def partition_spec(names: tuple[str | None, ...]) -> PartitionSpec:
    """Return the mesh axes of an array whose dimensions have these logical names; KeyError for an unknown name."""
    table = dict(RULES)
    return PartitionSpec(*(None if name is None else table[name] for name in names))


def sharding(mesh: jax.sharding.Mesh, names: tuple[str | None, ...]) -> NamedSharding:
    """Return `partition_spec` on a mesh."""
    return NamedSharding(mesh, partition_spec(names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Constrain an activation's layout by logical axis; a no-op outside a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    constrained: jax.Array = jax.lax.with_sharding_constraint(x, partition_spec(names))
    return constrained


def constrain_if_divisible(x: jax.Array, *names: str | None) -> jax.Array:
    """Constrain as `constrain` does, but replicate a dimension that its mesh axes do not divide."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    constrained: jax.Array = jax.lax.with_sharding_constraint(x, dividing_spec(x.shape, *names))
    return constrained


def dividing_spec(shape: tuple[int, ...], *names: str | None) -> PartitionSpec:
    """Return the mesh axes of an array of this shape on the current mesh.

    A dimension that its mesh axes do not divide is replicated.
    """
    mesh = jax.sharding.get_abstract_mesh()
    spec = []
    for size, entry in zip(shape, partition_spec(names), strict=True):
        mesh_axes = entry if isinstance(entry, tuple) else (entry,) * (entry is not None)
        spec.append(None if size % math.prod(mesh.shape[axis] for axis in mesh_axes) else entry)
    return PartitionSpec(*spec)


def divides(size: int, name: str) -> bool:
    """Return whether the current mesh splits a dimension of this size and logical axis evenly; True outside a mesh."""
    return jax.sharding.get_abstract_mesh().empty or dividing_spec((size,), name) == partition_spec((name,))


@contextlib.contextmanager
def describing(mesh: Mesh) -> Iterator[None]:
    """Make `mesh` the current one for descriptions and their programs, whose devices need not exist.

    Unlike under `jax.set_mesh`, values are still computed on the devices of this process.
    """
    token = _described.set(mesh)
    try:
        yield
    finally:
        _described.reset(token)


def current_mesh() -> Mesh:
    """Return the mesh of `describing`, or else that of `jax.set_mesh`, which may be empty."""
    given = _described.get()
    mesh: Mesh = jax.sharding.get_mesh() if given is None else given
    return mesh


def described(shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
    """Describe an array that a program on `current_mesh` receives from another one: replicated."""
    mesh = current_mesh()
    place = None if mesh.empty else NamedSharding(mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)
