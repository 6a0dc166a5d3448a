"""Built-in data sets: recorded and encoded when a recipe first needs them."""

import dataclasses
import pathlib
from typing import Annotated

import rich.console

from jworld.data import records
from jworld.data.recording import episodes, recorder
from jworld.data.records import text_store
from jworld.encoders.choices import EncoderOverrides
from jworld.models.autoencoders import linear
from jworld.precompute import job
from jworld.precompute.settings import Settings
from jworld.utils import ranges
from jworld.utils.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodingConfig:
    """Settings of the encoding of raw episodes as records (`config.data.encoding`).

    Attributes:
      image_size: (width, height) of the model's images, in pixels.
      spatial_ratio: pixels per latent in each direction.
      autoencoder: file of a linear autoencoder; "" fits one on the training split.
      whitening: whitening of a fitted autoencoder, 0 (none) to 1, see `linear.fit`.
      clip_frames: frames per clip; 0 for whole episodes.
    """

    image_size: tuple[ranges.Pixels, ranges.Pixels] = (64, 48)
    spatial_ratio: ranges.Ratio = 16
    autoencoder: str = ""
    whitening: ranges.Share = 0.0
    clip_frames: Annotated[int, ranges.Range(0, 1_000_000)] = 0


def ensure(
    output: str, recording: recorder.RecordingConfig, encoding: EncodingConfig, *, channels: int, text_dim: int
) -> None:
    """Make the records in `output` unless they exist.

    Raises:
      UserError: the records are absent and `recording.source` is "", or recording or encoding fails.
    """
    if (pathlib.Path(output) / records.MANIFEST).is_file():
        return
    if not recording.source:
        raise UserError(
            f"config.data.records: the folder {output} has no records; make them with python -m jworld.precompute"
        )
    console = rich.console.Console()
    if not (pathlib.Path(recording.directory) / episodes.MANIFEST).is_file():
        recording.record()
        console.print(f"recorded {recording.episodes} episodes in {recording.directory}", highlight=False)
    width, height = encoding.image_size
    settings = Settings(
        input=pathlib.Path(recording.directory),
        width=width,
        height=height,
        frames=encoding.clip_frames or None,
        given=EncoderOverrides(
            autoencoder=encoding.autoencoder or None, text_encoder=f"{text_store.HASHED_WORDS_FAMILY}:{text_dim}"
        ),
        linear=linear.LinearConfig(channels=channels, spatial_ratio=encoding.spatial_ratio),
        whitening=encoding.whitening,
    )
    summary = job.precompute(settings, output, shard=(0, 1), console=console)
    assert summary is not None
    psnr = summary.manifest["reconstruction_psnr"]
    console.print(f"encoded them in {output}; reconstruction of the held-out episodes {psnr:.1f} dB", highlight=False)
