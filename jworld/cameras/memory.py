"""Selection of the past frames that a chunk attends to: the first chunk, similar views, and the latest frames.

Source: HY-WorldPlay's `select_aligned_memory_frames`. The overlap of two views is the share of random points in view of
the current camera that are also in view of the other one. The points are an argument, so that a seed fixes every
selection.
"""

import dataclasses

import numpy as np

from jworld.cameras import poses
from jworld.utils.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Part of the world that counts as seen by a camera, as published.

    Attributes:
      fov: width and height of the field of view in degrees.
      radius: distance up to which a camera sees, in units of the translations.
    """

    fov: tuple[float, float] = (60.0, 35.0)
    radius: float = 8.0


PUBLISHED_VIEW = View()


def monte_carlo_points(num_points: int, seed: int, radius: float = PUBLISHED_VIEW.radius) -> np.ndarray:
    """Draw points uniform in a ball, float32 [num_points, 3].

    One numpy Generator draws, in this order, num_points values each: u1 (distance = radius * cbrt(u1)), u2 (azimuth = 2
    pi u2) and u3 (polar angle = acos(1 - 2 u3)).
    """
    rng = np.random.default_rng(seed)
    distance = radius * np.cbrt(rng.random(num_points))
    azimuth = 2 * np.pi * rng.random(num_points)
    polar = np.arccos(1 - 2 * rng.random(num_points))
    x, y = np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth)
    points: np.ndarray = distance[:, None] * np.stack([x, y, np.cos(polar)], axis=-1)
    return points.astype(np.float32)


def points_in_view(points: np.ndarray, view: View = PUBLISHED_VIEW) -> np.ndarray:
    """Select the points [P, 3] in the field of view of a camera at the origin looking along +z: [Q, 3] float64."""
    points = np.asarray(points, np.float64)
    yaw, pitch = _direction_degrees(points)
    visible: np.ndarray = points[(np.abs(yaw) < view.fov[0] / 2) & (np.abs(pitch) < view.fov[1] / 2)]
    return visible


def overlap(current: np.ndarray, history: np.ndarray, visible: np.ndarray, view: View = PUBLISHED_VIEW) -> np.ndarray:
    """Return the share of the current view that each past camera sees.

    Roll is ignored, as in the original. current w2c [4, 4], history w2c [M, 4, 4], visible = points_in_view(...) [Q, 3]
    -> [M]; all 0 if Q is 0.
    """
    if not len(visible):
        return np.zeros(len(history))
    relative = current @ poses.invert_rigid(history)
    yaw, pitch = _direction_degrees(relative[:, :3, 2])
    offsets = visible - relative[:, None, :3, 3]
    point_yaw, point_pitch = _direction_degrees(offsets)
    in_view = np.abs(_wrap(point_yaw - yaw[:, None])) < view.fov[0] / 2
    in_view &= np.abs(_wrap(point_pitch - pitch[:, None])) < view.fov[1] / 2
    in_view &= np.sum(offsets**2, axis=-1) < view.radius**2
    shares: np.ndarray = in_view.mean(axis=-1)
    return shares


def candidate_distances(
    w2c: np.ndarray,
    current: int,
    *,
    points: np.ndarray,
    temporal_context: int,
    chunk: int,
    view: View = PUBLISHED_VIEW,
) -> tuple[np.ndarray, np.ndarray]:
    """Measure the distance of the past chunks' views from the chunk at `current`: (starts [M], mean distances [M]).

    Candidates are the chunks between the first one and the temporal context. The first and the middle frame of each are
    compared with every frame of the current chunk.
    """
    starts = np.arange(chunk, current - temporal_context, chunk)
    visible = points_in_view(points, view)
    history = w2c[np.stack([starts, starts + chunk // 2], axis=-1).reshape(-1)]
    queries = w2c[current : current + chunk]
    distances = [1 - overlap(query, history, visible, view).reshape(-1, 2).mean(axis=-1) for query in queries]
    return starts, np.mean(distances, axis=0)


def select_memory_frames(
    w2c: np.ndarray,
    current: int,
    *,
    points: np.ndarray,
    memory_frames: int = 20,
    temporal_context: int = 12,
    chunk: int = 4,
    view: View = PUBLISHED_VIEW,
) -> list[int]:
    """Return the sorted indices of the frames that the chunk at `current` (a multiple of `chunk`) attends to.

    All past frames, while there are at most `memory_frames`. Then `memory_frames` in all: the first chunk, the chunks
    that overlap most with the current view (the earlier of equals) and the last `temporal_context` frames. w2c [F, 4,
    4], points [P, 3] as drawn by `monte_carlo_points` with the radius of `view`.
    """
    check_sizes(memory_frames=memory_frames, temporal_context=temporal_context, chunk=chunk)
    if current <= memory_frames:
        return list(range(current))
    starts, distances = candidate_distances(
        np.asarray(w2c, np.float64), current, points=points, temporal_context=temporal_context, chunk=chunk, view=view
    )
    retrieved = (memory_frames - temporal_context) // chunk - 1
    chosen = [0, *starts[np.argsort(distances, kind="stable")[:retrieved]].tolist()]
    frames = [start + offset for start in chosen for offset in range(chunk)]
    return sorted([*frames, *range(current - temporal_context, current)])


def check_sizes(*, memory_frames: int, temporal_context: int, chunk: int) -> None:
    """Raise a UserError unless the first chunk and the temporal context fit into whole chunks of memory."""
    if memory_frames % chunk or temporal_context % chunk or memory_frames < temporal_context + chunk:
        raise UserError(
            f"memory_frames {memory_frames} and temporal_context {temporal_context} must be multiples of the chunk "
            f"of {chunk} latents, and memory_frames at least temporal_context + {chunk}"
        )


def _direction_degrees(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return azimuth about y (0 along +z, positive to the right) and elevation (positive down) of vectors [..., 3]."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.degrees(np.arctan2(x, z)), np.degrees(np.arctan2(y, np.sqrt(x**2 + z**2)))


def _wrap(degrees: np.ndarray) -> np.ndarray:
    return (degrees + 180) % 360 - 180
