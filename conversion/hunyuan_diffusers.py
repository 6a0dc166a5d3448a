"""Keys of HunyuanVideo-1.5 in diffusers, class `HunyuanVideo15Transformer3DModel` (as of diffusers 0.42).

The class has no part for actions or cameras, and no other class of diffusers has one. So WorldPlay's action models
exist only in the original layout. Compared with it, q, k, v of the text refiner are separate tensors, and the two
halves of the last modulation are swapped.
"""

from collections.abc import Mapping
from typing import Any

from conversion import hunyuan_sizes, hyperparameters
from conversion.base import KeyLayout
from conversion.engine import SWAPPED, TRANSPOSED, TRANSPOSED_SWAPPED, Rule, Shape, patch_kernel
from conversion.hunyuan import check_network, linear, norm, note_size
from conversion.hyperparameters import Field
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.utils import errors

CLASS_NAME = "HunyuanVideo15Transformer3DModel"

NAMES = hunyuan_sizes.Names(
    patch="x_embedder.proj.weight",
    head="transformer_blocks.0.attn.norm_q.weight",
    mlp="transformer_blocks.0.ff.net.0.proj.weight",
    text="context_embedder.proj_in.weight",
    glyph="context_embedder_2.",
    glyph_in="context_embedder_2.linear_1.weight",
    glyph_out="context_embedder_2.linear_2.weight",
    vision="image_embedder.linear_1.weight",
    layers="transformer_blocks.",
    refiner="context_embedder.token_refiner.refiner_blocks.",
)

FIELDS = (
    Field("out_channels", "channels", hyperparameters.integer),
    Field("num_attention_heads", "num_heads", hyperparameters.integer),
    Field("num_layers", "num_layers", hyperparameters.integer),
    Field("num_refiner_layers", "refiner_layers", hyperparameters.integer),
    Field("mlp_ratio", "mlp_ratio", hyperparameters.number),
    Field("text_embed_dim", "text_dim", hyperparameters.integer),
    Field("text_embed_2_dim", "glyph_dim", hyperparameters.integer),
    Field("image_embed_dim", "vision_dim", hyperparameters.integer),
    Field("rope_axes_dim", "rope_dims", hyperparameters.triple),
    Field("rope_theta", "rope_theta", hyperparameters.number),
)
# Keys that give a hyper-parameter only together.
PARTS = (
    Field("in_channels", "inputs", hyperparameters.integer),
    Field("attention_head_dim", "head_dim", hyperparameters.integer),
    Field("patch_size", "patch", hyperparameters.integer),
    Field("patch_size_t", "patch_time", hyperparameters.integer),
)
FIXED = {"qk_norm": "rms_norm", "use_meanflow": False}
# Other keys that the class reads, which do not change its weights.
OTHERS = {"_class_name": CLASS_NAME, "target_size": 640, "task_type": "i2v"}


def _stream(suffix: str, target: str, attention: Mapping[str, str]) -> list[Rule]:
    """Return the rules of one stream of all blocks; `attention` maps our names of its attention layers to theirs."""
    block = "transformer_blocks.{layer}."
    rules = linear(f"{block}norm1{suffix}.linear", f"blocks/{target}/modulation/linear")
    for ours in ("query", "key", "value", "out"):
        rules += linear(f"{block}attn.{attention[ours]}", f"blocks/{target}/{ours}")
    for ours in ("query_norm", "key_norm"):
        rules.append(Rule(f"{block}attn.{attention[ours]}.weight", f"blocks/{target}/{ours}/scale"))
    rules += linear(f"{block}ff{suffix}.net.0.proj", f"blocks/{target}/mlp/up")
    return rules + linear(f"{block}ff{suffix}.net.2", f"blocks/{target}/mlp/down")


_IMAGE = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
    "query_norm": "norm_q",
    "key_norm": "norm_k",
}
_TEXT = {
    "query": "add_q_proj",
    "key": "add_k_proj",
    "value": "add_v_proj",
    "out": "to_add_out",
    "query_norm": "norm_added_q",
    "key_norm": "norm_added_k",
}


def _time_embedding(source: str, target: str) -> list[Rule]:
    return linear(f"{source}.linear_1", f"{target}/hidden") + linear(f"{source}.linear_2", f"{target}/output")


