"""Camera functions: projective encoding, memory selection and pose strings."""

from collections.abc import Callable
from typing import Any

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import recorded_json

from jworld.cameras import actions, memory, pose_strings, projective
from jworld.utils.errors import UserError


def prope_qkv(case: golden_cases.GoldenCase) -> float:
    """Compare transformed q, k, v, their attention and the transformed output, with and without intrinsics."""
    config, frames = case.config, case.config["cameras"]
    B, N, L, K = case.inputs["q"].shape
    golden_cases.require(config, batch=B, num_heads=N, tokens_per_camera=L // frames, head_dim=K)
    assert config["dtype"] == case.inputs["q"].dtype

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


def memory_selection(case: golden_cases.GoldenCase) -> float:
    """Compare selected frames exactly, and distances and overlaps up to two points on the edge of a view."""
    config, w2c, points = case.config, case.inputs["w2c"], case.inputs["points_local"]
    golden_cases.require(config, frames=len(w2c), num_points=len(points))
    golden_cases.require(config, dtype=f"w2c {w2c.dtype}, points {points.dtype}")
    view = memory.View(fov=(config["fov_h_deg"], config["fov_v_deg"]), radius=config["radius"])
    sizes: dict[str, Any] = {
        "temporal_context": config["temporal_context_size"],
        "chunk": config["pred_latent_size"],
        "view": view,
    }
    visible = memory.points_in_view(points, view)
    selected = np.full_like(case.outputs["selected"], -1)
    distances = np.full_like(case.outputs["candidate_distance"], -1)
    for row, current in enumerate(case.outputs["current_index"].tolist()):
        frames = memory.select_memory_frames(
            w2c, current, points=points, memory_frames=config["memory_frames"], **sizes
        )
        selected[row, : len(frames)] = frames
        if current > config["memory_frames"]:
            starts, values = memory.candidate_distances(w2c, current, points=points, **sizes)
            distances[row, starts // sizes["chunk"]] = values
    overlaps = memory.overlap(w2c[-2], w2c, visible, view)
    actual = {"candidate_distance": distances, "overlap_with_frame_N_minus_2": overlaps}
    errors = [float(not np.array_equal(selected, case.outputs["selected"]))]
    for name, value in actual.items():
        expected = case.outputs[name]
        difference = value - expected
        edge = np.clip(difference, -2 / len(visible), 2 / len(visible))
        errors.append(golden_cases.relative_error(difference - edge + expected, expected))
    return float(np.max(errors))


def pose_strings_check(case: golden_cases.GoldenCase) -> float:
    """Compare paths, labels and key timelines of pose strings and explicit motions; invalid strings must be refused."""
    # The stored types are those of the numbers below; our labels are int32.
    golden_cases.require(case.config, dtype="float64 poses and intrinsics, int64 labels")
    cases = case.json("cases")
    errors = []
    for entry in cases["pose_strings"]:
        errors.append(_path_error(pose_strings.path(entry["pose"]), entry))
        golden_cases.require(entry, **{f"dtype_{name}": "torch.float64" for name in ("viewmats", "Ks")})
        golden_cases.require(entry, dtype_action="torch.int64")
        if isinstance(entry["ui_timeline"], list):
            timeline = pose_strings.key_timeline(entry["pose"])
            errors.append(golden_cases.relative_error(timeline, entry["ui_timeline"]))
            golden_cases.require(entry, frames=len(timeline))
        else:
            errors.append(float(not _refused(pose_strings.key_timeline, entry["pose"])))
            golden_cases.require(entry, frames=actions.FRAMES_PER_LATENT * (entry["latents"] - 1) + 1)
    for entry in cases["motions"]:
        motions = [pose_strings.Motion(**recorded_json.whole(motion)) for motion in entry["motions"]]
        c2w = pose_strings.trajectory(motions)
        errors.append(golden_cases.relative_error(c2w, entry["pose_json_c2w"]))
        errors.append(_path_error(pose_strings.path_from_c2w(c2w, third_person=entry["tps"]), entry))
    for text in cases["invalid_strings"]:
        outcome = cases["invalid_strings"][text]
        errors.append(float(_refused(pose_strings.path, text) != outcome.endswith("Error")))
    return float(np.max(errors))


def _path_error(path: pose_strings.CameraPath, expected: dict[str, Any]) -> float:
    golden_cases.require(expected, latents=len(path.w2c))
    actual = {"viewmats": path.w2c, "Ks": path.intrinsics, "action": path.action}
    return golden_cases.largest_error(actual, {name: expected[name] for name in actual})


def _refused(function: Callable[[str], object], text: str) -> bool:
    try:
        function(text)
    except UserError:
        return True
    return False


CHECKS = {
    "worldplay/memory_selection": memory_selection,
    "worldplay/pose_strings": pose_strings_check,
    "worldplay/prope_qkv": prope_qkv,
}
