"""Small downloads of every system, and adapters (LoRA) made for them with peft, for tests of the conversion."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import converted
import golden_cases
import numpy as np
import peft
import safetensors.numpy
import torch
import torch_models

from conversion import cosmos, sources
from conversion.cogvideox import ADAPTER_PREFIX

GOLDEN = golden_cases.DEFAULT_ROOT


@dataclasses.dataclass(frozen=True)
class Download:
    """Checkpoint as downloaded.

    Attributes:
      weights: its tensors, with their names in the file.
      config: its config.json.
      prefix: beginning of the names in the file that the other program's own names do not have.
      targets: regular expression of the layers to adapt, as the other program names them.
      file: name of the weights.
    """

    weights: Mapping[str, np.ndarray]
    config: Mapping[str, Any]
    targets: str
    prefix: str = ""
    file: str = sources.WEIGHTS_NAME

    def write(self, folder: pathlib.Path) -> pathlib.Path:
        folder.mkdir(parents=True)
        safetensors.numpy.save_file(dict(self.weights), folder / self.file)
        (folder / "config.json").write_text(json.dumps(dict(self.config)))
        return folder

    def module(self) -> torch.nn.Module:
        """Return the other program's network, with its own names."""
        return torch_models.from_tensors({name.removeprefix(self.prefix): x for name, x in self.weights.items()})


def _case(name: str) -> golden_cases.GoldenCase:
    return golden_cases.GoldenCase(GOLDEN / name)


def matrix() -> Download:
    golden = _case("matrix/s1_lora")
    weights = {name: value for name, value in golden.weights.items() if not name.startswith(ADAPTER_PREFIX)}
    return Download(weights, golden.config["model"], r"transformer_blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)")


def matrix_control() -> Download:
    golden = _case("matrix/s2_transformer_forward")
    targets = r"(transformer_blocks\.\d+|control_blocks\.\d+)\.attn1\.(to_q|to_v)|control_embedding\.2|proj_out"
    return Download(golden.weights, golden.config["model"], targets)


def cosmos_original() -> Download:
    golden = _case("cosmos/diffusers_parity")
    weights = {f"net.{name}": x for name, x in golden.weights.items() if not cosmos.IGNORED.fullmatch(name)}
    targets = r"blocks\.\d+\.(self_attn|cross_attn)\.(q_proj|output_proj)|blocks\.\d+\.mlp\.layer[12]"
    return Download(weights, golden.config["model_kwargs"], targets, prefix="net.")


def cosmos_diffusers() -> Download:
    golden = _case("cosmos/diffusers_parity")
    targets = r"transformer_blocks\.\d+\.(attn[12]\.(to_q|to_out\.0)|ff\.net\.0\.proj)|norm_out\.linear_2"
    return Download(golden.diffusers_weights, golden.config["diffusers_config"], targets)


def worldplay() -> Download:
    golden = converted.case("transformer_ar_train")
    targets = (
        r"double_blocks\.\d+\.(img|txt)_(attn_q|attn_proj|mlp\.fc1)|double_blocks\.\d+\.img_attn_prope_proj"
        r"|txt_in\.individual_token_refiner\.blocks\.\d+\.self_attn_qkv|final_layer\.linear"
    )
    return Download(golden.weights, golden.config["constructor"], targets)


def hunyuan_diffusers() -> Download:
    golden = converted.case("hunyuan_diffusers")
    targets = (
        r"transformer_blocks\.\d+\.attn\.(to_q|add_k_proj)|norm_out\.linear"
        r"|context_embedder\.token_refiner\.refiner_blocks\.\d+\.attn\.to_[qv]"
    )
    return Download(golden.weights, golden.config["transformer_config"], targets)


def gemma() -> Download:
    golden = _case("theworld/gemma3_text")
    targets = r".*\.(self_attn\.(q_proj|o_proj|out_proj)|mlp\.(gate_proj|down_proj|fc1))"
    return Download(golden.weights, golden.config, targets, file="model.safetensors")


DOWNLOADS: dict[str, Callable[[], Download]] = {
    "matrix": matrix,
    "matrix_control": matrix_control,
    "cosmos_original": cosmos_original,
    "cosmos_diffusers": cosmos_diffusers,
    "worldplay": worldplay,
    "hunyuan_diffusers": hunyuan_diffusers,
    "gemma": gemma,
}


def adapters(module: torch.nn.Module, folder: pathlib.Path, config: peft.LoraConfig) -> pathlib.Path:
    """Write adapters with random matrices for a module, with peft."""
    generator = torch.Generator().manual_seed(1)
    model = peft.get_peft_model(module, config)
    for name, value in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            value.data = 0.1 * torch.randn(value.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def merged(module: torch.nn.Module, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the weights of a module after peft has loaded adapters and merged them."""
    model = peft.PeftModel.from_pretrained(module, folder).merge_and_unload()
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}
