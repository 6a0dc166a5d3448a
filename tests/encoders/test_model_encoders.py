"""Encoders of a data set: opened from their source, from another path, or refused."""

import argparse
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import tiny_autoencoders

from jworld.data import images, records
from jworld.data.records import text_store
from jworld.encoders import choices, model_encoders, weightless
from jworld.encoders.choices import EncoderOverrides
from jworld.models.autoencoders import linear
from jworld.utils.errors import UserError

EXPECTED = {"latent_shape": [3, 4, 16], "text_encoder.dim": 5, "vision_encoder.tokens": 12, "vision_encoder.dim": 12}


def fit(seed: int = 0) -> linear.LinearAutoencoder:
    clips = np.random.default_rng(seed).integers(0, 256, (4, 5, 16, 16, 3)).astype(np.uint8)
    return linear.fit(clips, linear.LinearConfig(channels=8), seed=0)


def write_manifest(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    """Write a set without records, with the linear autoencoder of its latents."""
    folder.mkdir()
    fit().save(folder / records.AUTOENCODER_FILE)
    size = {"width": 32, "height": 24, "mode": "stretch", "resampling": "area"}
    manifest = {
        "arrays": records.make_arrays((3, 4, 8)),
        "autoencoder": fit().manifest_entry(),
        "latent_shape": [3, 4, 8],
        "temporal_ratio": 4,
        "fps": 12.0,
        "image_size": [32, 24],
        "cut": {"fit": size},
        "text_encoder": weightless.HashedWords(5).manifest_entry(),
        "glyph_encoder": weightless.NoText(0).manifest_entry(),
        "vision_encoder": weightless.Thumbnail().manifest_entry(),
        **{key: [] for key in ("prompts", "text")},
        **{key: {} for key in ("splits", "clips", "episodes")},
    }
    records.write_manifest(folder, manifest | changes)
    return folder


def network_manifest(folder: pathlib.Path, source: pathlib.Path) -> pathlib.Path:
    """Write a set without records whose latents are from a network in `source`."""
    entry = tiny_autoencoders.make("wan").manifest_entry() | {"source": str(source / "autoencoder.safetensors")}
    sizes = {"image_size": [16, 12], "latent_shape": [3, 4, 16], "arrays": records.make_arrays((3, 4, 16))}
    return write_manifest(folder, autoencoder=entry, **sizes)


def test_encoders_without_weights(tmp_path):
    folder = write_manifest(tmp_path / "set")
    model_encoders.copy(folder, tmp_path / "run" / "encoders")
    opened = model_encoders.open_set(tmp_path / "run" / "encoders")
    assert (opened.image_size, opened.fps) == ((32, 24), 12.0)
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    latent, states = opened.image(frame)
    small = images.resize(frame, width=32, height=24)
    np.testing.assert_allclose(latent, fit().encode(small[None, None])[0], atol=1e-4)
    np.testing.assert_array_equal(states, images.thumbnail_tokens(small))
    prompt = opened.prompt("a red door")
    assert prompt.keys() == {"text_states"}
    np.testing.assert_array_equal(prompt["text_states"], text_store.hashed_words("a red door", dim=5))


def test_only_small_files_are_copied(tmp_path):
    network = tiny_autoencoders.save(tmp_path / "vae", "wan")
    folder = network_manifest(tmp_path / "set", network)
    (folder / records.AUTOENCODER_FILE).unlink()
    model_encoders.copy(folder, tmp_path / "copied")
    assert [path.name for path in (tmp_path / "copied").iterdir()] == [records.MANIFEST]
    manifest = records.read_manifest(tmp_path / "copied")
    assert model_encoders.find_problem(tmp_path / "copied", manifest) == ""
    assert model_encoders.open_set(tmp_path / "copied").autoencoder.family == "wan"

    network.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"the autoencoder of .*copied came from .*, which is absent: give --aut"):
        model_encoders.open_set(tmp_path / "copied")
    given = EncoderOverrides(autoencoder=str(tmp_path / "moved"))
    assert model_encoders.open_set(tmp_path / "copied", given=given).autoencoder.family == "wan"
    other = tiny_autoencoders.save(tmp_path / "other", "wan", seed=1)
    with pytest.raises(UserError, match=r"--autoencoder .*other has hash '.*', expected '.*': give the one"):
        model_encoders.open_set(tmp_path / "copied", given=EncoderOverrides(autoencoder=str(other)))
    with pytest.raises(UserError, match=r"--autoencoder .*set.* has family 'linear', expected 'wan'"):
        model_encoders.open_set(
            tmp_path / "copied", given=EncoderOverrides(autoencoder=str(write_manifest(tmp_path / "set2")))
        )


QWEN = {"kind": "qwen2.5-vl", "family": "qwen2.5-vl", "dim": 5, "hash": "abc"}


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"text_encoder": {"family": "qwen2.5-vl", "dim": 5}},
            r"does not record the source of its text encoder .*--text-encoder q",
        ),
        ({"text_encoder": QWEN | {"source": "/absent/qwen"}}, r"text encoder of .* came from /absent/qwen, which is"),
        (
            {"vision_encoder": {"family": "siglip", "tokens": 3, "dim": 4}},
            "of its image encoder .*--image-encoder",
        ),
        (
            {"glyph_encoder": {"family": "byt5-glyph", "dim": 4}},
            "source of its glyph encoder .*--glyph-encoder byt5-glyph:",
        ),
        (
            {"autoencoder": {"family": "hunyuan15", "normalised": True}},
            "of its autoencoder .*give --autoencoder",
        ),
    ],
)
def test_absent_encoders_are_named_with_their_option(tmp_path, changes, message):
    folder = write_manifest(tmp_path / "set", **changes)
    with pytest.raises(UserError, match=message):
        model_encoders.open_set(folder)
    assert model_encoders.find_problem(folder, records.read_manifest(folder))


