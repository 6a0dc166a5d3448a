"""Gemma-3's hyper-parameters in the words of transformers, of version 4 and of version 5."""

import math
from collections.abc import Mapping
from typing import Any

from conversion import hyperparameters, vae_keys
from conversion.engine import Shape
from conversion.gemma3 import Names
from conversion.hyperparameters import Field
from jworld.models.gemma3.config import Gemma3Config
from jworld.models.layers import stack
from jworld.utils import errors

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
    Field("image_token_id", "image_token", hyperparameters.integer),
)
_KINDS = {"sliding_attention": "sliding", "full_attention": "full"}
#: Ours -> theirs of the rotary settings of a kind of layer: base and factor.
_ROPE = {
    "full_attention": ("rope_theta", "rope_factor"),
    "sliding_attention": ("local_rope_theta", "local_rope_factor"),
}


def from_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Hyper-parameters that a config.json tells, the vocabulary not: files may have more rows than it says."""
    text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
    return {
        **hyperparameters.read(text, _TEXT, _TEXT_FIXED, where),
        **hyperparameters.read(vision, _VISION, _VISION_FIXED, where),
        **hyperparameters.read(config, _WHOLE, {}, where),
        **_rotary(text, where),
        **_pattern(text, where),
    }


def _rotary(text: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Version 5 has a table per kind of layer, version 4 three keys."""
    tables = text.get("rope_parameters")
    if tables is None:
        tables = {
            "full_attention": {"rope_theta": text.get("rope_theta"), **(text.get("rope_scaling") or {})},
            "sliding_attention": {"rope_theta": text.get("rope_local_base_freq")},
        }
        if "rope_theta" not in text:
            return {}
    values: dict[str, Any] = {}
    for theirs, (base, factor) in _ROPE.items():
        table = tables.get(theirs) or {}
        kind = table.get("rope_type", table.get("type", "default"))
        if kind not in ("default", "linear"):
            raise errors.UserError(
                f"{where}: the rotary positions of {theirs} are scaled by {kind!r}, here only 'linear' is known"
            )
        if table.get("rope_theta") is not None:
            values[base] = float(table["rope_theta"])
            values[factor] = float(table.get("factor", 1.0)) if kind == "linear" else 1.0
    return values


def _pattern(text: Mapping[str, Any], where: str) -> dict[str, Any]:
    layers, every = text.get("layer_types"), text.get("sliding_window_pattern", text.get("_sliding_window_pattern"))
    if layers is None:
        return {} if every is None else {"pattern": (*("sliding",) * (every - 1), "full")}
    if unknown := sorted(set(layers) - _KINDS.keys()):
        raise errors.UserError(f"{where}: layer_types has {', '.join(unknown)}, expected {' or '.join(_KINDS)}")
    kinds = tuple(_KINDS[layer] for layer in layers)
    return {"pattern": kinds[: stack.period(kinds)]}


def to_config(cfg: Gemma3Config) -> dict[str, Any]:
    """Content of the config.json beside exported weights, which both versions read."""
    if cfg.local_rope_factor != 1:
        raise errors.UserError(
            f"config.model.local_rope_factor is {cfg.local_rope_factor}: the files of this layout cannot say it"
        )
    theirs = {ours: name for name, ours in _KINDS.items()}
    scaling = {"factor": cfg.rope_factor, "rope_type": "linear"} if cfg.rope_factor != 1 else None
    text = {
        "model_type": "gemma3_text",
        "vocab_size": cfg.vocabulary,
        **hyperparameters.write(cfg, _TEXT, _TEXT_FIXED),
        "rope_theta": cfg.rope_theta,
        "rope_local_base_freq": cfg.local_rope_theta,
        "rope_scaling": scaling,
        "layer_types": [theirs[kind] for kind in cfg.kinds],
    }
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


def from_shapes(shapes: Mapping[str, Shape], names: Names) -> dict[str, Any]:
    """Hyper-parameters that the tensors' shapes tell."""

    def of(name: str) -> Shape:
        return shapes.get(name, ())

    layer, encoder = f"{names.text}layers.0.", f"{names.vision}encoder.layers.0."
    found: dict[str, Any] = {}
    if rows := of(names.text + "embed_tokens.weight"):
        found |= {"vocabulary": rows[0], "width": rows[1]}
    found["num_layers"] = len(vae_keys.numbered(shapes, names.text + "layers."))
    if head := of(layer + "self_attn.q_norm.weight"):
        found["head_dim"] = head[0]
        for ours, theirs in (("num_heads", "q_proj"), ("num_key_heads", "k_proj")):
            if matrix := of(f"{layer}self_attn.{theirs}.weight"):
                found[ours] = matrix[0] // head[0]
    if mlp := of(layer + "mlp.gate_proj.weight"):
        found["mlp_width"] = mlp[0]
    found["vision_layers"] = len(vae_keys.numbered(shapes, names.vision + "encoder.layers."))
    if patch := of(names.vision + "embeddings.patch_embedding.weight"):
        found |= {"vision_width": patch[0], "patch_size": patch[-1]}
        if places := of(names.vision + "embeddings.position_embedding.weight"):
            found["image_size"] = math.isqrt(places[0]) * patch[-1]
    if mlp := of(encoder + "mlp.fc1.weight"):
        found["vision_mlp_width"] = mlp[0]
    return vae_keys.known(**found)
