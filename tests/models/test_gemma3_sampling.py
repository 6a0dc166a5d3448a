"""Choice of tokens: temperature, the most likely ones, and independence of the rest of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jworld.models.gemma3 import sampling

LOGITS = jnp.log(jnp.array([[0.5, 0.05, 0.3, 0.15]]))
DRAWS = 4000


def draw(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> np.ndarray:
    """Return the share of each token among `DRAWS` rows with keys of their own."""
    sampler = sampling.Sampler(
        temperature=jnp.full(DRAWS, temperature),
        top_k=jnp.full(DRAWS, top_k),
        top_p=jnp.full(DRAWS, top_p),
        keys=jax.random.split(jax.random.key(0), DRAWS),
    )
    tokens = sampling.choose(jnp.repeat(LOGITS, DRAWS, axis=0), sampler, 0)
    return np.bincount(tokens, minlength=4) / DRAWS


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, 0.05, 0.3, 0.15]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
        # Probabilities to the power of 1 / temperature.
        ({"temperature": 0.5}, np.square([0.5, 0.05, 0.3, 0.15]) / 0.365),
        ({"top_k": 2}, [0.625, 0, 0.375, 0]),
        ({"top_k": 1, "temperature": 9.0}, [1, 0, 0, 0]),
        ({"top_p": 0.5}, [1, 0, 0, 0]),
        ({"top_p": 0.7}, [0.625, 0, 0.375, 0]),
        # The first of the two that remain has 0.625 of the probability.
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),
    ],
)
def test_shares_of_tokens(settings: dict[str, float], expected: list[float]) -> None:
    # Four standard errors of a share of one half.
    np.testing.assert_allclose(draw(**settings), expected, atol=4 * 0.5 / DRAWS**0.5)  # type: ignore[arg-type]


def test_a_row_does_not_depend_on_its_batch() -> None:
    logits = jax.random.normal(jax.random.key(1), (6, 50))
    whole = sampling.Sampler(
        temperature=jnp.array([0.0, 1.0, 2.0, 0.0, 1.0, 1.0]),
        top_k=jnp.array([0, 0, 7, 3, 9, 0]),
        top_p=jnp.array([1.0, 0.5, 1.0, 0.3, 0.9, 0.1]),
        keys=jax.random.split(jax.random.key(2), 6),
    )
    together = [sampling.choose(logits, whole, number) for number in range(3)]
    for row in range(6):
        own = jax.tree.map(lambda x, row=row: x[row : row + 1], whole)
        for number in range(3):
            assert sampling.choose(logits[row : row + 1], own, number)[0] == together[number][row]
    best = np.argmax(logits, axis=-1)
    assert [int(tokens[0]) for tokens in together] == [best[0]] * 3
    assert sampling.choose(logits, None, 0).tolist() == best.tolist()
