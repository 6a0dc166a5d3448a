"""References of WorldPlay: which latent conditions which, in training and in a rollout, and what is copied from it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hand_made import camera

from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import FrameInputs, HunyuanTransformer
from jworld.systems.worldplay import latents, objective, references

CONFIG = HunyuanConfig(
    channels=4,
    patch_size=(1, 2, 2),
    width=32,
    num_heads=4,
    num_layers=1,
    rope_dims=(4, 2, 2),
    refiner_layers=1,
    text_dim=6,
    glyph_dim=None,
    vision_dim=5,
    prediction="clean",
    references=True,
    output_kernel=3,
    dtype=jnp.float32,
    remat="none",
)
FRAMES, CHUNK, SIZE = 8, 2, (4, 4)


@pytest.fixture(autouse=True)
def without_mesh() -> Iterator[None]:
    with nnx.use_eager_sharding(False):
        yield


def batch() -> dict[str, Any]:
    """A clip that turns right by 20 degrees per latent, and in its last chunk stands where the first one did."""
    rng = np.random.default_rng(0)
    yaw = [0, 20, 40, 60, 80, 100, 0, 20]
    arrays = {
        "latent": rng.normal(size=(2, FRAMES, *SIZE, 4)),
        "image_cond": rng.normal(size=(2, 1, *SIZE, 4)),
        "w2c": np.tile(np.stack([camera(yaw=x) for x in yaw]), (2, 1, 1, 1)),
        "intrinsics": np.tile(np.diag([0.5, 0.8, 1.0]), (2, FRAMES, 1, 1)),
        "text_states": rng.normal(size=(2, 4, 6)),
        "vision_states": rng.normal(size=(2, 3, 5)),
    }
    floats = {name: jnp.asarray(value, jnp.float32) for name, value in arrays.items()}
    others = {"action": np.zeros((2, FRAMES), np.int32), "text_mask": np.ones((2, 4), bool)}
    return (
        floats | {name: jnp.asarray(value) for name, value in others.items()} | {"is_memory": jnp.array([True, False])}
    )


class Spy(nnx.Module):
    """A network that keeps the inputs of its calls."""

    def __init__(self) -> None:
        self.cfg, self.calls = CONFIG, nnx.data([])

    def __call__(self, frames: FrameInputs, *_: Any, **__: Any) -> jax.Array:
        self.calls.append(frames.video)
        return jnp.zeros_like(frames.video[..., :4])


def conditions(draws: objective.Draws) -> np.ndarray:
    """Return the condition and mask channels that a training step gives the network."""
    spy: Any = Spy()
    objective.predict(spy, batch(), draws, chunk_frames=CHUNK, shift=5.0)
    return np.asarray(spy.calls[-1][..., 4:])


def draws(**changes: Any) -> objective.Draws:
    drawn = objective.draw(jax.random.key(0), (2, FRAMES, *SIZE, 4), CHUNK, objective.ObjectiveConfig())
    return drawn._replace(**changes)


def test_training_conditions_on_the_context_alone() -> None:
    """The memory sample's last chunk copies the first two latents, that of the other sample its only given one."""
    given, found = batch(), conditions(draws())
    memory, other = found
    np.testing.assert_array_equal(memory[0], np.concatenate([given["image_cond"][0, 0], np.ones((*SIZE, 1))], -1))
    assert not memory[1:6].any()
    np.testing.assert_array_equal(memory[6:, ..., :4], given["latent"][0, :2])
    np.testing.assert_allclose(memory[6:, ..., 4], 1, atol=1e-4)
    np.testing.assert_array_equal(other[..., :4], np.broadcast_to(given["image_cond"][1], other[..., :4].shape))
    np.testing.assert_allclose(other[:, 0, 0, 4], np.exp(-np.array([0, 20, 40, 60, 80, 100, 0, 20]) / 12), rtol=1e-3)


def test_a_chunk_after_a_clean_context_finds_its_references_there() -> None:
    found = conditions(draws(context=jnp.array([0, 2])))[1]
    np.testing.assert_array_equal(found[4:, ..., :4], batch()["latent"][1, jnp.array([3, 3, 0, 1])])


