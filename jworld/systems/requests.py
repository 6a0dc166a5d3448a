"""Requests of `jworld.generate`: a video, several seeds of it, a file of many videos, or questions."""

import dataclasses
import difflib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from jworld.cameras import lengths
from jworld.encoders import choices
from jworld.systems import options
from jworld.utils import errors, files

#: Suffix of videos, in any case.
VIDEO = ".mp4"
#: Questions that are answered at once.
BATCH_SIZE = 8
#: Keys of an entry of --batch that other programs name differently: Cosmos-Predict2's batch files.
ALIASES: Mapping[str, str] = {"input_video": "image", "output_video": "out"}
#: Keys of an entry and what they hold.
KEYS: Mapping[str, str] = {
    "prompt": "text",
    "image": "text",
    "pose": "text",
    "actions": "text",
    "windows": "a positive integer",
    "length": f"one of {', '.join(lengths.LENGTHS)}",
    "seed": "an integer of 32 bits or a list of different ones",
    "out": f"the name of a video that ends in {VIDEO}",
    "negative_prompt": "text",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
    """One video to generate.

    Attributes:
      out: file to write.
      prompt: caption.
      image: first image, or a video whose last frames are continued; None for a model that needs a caption only.
      others: the same of further cameras.
      pose: camera path, for models steered by --pose.
      actions: control tokens, for models steered by --actions.
      windows: length of the video, for models without actions.
      length: "pad" or "cut" for a path that ends within a chunk, or None to refuse it.
      seed: random seed for the noise.
      negative_prompt: text of the guidance's negative branch; None for that of the config.
      preview_decoder: file of a tiny decoder that decodes in place of the autoencoder; None without.
      quantize: type of the network's large weights, see `layers.quantized`; None for that of the config.
      where: its place in a file of videos, for errors, with a colon; "" for the command line.
    """

    out: pathlib.Path
    prompt: str = ""
    image: pathlib.Path | None = None
    others: tuple[pathlib.Path, ...] = ()
    pose: str | None = None
    actions: str | None = None
    windows: int | None = None
    length: str | None = None
    seed: int = 0
    negative_prompt: str | None = None
    preview_decoder: str | None = None
    quantize: str | None = None
    where: str = ""

    @property
    def start(self) -> pathlib.Path | tuple[pathlib.Path, ...] | None:
        """The first image, or those of all cameras."""
        return self.image if self.image is None or not self.others else (self.image, *self.others)

    @property
    def facts_file(self) -> pathlib.Path:
        """File with the settings and timings of the video; it is written last."""
        return self.out.with_suffix(".json")

    def facts(self) -> dict[str, Any]:
        """Return the values of the request as they are written next to the video."""
        texts = ("prompt", "negative_prompt", "pose", "actions")
        names = (*texts, "windows", "length", "seed", "preview_decoder", "quantize")
        return {
            "image": [str(path) for path in (self.image, *self.others)] if self.others else _text(self.image),
            **{name: getattr(self, name) for name in names},
        }

    def is_finished(self, config: ml_collections.ConfigDict) -> bool:
        """Return whether this video was written completely, with the same settings.

        Raises:
          UserError: the file holds a video of another request.
        """
        if not (self.out.is_file() and self.facts_file.is_file()):
            return False
        try:
            found = files.read_json(self.facts_file)
            made = {**_without_mesh(found["config"]), **{key: found.get(key) for key in self.facts()}}
        except (errors.UserError, TypeError, KeyError, AttributeError):
            return False
        asked = json.loads(json.dumps({**_without_mesh(config.to_dict()), **self.facts()}))
        if different := [key for key, value in asked.items() if made.get(key) != value]:
            raise errors.UserError(
                f"{self.where}{self.out} exists and was made with another {different[0]}: remove it, or give another "
                "name"
            )
        return True


def _text(path: pathlib.Path | None) -> str | None:
    return None if path is None else str(path)


def _without_mesh(config: Mapping[str, Any]) -> dict[str, Any]:
    return {f"config.{key}": value for key, value in config.items() if key != "mesh"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A request for videos or an answer.

    Attributes:
      checkpoint: folder of a run, of released or of imported weights.
      step: training step of the checkpoint; None for the newest.
      prompt, pose, actions, windows, length: see `Video`; the prompt may be a question.
      keys: key log of `jworld.play` whose video is made again; None without.
      images: the first image of a video, or the images of a question.
      seeds: random seeds for the noise; several make a video each.
      out: file to write; for a batch the folder of its videos.
      batch: file with one video per line, or a JSON list of them; None without.
      encoders: folder with the encoders; None for those of the checkpoint.
      given: encoders that replace those of the folder.
      flags: values of the plain flags, such as --steps.
      changes: new values for keys of the saved config, as text by dotted key.
      mesh: sizes of the mesh by axis.
      quantize: type of the network's large weights, see `layers.quantized`; None for that of the config.
      sheet: also write the images of every chunk.
      stream: write frames as soon as they are ready.
      chat: answer questions from the standard input.
      system: text that precedes a conversation.
      batch_size: questions of `batch` that are answered at once; None for `BATCH_SIZE`.
    """

    checkpoint: pathlib.Path
    prompt: str = ""
    out: pathlib.Path = pathlib.Path()
    batch: pathlib.Path | None = None
    keys: pathlib.Path | None = None
    images: tuple[pathlib.Path, ...] = ()
    pose: str | None = None
    actions: str | None = None
    windows: int | None = None
    length: str | None = None
    seeds: tuple[int, ...] = (0,)
    step: int | None = None
    encoders: pathlib.Path | None = None
    given: choices.EncoderOverrides = dataclasses.field(default_factory=choices.EncoderOverrides)
    flags: options.Flags = dataclasses.field(default_factory=options.Flags)
    changes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mesh: tuple[tuple[str, int], ...] = ()
    quantize: str | None = None
    sheet: bool = False
    stream: bool = False
    chat: bool = False
    system: str = ""
    batch_size: int | None = None

    @property
    def image(self) -> pathlib.Path | None:
        """The first image of a video."""
        return self.images[0] if self.images else None

    def videos(self) -> list[Video]:
        """Return all videos of the request, with their seeds.

        Raises:
          UserError: a name of a video is missing or taken twice, or an entry of `batch` is invalid.
        """
        names = ("prompt", "image", "pose", "actions", "windows", "length", "quantize")
        common = {name: getattr(self, name) for name in names} | {"seed": self.seeds}
        common["others"] = self.images[1:]
        common["preview_decoder"] = self.given.preview_decoder
        if self.batch is None:
            if self.out.suffix.lower() != VIDEO:
                found = "missing" if self.out == pathlib.Path() else self.out
                raise errors.UserError(f"--out is {found}, expected a name that ends in {VIDEO}")
            return _with_seeds({**common, "out": self.out}, "")
        if self.out.suffix.lower() == VIDEO:
            raise errors.UserError(f"--out is {self.out}, expected the folder for the videos of --batch: leave it out")
        found_videos: list[Video] = []
        taken: dict[pathlib.Path, str] = {}
        for number, (where, entry) in enumerate(read_batch(self.batch), start=1):
            values = checked(entry, where)
            if "image" in values:
                values["others"] = ()
            if "out" not in values and self.out == pathlib.Path():
                raise errors.UserError(f"{where}'out' is missing: add it, or give a folder with --out")
            values["out"] = self.out / values.get("out", f"{number:05}{VIDEO}")
            for video in _with_seeds({**common, **values}, where):
                # All files of a video differ in their suffixes only.
                name = video.out.absolute().with_suffix("")
                if name in taken:
                    raise errors.UserError(
                        f"{where}{video.out} is also the name of {taken[name].removesuffix(': ')}: give another one"
                    )
                taken[name] = where
                found_videos.append(video)
        return found_videos


def check_text(request: Request) -> None:
    """Raise a `UserError` if a request does not fit a model that answers in text."""
    unused = {
        "--pose": request.pose,
        "--actions": request.actions,
        "--windows": request.windows,
        "--keys": request.keys,
        "--length": request.length,
        "--sheet": request.sheet or None,
        "--stream": request.stream or None,
        "--quantize": request.quantize,
    }
    for flag, value in unused.items():
        if value is not None:
            shown = flag if value is True else f"{flag} {value}"
            raise errors.UserError(f"{shown}: the model answers in text: leave it out")
    if request.batch is not None:
        given = {"--prompt": request.prompt, "--image": request.images, "--chat": request.chat}
        for flag, own in given.items():
            if own:
                raise errors.UserError(f"{flag}: the questions are those of --batch: leave one of them out")
    elif not request.prompt and not request.chat:
        raise errors.UserError("--prompt is missing: ask something, such as --prompt 'What is to the left?'")
    if len(request.seeds) > 1:
        raise errors.UserError("--seed has several values: the model answers in text: give one")
    suffix = ".json" if request.batch is None else ".jsonl"
    is_given = request.out != Request.out
    if (is_given or request.batch is not None) and request.out.suffix != suffix:
        found = request.out if is_given else "missing"
        raise errors.UserError(f"--out is {found}, expected a name that ends in {suffix}: the model answers in text")


def _with_seeds(values: Mapping[str, Any], where: str) -> list[Video]:
    """Return one video per seed; several seeds are added to the names of the files."""
    rest = {key: value for key, value in values.items() if key not in ("seed", "out")}
    out: pathlib.Path = values["out"]
    seeds = values["seed"]
    return [
        Video(
            **rest,
            out=out if len(seeds) == 1 else out.with_name(f"{out.stem}_{seed}{out.suffix}"),
            seed=seed,
            where=where,
        )
        for seed in seeds
    ]


def read_batch(path: pathlib.Path) -> list[tuple[str, Any]]:
    """Return the entries of a file of videos or questions with their places: a JSON object per line, or a JSON list.

    Raises:
      UserError: the file cannot be read, is empty, or is not JSON.
    """
    text = files.read_text(path, name=f"--batch {path}")
    if text.lstrip().startswith("["):
        listed = _parsed(text, f"--batch {path}: ")
        entries = [(f"{path}, entry {number}: ", entry) for number, entry in enumerate(listed, start=1)]
    else:
        lines = [(f"{path}, line {number}: ", line) for number, line in enumerate(text.split("\n"), start=1)]
        entries = [(where, _parsed(line, where)) for where, line in lines if line.strip()]
    if not entries:
        raise errors.UserError(f"--batch {path} has no entries, expected one JSON object per line: add some")
    return entries


def _parsed(text: str, where: str) -> Any:
    try:
        return files.parse_json(text)
    except ValueError as error:
        raise errors.UserError(f"{where}not valid JSON ({error}): correct it") from error


def checked(entry: Any, where: str) -> dict[str, Any]:
    """Return the values of an entry as fields of `Video`, with all seeds; `where` is its place, for errors.

    Raises:
      UserError: it is not an object, or a key or value is invalid.
    """
    if not isinstance(entry, dict):
        raise errors.UserError(f"{where}expected an object such as {{'prompt': '...', 'out': 'a.mp4'}}, got {entry!r}")
    values: dict[str, Any] = {}
    for given, value in entry.items():
        key = ALIASES.get(given, given)
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(KEYS)}"
            raise errors.UserError(f"{where}unknown key {given!r}, {hint}")
        if key in values:
            raise errors.UserError(f"{where}{given!r} is another name of {key!r}, which is there too: remove one")
        if not _fits(key, value):
            raise errors.UserError(f"{where}{given!r} is {value!r}, expected {KEYS[key]}")
        values[key] = pathlib.Path(value) if key in ("image", "out") else value
    if "seed" in values:
        values["seed"] = tuple(values["seed"]) if isinstance(values["seed"], list) else (values["seed"],)
    return values


def _fits(key: str, value: Any) -> bool:
    if key == "seed":
        seeds = value if isinstance(value, list) else [value]
        return bool(seeds) and all(map(is_seed, seeds)) and len(set(seeds)) == len(seeds)
    if key == "windows":
        return _is_integer(value) and value > 0
    if key == "length":
        return value in lengths.LENGTHS
    return isinstance(value, str) and (key != "out" or value.lower().endswith(VIDEO))


def is_seed(value: Any) -> bool:
    """Return whether a value is an integer that a random key is made of."""
    return _is_integer(value) and -(2**31) <= value < 2**32


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse "0,1,2"; a ValueError for anything but different integers of 32 bits."""
    seeds = tuple(int(part) for part in text.split(","))
    if len(set(seeds)) < len(seeds) or not all(map(is_seed, seeds)):
        raise ValueError(text)
    return seeds
