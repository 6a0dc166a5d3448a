"""Structured attention masks compared with dense ones: values, gradients, memory, and a mesh."""

import functools
import logging
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from jworld.models.layers import stack
from jworld.models.layers.attention import (
    Causal,
    ChunkCausal,
    Intervals,
    Mask,
    Prefix,
    Request,
    SlidingWindow,
    attention,
    backends,
    cudnn,
    splash,
    xla,
)
from jworld.parallel import axes, mesh, ring

TOLERANCE = 1e-5
Arrays = tuple[jax.Array, ...]


def make_qkv(*, batch: int = 2, length: int = 12, prefix: int = 3, heads: int = 2, head_dim: int = 4) -> Arrays:
    keys = jax.random.split(jax.random.key(0), 3)
    lengths = (length, prefix + length, prefix + length)
    return tuple(
        jax.random.normal(key, (batch, size, heads, head_dim)) for key, size in zip(keys, lengths, strict=True)
    )


def make_key_mask(keys: int, prefix: int) -> jax.Array:
    """Make a mask [2, keys] bool: the second row hides a key of the prefix and two other keys."""
    mask = np.ones((2, keys), bool)
    mask[1, [min(1, prefix), prefix + 2, prefix + 7]] = False
    return jnp.asarray(mask)


def visible(mask: Mask | None, queries: int, keys: int) -> np.ndarray:
    """Return the dense mask [queries, keys] bool, pair by pair from the definition of the structured one."""
    q, k = np.arange(queries)[:, None], np.arange(keys)[None]
    match mask:
        case ChunkCausal(chunk, prefix):
            return (k < prefix) | ((k - prefix) // chunk <= q // chunk)
        case Causal():
            return k <= q
        case Prefix(length):
            return (k <= q) | ((k < length) & (q < length))
        case SlidingWindow(left, right):
            return (q - left <= k) & (k <= q + right)
    return np.ones((queries, keys), bool)


def dense(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask | None, key_mask: jax.Array | None) -> jax.Array:
    """Compute attention by definition, with the whole matrix of queries and keys."""
    allowed = jnp.asarray(visible(mask, q.shape[1], k.shape[1]))[None, None]
    if key_mask is not None:
        allowed = allowed & key_mask[:, None, None, :]
    logits = jnp.einsum("bqnk,bsnk->bnqs", q, k) / np.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(allowed, logits, -jnp.inf), axis=-1)
    return jnp.einsum("bnqs,bsnk->bqnk", weights, v)


def values_and_gradients(function: Callable[..., jax.Array], qkv: Arrays) -> Arrays:
    """Return the output and the gradients of a fixed random projection of it."""
    cotangent = jax.random.normal(jax.random.key(1), qkv[0].shape)

    def both(*qkv: jax.Array) -> Arrays:
        out, pull = jax.vjp(function, *qkv)
        return out, *pull(cotangent)

    return jax.jit(both)(*qkv)


def assert_close(actual: Arrays, expected: Arrays) -> None:
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("chunk", [2, 4, 12])
def test_chunk_causal_is_the_dense_mask(chunk: int, prefix: int, masked: bool) -> None:
    qkv = make_qkv(prefix=prefix)
    mask = ChunkCausal(chunk, prefix)
    key_mask = make_key_mask(prefix + 12, prefix) if masked else None
    actual = values_and_gradients(lambda q, k, v: attention(q, k, v, mask=mask, key_mask=key_mask), qkv)
    assert_close(actual, values_and_gradients(lambda q, k, v: dense(q, k, v, mask, key_mask), qkv))


def test_a_later_chunk_has_no_influence() -> None:
    q, k, v = make_qkv()
    mask = ChunkCausal(chunk=4, prefix=3)
    out = attention(q, k, v, mask=mask)
    changed = attention(q.at[:, 8:].add(1), k.at[:, 11:].add(1), v.at[:, 11:].add(1), mask=mask)
    np.testing.assert_array_equal(out[:, :8], changed[:, :8])
    assert not np.allclose(out[:, 8:], changed[:, 8:])


