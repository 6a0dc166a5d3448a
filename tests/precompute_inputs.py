"""Small episodes and videos for tests of precompute, and settings for them."""

import json
import pathlib
import tarfile
from collections.abc import Sequence
from typing import Any

import array_record_sets
import numpy as np
import pyarrow as pa
import tiny_videos
from pyarrow import parquet

from jworld.data.inputs import clips, fitting
from jworld.data.recording import episodes, lerobot_sets
from jworld.encoders.choices import EncoderOverrides
from jworld.models.autoencoders import linear
from jworld.precompute.settings import Settings

FRAMES = 13
SIZE: dict[str, Any] = {"width": 32, "height": 24}
LINEAR = linear.LinearConfig(channels=24, spatial_ratio=8)
WORDS = ["none", *["forward"] * 6, *["yaw_right"] * 12]
# A robot's hand that turns about z and moves forward, while its gripper closes.
HAND = np.stack([*np.zeros((5, 19)), np.radians(3.0) * np.arange(19), np.ones(19)], axis=1)
HAND[1:, 0] = np.cumsum(0.01 * np.cos(HAND[:-1, 5]))
HAND[1:, 1] = np.cumsum(0.01 * np.sin(HAND[:-1, 5]))
GRIPPER = np.linspace(1, 0.1, 19)


