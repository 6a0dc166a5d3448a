"""Settings that determine the records of a data set, checked before anything is read."""

import dataclasses
import pathlib

from jworld.data.inputs import clips, fitting, formats
from jworld.encoders import registry
from jworld.encoders.choices import EncoderOverrides
from jworld.models.autoencoders.linear import FAMILY, LinearConfig
from jworld.models.autoencoders.tiling import Tiling
from jworld.utils import limits
from jworld.utils.errors import UserError

#: Defaults of the tiny recipes: image size (width, height), linear autoencoder, encoders.
SIZE = (64, 48)
LINEAR = LinearConfig(channels=96, spatial_ratio=16)
#: Overlap of tiles, vertical and horizontal, as in CogVideoX.
OVERLAPS = (1 / 6, 1 / 5)
TEXT_ENCODER, GLYPH_ENCODER, IMAGE_ENCODER = "hashed-words:64", "none", "thumbnail"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a data set; None leaves a choice to the format or to the autoencoder.

    Attributes:
      input: path of the videos, as `format` expects it.
      format: a key of `formats.FORMATS`.
      root: base of the relative paths in an index file.
      allow_missing_captions: use an empty caption for videos without one.
      prompt: caption of videos without one.
      frames_fps, frames_size, camera, commands: see `items.ListOptions`.
      width, height: image size in pixels.
      fit, resampling: see `fitting.Fit`.
      fps, frames, stride, remainder, repeat_frames, short_videos: see `clips.CutConfig`.
      given: encoders to use instead of the defaults.
      autoencoder_dtype: dtype of a network's activations; None for the one in its file.
      tile: height and width of the tiles in which a network encodes, in pixels; None for whole frames.
      linear: sizes of the linear autoencoder that is fitted if no autoencoder is given.
      whitening: see `linear.fit`.
      seed: random seed for the patches that the linear autoencoder is fitted on.
      keep_posterior: store log variances, so that training can sample latents.
      val_share: share of held-out videos if the format has no splits.
      items_per_shard: videos per file of records.
    """

    input: pathlib.Path
    format: str = formats.DEFAULT
    root: pathlib.Path | None = None
    allow_missing_captions: bool = False
    prompt: str = ""
    frames_fps: float | None = None
    frames_size: tuple[int, int] | None = None
    camera: str = ""
    commands: str = ""
    width: int | None = None
    height: int | None = None
    fit: str | None = None
    resampling: str | None = None
    fps: float | None = None
    frames: int | None = None
    stride: int | None = None
    remainder: str = "drop"
    repeat_frames: bool = False
    short_videos: str = "refuse"
    given: EncoderOverrides = dataclasses.field(default_factory=EncoderOverrides)
    autoencoder_dtype: str | None = None
    tile: tuple[int, int] | None = None
    linear: LinearConfig = LINEAR
    whitening: float = 0.0
    seed: int = 0
    keep_posterior: bool = False
    val_share: float = formats.VAL_SHARE
    items_per_shard: int = 32

    def __post_init__(self) -> None:
        entry = formats.find(self.format)
        for name in ("root", "frames_fps", "frames_size", "camera", "commands"):
            if getattr(self, name) and name not in entry.options:
                others = ", ".join(other.name for other in formats.FORMATS.values() if name in other.options)
                raise UserError(
                    f"--{name.replace('_', '-')} is for the formats {others}, not for {self.format}: leave it out"
                )
        if not 0 <= self.whitening <= 1:
            raise UserError(f"whitening is {self.whitening}, expected 0 (none) to 1")
        if self.tile is not None and self.given.autoencoder is None:
            raise UserError(
                f"--tile is {self.tile[1]}x{self.tile[0]}, but the linear autoencoder needs no tiles: leave it out"
            )
        registry.check_options(self.given.options, [spec.partition(":")[0] for spec in self.specs.values()])
        if self.items_per_shard < 1:
            raise UserError(f"--items-per-shard is {self.items_per_shard}, expected at least 1")
        if (self.width is None) != (self.height is None):
            raise UserError(f"image size is {self.width}x{self.height}: give both --width and --height")
        if self.fps is None and entry.read_fps is None:
            raise UserError(f"videos of format {self.format} may have any frame rate: give --fps, such as --fps 24")

    def tiling(self, spatial_ratio: int) -> Tiling | None:
        """Return the tiles of an autoencoder with this ratio; a sixth of a tile overlaps vertically, a fifth across."""
        if self.tile is None:
            return None
        strides = [
            size - round(size * share / spatial_ratio) * spatial_ratio
            for size, share in zip(self.tile, OVERLAPS, strict=True)
        ]
        tiling = Tiling(tile=self.tile, stride=(strides[0], strides[1]))
        tiling.scaled(spatial_ratio)
        return tiling

    @property
    def specs(self) -> dict[str, str]:
        """Return the encoders by their names in `EncoderOverrides`, with absolute paths for the manifest."""
        chosen = {
            "text_encoder": self.given.text_encoder or TEXT_ENCODER,
            "glyph_encoder": self.given.glyph_encoder or GLYPH_ENCODER,
            "image_encoder": self.given.image_encoder or IMAGE_ENCODER,
        }
        return {name: _in_full(spec) for name, spec in chosen.items()}

    def cut(self, *, family: str, temporal_ratio: int, spatial_ratio: int) -> clips.CutConfig:
        """Return the settings of clips for an autoencoder of this family and these ratios."""
        width, height = self.width, self.height
        if width is None or height is None:
            if family != FAMILY:
                raise UserError("the image size is unknown: give --width and --height, such as 832 and 480")
            width, height = SIZE
        if width * height > limits.IMAGE_PIXELS:
            raise UserError(
                f"image size is {width}x{height}, expected at most {limits.IMAGE_PIXELS:,} pixels: change --width, "
                "--height"
            )
        if width < spatial_ratio or height < spatial_ratio or width % spatial_ratio or height % spatial_ratio:
            raise UserError(
                f"image size is {width}x{height}, expected multiples of the spatial ratio {spatial_ratio}: change "
                "--width, --height or the autoencoder"
            )
        entry = formats.find(self.format)
        return clips.CutConfig(
            fit=fitting.Fit(
                width=width,
                height=height,
                mode=self.fit or entry.fit,
                resampling=self.resampling or entry.resampling,
            ),
            fps=self.fps,
            frames=self.frames,
            stride=self.stride,
            remainder=self.remainder,
            repeat_frames=self.repeat_frames,
            short_videos=self.short_videos,
            temporal_ratio=temporal_ratio,
        )


def _in_full(spec: str) -> str:
    """Return KIND:SOURCE with an absolute path if the source is a file or folder."""
    kind, _, source = spec.partition(":")
    path = pathlib.Path(source).expanduser()
    # The source of encoders without weights is a number.
    return spec if not source or source.isdecimal() or not path.exists() else f"{kind}:{path.absolute()}"
