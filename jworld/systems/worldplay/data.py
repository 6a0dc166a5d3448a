"""WorldPlay's training samples: the latent frames of an example, and their conditioning.

An example has `window_frames` latents. They are either the clip's first ones, or a memory sample: a random chunk of the
clip after its context frames. Source: HY-WorldPlay's `ar_camera_hunyuan_w_mem_dataset.py`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

import grain
import numpy as np

from jworld.cameras import memory, poses
from jworld.data import pipeline
from jworld.utils import ranges
from jworld.utils.errors import UserError

NEGATIVE_PROMPT = 0

Curriculum = Sequence[tuple[int, int]]


class TextStore(Protocol):
    """Encoded prompts: row 0 is the negative one; rows are trimmed to their true length."""

    def prompt(self, row: int, /) -> Mapping[str, np.ndarray]:
        """Return text_states [S, Dt] and glyph_states [G, Dg] of one row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """The part of a clip in one training example (`config.data.clip`).

    Attributes:
      latent_size: height and width of the latents.
      window_frames: latent frames of an example.
      chunk_frames: latent frames that are denoised together.
      memory_frames: context frames of a chunk; they and one chunk fill the window.
      temporal_context: number of latest context frames; the others are the clip's first chunk and retrieved chunks.
      memory_probability: share of memory samples.
      memory_points: Monte-Carlo points of memory selection.
      memory_fov: width and height of the field of view in memory selection, in degrees.
      memory_radius: distance up to which a camera sees in memory selection, in units of the translations.
      text_dropout: share of examples whose text is the negative prompt.
      text_tokens, glyph_tokens, vision_tokens: limits of the conditioning tokens; glyph_tokens is 0 without
        glyphs, vision_tokens 0 without an encoder of the first image.
      curriculum: pairs (first step, latent frames of a clip in use).
    """

    latent_size: tuple[ranges.Size, ranges.Size]
    window_frames: ranges.Size = 24
    chunk_frames: ranges.Size = 4
    memory_frames: ranges.Size = 20
    temporal_context: ranges.SizeOrZero = 12
    memory_probability: ranges.Share = 0.8
    memory_points: Annotated[int, ranges.Range(1, 10_000_000)] = 50_000
    memory_fov: tuple[
        Annotated[float, ranges.Range(0, 360, above=True, below=True)],
        Annotated[float, ranges.Range(0, 180, above=True, below=True)],
    ] = memory.PUBLISHED_VIEW.fov
    memory_radius: ranges.Positive = memory.PUBLISHED_VIEW.radius
    text_dropout: ranges.Share = 0.1
    text_tokens: ranges.Size = 1000
    glyph_tokens: ranges.SizeOrZero = 256
    vision_tokens: ranges.SizeOrZero = 729
    curriculum: tuple[tuple[ranges.CountOrZero, ranges.Size], ...] = (
        (0, 32),
        (500, 64),
        (1000, 96),
        (2000, 128),
        (3000, 160),
    )

    def __post_init__(self) -> None:
        ranges.check(self)
        if self.window_frames % self.chunk_frames:
            raise ValueError(
                f"window_frames is {self.window_frames}, expected a multiple of chunk_frames {self.chunk_frames}"
            )
        if self.memory_frames + self.chunk_frames != self.window_frames:
            raise ValueError(
                f"memory_frames is {self.memory_frames}, expected window_frames - chunk_frames = "
                f"{self.window_frames - self.chunk_frames}"
            )
        most = self.memory_frames - self.chunk_frames
        if self.temporal_context % self.chunk_frames or not 0 <= self.temporal_context <= most:
            raise ValueError(
                f"temporal_context is {self.temporal_context}, expected a multiple of chunk_frames "
                f"{self.chunk_frames} of at most memory_frames - chunk_frames = {most}"
            )
        self._check_curriculum()

    @property
    def view(self) -> memory.View:
        """View of a camera in memory selection."""
        return memory.View(fov=self.memory_fov, radius=self.memory_radius)

    def _check_curriculum(self) -> None:
        first_steps = [first_step for first_step, _ in self.curriculum]
        if not first_steps or first_steps[0] != 0 or first_steps != sorted(set(first_steps)):
            raise ValueError(
                f"the curriculum's first steps are {first_steps}, expected increasing numbers that start with 0"
            )
        if shortest := [max_frames for _, max_frames in self.curriculum if max_frames < self.window_frames]:
            raise ValueError(
                f"the curriculum has {shortest[0]} max_frames, expected at least window_frames = {self.window_frames}"
            )


def max_frames_at(step: int, curriculum: Curriculum) -> int:
    """Return the number of latents of a clip in use at `step`, from the last (first_step, max_frames) not after it."""
    return [max_frames for first_step, max_frames in curriculum if first_step <= step][-1]


