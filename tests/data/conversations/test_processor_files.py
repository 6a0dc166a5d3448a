"""Processor files that a run copies from a tokenizer's folder: transformers can open them."""

import dataclasses
import json
import pathlib
import shutil

import golden_cases
import numpy as np
import PIL.Image
import pytest
import transformers
from conversation_configs import SHIPPED, make_config

from conversion import __main__ as conversion
from conversion import theworld
from jworld.data.conversations import batches, chat, dataset, processor
from jworld.utils.errors import UserError

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


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": {"height": 16, "width": 16}}, "makes images of 16x16 pixels, expected 8x8"),
        ({"resample": 3}, "prepares images in another way than the model is trained with"),
        ({"image_mean": [0.4, 0.5, 0.5]}, "prepares images in another way than the model is trained with"),
        (
            {
                "do_pan_and_scan": True,
                "pan_and_scan_min_crop_size": 2,
                "pan_and_scan_max_num_crops": 4,
                "pan_and_scan_min_ratio_to_activate": 1.2,
            },
            "has do_pan_and_scan, expected the same settings for the model: give --config.data.clip.pan_and_scan=True "
            "--config.data.clip.pan_and_scan_min_crop_size=2",
        ),
        ({"do_normalize": False}, "do_normalize is False, expected true"),
    ],
)
def test_other_pixels_than_the_models_are_refused(tmp_path: pathlib.Path, change: dict, message: str) -> None:
    """Refused before anything is recorded, and accepted without the change."""
    path = processor_folder(tmp_path / "given") / "preprocessor_config.json"
    config = make_config(tmp_path)
    config.data.tokenizer = str(path.parent)
    processor.check(path.parent, batches.ClipConfig(image_size=8))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=f"^{path} {message}|^{path}: {message}"):
        dataset.Conversations(config, image_tokens=4).prepare()
    assert not (tmp_path / "conversations").exists()


def test_exports_of_a_run_with_the_shipped_tokenizer_open_as_a_processor(tmp_path: pathlib.Path) -> None:
    """The shipped tokenizer has no processor: an export adds its files, and keeps the tokenizer's own."""
    case = golden_cases.GoldenCase(golden_cases.DEFAULT_ROOT / "theworld" / "gemma3_text")
    given, exported = tmp_path / "given", tmp_path / "exported"
    shutil.copytree(SHIPPED, given)
    shutil.copy(case.path / "weights.safetensors", given / "model.safetensors")
    (given / "config.json").write_text(json.dumps(case.config))
    conversion.main(["import", str(given), "--output", str(tmp_path / "ours")])
    conversion.main(["export", str(tmp_path / "ours"), "--output", str(exported)])
    conversion.main(["export", str(tmp_path / "ours"), "--output", str(exported), "--overwrite"])
    assert (exported / "tokenizer.json").read_bytes() == (SHIPPED / "tokenizer.json").read_bytes()
    added = json.loads((exported / "tokenizer_config.json").read_text())
    own = json.loads((SHIPPED / "tokenizer_config.json").read_text())
    assert own.items() <= added.items()
    theirs = transformers.AutoProcessor.from_pretrained(exported)
    size, tokens = case.config["vision_config"]["image_size"], case.config["mm_tokens_per_image"]
    clip = batches.ClipConfig(image_size=size)
    processor.check(exported, clip)
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    found = theirs(images=image, text="<bos><start_of_image>first?", return_tensors="np", add_special_tokens=False)
    assert found["pixel_values"].shape == (1, 3, size, size)
    tokenizer = chat.load(exported, image_tokens=tokens)
    text = f"<bos>\n\n<start_of_image>{chat.IMAGE * tokens}<end_of_image>\n\nfirst?"
    assert found["input_ids"][0].tolist() == chat.read(exported / "tokenizer.json").encode(text).ids
    assert theirs.tokenizer.image_token_id == tokenizer.ids[chat.IMAGE]
    # Version 5 saves everything in two files: nothing is missing there.
    theirs.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "preprocessor_config.json").exists()
    assert processor.files(tmp_path / "saved", image_size=size, image_tokens=tokens) == {}
    processor.check(tmp_path / "saved", clip)
    with pytest.raises(UserError, match="makes images of"):
        processor.check(tmp_path / "saved", dataclasses.replace(clip, image_size=size + 14))
