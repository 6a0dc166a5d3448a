"""A program with every kind of collective once, whose traffic is computed by hand."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jworld.planning import collectives, hlo
from jworld.planning.collectives import Traffic

#: Bytes of a float32.
WIDTH = 4


def text(mesh: jax.sharding.Mesh) -> str:
    """Compile the program for a mesh of 2 x n x 2 devices; all of its collectives have the same channel."""
    sizes = dict(mesh.shape)

    def local(x: jax.Array) -> jax.Array:
        x = jax.lax.all_to_all(x, "sequence", split_axis=1, concat_axis=0, tiled=True)
        x = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=1, tiled=True)
        x = jax.lax.all_gather(jnp.tanh(x), "fsdp", axis=0, tiled=True)
        x = jax.lax.ppermute(x, "data", [(0, 1), (1, 0)])
        # A second all-to-all of another size, which has the channel of the first.
        x = jax.lax.all_to_all(jnp.tanh(x), "sequence", split_axis=1, concat_axis=0, tiled=True)
        return jax.lax.psum(jnp.tanh(x), ("data", "fsdp"))

    spec = P("data", "fsdp")
    rows, columns = 32 * sizes["data"], 1024 * sizes["fsdp"]
    whole = jax.ShapeDtypeStruct((rows, columns), jnp.float32, sharding=NamedSharding(mesh, spec))
    function: Any = jax.shard_map(local, in_specs=spec, out_specs=P(None, "sequence"), check_vma=False)
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(whole).compile().as_text()


def expected(sizes: dict[str, int], linked: int) -> set[Traffic]:
    """Return the traffic of a device for so many linked ones, which must be those of one replica, or all."""
    fsdp = sizes["fsdp"]
    part = 32 * 1024 * WIDTH
    alone = linked < math.prod(sizes.values())
    total = 2 * part * (2 * fsdp - 1) // (2 * fsdp)
    return {
        # Half of [32, 1024], and half of what the gather made of it.
        Traffic("all-to-all", "sequence", 2, part // 2 + part // 2),
        Traffic("reduce-scatter", "fsdp", 1, (fsdp - 1) * part // fsdp),
        Traffic("all-gather", "fsdp", 1, (fsdp - 1) * part // fsdp),
        Traffic("collective-permute", "data", 1, part, part if alone else 0),
        # The ring over both replicas leaves a host once for each of its members there.
        Traffic("all-reduce", "data x fsdp", 1, total, total // fsdp if alone else 0),
    }


def found(mesh: jax.sharding.Mesh, linked: int) -> set[Traffic]:
    return set(collectives.find(hlo.Module(text(mesh)), dict(mesh.shape), linked=linked))
