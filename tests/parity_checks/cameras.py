"""Checks of the camera functions against the originals' numbers."""

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np

from jworld.cameras import projective


def prope_qkv(case: golden_cases.GoldenCase) -> float:
    """Transformed q, k, v, the attention over them and the transformed output; with and without intrinsics."""
    frames = case.config["cameras"]

    def to_frames(x: np.ndarray) -> jax.Array:
        B, N, L, K = x.shape
        return jnp.asarray(x).transpose(0, 2, 1, 3).reshape(B, frames, L // frames, N, K)

    def to_heads(x: jax.Array) -> jax.Array:
        B, F, T, N, K = x.shape
        return x.reshape(B, F * T, N, K).transpose(0, 2, 1, 3)

    actual = {}
    for suffix, intrinsics in (("prope", case.inputs["Ks"]), ("noK", None)):
        P, P_inverse = projective.projection_matrices(case.inputs["viewmats"], intrinsics)
        q = projective.apply(P.swapaxes(-1, -2), to_frames(case.inputs["q"]))
        k = projective.apply(P_inverse, to_frames(case.inputs["k"]))
        v = projective.apply(P_inverse, to_frames(case.inputs["v"]))
        B, F, T, N, K = q.shape
        attended = jax.nn.dot_product_attention(*(x.reshape(B, F * T, N, K) for x in (q, k, v)))
        output = projective.apply(P, attended.reshape(q.shape))
        actual |= {f"{name}_{suffix}": to_heads(x) for name, x in (("q", q), ("k", k), ("v", v), ("o", output))}
        if intrinsics is not None:
            actual |= {"attn": to_heads(attended.reshape(q.shape)), "o": actual["o_prope"]}
    return golden_cases.largest_error(actual, case.outputs)


CHECKS = {
    "worldplay/prope_qkv": prope_qkv,
}
