"""Networks of Cosmos that predict clean latents: their velocity, their loss, tokens that are joined, refusals."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conversion import cosmos, cosmos_diffusers
from jworld.diffusion import rectified_flow
from jworld.models.cosmos.config import CosmosConfig
from jworld.models.cosmos.transformer import CosmosInputs, CosmosTransformer
from jworld.systems.cosmos import objective, system
from jworld.utils import errors

FRAMES, SIZE, CHANNELS = 3, (2, 6), 4
CONFIG = CosmosConfig(
    channels=CHANNELS,
    width=24,
    num_heads=2,
    num_layers=1,
    text_dim=6,
    text_width=6,
    modulation_rank=4,
    dtype=jnp.float32,
    remat="none",
    prediction="clean",
    output_kernel=3,
)
CLEAN = jax.random.normal(jax.random.key(0), (2, FRAMES, *SIZE, CHANNELS))
NOISE = jax.random.normal(jax.random.key(1), CLEAN.shape)
BATCH = {"latent": CLEAN, "text_states": jnp.ones((2, 5, 6))}
#: Times of 1/11 and 2/3.
SIGMA = jnp.array([[0.1], [2.0]])
DRAWS = objective.Draws(SIGMA, NOISE, jnp.array([1, 2]), jnp.array([True, True]))


def network(**changes: Any) -> CosmosTransformer:
    with nnx.use_eager_sharding(False):
        return CosmosTransformer(dataclasses.replace(CONFIG, **changes), rngs=nnx.Rngs(0))


class Oracle:
    """A model whose last layer predicts `output`, whatever its inputs are."""

    def __init__(self, output: jax.Array, prediction: str) -> None:
        self.output, self.model = output, network(prediction=prediction, output_kernel=1)

    def __call__(self, inputs: CosmosInputs) -> jax.Array:
        return self.model._velocity(self.output, inputs)


def loss_of(model: Any, **settings: Any) -> tuple[float, float]:
    value, metrics = objective.loss(model, BATCH, DRAWS, objective.ObjectiveConfig(**settings))
    return float(value), float(metrics["velocity_error"])


@pytest.mark.parametrize(("output", "prediction"), [(CLEAN, "clean"), (NOISE - CLEAN, "velocity")])
def test_true_predictions_have_no_loss(output: jax.Array, prediction: str) -> None:
    """Clean latents and velocities, at high and at low noise; conditioning frames, at time 1e-4, do not matter."""
    oracle: Any = Oracle(output, prediction)
    assert loss_of(oracle) == pytest.approx((0, 0), abs=1e-8)
    found = objective.predict(oracle, BATCH, DRAWS, objective.ObjectiveConfig())
    np.testing.assert_allclose(found, CLEAN, atol=1e-5)


def test_the_loss_of_clean_latents_is_that_of_their_velocity() -> None:
    """With an error of d in the latents, the velocity is wrong by d / time."""
    wrong: Any = Oracle(CLEAN + 0.1, "clean")
    frames = np.array([2, 1])
    expected = np.sum(frames * (0.1 / np.array([1 / 11, 2 / 3])) ** 2)
    value, error = loss_of(wrong, scale=1.0)
    assert value == pytest.approx(expected / (2 * FRAMES), rel=1e-4)
    assert error == pytest.approx(expected / frames.sum(), rel=1e-4)


def test_errors_at_low_noise_count_less_below_the_floor() -> None:
    """Below the floor an error counts as an error of clean latents does there; the metric has no weights."""
    wrong: Any = Oracle(CLEAN + 0.1, "clean")
    plain, error = loss_of(wrong, scale=1.0)
    assert loss_of(wrong, scale=1.0, sigma_floor=1 / 12) == pytest.approx((plain, error), rel=1e-6)
    value, same = loss_of(wrong, scale=1.0, sigma_floor=0.5)
    assert same == pytest.approx(error, rel=1e-6)
    expected = (2 * (0.1 / 0.5) ** 2 + (0.1 / (2 / 3)) ** 2) / (2 * FRAMES)
    assert value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("time", [1.0, 0.4, 0.002])
def test_the_velocity_leads_to_the_output_of_the_last_layer(time: float) -> None:
    """Times of sampling; the output is that of a network with the same weights that predicts a velocity."""
    plain = network(prediction="velocity", output_kernel=1)

    def clean(network: CosmosTransformer) -> jax.Array:
        def call(video: jax.Array, times: jax.Array) -> jax.Array:
            return network(CosmosInputs(video, times, BATCH["text_states"], given=given.mask))

        return rectified_flow.denoise_flow(call, NOISE, jnp.full(2, time), given)

    mask = objective.conditioning_mask(jnp.array([1, 1]), FRAMES)
    given = rectified_flow.ConditioningFrames(CLEAN, mask)
    found = clean(network(output_kernel=1))
    output = (NOISE - clean(plain)) / time
    np.testing.assert_array_equal(found[:, 0], CLEAN[:, 0])
    np.testing.assert_allclose(found[:, 1:], output[:, 1:], atol=2e-4)
    assert float(jnp.abs(output[:, 1:]).max()) > 0.1


def test_neighbors_are_joined_across_tokens_and_not_across_frames() -> None:
    joined, plain = network(), network(output_kernel=1)
    inputs = CosmosInputs(NOISE, jnp.full((2, FRAMES), 0.5), BATCH["text_states"])

    def clean(model: CosmosTransformer) -> np.ndarray:
        return np.array(NOISE - 0.5 * model(inputs))

    expected = clean(plain)
    np.testing.assert_allclose(clean(joined), expected, atol=1e-5)  # the convolution starts from zero
    # Channel 0 of the left neighbor is added to channel 1.
    joined.join.kernel[...] = jnp.zeros_like(joined.join.kernel[...]).at[1, 0, 0, 1].set(1.0)
    added = expected[:, :, :, :-1, 0]
    assert np.abs(added[:, :, :, 1::2]).min() > 0
    expected[:, :, :, 1:, 1] += added
    np.testing.assert_allclose(clean(joined), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"prediction": "velocity"}, "needs 'clean'"), ({"output_kernel": 2}, "expected an odd number")],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **options)


@pytest.mark.parametrize("layout", [cosmos, cosmos_diffusers], ids=lambda layout: layout.LAYOUT.name)
def test_originals_cannot_run_them(layout: Any) -> None:
    assert layout.rules(CosmosConfig())
    with pytest.raises(errors.UserError, match=r"model\.prediction is 'clean', expected 'velocity'"):
        layout.rules(CONFIG)


@pytest.mark.parametrize(("size", "tokens"), [((3, 4), ["--config.model.patch_size=(1,1,1)"]), ((4, 6), [])])
def test_own_records_with_odd_latents_have_a_token_for_each(size: tuple[int, int], tokens: list[str]) -> None:
    manifest = {
        "source": "videos",
        "arrays": {"latent": {}, "prompt": {}},
        "autoencoder": {"family": "linear"},
        "latent_shape": [*size, 96],
        "text_encoder": {"dim": 64},
        "clips": {"train": [8]},
        "temporal_ratio": 4,
    }
    command = system.Cosmos.train_command(manifest, pathlib.Path("records"))
    assert command is not None
    assert command[0] == "--config=configs/cosmos_video2world.py:base"
    assert [word for word in command if "patch_size" in word] == tokens
