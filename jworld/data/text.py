"""The text store of a data set, and the weight-free "hashed-words" text encoder.

Many clips share a caption, and encoded text is larger than a short clip: it is stored once per distinct prompt, trimmed
to its true length, in one safetensors file. Prompt i has "text_states.i" [S_i, Dt] and "glyph_states.i" [G_i, Dg] (the
text to be drawn in the picture; may have no rows), bfloat16. Prompt 0 is the empty (negative) prompt.
"""

import hashlib
import os
import pathlib
import re
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jworld.errors import UserError

HASHED_WORDS_FAMILY = "hashed-words"
_KINDS = ("text_states", "glyph_states")


def write_text_store(
    path: str | pathlib.Path, text_states: Sequence[np.ndarray], glyph_states: Sequence[np.ndarray]
) -> None:
    """Write the states of all prompts, [S_i, Dt] and [G_i, Dg] each; the file is complete or absent."""
    arrays = {f"text_states.{i}": states for i, states in enumerate(text_states)}
    arrays |= {f"glyph_states.{i}": states for i, states in enumerate(glyph_states)}
    path = pathlib.Path(path)
    temporary = path.with_name(path.name + ".tmp")
    stored = {name: np.array(states, ml_dtypes.bfloat16, order="C") for name, states in arrays.items()}
    # Not save_file: it makes files that only their owner may read.
    temporary.write_bytes(safetensors.numpy.save(stored))
    os.replace(temporary, path)


class TextStore:
    """Reads a text store; only the prompts that are asked for are loaded."""

    def __init__(self, path: str | pathlib.Path, *, num_prompts: int) -> None:
        if not pathlib.Path(path).is_file():
            raise UserError(f"text store {path} is absent: run precompute again")
        try:
            self._file = safetensors.safe_open(path, framework="numpy")
        except safetensors.SafetensorError as error:
            raise UserError(f"text store {path} is corrupt ({error}): run precompute again") from error
        names = set(self._file.keys())
        for name in (f"{kind}.{i}" for kind in _KINDS for i in range(num_prompts)):
            if name not in names or len(self._file.get_slice(name).get_shape()) != 2:
                raise UserError(f"text store {path}: '{name}' is missing or not [tokens, width]: run precompute again")
        self._num_prompts = num_prompts

    def __len__(self) -> int:
        return self._num_prompts

    def prompt(self, row: int, /) -> dict[str, np.ndarray]:
        """{"text_states": [S_i, Dt], "glyph_states": [G_i, Dg]}, bfloat16."""
        return {name: self._file.get_tensor(f"{name}.{row}") for name in _KINDS}


def hashed_words(prompt: str, *, dim: int) -> np.ndarray:
    """Prompt -> float32 [S, dim]: one token that is the same in every prompt, then one per lower-cased word.

    A word's vector is drawn with unit variance from a generator seeded by the word. A stand-in for a language model
    where none is installed: captions that differ are told apart, but the model must learn every word by itself. The
    leading token means that the empty prompt, too, has something to attend to.
    """
    words = ["", *re.findall(r"\w+", prompt.lower())]
    return np.stack([_word_vector(word, dim) for word in words])


def _word_vector(word: str, dim: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).standard_normal(dim, np.float32)
