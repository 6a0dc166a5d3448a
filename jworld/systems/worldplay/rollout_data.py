"""Training examples for rollouts: recorded frames that serve as memory, and the frames that each chunk attends to.

A rollout continues a recorded prefix by some chunks. Memory is selected by cameras, which are known before anything is
generated, so an example lists the context frames of every chunk: recorded ones, and frames of the rollout itself.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import grain
import numpy as np

from jworld.cameras import memory, poses
from jworld.data import pipeline
from jworld.systems.worldplay.data import (
    NEGATIVE_PROMPT,
    ClipConfig,
    TextStore,
    max_frames_at,
    text_entries,
)


class Plan(NamedTuple):
    """Frames of an example, by their number in the clip.

    Attributes:
      recorded: sorted frames before the rollout that any of its chunks attends to.
      rollout: frames of the rollout, which follow each other.
      contexts: sorted context frames of each chunk, recorded ones and frames of the rollout.
    """

    recorded: list[int]
    rollout: range
    contexts: list[list[int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutClip:
    """Sizes of an example.

    Attributes:
      clip: the clip; `curriculum` bounds the prefix, which grows with it.
      chunks: chunks of a rollout.
      teacher_frames: largest number of recorded frames that the teacher attends to; None for all of them.
      has_targets: nothing is generated: an example has the recorded latents of the rollout (`target`), and no context
        of single chunks, as all of them attend to what the teacher attends to.
    """

    clip: ClipConfig
    chunks: int
    teacher_frames: int | None = None
    has_targets: bool = False

    @property
    def rollout_frames(self) -> int:
        """Latent frames of a rollout."""
        return self.chunks * self.clip.chunk_frames

    @property
    def recorded_frames(self) -> int:
        """Largest number of recorded frames that the chunks of a rollout attend to."""
        clip = self.clip
        # Each chunk retrieves its own frames; the first chunk and the latest frames are common to all.
        retrieved = clip.memory_frames - clip.temporal_context - clip.chunk_frames
        return clip.memory_frames + (self.chunks - 1) * retrieved

    @property
    def frames(self) -> int:
        """Latent frames of an example."""
        return self.recorded_frames + self.rollout_frames

    def plan(self, w2c: np.ndarray, start: int, points: np.ndarray) -> Plan:
        """Select the context frames of a rollout from chunk `start` on, along cameras w2c [F, 4, 4]."""
        clip, size = self.clip, self.clip.chunk_frames
        contexts = [
            memory.select_memory_frames(
                w2c,
                size * chunk,
                points=points,
                memory_frames=clip.memory_frames,
                temporal_context=clip.temporal_context,
                chunk=size,
                view=clip.view,
            )
            for chunk in range(start, start + self.chunks)
        ]
        recorded = sorted({frame for context in contexts for frame in context if frame < size * start})
        return Plan(recorded, range(size * start, size * (start + self.chunks)), contexts)

    def taught(self, plan: Plan) -> list[int]:
        """Return the recorded frames that the teacher attends to: the student's memory without generated chunks.

        A teacher of shorter windows attends to the first chunk and the latest ones.
        """
        most, size = self.teacher_frames, self.clip.chunk_frames
        if most is None or len(plan.recorded) <= most:
            return plan.recorded
        latest = plan.recorded[len(plan.recorded) - most + size :] if most > size else []
        return plan.recorded[: min(most, size)] + latest

    def indices(self, plan: Plan) -> dict[str, np.ndarray]:
        """Return which of the frames [recorded, rollout] each chunk and the teacher attend to; see `batch_spec`."""
        places = {frame: i for i, frame in enumerate(plan.recorded)}
        places |= {frame: self.recorded_frames + i for i, frame in enumerate(plan.rollout)}
        context = np.zeros((self.chunks, self.clip.memory_frames), np.int32)
        valid = np.zeros(context.shape, bool)
        for row, frames in enumerate(plan.contexts):
            context[row, : len(frames)] = [places[frame] for frame in frames]
            valid[row, : len(frames)] = True
        taught = np.zeros(self.recorded_frames, bool)
        taught[[places[frame] for frame in self.taught(plan)]] = True
        return {"taught": taught} | ({} if self.has_targets else {"context": context, "context_valid": valid})

    def shapes(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Return shape and dtype of the arrays of `indices`, and of conditioning, without the batch axis."""
        contexts = {
            "context": ((self.chunks, self.clip.memory_frames), np.int32),
            "context_valid": ((self.chunks, self.clip.memory_frames), np.bool_),
        }
        return ({} if self.has_targets else contexts) | {
            "taught": ((self.recorded_frames,), np.bool_),
            "is_first": ((self.frames,), np.bool_),
            "w2c": ((self.frames, 4, 4), np.float32),
            "intrinsics": ((self.frames, 3, 3), np.float32),
            "action": ((self.frames,), np.int32),
        }


class SampleRollout(grain.transforms.RandomMap):
    """Transform from {"record": dict, "position": count over all processes} to an example with a random prefix."""

    def __init__(
        self,
        sizes: RolloutClip,
        *,
        points: np.ndarray,
        text_store: TextStore,
        global_batch: int,
        with_negative: bool = False,
    ) -> None:
        self._sizes, self._points, self._text_store = sizes, points, text_store
        self._global_batch, self._with_negative = global_batch, with_negative

    def random_map(self, element: Mapping[str, Any], rng: np.random.Generator) -> dict[str, pipeline.Entry]:
        """Return the example of `element`."""
        record, sizes, clip = element["record"], self._sizes, self._sizes.clip
        most = max_frames_at(element["position"] // self._global_batch, clip.curriculum)
        chunks = min(most, len(record["w2c"])) // clip.chunk_frames
        plan = sizes.plan(record["w2c"], int(rng.integers(chunks - sizes.chunks, endpoint=True)), self._points)
        # Padding repeats frame 0, and nothing attends to it.
        numbers = np.zeros(sizes.recorded_frames, int)
        numbers[: len(plan.recorded)] = plan.recorded
        everything = np.concatenate([numbers, plan.rollout])
        prompt = NEGATIVE_PROMPT if rng.random() < clip.text_dropout else int(record["prompt"])
        negative = self._text_store.prompt(NEGATIVE_PROMPT) if self._with_negative else None
        return {
            "latent": record["latent"][numbers],
            **({"target": record["latent"][plan.rollout.start : plan.rollout.stop]} if sizes.has_targets else {}),
            "image_cond": record["image_cond"],
            "is_first": everything == 0,
            "w2c": poses.relative_to_first(record["w2c"])[everything].astype(np.float32),
            "intrinsics": record["intrinsics"][everything].astype(np.float32),
            "action": record["action"][everything].astype(np.int32),
            **sizes.indices(plan),
            **text_entries(clip, self._text_store.prompt(prompt), negative),
            "vision_states": record["vision_states"],
            "index": record["index"],
        }