def _refiner() -> list[Rule]:
    block = "context_embedder.token_refiner.refiner_blocks.{index}."
    target = "text/refiner/blocks/{index}/"
    rules = [
        *linear("context_embedder.proj_in", "text/refiner/input"),
        *_time_embedding("context_embedder.time_text_embed.timestep_embedder", "text/refiner/time"),
        *linear("context_embedder.time_text_embed.text_embedder.linear_1", "text/refiner/pooled_in"),
        *linear("context_embedder.time_text_embed.text_embedder.linear_2", "text/refiner/pooled_out"),
        *norm(block + "norm1", target + "norm1"),
        *norm(block + "norm2", target + "norm2"),
        *linear(block + "attn.to_out.0", target + "out"),
        *linear(block + "ff.net.0.proj", target + "mlp/up"),
        *linear(block + "ff.net.2", target + "mlp/down"),
        *linear(block + "norm_out.linear", target + "modulation/linear"),
    ]
    for number, name in enumerate(("to_q", "to_k", "to_v")):
        part = (number, 3)
        rules.append(Rule(f"{block}attn.{name}.weight", target + "qkv/kernel", TRANSPOSED, part))
        rules.append(Rule(f"{block}attn.{name}.bias", target + "qkv/bias", part=part))
    return rules


def rules(cfg: HunyuanConfig) -> tuple[Rule, ...]:
    """Return the key table for a model of these sizes."""
    check_network(cfg)
    return (
        Rule("x_embedder.proj.weight", "patch_in/kernel", patch_kernel(cfg.patch_size)),
        Rule("x_embedder.proj.bias", "patch_in/bias"),
        *_time_embedding("time_embed.timestep_embedder", "time"),
        *_refiner(),
        *norm("context_embedder_2.norm", "text/glyph/norm"),
        *linear("context_embedder_2.linear_1", "text/glyph/linear1"),
        *linear("context_embedder_2.linear_2", "text/glyph/linear2"),
        *linear("context_embedder_2.linear_3", "text/glyph/linear3"),
        *norm("image_embedder.norm_in", "text/vision/norm_in"),
        *linear("image_embedder.linear_1", "text/vision/linear1"),
        *linear("image_embedder.linear_2", "text/vision/linear2"),
        *norm("image_embedder.norm_out", "text/vision/norm_out"),
        Rule("cond_type_embed.weight", "text/type_embedding/embedding"),
        *_stream("", "image", _IMAGE),
        *_stream("_context", "text", _TEXT),
        Rule("norm_out.linear.weight", "final_modulation/linear/kernel", TRANSPOSED_SWAPPED),
        Rule("norm_out.linear.bias", "final_modulation/linear/bias", SWAPPED),
        *linear("proj_out", "patch_out"),
    )


def from_shapes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the hyper-parameters that follow from the tensors' shapes."""
    return hunyuan_sizes.from_shapes(shapes, NAMES)


def from_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the hyper-parameters in the config.json next to the weights; `where` names it in messages."""
    values = hyperparameters.read(config, FIELDS, FIXED, where)
    note_size(where, "target_size", config.get("target_size"), expected=OTHERS["target_size"])
    parts = hyperparameters.read(config, PARTS, {}, where)
    if {"channels", "inputs"} <= values.keys() | parts.keys() and parts["inputs"] != 2 * values["channels"] + 1:
        raise errors.UserError(
            f"{where}: in_channels is {parts['inputs']}, expected noisy and condition latents of out_channels "
            f"{values['channels']} and a mask, {2 * values['channels'] + 1}"
        )
    if "head_dim" in parts and "num_heads" in values:
        values["width"] = parts["head_dim"] * values["num_heads"]
    if {"patch", "patch_time"} <= parts.keys():
        values["patch_size"] = (parts["patch_time"], parts["patch"], parts["patch"])
    return values


def to_config(cfg: HunyuanConfig) -> dict[str, Any]:
    """Return the config.json that diffusers reads next to exported weights.

    Raises:
      UserError: the model has parts that `HunyuanVideo15Transformer3DModel` has not, or lacks parts of it.
    """
    time, height, width = cfg.patch_size
    wrong = [
        text
        for text, holds in (
            ("its action and camera parameters have no place there", cfg.actions),
            ("its glyph input is missing", cfg.glyph_dim is None),
            (f"its patch_size {cfg.patch_size} is not square", height != width),
        )
        if holds
    ]
    if wrong:
        raise errors.UserError(
            f"this model is not a {CLASS_NAME} of diffusers: {'; '.join(wrong)}; export it in the original layout"
        )
    together = {
        "in_channels": 2 * cfg.channels + 1,
        "attention_head_dim": cfg.head_dim,
        "patch_size": height,
        "patch_size_t": time,
    }
    return OTHERS | hyperparameters.write(cfg, FIELDS, FIXED) | together


def limits(cfg: HunyuanConfig) -> list[str]:
    """Return why diffusers cannot load a model of these sizes: its config.json has no key for them."""
    return hunyuan_sizes.fixed_in_code(cfg, mlp_ratio=4.0, glyph_hidden=2048, glyph_out=2048)


LAYOUT = KeyLayout(
    name="diffusers",
    title=f"diffusers' {CLASS_NAME}",
    marks=("cond_type_embed.weight", "image_embedder.linear_1.weight"),
    rules=rules,
    from_shapes=from_shapes,
    from_config=from_config,
    to_config=to_config,
    adapter_prefix="transformer.",
    limits=limits,
)
