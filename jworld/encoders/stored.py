"""Text states in a safetensors file, in place of an encoder.

The metadata has "family", the encoder of the states (such as "qwen2.5-vl"), and "prompts", a JSON list of strings.
Prompt i has the tensor "text_states.i" [S_i, D] and, if any prompt has one, "glyph_states.i" [G_i, Dg]. Glyph states,
by "byt5-glyph", encode the text to draw in the image and may have no rows. Tensors are floats of 16 or 32 bits without
padding. The file has no other tensors.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import safetensors

from jworld.encoders import base, glyph, sources
from jworld.utils import files, tensor_files
from jworld.utils.errors import UserError

KIND = "stored"
_TEXT, _GLYPHS = "text_states", "glyph_states"
_DTYPES = ("F16", "BF16", "F32")


class StoredText(base.TextEncoder):
    """Text encoder that looks up stored states; a prompt without states is a `UserError`.

    Blanks around a prompt do not count, as in captions.
    """

    def __init__(self, path: pathlib.Path, file: safetensors.safe_open, prompts: Sequence[str], name: str) -> None:
        self._path, self._file, self._name = path, file, name
        # If prompts differ only in blanks around them, the first one counts.
        self._rows = {prompt.strip(): row for row, prompt in reversed(list(enumerate(prompts)))}
        shapes = [self._checked_shape(f"{name}.{row}") for row in range(len(prompts))]
        dim = shapes[0][1]
        for row, shape in enumerate(shapes):
            if shape[1] != dim:
                raise UserError(f"{path}: '{name}.{row}' is {shape[1]} wide, expected {dim} as for '{name}.0'")
        self.entry = base.Entry(
            kind=KIND,
            family=glyph.FAMILY if name == _GLYPHS else file.metadata()["family"],
            source=str(path),
            hash=sources.hash_files(path.parent, [path.name]),
            tokens=max(shape[0] for shape in shapes),
            dim=dim,
        )

    def encode(self, prompts: Sequence[str]) -> list[np.ndarray]:
        prompts = [prompt.strip() for prompt in prompts]
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rows]
        if missing:
            raise UserError(
                f"{self._path} has no states for prompt {missing[0]!r} ({len(missing)} such): add them; the prompts of "
                "a data set are all its captions and the empty one"
            )
        return [self._read(f"{self._name}.{self._rows[prompt]}") for prompt in prompts]

    def _checked_shape(self, name: str) -> list[int]:
        tensor = self._file.get_slice(name)
        shape: list[int] = tensor.get_shape()
        dtype = tensor.get_dtype()
        if len(shape) != 2 or dtype not in _DTYPES:
            raise UserError(
                f"{self._path}: '{name}' is {dtype} {shape}, expected [tokens, width] of {', '.join(_DTYPES)}"
            )
        return shape

    def _read(self, name: str) -> np.ndarray:
        states: np.ndarray = self._file.get_tensor(name).astype(np.float32)
        if not np.isfinite(states).all():
            raise UserError(f"{self._path}: '{name}' has values that are not finite: encode this prompt again")
        return states


def read_embeddings(path: str | pathlib.Path) -> tuple[StoredText, StoredText | None]:
    """Read the text states of a file, and its glyph states or None."""
    path = pathlib.Path(path)
    fix = "give a file of python -m jworld.precompute.encode_text, or write it again"
    file = tensor_files.open_file(path, fix=fix, name=f"text embeddings file {path}")
    prompts = _read_prompts(path, file.metadata() or {})
    names = set(file.keys())
    kinds = [_TEXT, _GLYPHS] if any(name.startswith(_GLYPHS) for name in names) else [_TEXT]
    expected = {f"{kind}.{row}" for kind in kinds for row in range(len(prompts))}
    if missing := sorted(expected - names):
        raise UserError(f"{path} lacks '{missing[0]}' ({len(missing)} such): its metadata names {len(prompts)} prompts")
    if unknown := sorted(names - expected):
        raise UserError(f"{path}: '{unknown[0]}' ({len(unknown)} such) belongs to no prompt of its metadata")
    encoders = [StoredText(path, file, prompts, kind) for kind in kinds]
    return encoders[0], encoders[1] if len(encoders) > 1 else None


def write_embeddings(path: str | pathlib.Path, family: str, states: Mapping[str, np.ndarray]) -> None:
    """Write a file of text states.

    Args:
      path: file to write or replace.
      family: encoder of the states.
      states: [tokens, width] by prompt, floats of 16 or 32 bits.

    Raises:
      UserError: the file cannot be written.
    """
    path = pathlib.Path(path)
    metadata = {"family": family, "prompts": json.dumps(list(states))}
    tensors = {f"{_TEXT}.{row}": np.ascontiguousarray(array) for row, array in enumerate(states.values())}
    try:
        tensor_files.save(tensors, path, metadata=metadata)
    except OSError as error:
        raise UserError(f"{path} could not be written ({error}): choose another place") from error


def _read_prompts(path: pathlib.Path, metadata: dict[str, str]) -> list[str]:
    for key in ("family", "prompts"):
        if not metadata.get(key):
            raise UserError(f"{path}: metadata '{key}' is missing, expected 'family' and 'prompts': write it again")
    try:
        prompts = files.parse_json(metadata["prompts"])
    except ValueError as error:
        raise UserError(f"{path}: metadata 'prompts' is not JSON ({error}), expected a list of strings") from error
    if not (isinstance(prompts, list) and prompts and all(isinstance(prompt, str) for prompt in prompts)):
        raise UserError(f"{path}: metadata 'prompts' is not a list of one or more strings: write it again")
    if len(set(prompts)) < len(prompts):
        twice = next(prompt for prompt in prompts if prompts.count(prompt) > 1)
        raise UserError(f"{path}: prompt {twice!r} occurs twice in metadata 'prompts': write each once")
    return prompts
