"""The embedded data sets: recorded and encoded on the user's machine the first time a recipe asks for them."""

import dataclasses
import pathlib

import rich.console

from jworld import precompute
from jworld.data import episodes, records
from jworld.data.recording import recorder
from jworld.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordingConfig:
    """Raw episodes (`config.data.recording`).

    Attributes:
      source: simulator to record from, or "" where the user brings the records.
      directory: folder of the raw episodes.
      episodes, frames, image_size, seed: what is recorded; image_size is (width, height).
    """

    source: str = ""
    directory: str = ""
    episodes: int = 64
    frames: int = 241
    image_size: tuple[int, int] = (192, 144)
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodingConfig:
    """How raw episodes become records (`config.data.encoding`).

    Attributes:
      image_size: (width, height) of the model's images.
      spatial_ratio: pixels per latent, each way.
      autoencoder: file of a codec to use as it is; "" fits one on the training split.
    """

    image_size: tuple[int, int] = (64, 48)
    spatial_ratio: int = 16
    autoencoder: str = ""


def ensure(output: str, recording: RecordingConfig, encoding: EncodingConfig, *, channels: int, text_dim: int) -> None:
    """Make the records in `output` unless they exist.

    Raises:
      UserError: they are absent and `recording.source` is "", or recording or encoding fails.
    """
    if (pathlib.Path(output) / records.MANIFEST).is_file():
        return
    if not recording.source:
        raise UserError(
            f"config.data.records: the folder {output} has no records; make them with python -m jworld.precompute"
        )
    console = rich.console.Console()
    if not (pathlib.Path(recording.directory) / episodes.MANIFEST).is_file():
        width, height = recording.image_size
        recorder.record(
            recording.directory,
            source=recording.source,
            episodes=recording.episodes,
            frames=recording.frames,
            width=width,
            height=height,
            seed=recording.seed,
        )
        console.print(f"recorded {recording.episodes} episodes in {recording.directory}", highlight=False)
    width, height = encoding.image_size
    summary = precompute.precompute(
        recording.directory,
        output,
        width=width,
        height=height,
        spatial_ratio=encoding.spatial_ratio,
        channels=channels,
        text_dim=text_dim,
        autoencoder=encoding.autoencoder or None,
        console=console,
    )
    console.print(
        f"encoded them in {output}; reconstruction of the held-out episodes {summary.psnr:.1f} dB", highlight=False
    )
