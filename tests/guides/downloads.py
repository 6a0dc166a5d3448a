"""Stand-ins of published checkpoints: random weights in the published folders, file names, keys and shards.

Every function writes below the current folder. Sizes are those of `shrink.RECIPES`: recipes and checkpoints agree.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import safetensors.numpy
import tiny_encoders
import torch
import transformers
from flax import nnx

from conversion import __main__ as conversion
from conversion import gemma3, sources
from guides import shrink, small
from jworld import systems
from jworld.cameras import driving
from jworld.models.autoencoders import cogvideox, files, hunyuan15, wan
from jworld.systems import runs
from jworld.training import weights
from jworld.utils import config as run_config

_WAN = wan.WanConfig(channels=8, dtype=jnp.float32)
_HUNYUAN = hunyuan15.Hunyuan15Config(widths=(8, 8, 8, 16, 64), dtype=jnp.float32)
_COGVIDEOX = cogvideox.CogVideoXConfig(widths=(8, 8, 8, 8), groups=4, dtype=jnp.float32)
_SCRATCH = pathlib.Path(".scratch")


def _random(abstract: Any, scale: float = 0.1) -> Any:
    noise = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> jax.Array:
        center = float("scale" in str(path[-2:]) and len(leaf.shape) < 3)
        return jnp.asarray(center + scale * noise.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract)


def released(config: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
    """Write the config and random weights of a recipe's network, as `scripts/release_weights.py` does."""
    with nnx.use_eager_sharding(False):
        abstract = nnx.state(nnx.eval_shape(lambda: systems.create(config).init(nnx.Rngs(0))), nnx.Param)
    folder.mkdir(parents=True)
    run_config.save(config, folder)
    weights.save(_random(abstract), folder / runs.WEIGHTS, np.float32)


def network(config: ml_collections.ConfigDict, output: str, *options: str) -> None:
    """Export random weights of a recipe's network with the original keys."""
    shutil.rmtree(_SCRATCH, ignore_errors=True)
    released(config, _SCRATCH)
    _export(_SCRATCH, output, *options)


def _export(source: pathlib.Path, output: str, *options: str) -> None:
    pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
    conversion.main(["export", str(source), "--output", output, *options])
    shutil.rmtree(_SCRATCH)


def autoencoder(config: Any, output: str, *options: str) -> None:
    """Export a random autoencoder with the original keys."""
    kind = next(network for network, settings in files.NETWORKS.values() if isinstance(config, settings))
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))))
    shutil.rmtree(_SCRATCH, ignore_errors=True)
    _SCRATCH.mkdir()
    files.save(nnx.merge(graphdef, _random(abstract)), _SCRATCH / "autoencoder.safetensors")
    _export(_SCRATCH, output, *options)


# WorldPlay


def worldplay() -> None:
    """tencent/HY-WorldPlay: the autoregressive action model."""
    network(small.recipe("ar_mem.py:8b"), "HY-WorldPlay/ar_model")


def hunyuan_autoencoder() -> None:
    """The autoencoder of tencent/HunyuanVideo-1.5."""
    autoencoder(_HUNYUAN, "HunyuanVideo-1.5/vae")


def worldplay_encoders() -> None:
    """Qwen2.5-VL, Glyph-SDXL-v2 and SigLIP, as downloaded for HunyuanVideo-1.5."""
    tiny_encoders.save(pathlib.Path("weights"))
    shutil.copytree("weights/glyph", "weights/text_encoder")


def imported_hunyuan_autoencoder() -> None:
    hunyuan_autoencoder()
    conversion.main(["import", "HunyuanVideo-1.5/vae", "--output", "weights/hunyuan15-vae"])


# Cosmos-Predict2


def cosmos() -> None:
    """nvidia/Cosmos-Predict2-2B-Video2World, with the tokenizer of Wan 2.1."""
    _cosmos("2b")


def cosmos_14b() -> None:
    """nvidia/Cosmos-Predict2-14B-Video2World."""
    _cosmos("14b")


def cosmos_multiview() -> None:
    """nvidia/Cosmos-Predict2-2B-Multiview."""
    folder = pathlib.Path("checkpoints/nvidia/Cosmos-Predict2-2B-Multiview")
    path = folder / "model-720p-10fps-7views-29frames.pt"
    network(small.recipe("cosmos_video2world.py:2b_multiview"), str(path), "--dtype", "bfloat16")
    (folder / "config.json").unlink()


def _cosmos(variant: str) -> None:
    folder = f"checkpoints/nvidia/Cosmos-Predict2-{variant.upper()}-Video2World"
    network(small.recipe(f"cosmos_video2world.py:{variant}"), f"{folder}/model-720p-16fps.pt", "--dtype", "bfloat16")
    pathlib.Path(folder, "config.json").unlink()
    autoencoder(_WAN, f"{folder}/tokenizer/tokenizer.pth", "--layout", "original")
    pathlib.Path(folder, "tokenizer", "config.json").unlink(missing_ok=True)


