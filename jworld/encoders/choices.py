"""Encoders that a user chooses, by options of a command or by a run's config, in place of those of a data set."""

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from jworld.data import records
from jworld.encoders import preview_decoders, registry, stored, torch_models
from jworld.utils import config as run_config
from jworld.utils.errors import UserError

NONE = records.NO_ENCODER


@dataclasses.dataclass(frozen=True, kw_only=True)
class Role:
    """Role of a text or image encoder.

    Attributes:
      key: its key in a manifest.
      flag: command-line option that names it.
      words: its name in messages.
      identity: keys of a manifest entry that identify an encoder.
    """

    key: str
    flag: str
    words: str
    identity: tuple[str, ...]

    @property
    def attribute(self) -> str:
        """Name of the attribute of `EncoderOverrides`."""
        return self.flag.removeprefix("--").replace("-", "_")


TEXT = Role(key="text_encoder", flag="--text-encoder", words="text encoder", identity=("family", "dim", "hash"))
GLYPH = Role(key="glyph_encoder", flag="--glyph-encoder", words="glyph encoder", identity=("family", "dim", "hash"))
IMAGE = Role(
    key="vision_encoder", flag="--image-encoder", words="image encoder", identity=("family", "tokens", "dim", "hash")
)


FLAGS = ("--autoencoder", TEXT.flag, GLYPH.flag, IMAGE.flag)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderOverrides:
    """Encoders that the user names; None leaves the choice to a manifest.

    Attributes:
      autoencoder: file of a linear autoencoder, or folder of a network.
      text_encoder, glyph_encoder, image_encoder: "KIND:SOURCE", see `load`.
      preview_decoder: file of a tiny decoder, which decodes in place of the autoencoder; see `preview_decoders`.
      options: dtype and device of text and image encoders.
    """

    autoencoder: str | None = None
    text_encoder: str | None = None
    glyph_encoder: str | None = None
    image_encoder: str | None = None
    preview_decoder: str | None = None
    options: registry.Options = dataclasses.field(default_factory=registry.Options)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> "EncoderOverrides":
        """Read the options of `add_arguments`, and --preview-decoder where the command has it."""
        names = ("autoencoder", *(role.attribute for role in (TEXT, GLYPH, IMAGE)))
        options = registry.Options(dtype=arguments.encoder_dtype, device=arguments.encoder_device)
        preview = getattr(arguments, "preview_decoder", None)
        return cls(**{name: getattr(arguments, name) for name in names}, preview_decoder=preview, options=options)

    def flags(self) -> list[str]:
        """Return the command-line options that set these values."""
        values = {flag: getattr(self, flag.removeprefix("--").replace("-", "_")) for flag in FLAGS}
        values |= {"--encoder-device": self.options.device, "--encoder-dtype": self.options.dtype}
        values[preview_decoders.FLAG] = self.preview_decoder
        return [flag for flag, value in values.items() if value is not None]

    def or_else(self, other: "EncoderOverrides") -> "EncoderOverrides":
        """Return these encoders and options, and those of `other` where they are None."""
        names = ("autoencoder", *(role.attribute for role in (TEXT, GLYPH, IMAGE)), "preview_decoder")
        chosen = {name: getattr(other if getattr(self, name) is None else self, name) for name in names}
        options = registry.Options(
            dtype=self.options.dtype or other.options.dtype, device=self.options.device or other.options.device
        )
        return EncoderOverrides(**chosen, options=options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodersConfig:
    """Encoders that a run samples with instead of those of its data set (`config.sample.encoders`).

    Attributes:
      autoencoder: file of an autoencoder, or folder with autoencoder.safetensors; None: that of the data set.
      text_encoder: KIND:FOLDER or KIND:HUB-ID of the text encoder; None: that of the data set.
      glyph_encoder: byt5-glyph:FOLDER, for text that is visible in the video; None: that of the data set.
      image_encoder: KIND:FOLDER or KIND:HUB-ID of the image encoder; None: that of the data set.
      dtype: dtype of text and image encoders: float32, float16 or bfloat16; None: as in the published system.
      device: device of text and image encoders; None: cuda if there is one.
    """

    autoencoder: str | None = None
    text_encoder: str | None = None
    glyph_encoder: str | None = None
    image_encoder: str | None = None
    dtype: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.autoencoder is not None and not self.autoencoder.strip():
            raise UserError("config.sample.encoders.autoencoder is empty, expected a path: give one, or None")
        if self.dtype is not None and self.dtype not in torch_models.DTYPES:
            raise UserError(
                f"config.sample.encoders.dtype is {self.dtype!r}, expected one of {', '.join(torch_models.DTYPES)}"
            )
        if self.device is not None and not torch_models.is_device(self.device):
            raise UserError(
                f"config.sample.encoders.device is {self.device!r}, expected {torch_models.DEVICES}: correct it"
            )
        for role in (TEXT, GLYPH, IMAGE):
            if (spec := getattr(self, role.attribute)) is not None:
                check(role, spec, name=f"config.sample.encoders.{role.attribute}")

    def overrides(self) -> EncoderOverrides:
        """Return the same as command-line options give."""
        options = registry.Options(dtype=self.dtype, device=self.device)
        names = ("autoencoder", *(role.attribute for role in (TEXT, GLYPH, IMAGE)))
        return EncoderOverrides(**{name: getattr(self, name) for name in names}, options=options)


def from_config(config: ml_collections.ConfigDict) -> EncoderOverrides:
    """Return the encoders that the section `config.sample.encoders` names; a `UserError` for a wrong key."""
    return run_config.section(EncodersConfig, config.sample.get("encoders", {}), "sample.encoders").overrides()


def add_arguments(parser: argparse.ArgumentParser, *, defaults: Mapping[str, str]) -> None:
    """Add the options that name encoders; `defaults` describes the default of each for help."""
    text, image = ", ".join(registry.TEXT_KINDS), ", ".join(registry.IMAGE_KINDS)
    helps = {
        "--autoencoder": ("PATH", "file of an autoencoder, or folder with autoencoder.safetensors"),
        TEXT.flag: ("SPEC", f"KIND:FOLDER or KIND:HUB-ID, KIND one of {text}; or stored:FILE"),
        GLYPH.flag: ("SPEC", "byt5-glyph:FOLDER, for text that is visible in the video; or none"),
        IMAGE.flag: ("SPEC", f"KIND:FOLDER or KIND:HUB-ID, KIND one of {image}"),
    }
    group = parser.add_argument_group("encoders")
    for flag, (metavar, words) in helps.items():
        group.add_argument(flag, metavar=metavar, help=f"{words} (default: {defaults[flag]})")
    torch_models.add_arguments(group, "text and image encoders", dtype="as in the published system")


def check(role: Role, spec: str, *, name: str | None = None) -> None:
    """Raise a `UserError` if no encoder of this role has the name in `spec`; `name` is that of the option."""
    kind = spec.partition(":")[0]
    kinds = registry.IMAGE_KINDS if role is IMAGE else (*registry.TEXT_KINDS, stored.KIND)
    if kind not in kinds:
        where = f"{name or role.flag} {spec}"
        raise UserError(f"{where}: there is no {role.words} '{kind}', choose one of {', '.join(kinds)}")


def load(role: Role, spec: str, options: registry.Options) -> Any:
    """Load the text or image encoder "KIND:SOURCE"; "none" gives None.

    "stored:FILE" reads states from a file; "none:WIDTH" gives states of this width without rows.
    """
    check(role, spec)
    kind, _, source = spec.partition(":")
    if kind == NONE and source in ("", "0"):
        return None
    if role is IMAGE:
        return registry.load_image_encoder(spec, options)
    if kind == stored.KIND:
        text, glyph = registry.read_embeddings(source)
        return text if role is TEXT else glyph
    return registry.load_text_encoder(spec, options)
