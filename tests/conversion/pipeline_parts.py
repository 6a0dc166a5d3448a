"""Folders of published pipelines without their network, with tiny random models in the files of other programs."""

import json
import pathlib
import shutil
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tiny_encoders
import torch
import transformers
from flax import nnx
from guides import downloads

from conversion import __main__ as conversion
from jworld.models.autoencoders import cogvideox, files, hunyuan15, wan

_SIZES = {"vocab_size": 400, "d_model": 12, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
AUTOENCODERS: dict[str, Any] = {
    "cogvideox": cogvideox.CogVideoXConfig(widths=(8, 8, 8, 8), groups=4, dtype=jnp.float32),
    "cosmos": wan.WanConfig(channels=8, blocks=1, dtype=jnp.float32),
    "worldplay": hunyuan15.Hunyuan15Config(widths=(8, 8, 8, 8, 64), dtype=jnp.float32),
}


def autoencoder(family: str, folder: pathlib.Path, *options: str) -> pathlib.Path:
    """Export a random autoencoder of a system's family."""
    config = AUTOENCODERS[family]
    kind = next(network for network, settings in files.NETWORKS.values() if isinstance(config, settings))
    model = kind(config, rngs=nnx.Rngs(0))
    noise = np.random.default_rng(0)
    graphdef, state = nnx.split(model)
    state = jax.tree.map(lambda x: jnp.asarray(x + 0.05 * noise.standard_normal(x.shape), x.dtype), state)
    folder.parent.mkdir(parents=True, exist_ok=True)
    own = folder.parent / f"{folder.name}.safetensors"
    files.save(nnx.merge(graphdef, state), own)
    conversion.main(["export", str(own), "--output", str(folder), *options])
    own.unlink()
    return folder


def _text_encoder(folder: pathlib.Path) -> None:
    torch.manual_seed(0)
    transformers.T5EncoderModel(transformers.T5Config(**_SIZES)).save_pretrained(folder)


def _write(path: pathlib.Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def cogvideox_folder(folder: pathlib.Path, **scheduler: Any) -> pathlib.Path:
    """CogVideoX-2B as diffusers publishes it."""
    autoencoder("cogvideox", folder / "vae")
    _text_encoder(folder / "text_encoder")
    downloads._sentence_pieces(folder / "tokenizer")
    diffusers.CogVideoXDDIMScheduler(snr_shift_scale=3.0, **scheduler).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "CogVideoXPipeline",
        "_diffusers_version": "0.30.0",
        "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }
    _write(folder / "model_index.json", index)
    return folder


def cosmos_folder(folder: pathlib.Path) -> pathlib.Path:
    """The parts of Cosmos-Predict2-2B-Video2World that diffusers reads, without model_index.json."""
    autoencoder("cosmos", folder / "vae", "--layout", "diffusers")
    _text_encoder(folder / "text_encoder")
    downloads._sentence_pieces(folder / "tokenizer")
    return folder


def hunyuan_folder(folder: pathlib.Path) -> pathlib.Path:
    """HunyuanVideo-1.5 as diffusers publishes it."""
    autoencoder("worldplay", folder / "vae", "--layout", "diffusers")
    tiny_encoders.save(folder / "tiny")
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(folder / "tiny" / "qwen", folder / name)
    for name in ("image_encoder", "feature_extractor"):
        (folder / "tiny" / "siglip" / name).rename(folder / name)
    shutil.rmtree(folder / "tiny")
    _text_encoder(folder / "text_encoder_2")
    transformers.ByT5Tokenizer().save_pretrained(folder / "tokenizer_2")
    diffusers.FlowMatchEulerDiscreteScheduler(shift=9.0).save_pretrained(folder / "scheduler")
    diffusers.ClassifierFreeGuidance(guidance_scale=6.0).save_pretrained(folder / "guider")
    index = {
        "_class_name": "HunyuanVideo15ImageToVideoPipeline",
        "feature_extractor": ["transformers", "SiglipImageProcessor"],
        "guider": ["diffusers", "ClassifierFreeGuidance"],
        "image_encoder": ["transformers", "SiglipVisionModel"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "tokenizer_2": ["transformers", "ByT5Tokenizer"],
        "transformer": ["diffusers", "HunyuanVideo15Transformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLHunyuanVideo15"],
    }
    _write(folder / "model_index.json", index)
    return folder


def hunyuan_original_folder(folder: pathlib.Path) -> pathlib.Path:
    """HunyuanVideo-1.5 as its own program reads it."""
    autoencoder("worldplay", folder / "vae", "--layout", "original")
    _write(folder / "scheduler" / "scheduler_config.json", {"_class_name": "FlowMatchDiscreteScheduler", "shift": 7.0})
    _write(folder / "text_encoder" / "llm" / "config.json", {})
    for name in ("480p_i2v", "720p_t2v"):
        (folder / "transformer" / name).mkdir(parents=True)
        safetensors.numpy.save_file({"x": np.zeros(1)}, folder / "transformer" / name / "weights.safetensors")
    return folder
