"""Tiny decoders: every part matters for a golden case, and a mesh does not.

The golden cases themselves compare clips in one piece and by chunks, and videos in calls, with the original.
"""

import itertools
import pathlib
from collections.abc import Callable

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity_checks import tiny_decoders

from jworld.models.autoencoders import taehv
from jworld.parallel import axes
from jworld.parallel import mesh as mesh_lib
from jworld.utils.errors import UserError

GOLDEN = pathlib.Path(golden_cases.__file__).parent / "golden" / "vae"
CASE = golden_cases.GoldenCase(GOLDEN / "taehv_wan21")
LATENTS = np.moveaxis(CASE.inputs["latent_L3"], 2, -1)
EXPECTED = np.moveaxis(CASE.outputs["decoded_L3"], 2, -1)


@pytest.fixture(scope="module")
def model() -> taehv.TinyDecoder:
    return tiny_decoders.load(CASE)


def error(model: taehv.TinyDecoder) -> jax.Array:
    """Return the relative error of the golden case."""
    frames, _ = model._frames(jnp.asarray(LATENTS), None)
    return jnp.linalg.norm((frames[:, 3:] + 1) / 2 - EXPECTED) / np.linalg.norm(EXPECTED)


def check(disturbed: Callable[[jax.Array], jax.Array], parts: int) -> None:
    """Check that the golden case fails if a part is disturbed, for each part, and is far from that if none is."""
    *errors, undisturbed = jax.jit(lambda: jax.lax.map(disturbed, jnp.arange(parts + 1)))()
    assert undisturbed < 1e-5
    passing = {part: float(value) for part, value in enumerate(errors) if value < golden_cases.DEFAULT_TOLERANCE}
    assert not passing


def test_every_memory_matters(model: taehv.TinyDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    own, seen = taehv.MemoryBlock.__call__, 9

    def disturbed(chosen: jax.Array) -> jax.Array:
        number = itertools.count()

        def call(block: taehv.MemoryBlock, x: jax.Array, past: jax.Array | None) -> tuple[jax.Array, jax.Array]:
            y, cache = own(block, x, past)
            # Each frame alone, after a frame of zeros.
            alone, _ = own(block, x.reshape(-1, 1, *x.shape[2:]), None)
            return jnp.where(next(number) == chosen, alone.reshape(x.shape), y), cache

        with monkeypatch.context() as patch:
            patch.setattr(taehv.MemoryBlock, "__call__", call)
            found = error(model)
        assert next(number) == seen
        return found

    check(disturbed, seen)


def test_every_activation_matters(model: taehv.TinyDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    # After the first convolution, three in each of nine blocks, and before the last convolution.
    seen = 1 + 27 + 1

    def disturbed(chosen: jax.Array) -> jax.Array:
        number = itertools.count()
        with monkeypatch.context() as patch:
            patch.setattr(nnx, "relu", lambda x: jnp.where(next(number) == chosen, x, jax.nn.relu(x)))
            own = jnp.tanh
            patch.setattr(jnp, "tanh", lambda x: jnp.where(chosen == seen, x, own(x)))
            found = error(model)
        assert next(number) == seen
        return found

    check(disturbed, seen + 1)


def test_every_weight_matters(model: taehv.TinyDecoder) -> None:
    graphdef, state = nnx.split(model)
    leaves = nnx.to_flat_state(state)

    def disturbed(chosen: jax.Array) -> jax.Array:
        changed = [(path, leaf.replace(leaf[...] * (chosen != i))) for i, (path, leaf) in enumerate(leaves)]
        return error(nnx.merge(graphdef, nnx.from_flat_state(changed)))

    check(disturbed, len(leaves))


def test_a_mesh_does_not_matter(model: taehv.TinyDecoder) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 3, 2, 4, 16)).astype(np.float32)
    expected = jax.jit(taehv.TinyDecoder.decode)(model, latents)
    assert expected.shape == (2, 9, 16, 32, 3)
    mesh = mesh_lib.make_mesh(data=2, fsdp=1, sequence=2, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = jax.device_put(latents, axes.sharding(mesh, ("batch",)))
        graphdef, state = nnx.split(model)
        everywhere = nnx.merge(graphdef, jax.device_put(state, axes.sharding(mesh, ())))
        found = jax.jit(taehv.TinyDecoder.decode)(everywhere, placed)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_mistakes(model: taehv.TinyDecoder) -> None:
    with pytest.raises(UserError, match=r"expected \[B, F, H, W, 16\]"):
        model.decode(jnp.zeros((1, 2, 2, 2, 8)))
    with pytest.raises(UserError, match="widths has 3 entries, expected 4"):
        taehv.TinyConfig(latent_channels=16, widths=(8, 8, 8))
    with pytest.raises(UserError, match="latent_channels"):
        taehv.TinyConfig(latent_channels=0)


def test_the_hash_follows_weights_and_config(model: taehv.TinyDecoder) -> None:
    same, other = tiny_decoders.load(CASE), tiny_decoders.load(CASE, even_whole=True)
    assert model.hash() == same.hash() != other.hash()
    same.leave.bias[...] += 1
    assert model.hash() != same.hash()