def test_own_errors_are_the_references() -> None:
    """The latents that are predicted for the context are those that the last chunk may copy."""
    drawn = draws(own=jnp.array([True, False]))
    spy: Any = Spy()
    objective.predict(spy, batch(), drawn, chunk_frames=CHUNK, shift=5.0)
    first, second = spy.calls
    # Without context, the frames that are predicted for it know the first image alone.
    np.testing.assert_array_equal(first[0, :, ..., 4:8], np.broadcast_to(batch()["image_cond"][0], (FRAMES, *SIZE, 4)))
    made = first[0, :2, ..., :4]
    np.testing.assert_allclose(second[0, 6:, ..., 4:8], made, atol=1e-6)


def test_a_rollout_conditions_as_training_does() -> None:
    """Padding frames of the context do not count."""
    given, trained = batch(), conditions(draws())[0, 6:]
    chunk = latents.Frames(
        *(np.arange(6, 8), np.arange(6, 8), np.ones(2, bool)),
        *(np.asarray(given[name][0, 6:]) for name in ("action", "w2c", "intrinsics")),
    )
    padded = [*range(6), 6, 6]
    past, w2c = (given[name][:1, jnp.array(padded)] for name in ("latent", "w2c"))
    known = references.Known(past, w2c, jnp.arange(8)[None] < 6)
    noisy = np.zeros((2, *SIZE, 4), np.float32)
    inputs = latents.frame_inputs(chunk, noisy, given["image_cond"][0], 500.0, 1, known=known)
    np.testing.assert_array_equal(inputs.video[0, ..., 4:], trained)


def clean(network: HunyuanTransformer, video: jax.Array) -> jax.Array:
    """Return the clean latents that the network predicts for two frames."""
    given, time = batch(), jnp.full((2, 2), 400.0)
    frames = FrameInputs(video, time, given["action"][:, :2], given["w2c"][:, :2], given["intrinsics"][:, :2])
    text = TextInputs(given["text_states"], given["text_mask"], given["vision_states"])
    return video[..., :4] - 0.4 * network(frames, text, jnp.zeros(2), chunk_frames=CHUNK)


def video(closeness: float) -> jax.Array:
    values = jax.random.normal(jax.random.key(1), (2, 2, *SIZE, 9))
    return values.at[..., 8].set(closeness)


def test_a_gate_copies_the_reference_of_the_same_camera() -> None:
    network = HunyuanTransformer(CONFIG, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(clean(network, video(1.0)), 0, atol=1e-6)  # the output starts from zero
    network.copy_gate.bias[...] = jnp.ones_like(network.copy_gate.bias[...])
    given = video(1.0)
    np.testing.assert_allclose(clean(network, given), given[..., 4:8], atol=1e-5)
    np.testing.assert_allclose(clean(network, given.at[..., 8].set(0.25)), 0.25 * given[..., 4:8], atol=1e-5)
    np.testing.assert_allclose(clean(network, given.at[..., 8].set(0.0)), 0, atol=1e-6)


def test_neighbors_are_joined_across_tokens_and_not_across_frames() -> None:
    network = HunyuanTransformer(dataclasses.replace(CONFIG, references=False), rngs=nnx.Rngs(0))
    # Every token predicts 0 to 15, four channels of four latents, and its second frame the same.
    network.patch_out.bias[...] = jnp.arange(16.0)
    plain = np.asarray(clean(network, video(0.0)))
    # Channel 0 of the left neighbor is added to channel 1.
    network.join.kernel[...] = jnp.zeros_like(network.join.kernel[...]).at[1, 0, 0, 1].set(1.0)
    expected = plain.copy()
    expected[..., 1:, 1] += plain[..., :-1, 0]
    np.testing.assert_allclose(clean(network, video(0.0)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "velocity", "output_kernel": 1}, "references need 'clean'"),
        ({"prediction": "velocity", "references": False}, "output_kernel needs 'clean'"),
        ({"output_kernel": 2}, "expected an odd number"),
        ({"actions": False}, "found by cameras"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **options)
