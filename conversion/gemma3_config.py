"""Hyper-parameters of Gemma-3 in the config.json of transformers, versions 4 and 5."""

import copy
import math
from collections.abc import Mapping
from typing import Any

from conversion import hyperparameters, vae_keys
from conversion.engine import Shape
from conversion.gemma3 import Names
from conversion.hyperparameters import Field
from jworld.models.gemma3.config import Gemma3Config
from jworld.models.layers import stack
from jworld.utils import errors, pretrained

_TEXT = (
    Field("hidden_size", "width", hyperparameters.integer),
    Field("intermediate_size", "mlp_width", hyperparameters.integer),
    Field("num_hidden_layers", "num_layers", hyperparameters.integer),
    Field("num_attention_heads", "num_heads", hyperparameters.integer),
    Field("num_key_value_heads", "num_key_heads", hyperparameters.integer),
    Field("head_dim", "head_dim", hyperparameters.integer),
    Field("rms_norm_eps", "eps", hyperparameters.number),
    Field("sliding_window", "window", hyperparameters.integer),
    Field("query_pre_attn_scalar", "query_scale", hyperparameters.number),
)
_TEXT_FIXED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": False,
}
_VISION = (
    Field("hidden_size", "vision_width", hyperparameters.integer),
    Field("intermediate_size", "vision_mlp_width", hyperparameters.integer),
    Field("num_hidden_layers", "vision_layers", hyperparameters.integer),
    Field("num_attention_heads", "vision_heads", hyperparameters.integer),
    Field("image_size", "image_size", hyperparameters.integer),
    Field("patch_size", "patch_size", hyperparameters.integer),
    Field("layer_norm_eps", "vision_eps", hyperparameters.number),
)
_VISION_FIXED = {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3, "vision_use_head": False}
_WHOLE = (
    Field("mm_tokens_per_image", "image_tokens", hyperparameters.integer),
    Field("image_token_index", "image_token", hyperparameters.integer),
)
#: `model_type` of a config.json for text alone, whose keys are those of a `text_config`.
TEXT_TYPE = "gemma3_text"
_WHOLE_FIXED = {"tie_word_embeddings": True}
_KINDS = {"sliding_attention": "sliding", "full_attention": "full"}
#: Kind of layer in transformers -> our names of its rotary base and factor.
_ROPE = {
    "full_attention": ("rope_theta", "rope_factor"),
    "sliding_attention": ("local_rope_theta", "local_rope_factor"),
}


def from_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the hyper-parameters in a config.json, without the vocabulary: files may have more rows.

    transformers reads the file. It knows the keys of both versions and the values of keys that are left out. A section
    that the file does not have, text or vision, sets nothing. The config of a model for text alone has no sections.
    """
    if config.get("model_type") == TEXT_TYPE:
        config = {"text_config": dict(config)}
    sections = [name for name in ("text_config", "vision_config") if config.get(name)]
    if not sections:
        return {}
    whole = _read(config, where)
    facts = hyperparameters.read(whole, _WHOLE, _WHOLE_FIXED, where)
    if "vision_config" in sections:
        facts |= hyperparameters.read(whole["vision_config"], _VISION, _VISION_FIXED, where)
    if "text_config" in sections:
        _check_rotary(config, where)
        text = whole["text_config"]
        facts |= hyperparameters.read(text, _TEXT, _TEXT_FIXED, where) | _rotary(text, where) | _pattern(text, where)
    return facts


def _read(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the config with every key of version 5."""
    config = copy.deepcopy(dict(config))
    text = config.get("text_config")
    if isinstance(text, dict):
        # Version 5 refuses 256.0, which earlier exports have, and reads the older key "type" as no scaling at all.
        scale, scaling = text.get("query_pre_attn_scalar"), text.get("rope_scaling")
        if isinstance(scale, float):
            text["query_pre_attn_scalar"] = hyperparameters.whole(scale)
        if isinstance(scaling, dict) and "type" in scaling:
            scaling.setdefault("rope_type", scaling.pop("type"))
    try:
        with pretrained.quiet() as transformers:
            values: dict[str, Any] = transformers.Gemma3Config.from_dict(config).to_dict()
    except Exception as error:  # the library's own exceptions have no common class
        reason = pretrained.describe(error)
        raise errors.UserError(f"{where} is not a config of Gemma-3 ({reason}): download the file again") from error
    return values