@pytest.mark.parametrize("mask", [None, ChunkCausal(chunk=4, prefix=3)])
def test_padded_keys_have_no_influence(mask: ChunkCausal | None) -> None:
    q, k, v = make_qkv()
    key_mask = make_key_mask(15, 3)
    padding = ~key_mask[:, :, None, None]
    out, _, dk, dv = values_and_gradients(lambda *qkv: attention(*qkv, mask=mask, key_mask=key_mask), (q, k, v))
    changed = attention(q, k + 1e3 * padding, v + 1e3 * padding, mask=mask, key_mask=key_mask)
    np.testing.assert_allclose(out, changed, atol=TOLERANCE)
    for gradient in (dk, dv):
        assert not np.any(gradient * padding)
    unmasked = attention(q, k, v, mask=mask)
    assert not np.allclose(out[1], unmasked[1], atol=1e-3)


@pytest.mark.parametrize("lengths", [(12, 16), (12, 12), (10, 13)])
def test_lengths_that_do_not_fit_are_refused(lengths: tuple[int, int]) -> None:
    queries, keys = (jnp.ones((1, length, 1, 4)) for length in lengths)
    with pytest.raises(ValueError, match=rf"{lengths[0]} queries in chunks of 4 need 3 \+ .* got {lengths[1]} keys"):
        attention(queries, keys, keys, mask=ChunkCausal(chunk=4, prefix=3))


def largest_intermediate(function: Callable[..., jax.Array], qkv: Arrays) -> int:
    """Return the size of the largest array in the compiled forward and backward pass."""

    def total(*qkv: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(function(*qkv)))

    text = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*qkv).compile().as_text()
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in re.findall(r"\[([\d,]+)\]", text))


def test_nothing_holds_all_queries_by_all_keys() -> None:
    qkv = make_qkv(batch=1, length=512, prefix=8, heads=1)
    mask = ChunkCausal(chunk=64, prefix=8)
    all_pairs = 512 * 520
    assert largest_intermediate(lambda q, k, v: dense(q, k, v, mask, None), qkv) >= all_pairs
    assert largest_intermediate(lambda q, k, v: attention(q, k, v, mask=mask), qkv) <= all_pairs // 8


