"""Registry of the encoders of prompts and first frames, by their names: "KIND" or "KIND:SOURCE"."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from jworld.data import images
from jworld.data.records import text_store
from jworld.encoders import base, glyph, qwen, siglip, stored, t5, torch_models, weightless
from jworld.utils.errors import UserError

ImageEncoder = base.ImageEncoder
Options = torch_models.Options
TextEncoder = base.TextEncoder
read_embeddings = stored.read_embeddings
Encoder = TypeVar("Encoder")
_WIDEST = 1 << 16

_TEXT: dict[str, Callable[[str, Options], TextEncoder]] = {
    qwen.FAMILY: qwen.Qwen,
    t5.MATRIX.kind: lambda source, options: t5.T5(source, t5.MATRIX, options),
    t5.COSMOS.kind: lambda source, options: t5.T5(source, t5.COSMOS, options),
    glyph.FAMILY: glyph.Glyph,
    text_store.HASHED_WORDS_FAMILY: lambda source, _: weightless.HashedWords(_width(source or "64")),
    weightless.NONE_FAMILY: lambda source, _: weightless.NoText(_width(source, least=0)),
}
_IMAGE: dict[str, Callable[[str, Options], ImageEncoder]] = {
    siglip.FAMILY: siglip.Siglip,
    images.THUMBNAIL_FAMILY: lambda _, __: weightless.Thumbnail(),
    weightless.NONE_FAMILY: lambda source, _: weightless.NoImage(_width(source, least=0)),
}
_NEED_SOURCE = (qwen.FAMILY, t5.MATRIX.kind, t5.COSMOS.kind, glyph.FAMILY, siglip.FAMILY)
TEXT_KINDS = tuple(_TEXT)
IMAGE_KINDS = tuple(_IMAGE)


def check_options(options: Options, kinds: Iterable[str]) -> None:
    """Raise a `UserError` if a device or dtype is given and none of these kinds of encoders runs in PyTorch."""
    values = {"--encoder-device": options.device, "--encoder-dtype": options.dtype}
    kinds, given = list(dict.fromkeys(kinds)), [flag for flag, value in values.items() if value is not None]
    if given and not set(kinds) & set(_NEED_SOURCE):
        raise UserError(
            f"{' and '.join(given)}: no encoder here runs in PyTorch (found {', '.join(kinds) or 'none'}): leave "
            f"{' and '.join(given)} out"
        )


def load_text_encoder(spec: str, options: Options | None = None) -> TextEncoder:
    """Load "KIND:FOLDER" or "KIND:HUB-ID"; "hashed-words:WIDTH" and "none:WIDTH" need no model."""
    return _load(spec, _TEXT, "text encoder", options)


def load_image_encoder(spec: str, options: Options | None = None) -> ImageEncoder:
    """Load "siglip:FOLDER" or "siglip:HUB-ID"; "thumbnail" and "none:WIDTH" need no model."""
    return _load(spec, _IMAGE, "image encoder", options)


def _load(
    spec: str, table: dict[str, Callable[[str, Options], Encoder]], what: str, options: Options | None
) -> Encoder:
    kind, _, source = spec.partition(":")
    if kind not in table:
        raise UserError(f"{what} '{kind}' is unknown: choose one of {', '.join(table)}")
    if kind in _NEED_SOURCE and not source:
        raise UserError(f"{what} '{kind}' needs its model: write {kind}:FOLDER or {kind}:HUB-ID")
    return table[kind](source, options or Options())


def _width(source: str, *, least: int = 1) -> int:
    source = source or str(least)
    if not source.isdecimal() or not least <= int(source) <= _WIDEST:
        raise UserError(
            f"width '{source}' of an encoder without weights is not an integer from {least} to {_WIDEST}: write one, "
            "such as 64"
        )
    return int(source)
