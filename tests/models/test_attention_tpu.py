"""Splash attention compiled for an absent TPU: every mask, forward and backward, on a mesh and on one device."""

import functools
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from jworld.models.layers import stack
from jworld.models.layers.attention import (
    Causal,
    ChunkCausal,
    Intervals,
    Mask,
    Prefix,
    SlidingWindow,
    attention,
    base,
)
from jworld.parallel import axes, mesh

pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
pytestmark = pytest.mark.usefixtures("tpu_flags")

B, LENGTH, PREFIX, HEADS, HEAD_DIM = 1, 512, 130, 4, 128
KERNEL = 'custom_call_target="tpu_custom_call"'


@functools.cache
def tpu_mesh() -> jax.sharding.Mesh:
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    devices = topologies.get_topology_desc("v5p:2x2x1", platform="tpu").devices
    return mesh.make_mesh(sequence=4, devices=devices)


def compiled(function: Any, *shapes: tuple[tuple[int, ...], Any, tuple[str | None, ...]]) -> str:
    """Compile the gradients of a function's sum for the TPU mesh; return the program's text."""

    def total(*arrays: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(function(*arrays).astype(jnp.float32)))

    devices = tpu_mesh()
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=axes.sharding(devices, names)) for shape, dtype, names in shapes
    ]
    floats = tuple(i for i, (_, dtype, _) in enumerate(shapes) if jnp.issubdtype(dtype, jnp.floating))
    with jax.set_mesh(devices), jax.default_matmul_precision("default"):
        return jax.jit(jax.grad(total, argnums=floats)).lower(*arguments).compile().as_text()


@pytest.mark.parametrize(
    ("mask", "prefix"),
    [(None, PREFIX), (ChunkCausal(128, PREFIX), PREFIX), (Causal(), 0), (Prefix(100), 0), (SlidingWindow(127), 0)],
)
def test_splash_compiles(mask: Mask | None, prefix: int) -> None:
    """Heads are split over four chips; forward, gradient of queries, gradient of keys and values: three kernels."""
    keys = LENGTH + prefix
    tokens = ("batch", "sequence", None, None)
    text = compiled(
        lambda q, k, v, key_mask: attention(q, k, v, mask=mask, key_mask=key_mask),
        ((B, LENGTH, HEADS, HEAD_DIM), jnp.bfloat16, tokens),
        ((B, keys, HEADS, HEAD_DIM), jnp.bfloat16, ("batch", None, None, None)),
        ((B, keys, HEADS, HEAD_DIM), jnp.bfloat16, ("batch", None, None, None)),
        ((B, keys), jnp.bool_, ("batch", None)),
    )
    assert text.count(KERNEL) == 3
    assert "all-to-all" in text
    assert f"[{LENGTH},{keys}]" not in text


def test_intervals_of_the_data_compile() -> None:
    """Every device gets the intervals of its sample; two query heads share one key head."""
    within = SlidingWindow(left=199, right=99)
    text = compiled(
        lambda q, k, v, starts, stops, key_mask: attention(
            q, k, v, mask=Intervals(starts, stops, within), key_mask=key_mask
        ),
        ((2, LENGTH, 8, HEAD_DIM), jnp.bfloat16, ("batch", "sequence", None, None)),
        *[((2, LENGTH, 4, HEAD_DIM), jnp.bfloat16, ("batch", None, None, None))] * 2,
        *[((2, LENGTH), jnp.int32, ("batch", None))] * 2,
        ((2, LENGTH), jnp.bool_, ("batch", None)),
    )
    assert text.count(KERNEL) == 3
    assert f"[{LENGTH},{LENGTH}]" not in text


@pytest.mark.parametrize(("remat", "times"), [("attention", 1), ("full", 2)])
def test_attention_is_recomputed_only_when_nothing_is_saved(remat: str, times: int) -> None:
    """Count forward kernels for every kernel of the backward pass; the compiler may unroll a loop twice."""

    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        q = jnp.einsum("bld,dnk->blnk", x, w)
        out = attention(q, 2 * q, 3 * q, mask=ChunkCausal(128))
        return jnp.sin(jnp.einsum("blnk,dnk->bld", out, w)), None

    step = jax.checkpoint(layer, policy=stack.REMAT_POLICIES[remat], prevent_cse=False)
    text = compiled(
        lambda x, w: jax.lax.scan(step, x, w)[0],
        ((B, LENGTH, 128), jnp.bfloat16, ("batch", "sequence", None)),
        ((3, 128, HEADS, HEAD_DIM), jnp.bfloat16, (None, None, None, None)),
    )
    forward, backward = (len(re.findall(rf"%splash_mha_{name}\S* = ", text)) for name in ("fwd", "dkv"))
    assert forward == times * backward > 0


def test_the_mesh_decides() -> None:
    """A program for a pod gets the pod's kernel, even when compiled on a CPU."""
    assert base.target_platform() == "cpu"
    with jax.set_mesh(tpu_mesh()):
        assert (base.target_platform(), base.target_chip()) == ("tpu", "v5p")