def test_sequence_sharding_changes_nothing() -> None:
    """Heads are scattered and tokens gathered; with an odd prefix the number of keys does not divide."""
    batch, length, prefix = 4, 12, 3
    q, k, v = make_qkv(batch=batch, length=length, prefix=prefix)
    mask = ChunkCausal(chunk=4, prefix=prefix)
    key_mask = jnp.ones((batch, prefix + length), bool).at[1, 1].set(False)

    def function(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attention(q, k, v, mask=mask, key_mask=key_mask)

    expected = values_and_gradients(function, (q, k, v))
    devices = mesh.make_mesh(data=2, fsdp=2, sequence=2)
    whole, split = (axes.sharding(devices, ("batch", name, None, None)) for name in (None, "sequence"))
    with jax.set_mesh(devices):
        placed = (jax.device_put(q, split), jax.device_put(k, whole), jax.device_put(v, whole))
        actual = values_and_gradients(function, placed)
        text = jax.jit(function).lower(*placed).compile().as_text()
    assert_close(actual, expected)
    assert actual[0].sharding.is_equivalent_to(split, ndim=4)
    # Every device computes the logits of one sample and one head, in full length.
    assert f"f32[1,1,4,{prefix + 4}]" in text or f"f32[1,4,{prefix + 4}]" in text
    assert f"[1,2,4,{prefix + 4}]" not in text


# Every backend, every mask

#: Mask and length of the keys before those of the queries' own tokens.
MASKS: list[tuple[Mask | None, int]] = [
    (None, 5),
    (ChunkCausal(chunk=12, prefix=5), 5),
    (Causal(), 0),
    (Prefix(9), 0),
    (SlidingWindow(left=7, right=2), 0),
]


def make_case(mask: Mask | None, prefix: int, *, heads: int, length: int = 48) -> tuple[Arrays, jax.Array, Arrays]:
    """Return q, k, v; a key mask; and the output and gradients by definition."""
    qkv = make_qkv(length=length, prefix=prefix, heads=heads, head_dim=8)
    key_mask = jnp.ones((2, prefix + length), bool).at[1, jnp.array([1, 8, 20])].set(False)
    return qkv, key_mask, values_and_gradients(lambda q, k, v: dense(q, k, v, mask, key_mask), qkv)


@pytest.mark.parametrize(("mask", "prefix"), MASKS)
def test_splash_equals_the_definition(mask: Mask | None, prefix: int) -> None:
    """The kernel is interpreted on a CPU, with several blocks in both directions; lengths and heads fill no block."""
    qkv, key_mask, expected = make_case(mask, prefix, heads=1, length=144)
    function = functools.partial(
        splash.attention, mask=mask, key_mask=key_mask, blocks=splash.Blocks(128, 128, 128), interpret=True
    )
    assert_close(values_and_gradients(function, qkv), expected)


@pytest.mark.parametrize(("mask", "prefix"), MASKS)
def test_long_sequences_are_computed_in_parts(mask: Mask | None, prefix: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla, "MAX_BLOCKS", 5)
    monkeypatch.setattr(xla, "BLOCK_ROWS", 10)
    qkv, key_mask, expected = make_case(mask, prefix, heads=2)
    function = functools.partial(xla.attention, mask=mask, key_mask=key_mask, max_logits=4 * 7 * 48)
    assert_close(values_and_gradients(function, qkv), expected)
    if mask is None:
        assert largest_intermediate(function, qkv) < qkv[0].shape[1] * qkv[1].shape[1]


@pytest.mark.parametrize(
    ("mask", "prefix", "heads", "sizes"),
    [*((*case, 3, (1, 2, 4)) for case in MASKS), *((*case, 2, (2, 1, 4)) for case in MASKS[:2])],
)
def test_rings(mask: Mask | None, prefix: int, heads: int, sizes: tuple[int, int, int]) -> None:
    """Three heads on four devices form one ring; two heads on four are split in two, with rings of two devices."""
    qkv, key_mask, expected = make_case(mask, prefix, heads=heads, length=48 if isinstance(mask, ChunkCausal) else 46)
    devices = mesh.make_mesh(**dict(zip(mesh.AXIS_NAMES, sizes, strict=True)))
    with jax.set_mesh(devices):
        actual = values_and_gradients(lambda q, k, v: attention(q, k, v, mask=mask, key_mask=key_mask), qkv)
    assert_close(actual, expected)


def test_rings_skip_fully_masked_blocks() -> None:
    """A causal mask on 4 devices leaves 36 of the 64 pairs of blocks: 9 for each device."""
    plan = ring.Ring(axis="sequence", size=4, stride=1, lead=0, width=None, halves=2, name="x")
    keys = jnp.ones((1, 6, 1, 1))
    blocks = [ring._Block(keys, keys, jnp.int32(6 * i), jnp.ones((1, 6), bool)) for i in range(8)]
    stops = jnp.arange(1, 49).reshape(8, 6)
    counts = [sum(bool(ring._any_visible(stops[q], k, None)) for q in plan.parts(i) for k in blocks) for i in range(4)]
    assert counts == [9, 9, 9, 9]


# Which backend

REQUEST: dict[str, Any] = {
    "mask": None,
    "key_mask": True,
    "lengths": (4096, 4352),
    "heads": 16,
    "head_dim": 128,
    "dtype": jnp.dtype("bfloat16"),
}
INTERVALS = Intervals(jnp.zeros((1, 256), jnp.int32), jnp.ones((1, 256), jnp.int32))


@pytest.mark.parametrize(
    ("platform", "implementation", "changes", "backend", "reason"),
    [
        ("cpu", "auto", {}, "xla", "no kernel for the platform 'cpu'"),
        ("gpu", "auto", {}, "cudnn", "the kernel for the platform"),
        ("gpu", None, {"mask": ChunkCausal(1024, 256)}, "cudnn", "the kernel for the platform"),
        ("tpu", "auto", {"head_dim": 36}, "splash", "the kernel for the platform"),
        ("tpu", "xla", {}, "xla", "the config asks for it"),
        ("tpu", "auto", {"lengths": (16, 4096)}, "xla", "16 tokens are too few"),
        ("tpu", "splash", {"lengths": (16, 4096)}, "splash", "the config asks for it"),
        ("tpu", "auto", {"head_dim": 512}, "xla", "head size of at most 256, not 512"),
        ("cpu", "splash", {}, "xla", "splash does not run on the platform 'cpu'"),
        ("gpu", "auto", {"dtype": jnp.dtype("float32")}, "xla", "bfloat16 and float16, not float32"),
        ("gpu", "auto", {"head_dim": 36}, "xla", "multiple of 8 and at most 128, not 36"),
        ("gpu", "auto", {"mask": Causal()}, "cudnn", "the kernel for the platform"),
        ("gpu", "auto", {"mask": Causal(), "lengths": (2**14, 2**14)}, "xla", "Causal with padding for at most"),
        ("gpu", "auto", {"head_dim": 256}, "xla", "multiple of 8 and at most 128, not 256"),
        ("gpu", "auto", {"mask": Causal(), "key_mask": False}, "cudnn", "the kernel for the platform"),
        ("gpu", "auto", {"mask": SlidingWindow(8, 8), "key_mask": False}, "cudnn", "the kernel for the platform"),
        ("gpu", "auto", {"mask": INTERVALS}, "cudnn", "the kernel for the platform"),
        ("gpu", "auto", {"mask": INTERVALS, "lengths": (2**14, 2**14)}, "xla", "Intervals with padding for at most"),
        ("tpu", "auto", {"mask": INTERVALS, "lengths": (256, 2**15)}, "splash", "the kernel for the platform"),
        ("tpu", "auto", {"mask": INTERVALS, "lengths": (256, 2**15 + 1)}, "xla", "at most 32768 keys, not 32769"),
    ],
)
def test_choice(platform: str, implementation: Any, changes: dict[str, Any], backend: str, reason: str) -> None:
    with jax.default_matmul_precision("default"):
        chosen = backends.choose(implementation, Request(**REQUEST | changes), platform=platform)
    assert chosen.backend.name == backend
    assert reason in chosen.reason


def test_splash_and_the_precision_of_tests() -> None:
    """Mosaic has no bfloat16 product of the highest precision."""
    with jax.default_matmul_precision("highest"):
        assert backends.choose("auto", Request(**REQUEST), platform="tpu").backend is xla.BACKEND
        float32 = Request(**REQUEST | {"dtype": jnp.dtype("float32")})
        assert backends.choose("auto", float32, platform="tpu").backend is splash.BACKEND


def test_a_fall_back_is_announced_once(caplog: pytest.LogCaptureFixture) -> None:
    backends._announce_fall_back.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            backends.choose("cudnn", Request(**REQUEST), platform="cpu")
    (record,) = caplog.records
    assert "cudnn does not run on the platform 'cpu'; XLA computes it instead" in record.getMessage()


#: Masks, lengths of their keys before the queries' own tokens, and whether keys are padded. Lengths, chunks and
#: prefixes are odd.
ODD_MASKS: list[tuple[Mask | None, int, bool]] = [
    (None, 0, False),
    (None, 6, True),
    (ChunkCausal(chunk=9, prefix=4), 4, True),
    (ChunkCausal(chunk=9, prefix=5), 5, False),
    (Causal(), 0, False),
    (Causal(), 0, True),
    (Prefix(9), 0, False),
    (SlidingWindow(left=6), 0, False),
    (SlidingWindow(left=7, right=2), 0, True),
]


def call_in_xla(q: jax.Array, k: jax.Array, v: jax.Array, **options: Any) -> jax.Array:
    """Answer for cuDNN, which JAX differentiates only for even lengths; it has no argument for other masks."""
    assert set(options) <= {"is_causal", "local_window_size", "key_value_seq_lengths", "mask"}
    assert q.shape[1] % 2 == k.shape[1] % 2 == 0
    return jax.nn.dot_product_attention(q, k, v, implementation="xla", **options)


def assert_equal_with_cudnn(mask: Any, qkv: Arrays, key_mask: jax.Array | None, allowed: Mask | None) -> None:
    """Compare the arguments of cuDNN with the definition: values and gradients, relative to the largest."""
    actual = values_and_gradients(lambda *x: cudnn.attention(*x, mask=mask, key_mask=key_mask), qkv)
    expected = values_and_gradients(lambda q, k, v: dense(q, k, v, allowed, key_mask), qkv)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize(("mask", "prefix", "padded"), ODD_MASKS)
def test_cudnn_arguments_match_the_mask(
    mask: Mask | None, prefix: int, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cudnn, "_call", call_in_xla)
    # Key 0 stays: every query attends to a key.
    key_mask = make_key_mask(prefix + 27, prefix or 1) if padded else None
    assert_equal_with_cudnn(mask, make_qkv(length=27, prefix=prefix, heads=2, head_dim=8), key_mask, mask)


def test_cudnn_arguments_match_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn, "_call", call_in_xla)
    window = SlidingWindow(left=5, right=2)
    stops = window.stops(27)
    ends = (np.maximum(stops - window.width, 0), np.minimum(stops, 27))
    intervals = Intervals(*(jnp.tile(end, (2, 1)) for end in ends), within=SlidingWindow(9, 9))
    qkv = make_qkv(length=27, prefix=0, heads=2, head_dim=8)
    assert_equal_with_cudnn(intervals, qkv, make_key_mask(27, 1), window)


