"""Original keys of HunyuanVideo-1.5 and of WorldPlay's action models, which add action_in and prope_proj."""

from collections.abc import Mapping
from typing import Any

from conversion import hunyuan_sizes, hyperparameters
from conversion.base import KeyLayout, check_prediction
from conversion.engine import TRANSPOSED, Rule, Shape, patch_kernel
from conversion.hyperparameters import Field
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.utils import errors, notes

NAMES = hunyuan_sizes.Names(
    patch="img_in.proj.weight",
    head="double_blocks.0.img_attn_q_norm.weight",
    mlp="double_blocks.0.img_mlp.fc1.weight",
    text="txt_in.input_embedder.weight",
    glyph="byt5_in.",
    glyph_in="byt5_in.fc1.weight",
    glyph_out="byt5_in.fc2.weight",
    vision="vision_in.proj.1.weight",
    layers="double_blocks.",
    refiner="txt_in.individual_token_refiner.blocks.",
    actions=("action_in.", "img_attn_prope_proj."),
)

FIELDS = (
    Field("in_channels", "channels", hyperparameters.integer),
    Field("out_channels", "channels", hyperparameters.integer),
    Field("patch_size", "patch_size", hyperparameters.triple),
    Field("hidden_size", "width", hyperparameters.integer),
    Field("heads_num", "num_heads", hyperparameters.integer),
    Field("mm_double_blocks_depth", "num_layers", hyperparameters.integer),
    Field("mlp_width_ratio", "mlp_ratio", hyperparameters.number),
    Field("rope_dim_list", "rope_dims", hyperparameters.triple),
    Field("rope_theta", "rope_theta", hyperparameters.number),
    Field("text_states_dim", "text_dim", hyperparameters.integer),
    Field("vision_states_dim", "vision_dim", hyperparameters.integer),
)
FIXED = {
    "mm_single_blocks_depth": 0,
    "concat_condition": True,
    "guidance_embed": False,
    "is_reshape_temporal_channels": False,
    "mlp_act_type": "gelu_tanh",
    "qk_norm": True,
    "qk_norm_type": "rms",
    "qkv_bias": True,
    "text_pool_type": None,
    "text_projection": "single_refiner",
    "use_attention_mask": True,
    "use_cond_type_embedding": True,
    "use_meanflow": False,
    "vision_projection": "linear",
}
# Other keys that the program reads, which do not change its weights.
OTHERS = {
    "_class_name": "HunyuanVideo_1_5_DiffusionTransformer",
    "attn_mode": "flash",
    "attn_param": None,
    "ideal_resolution": "480p",
    "ideal_task": "i2v",
    "text_states_dim_2": None,
}
#: Value of `attn_mode` of the weights with sparse attention.
SPARSE_ATTENTION = "flex-block-attn"


def check_network(cfg: HunyuanConfig) -> None:
    """Raise UserError for a network that predicts what the original programs do not expect, or from another input."""
    check_prediction(cfg.prediction)
    if cfg.step_sizes:
        raise errors.UserError(
            "model.step_sizes is True, expected False: the original programs have no input for the size of a step"
        )


def linear(source: str, target: str) -> list[Rule]:
    """Return the rules of an nn.Linear with bias."""
    return [Rule(source + ".weight", target + "/kernel", TRANSPOSED), Rule(source + ".bias", target + "/bias")]


def norm(source: str, target: str) -> list[Rule]:
    """Return the rules of an nn.LayerNorm with weight and bias."""
    return [Rule(source + ".weight", target + "/scale"), Rule(source + ".bias", target + "/bias")]


def _scalar_embedding(source: str, target: str) -> list[Rule]:
    return linear(f"{source}.mlp.0", f"{target}/hidden") + linear(f"{source}.mlp.2", f"{target}/output")


def _stream(name: str, target: str) -> list[Rule]:
    block = f"double_blocks.{{layer}}.{name}_"
    rules = linear(block + "mod.linear", f"blocks/{target}/modulation/linear")
    for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("proj", "out")):
        rules += linear(block + f"attn_{theirs}", f"blocks/{target}/{ours}")
    for theirs, ours in (("q", "query"), ("k", "key")):
        rules.append(Rule(block + f"attn_{theirs}_norm.weight", f"blocks/{target}/{ours}_norm/scale"))
    for theirs, ours in (("fc1", "up"), ("fc2", "down")):
        rules += linear(block + f"mlp.{theirs}", f"blocks/{target}/mlp/{ours}")
    return rules


