"""Registry entry of an input format: its reader, and its defaults for `jworld.precompute`."""

import dataclasses
import pathlib
from collections.abc import Callable

from jworld.data.inputs import items


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A layout of videos on disk. Each reader module defines one, and `formats.FORMATS` lists them.

    Attributes:
      name: value of `--format`.
      help: content of the folder, for --help.
      list_items: path of the data set -> its items; nothing is decoded.
      read_fps: path -> the frame rate of all videos, in frames per second; None if the user must choose one.
      read_source: path -> what recorded the videos, for the manifest of the records; None for the name of the format.
      fit: default of `--fit`, one of `fitting.MODES`.
      resampling: default of `--resampling`, one of `fitting.RESAMPLINGS`.
      recorded_labels: where controls were recorded, they are the action labels of a video with cameras; otherwise
        labels follow from the camera motion.
      control_tokens: ordered tokens of the controls of a video without cameras; a record stores their numbers.
      options: options of `items.ListOptions` that only some formats read, by their names.
      untimed: frames have no times: their rate is `items.ListOptions.frames_fps`, by default the rate of the clips.
      usual_cut: (frames, stride) of the clips that the published model of the format trains on, as advice; None if it
        trains on whole videos.
    """

    name: str
    help: str
    list_items: Callable[[pathlib.Path, items.ListOptions], items.Listing]
    read_fps: Callable[[pathlib.Path], float] | None = None
    read_source: Callable[[pathlib.Path], str] | None = None
    fit: str = "crop"
    resampling: str = "lanczos"
    recorded_labels: bool = False
    control_tokens: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    untimed: bool = False
    usual_cut: tuple[int, int] | None = None
