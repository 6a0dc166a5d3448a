"""Original keys of HunyuanVideo-1.5 and of WorldPlay's action models (the latter add two rows)."""

from conversion.engine import TRANSPOSED, Rule, patch_kernel
from jworld.models.hunyuan.config import HunyuanConfig


def _linear(source: str, target: str) -> list[Rule]:
    return [Rule(source + ".weight", target + "/kernel", TRANSPOSED), Rule(source + ".bias", target + "/bias")]


def _norm(source: str, target: str) -> list[Rule]:
    return [Rule(source + ".weight", target + "/scale"), Rule(source + ".bias", target + "/bias")]


def _scalar_embedding(source: str, target: str) -> list[Rule]:
    return _linear(f"{source}.mlp.0", f"{target}/hidden") + _linear(f"{source}.mlp.2", f"{target}/output")


def _stream(name: str, target: str) -> list[Rule]:
    block = f"double_blocks.{{layer}}.{name}_"
    rules = _linear(block + "mod.linear", f"blocks/{target}/modulation/linear")
    for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("proj", "out")):
        rules += _linear(block + f"attn_{theirs}", f"blocks/{target}/{ours}")
    for theirs, ours in (("q", "query"), ("k", "key")):
        rules.append(Rule(block + f"attn_{theirs}_norm.weight", f"blocks/{target}/{ours}_norm/scale"))
    for theirs, ours in (("fc1", "up"), ("fc2", "down")):
        rules += _linear(block + f"mlp.{theirs}", f"blocks/{target}/mlp/{ours}")
    return rules


def _refiner() -> list[Rule]:
    block = "txt_in.individual_token_refiner.blocks.{index}."
    target = "text/refiner/blocks/{index}/"
    return [
        *_linear("txt_in.input_embedder", "text/refiner/input"),
        *_scalar_embedding("txt_in.t_embedder", "text/refiner/time"),
        *_linear("txt_in.c_embedder.linear_1", "text/refiner/pooled_in"),
        *_linear("txt_in.c_embedder.linear_2", "text/refiner/pooled_out"),
        *_norm(block + "norm1", target + "norm1"),
        *_norm(block + "norm2", target + "norm2"),
        *_linear(block + "self_attn_qkv", target + "qkv"),
        *_linear(block + "self_attn_proj", target + "out"),
        *_linear(block + "mlp.fc1", target + "mlp/up"),
        *_linear(block + "mlp.fc2", target + "mlp/down"),
        *_linear(block + "adaLN_modulation.1", target + "modulation/linear"),
    ]


def rules(cfg: HunyuanConfig) -> tuple[Rule, ...]:
    """The table for a model of these sizes."""
    return (
        Rule("img_in.proj.weight", "patch_in/kernel", patch_kernel(cfg.patch_size)),
        Rule("img_in.proj.bias", "patch_in/bias"),
        *_scalar_embedding("time_in", "time"),
        *_scalar_embedding("action_in", "action"),
        *_refiner(),
        *_norm("byt5_in.layernorm", "text/glyph/norm"),
        *_linear("byt5_in.fc1", "text/glyph/linear1"),
        *_linear("byt5_in.fc2", "text/glyph/linear2"),
        *_linear("byt5_in.fc3", "text/glyph/linear3"),
        *_norm("vision_in.proj.0", "text/vision/norm_in"),
        *_linear("vision_in.proj.1", "text/vision/linear1"),
        *_linear("vision_in.proj.3", "text/vision/linear2"),
        *_norm("vision_in.proj.4", "text/vision/norm_out"),
        Rule("cond_type_embedding.weight", "text/type_embedding/embedding"),
        *_stream("img", "image"),
        *_stream("txt", "text"),
        *_linear("double_blocks.{layer}.img_attn_prope_proj", "blocks/camera_out"),
        *_linear("final_layer.adaLN_modulation.1", "final_modulation/linear"),
        *_linear("final_layer.linear", "patch_out"),
    )