def imported_cosmos() -> None:
    cosmos()
    source, output = "checkpoints/nvidia/Cosmos-Predict2-2B-Video2World", "checkpoints/cosmos-predict2-2b"
    conversion.main(["import", f"{source}/model-720p-16fps.pt", "--output", output, *shrink.IMPORTS[output]])


def wan() -> None:
    """Wan2.1_VAE.pth of Wan-AI/Wan2.1-T2V-1.3B, which has no config of its own."""
    autoencoder(_WAN, "Wan2.1_VAE.pth", "--layout", "original")
    pathlib.Path("config.json").unlink(missing_ok=True)


def imported_wan() -> None:
    wan()
    conversion.main(["import", "Wan2.1_VAE.pth", "--output", "weights/wan"])


def cosmos_diffusers_autoencoder() -> None:
    """The autoencoder in the diffusers folder of nvidia/Cosmos-Predict2-2B-Video2World."""
    autoencoder(_WAN, "Cosmos-Predict2-2B-Video2World/vae", "--layout", "diffusers")


def cosmos_training_checkpoint() -> None:
    """A checkpoint as cosmos-predict2 writes it, with weights and their EMA: docs/convert.md."""
    _cosmos_tree(pathlib.Path("checkpoints/PROJECT/GROUP/NAME/checkpoints"))


def cosmos_posttrained() -> None:
    """The same where its post-training guide has it: docs/cosmos.md."""
    _cosmos_tree(pathlib.Path("checkpoints/posttraining/video2world/NAME/checkpoints"))


def _cosmos_tree(folder: pathlib.Path) -> None:
    name = "iter_000001000.pt"
    exported = _SCRATCH.with_name(".exported") / name
    network(small.recipe("cosmos_video2world.py:2b"), str(exported), "--dtype", "bfloat16")
    weights_ = torch.load(exported, weights_only=True)
    counters = ("video_sample_counter", "image_sample_counter", "iteration", "train_in_hours")
    ema = {f"net_ema.{key.removeprefix('net.')}": value for key, value in weights_.items()}
    counts = {f"net.accum_{key}": torch.tensor(1000) for key in counters}
    for part, state in {"model": weights_ | ema | counts, "optim": {}, "scheduler": {}, "trainer": {}}.items():
        (folder / part).mkdir(parents=True)
        torch.save(state, folder / part / name)
    (folder / "latest_checkpoint.txt").write_text(name)
    shutil.rmtree(exported.parent)


def t5() -> None:
    """google-t5/t5-11b: the whole model with its decoder, and its tokenizer."""
    folder = pathlib.Path("google-t5/t5-11b")
    _sentence_pieces(folder)
    _t5_model(transformers.T5ForConditionalGeneration).save_pretrained(folder)


def _t5_model(kind: type[Any]) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 160, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 3}
    return kind(transformers.T5Config(**sizes, feed_forward_proj="gated-gelu"))


def _sentence_pieces(folder: pathlib.Path) -> None:
    import sentencepiece

    folder.mkdir(parents=True)
    corpus = ["a quiet room with a red door", "turn left and walk to the window", "the fox jumps over the dog"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        num_threads=1,
    )
    (folder / "spiece.vocab").unlink()
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, **special})


