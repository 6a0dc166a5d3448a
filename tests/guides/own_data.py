"""Stand-ins of a reader's own data: small videos of recorded episodes, with captions, poses, states, controls.

Every function writes below the current folder.
"""

import functools
import io
import json
import pathlib
import pickle
import shutil

import array_record_sets
import golden_cases
import numpy as np
import PIL.Image
import published_set
import pyarrow
import tiny_videos
from pyarrow import parquet

from jworld.cameras import driving
from jworld.data.recording import episodes, recorder

#: Frames of every video: enough for 93 frames of the published Cosmos-Predict2.
FRAMES = 97
_SIZE = {"text": 16, "glyph": 8, "glyphs": 4, "vision": (4, 12)}


@functools.cache
def _recorded() -> list[episodes.Episode]:
    """Record 4 episodes of colored rooms at 64x48 pixels."""
    folder = pathlib.Path(".scratch-episodes")
    made = recorder.record(folder, source="rooms", episodes=4, frames=FRAMES, width=64, height=48, seed=7, workers=1)
    found = [episodes.read_episode(folder, entry["name"]) for entry in made["episodes"]]
    shutil.rmtree(folder)
    return found


def first_image() -> None:
    """An image of another size than any model's."""
    image = PIL.Image.fromarray(_recorded()[0].frames[0])
    image.resize((120, 80)).save("first.png")


def frame() -> None:
    PIL.Image.fromarray(_recorded()[0].frames[0]).save("frame.jpg")


def views() -> None:
    """Two views of an episode side by side."""
    frames = _recorded()[0].frames
    PIL.Image.fromarray(np.concatenate([frames[0], frames[40]], axis=1)).save("views.png")


def start_videos() -> None:
    """Videos that are continued."""
    for name in ("clip.mp4", "base.mp4"):
        tiny_videos.write(pathlib.Path(name), _recorded()[0].frames, fps=16)


def own_episodes() -> None:
    """Episodes in the format that docs/data.md describes."""
    recorder.record("data/mine", source="rooms", episodes=4, frames=121, width=64, height=48, seed=3, workers=1)


def clips() -> None:
    """A folder of videos of two rates, each with a caption in a text file."""
    for number, episode in enumerate(_recorded()):
        path = pathlib.Path("clips", f"walk_{number}.mp4")
        tiny_videos.write(path, episode.frames, fps=30 if number % 2 else 24)
        path.with_suffix(".txt").write_text(episode.caption)


def worldplay_published() -> None:
    """HY-WorldPlay's training data: index, latents, poses, actions, and the negative prompt."""
    folder = pathlib.Path("published")
    published_set.write_set(folder, 6, frames=24, size=published_set.SIZE | _SIZE)
    entries = json.loads((folder / "index.json").read_text())
    for entry in entries:
        keys = [{"move_action": "W", "view_action": ""}] * (4 * 26)
        action = pathlib.Path(entry["latent_path"]).stem + "_action.json"
        (folder / action).write_text(json.dumps({str(i): value for i, value in enumerate(keys)}))
    # Actions are optional.
    for entry in entries[:3]:
        entry["action_path"] = pathlib.Path(entry["latent_path"]).stem + "_action.json"
    (folder / "index.json").write_text(json.dumps(entries))


def cosmos_assets() -> None:
    """datasets/NAME in the layout of Cosmos-Predict2, with pickled embeddings as its script makes them."""
    folder = pathlib.Path("datasets/NAME")
    for name in ("metas", "t5_xxl"):
        (folder / name).mkdir(parents=True)
    for number, episode in enumerate(_recorded()):
        tiny_videos.write(folder / "videos" / f"scene_{number}.mp4", episode.frames, fps=16)
        (folder / "metas" / f"scene_{number}.txt").write_text(episode.caption)
        states = np.random.default_rng(len(episode.caption)).normal(size=(5, 24)).astype(np.float16)
        (folder / "t5_xxl" / f"scene_{number}.pickle").write_bytes(pickle.dumps([states]))


def waymo() -> None:
    """datasets/waymo in the layout of Cosmos-Predict2's multi-view post-training."""
    folder = pathlib.Path("datasets/waymo")
    cameras = ("side_left", "front_left", "front", "front_right", "side_right")
    (folder / "metas" / "pinhole_front").mkdir(parents=True)
    for number, episode in enumerate(_recorded()):
        for index, camera in enumerate(cameras):
            frames = episode.frames[8 * index :][:41]
            tiny_videos.write(folder / "videos" / f"pinhole_{camera}" / f"drive_{number}.mp4", frames, fps=10)
        (folder / "metas" / "pinhole_front" / f"drive_{number}.txt").write_text(episode.caption)


def camera_images() -> None:
    """First images of the cameras in the rooms and on a car."""
    names = ("front", "left", "right", "side_left", "front_left", "front_right", "side_right")
    for index, name in enumerate(names):
        PIL.Image.fromarray(_recorded()[0].frames[8 * index]).save(f"{name}.png")


