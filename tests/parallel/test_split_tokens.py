"""Functions that change some columns of an array give the same on a mesh that splits its columns over devices.

XLA's result of a scatter into one column can be wrong there: https://github.com/openxla/xla/issues/49121.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.hunyuan.text import TextRefiner
from jworld.models.theworld.model import without_world
from jworld.parallel import axes, mesh

ROWS = 4


def split(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the function's results of an array [B, L, ...] on one device, and on eight with L split over two."""
    alone = np.asarray(jax.jit(function)(x))
    names = ("batch", "sequence", *[None] * (x.ndim - 2))
    devices = mesh.make_mesh(data=2, fsdp=2, sequence=2)
    with jax.set_mesh(devices):
        replicated = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec())
        program = jax.jit(lambda x: function(axes.constrain(x, *names)), out_shardings=replicated)
        return alone, np.asarray(program(jax.device_put(x, replicated)))


@pytest.mark.parametrize("length", [5, 6])
def test_prompts_of_text(length: int) -> None:
    """Valid tokens are those of the mask, and the first one of a prompt without any."""
    cfg = HunyuanConfig(width=16, num_heads=2, rope_dims=(4, 2, 2), text_dim=8, refiner_layers=1, dtype=jnp.float32)
    with nnx.use_eager_sharding(False):
        refiner = TextRefiner(cfg, rngs=nnx.Rngs(0))
    # Gates start at 0, which would hide the attention.
    bias = refiner.blocks[0].modulation.linear.bias
    assert bias is not None
    bias[...] += 1
    states = jax.random.normal(jax.random.key(0), (ROWS, length, cfg.text_dim))
    valid = jnp.asarray([2, 1, 0, length])[:, None] > jnp.arange(length)
    alone, found = split(lambda mask: refiner(states, jnp.zeros(ROWS), mask), valid)
    np.testing.assert_allclose(found, alone, atol=1e-5 * np.abs(alone).max())


@pytest.mark.parametrize("length", [5, 6])
def test_the_brackets_of_a_world(length: int) -> None:
    values, has_world = jnp.arange(ROWS * length * 3.0).reshape(ROWS, length, 3), jnp.arange(ROWS) % 2 == 0
    alone, found = split(lambda x: without_world(x, has_world, 1), values)
    np.testing.assert_array_equal(found, alone)
    np.testing.assert_array_equal(alone[0], values[0])
    np.testing.assert_array_equal(alone[1], values[1].at[1].set(values[1, 0]))
