"""The one table from logical axes to mesh axes, and the constraints that apply it to activations."""

import math

import jax
from jax.sharding import NamedSharding, PartitionSpec

MeshAxes = str | tuple[str, ...] | None

# Parameters name vocabulary, embed, heads, mlp and layer; activations name batch, frames, sequence and attention_heads.
# Ulysses is the pair (sequence, attention_heads): both live on the mesh axis `sequence`, never on one array at once.
RULES: tuple[tuple[str, MeshAxes], ...] = (
    ("batch", ("data", "fsdp")),
    ("frames", "sequence"),
    # Of pixels, in the autoencoders: neighbours exchange a column or two per convolution.
    ("width", "sequence"),
    ("sequence", "sequence"),
    ("attention_heads", "sequence"),
    # Weights are shared by the tokens of a sample, so the sequence axis holds shards of them as well.
    ("embed", ("fsdp", "sequence")),
    # A row per token: published vocabularies divide by nothing, the width of the rows does.
    ("vocabulary", None),
    ("heads", None),
    ("mlp", None),
    ("layer", None),
)


def partition_spec(names: tuple[str | None, ...]) -> PartitionSpec:
    """The mesh axes of an array whose dimensions carry these logical names; a KeyError for a name outside the table."""
    table = dict(RULES)
    return PartitionSpec(*(None if name is None else table[name] for name in names))


def sharding(mesh: jax.sharding.Mesh, names: tuple[str | None, ...]) -> NamedSharding:
    """`partition_spec` on a mesh."""
    return NamedSharding(mesh, partition_spec(names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pin an activation's layout by logical axis; a no-op outside a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(names))


def constrain_if_divisible(x: jax.Array, *names: str | None) -> jax.Array:
    """As `constrain`, but a dimension that its mesh axes do not divide stays whole."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, dividing_spec(x.shape, *names))


def dividing_spec(shape: tuple[int, ...], *names: str | None) -> PartitionSpec:
    """The mesh axes of an array of this shape on the mesh at hand, without those that do not divide their dimension."""
    mesh = jax.sharding.get_abstract_mesh()
    spec = []
    for size, entry in zip(shape, partition_spec(names), strict=True):
        mesh_axes = entry if isinstance(entry, tuple) else (entry,) * (entry is not None)
        spec.append(None if size % math.prod(mesh.shape[axis] for axis in mesh_axes) else entry)
    return PartitionSpec(*spec)
