"""What is made of which videos: everything that shapes a data set, checked before anything is read."""

import dataclasses
import pathlib

from jworld.data.inputs import clips, fitting, formats
from jworld.encoders.model_encoders import EncoderOverrides
from jworld.models.autoencoders import linear
from jworld.utils.errors import UserError

EPISODES, WORLDPLAY = "episodes", "worldplay"
#: What the tiny recipes take: size of the images, codec, encoders.
SIZE = (64, 48)
CODEC = linear.LinearConfig(channels=96, spatial_ratio=16)
TEXT_ENCODER, GLYPH_ENCODER, IMAGE_ENCODER = "hashed-words:64", "none", "thumbnail"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A data set in the making. None leaves a choice to the format, or to the autoencoder.

    Attributes:
      input: what `format` reads.
      format: a key of `formats.FORMATS`.
      root: where relative paths of an index start.
      allow_missing_captions: videos without a caption get an empty one.
      frames_fps: pictures per second of folders of pictures.
      width, height: of the images; fit, resampling: how frames get there.
      fps, frames, stride, remainder, repeat_frames: see `clips.CutConfig`.
      given: the encoders.
      autoencoder_dtype: of a network's activations; its file says one.
      codec: what is fitted where no autoencoder is given.
      whitening: of that one, see `linear.fit`.
      seed: chooses the patches that the codec is fitted on.
      keep_posterior: keep log variances, so that training can draw latents.
      val_share: share of held-out videos where the format has no splits.
      items_per_shard: videos per file of records.
    """

    input: pathlib.Path
    format: str = EPISODES
    root: pathlib.Path | None = None
    allow_missing_captions: bool = False
    frames_fps: float | None = None
    width: int | None = None
    height: int | None = None
    fit: str | None = None
    resampling: str | None = None
    fps: float | None = None
    frames: int | None = None
    stride: int | None = None
    remainder: str = "drop"
    repeat_frames: bool = False
    given: EncoderOverrides = dataclasses.field(default_factory=EncoderOverrides)
    autoencoder_dtype: str | None = None
    codec: linear.LinearConfig = CODEC
    whitening: float = 0.0
    seed: int = 0
    keep_posterior: bool = False
    val_share: float = 0.05
    items_per_shard: int = 32

    def __post_init__(self) -> None:
        if self.format not in formats.FORMATS:
            raise UserError(f"format is {self.format!r}, expected one of {', '.join(formats.FORMATS)}")
        if not 0 <= self.whitening <= 1:
            raise UserError(f"whitening is {self.whitening}, expected 0 (none) to 1")
        if self.items_per_shard < 1:
            raise UserError(f"--items-per-shard is {self.items_per_shard}, expected at least 1")
        if (self.width is None) != (self.height is None):
            raise UserError(f"image size is {self.width}x{self.height}: give both --width and --height")
        if self.fps is None and self.format != EPISODES:
            raise UserError(f"videos of format {self.format} may have any frame rate: give --fps, such as --fps 24")

    @property
    def specs(self) -> dict[str, str]:
        """Text, glyph and image encoder by their names in `EncoderOverrides`; folders in full, for the manifest."""
        chosen = {
            "text_encoder": self.given.text_encoder or TEXT_ENCODER,
            "glyph_encoder": self.given.glyph_encoder or GLYPH_ENCODER,
            "image_encoder": self.given.image_encoder or IMAGE_ENCODER,
        }
        return {name: _in_full(spec) for name, spec in chosen.items()}

    def cut(self, *, family: str, temporal_ratio: int, spatial_ratio: int) -> clips.CutConfig:
        """How clips are cut for an autoencoder."""
        width, height = self.width, self.height
        if width is None or height is None:
            if family != linear.FAMILY:
                raise UserError("the size of the images is not told: give --width and --height (such as 832 and 480)")
            width, height = SIZE
        if width < spatial_ratio or height < spatial_ratio or width % spatial_ratio or height % spatial_ratio:
            raise UserError(
                f"image size is {width}x{height}, expected multiples of the spatial ratio {spatial_ratio}: change "
                "--width, --height or the autoencoder"
            )
        # Episodes are recorded in the shape of the model's images; other videos have any.
        mode, resampling = ("stretch", "area") if self.format == EPISODES else ("crop", "lanczos")
        return clips.CutConfig(
            fit=fitting.Fit(
                width=width, height=height, mode=self.fit or mode, resampling=self.resampling or resampling
            ),
            fps=self.fps,
            frames=self.frames,
            stride=self.stride,
            remainder=self.remainder,
            repeat_frames=self.repeat_frames,
            temporal_ratio=temporal_ratio,
        )


def _in_full(spec: str) -> str:
    """KIND:SOURCE with an absolute path where the source is a file or folder."""
    kind, _, source = spec.partition(":")
    path = pathlib.Path(source).expanduser()
    # The source of encoders without weights is a number.
    return spec if not source or source.isdecimal() or not path.exists() else f"{kind}:{path.absolute()}"
