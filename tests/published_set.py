"""Writer of files in the format of WorldPlay's published data; needs PyTorch."""

import json
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

SIZE = {"channels": 32, "height": 2, "width": 3, "tokens": 6, "text": 5, "glyphs": 4, "glyph": 7, "vision": (2, 9)}
NAMES = ("hunyuan_neg_prompt.pt", "hunyuan_neg_byt5_prompt.pt")


def save_pt(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    import torch

    def tensor(array: np.ndarray) -> torch.Tensor:
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(array.copy())

    torch.save({name: tensor(array) for name, array in arrays.items()}, path)


def save_poses(path: pathlib.Path, w2c: np.ndarray, intrinsics: np.ndarray) -> None:
    # The names sort differently from the order in the file, which is the one to use.
    names = [f"frame {len(w2c) - i}" for i in range(len(w2c))]
    entries = [{"w2c": e.tolist(), "intrinsic": k.tolist()} for e, k in zip(w2c, intrinsics, strict=True)]
    path.write_text(json.dumps(dict(zip(names, entries, strict=True))))


def text(seed: int, *, size: dict[str, Any] = SIZE) -> dict[str, np.ndarray]:
    """Make the encoded prompt `seed`, padded, with glyph text in every second prompt."""
    generator = np.random.default_rng(1000 + seed)
    tokens, glyphs = size["tokens"], size["glyphs"]
    length, glyph_length = 2 + seed % (tokens - 2), (seed % 2) * (1 + seed % (glyphs - 1))
    return {
        "prompt_embeds": generator.normal(size=(1, tokens, size["text"])).astype(np.float16),
        "prompt_mask": (np.arange(tokens) < length).astype(np.int64)[None],
        "byt5_text_states": generator.normal(size=(1, glyphs, size["glyph"])).astype(np.float32),
        "byt5_text_mask": (np.arange(glyphs) < glyph_length).astype(np.int64)[None],
    }


def latents(seed: int, frames: int, *, size: dict[str, Any] = SIZE) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shape = (1, size["channels"], frames, size["height"], size["width"])
    latent = generator.normal(size=shape).astype(ml_dtypes.bfloat16)
    vision = generator.normal(size=(1, *size["vision"])).astype(ml_dtypes.bfloat16)
    return {"latent": latent, "image_cond": latent[:, :, :1], "vision_states": vision}


def cameras(seed: int, video_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Make a camera path forward and to the right: w2c [T, 4, 4], intrinsics [T, 3, 3] in pixels of 832x480 images."""
    angle = np.radians(0.5 + seed % 3) * np.arange(video_frames)
    c2w = np.tile(np.eye(4), (video_frames, 1, 1))
    c2w[:, 0, 0] = c2w[:, 2, 2] = np.cos(angle)
    c2w[:, 0, 2], c2w[:, 2, 0] = np.sin(angle), -np.sin(angle)
    c2w[:, 2, 3] = 0.02 * np.arange(video_frames)
    intrinsics = np.tile([[400.0 + seed, 0, 416], [0, 420, 240], [0, 0, 1]], (video_frames, 1, 1))
    return np.linalg.inv(c2w), intrinsics


def save_negative(folder: pathlib.Path, states: dict[str, np.ndarray]) -> tuple[pathlib.Path, pathlib.Path]:
    """Write the two files of the negative prompt."""
    prompt, glyph = folder / NAMES[0], folder / NAMES[1]
    save_pt(prompt, {f"negative_{key}": states[key] for key in ("prompt_embeds", "prompt_mask")})
    save_pt(glyph, {key: states[key] for key in ("byt5_text_states", "byt5_text_mask")})
    return prompt, glyph


def save_clip(
    folder: pathlib.Path, name: str, seed: int, frames: int, *, prompt: int, size: dict[str, Any] = SIZE
) -> dict:
    """Write the files of one clip; -> its item of the index, with relative paths."""
    save_pt(folder / f"{name}.pt", {**latents(seed, frames, size=size), **text(prompt, size=size)})
    save_poses(folder / f"{name}.json", *cameras(seed, 4 * frames - 3))
    return {"latent_path": f"{name}.pt", "pose_path": f"{name}.json"}


def write_set(
    folder: pathlib.Path, clips: int, *, frames: int = 4, prompts: int = 3, size: dict[str, Any] = SIZE
) -> None:
    """Write clips of at least `frames` latents with so many distinct prompts, the index and the negative prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    items = [save_clip(folder, f"clip_{i}", i, frames + i % 3, prompt=i * i % prompts, size=size) for i in range(clips)]
    (folder / "index.json").write_text(json.dumps(items))
    save_negative(folder, text(99, size=size))