def bridge() -> None:
    """datasets/bridge: videos of a robot's camera with the states of its hand."""
    folder, noise = pathlib.Path("datasets/bridge"), np.random.default_rng(0)
    for number, episode in enumerate(_recorded()[:4]):
        video = pathlib.Path("videos", f"{number}", "rgb.mp4")
        frames = episode.frames[:25]
        tiny_videos.write(folder / video, frames, fps=5)
        steps = np.cumsum(0.01 * noise.standard_normal((len(frames), 7)), axis=0)
        path = folder / "annotation" / ("val" if number == 3 else "train") / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {
            "videos": [{"video_path": str(video)}],
            "texts": ["pick up the cup"],
            "state": steps.tolist(),
            "continuous_gripper_state": np.linspace(0, 1, len(frames)).tolist(),
        }
        path.write_text(json.dumps(facts))


def coinrun() -> None:
    """data/coinrun_episodes in the layout of Jasmine, a frame of it, and actions."""
    videos = [
        episode.frames[:40, :, :48].repeat(4, axis=1)[:, ::3].repeat(4, axis=2)[:, :, ::3] for episode in _recorded()
    ]
    array_record_sets.write_jasmine(pathlib.Path("data/coinrun_episodes"), {"train": videos[:3], "val": videos[3:]})
    PIL.Image.fromarray(videos[0][0]).save("frame.png")
    pathlib.Path("actions.json").write_text(json.dumps({"action": np.eye(15)[[7] * 12].tolist()}))


def robot() -> None:
    """data/robot/1.0.0 in the layout of TensorFlow Datasets, with three numbers per action."""
    shown = [(episode.frames[:40], episode.caption) for episode in _recorded()]
    folder = pathlib.Path("data/robot/1.0.0")
    array_record_sets.write_rlds(folder, {"train": shown[:3], "val": shown[3:]}, form="tfrecord")


def driving_videos() -> None:
    """index.json of The Matrix with a control token per frame."""
    rows = []
    for number, episode in enumerate(_recorded()):
        tiny_videos.write(pathlib.Path("driving", f"{number}.mp4"), episode.frames, fps=16)
        tokens = [driving.TOKENS[(number + t // 20) % len(driving.TOKENS)] for t in range(FRAMES)]
        rows.append(
            {
                "path": f"driving/{number}.mp4",
                "caption": episode.caption,
                "control_signal_seq": ",".join(tokens),
                "valid_frame_idx": 0,
            }
        )
    pathlib.Path("index.json").write_text(json.dumps({"list": rows}))


def chat() -> None:
    """chat.json and images in the format of LLaVA."""
    folder = pathlib.Path("images")
    folder.mkdir(exist_ok=True)
    rows = []
    for number, episode in enumerate(_recorded()):
        for t in (0, 30, 60, 90):
            name = f"{number}_{t}.jpg"
            PIL.Image.fromarray(episode.frames[t]).save(folder / name)
            turns = [
                {"from": "human", "value": "<image>\nwhat is this?"},
                {"from": "gpt", "value": "a room with colored walls"},
            ]
            rows.append({"id": name, "image": name, "conversations": turns})
    pathlib.Path("chat.json").write_text(json.dumps(rows))
    # The recipe's own place of LLaVA's pretraining data.
    target = pathlib.Path("data/llava_pretrain")
    target.mkdir(parents=True)
    shutil.copy("chat.json", target)
    for path in folder.iterdir():
        shutil.copy(path, target)


def _png(frame_: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(frame_).save(file, "PNG")
    return file.getvalue()


def benchmarks() -> None:
    """BLINK, VSR and SpatialRGPT-Bench in their published tables."""
    images = [_png(episode.frames[0]) for episode in _recorded()[:4]]
    blink = {
        "question": [f"Which {i}?" for i in range(4)],
        "choices": [["red", "green"]] * 4,
        "answer": ["(A)", "(B)"] * 2,
        "image_1": [{"bytes": image, "path": None} for image in images],
    }
    folder = pathlib.Path("BLINK/Relative_Depth")
    folder.mkdir(parents=True)
    parquet.write_table(pyarrow.table(blink), folder / "val-00000-of-00001.parquet")
    rows = [{"image": f"vsr_{i}.png", "caption": "the wall is red", "label": i % 2} for i in range(4)]
    pathlib.Path("test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pathlib.Path("images").mkdir(exist_ok=True)
    for row, image in zip(rows, images, strict=True):
        pathlib.Path("images", str(row["image"])).write_bytes(image)
    spatial = {
        "id": [str(i) for i in range(4)],
        "image": [{"bytes": image, "path": None} for image in images],
        "text_q": ["Is <mask> left of <mask>?"] * 4,
        "answer": ["Yes, Region [0] is."] * 4,
        "bbox": ["[[1, 1, 20, 20], [10, 10, 30, 25]]"] * 4,
        "qa_info": [str({"type": "qualitative", "category": "left_choice"})] * 4,
    }
    pathlib.Path("SpatialRGPT-Bench/data").mkdir(parents=True)
    parquet.write_table(pyarrow.table(spatial), "SpatialRGPT-Bench/data/val-00000-of-00001.parquet")


def original_config() -> None:
    """x.json: a training config of the original TheWorld."""
    values = {"dataset_name": "llava_pretrain", "train_dataset_path": "chat.json", "image_folder": "images"}
    pathlib.Path("x.json").write_text(json.dumps({"_comment": "stage 1", **values, "max_steps": 10, "batch_size": 2}))


def golden_case() -> None:
    """Another set of golden cases."""
    shutil.copytree(golden_cases.DEFAULT_ROOT / "cosmos" / "schedules", "cases/cosmos/schedules")
