"""Convolutions of video: the implementation for CPUs gives the same result as that for accelerators."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jworld.models.layers import causal_conv


def result_and_gradients(conv: causal_conv.Conv, x: jax.Array) -> Any:
    def loss(conv: causal_conv.Conv, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = conv(x)
        return jnp.sum(jnp.sin(y)), y

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(conv, x)


@pytest.mark.parametrize(
    "kernel, strides, border",
    [
        ((3, 3, 3), (1, 1, 1), "zeros"),
        ((3, 3, 3), (1, 1, 1), "edge"),
        ((2, 3, 3), (1, 2, 2), "edge"),
        ((3, 1, 1), (2, 1, 1), "zeros"),
    ],
)
def test_convolutions_on_cpus_equal_those_on_accelerators(
    kernel: tuple[int, ...], strides: tuple[int, ...], border: causal_conv.Border, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = causal_conv.Conv(6, 5, kernel, strides=strides, border=border, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, 8, 6, 6))
    here = result_and_gradients(conv, x)
    computed = []

    def accelerators(*arrays: jax.Array, cpu: Any, default: Any) -> jax.Array:
        computed.append(default(*arrays))
        return computed[-1]

    monkeypatch.setattr(jax.lax, "platform_dependent", accelerators)
    there = result_and_gradients(conv, x)
    assert len(computed) == 1
    for one, other in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        assert np.linalg.norm(one - other) < 1e-6 * np.linalg.norm(other)
