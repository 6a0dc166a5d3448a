import pathlib

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity_checks import cameras

from jworld.cameras import pose_strings, projective

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def matrices() -> tuple[jax.Array, jax.Array]:
    path = pose_strings.path("w-1, right-1, up-1, d-1")
    return projective.projection_matrices(path.w2c[None], path.intrinsics[None])


def test_the_second_matrix_inverts_the_first() -> None:
    P, P_inverse = matrices()
    assert P.dtype == P_inverse.dtype == jnp.float32
    np.testing.assert_allclose(P @ P_inverse, np.broadcast_to(np.eye(4), P.shape), atol=1e-6)


def test_scores_depend_on_the_relative_pose_only() -> None:
    path = pose_strings.path("w-1, right-2, up-1")
    moved = path.w2c @ pose_strings.path("left-5, a-3").w2c[-1]
    q, k = jax.random.normal(jax.random.key(0), (2, 1, len(moved), 3, 2, 16))
    scores = []
    for w2c in (path.w2c, moved):
        P, P_inverse = projective.projection_matrices(w2c[None], path.intrinsics[None])
        keys = projective.apply(P_inverse, k)
        queries = projective.apply(P.swapaxes(-1, -2), q)
        scores.append(jnp.einsum("bftnk,bgsnk->bnftgs", queries, keys))
    np.testing.assert_allclose(*scores, atol=1e-4)


def test_every_group_of_channels_and_frame_has_its_own_product() -> None:
    P, _ = matrices()
    x = jax.random.normal(jax.random.key(0), (1, P.shape[1], 3, 2, 8))
    out = projective.apply(P, x)
    np.testing.assert_allclose(out[0, 2, 1, 1, 4:], P[0, 2] @ x[0, 2, 1, 1, 4:], atol=1e-6)
    half = projective.apply(P, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), out, atol=0.05)


WRONG_MATRICES = {
    "transposed": lambda P, P_inverse: (P.swapaxes(-1, -2), P_inverse),
    "inverse and matrix exchanged": lambda P, P_inverse: (P_inverse, P),
    "x and y exchanged": lambda P, P_inverse: (P[..., [1, 0, 2, 3], :], P_inverse),
    "frames reversed": lambda P, P_inverse: (P[:, ::-1], P_inverse),
    "translation dropped": lambda P, P_inverse: (P.at[..., :3, 3].set(0), P_inverse),
}


@pytest.mark.parametrize("wrong", WRONG_MATRICES)
def test_golden_check_notices_wrong_matrices(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = projective.projection_matrices
    monkeypatch.setattr(projective, "projection_matrices", lambda *args: WRONG_MATRICES[wrong](*original(*args)))
    case = golden_cases.GoldenCase(GOLDEN / "worldplay" / "prope_qkv")
    assert cameras.prope_qkv(case) > 1e-2
