"""A small ray-cast world: rooms with plain colored walls, joined by doors, with exact pinhole cameras.

Every seed has its own map. Only numpy is needed. Images are smooth on purpose (no texture, anti-aliased edges), so that
a small model can learn them.
"""

import dataclasses

import numpy as np

from jworld.data.recording import explorer

FOCAL = 0.5  # focal length divided by the image width: a horizontal field of view of 90 degrees
EYE = 1.0  # units from the eye to the floor and to the ceiling
THICKNESS = 0.3
DOOR = 1.5
SUPERSAMPLING = 2

# Name and color (RGB) of the walls that face x, then of the walls that face z.
PALETTES = (
    (("red", (205, 50, 45)), ("golden", (230, 180, 60))),
    (("blue", (50, 80, 200)), ("sky-blue", (100, 190, 230))),
    (("green", (40, 145, 65)), ("lime", (170, 205, 70))),
    (("purple", (125, 60, 170)), ("pink", (230, 130, 185))),
    (("orange", (230, 115, 35)), ("cream", (240, 215, 165))),
    (("teal", (20, 135, 135)), ("white", (225, 230, 230))),
    (("brown", (125, 80, 50)), ("tan", (200, 165, 115))),
    (("slate", (85, 90, 110)), ("yellow", (240, 225, 80))),
    (("magenta", (190, 40, 120)), ("mint", (140, 220, 175))),
)
FRAME = (70, 58, 50)
# Brightness of a wall by the direction that it faces: +x, -x, +z, -z.
LIGHT = {(1, 0): 1.0, (-1, 0): 0.82, (0, 1): 0.94, (0, -1): 0.76}


@dataclasses.dataclass(frozen=True)
class Room:
    """A rectangle of floor with its palette."""

    x0: float
    x1: float
    z0: float
    z1: float
    palette: int


