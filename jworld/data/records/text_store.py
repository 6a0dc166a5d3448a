"""Text store of a data set, and the weight-free "hashed-words" text encoder.

Many clips share a caption, and encoded text is larger than a short clip. So text is stored once per distinct prompt,
trimmed to its true length. Prompt i is record i of the shards that the manifest lists under "text": "text_states"
[S_i, Dt] and, in sets with a glyph encoder, "glyph_states" [G_i, Dg], bfloat16. Glyph states encode the text to draw in
the image and may have no rows. Prompt 0 is the negative prompt.
"""

import hashlib
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jworld.data import records
from jworld.data.records import shard_files
from jworld.utils.errors import UserError

HASHED_WORDS_FAMILY = "hashed-words"
_KINDS = ("text_states", "glyph_states")


def prompt_record(text_states: np.ndarray, glyph_states: np.ndarray | None = None) -> records.Record:
    """Make the record of one prompt from [S, Dt] and optionally [G, Dg] of any float dtype; stored as bfloat16."""
    states = zip(_KINDS, (text_states, glyph_states), strict=True)
    return {name: np.asarray(array, ml_dtypes.bfloat16) for name, array in states if array is not None}


class TextStore:
    """Random access to the encoded prompts of a data set; only requested prompts are read."""

    def __init__(self, directory: str | pathlib.Path, manifest: Mapping[str, Any]) -> None:
        self._directory = pathlib.Path(directory)
        self._reader = shard_files.open_shards(self._directory, manifest["text"])
        self._kinds = _KINDS if manifest.get("glyph_encoder", {}).get("dim") else _KINDS[:1]

    def __len__(self) -> int:
        return len(self._reader)

    def prompt(self, row: int, /) -> records.Record:
        """Return {"text_states": [S_i, Dt], "glyph_states": [G_i, Dg] if any}, bfloat16.

        Raises:
          UserError: the row is corrupt.
        """
        name = f"text store of {self._directory}, prompt {row}"
        try:
            prompt = records.decode_record(self._reader[row])
        except ValueError as error:
            raise UserError(f"{name} is corrupt ({error}): make the data set again") from error
        for key in {*self._kinds, *prompt}:
            if key not in prompt or prompt[key].ndim != 2 or prompt[key].dtype != ml_dtypes.bfloat16:
                raise UserError(f"{name}: '{key}' is missing or not bfloat16 [tokens, width]: make the data set again")
        return prompt


def hashed_words(prompt: str, *, dim: int) -> np.ndarray:
    """Encode a prompt as float32 [S, dim]: one token that is equal in all prompts, then one per lower-cased word.

    A word's vector is drawn with unit variance from a generator seeded by the word. This replaces a language model if
    none is installed: captions remain distinguishable, but the model must learn the meaning of every word. The leading
    token gives the empty prompt something to attend to.
    """
    words = ["", *re.findall(r"\w+", prompt.lower())]
    return np.stack([_word_vector(word, dim) for word in words])


def _word_vector(word: str, dim: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).standard_normal(dim, np.float32)
