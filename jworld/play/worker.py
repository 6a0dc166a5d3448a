"""The loaded model and the sessions of players. All of this runs in one thread, the only one that uses the model."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import jax
import numpy as np

from jworld import systems
from jworld.systems import generation, key_logs, live, options, recipes, runs
from jworld.utils import compilation, errors, limits
from jworld.utils import config as utils_config

#: Steps until all programs of a session are compiled: the first one has no past, and the second a full decoder.
WARM_STEPS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A computed step.

    Attributes:
      number: number of the step since the start, from 0.
      first_frame: number of its first frame since the start.
      action: held keys, such as "w+right".
      frames: uint8 [T, H, W, 3].
      denoise, decode, compile: seconds; compilation is not part of the other two.
      entry: the step in a key log.
      view: cameras and context, for sessions that have them.
    """

    number: int
    first_frame: int
    action: str
    frames: np.ndarray
    denoise: float
    decode: float
    compile: float
    entry: key_logs.Entry
    view: live.View | None


class LiveVideoSystem(live.LiveSystem, Protocol):
    """A `VideoSystem` with the members of `LiveSystem`."""

    def session(self, model: Any, encoders: Any) -> live.LiveSession: ...


class World:
    """A trained model that players share.

    Attributes:
      run: the opened run.
      keys: keys of the model.
      fps: frames per second of its videos.
      size: (width, height) of its frames.
      steps, guidance: denoising steps and scale of the guidance by default; None for a model without.
      delay: steps from a key press to the first frame that shows it, the step of the key press included.
      describes: the caption can change during a session.
      viewed: sessions have cameras and a memory of past frames.
      new_frames: frames of a step after the first.
      session_bytes: bytes that a session holds on the devices; 0 before `warm`.
    """

    def __init__(self, run: runs.Run) -> None:
        """Set up a world for an opened run; a `UserError` if its model cannot be steered."""
        self.run = run
        self._system = live.live_system(run.system, run.config)
        self.keys = self._system.live_keys()
        self.fps: float = run.encoders.fps
        encoders = cast(Any, run.encoders)
        self.size: tuple[int, int] = encoders.image_size
        keys = generation.video_system(run.system, run.config).flag_keys
        self.steps, self.guidance = (
            utils_config.value_at(run.config, keys[flag], None) if flag in keys else None
            for flag in (options.STEPS, options.GUIDANCE)
        )
        self.delay, self.describes, self.viewed, self.new_frames, self.session_bytes = 1, False, False, 0, 0
        self._variants: dict[tuple[int | None, float | None], LiveVideoSystem] = {}

    @functools.cached_property
    def identity(self) -> str:
        """Identity of the weights, see `key_logs.identity`."""
        return key_logs.identity(self.run.model, self.run.encoders)

    def variant(self, start: key_logs.Start) -> LiveVideoSystem:
        """Return the system with the settings of a start.

        Raises:
          UserError: the model has no such setting, or there are more variants than `limits.PLAY_VARIANTS`.
        """
        run = self.run
        steps = None if start.steps == self.steps else start.steps
        guidance = None if start.guidance == self.guidance else start.guidance
        if (steps, guidance) not in self._variants:
            if len(self._variants) >= limits.PLAY_VARIANTS:
                raise errors.UserError(
                    f"{limits.PLAY_VARIANTS} different pairs of steps and guidance are compiled, the most that this "
                    "server keeps: choose earlier ones"
                )
            video = generation.video_system(run.system, run.config)
            flags = options.Flags(steps=steps, guidance=guidance)
            changes = options.changes(video, run.config, flags, pathlib.Path(runs.ENCODERS))
            system = systems.create(recipes.change(run.config, changes)) if changes else run.system
            self._variants[steps, guidance] = cast(LiveVideoSystem, system)
        return self._variants[steps, guidance]

    def held(self, keys: Sequence[str]) -> Any:
        """Return the control of a step during which these keys are held."""
        return self._system.held(keys).control

    def warm(self, games: Sequence["Game"], start: key_logs.Start) -> None:
        """Compile all programs of the games' sessions, and measure the memory of one."""
        before = _device_bytes()
        for game in games:
            game.start(start)
            for _ in range(WARM_STEPS):
                step = game.step([])
            if game is games[0]:
                self.session_bytes, self.new_frames = _device_bytes() - before, len(step.frames)
                self.viewed = step.view is not None
                self.describes = isinstance(game.session, live.DescribedSession)
                self.delay = game.session.delay if isinstance(game.session, live.DelayedSession) else 1


def _device_bytes() -> int:
    """Return the bytes of all arrays on the devices."""
    return sum(array.nbytes for array in jax.live_arrays())


class Game:
    """The session of one player. Its methods run on the thread of the model.

    Attributes:
      session: the open session, after `start`.
    """

    session: live.LiveSession

    def __init__(self, world: World, clock: Callable[[], float] = time.perf_counter) -> None:
        self._world, self._clock = world, clock
        self._system: LiveVideoSystem | None = None
        self._steps = self._frames = 0

    def start(self, start: key_logs.Start) -> None:
        """Start again.

        Raises:
          UserError: the settings or the image do not fit the model.
        """
        world = self._world
        system = world.variant(start)
        with jax.set_mesh(world.run.mesh):
            if system is not self._system:
                self.session, self._system = system.session(world.run.model, world.run.encoders), system
            self.session.reset(start.image, start.prompt, seed=start.seed)
        self._steps = self._frames = 0

    def step(self, keys: Sequence[str], prompt: str | None = None) -> Step:
        """Compute a step during which these keys are held; `prompt` is a new caption from this step on."""
        session, world = self.session, self._world
        with compilation.CompileTimes() as compiling, jax.set_mesh(world.run.mesh):
            began, first = time.time(), self._clock()
            if prompt is not None and isinstance(session, live.DescribedSession):
                session.describe(prompt)
            latents = session.advance(world.held(keys))
            between, second = time.time(), self._clock()
            frames = session.decode(latents)
            ended, third = time.time(), self._clock()
        compiled = compiling.seconds(began, between), compiling.seconds(between, ended)
        action = live.joined(keys)
        step = Step(
            number=self._steps,
            first_frame=self._frames,
            action=action,
            frames=frames,
            denoise=max(second - first - compiled[0], 0.0),
            decode=max(third - second - compiled[1], 0.0),
            compile=sum(compiled),
            entry=key_logs.Entry(keys=action, prompt=prompt, frames=key_logs.checksum(frames)),
            view=session.view() if isinstance(session, live.ViewedSession) else None,
        )
        self._steps += 1
        self._frames += len(frames)
        return step