def _check_rotary(config: Mapping[str, Any], where: str) -> None:
    """Raise a `UserError` for rotary settings that transformers would ignore silently."""
    text = config["text_config"]
    scaling, tables = text.get("rope_scaling"), text.get("rope_parameters")
    outside = [key for key in ("rope_scaling", "rope_theta", "rope_parameters") if config.get(key)]
    if outside:
        wrong = f"{outside[0]} is outside text_config, expected it there"
    elif isinstance(scaling, dict) and scaling and not {"type", "rope_type"} & scaling.keys():
        wrong = f"rope_scaling is {scaling!r}, expected one scaling with a rope_type such as 'linear'"
    elif isinstance(tables, dict) and tables and not _ROPE.keys() & tables.keys():
        wrong = f"rope_parameters has {', '.join(sorted(tables))}, expected {' and '.join(_ROPE)}"
    else:
        return
    raise errors.UserError(f"{where}: {wrong}: correct the file")


def _rotary(text: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the rotary settings of both kinds of layers."""
    values: dict[str, Any] = {}
    for theirs, (base, factor) in _ROPE.items():
        table = text["rope_parameters"][theirs]
        kind = table["rope_type"]
        if kind not in ("default", "linear"):
            raise errors.UserError(
                f"{where}: the rotary positions of {theirs} are scaled by {kind!r}, expected 'linear' or 'default'"
            )
        values[base] = float(table["rope_theta"])
        values[factor] = float(table["factor"]) if kind == "linear" else 1.0
    return values


def _pattern(text: Mapping[str, Any], where: str) -> dict[str, Any]:
    layers = text["layer_types"]
    if unknown := sorted(set(layers) - _KINDS.keys()):
        raise errors.UserError(f"{where}: layer_types has {', '.join(unknown)}, expected {' or '.join(_KINDS)}")
    kinds = tuple(_KINDS[layer] for layer in layers)
    return {"pattern": kinds[: stack.period(kinds)]}


def to_config(cfg: Gemma3Config) -> dict[str, Any]:
    """Return the config.json of exported weights, which both versions read; without a vision tower that of its text."""
    if cfg.local_rope_factor != 1:
        raise errors.UserError(
            f"config.model.local_rope_factor is {cfg.local_rope_factor}, expected 1: the config.json of this layout "
            "has no key for it"
        )
    text = _text_config(cfg)
    if not cfg.vision_layers:
        return {"architectures": ["Gemma3ForCausalLM"], **text}
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "mm_tokens_per_image": cfg.image_tokens,
        "image_token_index": cfg.image_token,
        "text_config": text,
        "vision_config": {
            "model_type": "siglip_vision_model",
            **hyperparameters.write(cfg, _VISION, _VISION_FIXED),
        },
    }


def _text_config(cfg: Gemma3Config) -> dict[str, Any]:
    theirs = {ours: name for name, ours in _KINDS.items()}
    scaling = {"factor": cfg.rope_factor, "rope_type": "linear"} if cfg.rope_factor != 1 else None
    return {
        "model_type": TEXT_TYPE,
        "vocab_size": cfg.vocabulary,
        **hyperparameters.write(cfg, _TEXT, _TEXT_FIXED),
        "query_pre_attn_scalar": hyperparameters.whole(cfg.query_scale),
        "rope_theta": cfg.rope_theta,
        "rope_local_base_freq": cfg.local_rope_theta,
        "rope_scaling": scaling,
        "layer_types": [theirs[kind] for kind in cfg.kinds],
    }


def from_shapes(shapes: Mapping[str, Shape], names: Names) -> dict[str, Any]:
    """Return the hyper-parameters that follow from the tensors' shapes."""

    def of(name: str) -> Shape:
        return shapes.get(name, ())

    layer = f"{names.text}layers.0."
    found: dict[str, Any] = {"num_layers": len(vae_keys.numbered(shapes, names.text + "layers."))}
    if rows := of(names.text + "embed_tokens.weight"):
        found |= {"vocabulary": rows[0], "width": rows[1]}
    if head := of(layer + "self_attn.q_norm.weight"):
        found["head_dim"] = head[0]
        for ours, theirs in (("num_heads", "q_proj"), ("num_key_heads", "k_proj")):
            if matrix := of(f"{layer}self_attn.{theirs}.weight"):
                found[ours] = matrix[0] // head[0]
    if mlp := of(layer + "mlp.gate_proj.weight"):
        found["mlp_width"] = mlp[0]
    if names.vision is None:
        return vae_keys.known(**found) | {"vision_layers": 0}
    found["vision_layers"] = len(vae_keys.numbered(shapes, names.vision + "encoder.layers."))
    if patch := of(names.vision + "embeddings.patch_embedding.weight"):
        found |= {"vision_width": patch[0], "patch_size": patch[-1]}
        if positions := of(names.vision + "embeddings.position_embedding.weight"):
            found["image_size"] = math.isqrt(positions[0]) * patch[-1]
    if mlp := of(names.vision + "encoder.layers.0.mlp.fc1.weight"):
        found["vision_mlp_width"] = mlp[0]
    return vae_keys.known(**found)
