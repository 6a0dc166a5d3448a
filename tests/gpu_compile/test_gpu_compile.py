"""Programs of published recipes compiled for H100s that are not there: kernels and memory. `make test-gpu-compile`.

Every train step calls kernels of cuDNN for attention, forward and backward, and every denoising step one. Temporaries
agree with the stored figures within 15 %; a program without one is only compiled.
"""

import json
import pathlib
from typing import Any

import gpu_programs
import jax
import jax.numpy as jnp
import known_traffic
import pytest
from flax import nnx

from jworld.models.layers.attention import (
    Causal,
    ChunkCausal,
    Intervals,
    Mask,
    Prefix,
    SlidingWindow,
    attention,
)
from jworld.parallel import axes
from jworld.parallel import mesh as meshes
from jworld.planning import gpu_targets, topologies

pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.skipif(not gpu_targets.is_installed(), reason="the extra gpu-compiler is not installed"),
]
#: Name of a program -> MiB of temporaries, by the compiler of jax 0.10.2.
STORED: dict[str, int] = json.loads((pathlib.Path(__file__).parent / "temporaries.json").read_text())
TOLERANCE, SLACK = 0.15, 4
#: Programs of generation in which no attention has as many as `backends.MIN_LENGTH` queries, or that have none.
WITHOUT_ATTENTION = ("choice of a token", "decode step")
NETWORK_WORDS = ("denois", "context", "cache", "prefill")


def check(name: str, found: gpu_programs.Figures, kernels: dict[str, int]) -> None:
    """Compare with the stored figure, and with the least numbers of kernels."""
    print(f"{name}: {found.temporaries} MiB, {found.kernels}")
    for kind, least in kernels.items():
        assert found.kernels[kind] >= least, f"{name}: {kind}, {found.kernels}"
    if name in STORED:
        assert found.temporaries == pytest.approx(STORED[name], rel=TOLERANCE, abs=SLACK), name


@pytest.mark.parametrize("name", gpu_programs.TRAINING)
def test_attention_is_a_kernel(name: str) -> None:
    """Before compilation, which takes most of the time. Frozen layers may have no backward pass."""
    assert gpu_programs.attention_calls(gpu_programs.train_step(name)) >= 2


@pytest.mark.parametrize("name", gpu_programs.TRAINING)
def test_train_step(name: str) -> None:
    found = gpu_programs.figures(gpu_programs.train_step(name).compile())
    check(f"train/{name}", found, {"attention": 2, "product": 1})


@pytest.mark.parametrize("name", gpu_programs.GENERATION)
def test_generation(name: str) -> None:
    for program, compile_it in gpu_programs.generation_programs(name):
        least = {}
        if program not in WITHOUT_ATTENTION:
            is_network = any(word in program for word in NETWORK_WORDS)
            least = {"attention": 1} if is_network else {"convolution": 1}
        elif program == "decode step":
            least = {"product": 1}
        check(f"generate/{name}/{program}", compile_it(), least)


@pytest.mark.parametrize("family", gpu_programs.ENCODERS)
def test_encoder(family: str) -> None:
    check(f"encode/{family}", gpu_programs.encode(family), {"convolution": 1})


#: Mask, keys before the queries' own tokens, and number of forward kernels. All lengths are odd.
MASKS: list[tuple[Mask | None, int, int]] = [
    (None, 0, 1),
    (ChunkCausal(523, 1985), 1985, 3),
    (Causal(), 0, 1),
    (Prefix(1001), 0, 2),
    (SlidingWindow(511), 0, 1),
    (SlidingWindow(511, 255), 0, 1),
]


@pytest.mark.parametrize("chip", ["a100", "h100", "b200"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("mask", "prefix", "kernels"), MASKS)
def test_masks(mask: Mask | None, prefix: int, kernels: int, padded: bool, chip: str) -> None:
    """Heads and samples are split over eight GPUs; padding becomes lengths or a bias."""
    calls = kernels if mask is None or isinstance(mask, ChunkCausal) or not padded else 1
    assert attention_kernels(chip, mask, prefix, padded=padded) == 2 * calls


@pytest.mark.parametrize("chip", ["a100", "h100", "b200"])
def test_intervals(chip: str) -> None:
    assert attention_kernels(chip, "intervals", 0, padded=True) == 2


@pytest.mark.parametrize(("chip", "kernels"), [("a100", 0), ("h100", 2), ("h200", 2), ("b200", 0)])
def test_large_heads(chip: str, kernels: int) -> None:
    """Gemma's heads: cuDNN has no backward kernel for them on other cards."""
    assert attention_kernels(chip, Causal(), 0, padded=False, head_dim=256) == kernels


def attention_kernels(chip: str, mask: Any, prefix: int, *, padded: bool, head_dim: int = 128) -> int:
    """Return the number of kernels in the gradient of attention, which `auto` chooses."""
    batch, length, heads = 4, 3 * 523, 4
    mesh = meshes.make_mesh(fsdp=4, sequence=2, devices=topologies.devices(topologies.parse(f"{chip}-8")))

    def described(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        names = ("batch", *(None,) * (len(shape) - 1))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=axes.sharding(mesh, names))

    q, keys = (described((batch, n, heads, head_dim), jnp.bfloat16) for n in (length, prefix + length))
    ends = described((batch, length), jnp.int32)

    def total(q: jax.Array, k: jax.Array, v: jax.Array, key_mask: jax.Array, ends: jax.Array) -> jax.Array:
        chosen = Intervals(ends - 1, ends, SlidingWindow(length, length)) if mask == "intervals" else mask
        out = attention(q, k, v, mask=chosen, key_mask=key_mask if padded else None)
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    with jax.set_mesh(mesh), nnx.logical_axis_rules(axes.RULES):
        function = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
        compiled = function.lower(q, keys, keys, described((batch, prefix + length), bool), ends).compile()
    return gpu_programs.figures(compiled).kernels["attention"]


@pytest.mark.parametrize("hosts", ["2x8", "1x16"])
def test_traffic_computed_by_hand(hosts: str) -> None:
    mesh = meshes.make_mesh(data=2, fsdp=4, sequence=2, devices=topologies.devices(topologies.parse(f"h100:{hosts}")))
    linked = int(hosts.split("x")[1])
    found, expected = known_traffic.found(mesh, linked), known_traffic.expected(dict(mesh.shape), linked)
    assert found == expected
