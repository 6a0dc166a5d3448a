"""The loaded model and the sessions of players. All of this runs in one thread, the only one that uses the model.

With a second device, steps are decoded there, in a thread of their own, while the next ones are generated.
"""

import dataclasses
import functools
import gc
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import jax
import numpy as np

from jworld import systems
from jworld.encoders.model_encoders import Encoders
from jworld.parallel import mesh as mesh_lib
from jworld.systems import generation, key_logs, live, options, recipes, runs
from jworld.utils import compilation, errors, limits
from jworld.utils import config as utils_config

#: Steps until all programs of a session are compiled: the first one has no past, and the second a full decoder.
WARM_STEPS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated:
    """A step that is not decoded yet; see `Step`. `latents` are [f, H, W, C]."""

    number: int
    action: str
    prompt: str | None
    latents: np.ndarray
    denoise: float
    compile: float
    view: live.View | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Some frames of a step; see `Step`."""

    number: int
    first_frame: int
    action: str
    frames: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step(Part):
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

    denoise: float
    decode: float
    compile: float
    entry: key_logs.Entry
    view: live.View | None


class LiveVideoSystem(live.LiveSystem, Protocol):
    """A `VideoSystem` with the members of `LiveSystem`."""

    def session(self, model: Any, encoders: Any) -> live.LiveSession: ...


def second_device(count: int, system: live.LiveSystem) -> jax.Device | None:
    """Return the device that decodes if there are to be `count` devices, 1 or 2; None for one device.

    Raises:
      UserError: there is only one device, or decoding cannot be separated from the steps of this system.
    """
    if count == 1:
        return None
    if not system.decodes_apart:
        raise errors.UserError(
            f"--devices {count}: every step of this model continues the decoded frames of the step before, so that "
            "decoding cannot run meanwhile: leave it out"
        )
    devices = jax.local_devices()
    if len(devices) < count:
        raise errors.UserError(
            f"--devices is {count}, but this machine has one device ({devices[0].platform}): leave it out"
        )
    return devices[1]


class World:
    """A trained model that players share.

    Attributes:
      run: the opened run.
      keys: keys of the model.
      fps: frames per second of its videos.
      size: (width, height) of its frames.
      steps, guidance: denoising steps and scale of the guidance by default; None for a model without.
      delay: steps from a key press to the first frame that shows it, the step of the key press included.
      is_split: steps are decoded on a second device, while later ones are generated.
      describes: the caption can change during a session.
      viewed: sessions have cameras and a memory of past frames.
      new_frames: frames of a step after the first.
      session_bytes: bytes that a session holds on the devices; 0 before `warm`.
    """

    def __init__(self, run: runs.Run, *, decoder: jax.Device | None = None) -> None:
        """Set up a world for an opened run; a `UserError` if its model cannot be steered.

        `decoder` is the result of `second_device`.
        """
        self.is_split = decoder is not None
        if decoder is not None:
            opened = cast(Encoders, run.encoders)
            autoencoder = opened.autoencoder.on(mesh_lib.make_mesh(devices=[decoder]))
            run = dataclasses.replace(run, encoders=dataclasses.replace(opened, autoencoder=autoencoder))
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
    """Return the bytes of all arrays on the devices that are in use."""
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


class Game:
    """The session of one player. Its methods run on the thread of the model; with two devices `decode` has its own.

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
        return self.decode(self.generate(keys, prompt))

    def generate(self, keys: Sequence[str], prompt: str | None = None) -> Generated:
        """Compute the first part of `step`."""
        session, world = self.session, self._world
        with compilation.CompileTimes() as compiling, jax.set_mesh(world.run.mesh):
            began, first = time.time(), self._clock()
            if prompt is not None and isinstance(session, live.DescribedSession):
                session.describe(prompt)
            latents = session.advance(world.held(keys))
            compiled, seconds = compiling.seconds(began, time.time()), self._clock() - first
        self._steps += 1
        return Generated(
            number=self._steps - 1,
            action=live.joined(keys),
            prompt=prompt,
            latents=latents,
            denoise=max(seconds - compiled, 0.0),
            compile=compiled,
            view=session.view() if isinstance(session, live.ViewedSession) else None,
        )

    def decode(self, generated: Generated, take: Callable[[Part], None] = lambda part: None) -> Step:
        """Compute the rest of `step`, in the order of the steps; `take` gets its frames as soon as they are decoded."""
        number, action, first_frame, parts = generated.number, generated.action, self._frames, list[np.ndarray]()
        with compilation.CompileTimes() as compiling, jax.set_mesh(self._world.run.mesh):
            began, first = time.time(), self._clock()
            for frames in self.session.decode(generated.latents):
                take(Part(number=number, first_frame=self._frames, action=action, frames=frames))
                self._frames += len(frames)
                parts.append(frames)
            compiled, seconds = compiling.seconds(began, time.time()), self._clock() - first
        frames = np.concatenate(parts)
        return Step(
            number=number,
            first_frame=first_frame,
            action=action,
            frames=frames,
            denoise=generated.denoise,
            decode=max(seconds - compiled, 0.0),
            compile=generated.compile + compiled,
            entry=key_logs.Entry(keys=generated.action, prompt=generated.prompt, frames=key_logs.checksum(frames)),
            view=generated.view,
        )
