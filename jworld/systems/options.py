"""Plain flags of generation, such as --steps and --size: what a system has of them, and their keys in its config."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import ml_collections

from jworld.models.layers import quantized
from jworld.systems import frame_sizes
from jworld.utils import arguments, errors

SIZE, ASPECT, FPS, GUIDANCE, STEPS, NEGATIVE_PROMPT = (
    "--size",
    "--aspect",
    "--fps",
    "--guidance",
    "--steps",
    "--negative-prompt",
)
#: Keys of the size of latents and images, which --size and --aspect set.
LATENT_SIZE, IMAGE_SIZE = "data.clip.latent_size", "data.encoding.image_size"
ROLLOUT = "sample.rollout"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Values of the plain flags; None leaves a setting as it is saved.

    Attributes:
      size: (width, height) in pixels, or the name of a published set of sizes, such as "480p".
      aspect: ratio (width, height), which chooses a size.
      fps: frame rate of the video, in frames per second.
      guidance: scale of classifier-free guidance on the text, in the config's convention.
      steps: denoising steps.
      negative_prompt: text of the guidance's negative branch.
      max_tokens, temperature, top_k, top_p, stop: of answers in text, see `asking.Sampling`.
    """

    size: frame_sizes.Size | str | None = None
    aspect: frame_sizes.Size | None = None
    fps: float | None = None
    guidance: float | None = None
    steps: int | None = None
    negative_prompt: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    stop: tuple[str, ...] | None = None

    def given(self) -> dict[str, Any]:
        """Return the values that are not None, by flag."""
        values = {f"--{field.name.replace('_', '-')}": getattr(self, field.name) for field in dataclasses.fields(self)}
        return {flag: value for flag, value in values.items() if value is not None}


class VideoOptions:
    """Defaults of the members of `VideoSystem` that describe options of generation: there are none."""

    @property
    def flag_keys(self) -> Mapping[str, str]:
        """See `VideoSystem`."""
        return {}

    @property
    def has_negative_prompt(self) -> bool:
        """See `VideoSystem`."""
        return False

    @property
    def start_frames(self) -> int:
        """See `VideoSystem`."""
        return 1

    @property
    def cameras(self) -> tuple[str, ...]:
        """See `VideoSystem`; by default there is one."""
        return ()

    def start_note(self, frames: int) -> str:
        """See `VideoSystem`; by default any number of frames is fine."""
        return ""

    def frame_rate(self, directory: pathlib.Path) -> float | None:
        """See `VideoSystem`; by default it is unknown before the encoders are open."""
        return None

    def frame_sizes(self, directory: pathlib.Path) -> frame_sizes.FrameSizes | None:
        """See `VideoSystem`; by default all videos have one size."""
        return None


class WithFlags(Protocol):
    """The member of a `VideoSystem` or `TextSystem` that this module reads."""

    @property
    def flag_keys(self) -> Mapping[str, str]: ...


@runtime_checkable
class WithOptions(WithFlags, Protocol):
    """The members of a `VideoSystem` that this module reads."""

    @property
    def has_negative_prompt(self) -> bool: ...

    def frame_sizes(self, directory: pathlib.Path) -> frame_sizes.FrameSizes | None: ...


def changes(
    system: WithFlags, config: ml_collections.ConfigDict, flags: Flags, directory: pathlib.Path
) -> dict[str, str]:
    """Return the values of plain flags as texts by dotted key of the config.

    Args:
      system: the system of the config.
      config: the config.
      flags: values of the flags.
      directory: folder of the run's encoders.

    Raises:
      UserError: the system has no such option, or the size does not fit it.
    """
    found: dict[str, str] = {}
    for flag, value in flags.given().items():
        if flag not in (SIZE, ASPECT) and flag not in system.flag_keys:
            raise _absent(flag)
        if flag in system.flag_keys:
            found[system.flag_keys[flag]] = str(value)
    if flags.size is not None or flags.aspect is not None:
        sizes = system.frame_sizes(directory) if isinstance(system, WithOptions) else None
        if sizes is None:
            raise _absent(SIZE if flags.size is not None else ASPECT)
        width, height = sizes.choose(flags.size, flags.aspect)
        ratio = sizes.ratio
        found[LATENT_SIZE] = f"({height // ratio},{width // ratio})"
        if "encoding" in config.data:
            found[IMAGE_SIZE] = f"({width},{height})"
    return found


def add_quantize(parser: arguments.Parser) -> None:
    """Add the option --quantize."""
    parser.add_argument(
        "--quantize",
        choices=quantized.KINDS,
        help="store the large weights of the network in 8 bits, with a scale per output channel: half the memory of "
        "bfloat16 (default: the type of config.model.param_dtype)",
    )


def check_size(config: ml_collections.ConfigDict, flags: Flags, encoders: Any) -> None:
    """Raise a `UserError` if the opened encoders do not make videos of the size that the flags chose."""
    if flags.size is None and flags.aspect is None:
        return
    expected, found = config.data.clip.latent_size, encoders.image_size
    ratio = encoders.autoencoder.spatial_ratio
    wanted = config.data.get("encoding", {}).get("image_size", found)
    if tuple(wanted) != tuple(found):
        raise errors.UserError(
            f"the autoencoder has {ratio} pixels per latent, so that latents of {expected[1]}x{expected[0]} are videos "
            f"of {frame_sizes.show(found)}, expected {frame_sizes.show(tuple(wanted))}: correct "
            "config.data.encoding.spatial_ratio, or give the model's own --autoencoder"
        )


def check_negative_prompt(system: WithOptions, negative_prompt: str | None) -> None:
    """Raise a `UserError` if a negative prompt is given to a model that has or uses none."""
    if negative_prompt is None or system.has_negative_prompt:
        return
    if NEGATIVE_PROMPT not in system.flag_keys:
        raise _absent(NEGATIVE_PROMPT)
    raise errors.UserError(
        f"{NEGATIVE_PROMPT} has no effect without guidance on the text, which config.{ROLLOUT}.guidance turns off: "
        f"give {GUIDANCE} too, or leave it out"
    )


def _absent(flag: str) -> errors.UserError:
    return errors.UserError(f"{flag}: this model has no such option: leave it out")
