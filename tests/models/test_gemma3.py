"""Gemma-3: published sizes, image spans, the slots of the KV cache, and layers of two kinds on a mesh."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jworld.models.gemma3 import cache, decoding, flops, masks
from jworld.models.gemma3.config import Gemma3Config, Kind
from jworld.models.gemma3.model import Gemma3
from jworld.models.layers import stack
from jworld.models.layers.attention import xla
from jworld.parallel import axes, mesh
from jworld.planning import arithmetic

TINY = {
    "vocabulary": 40,
    "width": 16,
    "mlp_width": 24,
    "num_layers": 4,
    "num_heads": 4,
    "num_key_heads": 2,
    "head_dim": 8,
    "pattern": ("sliding", "sliding", "full"),
    "window": 4,
    "image_token": 39,
    "image_tokens": 4,
    "vision_width": 16,
    "vision_mlp_width": 24,
    "vision_layers": 1,
    "vision_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "dtype": jnp.float32,
}


def tiny(**changes: object) -> Gemma3Config:
    return Gemma3Config(**(TINY | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(("vocabulary", "language"), [(262208, 3_880_263_168), (262147, 3_880_107_008)])
def test_published_sizes(vocabulary: int, language: int) -> None:
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: Gemma3(Gemma3Config(vocabulary=vocabulary), rngs=nnx.Rngs(0)))
    params = nnx.state(model, nnx.Param)
    counts = {name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params[name])) for name in params}
    assert counts == {"language": language, "vision": 416_866_032, "projector": 2_950_272}


def test_full_layers_of_the_published_model() -> None:
    kinds = Gemma3Config().kinds
    assert [i for i, kind in enumerate(kinds) if kind == "full"] == [5, 11, 17, 23, 29]
    assert stack.period(kinds) == 6


def test_image_spans() -> None:
    images = jnp.asarray([[0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 1, 1]], bool)
    first, last = masks.image_spans(images)
    found = [[(int(a), int(b)) for a, b in zip(*row, strict=True)] for row in zip(first, last, strict=True)]
    assert [found[0][i] for i in (1, 2, 4)] == [(1, 3), (1, 3), (4, 5)]
    assert [found[1][i] for i in (0, 1, 4, 5)] == [(0, 2), (0, 2), (4, 6), (4, 6)]


def test_image_spans_exceed_the_window() -> None:
    """As in version 4 of the original, an image span longer than the window stays whole."""
    images = jnp.asarray([[0, 1, 1, 1, 1, 1, 1, 0]], bool)
    sliding = masks.masks(tiny(window=2), 8, masks.Images(images, longest=6))["sliding"]
    assert isinstance(sliding, masks.Intervals)
    assert sliding.starts[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 6]
    assert sliding.stops[0].tolist() == [1, 7, 7, 7, 7, 7, 7, 8]


@pytest.mark.parametrize("length", [2, 4, 7])
def test_a_ring_keeps_the_last_tokens(length: int) -> None:
    """Token i is in slot i mod 4, and the next one attends to the three before it."""
    cfg = tiny(num_layers=1, pattern=("sliding",))
    valid = jnp.ones((1, length), bool).at[0, length - 2].set(False)
    stored = cache.create(cfg, valid, capacity=12)
    tokens = jnp.arange(1.0, length + 1)[None, :, None, None] * jnp.ones((1, length, 2, 8))
    store = cache.write(stored.layers["sliding"], jnp.int32(0), tokens, tokens, stored.length, jnp.bool(True))
    stored = cache.grown(stored, {"sliding": store}, length)
    slots = [int(x) - 1 for x in store.keys[0, 0, :, 0, 0]]
    assert all(token % 4 == slot for slot, token in enumerate(slots) if token >= 0)
    assert sorted(token for token in slots if token >= 0) == list(range(max(length - 4, 0), length))
    visible = cache.visible(cache.admit(stored), 4)[0]
    expected = [token for token in range(max(length - 3, 0), length) if token != length - 2]
    tokens_by_slot = dict(enumerate(slots)) | {length % 4: length}
    assert sorted(tokens_by_slot[slot] for slot in range(4) if visible[slot]) == [*expected, length]


def test_padding_moves_to_the_front() -> None:
    embeds = jnp.arange(10.0).reshape(2, 5, 1)
    mask = jnp.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    moved, moved_mask = decoding.align_right(embeds, mask)
    assert moved[:, :, 0].tolist() == [[3, 4, 0, 1, 2], [5, 6, 7, 8, 9]]
    assert moved_mask.tolist() == [[False, False, True, True, True], [True] * 5]


@pytest.mark.slow
def test_a_mesh_changes_nothing() -> None:
    """The width of the embedding, the batch and the tokens are sharded; the answer is the same."""
    cfg = tiny()
    tokens = jax.random.randint(jax.random.key(1), (4, 12), 0, 39).at[:, 3:7].set(39)
    pixels = jax.random.normal(jax.random.key(2), (4, 1, 16, 16, 3))

    def run(model: Gemma3) -> jax.Array:
        return model(tokens, pixels, images=masks.Images(tokens == 39, longest=4))

    def make() -> Gemma3:
        return Gemma3(cfg, rngs=nnx.Rngs(0))

    with nnx.use_eager_sharding(False):
        model = make()
    graphdef, state = nnx.split(model)
    expected = jax.jit(lambda state: run(nnx.merge(graphdef, state)))(state)
    devices = mesh.make_mesh(data=2, fsdp=2, sequence=2)
    with jax.set_mesh(devices), nnx.logical_axis_rules(axes.RULES):
        shardings = nnx.get_named_sharding(nnx.eval_shape(lambda: nnx.state(make())), devices)
        leaves = jax.tree.leaves(shardings)
        placed = [jax.device_put(x, s) for x, s in zip(jax.tree.leaves(state), leaves, strict=True)]
        assert {leaf.spec for leaf in leaves} >= {jax.P(None, ("fsdp", "sequence"))}
        merged = jax.tree.unflatten(jax.tree.structure(state), placed)
        actual = jax.jit(lambda state: run(nnx.merge(graphdef, state)))(merged)
    np.testing.assert_allclose(actual, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("pattern", [("sliding",), ("full",)])
def test_operations_by_formula(monkeypatch: pytest.MonkeyPatch, pattern: tuple[Kind, ...]) -> None:
    """The reference is the traced forward pass, which in blocks of one row computes no masked pair."""
    monkeypatch.setattr(xla, "BLOCK_ROWS", 1)
    cfg, length = tiny(pattern=pattern), 12
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: Gemma3(cfg, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    pixels = jax.ShapeDtypeStruct((1, 1, 16, 16, 3), jnp.float32)
    traced = jax.make_jaxpr(lambda state, *x: nnx.merge(graphdef, state)(*x))(state, tokens, pixels)
    text, vision = flops.text_flops(cfg, tokens=length, predictions=length), flops.vision_flops(cfg)
    assert arithmetic.count(traced).all == text.total + vision.total


def test_operations_of_two_kinds() -> None:
    """A full layer attends to 78 of the 144 pairs, a sliding one to 42."""
    cfg = tiny()
    assert flops.text_flops(cfg, tokens=12, predictions=12).attention == (78 + 3 * 42) * 4 * 4 * 8
