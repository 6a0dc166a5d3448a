"""Processor files that a run copies from a tokenizer's folder: transformers can open them."""

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
    """Copy the shipped tokenizer and add the processor files of a published Gemma-3."""
    shutil.copytree(SHIPPED, folder)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    kind = {"processor_class": "Gemma3Processor"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, **kind, **SPECIAL}))
    (folder / "processor_config.json").write_text(json.dumps({**kind, "image_seq_length": 4}))
    pixels = {"size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    pixels |= {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
    settings = {**kind, "image_processor_type": "Gemma3ImageProcessor", **pixels}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "notes.txt").write_text("unrelated")
    return folder


def test_a_run_copies_the_files_of_the_processor(tmp_path: pathlib.Path) -> None:
    given = processor_folder(tmp_path / "given")
    config = make_config(tmp_path)
    config.data.tokenizer = str(given)
    copied = tmp_path / "run" / "encoders"
    data = dataset.Conversations(config, image_tokens=4)
    data.keep(copied)
    names = {path.name for path in given.iterdir()} - {"notes.txt"}
    assert {path.name for path in copied.iterdir()} == names
    # Exports include these files.
    assert names <= set(theworld.CARRIED)
    processor = transformers.AutoProcessor.from_pretrained(copied)
    assert type(processor).__name__ == "Gemma3Processor"
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))
    reference = processor(images=image, text="<start_of_image>first or second?", return_tensors="np")
    pixels = batches.model_pixels([image], batches.ClipConfig(lengths=(48,), image_size=8, world_size=0))
    np.testing.assert_allclose(
        reference["pixel_values"][0].transpose(1, 2, 0), pixels["pixel_values"][0] / 127.5 - 1, atol=1e-6
    )
    ours = data.tokenizer.encode([chat.Turn("user", "first or second?")], images=1, is_open=True).tokens.tolist()
    tokens = reference["input_ids"][0].tolist()
    start = ours.index(data.tokenizer.ids[chat.IMAGE])
    first = tokens.index(data.tokenizer.ids[chat.IMAGE])
    assert tokens[first : first + 5] == ours[start : start + 5]
    assert tokens.count(data.tokenizer.ids[chat.IMAGE]) == 4
