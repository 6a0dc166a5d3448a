"""First images that a player can choose: views of simulated worlds, or images that the user of the server gives."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jworld.data import media
from jworld.data.recording import doom, recorder
from jworld.systems import key_logs
from jworld.utils import errors

#: Number of rendered images, and seed of the first one's map; the maps are held out from training.
COUNT, SEED = 6, 7000
#: Latents of a free way in front of the camera.
_FREE = 12
#: Smallest height of a rendered image.
_LEAST = 96


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstImage:
    """A first image.

    Attributes:
      name: its name for players and in addresses.
      image: uint8 [H, W, 3].
      caption: caption of the recording, or "".
    """

    name: str
    image: np.ndarray
    caption: str = ""

    @functools.cached_property
    def png(self) -> bytes:
        """Content of a file."""
        return key_logs.png(self.image)


def given(paths: Sequence[pathlib.Path], prompt: str) -> list[FirstImage]:
    """Read the images of the user; a `UserError` if one cannot be read or two have one name."""
    found: dict[str, FirstImage] = {}
    for path in paths:
        name = "".join(letter if letter.isalnum() else "-" for letter in path.stem)[:40] or "image"
        if name in found:
            raise errors.UserError(f"--image {path}: another one has the name {name}, too: rename one of the files")
        found[name] = FirstImage(name=name, image=media.read_image(path), caption=prompt)
    return list(found.values())


def rendered(config: Any, size: tuple[int, int], *, source: str = "") -> list[FirstImage]:
    """Render views of the world that the model was trained on, or of the rooms if its data was not recorded here.

    A model of several worlds has views of all of them. Those that need ViZDoom are left out where it is not installed,
    and the others have the names that they have with it.

    Args:
      config: config of the run.
      size: (width, height) of the model's frames.
      source: world of the views, one of `recorder.SOURCES`; "" for that of the model's data.

    Raises:
      UserError: all of them need ViZDoom, which is not installed.
    """
    source = source or config.data.get("recording", {}).get("source", "") or "rooms"
    numbers = [number for number in range(COUNT) if _can_render(recorder.world_of(source, SEED + number))]
    # Small sizes are rendered larger and scaled down like the recorded training data.
    factor = -(-_LEAST // size[1])
    width, height = (side * factor + side * factor % 2 for side in size)
    found = []
    # If nothing can be rendered, the first one raises the error.
    for number in numbers or range(COUNT):
        # A way that is free begins with an open view.
        path = ["forward"] * _FREE
        episode = recorder.record_scripted(source, seed=SEED + number, actions=path, width=width, height=height)
        found.append(FirstImage(name=f"view-{number + 1}", image=episode.frames[0], caption=episode.caption))
    return found


def _can_render(world: str) -> bool:
    return world not in doom.LEVELS or doom.available()
