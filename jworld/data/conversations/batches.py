"""Batches of conversations of similar length, which keeps padding small and shapes few.

A batch has these arrays:

| key | array |
| --- | --- |
| tokens | int32 [B, L], padded at the end with `<pad>`; L is one of `ClipConfig.lengths` |
| mask | bool [B, L], False on the padding |
| labels | int32 [B, L], see `chat`; `chat.IGNORED` where there is no loss |
| pixel_values | uint8 [B, I, S, S, 3], for the vision tower: images, each before its crops; black if there are fewer |
| world_pixels | uint8 [B, W, W, 3], its first image, for the autoencoder; absent if `world_size` is 0 |
| has_world | bool [B], False for a conversation without images, whose world is masked; absent like world_pixels |

`tokens` contains no world tokens: the model inserts them, with their brackets, after the first token.
"""

import bisect
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import grain
import numpy as np
import PIL.Image

from jworld.data import pipeline, records
from jworld.data.conversations import chat, crops, image_files, prepared
from jworld.utils import ranges
from jworld.utils.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Settings of one example (`config.data.clip`).

    Attributes:
      lengths: sequence lengths that a batch may have, in tokens, with image tokens but without world tokens; longer
        conversations are left out.
      images: images per conversation, at most; 0 for a model without a vision tower.
      image_size: side of the square images for the vision tower, in pixels.
      pan_and_scan: give the vision tower crops of long images, too; they count as images with tokens of their own.
      pan_and_scan_min_crop_size: smallest side of a crop, in pixels; the names are those of preprocessor_config.json.
      pan_and_scan_max_num_crops: largest number of crops of an image.
      pan_and_scan_min_ratio_to_activate: ratio of an image's sides from which on it has crops.
      world_size: side of the square image for the autoencoder, in pixels; 0 for none.
      labels: "answers", or "original" for the original's labels with the world switched off.
    """

    lengths: tuple[ranges.Size, ...] = (512, 1024, 2048)
    images: Annotated[int, ranges.Range(0, 1024)] = 1
    image_size: ranges.Pixels = 896
    pan_and_scan: bool = False
    pan_and_scan_min_crop_size: ranges.Pixels = 256
    pan_and_scan_max_num_crops: Annotated[int, ranges.Range(1, 1024)] = 4
    pan_and_scan_min_ratio_to_activate: Annotated[float, ranges.Range(1, 16384)] = 1.2
    world_size: ranges.PixelsOrZero = image_files.WORLD_SIZE
    labels: chat.Labels = "answers"

    def __post_init__(self) -> None:
        ranges.check(self)
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"lengths is {self.lengths}, expected positive numbers in increasing order")

    @property
    def pan(self) -> crops.PanAndScan | None:
        """Settings of the crops; None without crops."""
        if not self.pan_and_scan:
            return None
        return crops.PanAndScan(
            min_crop_size=self.pan_and_scan_min_crop_size,
            max_num_crops=self.pan_and_scan_max_num_crops,
            min_ratio_to_activate=self.pan_and_scan_min_ratio_to_activate,
        )

    @property
    def slots(self) -> int:
        """Images and crops of a conversation, at most."""
        return self.images * (1 if self.pan is None else 1 + self.pan_and_scan_max_num_crops)

    def count_crops(self, images: Sequence[PIL.Image.Image]) -> list[int]:
        """Return the number of crops of each image."""
        return [0 if self.pan is None else len(self.pan.boxes(*image.size)) for image in images]

    @property
    def max_tokens(self) -> int:
        return self.lengths[-1]


def spec(clip: ClipConfig, global_batch: int) -> dict[str, records.ArraySpec]:
    """Return the arrays of a global batch."""
    text = ((global_batch, clip.max_tokens), ("batch", None))

    def array(dtype: Any) -> records.ArraySpec:
        return records.ArraySpec(text[0], dtype, text[1], lengths=clip.lengths)

    def image(*shape: int) -> records.ArraySpec:
        return records.ArraySpec((global_batch, *shape, 3), np.uint8, ("batch", *[None] * (len(shape) + 1)))

    specs = {
        "tokens": array(np.int32),
        "mask": array(np.bool_),
        "labels": array(np.int32),
        "pixel_values": image(clip.slots, clip.image_size, clip.image_size),
    }
    if not clip.world_size:
        return specs
    has_world = records.ArraySpec((global_batch,), np.bool_, ("batch",))
    return specs | {"world_pixels": image(clip.world_size, clip.world_size), "has_world": has_world}


class LengthOrder:
    """Map from positions in the endless sequence of examples to conversations and padded lengths.

    All examples of a batch have the same length, the smallest that fits. Conversations that do not fill a batch join
    the next longer ones; the rest of the longest ones is left out of the epoch. `shuffle` draws a new order for every
    epoch; otherwise all epochs are equal.
    """

    def __init__(
        self, lengths: np.ndarray, buckets: Sequence[int], *, global_batch: int, seed: int, shuffle: bool
    ) -> None:
        self._bucket = np.array([bisect.bisect_left(buckets, length) for length in lengths])
        self._buckets, self._batch = tuple(buckets), global_batch
        self._seed, self._shuffle = seed, shuffle
        rests = 0
        self._batches = 0
        for number in range(len(buckets)):
            count = int((self._bucket == number).sum()) + rests
            self._batches += count // global_batch
            rests = count % global_batch
        # Fewer conversations than one batch: they are repeated to fill it.
        self._is_small = self._batches == 0
        self._batches = max(self._batches, 1)
        self._epoch = functools.lru_cache(maxsize=4)(self._make_epoch)

    def __call__(self, position: int) -> tuple[int, int]:
        """Return (conversation, length) of a position."""
        batch, row = divmod(position, self._batch)
        epoch, batch = divmod(batch, self._batches)
        rows, buckets = self._epoch(epoch if self._shuffle else 0)
        return int(rows[batch, row]), self._buckets[buckets[batch]]

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (conversations int64 [batches, B], buckets [batches]) of an epoch."""
        rng = np.random.default_rng([self._seed, epoch])
        order = rng.permutation(len(self._bucket)) if self._shuffle else np.arange(len(self._bucket))
        if self._is_small:
            return np.resize(order, (1, self._batch)), np.array([self._bucket.max()])
        rows, buckets = [], []
        rest = order[:0]
        for number in range(len(self._buckets)):
            own = np.concatenate([rest, order[self._bucket[order] == number]])
            whole = len(own) // self._batch * self._batch
            rows.append(own[:whole].reshape(-1, self._batch))
            buckets += [number] * len(rows[-1])
            rest = own[whole:]
        batches = rng.permutation(len(buckets)) if self._shuffle else np.arange(len(buckets))
        return np.concatenate(rows)[batches], np.array(buckets)[batches]


