"""Encoders without weights: none at all, and the simple ones of `jworld.data`, with the common interface."""

from collections.abc import Sequence

import numpy as np

from jworld.data import images as thumbnails
from jworld.data import records
from jworld.data.records import text_store
from jworld.encoders import base

NONE_FAMILY = records.NO_ENCODER


class NoText(base.TextEncoder):
    """Text encoder whose states have width `dim` and no rows."""

    def __init__(self, dim: int) -> None:
        self.entry = base.Entry(kind=NONE_FAMILY, family=NONE_FAMILY, source=str(dim), dim=dim, tokens=0)

    def encode(self, prompts: Sequence[str]) -> list[np.ndarray]:
        return [np.zeros((0, self.dim), np.float32) for _ in prompts]


class HashedWords(base.TextEncoder):
    """Text encoder `jworld.data.records.text_store.hashed_words`."""

    def __init__(self, dim: int) -> None:
        family = text_store.HASHED_WORDS_FAMILY
        self.entry = base.Entry(kind=family, family=family, source=str(dim), dim=dim)

    def encode(self, prompts: Sequence[str]) -> list[np.ndarray]:
        return [text_store.hashed_words(prompt, dim=self.dim) for prompt in prompts]


class NoImage(base.ImageEncoder):
    """Image encoder whose states have width `dim` and no rows."""

    def __init__(self, dim: int) -> None:
        self.entry = base.Entry(kind=NONE_FAMILY, family=NONE_FAMILY, source=str(dim), dim=dim, tokens=0)

    def encode(self, images: np.ndarray) -> np.ndarray:
        return np.zeros((len(images), 0, self.dim), np.float32)


class Thumbnail(base.ImageEncoder):
    """Image encoder `jworld.data.images.thumbnail_tokens`."""

    def __init__(self) -> None:
        family = thumbnails.THUMBNAIL_FAMILY
        self.entry = base.Entry(
            kind=family, family=family, dim=thumbnails.THUMBNAIL_DIM, tokens=thumbnails.THUMBNAIL_TOKENS
        )

    def encode(self, images: np.ndarray) -> np.ndarray:
        return np.stack([thumbnails.thumbnail_tokens(image) for image in images])
