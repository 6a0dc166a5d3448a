"""Scripted explorer: plans actions and poses in a world with walls, with frequent returns to earlier views.

The explorer uses only the walls of a world. The floor plane has the axes x and z of the OpenCV convention. A pose is
(x, z, yaw): yaw in radians, positive to the right, 0 along +z.
"""

import dataclasses
import math
from typing import Protocol

import numpy as np

BLOCK = 4  # frames per latent frame, for which an action is held
TURN = 2.0  # degrees of yaw per frame of a turn, in all worlds
NEAR = 18  # walking steps; a wall closer than this fills the view


@dataclasses.dataclass(frozen=True, kw_only=True)
class Motion:
    """Motion per frame of a held action: `step` world units, `turn` degrees of yaw; `margin` is kept to every wall."""

    step: float
    turn: float
    margin: float


class World(Protocol):
    """A world that can be explored and rendered."""

    motion: Motion
    walls: np.ndarray  # float64 [S, 2, 2]: the end points (x, z) of every wall that stops a walker

    def start(self, rng: np.random.Generator) -> np.ndarray:
        """Return a random free pose [3]."""
        ...

    def render(self, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Render poses [T, 3] as frames uint8 [T, H, W, 3], with their true w2c [T, 4, 4] and intrinsics [T, 4]."""
        ...

    def caption(self, poses: np.ndarray) -> str:
        """Describe the views along the poses in words."""
        ...

    def close(self) -> None:
        """Release the resources of the world, which is not used afterwards."""
        ...


def world_to_camera(x: float, y: float, z: float, yaw: float) -> np.ndarray:
    """Return w2c float64 [4, 4] of a level camera at (x, y, z)."""
    sin, cos = math.sin(yaw), math.cos(yaw)
    rotation = np.array([[cos, 0.0, -sin], [0.0, 1.0, 0.0], [sin, 0.0, cos]])
    w2c = np.eye(4)
    w2c[:3, :3] = rotation
    w2c[:3, 3] = -rotation @ (x, y, z)
    return w2c


def clearance(points: np.ndarray, walls: np.ndarray) -> np.ndarray:
    """Return the distance [N] of points [N, 2] to the nearest of walls [S, 2, 2]."""
    start, along = walls[:, 0], walls[:, 1] - walls[:, 0]
    offset = points[:, None] - start
    share = np.clip((offset * along).sum(-1) / (along * along).sum(-1), 0.0, 1.0)
    nearest: np.ndarray = np.sqrt(((offset - share[..., None] * along) ** 2).sum(-1)).min(1)
    return nearest


def follow(pose: np.ndarray, action: str, motion: Motion) -> np.ndarray:
    """Return the poses [4, 3] of the four frames after holding an action from `pose`, without regard to walls."""
    keys = action.split("+")
    turn = math.radians(motion.turn) * (("yaw_right" in keys) - ("yaw_left" in keys))
    ahead, aside = ("forward" in keys) - ("backward" in keys), ("right" in keys) - ("left" in keys)
    step = motion.step / max(1.0, math.hypot(ahead, aside))
    poses = np.empty((BLOCK, 3))
    x, z, yaw = pose
    for i in range(BLOCK):
        yaw += turn
        x += step * (ahead * math.sin(yaw) + aside * math.cos(yaw))
        z += step * (ahead * math.cos(yaw) - aside * math.sin(yaw))
        poses[i] = x, z, yaw
    return poses


def walkable(world: World, pose: np.ndarray) -> float:
    """Return the free distance straight ahead of a pose, in world units, at most 120 steps."""
    distances = np.arange(1, 41) * 3 * world.motion.step
    points = pose[:2] + distances[:, None] * [math.sin(pose[2]), math.cos(pose[2])]
    blocked = clearance(points, world.walls) < world.motion.margin
    return float(distances[blocked.argmax()] if blocked.any() else distances[-1])


def run_script(world: World, pose: np.ndarray, actions: list[str]) -> np.ndarray | None:
    """Return the poses [1 + 4 * len(actions), 3] of a script of held actions, or None if a wall is in the way."""
    poses = [pose[None]]
    for action in actions:
        path = follow(poses[-1][-1], action, world.motion)
        if clearance(path[:, :2], world.walls).min() < world.motion.margin:
            return None
        poses.append(path)
    return np.concatenate(poses)


class Explorer:
    """Random explorer that extends `actions` and `poses` block by block up to a given number of blocks.

    It walks toward open space, turns both ways, sidesteps and waits. It often returns to an earlier view: it turns away
    and back, or walks out and back. A block that a wall would stop is never started, so every action label is the
    actual motion.
    """

    def __init__(self, world: World, rng: np.random.Generator, *, blocks: int) -> None:
        self.world = world
        self.rng = rng
        self.blocks = blocks
        self.actions: list[str] = []
        self.poses = world.start(rng)[None]
        self.near = NEAR * world.motion.step
        while self.depth() < 2 * self.near:
            self.poses = world.start(rng)[None]

    def explore(self) -> tuple[np.ndarray, list[str]]:
        """Return poses [1 + 4 * blocks, 3] and the action of every block."""
        segments = (self.walk, self.look_away_and_back, self.walk_out_and_back, self.sidestep, self.turn, self.wait)
        chances = (0.56, 0.14, 0.11, 0.09, 0.04, 0.06)
        while len(self.actions) < self.blocks:
            if self.depth() < self.near:
                self.face_open_space(180.0)
            before = len(self.actions)
            if clearance(self.poses[-1:, :2], self.world.walls)[0] < 0.7 * self.near:
                self.walk()  # views from a doorway or along a wall show little
            else:
                segments[self.rng.choice(len(segments), p=chances)]()
            if len(self.actions) == before:
                self.hold(self.shuffled("yaw_left", "yaw_right")[0], int(self.rng.integers(1, 4)))
        return self.poses, self.actions

    def hold(self, action: str, blocks: int) -> int:
        """Hold an action for up to `blocks` blocks and return the number of blocks that were possible."""
        for done in range(blocks):
            path = follow(self.poses[-1], action, self.world.motion)
            blocked = clearance(path[:, :2], self.world.walls).min() < self.world.motion.margin
            if blocked or len(self.actions) >= self.blocks:
                return done
            self.poses = np.concatenate([self.poses, path])
            self.actions.append(action)
        return blocks

    def depth(self, turn: float = 0.0) -> float:
        """Return the free distance in the direction `turn` radians from straight ahead, in world units."""
        return walkable(self.world, self.poses[-1] + (0.0, 0.0, turn))

    def shuffled(self, first: str, second: str) -> tuple[str, str]:
        """Return the two in random order."""
        return (first, second) if self.rng.random() < 0.5 else (second, first)

    def face_open_space(self, limit: float) -> None:
        """Turn to a random heading within `limit` degrees; headings with more free distance are more likely."""
        per_block = BLOCK * self.world.motion.turn
        reach = int(limit / per_block)
        blocks = np.arange(-reach, reach + 1)
        depths = np.array([self.depth(math.radians(b * per_block)) for b in blocks])
        weights = depths**3 * (0.05 + np.cos(np.radians(blocks * per_block / 2)) ** 6)
        chosen = int(self.rng.choice(blocks, p=weights / weights.sum()))
        self.hold("yaw_right" if chosen > 0 else "yaw_left", abs(chosen))

    def walk(self) -> None:
        """Walk forward, sometimes in a curve, and steer around close walls."""
        if self.depth() < 1.5 * self.near:
            self.face_open_space(100.0)
        remaining = int(self.rng.integers(5, 15))
        while remaining > 0:
            if self.depth() < self.near:
                return
            length = min(remaining, int(self.rng.integers(2, 6)))
            action = "forward"
            if self.rng.random() < 0.35:
                side = "yaw_right" if self.depth(math.radians(40)) > self.depth(-math.radians(40)) else "yaw_left"
                action, length = f"forward+{side}", min(length, 3)
            if self.hold(action, length) < length:
                return
            remaining -= length

    def look_away_and_back(self) -> None:
        """Turn away by 45 to 120 degrees, sometimes wait or walk out and back, then turn back exactly."""
        per_block = BLOCK * self.world.motion.turn
        blocks = max(1, round(float(self.rng.uniform(45.0, 120.0)) / per_block))
        there, back = self.shuffled("yaw_left", "yaw_right")
        sign = 1 if there == "yaw_right" else -1
        if self.depth(sign * math.radians(blocks * per_block)) < self.near:
            there, back = back, there
        self.hold(there, blocks)
        choice = self.rng.random()
        if choice < 0.2:
            self.wait()
        elif choice < 0.4:
            self.walk_out_and_back()
        self.hold(back, blocks)

    def walk_out_and_back(self) -> None:
        """Walk some blocks forward (or backward) and return to the same position."""
        there, back = ("forward", "backward") if self.depth() > 2 * self.near else ("backward", "forward")
        self.hold(back, self.hold(there, int(self.rng.integers(2, 6))))

    def sidestep(self) -> None:
        """Strafe, and return with probability one half."""
        there, back = self.shuffled("left", "right")
        done = self.hold(there, int(self.rng.integers(2, 5)))
        if self.rng.random() < 0.5:
            self.hold(back, done)

    def turn(self) -> None:
        """Turn toward open space."""
        self.face_open_space(120.0)

    def wait(self) -> None:
        """Stand still, often for longer than a chunk, as players do."""
        self.hold("none", int(self.rng.integers(1, 9)))
