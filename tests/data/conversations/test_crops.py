"""Pan and scan: crops, tokens and pixels are those of transformers' processor."""

import json
import pathlib
from typing import Any

import gemma_folders
import numpy as np
import PIL.Image
import pytest
import test_processor_files
import torch
import transformers

import jworld
from conversion import __main__ as conversion
from jworld.data.conversations import batches, chat, crops, processor
from jworld.utils import config as run_config

SETTINGS = {
    "pan_and_scan_min_crop_size": 16,
    "pan_and_scan_max_num_crops": 3,
    "pan_and_scan_min_ratio_to_activate": 1.3,
}
#: Widths and heights: wide and high ones, below and above the ratio, too small, with parts that are not equal.
SIZES = [(40, 40), (50, 40), (52, 40), (40, 52), (100, 30), (31, 90), (200, 20), (20, 200), (90, 31), (47, 16), (30, 9)]


def pixels_of(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("most", [3, 4])
def test_crops_and_pixels(size: tuple[int, int], most: int) -> None:
    settings = SETTINGS | {"pan_and_scan_max_num_crops": most}
    theirs = transformers.Gemma3ImageProcessorPil(
        size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_pan_and_scan=True, **settings
    )
    image = pixels_of(*size)
    expected = theirs(image, input_data_format="channels_last", return_tensors="np")
    clip = batches.ClipConfig(image_size=8, world_size=0, pan_and_scan=True, **settings)
    own = PIL.Image.fromarray(image)
    (count,) = clip.count_crops([own])
    assert count == int(np.ravel(expected["num_crops"])[0])
    found = batches.model_pixels([own], clip)["pixel_values"]
    assert len(found) == 1 + most
    values = np.moveaxis(found[: 1 + count].astype(np.float32) / 127.5 - 1, -1, 1)
    np.testing.assert_allclose(values, expected["pixel_values"], atol=1e-5)
    assert not found[1 + count :].any()


def test_published_settings() -> None:
    pan = crops.PanAndScan()
    assert len(pan.boxes(1920, 1080)) == 2
    assert len(pan.boxes(3000, 500)) == 4
    assert pan.boxes(300, 200) == []
    assert not batches.ClipConfig().pan_and_scan
    assert batches.ClipConfig().slots == 1


def test_tokens(tmp_path: pathlib.Path) -> None:
    """Two images at their places, the second of them with crops."""
    folder = test_processor_files.processor_folder(tmp_path / "given")
    theirs = transformers.AutoProcessor.from_pretrained(folder)
    images = [PIL.Image.fromarray(pixels_of(*size)) for size in ((40, 40), (100, 30))]
    text = "<bos><start_of_turn>user\n<start_of_image>or<start_of_image>?<end_of_turn>\n<start_of_turn>model\n"
    expected = theirs(
        images=[images], text=text, return_tensors="np", add_special_tokens=False, do_pan_and_scan=True, **SETTINGS
    )["input_ids"][0]
    clip = batches.ClipConfig(images=2, image_size=8, pan_and_scan=True, **SETTINGS)
    tokenizer = chat.load(folder, image_tokens=4)
    turns = [chat.Turn("user", "<image>or<image>?")]
    found = tokenizer.encode(turns, images=2, crops=clip.count_crops(images), is_open=True).tokens
    assert clip.count_crops(images) == [0, 3]
    assert found.tolist() == expected.tolist()
    assert (found == tokenizer.ids[chat.IMAGE]).sum() == 5 * 4


def with_processor(source: pathlib.Path, **changes: Any) -> pathlib.Path:
    values = {
        "image_processor_type": "Gemma3ImageProcessor",
        **{"size": {"height": 56, "width": 56}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2},
        **{"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255},
        **changes,
    }
    (source / "preprocessor_config.json").write_text(json.dumps(values))
    return source


def test_an_import_has_the_settings_of_the_processor(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = with_processor(gemma_folders.write(tmp_path / "source"), do_pan_and_scan=True, **SETTINGS)
    conversion.main(["import", str(source), "--output", str(tmp_path / "on")])
    said = capsys.readouterr().out
    assert f"by {source / 'preprocessor_config.json'}: data.clip.pan_and_scan=True, data.clip.pan_and_scan_min" in said
    clip = run_config.load(tmp_path / "on").data.clip
    assert {key: clip[key] for key in SETTINGS} == SETTINGS
    assert clip.pan_and_scan
    processor.check(tmp_path / "on" / "encoders", run_config.section(batches.ClipConfig, clip, "data.clip"))
    with_processor(source, do_pan_and_scan=None)
    conversion.main(["import", str(source), "--output", str(tmp_path / "off")])
    assert "pan_and_scan" not in run_config.load(tmp_path / "off").data.clip


def test_answers_about_an_image_with_crops(tmp_path: pathlib.Path) -> None:
    """Greedy tokens are those of transformers' class with the inputs of its processor."""
    source = with_processor(gemma_folders.write(tmp_path / "source"), do_pan_and_scan=True, **SETTINGS)
    conversion.main(["import", str(source), "--output", str(tmp_path / "ours"), "--config.model.dtype=float32"])
    run, image = jworld.load(tmp_path / "ours"), pixels_of(100, 30)
    session = run.system.session(run.model, run.encoders)
    session.reset([image], "what is this?")
    found = [token for _ in range(8) if (token := session.step()) is not None]
    own = PIL.Image.fromarray(image)
    clip = batches.ClipConfig(image_size=56, world_size=0, pan_and_scan=True, **SETTINGS)
    turns = [chat.Turn("user", "what is this?")]
    tokens = run.encoders.tokenizer.encode(turns, images=1, crops=clip.count_crops([own]), is_open=True).tokens
    theirs = transformers.Gemma3ImageProcessorPil.from_pretrained(source)
    given = torch.from_numpy(tokens.astype(np.int64))[None]
    ids = gemma_folders.ids()
    with torch.inference_mode():
        answer = (
            gemma_folders.load(source)
            .generate(
                input_ids=given,
                pixel_values=theirs(image, input_data_format="channels_last", return_tensors="pt")["pixel_values"],
                token_type_ids=(given == ids[chat.IMAGE]).long(),
                max_new_tokens=8,
                do_sample=False,
                eos_token_id=[ids[chat.EOS], ids[chat.END_OF_TURN]],
            )[0, len(tokens) :]
            .tolist()
        )
    assert found == [token for token in answer if token not in (ids[chat.EOS], ids[chat.END_OF_TURN])]
    assert len(found) > 2
