"""Reader of WorldPlay's training data: an index, and per clip a .pt file, a pose file and optionally an action file.

The index is a JSON list of objects with `latent_path`, `pose_path` and optionally `action_path`, relative to its
folder. A .pt file holds a dict of tensors with a leading axis of size 1. Pose and action files hold one entry per video
frame, in order. All values are checked; a wrong one raises a `UserError` that names the file. Source: HY-WorldPlay's
`ar_camera_hunyuan_w_mem_dataset.py`.
"""

import dataclasses
import hashlib
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

from jworld.cameras import actions, poses
from jworld.utils import files, pickles, placeholders
from jworld.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Entry:
    """An object of the index; `name` is its latent_path as in the index."""

    name: str
    latent: pathlib.Path
    pose: pathlib.Path
    action: pathlib.Path | None


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Encoded text at its true length: text_states [S, Dt] and glyph_states [G, Dg], bfloat16."""

    text_states: np.ndarray
    glyph_states: np.ndarray

    @property
    def key(self) -> str:
        """Hash of the content."""
        digest = hashlib.blake2b(digest_size=16)
        for states in (self.text_states, self.glyph_states):
            digest.update(repr(states.shape).encode())
            digest.update(states.tobytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes that all clips of a data set share: latent (H, W, C), vision (tokens, width), widths of the text states."""

    latent: tuple[int, int, int]
    vision: tuple[int, int]
    text: int
    glyph: int

    def __str__(self) -> str:
        height, width, channels = self.latent
        tokens, dim = self.vision
        return (
            f"latents {height}x{width}x{channels}, {tokens} vision tokens of {dim}, text of {self.text}, "
            f"glyphs of {self.glyph}"
        )


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip, channels last.

    Attributes:
      latent: [F, H, W, C] bfloat16.
      image_cond: [1, H, W, C] bfloat16.
      vision_states: [V, Dv] bfloat16.
      prompt: encoded caption.
      w2c: [F, 4, 4] float64.
      intrinsics: [F, 3, 3] float64, in pixels.
      action: [F] int32.
      recorded: the labels come from an action file, not from the cameras.
    """

    latent: np.ndarray
    image_cond: np.ndarray
    vision_states: np.ndarray
    prompt: Prompt
    w2c: np.ndarray
    intrinsics: np.ndarray
    action: np.ndarray
    recorded: bool

    @property
    def sizes(self) -> Sizes:
        """Sizes of the arrays."""
        _, height, width, channels = self.latent.shape
        tokens, dim = self.vision_states.shape
        text, glyph = self.prompt.text_states.shape[1], self.prompt.glyph_states.shape[1]
        return Sizes((height, width, channels), (tokens, dim), text, glyph)


def read_index(path: str | pathlib.Path) -> list[Entry]:
    """Read the entries of an index file; the files of an entry are checked when its clip is read."""
    path = pathlib.Path(path)
    content = _read_json(path, list, "a list of objects with latent_path and pose_path")
    if not content:
        raise UserError(f"index {path} is empty, expected at least one item: list the clips in it")
    entries = []
    for i, item in enumerate(content):
        found = item if isinstance(item, dict) else {}
        for key in ("latent_path", "pose_path"):
            if not isinstance(found.get(key), str):
                raise UserError(f"index {path}: item {i} has no '{key}' with a path: add it")
        action = found.get("action_path")
        if not isinstance(action, str | None):
            raise UserError(
                f"index {path}: item {i} has 'action_path' {action!r}, expected a path: correct or remove it"
            )
        name, folder = found["latent_path"], path.parent
        entries.append(Entry(name, folder / name, folder / found["pose_path"], folder / action if action else None))
    return entries


def read_negative(prompt_path: str | pathlib.Path, glyph_path: str | pathlib.Path) -> Prompt:
    """Read the two files of the negative prompt."""
    prompt_file, glyph_file = _PtFile(prompt_path), _PtFile(glyph_path)
    return Prompt(
        prompt_file.text("negative_prompt_embeds", "negative_prompt_mask"),
        glyph_file.text("byt5_text_states", "byt5_text_mask", may_be_empty=True),
    )


def read_clip(entry: Entry, *, channels: int, min_frames: int) -> Clip:
    """Read and check one clip of latents with `channels` channels and at least `min_frames` frames.

    Labels come from the action file if the entry has one, else from the poses.
    """
    file = _PtFile(entry.latent)
    latent, image_cond = file.video("latent", channels), file.video("image_cond", channels)
    frames = len(latent)
    if frames < min_frames:
        raise UserError(
            f"{entry.latent}: 'latent' has {frames} frames, expected at least {min_frames}: remove the clip or lower "
            "--min-frames"
        )
    if image_cond.shape != (1, *latent.shape[1:]):
        raise UserError(
            f"{entry.latent}: 'image_cond' is {list(image_cond.shape)} as [frames, height, width, channels], expected "
            f"{[1, *latent.shape[1:]]} like 'latent': encode the clip again"
        )
    prompt = Prompt(
        file.text("prompt_embeds", "prompt_mask"),
        file.text("byt5_text_states", "byt5_text_mask", may_be_empty=True),
    )
    w2c, intrinsics = read_poses(entry.pose, frames)
    if entry.action is None:
        labels = actions.labels_from_poses(w2c, min_translation=actions.TRAINING_MIN_TRANSLATION)
    else:
        labels = read_actions(entry.action, frames)
    recorded = entry.action is not None
    return Clip(latent, image_cond, file.tokens("vision_states"), prompt, w2c, intrinsics, labels, recorded)


def read_poses(path: pathlib.Path, num_latents: int) -> tuple[np.ndarray, np.ndarray]:
    """Read w2c [F, 4, 4] and intrinsics [F, 3, 3] in pixels; latent i has the camera of video frame 4i."""
    entries = list(_read_json(path, dict, "an object with one entry per video frame").values())
    needed = actions.FRAMES_PER_LATENT * (num_latents - 1) + 1
    if len(entries) < needed:
        raise UserError(
            f"{path} has {len(entries)} poses, expected at least {needed} for the {num_latents} latent frames of the "
            "clip: give the poses of the whole clip"
        )
    picked = range(0, needed, actions.FRAMES_PER_LATENT)
    w2c = np.stack([_matrix(path, entries[i], i, "w2c", 4) for i in picked])
    intrinsics = np.stack([_matrix(path, entries[i], i, "intrinsic", 3) for i in picked])
    not_rigid = ~poses.are_rigid(w2c)
    if not_rigid.any():
        frame = picked[int(not_rigid.argmax())]
        raise UserError(
            f"{path}: 'w2c' of frame {frame} is not rigid, expected a rotation, a translation and the row 0 0 0 1: "
            "give world-to-camera matrices without scale"
        )
    parameters = intrinsics[:, (0, 1, 0, 1), (0, 1, 2, 2)]
    if (parameters <= 0).any():
        frame = picked[int((parameters <= 0).any(axis=1).argmax())]
        raise UserError(f"{path}: 'intrinsic' of frame {frame} has fx, fy, cx or cy that is not positive: correct it")
    return w2c, intrinsics


def read_actions(path: pathlib.Path, num_latents: int) -> np.ndarray:
    """Read the labels int32 [F] of an action file; latent i has the action of video frame 4i, latent 0 none."""
    entries = list(_read_json(path, dict, "an object with one entry per video frame").values())
    try:
        return actions.labels_from_entries(entries, num_latents)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _read_json(path: pathlib.Path, kind: type, expected: str) -> Any:
    content = files.read_json(path, None, fix="correct the path, or download or write it again")
    if not isinstance(content, kind):
        raise UserError(f"{path} holds a JSON {type(content).__name__}, expected {expected}: give the right file")
    return content


def _matrix(path: pathlib.Path, entry: Any, frame: int, key: str, size: int) -> np.ndarray:
    if not isinstance(entry, dict) or key not in entry:
        raise UserError(f"{path}: frame {frame} has no '{key}': add it")
    try:
        matrix = np.array(entry[key], np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.zeros(0)
    if matrix.shape != (size, size):
        raise UserError(f"{path}: '{key}' of frame {frame} is not a {size}x{size} matrix of numbers: correct it")
    if not np.isfinite(matrix).all():
        raise UserError(f"{path}: '{key}' of frame {frame} has NaN or infinite numbers: correct it")
    return matrix


#: First bytes of a pickle that torch.save wrote before it used zip archives: the magic number, in protocol 2.
_OLD_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


_ARCHIVE_START = b"PK\x03\x04"


def _start(path: pathlib.Path) -> bytes:
    try:
        with files.open_binary(path) as file:
            return file.read(len(_OLD_START))
    except OSError as error:
        raise UserError(f"{path} {files.problem(error)}: download or encode it again") from error


class _PtFile:
    """The dict of tensors in a .pt file, mapped into memory: only requested tensors are read."""

    def __init__(self, path: str | pathlib.Path) -> None:
        try:
            import torch
        except ImportError as error:
            raise UserError('.pt files need PyTorch, which is not installed: pip install "jworld[torch]"') from error
        self._torch = torch
        self._path = path
        if not pathlib.Path(path).is_file():
            raise UserError(f"{path} does not exist: correct the path")
        if placeholder := placeholders.find(pathlib.Path(path)):
            raise UserError(f"{path} {placeholder}")
        start = _start(pathlib.Path(path))
        if start.startswith(_OLD_START):
            raise UserError(
                f"{path} has the file format of PyTorch before 1.6, expected the present one: open it with torch.load "
                "and write it again with torch.save"
            )
        if not start.startswith(_ARCHIVE_START):
            raise UserError(
                f"{path} is not a readable .pt file (it does not begin like an archive): download or encode it again"
            )
        self._content = pickles.load_torch(pathlib.Path(path), fix="download or encode it again", mmap=True)
        if not isinstance(self._content, dict):
            raise UserError(
                f"{path} holds a {type(self._content).__name__}, expected a dict of tensors: encode it again"
            )

    def video(self, key: str, channels: int) -> np.ndarray:
        """Return a tensor [1, C, F, H, W] as bfloat16 [F, H, W, C]."""
        tensor = self._tensor(key, "C", "F", "H", "W")
        if len(tensor) != channels:
            raise UserError(
                f"{self._path}: '{key}' has {len(tensor)} channels, expected {channels}: give latents of the "
                "HunyuanVideo-1.5 autoencoder"
            )
        return self._bfloat16(key, tensor.permute(1, 2, 3, 0))

    def tokens(self, key: str) -> np.ndarray:
        """Return a tensor [1, V, D] as bfloat16 [V, D]."""
        return self._bfloat16(key, self._tensor(key, "tokens", "width"))

    def text(self, states_key: str, mask_key: str, *, may_be_empty: bool = False) -> np.ndarray:
        """Return a tensor [1, S, D] with a mask [1, S] as bfloat16 [true length, D]."""
        states, mask = self._tensor(states_key, "tokens", "width"), self._tensor(mask_key, "tokens")
        if len(states) != len(mask):
            raise UserError(
                f"{self._path}: '{mask_key}' has {len(mask)} tokens, expected {len(states)} like '{states_key}': "
                "encode the prompt again"
            )
        length = int((mask != 0).sum())
        if not bool((mask == (self._torch.arange(len(mask)) < length)).all()):
            raise UserError(
                f"{self._path}: '{mask_key}' is not ones followed by zeros: encode the prompt again, padded at its end"
            )
        if not length and not may_be_empty:
            raise UserError(
                f"{self._path}: '{mask_key}' marks no token, expected at least one: encode the prompt again"
            )
        return self._bfloat16(states_key, states[:length])

    def _tensor(self, key: str, *axes: str) -> Any:
        """Return a tensor without its leading axis, which must have size 1."""
        tensor = self._content.get(key)
        if not isinstance(tensor, self._torch.Tensor):
            raise UserError(f"{self._path}: the tensor '{key}' is missing: encode it again")
        if tensor.ndim != 1 + len(axes) or tensor.shape[0] != 1 or 0 in tensor.shape:
            raise UserError(
                f"{self._path}: '{key}' is {list(tensor.shape)}, expected [1, {', '.join(axes)}]: encode it again"
            )
        return tensor[0]

    def _bfloat16(self, key: str, tensor: Any) -> np.ndarray:
        # Numbers of 8 bits need scales, which these files do not have.
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise UserError(
                f"{self._path}: '{key}' is {tensor.dtype}, expected a floating-point dtype of 16 or 32 bits: encode it "
                "again"
            )
        if not bool(self._torch.isfinite(tensor).all()):
            raise UserError(f"{self._path}: '{key}' has NaN or infinite numbers: encode it again")
        stored = tensor.to(self._torch.bfloat16).contiguous()
        bits: np.ndarray = stored.view(self._torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