def sample_indices(
    rng: np.random.Generator, clip: ClipConfig, *, w2c: np.ndarray, max_frames: int, points: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Draw one example of a clip with cameras w2c [F, 4, 4], F >= window_frames.

    A clip without a whole chunk after the window has no memory samples.

    Returns:
      Sorted indices [window_frames] of the clip's latents, and whether it is a memory sample.
    """
    chunk, window_frames = clip.chunk_frames, clip.window_frames
    length = min(max_frames, len(w2c)) // chunk * chunk
    if length < window_frames + chunk or rng.random() >= clip.memory_probability:
        return np.arange(window_frames), False
    current = chunk * int(rng.integers(window_frames // chunk, length // chunk - 1, endpoint=True))
    past = memory.select_memory_frames(
        w2c,
        current,
        points=points,
        memory_frames=clip.memory_frames,
        temporal_context=clip.temporal_context,
        chunk=chunk,
        view=clip.view,
    )
    return np.array([*past, *range(current, current + chunk)]), True


def build_example(
    record: Mapping[str, np.ndarray],
    indices: np.ndarray,
    clip: ClipConfig,
    *,
    is_memory: bool,
    text: Mapping[str, np.ndarray],
    negative: Mapping[str, np.ndarray] | None = None,
) -> dict[str, pipeline.Entry]:
    """Return the batch entries of one example, without the batch axis; cameras are relative to the clip's first one.

    `text` is a row of the text store. With the row `negative` there are entries of the negative prompt, too.
    """
    first, last = int(indices[0]), int(indices[-1])
    # A window is a slice, which needs no copy.
    frames = slice(first, last + 1) if last - first + 1 == len(indices) else indices
    example: dict[str, pipeline.Entry] = {
        "latent": record["latent"][frames],
        "image_cond": record["image_cond"],
        "w2c": poses.relative_to_first(record["w2c"])[indices].astype(np.float32),
        "intrinsics": record["intrinsics"][indices].astype(np.float32),
        "action": record["action"][indices].astype(np.int32),
        "is_memory": np.bool_(is_memory),
        "vision_states": record["vision_states"],
        "index": record["index"],
    }
    return example | text_entries(clip, text, negative)


def text_entries(
    clip: ClipConfig, text: Mapping[str, np.ndarray], negative: Mapping[str, np.ndarray] | None
) -> dict[str, pipeline.Entry]:
    """Return the batch entries of a row of the text store, and those of the negative prompt's row unless it is None."""
    entries: dict[str, pipeline.Entry] = {}
    kinds = ("text", "glyph") if clip.glyph_tokens else ("text",)
    for kind in kinds:
        limit = f"{kind}_tokens"
        states, mask = padded(text[f"{kind}_states"], getattr(clip, limit), limit)
        entries |= {f"{kind}_states": states, f"{kind}_mask": mask}
    if negative is not None:
        states, mask = padded(negative["text_states"], clip.text_tokens, "text_tokens")
        entries |= {"negative_states": states, "negative_mask": mask}
    return entries


class SampleWindow(grain.transforms.RandomMap):
    """Transform from {"record": dict, "position": count over all processes} to the entries of `build_example`.

    All randomness comes from the generator that Grain seeds per position. The curriculum's step is position //
    global_batch.
    """

    def __init__(
        self,
        clip: ClipConfig,
        *,
        points: np.ndarray,
        text_store: TextStore,
        global_batch: int,
        with_negative: bool = False,
    ) -> None:
        self._clip, self._points, self._with_negative = clip, points, with_negative
        self._text_store, self._global_batch = text_store, global_batch

    def random_map(self, element: Mapping[str, Any], rng: np.random.Generator) -> dict[str, pipeline.Entry]:
        """Return the example of `element`."""
        record = element["record"]
        max_frames = max_frames_at(element["position"] // self._global_batch, self._clip.curriculum)
        prompt = NEGATIVE_PROMPT if rng.random() < self._clip.text_dropout else int(record["prompt"])
        indices, is_memory = sample_indices(
            rng, self._clip, w2c=record["w2c"], max_frames=max_frames, points=self._points
        )
        text = self._text_store.prompt(prompt)
        negative = self._text_store.prompt(NEGATIVE_PROMPT) if self._with_negative else None
        return build_example(record, indices, self._clip, is_memory=is_memory, text=text, negative=negative)


def padded(states: np.ndarray, tokens: int, key: str) -> tuple[pipeline.Padded, np.ndarray]:
    """Pad states [S, D] with zeros to [tokens, D], and return them with their mask, bool [tokens]."""
    if len(states) > tokens:
        raise UserError(f"{key} is {tokens}, but a prompt has {len(states)}: raise {key} or precompute shorter prompts")
    return pipeline.Padded(states, tokens), np.arange(tokens) < len(states)
