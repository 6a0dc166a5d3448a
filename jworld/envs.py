"""Trained worlds as environments of gymnasium, so that agents can act in them.

    env = jworld.envs.WorldEnv("assets/starter", image="first.png", episode_steps=20)
    observation, info = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(env.actions.index("w"))

An observation is the last frame of a step, an action a set of held keys, and all frames of the step are in `info`. A
world has no goal, so the reward is 0: give `reward`, or wrap the environment. After the import of this module,
`gymnasium.make("jworld/World-v0", world=...)` makes one, too. The extra `gym` installs gymnasium.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import jax
import numpy as np

from jworld.systems import generation, live, runs
from jworld.utils import errors

#: Seeds of sessions that are drawn where `reset` gets none.
_SEEDS = 2**31


class WorldEnv(gymnasium.Env[np.ndarray, Any]):
    """One session of a trained world.

    Attributes:
      actions: names of the actions, such as "none", "w" and "w+right"; an action of `step` is an index into them.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self,
        world: runs.Run | str | pathlib.Path,
        *,
        image: np.ndarray | str | pathlib.Path | None = None,
        prompt: str = "",
        actions: Sequence[str] | None = None,
        episode_steps: int | None = None,
        reward: Callable[[np.ndarray], float] = lambda frames: 0.0,
        render_mode: str | None = None,
    ) -> None:
        """Open a world.

        Args:
          world: an opened run, or the folder of one.
          image: first image of every episode uint8 [H, W, 3], or a file; `reset(options={"image": ...})` replaces it.
          prompt: caption.
          actions: names of the actions (default: no key, every key alone, and every pair of keys that do not oppose
            each other).
          episode_steps: steps after which an episode is truncated; None for no end.
          reward: frames of a step uint8 [T, H, W, 3] -> its reward.
          render_mode: "rgb_array" or None.

        Raises:
          UserError: the model cannot be steered, or an argument does not fit it.
        """
        self._run = world if isinstance(world, runs.Run) else runs.load(pathlib.Path(world))
        self._system = live.live_system(self._run.system, self._run.config)
        keys = self._system.live_keys()
        self.actions = _default_actions(keys) if actions is None else list(actions)
        try:
            self._controls = [self._system.held(live.split(keys, name)).control for name in self.actions]
        except ValueError as error:
            raise errors.UserError(f"actions: {error}") from error
        if render_mode not in (None, "rgb_array"):
            raise errors.UserError(f"render_mode is {render_mode!r}, expected None or 'rgb_array'")
        self._image, self._prompt, self._episode_steps, self._reward = image, prompt, episode_steps, reward
        self.render_mode = render_mode
        encoders: Any = self._run.encoders
        width, height = encoders.image_size
        self.metadata = {**type(self).metadata, "render_fps": self._run.encoders.fps}
        self.observation_space = gymnasium.spaces.Box(0, 255, (height, width, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(self.actions))
        self._session = self._run.session()
        self._frame: np.ndarray | None = None
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode, and return its first frame; `info["frames"]` has all frames of the first step.

        The same seed gives the same episode. `options` may hold "image" and "prompt" for this episode.

        Raises:
          UserError: the image is missing or cannot be read.
        """
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(_SEEDS)) if seed is None else seed % 2**32
        chosen = {"image": self._image, "prompt": self._prompt, **(options or {})}
        system = generation.video_system(self._run.system, self._run.config)
        start = generation.find_start(chosen["image"], system, fps=self._run.encoders.fps)
        with jax.set_mesh(self._run.mesh):
            self._session.reset(start, chosen["prompt"], seed=drawn)
        self._steps = 0
        # The first step shows the first image and stands still.
        frames = self._advance(self._system.held([]).control)
        return frames[-1], {"frames": frames, "seed": drawn}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold the keys of an action for a step; `info["frames"]` has all its frames."""
        if self._frame is None:
            raise gymnasium.error.ResetNeeded("call reset before step")
        index = int(action)
        frames = self._advance(self._controls[index])
        self._steps += 1
        truncated = self._episode_steps is not None and self._steps >= self._episode_steps
        info = {"frames": frames, "action": self.actions[index]}
        return frames[-1], float(self._reward(frames)), False, truncated, info

    def render(self) -> np.ndarray | None:
        """Return the latest frame, or None without a render mode or before `reset`."""
        return None if self.render_mode is None or self._frame is None else self._frame.copy()

    def _advance(self, control: Any) -> np.ndarray:
        with jax.set_mesh(self._run.mesh):
            frames = self._session.step(control)
        self._frame = frames[-1]
        return frames


gymnasium.register(id="jworld/World-v0", entry_point="jworld.envs:WorldEnv")


def _default_actions(keys: Sequence[live.Key]) -> list[str]:
    """Return no key, every key alone, and all pairs that do not oppose each other."""
    pairs = [[a.name, b.name] for i, a in enumerate(keys) for b in keys[i + 1 :] if a.opposite != b.name]
    return [live.NONE, *(key.name for key in keys), *map(live.joined, pairs)]
