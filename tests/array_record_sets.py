"""Small data sets in the layouts of Jasmine and of TensorFlow Datasets, written without either."""

import io
import json
import pathlib
import pickle
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from array_record.python import array_record_module

from jworld.utils import crc32c

TENSOR, IMAGE, TEXT = "tensor", "image", "text"
#: Features of a step: name -> (kind, shape, dtype).
STEP: dict[str, tuple[str, tuple[int, ...], str]] = {
    "observation/image": (IMAGE, (48, 64, 3), "uint8"),
    "observation/wrist_image": (IMAGE, (48, 64, 3), "uint8"),
    "observation/depth": (IMAGE, (48, 64, 1), "uint16"),
    "observation/state": (TENSOR, (2,), "float64"),
    "action/gripper": (TENSOR, (), "int64"),
    "action/arm": (TENSOR, (2,), "float32"),
    "is_last": (TENSOR, (), "bool"),
    "language_instruction": (TEXT, (), "string"),
}


def write_records(path: pathlib.Path, records: Sequence[bytes]) -> pathlib.Path:
    """Write an ArrayRecord or a TFRecord file, by its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".array_record" in path.name:
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        return path
    content = b""
    for record in records:
        length = struct.pack("<Q", len(record))
        content += length + struct.pack("<I", crc32c.masked(length))
        content += record + struct.pack("<I", crc32c.masked(record))
    path.write_bytes(content)
    return path


def jasmine_record(frames: np.ndarray, actions: Any = None, **changes: Any) -> bytes:
    """Return a record of frames uint8 [T, H, W, C]; a change to None leaves a key out."""
    facts = {"raw_video": frames.tobytes(), "sequence_length": len(frames), "actions": actions} | changes
    return pickle.dumps({key: value for key, value in facts.items() if value is not None})


def write_jasmine(
    folder: pathlib.Path, splits: Mapping[str, Sequence[np.ndarray]], *, actions: int | None = 15
) -> pathlib.Path:
    """Write videos uint8 [T, H, W, C] by split, with a file of two records each; action t of video v is t + v."""
    count = 0
    for split, videos in splits.items():
        for first in range(0, len(videos), 2):
            records = []
            for video in videos[first : first + 2]:
                taken = (np.arange(len(video)) + count) % (actions or 1)
                records.append(jasmine_record(video, None if actions is None else taken.astype(np.int32)))
                count += 1
            write_records(folder / split / f"data_{first // 2:04d}.array_record", records)
    facts = {"env": "coinrun"} | ({} if actions is None else {"num_actions": actions})
    (folder / "metadata.json").write_text(json.dumps(facts))
    return folder


def _number(value: int) -> bytes:
    """Encode an integer as protocol buffers do."""
    value &= (1 << 64) - 1
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def _part(number: int, content: bytes) -> bytes:
    """Encode a field of bytes, a text or a message."""
    return _number(number << 3 | 2) + _number(len(content)) + content


def example(features: Mapping[str, Any]) -> bytes:
    """Encode a tf.train.Example of lists of bytes, float arrays or integer arrays."""
    entries = b""
    for name, values in features.items():
        if isinstance(values, list):
            feature = _part(1, b"".join(_part(1, value) for value in values))
        elif np.issubdtype(values.dtype, np.floating):
            feature = _part(2, _part(1, values.astype("<f4").tobytes()))
        else:
            feature = _part(3, _part(1, b"".join(_number(int(value)) for value in values.reshape(-1))))
        entries += _part(1, _part(1, name.encode()) + _part(2, feature))
    return _part(1, entries)


def encoded(frame: np.ndarray, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(frame).save(stream, form)
    return stream.getvalue()


def episode(frames: np.ndarray, caption: str, *, number: int) -> dict[str, Any]:
    """Return the features of an episode; the arm's numbers at step t of episode e are t and e."""
    steps = np.arange(len(frames))
    arm = np.stack([steps, np.full(len(frames), number)], axis=1).astype(np.float32)
    # As in many data sets, no action follows the last step.
    arm[-1] = 1000
    return {
        "steps/observation/image": [encoded(frame) for frame in frames],
        "steps/observation/wrist_image": [encoded(255 - frame) for frame in frames],
        "steps/observation/depth": [encoded(frame[..., 0]) for frame in frames],
        "steps/observation/state": np.stack([steps, -steps], axis=1).astype(np.float32),
        "steps/action/gripper": steps % 2,
        "steps/action/arm": arm,
        "steps/is_last": (steps == len(frames) - 1).astype(int),
        "steps/language_instruction": [caption.encode()] * len(frames),
        "episode_metadata/file_path": [b"/x"],
    }


def features_json(step: Mapping[str, tuple[str, tuple[int, ...], str]] = STEP) -> dict[str, Any]:
    """Return the content of features.json."""
    parts: dict[str, Any] = {}
    for name, (kind, shape, dtype) in step.items():
        facts: dict[str, Any] = {"shape": {"dimensions": [str(size) for size in shape]} if shape else {}}
        facts |= {"dtype": dtype, "encodingFormat": "png"} if kind == IMAGE else {"dtype": dtype, "encoding": "none"}
        place = parts
        *folders, last = name.split("/")
        for part in folders:
            place = place.setdefault(part, {"featuresDict": {"features": {}}})["featuresDict"]["features"]
        place[last] = {kind: {} if kind == TEXT else facts}
    steps = {"sequence": {"length": "-1", "feature": {"featuresDict": {"features": parts}}}}
    metadata = {"featuresDict": {"features": {"file_path": {TEXT: {}}}}}
    return {"featuresDict": {"features": {"steps": steps, "episode_metadata": metadata}}}


def write_rlds(
    folder: pathlib.Path,
    splits: Mapping[str, Sequence[tuple[np.ndarray, str]]],
    *,
    form: str = "array_record",
    name: str = "robot",
) -> pathlib.Path:
    """Write videos with captions by split, two episodes to a file."""
    listed, number = [], 0
    for split, videos in splits.items():
        lengths = [len(videos[first : first + 2]) for first in range(0, len(videos), 2)]
        for index in range(len(lengths)):
            records = []
            for frames, caption in videos[2 * index : 2 * index + 2]:
                records.append(example(episode(frames, caption, number=number)))
                number += 1
            write_records(folder / f"{name}-{split}.{form}-{index:05d}-of-{len(lengths):05d}", records)
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        listed.append({"name": split, "shardLengths": [str(n) for n in lengths], "filepathTemplate": template})
    facts = {"name": name, "version": "1.0.0", "fileFormat": form, "splits": listed}
    (folder / "dataset_info.json").write_text(json.dumps(facts))
    (folder / "features.json").write_text(json.dumps(features_json()))
    return folder
