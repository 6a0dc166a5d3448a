"""Keys of Cosmos-Predict2 in diffusers, class `CosmosTransformer3DModel` (as of diffusers 0.42).

The class has no part for actions, views or learned positions, so those models exist only in the original layout. All
tensors are as in the original, under other names.
"""

from collections.abc import Mapping
from typing import Any

from conversion import cosmos, hyperparameters
from conversion.base import KeyLayout, check_prediction
from conversion.cosmos import matrix
from conversion.engine import Rule, Shape
from conversion.hyperparameters import Field
from jworld.models.cosmos.config import CosmosConfig
from jworld.utils import errors

CLASS_NAME = "CosmosTransformer3DModel"

_PROJECTIONS = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "out"))
_BLOCK = "transformer_blocks.{layer}"


def _ratios(value: Any) -> tuple[float, float, float] | None:
    if isinstance(value, list) and len(value) == 3 and all(hyperparameters.number(ratio) for ratio in value):
        return (float(value[0]), float(value[1]), float(value[2]))
    return None


FIELDS = (
    Field("out_channels", "channels", hyperparameters.integer),
    Field("num_attention_heads", "num_heads", hyperparameters.integer),
    Field("num_layers", "num_layers", hyperparameters.integer),
    Field("mlp_ratio", "mlp_ratio", hyperparameters.number),
    Field("text_embed_dim", "text_width", hyperparameters.integer),
    Field("adaln_lora_dim", "modulation_rank", hyperparameters.integer),
    Field("max_size", "max_size", hyperparameters.triple),
    Field("patch_size", "patch_size", hyperparameters.triple),
    Field("rope_scale", "rope_scale", _ratios),
    Field("concat_padding_mask", "padding_mask", hyperparameters.switch),
)
# Keys that give a hyper-parameter only together.
PARTS = (
    Field("in_channels", "inputs", hyperparameters.integer),
    Field("attention_head_dim", "head_dim", hyperparameters.integer),
)
FIXED = {
    "extra_pos_embed_type": None,
    "use_crossattn_projection": False,
    "controlnet_block_every_n": None,
    "img_context_dim_in": None,
}
# Other keys that the class reads, which do not change its weights.
OTHERS = {"_class_name": CLASS_NAME}


def _attention(source: str, target: str) -> list[Rule]:
    rules = [matrix(f"{source}.{theirs}", f"{target}/{ours}") for theirs, ours in _PROJECTIONS]
    rules.append(Rule(f"{source}.norm_q.weight", f"{target}/query_norm/scale"))
    rules.append(Rule(f"{source}.norm_k.weight", f"{target}/key_norm/scale"))
    return rules


def _modulation(source: str, target: str) -> list[Rule]:
    return [matrix(f"{source}.linear_1", f"{target}/reduce"), matrix(f"{source}.linear_2", f"{target}/linear")]


def rules(cfg: CosmosConfig) -> tuple[Rule, ...]:
    """Return the key table, which is the same for all sizes."""
    check_prediction(cfg.prediction)
    return (
        matrix("patch_embed.proj", "patch_in"),
        matrix("time_embed.t_embedder.linear_1", "time/hidden"),
        matrix("time_embed.t_embedder.linear_2", "time/output"),
        Rule("time_embed.norm.weight", "time/norm/scale"),
        *_attention(f"{_BLOCK}.attn1", "blocks/self_attention"),
        *_attention(f"{_BLOCK}.attn2", "blocks/cross_attention"),
        *_modulation(f"{_BLOCK}.norm1", "blocks/self_modulation"),
        *_modulation(f"{_BLOCK}.norm2", "blocks/cross_modulation"),
        *_modulation(f"{_BLOCK}.norm3", "blocks/mlp_modulation"),
        matrix(f"{_BLOCK}.ff.net.0.proj", "blocks/mlp/up"),
        matrix(f"{_BLOCK}.ff.net.2", "blocks/mlp/down"),
        *_modulation("norm_out", "final_modulation"),
        matrix("proj_out", "patch_out"),
    )


def from_shapes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the hyper-parameters that follow from the shapes, read as those of the original layout."""
    known = {
        "patch_embed.proj.weight": "x_embedder.proj.1.weight",
        "transformer_blocks.0.attn1.norm_q.weight": "blocks.0.self_attn.q_norm.weight",
        "transformer_blocks.0.ff.net.0.proj.weight": "blocks.0.mlp.layer1.weight",
        "transformer_blocks.0.attn2.to_k.weight": "blocks.0.cross_attn.k_proj.weight",
        "transformer_blocks.0.norm3.linear_2.weight": "blocks.0.adaln_modulation_mlp.2.weight",
        "proj_out.weight": "final_layer.linear.weight",
    }
    renamed = {known.get(name, name.removeprefix("transformer_")): shape for name, shape in shapes.items()}
    return cosmos.from_shapes(renamed)


def from_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the hyper-parameters in the config.json next to the weights; `where` names it in messages.

    The class takes a frame rate as an argument, and its pipeline passes one. Models published for Video2World were
    trained without, so `fps_modulation` stays off.
    """
    values = hyperparameters.read(config, FIELDS, FIXED, where)
    parts = hyperparameters.read(config, PARTS, {}, where)
    if "text_width" in values:
        values["text_dim"] = values["text_width"]
    if "head_dim" in parts and "num_heads" in values:
        values["width"] = parts["head_dim"] * values["num_heads"]
    if "inputs" in parts and "channels" in values:
        masks = parts["inputs"] - values["channels"]
        if masks not in (0, 1):
            raise errors.UserError(
                f"{where}: in_channels is {parts['inputs']}, expected out_channels {values['channels']}, and one more "
                "in a model with a condition mask"
            )
        values["condition_mask"] = masks == 1
    return values


def to_config(cfg: CosmosConfig) -> dict[str, Any]:
    """Return the config.json that diffusers reads next to exported weights.

    Raises:
      UserError: the model has parts that `CosmosTransformer3DModel` has not, or lacks parts of it.
    """
    wrong = [
        text
        for text, holds in (
            ("its action parameters have no place there", cfg.action_dim is not None),
            ("its view embedding has no place there", cfg.views is not None),
            ("its learned positions have no place there", cfg.absolute_positions),
            ("its text projection has no place there", cfg.text_width != cfg.text_dim),
            ("its modulations are not low-rank", cfg.modulation_rank is None),
            (f"its base_fps is {cfg.base_fps:g}, there always 24", cfg.fps_modulation and cfg.base_fps != 24),
            (f"its time_scale is {cfg.time_scale:g}, there always 1", cfg.time_scale != 1),
        )
        if holds
    ]
    if wrong:
        raise errors.UserError(
            f"this model is not a {CLASS_NAME} of diffusers: {'; '.join(wrong)}; export it in the original layout"
        )
    together = {"in_channels": cfg.channels + cfg.condition_mask, "attention_head_dim": cfg.head_dim}
    return OTHERS | hyperparameters.write(cfg, FIELDS, FIXED) | together


LAYOUT = KeyLayout(
    name="diffusers",
    title=f"diffusers' {CLASS_NAME}",
    marks=("time_embed.t_embedder.linear_1.weight",),
    rules=rules,
    from_shapes=from_shapes,
    from_config=from_config,
    to_config=to_config,
    adapter_prefix="transformer.",
)
