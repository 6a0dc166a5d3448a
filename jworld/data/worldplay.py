"""WorldPlay's training samples: which latent frames of a clip one example shows, and what the model is told with them.

Source: HY-WorldPlay's `ar_camera_hunyuan_w_mem_dataset.py`. An example has `window_frames` latents: either the clip's
first ones, or a memory sample: a chunk drawn anywhere in the clip, after the past frames that it may look at.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from jworld.cameras import memory, poses
from jworld.errors import UserError

NEGATIVE_PROMPT = 0

Curriculum = Sequence[tuple[int, int]]


class TextStore(Protocol):
    """Encoded prompts: row 0 is the negative one; rows are trimmed to their true length."""

    def prompt(self, row: int, /) -> Mapping[str, np.ndarray]:
        """text_states [S, Dt] and glyph_states [G, Dg] of one row."""


def max_frames_at(step: int, curriculum: Curriculum) -> int:
    """How many latents of a clip are in use at `step`: the value of the last (first_step, max_frames) not after it."""
    return [max_frames for first_step, max_frames in curriculum if first_step <= step][-1]


def sample_indices(
    rng: np.random.Generator,
    *,
    w2c: np.ndarray,
    max_frames: int,
    window_frames: int,
    points: np.ndarray,
    memory_frames: int,
    temporal_context: int,
    memory_probability: float = 0.8,
    chunk: int = 4,
) -> tuple[np.ndarray, bool]:
    """Draw one example of a clip: (sorted indices [window_frames] into its latents, is it a memory sample).

    w2c [F, 4, 4] with F >= window_frames. Clips that reach no chunk beyond the window give window samples only.
    """
    length = min(max_frames, len(w2c)) // chunk * chunk
    if length < window_frames + chunk or rng.random() >= memory_probability:
        return np.arange(window_frames), False
    current = chunk * int(rng.integers(window_frames // chunk, length // chunk - 1, endpoint=True))
    past = memory.select_memory_frames(
        w2c, current, points=points, memory_frames=memory_frames, temporal_context=temporal_context, chunk=chunk
    )
    return np.array([*past, *range(current, current + chunk)]), True


def build_example(
    record: Mapping[str, np.ndarray],
    indices: np.ndarray,
    *,
    is_memory: bool,
    text: Mapping[str, np.ndarray],
    text_tokens: int,
    glyph_tokens: int | None,
) -> dict[str, np.ndarray]:
    """The batch entries of one example, without the batch axis; cameras are relative to the clip's first one.

    `text` is a row of the text store; `glyph_tokens` None leaves the glyph text out.
    """
    example = {
        "latent": record["latent"][indices],
        "image_cond": record["image_cond"],
        "w2c": poses.relative_to_first(record["w2c"])[indices].astype(np.float32),
        "intrinsics": record["intrinsics"][indices].astype(np.float32),
        "action": record["action"][indices].astype(np.int32),
        "is_memory": np.bool_(is_memory),
        "vision_states": record["vision_states"],
        "index": record["index"],
    }
    example["text_states"], example["text_mask"] = padded(text["text_states"], text_tokens, "text_tokens")
    if glyph_tokens is not None:
        example["glyph_states"], example["glyph_mask"] = padded(text["glyph_states"], glyph_tokens, "glyph_tokens")
    return example


class SampleWindow(grain.transforms.RandomMap):
    """Record -> example; every draw comes from the generator that Grain seeds per position.

    element {"record": dict, "position": count over all processes} -> the entries of `build_example`.
    `curriculum` holds (first_step, max_frames) pairs; the step is position // global_batch.
    """

    def __init__(
        self,
        *,
        window_frames: int,
        memory_frames: int,
        temporal_context: int,
        memory_probability: float,
        text_dropout: float,
        points: np.ndarray,
        curriculum: Curriculum,
        text_tokens: int,
        glyph_tokens: int | None,
        text_store: TextStore,
        global_batch: int,
        chunk: int = 4,
    ) -> None:
        memory.check_sizes(memory_frames=memory_frames, temporal_context=temporal_context, chunk=chunk)
        if window_frames != memory_frames + chunk:
            raise UserError(
                f"window_frames is {window_frames}, expected memory_frames + {chunk} = {memory_frames + chunk}"
            )
        _check_curriculum(curriculum, window_frames)
        self._sampling: dict[str, Any] = {
            "window_frames": window_frames,
            "memory_frames": memory_frames,
            "temporal_context": temporal_context,
            "memory_probability": memory_probability,
            "points": points,
            "chunk": chunk,
        }
        self._text_dropout = text_dropout
        self._curriculum = curriculum
        self._text_tokens = text_tokens
        self._glyph_tokens = glyph_tokens
        self._text_store = text_store
        self._global_batch = global_batch

    def random_map(self, element: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        record = element["record"]
        max_frames = max_frames_at(element["position"] // self._global_batch, self._curriculum)
        prompt = NEGATIVE_PROMPT if rng.random() < self._text_dropout else int(record["prompt"])
        indices, is_memory = sample_indices(rng, w2c=record["w2c"], max_frames=max_frames, **self._sampling)
        return build_example(
            record,
            indices,
            is_memory=is_memory,
            text=self._text_store.prompt(prompt),
            text_tokens=self._text_tokens,
            glyph_tokens=self._glyph_tokens,
        )


def padded(states: np.ndarray, tokens: int, key: str) -> tuple[np.ndarray, np.ndarray]:
    """states [S, D] -> ([tokens, D] with zeros at the end, bool [tokens] true where a token is)."""
    if len(states) > tokens:
        raise UserError(f"{key} is {tokens}, but a prompt has {len(states)}: raise {key} or precompute shorter prompts")
    padded = np.zeros((tokens, states.shape[1]), states.dtype)
    padded[: len(states)] = states
    return padded, np.arange(tokens) < len(states)


def _check_curriculum(curriculum: Curriculum, window_frames: int) -> None:
    first_steps = [first_step for first_step, _ in curriculum]
    if not first_steps or first_steps[0] != 0 or first_steps != sorted(set(first_steps)):
        raise UserError(
            f"the curriculum's first steps are {first_steps}, expected increasing numbers that begin with 0"
        )
    if shortest := [max_frames for _, max_frames in curriculum if max_frames < window_frames]:
        raise UserError(
            f"the curriculum has {shortest[0]} max_frames, expected at least window_frames = {window_frames}"
        )
