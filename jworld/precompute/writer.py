"""Conversion of clips to records: batches are encoded together, and records are written to their shard."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jworld.cameras import actions, robots
from jworld.data import records
from jworld.data.inputs import clips, items
from jworld.data.inputs.base import Format
from jworld.data.records import shards
from jworld.encoders import base
from jworld.encoders.autoencoders import Autoencoder, Latents
from jworld.models.autoencoders import linear
from jworld.precompute.reader import ReadAhead
from jworld.utils.errors import UserError

#: Number of clips of every held-out shard on which reconstruction is measured.
PSNR_CLIPS = 32
#: Upper bound in dB: a blank video reaches infinity, which JSON cannot store.
BEST_PSNR = 99.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Maker:
    """Maker of the records of a data set.

    Attributes:
      autoencoder: encodes clips.
      images: encodes first frames; None without an image encoder.
      arrays: arrays of a record, as in the manifest.
      rows: row of the text store by caption.
      fps: frame rate of all clips, in frames per second.
      whole_videos: a clip is a whole video and has its name.
      format: the format of the videos.
      batch: number of clips that are encoded together.
    """

    autoencoder: Autoencoder
    images: base.ImageEncoder | None
    arrays: Mapping[str, Any]
    rows: Mapping[str, int]
    fps: float
    whole_videos: bool
    format: Format
    batch: int

    def write_shard(
        self,
        writer: shards.ShardWriter,
        listed: Sequence[tuple[int, items.Item]],
        reader: ReadAhead,
        *,
        measure: bool,
        skip_errors: bool,
        advance: shards.Advance,
    ) -> None:
        """Write the records of items, given with their positions in `reader`.

        A bad item is a `UserError` or, with `skip_errors`, listed as skipped; its clips before the fault remain.
        """
        waiting: list[clips.Clip] = []
        counted = 0
        for position, item in listed:
            count = 0
            try:
                for clip in reader.read(position):
                    self._check(item, clip)
                    if waiting and (len(waiting) == self.batch or waiting[0].length != clip.length):
                        self._write(writer, waiting, measure=measure)
                        waiting = []
                    waiting.append(clip)
                    count += 1
            except UserError as error:
                if not skip_errors:
                    hint = "give --on-error skip to leave out bad videos and list them"
                    raise UserError(f"{error}; {hint}") from error
                writer.skip(item.name, str(error))
            if len(waiting) == self.batch or position == listed[-1][0]:
                self._write(writer, waiting, measure=measure)
                waiting = []
            advance(writer.bytes - counted, count)
            counted = writer.bytes

    def _check(self, item: items.Item, clip: clips.Clip) -> None:
        if abs(clip.fps / self.fps - 1) > clips.SAME_RATE:
            raise UserError(f"{item.video} has {clip.fps:g} frames/s, the data set has {self.fps:g}: give --fps")
        if "control" in self.arrays and clip.controls is None:
            raise UserError(
                f"{item.video} has no controls, but other videos of the data set do: add them or remove the video"
            )

    def _write(self, writer: shards.ShardWriter, batch: Sequence[clips.Clip], *, measure: bool) -> None:
        if not batch:
            return
        # One after the other, cameras are clips of their own for the autoencoder, in batches of the same size.
        videos = np.concatenate([clip.frames if clip.captions else clip.frames[None] for clip in batch])
        measure = measure and len(writer.result.psnr) < PSNR_CLIPS
        encoded = [
            self._encode(writer, videos[i : i + self.batch], measure=measure) for i in range(0, len(videos), self.batch)
        ]
        latents: Latents = jax.tree.map(lambda *parts: np.concatenate(parts), *encoded)
        first = videos[:: len(videos) // len(batch), 0]
        states = None if self.images is None else self.images.encode(first)
        made = [self._record(clip, i, latents, None if states is None else states[i]) for i, clip in enumerate(batch)]
        for clip, record in zip(batch, made, strict=True):
            writer.write(clip.item if self.whole_videos else clip.name, record)

    def _encode(self, writer: shards.ShardWriter, video: np.ndarray, *, measure: bool) -> Latents:
        """Encode at most `batch` videos [B, T, H, W, 3], and measure their reconstruction if wanted."""
        # Padded to the full batch, so that one program serves all clips of a length.
        padded = np.concatenate([video, np.repeat(video[-1:], self.batch - len(video), axis=0)])
        latents = self.autoencoder.encode_clips(padded, posterior="logvar" in self.arrays)
        if measure:
            stored = latents.latent.astype(ml_dtypes.bfloat16).astype(np.float32)
            # CogVideoX's autoencoder decodes an even number of latents to three extra frames at the start.
            decoded = self.autoencoder.decode(stored)[:, -video.shape[1] :]
            writer.result.psnr += [min(linear.psnr(frames, decoded[i]), BEST_PSNR) for i, frames in enumerate(video)]
        logvar = None if latents.logvar is None else latents.logvar[: len(video)]
        return Latents(latents.latent[: len(video)], latents.image_cond[: len(video)], logvar)

    def _record(self, clip: clips.Clip, i: int, latents: Latents, states: np.ndarray | None) -> records.Record:
        every = slice(None, None, self.autoencoder.temporal_ratio)
        views = len(clip.captions)
        own = slice(i * views, (i + 1) * views) if views else i
        latent = latents.latent[own].astype(ml_dtypes.bfloat16)
        if not np.isfinite(latent).all():
            raise UserError(f"latents of {clip.name} are not finite: give --autoencoder-dtype float32")
        record = {"latent": latent, "image_cond": latents.image_cond[own].astype(ml_dtypes.bfloat16)}
        if latents.logvar is not None:
            record["logvar"] = latents.logvar[own].astype(np.float16)
        if "w2c" in self.arrays:
            assert clip.w2c is not None
            assert clip.intrinsics is not None
            record["w2c"] = clip.w2c[every].astype(np.float32)
            record["intrinsics"] = clip.intrinsics[every].astype(np.float32)
            record["action"] = self._labels(clip)
        if "control" in self.arrays:
            assert clip.controls is not None
            record["control"] = control_numbers(clip.controls, self.format.control_tokens)[every]
        if "motion" in self.arrays:
            record["motion"] = _motion(clip)
        if states is not None:
            record["vision_states"] = states.astype(ml_dtypes.bfloat16)
        if "prompt" in self.arrays:
            record["prompt"] = np.array(self.rows[clip.caption], np.int32)
        if "view_prompts" in self.arrays:
            record["view_prompts"] = np.array([self.rows[caption] for caption in clip.captions], np.int32)
        return record

    def _labels(self, clip: clips.Clip) -> np.ndarray:
        """Return WorldPlay's action label of every latent, int32 [F]."""
        every = slice(None, None, self.autoencoder.temporal_ratio)
        assert clip.w2c is not None
        if self.format.recorded_labels and clip.controls is not None:
            labels = [actions.label_from_name(word) for word in clip.controls.words[every]]
            return np.array([0, *labels[1:]], np.int32)
        return actions.labels_from_poses(clip.w2c[every], min_translation=actions.TRAINING_MIN_TRANSLATION)


def _motion(clip: clips.Clip) -> np.ndarray:
    """Return what happens between the T frames of a clip, float32 [T - 1, A]."""
    if clip.commands is not None:
        return clip.commands.astype(np.float32)
    assert clip.hand is not None
    return robots.relative_actions(clip.hand[:, :6], clip.hand[:, 6])


def control_numbers(controls: items.Controls, tokens: Sequence[str]) -> np.ndarray:
    """Return the indices in `tokens` of the words of T frames, int32 [T]."""
    return np.array([tokens.index(word) for word in controls.words], np.int32)