def _refiner() -> list[Rule]:
    block = "txt_in.individual_token_refiner.blocks.{index}."
    target = "text/refiner/blocks/{index}/"
    return [
        *linear("txt_in.input_embedder", "text/refiner/input"),
        *_scalar_embedding("txt_in.t_embedder", "text/refiner/time"),
        *linear("txt_in.c_embedder.linear_1", "text/refiner/pooled_in"),
        *linear("txt_in.c_embedder.linear_2", "text/refiner/pooled_out"),
        *norm(block + "norm1", target + "norm1"),
        *norm(block + "norm2", target + "norm2"),
        *linear(block + "self_attn_qkv", target + "qkv"),
        *linear(block + "self_attn_proj", target + "out"),
        *linear(block + "mlp.fc1", target + "mlp/up"),
        *linear(block + "mlp.fc2", target + "mlp/down"),
        *linear(block + "adaLN_modulation.1", target + "modulation/linear"),
    ]


def rules(cfg: HunyuanConfig) -> tuple[Rule, ...]:
    """Return the key table for a model of these sizes."""
    check_network(cfg)
    return (
        Rule("img_in.proj.weight", "patch_in/kernel", patch_kernel(cfg.patch_size)),
        Rule("img_in.proj.bias", "patch_in/bias"),
        *_scalar_embedding("time_in", "time"),
        *_scalar_embedding("action_in", "action"),
        *_refiner(),
        *norm("byt5_in.layernorm", "text/glyph/norm"),
        *linear("byt5_in.fc1", "text/glyph/linear1"),
        *linear("byt5_in.fc2", "text/glyph/linear2"),
        *linear("byt5_in.fc3", "text/glyph/linear3"),
        *norm("vision_in.proj.0", "text/vision/norm_in"),
        *linear("vision_in.proj.1", "text/vision/linear1"),
        *linear("vision_in.proj.3", "text/vision/linear2"),
        *norm("vision_in.proj.4", "text/vision/norm_out"),
        Rule("cond_type_embedding.weight", "text/type_embedding/embedding"),
        *_stream("img", "image"),
        *_stream("txt", "text"),
        *linear("double_blocks.{layer}.img_attn_prope_proj", "blocks/camera_out"),
        *linear("final_layer.adaLN_modulation.1", "final_modulation/linear"),
        *linear("final_layer.linear", "patch_out"),
    )


def note_size(where: str, key: str, found: Any, *, expected: Any) -> None:
    """Print a note if the weights were trained for another size than the published model's; None is unknown."""
    if found not in (None, expected):
        notes.note(
            f"{where}: {key} is {found!r}, so the weights were trained for another size than the config of the run: "
            "generate with --size 720p, or another size or --aspect"
        )


def from_shapes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the hyper-parameters that follow from the tensors' shapes."""
    return hunyuan_sizes.from_shapes(shapes, NAMES)


def from_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the hyper-parameters in the config.json next to the weights; `where` names it in messages.

    A note is printed where the weights were trained for another size or kind of attention than the published model.
    """
    values = hyperparameters.read(config, FIELDS, FIXED, where)
    note_size(where, "ideal_resolution", config.get("ideal_resolution"), expected=OTHERS["ideal_resolution"])
    if config.get("attn_mode") == SPARSE_ATTENTION:
        notes.note(
            f"{where}: attn_mode is {SPARSE_ATTENTION!r}, so the weights were trained with sparse attention; here all "
            "tokens attend to each other, which gives other videos"
        )
    if config.get("glyph_byT5_v2") is False:
        values["glyph_dim"] = None
    return values


def to_config(cfg: HunyuanConfig) -> dict[str, Any]:
    """Return the config.json that the original program reads next to exported weights."""
    values = hyperparameters.write(cfg, FIELDS, FIXED)
    return (
        OTHERS
        | values
        | {"rope_theta": hyperparameters.whole(cfg.rope_theta), "glyph_byT5_v2": cfg.glyph_dim is not None}
    )


def limits(cfg: HunyuanConfig) -> list[str]:
    """Return why the original program cannot load a model of these sizes: its config.json has no key for them."""
    return hunyuan_sizes.fixed_in_code(
        cfg, refiner_layers=2, mlp_ratio=4.0, glyph_dim=1472, glyph_hidden=2048, glyph_out=2048
    )


LAYOUT = KeyLayout(
    name="original",
    title="HunyuanVideo-1.5 and HY-WorldPlay",
    one_file=True,
    marks=("double_blocks.0.img_attn_q.weight", "cond_type_embedding.weight"),
    rules=rules,
    from_shapes=from_shapes,
    from_config=from_config,
    to_config=to_config,
    limits=limits,
)
