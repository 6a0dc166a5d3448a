"""The Matrix' training examples: some latents of a clip, its caption, and a control vector per latent frame.

The first latent of a clip encodes one frame and all others encode four. Whole clips begin with such a latent, so
records are cut to their length when they are made. A window of an endless stream comes from the middle of a video.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import grain
import numpy as np

from jworld.cameras import driving
from jworld.data import pipeline
from jworld.data.records import text_store as text_stores
from jworld.systems.worldplay.data import NEGATIVE_PROMPT
from jworld.utils import ranges, tensor_files
from jworld.utils.errors import UserError

#: Array in a file of control vectors: one row per token of `driving.TOKENS`, followed by the row for no control.
CONTROL_STATES = "control_states"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """The part of a clip in one training example (`config.data.clip`).

    Attributes:
      latent_size: height and width of the latents.
      window_frames: latent frames of an example.
      start: "first" for the first latents of the clip; "middle" for a random window after the first latent, like the
        windows of a stream, which have no first frame.
      controls: "" for a model without control; "tokens" for the driving tokens of the records; "labels" for driving
        tokens derived from the action labels of the records.
      control_states: file with the vectors of the tokens, written by `python -m jworld.systems.matrix.encode_controls`;
        "" for random vectors.
      text_dropout: share of examples whose text is the negative prompt.
      control_dropout: share of examples with the vector for no control.
      posterior: draw latents from the autoencoder's posterior; the records must be made with --keep-posterior.
    """

    latent_size: tuple[ranges.Size, ranges.Size]
    window_frames: ranges.Size = 17
    start: Literal["first", "middle"] = "first"
    controls: Literal["", "tokens", "labels"] = ""
    control_states: str = ""
    text_dropout: ranges.Share = 0.0
    control_dropout: ranges.Share = 0.1
    posterior: bool = False

    def __post_init__(self) -> None:
        ranges.check(self)

    @property
    def least_latents(self) -> int:
        """Smallest number of latents of a clip."""
        return self.window_frames + (self.start == "middle")

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that a record must have."""
        controls = {"": (), "tokens": ("control",), "labels": ("action",)}[self.controls]
        return ("latent", "prompt", *controls, *(("logvar",) if self.posterior else ()))


def control_table(path: str, dim: int) -> np.ndarray:
    """Load the control vectors: float32 [10, dim], one row per token of `driving.TOKENS`, then the row for no control.

    Raises:
      UserError: the file is absent or damaged, or its vectors have another width.
    """
    if not path:
        return np.stack([text_stores.hashed_words(token, dim=dim)[-1] for token in (*driving.TOKENS, driving.NULL)])
    fix = "write the file with python -m jworld.systems.matrix.encode_controls"
    name = f"config.data.clip.control_states: {path}"
    with tensor_files.opened(path, fix=fix, name=name) as file:
        if CONTROL_STATES not in file.keys():  # noqa: SIM118, not a dict
            raise UserError(f"{name} has no {CONTROL_STATES}: {fix}")
        table = tensor_files.check_finite(file.get_tensor(CONTROL_STATES), CONTROL_STATES, name, fix=fix)
    if table.shape != (len(driving.TOKENS) + 1, dim):
        raise UserError(
            f"config.data.clip.control_states: {path} has vectors of shape {list(table.shape)}, expected "
            f"{[len(driving.TOKENS) + 1, dim]} for config.model.control_dim {dim}"
        )
    return table.astype(np.float32)


class TakeLatents(grain.transforms.RandomMap):
    """Transform from {"record": dict, "position": count} to one example.

    An example has latent [F, H, W, C] and text_states [S, Dt]. With controls it has control [F, control_dim] float32,
    and with `null_states` the negative prompt as null_states [S, Dt]. Random are the start of a window, dropout of text
    and control, and latents drawn from the posterior.
    """

    def __init__(
        self,
        clip: ClipConfig,
        *,
        text_store: text_stores.TextStore,
        text_tokens: int,
        table: np.ndarray | None,
        null_states: bool = False,
    ) -> None:
        """Set up the transform.

        Args:
          clip: the part of a clip to use.
          text_store: embeddings of the prompts.
          text_tokens: length that texts are padded to with zeros.
          table: result of `control_table`; None without controls.
          null_states: add the negative prompt.
        """
        self._clip, self._text_store, self._text_tokens, self._table = clip, text_store, text_tokens, table
        self._null_states = null_states

    def random_map(self, element: Mapping[str, Any], rng: np.random.Generator) -> dict[str, pipeline.Entry]:
        """Return the example of `element`."""
        record, frames = element["record"], slice(self._clip.window_frames)
        if self._clip.start == "middle":
            first = int(rng.integers(1, len(record["latent"]) - self._clip.window_frames + 1))
            frames = slice(first, first + self._clip.window_frames)
        prompt = NEGATIVE_PROMPT if rng.random() < self._clip.text_dropout else int(record["prompt"])
        latent = record["latent"][frames]
        if self._clip.posterior:
            deviation = np.exp(0.5 * record["logvar"][frames].astype(np.float32))
            drawn = latent + deviation * rng.standard_normal(latent.shape, np.float32)
            latent = drawn.astype(latent.dtype)
        example: dict[str, pipeline.Entry] = {
            "latent": latent,
            "text_states": self._text(prompt),
            "index": record["index"],
        }
        if self._null_states:
            example["null_states"] = self._text(NEGATIVE_PROMPT)
        if self._table is not None:
            is_null = rng.random() < self._clip.control_dropout
            example["control"] = self._table[np.full(len(latent), -1) if is_null else self._tokens(record)[frames]]
        return example

    def _text(self, prompt: int) -> pipeline.Padded:
        states = self._text_store.prompt(prompt)["text_states"][: self._text_tokens]
        return pipeline.Padded(states, self._text_tokens)

    def _tokens(self, record: Mapping[str, Any]) -> np.ndarray:
        stored = self._clip.controls == "tokens"
        tokens: np.ndarray = record["control"] if stored else driving.INDEX_OF_LABEL[record["action"]]
        return tokens
