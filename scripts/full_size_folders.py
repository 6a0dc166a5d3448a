"""Folders in published layouts with random weights, made and loaded with the classes of diffusers and transformers.

    python scripts/full_size_folders.py make cogvideox full FOLDER
    python scripts/full_size_folders.py load cogvideox FOLDER

A network without a class in these programs has a list of keys with their shapes, such as `full_size_keys.worldplay`.
`scripts/full_size.py` runs it in an environment with these programs, which needs no part of jworld.
"""

import dataclasses
import json
import math
import pathlib
import struct
import sys
from typing import Any

import full_size_keys
import torch

#: Random values, which the tensors take from different places.
_VALUES = 1 << 22
_DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


@dataclasses.dataclass(frozen=True)
class Model:
    """A published network, or a small autoencoder for its latents.

    Attributes:
      library: diffusers or transformers; "original" for a network that only its own program has.
      kind: name of the class, or of the list in `full_size_keys`.
      dtype: dtype of the published weights.
      full: arguments of the class for the published size, where they differ from its own; for "original" config.json.
      tiny: arguments for a size that runs in seconds; for "original" they replace those of `full`.
    """

    library: str
    kind: str
    dtype: torch.dtype
    full: dict[str, Any]
    tiny: dict[str, Any]

    @property
    def weights_name(self) -> str:
        return "model.safetensors" if self.library == "transformers" else "diffusion_pytorch_model.safetensors"


_COSMOS = {
    "in_channels": 17,
    "num_attention_heads": 16,
    "rope_scale": (1.0, 3.0, 3.0),
    "extra_pos_embed_type": None,
}
#: Prefixes of names in transformers' class, and in the published files of Gemma-3.
_GEMMA_NAMES = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}
_GEMMA_VISION = {"image_size": 896, "patch_size": 14, "vision_use_head": False}
MODELS = {
    "cogvideox": Model(
        "diffusers",
        "CogVideoXTransformer3DModel",
        torch.float16,
        {},
        {"num_attention_heads": 2, "attention_head_dim": 16, "text_embed_dim": 32, "num_layers": 2},
    ),
    "cosmos": Model(
        "diffusers",
        "CosmosTransformer3DModel",
        torch.bfloat16,
        _COSMOS,
        _COSMOS
        | {
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "num_layers": 2,
            "adaln_lora_dim": 8,
            "text_embed_dim": 32,
        },
    ),
    "gemma": Model(
        "transformers",
        "Gemma3ForConditionalGeneration",
        torch.bfloat16,
        {
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "sliding_window": 1024,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            },
            "vision_config": _GEMMA_VISION
            | {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27},
        },
        {
            "mm_tokens_per_image": 4,
            "text_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 6,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 16,
                "sliding_window": 1024,
                "vocab_size": 8192,
            },
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_attention_heads": 2,
                "num_hidden_layers": 2,
                "image_size": 56,
                "patch_size": 14,
                "vision_use_head": False,
            },
        },
    ),
    "hunyuan15": Model(
        "diffusers",
        "HunyuanVideo15Transformer3DModel",
        torch.bfloat16,
        {},
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 2,
            "num_refiner_layers": 2,
            "text_embed_dim": 32,
            "text_embed_2_dim": 1472,
            "image_embed_dim": 24,
            "rope_axes_dim": (4, 6, 6),
        },
    ),
    "hunyuan15-vae": Model(
        "diffusers",
        "AutoencoderKLHunyuanVideo15",
        torch.float16,
        {},
        {"block_out_channels": (32, 32, 64, 64, 64), "layers_per_block": 1},
    ),
    "worldplay": Model(
        "original",
        "worldplay",
        torch.bfloat16,
        full_size_keys.WORLDPLAY,
        {
            "hidden_size": 64,
            "heads_num": 2,
            "mm_double_blocks_depth": 2,
            "rope_dim_list": [8, 12, 12],
            "text_states_dim": 32,
            "vision_states_dim": 24,
        },
    ),
    # Autoencoders for latents of the published kind, small in both scales.
    "small-hunyuan15-vae": Model(
        "diffusers",
        "AutoencoderKLHunyuanVideo15",
        torch.float32,
        {"block_out_channels": (32, 32, 64, 64, 64), "layers_per_block": 1},
        {},
    ),
    "small-wan-vae": Model(
        "diffusers",
        "AutoencoderKLWan",
        torch.float32,
        {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
        {},
    ),
    "small-cogvideox-vae": Model(
        "diffusers",
        "AutoencoderKLCogVideoX",
        torch.float32,
        {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1},
        {},
    ),
}


