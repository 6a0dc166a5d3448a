"""Encoders of a model, which convert first frames and prompts to its inputs as its data set was made.

A data set's manifest records the family, hash and source of each encoder. The autoencoders that are trained here for
two cores (`autoencoders.OWN_FAMILIES`) are small and stored next to the manifest. Large encoders are opened from their
source, or from another path that the user gives.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jworld.data import records
from jworld.data.inputs import fitting
from jworld.data.records import text_store
from jworld.encoders import autoencoders, base, choices, registry, stored, weightless
from jworld.encoders.choices import GLYPH, IMAGE, NONE, TEXT, EncoderOverrides, Role
from jworld.utils import files
from jworld.utils.errors import UserError

#: Folder of a run, or of released weights, that holds what `copy` writes.
FOLDER = "encoders"


class StoredPrompts:
    """Encoded prompts of a data set, by their keys in its manifest; the empty prompt is the negative one, row 0."""

    def __init__(self, directory: str | pathlib.Path) -> None:
        """Open the text store of a folder of records."""
        manifest = records.read_manifest(directory)
        self._rows = {key: row for row, key in reversed(list(enumerate(manifest["prompts"])))} | {"": 0}
        self._store = text_store.TextStore(directory, manifest)

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._rows

    def __getitem__(self, prompt: str) -> dict[str, np.ndarray]:
        """Return the arrays of a row of the store, float32."""
        return {name: states.astype(np.float32) for name, states in self._store.prompt(self._rows[prompt]).items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoders:
    """Opened encoders of a model.

    Attributes:
      autoencoder: encodes and decodes videos.
      text: encodes prompts; None without.
      glyph: encodes the quoted texts of prompts; None without.
      images: encodes first frames; None without.
      fit: resizing and cropping of images to the model's size.
      fps: frame rate of the model's videos, in frames per second.
      stored: encoded prompts of the data set, used before `text` and `glyph`; None without.
    """

    autoencoder: autoencoders.Autoencoder
    text: base.TextEncoder | None
    glyph: base.TextEncoder | None
    images: base.ImageEncoder | None
    fit: fitting.Fit
    fps: float
    stored: StoredPrompts | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.fit.width, self.fit.height

    def resize(self, frame: np.ndarray) -> np.ndarray:
        """Scale an image uint8 [H, W, 3] to cover the model's size, and crop it around its center.

        Data sets whose episodes have the model's aspect ratio stretch them instead, which is the same for such images.
        """
        return dataclasses.replace(self.fit, mode="crop").frame(frame)

    def image(self, frame: np.ndarray, *, seen: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Encode an image uint8 [H, W, 3] of any size: latent [1, h, w, C] and vision states [V, Dv], float32.

        `seen` is the image for the image encoder, by default the one of the model's size.
        """
        frame = self.resize(frame)
        seen = frame if seen is None else seen
        states = None if self.images is None else self.images.encode(seen[None])[0]
        return self.autoencoder.encode(frame[None, None])[0], states

    def prompt(self, prompt: str) -> dict[str, np.ndarray]:
        """Encode a prompt as in a text store: text_states [S, Dt] and glyph_states [G, Dg], float32."""
        if self.stored is not None and prompt in self.stored:
            return self.stored[prompt]
        if self.stored is not None and self.text is None:
            raise UserError(
                f"the prompt {prompt!r} is not one of the data set, whose text encoder is absent: give one with "
                "--config.sample.encoders.text_encoder (train), or --text-encoder (generate)"
            )
        found = {"text_states": self.text, "glyph_states": self.glyph}
        return {name: encoder.encode([prompt])[0] for name, encoder in found.items() if encoder is not None}


def check_options(given: EncoderOverrides, opened: object) -> None:
    """Raise a `UserError` if the user gives a device or dtype that none of the opened encoders uses."""
    if isinstance(opened, Encoders):
        used = (encoder for encoder in (opened.text, opened.glyph, opened.images) if encoder is not None)
        registry.check_options(given.options, [encoder.entry.kind for encoder in used])


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copy the manifest of a data set and its autoencoder, if the set has it."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (records.AUTOENCODER_FILE, records.MANIFEST):
        if (source / name).is_file():
            files.copy(source / name, target / name)


def open_set(
    directory: str | pathlib.Path,
    *,
    given: EncoderOverrides | None = None,
    mesh: jax.sharding.Mesh | None = None,
    prompts: StoredPrompts | None = None,
) -> Encoders:
    """Open the encoders of a folder of records, or of a folder written by `copy`.

    With `prompts`, text and image encoders may be absent: held-out clips bring their own states.

    Raises:
      UserError: an encoder is absent, or one in `given` differs from the manifest.
    """
    directory, given = pathlib.Path(directory), given or EncoderOverrides()
    manifest = records.read_manifest(directory)
    problem = find_autoencoder_problem(directory, manifest) if given.autoencoder is None else ""
    if problem := problem or ("" if prompts else find_problem(directory, manifest, given)):
        raise UserError(problem)
    for role in (TEXT, GLYPH, IMAGE):
        _refuse_none(role, given, manifest[role.key])
    width, height = manifest["image_size"]
    # Manifests of imported latents do not record the fit: use that of the published pipelines.
    fit = manifest.get("cut", {}).get("fit", {"width": width, "height": height})
    text, glyph, images = (
        None
        if prompts and find_role_problem(role, manifest[role.key], given, directory)
        else _reopen(role, manifest[role.key], given, directory)
        for role in (TEXT, GLYPH, IMAGE)
    )
    return Encoders(
        autoencoder=open_autoencoder(directory, manifest, given=given.autoencoder, mesh=mesh),
        text=text,
        glyph=glyph,
        images=images,
        fit=fitting.Fit(**fit),
        fps=manifest["fps"],
        stored=prompts,
    )


