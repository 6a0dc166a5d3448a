"""Cosmos-Predict2's training examples: the first latents of a clip, its caption and, for action models, its motion.

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
      window_frames: latent frames of an example, counted from the start of the clip.
      text_tokens: text tokens; a shorter caption is padded with zeros, which the model attends to.
      actions: "" for a model without actions; "poses" for the camera's motion from latent to latent; "motion" for the
        record's array of that name, [steps, 7] per pixel frame; "commands" for recorded commands there, [steps,
        command_size] per pixel frame.
      command_size: numbers of a command; 0 without commands.
    """

    latent_size: tuple[ranges.Size, ranges.Size]
    window_frames: Annotated[int, ranges.Range(2, 2**20)] = 24
    text_tokens: ranges.Size = 512
    actions: Literal["", "poses", "motion", "commands"] = ""
    command_size: Annotated[int, ranges.Range(0, 4096)] = 0

    def __post_init__(self) -> None:
        ranges.check(self)
        if (self.actions == "commands") != bool(self.command_size):
            raise ValueError(
                f"command_size is {self.command_size} and actions {self.actions!r}, expected a positive size with "
                "'commands', and 0 with all others"
            )

    @property
    def action_size(self) -> int:
        """Numbers of one action: a command's, or translation (3), rotation (3) and gripper (1) of a motion."""
        return self.command_size or robots.ACTION_SIZE


class FirstFrames(grain.transforms.RandomMap):
    """Transform from {"record": dict, "position": count} to one example.

    Nothing is random here, because the loss drops the text.
    """

    def __init__(self, clip: ClipConfig, *, text_store: TextStore) -> None:
        self._clip, self._text_store = clip, text_store

    def random_map(self, element: Mapping[str, Any], rng: np.random.Generator) -> dict[str, pipeline.Entry]:
        """Return the example of `element`."""
        record, clip = element["record"], self._clip
        states = self._text_store.prompt(int(record["prompt"]))["text_states"][: clip.text_tokens]
        example: dict[str, pipeline.Entry] = {
            "latent": record["latent"][: clip.window_frames],
            "text_states": pipeline.Padded(states, clip.text_tokens),
            "index": record["index"],
        }
        if clip.actions == "poses":
            example["motion"] = robots.camera_actions(record["w2c"][: clip.window_frames])
        elif clip.actions in ("motion", "commands"):
            example["motion"] = record["motion"].astype(np.float32)
        return example
