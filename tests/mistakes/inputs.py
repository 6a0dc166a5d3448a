"""Valid inputs of every command, made once in one folder; the tries damage copies of them."""

import json
import pathlib
import pickle
import shutil

import commands
import converted
import numpy as np
import own_records
import PIL.Image
import precompute_inputs
import published_set
import pyarrow
from pyarrow import parquet

from conversion import __main__ as conversion
from jworld.precompute import encode_text, job
from jworld.systems import key_logs
from jworld.utils import config as run_config

#: Layouts of video data sets, each in a folder of this name.
LAYOUTS = ("videos", "cosmos", "bridge", "matrix", "worldplay", "webdataset", "parquet", "jasmine", "rlds")


def make(folder: pathlib.Path) -> pathlib.Path:
    """Write all inputs into a new folder."""
    folder.mkdir(parents=True)
    shutil.copytree(commands.ROOT / "assets" / "starter", folder / "starter")
    shutil.copytree(commands.ROOT / "assets" / "tokenizer", folder / "tokenizer")
    shutil.copy(commands.ROOT / "configs" / "ar_mem.py", folder / "recipe.py")
    shutil.copy(commands.ROOT / "assets" / "motion" / "rooms.safetensors", folder / "motion.safetensors")
    _texts(folder)
    _benchmarks(folder)
    _records(folder)
    own = precompute_inputs.write_videos(folder / "raw", "matrix", "abc")
    entries = json.loads((own / "index.json").read_text())["list"]
    shutil.move(own_records.encode(own, entries, val_share=0.4), folder / "own")
    for layout in LAYOUTS:
        precompute_inputs.write_videos(folder / layout, layout, "ab")
    published_set.write_set(folder / "published", 2)
    _pickles(folder / "t5")
    _checkpoints(folder)
    return folder


def _texts(folder: pathlib.Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(folder / "image.png")
    pose = {str(i): {"w2c": np.eye(4).tolist(), "intrinsic": np.eye(3).tolist()} for i in range(13)}
    (folder / "poses.json").write_text(json.dumps(pose))
    log = key_logs.KeyLog(model="", start=key_logs.Start(image=pixels), entries=[key_logs.Entry(keys="w")])
    (folder / "keys.json").write_text(json.dumps(log.to_json()))
    (folder / "batch.jsonl").write_text('{"prompt": "a room", "pose": "w-3", "out": "a.mp4"}\n')
    (folder / "questions.jsonl").write_text('{"prompt": "What is it?"}\n')
    (folder / "original.json").write_text('{"learning_rate": 0.001}')
    (folder / "images").mkdir()
    shutil.copy(folder / "image.png", folder / "images" / "image.png")
    turns = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "A room."}]
    rows = [{"id": number, "image": "image.png", "conversations": turns} for number in range(8)]
    (folder / "chat.json").write_text(json.dumps(rows))
    result = folder / "evaluation"
    result.mkdir()
    (result / "evaluation.json").write_text('{"scores": {"a": {"accuracy": 50.0, "correct": 1, "total": 2}}}')


def _benchmarks(folder: pathlib.Path) -> None:
    (folder / "vsr.jsonl").write_text('{"image": "image.png", "caption": "The wall is red.", "label": 1}\n')
    turns = [{"from": "human", "value": "Is it red?"}, {"from": "gpt", "value": "Yes."}]
    row = {"id": "1", "image": "image.png", "conversations": turns}
    (folder / "spatial.jsonl").write_text(json.dumps(row) + "\n")
    picture = {"bytes": (folder / "image.png").read_bytes(), "path": None}
    (folder / "tables").mkdir()
    texts = {"id": "1", "text_q": "Is it red?", "conversations": json.dumps(turns)}
    cells = {**texts, "image": picture}
    parquet.write_table(pyarrow.table({key: [cell] for key, cell in cells.items()}), folder / "tables" / "val.parquet")
    question = {"question": "How many?", "choices": ["1", "2"], "answer": "(A)", "image_1": picture}
    place = folder / "blink" / "Counting" / "val-00000-of-00001.parquet"
    place.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.table({key: [cell] for key, cell in question.items()}), place)


def _records(folder: pathlib.Path) -> None:
    precompute_inputs.write_episodes(folder / "episodes", ["train", "train", "val"])
    job.precompute(precompute_inputs.episode_settings(folder / "episodes"), folder / "records")
    shutil.copy(folder / "records" / "autoencoder.safetensors", folder / "autoencoder.safetensors")
    embeddings = folder / "embeddings.safetensors"
    encode_text.main(["--text-encoder=hashed-words:16", "--prompt=wall 0", "--prompt=wall 1", f"--output={embeddings}"])


def _pickles(folder: pathlib.Path) -> None:
    (folder / "metas").mkdir(parents=True)
    (folder / "t5_xxl").mkdir()
    (folder / "metas" / "a.txt").write_text("a cat")
    (folder / "t5_xxl" / "a.pickle").write_bytes(pickle.dumps([np.ones((3, 1024), np.float16)]))


def _checkpoints(folder: pathlib.Path) -> None:
    converted.download(folder / "download", "transformer_ar_train")
    conversion.main(["import", str(folder / "download"), f"--output={folder / 'imported'}", "--variant=ar"])
    theworld = folder / "theworld"
    theworld.mkdir()
    config = run_config.load_recipe("configs/theworld.py")
    run_config.save(config, theworld)
    shutil.copytree(folder / "tokenizer", theworld / "encoders")
