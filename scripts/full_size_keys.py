"""Tensors of networks that have no class in diffusers or transformers: every key of the original program, with shape.

The keys and sizes are those of the original program's modules, independent of the tables in `conversion`.
"""

from collections.abc import Callable, Mapping
from typing import Any

Shapes = dict[str, tuple[int, ...]]

#: config.json of HunyuanVideo-1.5's published transformer, and of HY-WorldPlay's action models.
WORLDPLAY: dict[str, Any] = {
    "_class_name": "HunyuanVideo_1_5_DiffusionTransformer",
    "attn_mode": "flash",
    "attn_param": None,
    "concat_condition": True,
    "glyph_byT5_v2": True,
    "guidance_embed": False,
    "heads_num": 16,
    "hidden_size": 2048,
    "ideal_resolution": "480p",
    "ideal_task": "i2v",
    "in_channels": 32,
    "is_reshape_temporal_channels": False,
    "mlp_act_type": "gelu_tanh",
    "mlp_width_ratio": 4.0,
    "mm_double_blocks_depth": 54,
    "mm_single_blocks_depth": 0,
    "out_channels": 32,
    "patch_size": [1, 1, 1],
    "qk_norm": True,
    "qk_norm_type": "rms",
    "qkv_bias": True,
    "rope_dim_list": [16, 56, 56],
    "rope_theta": 256,
    "text_pool_type": None,
    "text_projection": "single_refiner",
    "text_states_dim": 3584,
    "text_states_dim_2": None,
    "use_attention_mask": True,
    "use_cond_type_embedding": True,
    "use_meanflow": False,
    "vision_projection": "linear",
    "vision_states_dim": 1152,
}
#: Widths in the code of the original.
_FREQUENCIES, _GLYPH, _GLYPH_INNER, _REFINER_LAYERS = 256, 1472, 2048, 2


def worldplay(config: Mapping[str, Any]) -> Shapes:
    """Return the tensors of an action model of HY-WorldPlay with these sizes."""
    width, patch = config["hidden_size"], tuple(config["patch_size"])
    inner, vision = int(width * config["mlp_width_ratio"]), config["vision_states_dim"]
    pixels = patch[0] * patch[1] * patch[2]
    shapes: Shapes = {
        "img_in.proj.weight": (width, 2 * config["in_channels"] + 1, *patch),
        "img_in.proj.bias": (width,),
    }
    for name in ("time_in", "action_in", "txt_in.t_embedder"):
        shapes |= _linear(f"{name}.mlp.0", _FREQUENCIES, width) | _linear(f"{name}.mlp.2", width, width)
    shapes |= _linear("txt_in.input_embedder", config["text_states_dim"], width)
    shapes |= _linear("txt_in.c_embedder.linear_1", config["text_states_dim"], width)
    shapes |= _linear("txt_in.c_embedder.linear_2", width, width)
    for i in range(_REFINER_LAYERS):
        block = f"txt_in.individual_token_refiner.blocks.{i}"
        shapes |= _norm(f"{block}.norm1", width) | _norm(f"{block}.norm2", width)
        shapes |= _linear(f"{block}.self_attn_qkv", width, 3 * width) | _linear(f"{block}.self_attn_proj", width, width)
        shapes |= _linear(f"{block}.mlp.fc1", width, inner) | _linear(f"{block}.mlp.fc2", inner, width)
        shapes |= _linear(f"{block}.adaLN_modulation.1", width, 2 * width)
    shapes |= _norm("byt5_in.layernorm", _GLYPH) | _linear("byt5_in.fc1", _GLYPH, _GLYPH_INNER)
    shapes |= _linear("byt5_in.fc2", _GLYPH_INNER, _GLYPH_INNER) | _linear("byt5_in.fc3", _GLYPH_INNER, width)
    shapes |= _norm("vision_in.proj.0", vision) | _linear("vision_in.proj.1", vision, vision)
    shapes |= _linear("vision_in.proj.3", vision, width) | _norm("vision_in.proj.4", width)
    shapes["cond_type_embedding.weight"] = (3, width)
    for i in range(config["mm_double_blocks_depth"]):
        shapes |= _block(f"double_blocks.{i}", width, inner, width // config["heads_num"])
    shapes |= _linear("final_layer.linear", width, pixels * config["out_channels"])
    return shapes | _linear("final_layer.adaLN_modulation.1", width, 2 * width)


def _block(block: str, width: int, inner: int, head: int) -> Shapes:
    shapes: Shapes = {}
    for stream in ("img", "txt"):
        shapes |= _linear(f"{block}.{stream}_mod.linear", width, 6 * width)
        for name in ("q", "k", "v", "proj"):
            shapes |= _linear(f"{block}.{stream}_attn_{name}", width, width)
        shapes |= {f"{block}.{stream}_attn_{name}_norm.weight": (head,) for name in ("q", "k")}
        shapes |= _linear(f"{block}.{stream}_mlp.fc1", width, inner)
        shapes |= _linear(f"{block}.{stream}_mlp.fc2", inner, width)
    return shapes | _linear(f"{block}.img_attn_prope_proj", width, width)


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


#: Function from config.json to tensors, by name of the network.
LISTS: dict[str, Callable[[Mapping[str, Any]], Shapes]] = {"worldplay": worldplay}