@pytest.mark.parametrize("mask", [Causal(), Prefix(3), SlidingWindow(4)])
def test_self_attention_needs_as_many_keys_as_queries(mask: Mask) -> None:
    q, k = jnp.ones((1, 8, 1, 4)), jnp.ones((1, 9, 1, 4))
    with pytest.raises(ValueError, match="got 8 queries and 9 keys"):
        attention(q, k, k, mask=mask)


# Recomputation in the backward pass


def operations(jaxpr: Any, name: str) -> int:
    """Count a primitive in a program, inner programs included."""
    inner = sum(operations(part, name) for eqn in jaxpr.eqns for part in jax.extend.core.jaxprs_in_params(eqn.params))
    return inner + sum(eqn.primitive.name == name for eqn in jaxpr.eqns)


def layer_program(remat: str, backend: Callable[..., jax.Array], dtype: Any) -> Any:
    """Trace the gradient of one layer."""

    def layer(w: jax.Array, x: jax.Array) -> jax.Array:
        q = (x @ w).reshape(1, 32, 2, 8)
        return jnp.sin(backend(q, 2 * q, 3 * q, mask=None, key_mask=None).reshape(1, 32, 16) @ w)

    policy = stack.REMAT_POLICIES[remat]
    wrapped = layer if policy is None else jax.checkpoint(layer, policy=policy)
    gradient = jax.grad(lambda w, x: jnp.sum(wrapped(w, x)).astype(jnp.float32))
    return jax.make_jaxpr(gradient)(jnp.ones((16, 16), dtype), jnp.ones((1, 32, 16), dtype)).jaxpr


@pytest.mark.parametrize(("remat", "products"), [("none", 0), ("attention", 3), ("offload", 3), ("full", 4)])
def test_xla_recomputes(remat: str, products: int) -> None:
    """With a saved output: both projections and the logits. With nothing saved: the output too."""
    counts = [operations(layer_program(name, xla.attention, jnp.float32), "dot_general") for name in (remat, "none")]
    assert counts[0] - counts[1] == products


@pytest.mark.parametrize(("remat", "calls"), [("none", 1), ("attention", 1), ("offload", 1), ("full", 2)])
def test_cudnn_recomputes(remat: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    assert operations(layer_program(remat, cudnn.attention, jnp.bfloat16), cudnn.FORWARD) == calls


def test_rings_are_not_repeated() -> None:
    """With a saved output the backward pass runs only its own ring, not that of the forward pass again."""
    counts = {}
    with jax.set_mesh(mesh.make_mesh(fsdp=2, sequence=4)):
        for remat in ("none", "attention", "full"):
            program = layer_program(remat, lambda *x, mask, key_mask: attention(*x), jnp.float32)
            counts[remat] = operations(program, "ppermute")
    assert 0 < counts["none"] == counts["attention"] < counts["full"]