def open_given(
    given: EncoderOverrides, expected: Mapping[str, Any], *, fps: float, mesh: jax.sharding.Mesh | None = None
) -> Encoders:
    """Open the encoders that the user names, for a model without a data set.

    Args:
      given: names of all encoders that the model needs.
      expected: `manifest_expectations` of the model's system.
      fps: frame rate of the model's videos, in frames per second.
      mesh: devices of the autoencoder.

    Raises:
      UserError: an encoder is absent or does not fit the model.
    """
    needed = {
        role: {key.split(".")[1]: value for key, value in expected.items() if key.startswith(f"{role.key}.")}
        for role in (TEXT, GLYPH, IMAGE)
    }
    for role, entries in needed.items():
        _refuse_unused(role, given, used=bool(entries))
        _refuse_none(role, given, entries)
    missing = ["--autoencoder PATH"] if given.autoencoder is None else []
    missing += [f"{role.flag} SPEC" for role in needed if needed[role] and getattr(given, role.attribute) is None]
    if missing:
        raise UserError(f"the model's encoders are not recorded in a folder: give {', '.join(missing)}")
    assert given.autoencoder is not None
    autoencoder = autoencoders.load(given.autoencoder, mesh=mesh)
    height, width, channels = expected["latent_shape"]
    ratio = autoencoder.spatial_ratio
    found = autoencoder.latent_shape(1, height * ratio, width * ratio)[-1]
    _compare(f"--autoencoder {given.autoencoder}", {"channels": found}, {"channels": channels}, ["channels"])
    opened: dict[Role, Any] = dict.fromkeys(needed)
    for role, entries in needed.items():
        if entries:
            spec = getattr(given, role.attribute)
            opened[role] = choices.load(role, spec, given.options)
            _compare(f"{role.flag} {spec}", _entry(opened[role]), entries, list(entries))
    return Encoders(
        autoencoder=autoencoder,
        text=opened[TEXT],
        glyph=opened[GLYPH],
        images=opened[IMAGE],
        fit=fitting.Fit(width=width * ratio, height=height * ratio),
        fps=fps,
    )


