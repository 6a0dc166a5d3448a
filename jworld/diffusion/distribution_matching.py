"""Distribution matching distillation (DMD): samples of a student move to where a teacher finds them more likely.

Source: arXiv 2405.14867. A frozen network estimates the clean latents of noisy samples as the teacher's data would have
them, another one, the critic, as the student's own samples have them. The difference is the gradient of the student.
"""

import jax
import jax.numpy as jnp


def gradient(samples: jax.Array, real: jax.Array, fake: jax.Array) -> jax.Array:
    """Return the gradient of the loss at the student's samples, all [B, ...].

    Args:
      samples: clean samples of the student.
      real: the teacher's prediction of them from noisy ones.
      fake: the critic's prediction.

    Returns:
      The difference of the predictions, divided by the sample's mean distance from the teacher's; 0 where that is not
      a number.
    """
    axes = tuple(range(1, samples.ndim))
    distance = jnp.mean(jnp.abs(samples - real), axis=axes, keepdims=True)
    return jnp.nan_to_num((fake - real) / distance, nan=0.0, posinf=0.0, neginf=0.0)


def loss(samples: jax.Array, slope: jax.Array) -> jax.Array:
    """Return a scalar whose gradient at `samples` is `slope` divided by the number of elements."""
    target = jax.lax.stop_gradient(samples - slope)
    return 0.5 * jnp.mean(jnp.square(samples - target))
