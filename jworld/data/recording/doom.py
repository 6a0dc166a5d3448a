"""ViZDoom as a world: a first-person game engine that follows planned paths and reports its own camera poses.

`vizdoom` is optional and imported when a world is created. The code relies on these facts (measured, version 1.3.2):

- pitch is a shear and stays 0;
- a positive turn delta turns right and decreases the angle;
- a tic adds a thrust of 1/32 map unit per unit of movement delta (at most 50) to the player's velocity;
- after the motion, friction multiplies the velocity by 0.90625;
- images are stretched vertically by 1.2.
"""

import contextlib
import importlib.util
import math
import os
import tempfile
import types
from typing import Any

import numpy as np
from PIL import Image

from jworld.data.recording import explorer
from jworld.utils import errors

SCALE = 1 / 64  # world units per map unit: the eye is 0.64 above the floor, walking covers 0.25 per latent frame
TICS = 3  # engine tics per frame
THRUST, MAX_THRUST, FRICTION = 1 / 32, 50, 0.90625
FOCAL, STRETCH = 0.5, 1.2
STEP_UP, HEADROOM = 24, 56  # a player cannot pass higher steps or lower openings (map units)
RESOLUTIONS = ((160, 120), (256, 192), (320, 240), (400, 300), (512, 384), (640, 480), (800, 600), (1024, 768))
SETTLE = 12  # tics after a warp until view height and position are stable

# Source name -> scenario, engine arguments, map, caption.
LEVELS = {
    "doom": (
        "my_way_home.cfg",
        "",
        "",
        "First-person view of a maze of small rooms with stone, brick and metal walls.",
    ),
    "doom-map01": ("freedoom2.cfg", "-nomonsters", "map01", "First-person view of the halls of a deserted base."),
}


def available() -> bool:
    """Return whether the engine is installed."""
    return importlib.util.find_spec("vizdoom") is not None


def engine() -> types.ModuleType:
    """Import the module `vizdoom`; a `UserError` if it is not installed."""
    if not available():
        raise errors.UserError(
            "source 'doom' needs the package vizdoom, which is not installed; "
            "pip install 'jworld[demo]' or choose the source rooms"
        )
    return importlib.import_module("vizdoom")


