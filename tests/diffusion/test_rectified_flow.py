"""Rectified flow and its sampler: identities, distributions and the order of the solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jworld.diffusion import adams_bashforth, rectified_flow

SHAPE = (2, 3, 4, 5, 2)


def normal(seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), SHAPE)


def test_the_loss_is_that_of_the_velocity() -> None:
    """Weighted errors of the clean video are errors of noise - clean; conditioning frames count as zero in the mean."""
    clean, noise, velocity = (normal(seed) for seed in range(3))
    sigma, mask = jnp.array([[0.4], [300.0]]), rectified_flow.given_mask(jnp.array([1, 2]), SHAPE[1])
    loss, frames = rectified_flow.training_loss(lambda video, time: velocity, clean, noise, sigma, mask)
    error = (1 - mask)[..., None, None, None] * jnp.square(velocity - (noise - clean))
    np.testing.assert_allclose(loss, 10 * jnp.mean(error), rtol=1e-4)
    np.testing.assert_allclose(frames, jnp.mean(error, axis=(2, 3, 4)), rtol=1e-4, atol=1e-6)


def test_a_perfect_network_finds_the_clean_video() -> None:
    """Images are included: they have no conditioning frames and one time for the whole sample."""
    clean, noise = normal(0), normal(1)
    for mask in (None, rectified_flow.given_mask(jnp.array([0, 1]), SHAPE[1])):
        times = []

        def network(video: jax.Array, time: jax.Array, times: list[jax.Array] = times) -> jax.Array:
            times.append(time)
            return noise - clean

        sigma = jnp.array([0.5, 3.0])
        given = None if mask is None else rectified_flow.ConditioningFrames(clean, mask)
        noisy = rectified_flow.add_noise(clean, noise, sigma)
        found = rectified_flow.denoise(network, noisy, sigma, given)
        np.testing.assert_allclose(found, clean, atol=1e-6)
        if mask is None:
            np.testing.assert_allclose(times[0], [[1 / 3], [0.75]], rtol=1e-6)
        else:
            np.testing.assert_allclose(times[0], [[1 / 3] * 3, [1e-4, 0.75, 0.75]], rtol=1e-4)


def test_noise_levels_of_training() -> None:
    draws = rectified_flow.sample_sigma(jax.random.key(0), 20_000, frames=24, high_ratio=0.0)
    assert draws.shape == (20_000, 1)
    logs = np.log(np.asarray(draws))
    np.testing.assert_allclose([logs.mean(), logs.std()], [0.5 * np.log(24), 1.0], atol=0.03)
    mixed = rectified_flow.sample_sigma(jax.random.key(0), 20_000, frames=24, high_ratio=0.05)
    high = np.asarray(mixed[mixed != draws])
    np.testing.assert_allclose(high.size / 20_000, 0.05, atol=0.005)
    assert 200 <= high.min() < 300
    assert 60_000 < high.max() <= 100_000
    np.testing.assert_allclose(np.log(high).mean(), np.log(200 * 100_000) / 2, atol=0.15)


def test_guidance() -> None:
    """In the usual convention the scale is 1 + guidance."""
    one, other = normal(0), normal(1)
    np.testing.assert_array_equal(rectified_flow.guided(one, other, 0.0), one)
    np.testing.assert_allclose(rectified_flow.guided(one, other, 7.0), other + 8 * (one - other), atol=1e-5)


def gaussian_error(steps: int) -> float:
    """Return the relative error of a sample of normal data, for which the best prediction and the path are known."""
    spread, sigmas = 2.0, adams_bashforth.noise_levels(steps)

    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return x * spread**2 / (spread**2 + rectified_flow.per_frame(sigma) ** 2)

    noise = normal(0)
    levels = np.array([sigmas[-1], sigmas[0]])
    last, first = np.sqrt(spread**2 + levels**2)
    expected = sigmas[0] * noise * last / first * spread**2 / last**2
    found = adams_bashforth.sample(denoise, noise, sigmas)
    return float(jnp.linalg.norm((found - expected).ravel()) / jnp.linalg.norm(expected.ravel()))


def test_the_solver_is_of_second_order() -> None:
    coarse, fine = gaussian_error(40), gaussian_error(80)
    assert fine < 3e-3
    assert coarse / fine == pytest.approx(4, rel=0.15)