def _write(path: pathlib.Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


# The Matrix


def cogvideox_2b() -> None:
    """THUDM/CogVideoX-2b: the pipeline's folder of diffusers."""
    folder = pathlib.Path("models/CogVideoX-2b")
    config = small.recipe("matrix_lora.py:2b").copy_and_resolve_references()
    with config.unlocked():
        del config.model["lora"]
        config.optimizer.trainable = ".*"
    network(config.lock(), str(folder / "transformer"), "--dtype", "float16")
    _pipeline(folder)


def matrix_stage_2() -> None:
    """The published folder of stage 2."""
    network(small.recipe("matrix_control.py:2b"), "models/stage2/transformer", "--dtype", "bfloat16")
    _pipeline(pathlib.Path("models/stage2"))


def _pipeline(folder: pathlib.Path) -> None:
    autoencoder(_COGVIDEOX, str(folder / "vae"))
    _sentence_pieces(folder / "tokenizer")
    _t5_model(transformers.T5EncoderModel).save_pretrained(folder / "text_encoder", max_shard_size="20KB")
    parts = {
        "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }
    _write(folder / "model_index.json", {"_class_name": "CogVideoXPipeline", "_diffusers_version": "0.30.0", **parts})
    _write(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "CogVideoXDDIMScheduler",
            "_diffusers_version": "0.30.0",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": False,
            "num_train_timesteps": 1000,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "set_alpha_to_one": True,
            "snr_shift_scale": 3.0,
            "steps_offset": 0,
            "timestep_spacing": "trailing",
        },
    )


def matrix_adapters() -> None:
    """Adapters of stage 1 as The Matrix saves them: rank 4 on the attention of all layers."""
    noise, width, tensors = np.random.default_rng(0), 48, {}
    for layer in range(2):
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            stem = f"transformer.transformer_blocks.{layer}.attn1.{name}"
            for part, shape in (("A", (4, width)), ("B", (width, 4))):
                tensors[f"{stem}.lora_{part}.weight"] = 0.1 * noise.standard_normal(shape).astype(np.float32)
    safetensors.numpy.save_file(tensors, "pytorch_lora_weights.safetensors", metadata={"format": "pt"})


def clip() -> None:
    """openai/clip-vit-large-patch14, with letters as tokens."""
    folder = pathlib.Path("openai/clip-vit-large-patch14")
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    letters = sorted({letter for sentence in driving.SENTENCES.values() for letter in sentence.lower()} - {" "})
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    _write(folder / "vocab.json", {word: number for number, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files_ = str(folder / "vocab.json"), str(folder / "merges.txt")
    transformers.CLIPTokenizer(*files_, pad_token="<|endoftext|>").save_pretrained(folder)
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | ends | {"vocab_size": len(words), "max_position_embeddings": 77, "projection_dim": 12}
    vision = sizes | {"image_size": 8, "patch_size": 4}
    transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    ).save_pretrained(folder)


def trained_runs() -> None:
    """Runs of Cosmos-Predict2 and of stage 2, which docs/convert.md exports."""
    released(small.recipe("cosmos_video2world.py:2b"), pathlib.Path("runs/mine"))
    released(small.recipe("matrix_control.py:2b"), pathlib.Path("runs/matrix_control-2b"))


# TheWorld


def gemma() -> None:
    """google/gemma-3-4b-it in two shards with the tokenizer of this project, and two rows that no token uses."""
    model = small.recipe("theworld.py:projection").model
    folder = pathlib.Path("gemma-3-4b-it")
    folder.mkdir()
    torch.manual_seed(0)
    text = {
        "vocab_size": model.vocabulary + 2,
        "hidden_size": model.width,
        "intermediate_size": model.mlp_width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_key_heads,
        "head_dim": model.head_dim,
        "query_pre_attn_scalar": int(model.query_scale),
        "sliding_window": 1024,
        "layer_types": [f"{kind}_attention" for kind in model.pattern],
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }
    vision = {
        "hidden_size": model.vision_width,
        "intermediate_size": model.vision_mlp_width,
        "num_hidden_layers": model.vision_layers,
        "num_attention_heads": model.vision_heads,
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "vision_use_head": False,
    }
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "image_token_index": model.image_token,
        "boi_token_index": 6,
        "eoi_token_index": 8,
        "mm_tokens_per_image": model.image_tokens,
        "text_config": {"model_type": "gemma3_text", **text},
        "vision_config": {"model_type": "siglip_vision_model", **vision},
        "torch_dtype": "bfloat16",
    }
    _write(folder / "config.json", config)
    class_ = transformers.Gemma3ForConditionalGeneration
    state = class_(transformers.Gemma3Config.from_dict(json.loads((folder / "config.json").read_text()))).state_dict()
    tensors = {gemma3.restyle(name, "hub"): value.numpy() for name, value in state.items() if name != "lm_head.weight"}
    _shards(folder, tensors)
    shutil.copytree("assets/tokenizer", folder, dirs_exist_ok=True)
    _write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Gemma3ImageProcessor",
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "image_seq_length": model.image_tokens,
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": model.image_size, "width": model.image_size},
            **{f"do_{step}": True for step in ("normalize", "rescale", "resize")},
        },
    )
    _write(
        folder / "processor_config.json", {"image_seq_length": model.image_tokens, "processor_class": "Gemma3Processor"}
    )


def _shards(folder: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    names, table = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        table |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    _write(folder / f"model{sources.INDEX_SUFFIX}", {"metadata": {"total_size": size}, "weight_map": table})


def theworld_checkpoint() -> None:
    """A checkpoint of TheWorld: only the projection, which was trained."""
    config = small.recipe("theworld.py:projection")
    width, channels = config.model.width, config.model.world.latent_channels
    hidden = pathlib.Path("theworld-checkpoint")
    hidden.mkdir()
    noise = np.random.default_rng(0)
    shapes = {"0.weight": (width, channels), "0.bias": (width,), "2.weight": (width, width), "2.bias": (width,)}
    tensors = {
        f"world_projector.projection.{name}": 0.1 * noise.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    safetensors.numpy.save_file(tensors, hidden / "model.safetensors", metadata={"format": "pt"})
    _write(
        hidden / "config.json",
        json.loads(pathlib.Path("gemma-3-4b-it/config.json").read_text())
        | {
            "model_type": "the_world",
            "gemma_model_name": "google/gemma-3-4b-it",
            "cosmos_model_name": "nvidia/Cosmos-Predict2-2B-Video2World",
            "enable_world": True,
            "world_projection_mode": "spatial",
            "projection_architecture": "mlp",
            "freeze_gemma_vision": True,
            "freeze_gemma_language": True,
            "freeze_cosmos_vae": True,
        },
    )