class Doom:
    """One level of the game, as a `World`.

    The level is the same for every seed, so held-out episodes are different paths through the same rooms.
    """

    motion = explorer.Motion(step=4 * SCALE, turn=explorer.TURN, margin=22 * SCALE)

    def __init__(self, level: str, seed: int | list[int], *, width: int, height: int) -> None:
        self.width, self.height = width, height
        # Rendered at 4:3 and larger, then cropped and reduced: no aliasing, exact intrinsics.
        sizes = [size for size in RESOLUTIONS if size[0] >= 1.5 * width and size[1] >= 1.5 * height]
        self.resolution = sizes[0] if sizes else RESOLUTIONS[-1]
        if width > self.resolution[0] or height > self.resolution[1]:
            raise errors.UserError(
                f"size is {width}x{height}, the largest that doom renders is 1024x768; choose a smaller --size"
            )
        self.crop = min(1.0, (width / height) / (4 / 3)), min(1.0, (4 / 3) / (width / height))
        self._caption = LEVELS[level][3]
        # The engine writes files to its working directory at start, and its settings at exit.
        self._folder = tempfile.TemporaryDirectory(prefix="jworld_doom_")
        engine_seed = int(np.random.SeedSequence(seed).generate_state(1)[0] >> 1)
        self._game = _start_game(level, engine_seed, self.resolution, self._folder.name)
        self._variables = _camera_variables()
        self._velocity = np.zeros(2)
        state = self._game.get_state()
        self.walls = _read_walls(state) * SCALE
        self._reachable = _reachable_points(state.game_variables[:2] * SCALE, self.walls, self.motion.margin)

    def start(self, rng: np.random.Generator) -> np.ndarray:
        """Return a random reachable pose."""
        x, z = self._reachable[rng.integers(len(self._reachable))]
        return np.array([x, z, rng.uniform(-np.pi, np.pi)])

    def caption(self, poses: np.ndarray) -> str:
        """Return the caption of the level."""
        return self._caption

    def close(self) -> None:
        """End the engine's process."""
        self._game.close()
        self._folder.cleanup()

    def render(self, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Play the poses and render them, see `World.render`; the cameras are those of the engine, not the plan."""
        frames = np.empty((len(poses), self.height, self.width, 3), np.uint8)
        cameras = np.empty((len(poses), 4))
        jump = poses[0, :2] / SCALE
        self._game.send_game_command(f"warp {jump[0]:.0f} {jump[1]:.0f}")
        self._velocity = np.zeros(2)
        self._play(poses[0], SETTLE)
        for i, pose in enumerate(poses):
            self._play(pose, TICS)
            frames[i] = self._reduce(self._game.get_state().screen_buffer)
            x, y, z, angle, pitch = self._camera()
            if pitch != 0:
                raise RuntimeError(f"frame {i}: the camera's pitch is {pitch}, expected 0")
            cameras[i] = x * SCALE, -z * SCALE, y * SCALE, math.radians(90.0 - angle)
        check_followed(poses, cameras[:, [0, 2, 3]])
        w2c = np.stack([explorer.world_to_camera(*camera) for camera in cameras])
        focal = FOCAL / self.crop[0], FOCAL * STRETCH * 4 / 3 / self.crop[1]
        return frames, w2c, np.tile([*focal, 0.5, 0.5], (len(poses), 1))

    def _camera(self) -> list[float]:
        """Return x, y, z in map units, angle and pitch in degrees."""
        # Reading the whole state would copy the geometry of the map each time.
        return [self._game.get_game_variable(variable) for variable in self._variables]

    def _play(self, pose: np.ndarray, tics: int) -> None:
        """Turn and move to a pose within `tics`, canceling the player's inertia."""
        target = pose[:2] / SCALE
        for remaining in range(tics, 0, -1):
            x, y, _, angle, _ = self._camera()
            turn = (angle - (90.0 - math.degrees(pose[2])) + 180.0) % 360.0 - 180.0
            heading = math.radians(angle - turn)
            thrust = ((target - (x, y)) / min(remaining, TICS) - self._velocity) / THRUST
            ahead = thrust @ (math.cos(heading), math.sin(heading))
            aside = thrust @ (math.sin(heading), -math.cos(heading))
            keys = np.clip(np.round([ahead, aside]), -MAX_THRUST, MAX_THRUST)
            self._game.make_action([turn, *keys.tolist()], 1)
            if self._game.is_episode_finished():
                raise RuntimeError("the engine ended the episode during a recording")
            self._velocity = (np.array(self._camera()[:2]) - (x, y)) * FRICTION

    def _reduce(self, screen: np.ndarray) -> np.ndarray:
        """Crop and reduce the engine's image to uint8 [height, width, 3]."""
        (across, down), (crop_x, crop_y) = self.resolution, self.crop
        left, top = across * (1 - crop_x) / 2, down * (1 - crop_y) / 2
        image = Image.fromarray(screen)
        box = (left, top, across - left, down - top)
        return np.asarray(image.resize((self.width, self.height), Image.Resampling.BILINEAR, box=box))


def check_followed(planned: np.ndarray, actual: np.ndarray) -> None:
    """Raise a `RuntimeError` if the engine's poses [T, 3] differ from the planned ones, for example at a wall."""
    distance = np.linalg.norm(actual[:, :2] - planned[:, :2], axis=-1)
    angle = np.abs((actual[:, 2] - planned[:, 2] + np.pi) % (2 * np.pi) - np.pi)
    if distance.max() > 0.03 or angle.max() > 0.002:
        raise RuntimeError(
            f"the engine left the planned path by {distance.max():.3f} units at frame {distance.argmax()} "
            f"and by {angle.max():.4f} radians at frame {angle.argmax()}"
        )


def _camera_variables() -> list[Any]:
    names = "POSITION_X", "POSITION_Y", "POSITION_Z", "ANGLE", "PITCH"
    return [getattr(engine().GameVariable, f"CAMERA_{name}") for name in names]


def _start_game(level: str, seed: int, resolution: tuple[int, int], folder: str) -> Any:
    vizdoom = engine()
    scenario, arguments, level_map, _ = LEVELS[level]
    game = vizdoom.DoomGame()
    game.load_config(os.path.join(vizdoom.scenarios_path, scenario))
    game.set_doom_config_path(os.path.join(folder, "settings.ini"))
    if level_map:
        game.set_doom_map(level_map)
    game.set_seed(seed)
    game.set_window_visible(False)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_screen_resolution(getattr(vizdoom.ScreenResolution, f"RES_{resolution[0]}X{resolution[1]}"))
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    for switch_off in ("hud", "weapon", "crosshair", "decals", "particles", "effects_sprites", "messages", "corpses"):
        getattr(game, f"set_render_{switch_off}")(False)
    game.set_audio_buffer_enabled(False)
    game.set_automap_buffer_enabled(False)
    game.set_sectors_info_enabled(True)
    game.set_objects_info_enabled(True)
    game.set_episode_timeout(10**6)
    game.set_available_buttons(
        [
            vizdoom.Button.TURN_LEFT_RIGHT_DELTA,
            vizdoom.Button.MOVE_FORWARD_BACKWARD_DELTA,
            vizdoom.Button.MOVE_LEFT_RIGHT_DELTA,
        ]
    )
    game.set_available_game_variables(_camera_variables())
    game.add_game_args(f"+sv_cheats 1 +movebob 0 +stillbob 0 {arguments}")
    with contextlib.chdir(folder):
        game.init()
    return game


def _read_walls(state: Any) -> np.ndarray:
    """Return all lines that stop a player, and squares around things, in map units [S, 2, 2]."""
    lines: dict[tuple[float, ...], list[Any]] = {}
    for sector in state.sectors:
        for line in sector.lines:
            first, second = sorted([(line.x1, line.y1), (line.x2, line.y2)])
            lines.setdefault((*first, *second), []).append((line.is_blocking, sector))
    walls = []
    for line_ends, sides in lines.items():
        floors = [sector.floor_height for _, sector in sides]
        opening = min(sector.ceiling_height for _, sector in sides) - max(floors)
        if any(blocking for blocking, _ in sides) or max(floors) - min(floors) > STEP_UP or opening < HEADROOM:
            walls.append(np.reshape(line_ends, (2, 2)))
    for thing in state.objects:
        if thing.name != "DoomPlayer":
            corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 20 + (thing.position_x, thing.position_y)
            walls.extend(np.stack([corners, np.roll(corners, 1, axis=0)], 1))
    return np.stack(walls)


def _reachable_points(origin: np.ndarray, walls: np.ndarray, margin: float, spacing: float = 0.25) -> np.ndarray:
    """Find the grid points [N, 2] that a player can reach from `origin` (flood fill), sorted."""
    first = tuple(round(float(c) / spacing) for c in origin)
    around = [(first[0] + i, first[1] + j) for i in range(-1, 2) for j in range(-1, 2)]
    visited, frontier, reached = set(around), around, []
    while frontier:
        free = _clear_of(frontier, walls, margin, spacing)
        reached += free
        frontier = []
        for i, j in free:
            for neighbor in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if neighbor not in visited:
                    visited.add(neighbor)
                    frontier.append(neighbor)
    return np.array(sorted(reached)) * spacing


def _clear_of(nodes: list[tuple[int, int]], walls: np.ndarray, margin: float, spacing: float) -> list[tuple[int, int]]:
    """Return the grid nodes that keep the margin to every wall."""
    free = explorer.clearance(np.array(nodes) * spacing, walls) >= margin
    return [node for node, is_free in zip(nodes, free, strict=True) if is_free]
