"""Key logs: what a player did, so that `jworld.generate --keys` makes the same frames again.

A log is a JSON file with the settings of a start (first image, caption, seed, denoising steps, guidance), the held keys
of every step and a checksum of its frames. The same model on the same device makes the same frames bit for bit, which
the checksums prove.
"""

import base64
import binascii
import dataclasses
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import PIL.Image
import xxhash
from flax import nnx

from jworld.data.inputs import image as image_files
from jworld.evaluation import results
from jworld.systems import live, options, requests
from jworld.systems.base import AnySystem
from jworld.utils import errors, files, limits

FORMAT, VERSION = "jworld-keys", 1
_FIX = "give a file that jworld play saved"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Settings with which a session starts.

    Attributes:
      image: first image uint8 [H, W, 3]; None for a model without.
      prompt: caption.
      seed: random seed for the noise.
      steps, guidance: denoising steps and scale of the guidance; None for those of the config.
    """

    image: np.ndarray | None = None
    prompt: str = ""
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None

    @property
    def flags(self) -> options.Flags:
        """The settings that change the config."""
        return options.Flags(steps=self.steps, guidance=self.guidance)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One step of a session.

    Attributes:
      keys: held keys, such as "w+right", or "none".
      prompt: caption from this step on, if it changed; else None.
      frames: checksum of the frames, see `checksum`; "" if it is unknown.
    """

    keys: str
    prompt: str | None = None
    frames: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyLog:
    """A start and the steps that followed it, with the identity of the model, see `identity`."""

    model: str
    start: Start
    entries: Sequence[Entry]

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        image = self.start.image
        start = {name: getattr(self.start, name) for name in ("prompt", "seed", "steps", "guidance")}
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "start": {**start, "image": None if image is None else base64.b64encode(png(image)).decode()},
            "steps": [
                {key: value for key, value in dataclasses.asdict(entry).items() if value not in (None, "")}
                for entry in self.entries
            ],
        }

    def actions(self, system: AnySystem, config: Any, where: str) -> list[results.Action]:
        """Return one action per step; `where` is the file, for errors.

        Raises:
          UserError: the model is not steered by keys, or has other keys.
        """
        steered = live.live_system(system, config)
        keys, found = steered.live_keys(), []
        for number, entry in enumerate(self.entries, start=1):
            try:
                action = steered.held(live.split(keys, entry.keys))
            except ValueError as error:
                raise errors.UserError(f"{where}: step {number}: {error}: give the log of this model") from error
            found.append(dataclasses.replace(action, prompt=entry.prompt))
        return found


def applied(request: requests.Request) -> requests.Request:
    """Return a request with the caption, seed and settings of its key log; without a log, the request itself.

    Raises:
      UserError: the log cannot be read, or an option that it holds is given, too.
    """
    if request.keys is None:
        return request
    given = {
        **{f"--{name}": getattr(request, name) for name in ("image", "prompt", "pose", "actions", "windows", "length")},
        **{"--batch": request.batch, "--seed": request.seeds != requests.Request.seeds, "--chat": request.chat},
        **request.flags.given(),
    }
    if twice := [flag for flag, value in given.items() if value]:
        raise errors.UserError(f"{twice[0]}: the key log {request.keys} holds all of a video: leave one of them out")
    start = read(request.keys).start
    return dataclasses.replace(request, prompt=start.prompt, seeds=(start.seed,), flags=start.flags)


class Check:
    """Comparison of a video with the frames that were played.

    Attributes:
      same: number of steps whose frames are the same, until the first one that differs.
    """

    def __init__(self, log: KeyLog | None) -> None:
        self._log, self.same, self._count = log, 0, 0

    def before(self, take: Callable[[np.ndarray], object]) -> Callable[[np.ndarray], object]:
        """Return `take` with a comparison before it; without a log, `take` itself."""
        if self._log is None:
            return take
        entries = self._log.entries

        def compared(frames: np.ndarray) -> object:
            if self.same == self._count:
                self.same += entries[self._count].frames == checksum(frames)
            self._count += 1
            return take(frames)

        return compared

    def describe(self, run: Any) -> str:
        """Return a line about the comparison."""
        assert self._log is not None
        if self.same == self._count:
            return f"all {self._count} steps have the same frames as when they were played"
        reason = "on another device, or with other settings or versions"
        if self._log.model != identity(run.model, run.encoders):
            reason = "with other weights"
        return f"the frames differ from step {self.same + 1} of {self._count} on: they were played {reason}"


def checksum(frames: np.ndarray) -> str:
    """Return the checksum of frames uint8 [T, H, W, 3] with their shape."""
    return xxhash.xxh3_64_hexdigest(repr(frames.shape).encode() + np.ascontiguousarray(frames).tobytes())