def make(name: str, scale: str, folder: pathlib.Path) -> None:
    """Write config.json and random weights; no tensor but the one that is written is in memory."""
    model = MODELS[name]
    folder.mkdir(parents=True)
    shapes = _listed(model, scale, folder) if model.library == "original" else _built(model, scale, folder)
    _write(folder / model.weights_name, shapes, model.dtype)
    print(f"{sum(map(math.prod, shapes.values())):,} parameters in {len(shapes):,} tensors")


def _listed(model: Model, scale: str, folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Write config.json; return the shapes of a list of keys."""
    config = model.full | (model.tiny if scale == "tiny" else {})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return full_size_keys.LISTS[model.kind](config)


def _built(model: Model, scale: str, folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Write config.json; return the shapes of an instance of the class."""
    arguments = model.tiny if scale == "tiny" and model.tiny else model.full
    with torch.device("meta"):
        if model.library == "transformers":
            import transformers

            config = transformers.Gemma3Config(**arguments)
            network = getattr(transformers, model.kind)(config)
            config.architectures, config.dtype = [model.kind], model.dtype
            config.save_pretrained(folder)
        else:
            import diffusers

            network = getattr(diffusers, model.kind)(**arguments)
            network.save_config(folder)
    tied = getattr(network, "_tied_weights_keys", None) or ()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items() if key not in tied}
    return {_published(key): shape for key, shape in shapes.items()} if model.library == "transformers" else shapes


def _published(key: str) -> str:
    """Return the published name of a tensor of Gemma-3."""
    for prefix, other in _GEMMA_NAMES.items():
        if key.startswith(prefix):
            # Version 4 has the second part of the vision tower's prefix in its class, too.
            return other + key.removeprefix(prefix).removeprefix("vision_model.")
    return key


def _write(path: pathlib.Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2 * _VALUES, generator=generator)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for number, (name, shape) in enumerate(shapes.items()):
            # Norms stay near 1, so that the network's outputs are finite.
            mean = 1.0 if len(shape) == 1 and "norm" in name and name.endswith("weight") else 0.0
            count, offset = math.prod(shape), 997 * number % _VALUES
            drawn = (mean + 0.02 * values[offset : offset + min(count, _VALUES)]).to(dtype).view(torch.uint8).numpy()
            for start in range(0, count * dtype.itemsize, drawn.nbytes):
                file.write(drawn[: count * dtype.itemsize - start].data)


def load(name: str, folder: pathlib.Path) -> None:
    """Load a folder with the other program's class; raise `SystemExit` if it lacks a tensor or has another one."""
    import importlib

    model = MODELS[name]
    if model.library == "original":
        _load_listed(model, folder)
        return
    kind = getattr(importlib.import_module(model.library), model.kind)
    dtype = {"dtype" if model.library == "transformers" else "torch_dtype": model.dtype}
    network, report = kind.from_pretrained(folder, output_loading_info=True, **dtype)
    problems = {key: sorted(value) for key, value in report.items() if value}
    if problems:
        raise SystemExit(f"{folder}: {model.kind} reports {problems}")
    print(f"{model.kind} loads {sum(value.numel() for value in network.parameters()):,} parameters")


def _load_listed(model: Model, folder: pathlib.Path) -> None:
    """Read the one file that the original program reads, and compare it with the list of keys of its config.json."""
    import safetensors

    expected = full_size_keys.LISTS[model.kind](json.loads((folder / "config.json").read_text()))
    with safetensors.safe_open(folder / model.weights_name, framework="pt") as file:
        found = {}
        for key in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(key)
            found[key] = tuple(tensor.shape)
            if tensor.dtype != model.dtype:
                raise SystemExit(f"{folder}: {key} is {tensor.dtype}, expected {model.dtype}")
    if problems := sorted(dict(found.items() ^ expected.items())):
        raise SystemExit(f"{folder}: missing, unexpected or misshapen: {', '.join(problems[:5])}")
    print(f"all {len(found):,} tensors are those of the list, {sum(map(math.prod, found.values())):,} parameters")


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "make":
        make(arguments[0], arguments[1], pathlib.Path(arguments[2]))
    else:
        load(arguments[0], pathlib.Path(arguments[1]))