def open_autoencoder(
    directory: str | pathlib.Path,
    manifest: Mapping[str, Any],
    *,
    given: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> autoencoders.Autoencoder:
    """Open the autoencoder of the latents in `directory`, from `given` if that is not None.

    Raises:
      UserError: the autoencoder is absent, or differs from the manifest.
    """
    entry = manifest["autoencoder"]
    if given is None:
        if problem := find_autoencoder_problem(directory, manifest):
            raise UserError(problem)
        opened = autoencoders.load(_own_autoencoder(directory, entry) or entry["source"], mesh=mesh)
    else:
        opened = autoencoders.load(given, mesh=mesh)
    where = f"--autoencoder {given}" if given else f"the autoencoder of {directory}"
    _compare(where, opened.manifest_entry(), entry, ["family", "hash"])
    width, height = manifest["image_size"]
    found = {
        "latent_shape": list(opened.latent_shape(1, height, width)[1:]),
        "temporal_ratio": opened.temporal_ratio,
    }
    _compare(where, found, manifest, ["latent_shape", "temporal_ratio"])
    return opened


def check_latents(
    manifest: Mapping[str, Any], autoencoder: autoencoders.Autoencoder, *, path: str | pathlib.Path
) -> None:
    """Raise a `UserError` if the latents of the set at `path` were made with another autoencoder."""
    own = autoencoder.manifest_entry()
    expected: dict[str, Any] = {
        f"autoencoder.{key}": own[key] for key in ("family", "hash") if key in manifest["autoencoder"]
    }
    records.check_manifest(manifest, expected | {"views": manifest.get("views")}, path=path)


def find_problem(
    directory: str | pathlib.Path, manifest: Mapping[str, Any], given: EncoderOverrides | None = None
) -> str:
    """Return a sentence about an encoder of the manifest that is absent, "" if all are available.

    Nothing is loaded. Encoders in `given` are assumed to be valid.
    """
    given = given or EncoderOverrides()
    if given.autoencoder is None and (problem := find_autoencoder_problem(directory, manifest)):
        return problem
    problems = (find_role_problem(role, manifest[role.key], given, directory) for role in (TEXT, GLYPH, IMAGE))
    return next(filter(None, problems), "")


def find_role_problem(
    role: Role, entry: Mapping[str, Any], given: EncoderOverrides, directory: str | pathlib.Path
) -> str:
    """Return the same as `find_problem` for one text or image encoder, whose entry of the manifest is `entry`."""
    if getattr(given, role.attribute) is not None or is_none(entry):
        return ""
    if "kind" not in entry:
        return _unknown_source(directory, role.words, entry["family"], _fix(role.flag, f"{entry['family']}:FOLDER"))
    if _is_absent(entry.get("source", "")):
        return _moved(directory, role.words, entry, _fix(role.flag, f"{entry['kind']}:FOLDER"))
    return ""


def find_autoencoder_problem(directory: str | pathlib.Path, manifest: Mapping[str, Any]) -> str:
    """Return the same as `find_problem` for the autoencoder only."""
    entry = manifest["autoencoder"]
    if _own_autoencoder(directory, entry):
        return ""
    if "source" not in entry and entry["family"] in autoencoders.OWN_FAMILIES:
        path = pathlib.Path(directory) / records.AUTOENCODER_FILE
        return f"{path} is absent: restore it, or {_fix('--autoencoder', 'FILE')}"
    if "source" not in entry:
        return _unknown_source(directory, "autoencoder", entry["family"], _fix("--autoencoder", "FOLDER"))
    if _is_absent(entry["source"]):
        return _moved(directory, "autoencoder", entry, _fix("--autoencoder", "FOLDER"))
    return ""


def _own_autoencoder(directory: str | pathlib.Path, entry: Mapping[str, Any]) -> pathlib.Path | None:
    """Return the autoencoder's file in the folder, if its family has one there and it exists."""
    path = pathlib.Path(directory) / records.AUTOENCODER_FILE
    return path if entry["family"] in autoencoders.OWN_FAMILIES and path.is_file() else None


def _is_absent(source: str) -> bool:
    """Return whether a source is an absent local path; hub ids are not absolute paths."""
    path = pathlib.Path(source)
    return path.is_absolute() and not path.exists()


def _fix(flag: str, value: str) -> str:
    """Return how to name an encoder: with an option to generate and evaluate, with a config key to train."""
    name = flag.removeprefix("--").replace("-", "_")
    return f"give {flag} {value}, or to jworld.train --config.sample.encoders.{name}={value}"


def _unknown_source(directory: str | pathlib.Path, words: str, family: str, fix: str) -> str:
    return f"{directory} does not record the source of its {words} (family {family}): {fix}"


def _moved(directory: str | pathlib.Path, words: str, entry: Mapping[str, Any], fix: str) -> str:
    return f"the {words} of {directory} came from {entry['source']}, which is absent: {fix}"


def _reopen(role: Role, entry: Mapping[str, Any], given: EncoderOverrides, directory: pathlib.Path) -> Any:
    """Open the encoder of a manifest's entry, from `given` if the user names one."""
    _refuse_unused(role, given, used=not is_none(entry))
    if is_none(entry):
        return None
    spec = getattr(given, role.attribute)
    options = dataclasses.replace(given.options, dtype=given.options.dtype or entry.get("dtype"))
    opened = choices.load(role, spec or f"{entry['kind']}:{entry.get('source', '')}", options)
    found = _entry(opened)
    # The hash of a file of states differs from the hash of the encoder that made them.
    same_kind = stored.KIND not in (entry.get("kind"), found.get("kind")) or entry.get("kind") == found.get("kind")
    keys = [key for key in role.identity if same_kind or key != "hash"]
    _compare(f"{role.flag} {spec}" if spec else f"the {role.words} of {directory}", found, entry, keys)
    return opened


def _refuse_unused(role: Role, given: EncoderOverrides, *, used: bool) -> None:
    spec = getattr(given, role.attribute)
    if not used and spec is not None:
        raise UserError(f"{role.flag} is {spec}, but the model has no {role.words}: leave the option out")


def _refuse_none(role: Role, given: EncoderOverrides, entry: Mapping[str, Any]) -> None:
    """Raise a `UserError` for "none" in place of an encoder whose states the model reads."""
    spec, width = getattr(given, role.attribute), entry.get("dim")
    if width and spec in (NONE, f"{NONE}:", f"{NONE}:0"):
        # A data set has states of one family, those without rows are of another.
        other = "leave the option out" if "family" in entry else f"give {NONE}:{width} to sample without them"
        raise UserError(
            f"{role.flag} is {spec}, but the model reads the states of {'an' if role is IMAGE else 'a'} {role.words} "
            f"of width {width}: give KIND:FOLDER, or {other}"
        )


def is_none(entry: Mapping[str, Any]) -> bool:
    """Return whether a manifest's entry records that there is no encoder."""
    return entry["family"] == NONE and not entry["dim"]


def _entry(encoder: base.Encoder | None) -> dict[str, Any]:
    return weightless.NoText(0).manifest_entry() if encoder is None else encoder.manifest_entry()


def _compare(where: str, found: Mapping[str, Any], expected: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in keys:
        if key in expected and found.get(key) != expected[key]:
            raise UserError(
                f"{where} has {key} {found.get(key)!r}, expected {expected[key]!r}: give the one that the data set and "
                "the model were made with"
            )