def wall(index: int, frames: int = FRAMES) -> np.ndarray:
    """Make a textured wall that shifts sideways, uint8 [T, 48, 64, 3]."""
    generator = np.random.default_rng(index)
    texture = generator.integers(0, 256, (6, 20, 3)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    return np.stack([texture[:, 2 * t : 2 * t + 64] for t in range(frames)])


def turning(frames: int = FRAMES) -> np.ndarray:
    """Return w2c [T, 4, 4] of a camera that turns right by 8 degrees per latent."""
    angles = np.radians(2.0) * np.arange(frames)
    w2c = np.tile(np.eye(4), (frames, 1, 1))
    w2c[:, 0, 0] = w2c[:, 2, 2] = np.cos(angles)
    w2c[:, 0, 2], w2c[:, 2, 0] = -np.sin(angles), np.sin(angles)
    return w2c


def write_episodes(directory: pathlib.Path, splits: list[str]) -> None:
    recorded = [
        episodes.Episode(
            name=f"episode_{index:05d}",
            split=split,
            caption=f"wall {index % 2}",
            fps=8.0,
            frames=wall(index),
            actions=["none"] + ["yaw_right"] * (FRAMES - 1),
            w2c=turning(),
            intrinsics=np.tile([0.5, 0.7, 0.5, 0.5], (FRAMES, 1)),
        )
        for index, split in enumerate(splits)
    ]
    for episode in recorded:
        episodes.write_episode(directory, episode)
    entries = [{"name": e.name, "split": e.split, "frames": FRAMES, "caption": e.caption} for e in recorded]
    episodes.write_manifest(directory, source="rooms", seed=0, fps=8.0, width=64, height=48, episodes=entries)


def write_videos(folder: pathlib.Path, form: str, names: str = "abc") -> pathlib.Path:
    """Write videos of 19 frames at 10 frames/s and return the path for --input."""
    if form == "lerobot":
        write_episodes(folder / "episodes", ["train"] * len(names))
        lerobot_sets.write(folder / "episodes", folder / "set")
        return folder / "set"
    if form in ("webdataset", "parquet"):
        files = write_videos(folder / "files", "videos", names)
        pack(sorted(path for path in files.iterdir() if path.is_file()), folder / "set", form)
        return folder / "set"
    if form == "jasmine":
        return array_record_sets.write_jasmine(folder / "set", {"train": [wall(i, 19) for i in range(len(names))]})
    if form == "rlds":
        shown = [(wall(i, 19), f"wall {i % 2}") for i in range(len(names))]
        return array_record_sets.write_rlds(folder / "set", {"train": shown})
    below = {"videos": "", "cosmos": "videos"}.get(form, "clips")
    listed = []
    for index, name in enumerate(names):
        tiny_videos.write(folder / below / f"{name}.mp4", wall(index, len(WORDS)))
        caption, path = f"wall {index % 2}", f"{below}/{name}.mp4"
        if form == "videos":
            (folder / f"{name}.txt").write_text(caption)
        elif form == "cosmos":
            (folder / "metas").mkdir(exist_ok=True)
            (folder / "metas" / f"{name}.txt").write_text(caption)
        elif form == "bridge":
            notes = folder / "annotation" / "train" / f"{name}.json"
            notes.parent.mkdir(parents=True, exist_ok=True)
            facts = {"state": HAND.tolist(), "continuous_gripper_state": GRIPPER.tolist(), "texts": [caption]}
            notes.write_text(json.dumps(facts | {"videos": [{"video_path": path}, {"video_path": "another.mp4"}]}))
        elif form == "matrix":
            tokens = ",".join(["D"] * 8 + ["DL"] * 11)
            listed.append({"path": path, "caption": caption, "control_signal_seq": tokens})
        else:
            pose = [{"w2c": m.tolist(), "intrinsic": [[32, 0, 32], [0, 30, 24], [0, 0, 1]]} for m in turning(19)]
            (folder / f"{name}.json").write_text(json.dumps(dict(enumerate(pose))))
            view = [{"move_action": "W" if w == "forward" else "", "view_action": "LL"} for w in WORDS]
            (folder / f"{name}_actions.json").write_text(json.dumps(dict(enumerate(view))))
            paths = {"video_path": path, "pose_path": f"{name}.json"}
            # The last video has no actions, so its labels follow from the cameras.
            recorded = {} if index == len(names) - 1 else {"action_path": f"{name}_actions.json"}
            listed.append({**paths, **recorded, "caption": caption})
    if listed:
        (folder / "index.json").write_text(json.dumps({"list": listed} if form == "matrix" else listed))
    return folder


def pack(files: Sequence[pathlib.Path], folder: pathlib.Path, form: str) -> None:
    """Write videos and the text files next to them as a tar archive, or as a table."""
    folder.mkdir()
    if form == "webdataset":
        with tarfile.open(folder / "000000.tar", "w:") as archive:
            for file in files:
                archive.add(file, file.name)
        return
    videos = [file for file in files if file.suffix == ".mp4"]
    captions = [video.with_suffix(".txt").read_text() for video in videos]
    cells = [{"bytes": video.read_bytes(), "path": video.name} for video in videos]
    parquet.write_table(pa.table({"video": cells, "caption": captions}), folder / "train.parquet")


def episode_settings(raw: pathlib.Path, **changes: Any) -> Settings:
    return Settings(
        **{"input": raw, **SIZE, "linear": LINEAR, "given": EncoderOverrides(text_encoder="hashed-words:16"), **changes}
    )


def video_settings(folder: pathlib.Path, autoencoder_path: str, **changes: Any) -> Settings:
    """Return settings for clips of 9 frames at 5 frames/s, one per video."""
    common: dict[str, Any] = {"format": "videos", **SIZE, "fps": 5, "frames": 9, "val_share": 0.0}
    return Settings(**{"input": folder, **common, "given": EncoderOverrides(autoencoder=autoencoder_path), **changes})


def video_arguments(folder: pathlib.Path, autoencoder_path: str, *, items_per_shard: int) -> list[str]:
    """Return the command line for videos, without its output."""
    return [
        f"--input={folder}",
        "--format=videos",
        f"--autoencoder={autoencoder_path}",
        "--fps=5",
        "--frames=9",
        "--val-share=0",
        "--width=32",
        "--height=24",
        f"--items-per-shard={items_per_shard}",
    ]


def cut_of(manifest: dict[str, Any]) -> clips.CutConfig:
    return clips.CutConfig(**manifest["cut"] | {"fit": fitting.Fit(**manifest["cut"]["fit"])})


def content(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