def identity(model: nnx.Module, encoders: Any) -> str:
    """Return a checksum of the weights and of the autoencoder, which reads all weights once."""
    hashed = xxhash.xxh3_128()
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        # Several arrays for a quantized one.
        for part in jax.tree.leaves(leaf.get_value()):
            value = np.asarray(jax.device_get(part))
            hashed.update(f"{path}{value.shape}{value.dtype}".encode())
            hashed.update(np.ascontiguousarray(value).view(np.uint8).data)
    hashed.update(encoders.autoencoder.hash.encode())
    return hashed.hexdigest()


def png(image: np.ndarray) -> bytes:
    """Encode an image uint8 [H, W, 3] without loss."""
    stream = io.BytesIO()
    PIL.Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


def read_image(content: bytes) -> np.ndarray:
    """Decode the content of an image file that a stranger may have made: uint8 [H, W, 3].

    Raises:
      ValueError: it is too large, damaged, or neither PNG, JPEG nor WebP.
    """
    if len(content) > limits.PLAY_IMAGE_BYTES:
        raise ValueError(f"the image has {len(content):,} bytes, expected at most {limits.PLAY_IMAGE_BYTES:,}")
    try:
        # Only the header is read here.
        with PIL.Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as opened:
            width, height = opened.size
            if width * height <= limits.PLAY_IMAGE_PIXELS:
                return image_files.to_rgb(opened)
    except image_files.BROKEN as error:
        raise ValueError("the image cannot be read, expected a PNG, JPEG or WebP file") from error
    raise ValueError(f"the image has {width}x{height} pixels, expected at most {limits.PLAY_IMAGE_PIXELS:,}")


def read(path: pathlib.Path) -> KeyLog:
    """Read a log; a `UserError` if it is absent, damaged, or something else."""
    content = files.read_json(path, fix=_FIX)
    try:
        return parse(content)
    except ValueError as error:
        raise errors.UserError(f"{path}: {error}: {_FIX}") from error


def parse(content: Any) -> KeyLog:
    """Return the log of a file's content; a `ValueError` names what is wrong."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"the key 'format' is not {FORMAT!r}")
    if content.get("version") != VERSION:
        raise ValueError(f"'version' is {content.get('version')!r}, expected {VERSION}")
    start, steps = content.get("start"), content.get("steps")
    if not isinstance(start, dict) or not isinstance(steps, list) or not steps:
        raise ValueError("'start' must be an object and 'steps' a list of at least one step")
    entries = [_entry(step, number) for number, step in enumerate(steps, start=1)]
    return KeyLog(model=str(content.get("model", "")), start=_start(start), entries=entries)


def _start(values: Mapping[str, Any]) -> Start:
    image = values.get("image")
    if image is not None:
        try:
            image = read_image(base64.b64decode(image, validate=True))
        except (binascii.Error, TypeError, ValueError) as error:
            raise ValueError(f"'start.image' is not an image ({errors.one_line(error)})") from error
    return Start(image=image, **checked(values))


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a start other than the image, as fields of `Start`; a `ValueError` names a wrong one."""
    prompt, seed, steps, guidance = (values.get(key) for key in ("prompt", "seed", "steps", "guidance"))
    if not isinstance(prompt, str) or len(prompt) > limits.PLAY_PROMPT:
        raise ValueError(f"'prompt' must be a text of at most {limits.PLAY_PROMPT:,} characters")
    if not requests.is_seed(seed):
        raise ValueError(f"'seed' is {seed!r}, expected an integer of 32 bits")
    if steps is not None and (type(steps) is not int or not 1 <= steps <= limits.PLAY_STEPS):
        raise ValueError(f"'steps' is {steps!r}, expected an integer from 1 to {limits.PLAY_STEPS}")
    if guidance is not None and (type(guidance) not in (int, float) or not 0 <= guidance <= limits.PLAY_GUIDANCE):
        raise ValueError(f"'guidance' is {guidance!r}, expected a number from 0 to {limits.PLAY_GUIDANCE}")
    return {"prompt": prompt, "seed": seed, "steps": steps, "guidance": guidance}


def _entry(step: Any, number: int) -> Entry:
    fields = {field.name for field in dataclasses.fields(Entry)}
    if (
        not isinstance(step, dict)
        or not step.keys() <= fields
        or not all(isinstance(value, str) for value in step.values())
        or "keys" not in step
    ):
        raise ValueError(f"step {number} is {str(step)[:60]!r}, expected an object with the texts {sorted(fields)}")
    return Entry(**step)
