"""What a run keeps of a tokenizer's folder opens in transformers, as does an export that carries it along."""

import json
import pathlib
import shutil

import numpy as np
import PIL.Image
import transformers
from test_conversation_batches import SHIPPED, make_config

from conversion import theworld
from jworld.data.conversations import batches, chat, dataset

SPECIAL = {"image_token": chat.IMAGE, "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}


def processor_folder(folder: pathlib.Path) -> pathlib.Path:
    """The shipped tokenizer with the files of a published Gemma-3 beside it."""
    shutil.copytree(SHIPPED, folder)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    kind = {"processor_class": "Gemma3Processor"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**told, **kind, **SPECIAL}))
    (folder / "processor_config.json").write_text(json.dumps({**kind, "image_seq_length": 4}))
    pixels = {"size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    pixels |= {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
    settings = {**kind, "image_processor_type": "Gemma3ImageProcessor", **pixels}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "notes.txt").write_text("of no use")
    return folder


def test_a_run_keeps_what_makes_a_processor(tmp_path: pathlib.Path) -> None:
    given = processor_folder(tmp_path / "given")
    config = make_config(tmp_path)
    config.data.tokenizer = str(given)
    kept = tmp_path / "run" / "encoders"
    data = dataset.Conversations(config, image_tokens=4)
    data.keep(kept)
    names = {path.name for path in given.iterdir()} - {"notes.txt"}
    assert {path.name for path in kept.iterdir()} == names
    # Export takes these along.
    assert names <= set(theworld.CARRIED)
    processor = transformers.AutoProcessor.from_pretrained(kept)
    assert type(processor).__name__ == "Gemma3Processor"
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))
    theirs = processor(images=picture, text="<start_of_image>first or second?", return_tensors="np")
    pixels = batches.model_pixels([picture], batches.ClipConfig(lengths=(48,), image_size=8, world_size=0))
    np.testing.assert_allclose(
        theirs["pixel_values"][0].transpose(1, 2, 0), pixels["pixel_values"][0] / 127.5 - 1, atol=1e-6
    )
    ours = data.tokenizer.encode([chat.Turn("user", "first or second?")], images=1, is_open=True).tokens.tolist()
    seen = theirs["input_ids"][0].tolist()
    start = ours.index(data.tokenizer.ids[chat.IMAGE])
    first = seen.index(data.tokenizer.ids[chat.IMAGE])
    assert seen[first : first + 5] == ours[start : start + 5]
    assert seen.count(data.tokenizer.ids[chat.IMAGE]) == 4
