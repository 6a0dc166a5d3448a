"""Cosmos-Predict2's training examples: the first latents of a clip, its caption and, for action models, its motion.

An example of several cameras has the latents of one camera after the other, and a caption for each.

Clips are cut to their length when records are made. The first latent of a clip encodes one frame and all others encode
four, so a window from the middle would lack a first latent.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import grain
import numpy as np

from jworld.cameras import robots
from jworld.data import pipeline
from jworld.systems.worldplay.data import TextStore
from jworld.utils import ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """The part of a clip in one training example (`config.data.clip`).

    Attributes:
      latent_size: height and width of the latents.
      window_frames: latent frames of an example, counted from the start of the clip; those of one camera.
      text_tokens: text tokens; a shorter caption is padded with zeros, which the model attends to.
      actions: "" for a model without actions; "poses" for the camera's motion from latent to latent; "motion" for the
        record's array of that name, [steps, 7] per pixel frame; "commands" for recorded commands there, [steps,
        command_size] per pixel frame.
      command_size: numbers of a command; 0 without commands.
      views: names of several synchronized cameras in the order of the records; () for one camera.
      view_ids: ids by which the model embeds them.
      caption_view: id of the only camera with a caption; None if all cameras have their own.
    """

    latent_size: tuple[ranges.Size, ranges.Size]
    window_frames: Annotated[int, ranges.Range(2, 2**20)] = 24
    text_tokens: ranges.Size = 512
    actions: Literal["", "poses", "motion", "commands"] = ""
    command_size: Annotated[int, ranges.Range(0, 4096)] = 0
    views: tuple[str, ...] = ()
    view_ids: tuple[ranges.SizeOrZero, ...] = ()
    caption_view: ranges.SizeOrZero | None = None

    def __post_init__(self) -> None:
        ranges.check(self)
        if (self.actions == "commands") != bool(self.command_size):
            raise ValueError(
                f"command_size is {self.command_size} and actions {self.actions!r}, expected a positive size with "
                "'commands', and 0 with all others"
            )
        if len(self.views) != len(self.view_ids) or len(self.views) == 1:
            raise ValueError(f"views are {self.views} and view_ids {self.view_ids}, expected an id for each of several")
        for names in (self.views, self.view_ids):
            if len(set(names)) < len(names):
                raise ValueError(f"views are {self.views} and view_ids {self.view_ids}, expected different ones")
        if self.views and self.caption_view not in (None, *self.view_ids):
            raise ValueError(f"caption_view is {self.caption_view}, expected None or one of {self.view_ids}")

    @property
    def action_size(self) -> int:
        """Numbers of one action: a command's, or translation (3), rotation (3) and gripper (1) of a motion."""
        return self.command_size or robots.ACTION_SIZE

    @property
    def cameras(self) -> int:
        """Number of cameras."""
        return max(len(self.views), 1)

    @property
    def captioned(self) -> tuple[bool, ...]:
        """One flag per camera: true if it has a caption."""
        if not self.views:
            return (True,)
        return tuple(self.caption_view in (None, number) for number in self.view_ids)


class FirstFrames(grain.transforms.RandomMap):
    """Transform from {"record": dict, "position": count} to one example.

    Nothing is random here, because the loss drops the text.
    """

    def __init__(self, clip: ClipConfig, *, text_store: TextStore, fps: float | None = None) -> None:
        """Set up the transform; `fps` is the frame rate of the clips for a model that reads it."""
        self._clip, self._text_store, self._fps = clip, text_store, fps

    def random_map(self, element: Mapping[str, Any], rng: np.random.Generator) -> dict[str, pipeline.Entry]:
        """Return the example of `element`."""
        record, clip = element["record"], self._clip
        latent = record["latent"][..., : clip.window_frames, :, :, :]
        example: dict[str, pipeline.Entry] = {
            "latent": latent.reshape(-1, *latent.shape[-3:]),
            "text_states": self._texts(record) if clip.views else self._text(int(record["prompt"])),
            "index": record["index"],
        }
        if self._fps is not None:
            example["fps"] = np.float32(self._fps)
        if clip.actions == "poses":
            example["motion"] = robots.camera_actions(record["w2c"][: clip.window_frames])
        elif clip.actions in ("motion", "commands"):
            example["motion"] = record["motion"].astype(np.float32)
        return example

    def _text(self, row: int) -> pipeline.Padded:
        states = self._text_store.prompt(row)["text_states"][: self._clip.text_tokens]
        return pipeline.Padded(states, self._clip.text_tokens)

    def _texts(self, record: Mapping[str, Any]) -> np.ndarray:
        """Return the texts of all cameras [V * S, Dt]: zeros without a caption, which is row 0."""
        clip = self._clip
        rows = np.where(clip.captioned, record["view_prompts"], 0)
        states = [self._text(int(row)).rows for row in rows]
        texts = np.zeros((len(rows), clip.text_tokens, states[0].shape[1]), states[0].dtype)
        for text, row, own in zip(texts, rows, states, strict=True):
            text[: len(own)] = own if row else 0
        return texts.reshape(-1, texts.shape[-1])
