"""v-prediction, windows and phases: limits, ranges, and an exact oracle for every trajectory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jworld.diffusion import consistency, v_prediction, windows

ALPHAS = v_prediction.alphas_cumprod()


def test_published_schedule() -> None:
    """The values are those of the published CogVideoX-2B scheduler."""
    known = {0: 0.9974543276, 24: 0.9330560314, 249: 0.3908897412, 749: 0.0109658909, 999: 0.0}
    np.testing.assert_allclose([ALPHAS[t] for t in known], list(known.values()), atol=1e-10)
    skip, out = consistency.coefficients(ALPHAS, np.array([249, 499, 749, 999]), 4)
    np.testing.assert_allclose(skip, [0.06464748, 0.82083637, 0.95606166, 0.99450195], rtol=1e-5)
    np.testing.assert_allclose(out, [0.95830804, 0.37092498, 0.20967248, 0.10471812], rtol=1e-5)


def oracle(x: jax.Array, clean: jax.Array, a: jax.Array) -> jax.Array:
    """Return v of the one trajectory through x that ends in `clean`."""
    a = a.reshape(a.shape + (1,) * (x.ndim - a.ndim))
    noise = (x - jnp.sqrt(a) * clean) / jnp.sqrt(1 - a)
    return jnp.sqrt(a) * noise - jnp.sqrt(1 - a) * clean


@pytest.mark.parametrize("solver", ["ddim", "dpm"])
def test_solvers_end_at_the_truth(solver: str) -> None:
    """Sampling runs from pure noise (a = 0) to clean (a = 1), where the published formula has infinities."""
    clean, x, last, before = jnp.full((1, 2, 3), 0.7), jnp.full((1, 2, 3), -1.3), None, None
    for t in v_prediction.spaced_timesteps(5, "trailing"):
        a, a_next = (v_prediction.at(ALPHAS, np.array([time])) for time in (t, t - 200))
        predicted = v_prediction.clean_from_velocity(x, oracle(x, clean, a), a)
        if solver == "ddim":
            x = v_prediction.ddim_step(x, predicted, a, a_next)
        else:
            noise = jax.random.normal(jax.random.key(int(t)), x.shape)
            second = last if t >= 200 else None
            x = v_prediction.dpm_step(x, predicted, noise, a, a_next, last_clean=second, a_last=before)
        last, before = predicted, a
    np.testing.assert_allclose(x, clean, atol=1e-5)


def test_windows_draw_one_offset_in_every_group() -> None:
    times = np.asarray(windows.sample_timesteps(jax.random.key(0), 200, 4, 2, phases_per_group=2, lowest=25))
    assert times.shape == (200, windows.frames(4, 2))
    assert not times[:, 0].any()
    groups = times[:, 1:].reshape(200, 4, 2)
    assert (groups[..., 0] == groups[..., 1]).all()
    offsets = groups[..., 0] - 250 * np.arange(4)
    assert (offsets == offsets[:, :1]).all()
    assert (offsets % 125).min() == 25
    assert offsets.max() < 250
    assert len(set(offsets[:, 0] // 125)) == 2


def test_a_pass_over_a_window_ends_where_the_previous_group_began() -> None:
    """After a pass a group's time minus the stride is the first time of the previous group."""
    rows = windows.timestep_rows(v_prediction.spaced_timesteps(20, "trailing"), 4, 2)
    np.testing.assert_array_equal(rows[0, 3:], rows[-1, 3:] - 50 + 250)
    assert rows[-1, 1] - 50 < 0
    with pytest.raises(ValueError, match="not a multiple"):
        windows.timestep_rows(np.arange(6), 4, 2)


@pytest.mark.parametrize("phases", [4, 8])
def test_jumps_of_one_trajectory_meet(phases: int) -> None:
    """With an oracle every point of a phase is mapped to one point: the target of the student's distillation."""
    key = jax.random.key(1)
    span = 1000 // phases
    times = jnp.asarray(np.random.default_rng(0).integers(25, span, (64, 1)) + span * np.arange(phases)[None])
    clean, noise = jax.random.normal(key, (2, 64, phases, 5))

    @jax.jit
    def jumps(clean: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, b = v_prediction.at(ALPHAS, times), v_prediction.at(ALPHAS, times - 25)
        later = v_prediction.add_noise(clean, noise, a)
        v = oracle(later, clean, a)
        earlier = v_prediction.ddim_step(later, v_prediction.clean_from_velocity(later, v, a), a, b)
        online = consistency.jump(later, v, ALPHAS, times, phases)
        return online, consistency.jump(earlier, oracle(earlier, clean, b), ALPHAS, times - 25, phases)

    online, target = jumps(clean, noise)
    assert float(consistency.distance(online, target, "l2", 1e-3)) < 1e-9
    assert float(consistency.distance(online, target + 0.1, "huber", 1e-3)) > 0.05