def test_given_encoders_must_be_those_of_the_model(tmp_path):
    folder = write_manifest(tmp_path / "set")
    with pytest.raises(UserError, match="--text-encoder hashed-words:6 has dim 6, expected 5"):
        model_encoders.open_set(folder, given=EncoderOverrides(text_encoder="hashed-words:6"))
    with pytest.raises(UserError, match=r"--image-encoder is none, .* encoder of width 12: .* or leave the option out"):
        model_encoders.open_set(folder, given=EncoderOverrides(image_encoder="none"))
    with pytest.raises(UserError, match="the model has no glyph encoder: leave the option out"):
        model_encoders.open_set(folder, given=EncoderOverrides(glyph_encoder="byt5-glyph:x"))
    with pytest.raises(UserError, match="no image encoder 'clip', choose one of siglip"):
        model_encoders.open_set(folder, given=EncoderOverrides(image_encoder="clip:x"))
    (folder / records.AUTOENCODER_FILE).unlink()
    with pytest.raises(UserError, match=r"autoencoder\.safetensors is absent: restore it, or give --autoencoder"):
        model_encoders.open_set(folder)
    fit(1).save(folder / records.AUTOENCODER_FILE)
    with pytest.raises(UserError, match=r"the autoencoder of .* has hash"):
        model_encoders.open_set(folder)


def test_states_in_a_file_replace_their_encoder(tmp_path):
    import safetensors.numpy

    path = tmp_path / "states.safetensors"
    metadata = {"family": "hashed-words", "prompts": json.dumps(["", "a"])}
    states = {f"text_states.{i}": np.full((1, 5), i, np.float32) for i in range(2)}
    safetensors.numpy.save_file(states, path, metadata=metadata)
    opened = model_encoders.open_set(
        write_manifest(tmp_path / "set"), given=EncoderOverrides(text_encoder=f"stored:{path}")
    )
    np.testing.assert_array_equal(opened.prompt("a")["text_states"], states["text_states.1"])
    with pytest.raises(UserError, match="no states for prompt 'b'"):
        opened.prompt("b")


def test_a_model_without_a_data_set(tmp_path):
    network = tiny_autoencoders.save(tmp_path / "vae", "wan")
    given = {"autoencoder": str(network), "text_encoder": "hashed-words:5", "image_encoder": "thumbnail"}
    opened = model_encoders.open_given(EncoderOverrides(**given), EXPECTED, fps=24.0)
    assert (opened.image_size, opened.fps, opened.fit.mode) == ((16, 12), 24.0, "crop")
    assert opened.glyph is None
    for changes, expected, message in (
        ({"autoencoder": None, "image_encoder": None}, {}, "give --autoencoder PATH, --image-encoder SPEC"),
        ({}, {"glyph_encoder.dim": 4}, "give --glyph-encoder SPEC"),
        ({"glyph_encoder": "none:4"}, {}, "the model has no glyph encoder"),
        ({}, {"latent_shape": [3, 4, 32]}, r"--autoencoder .* has channels 16, expected 32"),
        ({"text_encoder": "hashed-words:6"}, {}, "--text-encoder hashed-words:6 has dim 6, expected 5"),
        ({}, {"vision_encoder.tokens": 3}, "--image-encoder thumbnail has tokens 12, expected 3"),
        # Before the autoencoder, which may be large, is opened.
        ({"text_encoder": "none", "autoencoder": "nowhere"}, {}, "--text-encoder is none, .* or give none:5 to"),
        ({"image_encoder": "none:"}, {}, "the model reads the states of an image encoder of width 12"),
        ({"glyph_encoder": "none:0"}, {"glyph_encoder.dim": 4}, "--glyph-encoder is none:0, but .* width 4"),
    ):
        with pytest.raises(UserError, match=message):
            model_encoders.open_given(EncoderOverrides(**{**given, **changes}), EXPECTED | expected, fps=24.0)
    glyphs = model_encoders.open_given(
        EncoderOverrides(**given, glyph_encoder="none:4"), EXPECTED | {"glyph_encoder.dim": 4}, fps=24.0
    )
    assert glyphs.prompt('a "sign"')["glyph_states"].shape == (0, 4)


def test_options_of_a_command():
    parser = argparse.ArgumentParser()
    choices.add_arguments(parser, defaults=dict.fromkeys(choices.FLAGS, "something"))
    arguments = parser.parse_args(["--text-encoder=qwen2.5-vl:x", "--autoencoder=y", "--encoder-dtype=float32"])
    given = EncoderOverrides.from_arguments(arguments)
    assert (given.text_encoder, given.autoencoder, given.image_encoder) == ("qwen2.5-vl:x", "y", None)
    assert given.options.dtype == "float32"
    for flag in choices.FLAGS:
        assert flag in parser.format_help()