class Examples:
    """Source of the conversation and padded length at every position (a `pipeline.OrderedSource`)."""

    def __init__(self, source: prepared.Source, order: LengthOrder) -> None:
        self._source, self._order = source, order

    def __len__(self) -> int:
        return len(self._source)

    def at(self, position: int) -> dict[str, Any]:
        number, length = self._order(position)
        return {"conversation": self._source[number], "length": length, "index": np.int32(number)}


class MakeExample(grain.transforms.RandomMap):
    """Deterministic transform from a record to one row of a batch."""

    def __init__(self, clip: ClipConfig, tokenizer: chat.ChatTokenizer, source: prepared.Source) -> None:
        self._clip, self._tokenizer, self._root = clip, tokenizer, source.directory

    def random_map(self, element: Mapping[str, Any], rng: np.random.Generator) -> dict[str, pipeline.Entry]:
        """Convert {"record": from `Examples`, "position"} to the arrays of a row."""
        record, clip = element["record"], self._clip
        row = record["conversation"]
        try:
            images = [image_files.read(place, self._root) for place in row.places]
        except ValueError as error:
            raise UserError(
                f"conversation {row.name}: {error}: restore it, or remove {self._root} to check all conversations again"
            ) from error
        encoded = self._tokenizer.encode(
            row.turns,
            images=len(images),
            crops=clip.count_crops(images),
            labels=clip.labels,
            single_turn=row.single_turn,
        )
        padded = chat.pad([encoded], record["length"], pad_id=self._tokenizer.ids[chat.PAD])
        return {
            **{name: array[0] for name, array in padded.items()},
            **model_pixels(images, clip),
            "index": record["index"],
        }


def model_pixels(images: Sequence[PIL.Image.Image], clip: ClipConfig) -> dict[str, np.ndarray | np.bool_]:
    """Return the images of a row: `pixel_values` and, with a world, `world_pixels` and `has_world`.

    Missing images are zeros.
    """
    pixels = np.zeros((clip.slots, clip.image_size, clip.image_size, 3), np.uint8)
    shown = [part for image in images for part in (image, *_crops(image, clip))]
    for number, part in enumerate(shown):
        pixels[number] = image_files.resized(part, clip.image_size)
    if not clip.world_size:
        return {"pixel_values": pixels}
    world = np.zeros((clip.world_size, clip.world_size, 3), np.uint8)
    return {
        "pixel_values": pixels,
        "world_pixels": image_files.resized(images[0], clip.world_size) if images else world,
        "has_world": np.bool_(bool(images)),
    }


def _crops(image: PIL.Image.Image, clip: ClipConfig) -> list[PIL.Image.Image]:
    return [] if clip.pan is None else [image.crop(box) for box in clip.pan.boxes(*image.size)]
