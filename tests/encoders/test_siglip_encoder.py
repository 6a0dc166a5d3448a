"""SigLIP, compared with the classes of transformers."""

import shutil

import numpy as np
import PIL.Image
import pytest
from encoder_files import write_json

from jworld.encoders import registry
from jworld.utils.errors import UserError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FLOAT32 = registry.Options(dtype="float32", device="cpu", batch_size=2)
PREPROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 42, "width": 42},
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 42,
        "patch_size": 14,
    }
    text = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 50,
    }
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)).eval()


@pytest.fixture
def redux(model, tmp_path):
    """The layout of FLUX.1-Redux."""
    folder = tmp_path / "redux"
    tower = transformers.SiglipVisionModel(model.config.vision_config)
    tower.load_state_dict(model.vision_model.state_dict())
    tower.save_pretrained(folder / "image_encoder")
    write_json(folder / "feature_extractor" / "preprocessor_config.json", PREPROCESSOR)
    return folder


@pytest.fixture(scope="module")
def images():
    small = np.random.default_rng(0).integers(0, 256, (3, 6, 10, 3), np.uint8)
    # Smooth, so that the way of resizing shows; three images, so that the last batch is not full.
    return np.stack([np.asarray(PIL.Image.fromarray(image).resize((80, 48))) for image in small])


def expected(model, images, **changes):
    classes = transformers.models.siglip
    processor = getattr(classes, "SiglipImageProcessorPil", classes.SiglipImageProcessor)(
        **{key: value for key, value in (PREPROCESSOR | changes).items() if key != "image_processor_type"}
    )
    pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return pixels.numpy(), model.vision_model(pixel_values=pixels).last_hidden_state.numpy()


def test_states_are_the_last_hidden_state_of_the_preprocessed_image(model, redux, images):
    encoder = registry.load_image_encoder(f"siglip:{redux}", FLOAT32)
    pixels, states = expected(model, images)
    np.testing.assert_array_equal(encoder.pixels(images), pixels)
    found = encoder.encode(images)
    assert found.shape == (3, 9, 24)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, states, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(images[1:2]), states[1:2], rtol=1e-4, atol=1e-5)


def test_the_preprocessors_settings_are_followed(model, redux, images):
    changes = {"resample": 2, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    write_json(redux / "feature_extractor" / "preprocessor_config.json", PREPROCESSOR | changes)
    found = registry.load_image_encoder(f"siglip:{redux}", FLOAT32).pixels(images)
    np.testing.assert_array_equal(found, expected(model, images, **changes)[0])
    # The same on bytes by hand: as when the published states were made.
    resized = [np.asarray(PIL.Image.fromarray(image).resize((42, 42), PIL.Image.Resampling(2))) for image in images]
    mean, std = (np.array(changes[key], np.float32) for key in ("image_mean", "image_std"))
    by_hand = (np.stack(resized).astype(np.float32) / np.float32(255) - mean) / std
    np.testing.assert_array_equal(found, by_hand.transpose(0, 3, 1, 2))


def test_a_flat_folder_with_the_text_tower_is_the_same_encoder(model, redux, images, tmp_path):
    model.save_pretrained(tmp_path / "flat")
    write_json(tmp_path / "flat" / "preprocessor_config.json", PREPROCESSOR)
    flat = registry.load_image_encoder(f"siglip:{tmp_path / 'flat'}", FLOAT32).encode(images)
    np.testing.assert_array_equal(flat, registry.load_image_encoder(f"siglip:{redux}", FLOAT32).encode(images))


def test_the_manifest_entry_and_the_published_dtype(redux, images):
    encoder = registry.load_image_encoder(f"siglip:{redux}", registry.Options(device="cpu"))
    entry = encoder.manifest_entry()
    assert (entry["family"], entry["tokens"], entry["dim"], entry["dtype"]) == ("siglip", 9, 24, "float16")
    found = encoder.encode(images)
    np.testing.assert_array_equal(found, found.astype(np.float16))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": {"height": 28, "width": 28}}, "makes images of 28x28 pixels, expected 42x42: download"),
        ({"size": {"shortest_edge": 42}}, "makes images of 42x84 pixels, expected 42x42: download"),
        ({"do_normalize": False}, "do_normalize is False, expected true: download"),
        ({"resample": 77}, r"is not usable \(Unknown resampling filter \(77\)"),
        ({"image_mean": [0.5]}, r"is not usable \(mean must have 3 elements"),
        ({"image_processor_type": "Other"}, r"is not usable \(Unrecognized image processor"),
    ],
)
def test_another_preprocessing_is_refused(redux, change, message):
    write_json(redux / "feature_extractor" / "preprocessor_config.json", PREPROCESSOR | change)
    with pytest.raises(UserError, match=message):
        registry.load_image_encoder(f"siglip:{redux}", FLOAT32)


def test_a_missing_preprocessor_or_another_model_is_refused(redux):
    shutil.rmtree(redux / "feature_extractor")
    with pytest.raises(UserError, match=r"preprocessor_config.json is absent: download the model's"):
        registry.load_image_encoder(f"siglip:{redux}", FLOAT32)
    write_json(redux / "image_encoder" / "config.json", {"model_type": "clip"})
    with pytest.raises(UserError, match="has model_type 'clip', siglip expects 'siglip_vision_model' or 'siglip'"):
        registry.load_image_encoder(f"siglip:{redux}", FLOAT32)