class Rooms:
    """3 x 3 rooms of different sizes, as a `World`; the same seed gives the same map."""

    motion = explorer.Motion(step=0.06, turn=explorer.TURN, margin=0.35)

    def __init__(self, seed: int | list[int], *, width: int, height: int) -> None:
        self.width, self.height = width, height
        rng = np.random.default_rng(seed)
        self.rooms = _floor_plan(rng)
        self.doors = _choose_doors(self.rooms, rng)
        segments = _build_walls(self.rooms, self.doors)
        self.walls = np.array([segment[0] for segment in segments])
        self._color = np.array([segment[1] for segment in segments], np.float32)
        # Walls are darker at the corners of a room, but not at doors.
        self._is_corner = np.array([segment[2] for segment in segments])

    def start(self, rng: np.random.Generator) -> np.ndarray:
        """Return a random pose, away from the walls of its room."""
        room = self.rooms[rng.integers(len(self.rooms))]
        x, z = rng.uniform(room.x0 + 0.8, room.x1 - 0.8), rng.uniform(room.z0 + 0.8, room.z1 - 0.8)
        return np.array([x, z, rng.uniform(-np.pi, np.pi)])

    def caption(self, poses: np.ndarray) -> str:
        """Name the rooms in the order of the visits."""
        visited: list[str] = []
        for x, z, _ in poses:
            for room in self.rooms:
                (first, _), (second, _) = PALETTES[room.palette]
                name = f"{first} and {second}"
                if room.x0 <= x <= room.x1 and room.z0 <= z <= room.z1 and name not in visited:
                    visited.append(name)
        return f"First-person view of plain coloured rooms: {', then '.join(visited)} walls."

    def close(self) -> None:
        """Do nothing: there are no resources to release."""

    def render(self, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Render the poses, see `World.render`; the camera is at y = 0, the floor at y = 1, the ceiling at y = -1."""
        focal_y = FOCAL * self.width / self.height
        frames = np.empty((len(poses), self.height, self.width, 3), np.uint8)
        background = _background(self.height, focal_y)
        for i, pose in enumerate(poses):
            frames[i] = self._look(pose, background, focal_y * self.height)
        w2c = np.stack([explorer.world_to_camera(x, 0.0, z, yaw) for x, z, yaw in poses])
        return frames, w2c, np.tile([FOCAL, focal_y, 0.5, 0.5], (len(poses), 1))

    def _look(self, pose: np.ndarray, background: np.ndarray, focal: float) -> np.ndarray:
        """Render one frame uint8 [H, W, 3] over background [2, H / 2, 3] (see `_background`); `focal` in pixels."""
        depth, color = self._cast(pose)
        half = (EYE * focal / depth).astype(np.float32).reshape(self.width, SUPERSAMPLING)
        color = color.reshape(self.width, SUPERSAMPLING, 3)
        # The eye is at half height, so the walls are symmetric above and below the horizon.
        rows = np.arange(self.height // 2, dtype=np.float32)[:, None]
        covered = [np.clip(half[:, k] - rows, 0.0, 1.0) / SUPERSAMPLING for k in range(SUPERSAMPLING)]
        uncovered = 1.0 - sum(covered)
        frame = np.empty((self.height, self.width, 3), np.uint8)
        for channel in range(3):
            walls = sum(covered[k] * color[:, k, channel] for k in range(SUPERSAMPLING)) + np.float32(0.5)
            frame[self.height // 2 :, :, channel] = walls + uncovered * background[1, :, None, channel]
            frame[self.height // 2 - 1 :: -1, :, channel] = walls + uncovered * background[0, :, None, channel]
        return frame

    def _cast(self, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return depth along the optical axis [R] and wall color [R, 3] for the R supersampled columns."""
        count = self.width * SUPERSAMPLING
        slope = ((np.arange(count) + 0.5) / count - 0.5) / FOCAL
        sin, cos = np.sin(pose[2]), np.cos(pose[2])
        corners = (self.walls - pose[:2]) @ np.array([[cos, sin], [-sin, cos]])
        start, along = corners[:, 0], corners[:, 1] - corners[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = slope * along[:, 1:] - along[:, :1]
            depth = (start[:, :1] * along[:, 1:] - start[:, 1:] * along[:, :1]) / scale
            share = (start[:, :1] - start[:, 1:] * slope) / scale
            depth = np.where((depth > 1e-3) & (share >= 0) & (share <= 1), depth, np.inf)
        nearest, ray = depth.argmin(0), np.arange(count)
        depth, share = depth[nearest, ray], share[nearest, ray]
        length = np.linalg.norm(along, axis=-1)[nearest]
        distances = np.stack([share, 1 - share], -1) * length[:, None]
        corner = np.where(self._is_corner[nearest], np.exp(-distances / 0.35), 0.0).sum(-1)
        light = (1 - 0.3 * corner) / (1 + 0.05 * depth * np.hypot(slope, 1.0))
        return depth, (self._color[nearest] * light[:, None]).astype(np.float32)


def _background(height: int, focal_y: float) -> np.ndarray:
    """Return ceiling and floor, float32 [2, H / 2, 3] from the horizon outward, darker with distance."""
    nearness = np.clip((np.arange(height // 2) + 0.5) / height * focal_y * 4 / 3, 0.0, 1.0)[:, None]
    ceiling = np.array([120, 122, 130]) + nearness * np.array([85, 85, 80])
    floor = np.array([38, 38, 44]) + nearness * np.array([42, 40, 38])
    return np.stack([ceiling, floor]).astype(np.float32)


def _floor_plan(rng: np.random.Generator) -> list[Room]:
    xs = np.concatenate([[0.0], np.cumsum(rng.uniform(3.4, 5.2, 3) + THICKNESS)])
    zs = np.concatenate([[0.0], np.cumsum(rng.uniform(3.4, 5.2, 3) + THICKNESS)])
    palettes = rng.permutation(len(PALETTES))
    return [
        Room(xs[i], xs[i + 1] - THICKNESS, zs[j], zs[j + 1] - THICKNESS, int(palettes[3 * j + i]))
        for j in range(3)
        for i in range(3)
    ]


def _choose_doors(rooms: list[Room], rng: np.random.Generator) -> dict[tuple[int, int], float]:
    """Return doors, (room, next room) -> center: a random tree that joins all rooms, and a quarter of other pairs."""
    pairs = [(r, r + 1) for r in range(9) if r % 3 < 2] + [(r, r + 3) for r in range(6)]
    group = list(range(9))
    doors = {}
    for k in rng.permutation(len(pairs)):
        a, b = pairs[k]
        room = rooms[a]
        low, high = (room.z0, room.z1) if b == a + 1 else (room.x0, room.x1)
        center, extra = rng.uniform(low + 0.4 + DOOR / 2, high - 0.4 - DOOR / 2), rng.random() < 0.25
        if group[a] != group[b] or extra:
            doors[a, b] = float(center)
            group = [group[a] if g == group[b] else g for g in group]
    return doors


Segment = tuple[list[list[float]], np.ndarray, list[bool]]


def _build_walls(rooms: list[Room], doors: dict[tuple[int, int], float]) -> list[Segment]:
    """Return all wall segments: end points, color, and whether each end is a corner of the room."""
    segments: list[Segment] = []
    for r, room in enumerate(rooms):
        (_, facing_x), (_, facing_z) = PALETTES[room.palette]
        sides = (
            ((1, 0), facing_x, room.x0, (room.z0, room.z1), (r - 1, r)),
            ((-1, 0), facing_x, room.x1, (room.z0, room.z1), (r, r + 1)),
            ((0, 1), facing_z, room.z0, (room.x0, room.x1), (r - 3, r)),
            ((0, -1), facing_z, room.z1, (room.x0, room.x1), (r, r + 3)),
        )
        for normal, rgb, at, (low, high), pair in sides:
            color = np.array(rgb) * LIGHT[normal]
            if pair not in doors:
                segments.append((_side(normal, at, low, high), color, [True, True]))
                continue
            edges = doors[pair] - DOOR / 2, doors[pair] + DOOR / 2
            segments.append((_side(normal, at, low, edges[0]), color, [True, False]))
            segments.append((_side(normal, at, edges[1], high), color, [False, True]))
            if pair[0] == r:
                for edge, facing in zip(edges, ((1, 1), (-1, -1)), strict=True):
                    along = (0, facing[1]) if normal[0] else (facing[0], 0)
                    jamb = _side(along, edge, at, at + THICKNESS)
                    segments.append((jamb, np.array(FRAME) * LIGHT[along], [False, False]))
    return segments


def _side(normal: tuple[int, int], at: float, low: float, high: float) -> list[list[float]]:
    return [[at, low], [at, high]] if normal[0] else [[low, at], [high, at]]
