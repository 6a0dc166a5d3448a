"""Published files in, our own files out and in again."""

import json
import pathlib
import shutil
from typing import Any

import golden_cases
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from conversion import autoencoders
from jworld.errors import UserError
from jworld.models.autoencoders import files, linear, wan

GOLDEN = pathlib.Path(golden_cases.__file__).parent / "golden"


def published(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    """A folder as diffusers' users download it, with a changed config.json."""
    case = golden_cases.GoldenCase(GOLDEN / "vae" / "wan_diffusers_keys")
    shutil.copyfile(case.path / "weights.safetensors", folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(case.config["constructor"] | changes))
    return folder


def test_published_folder_to_our_file_and_back(tmp_path: pathlib.Path) -> None:
    model = autoencoders.load(published(tmp_path), dtype=jnp.float32)
    assert isinstance(model.config, wan.WanConfig)
    assert model.config.latent_channels == 4
    np.testing.assert_allclose(model.config.normalisation.shift, [-0.7571, -0.7089, -0.9113, 0.1075])
    path = tmp_path / "autoencoder.safetensors"
    files.save(model, path)
    again = files.load(path, chunk=None)
    assert again.config.chunk is None
    assert again.config.dtype == jnp.float32
    assert again.hash() == model.hash()
    layout = autoencoders.LAYOUTS[1]
    original = safetensors.numpy.load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    exported = autoencoders.export(again, layout)
    assert exported.keys() == original.keys()
    assert all(np.array_equal(exported[name], original[name]) for name in original)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_dim": 16}, "tensors do not fit"),
        ({"decoder_base_dim": 16}, "decoder_base_dim is 16, which contradicts channels 8"),
        ({"is_residual": True}, "is_residual is True, this network exists here only with False"),
        ({"dim_mult": 4}, "dim_mult is 4"),
        ({"temperal_downsample": [1, 0]}, r"temperal_downsample is \[1, 0\]"),
        ({"latents_std": None}, "only one of latents_mean and latents_std"),
        ({"latents_std": ["1"]}, r"latents_std is \['1'\]"),
    ],
)
def test_config_json_that_does_not_fit(tmp_path: pathlib.Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        autoencoders.load(published(tmp_path, **changes))


def test_other_weights_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"encoder.weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match="not one known autoencoder"):
        autoencoders.load(path)


def test_the_linear_codec_is_a_file_of_the_same_kind(tmp_path: pathlib.Path) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    codec = linear.fit([clip], linear.LinearConfig(channels=2), seed=0)
    codec.save(tmp_path / "codec.safetensors")
    assert files.load(tmp_path / "codec.safetensors").hash() == codec.hash()


def test_damaged_files(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "autoencoder.safetensors"
    with pytest.raises(UserError, match="does not exist"):
        files.load(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="not a saved autoencoder"):
        files.load(path)
    header = {"family": "wan", "normalisation": {"shift": [0.0], "scale": [1.0]}}
    header |= {"dtype": "float32", "param_dtype": "float32"}
    for fields, message in ((header, "other tensors than its config says"), (header | {"family": "x"}, "not a saved")):
        safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, path, metadata={"autoencoder": json.dumps(fields)})
        with pytest.raises(UserError, match=message):
            files.load(path)
