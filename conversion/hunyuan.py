"""Original keys of HunyuanVideo-1.5 and of WorldPlay's action models (the latter add two rows)."""

from conversion.engine import Rule, patch_kernel, transposed

_WEIGHT, _BIAS = r"\.weight", r"\.bias"


def _linear(source: str, target: str) -> list[Rule]:
    return [Rule(source + _WEIGHT, target + "/kernel", transposed), Rule(source + _BIAS, target + "/bias")]


def _norm(source: str, target: str) -> list[Rule]:
    return [Rule(source + _WEIGHT, target + "/scale"), Rule(source + _BIAS, target + "/bias")]


def _scalar_embedding(source: str, target: str) -> list[Rule]:
    return _linear(rf"{source}\.mlp\.0", f"{target}/hidden") + _linear(rf"{source}\.mlp\.2", f"{target}/output")


def _stream(name: str, target: str) -> list[Rule]:
    block = rf"double_blocks\.(?P<layer>\d+)\.{name}_"
    rules = _linear(block + r"mod\.linear", f"blocks/{target}/modulation/linear")
    for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("proj", "out")):
        rules += _linear(block + f"attn_{theirs}", f"blocks/{target}/{ours}")
    for theirs, ours in (("q", "query"), ("k", "key")):
        rules.append(Rule(block + rf"attn_{theirs}_norm\.weight", f"blocks/{target}/{ours}_norm/scale"))
    for theirs, ours in (("fc1", "up"), ("fc2", "down")):
        rules += _linear(block + rf"mlp\.{theirs}", f"blocks/{target}/mlp/{ours}")
    return rules


def _refiner() -> list[Rule]:
    block = r"txt_in\.individual_token_refiner\.blocks\.(?P<index>\d+)\."
    target = r"text/refiner/blocks/\g<index>/"
    return [
        *_linear(r"txt_in\.input_embedder", "text/refiner/input"),
        *_scalar_embedding(r"txt_in\.t_embedder", "text/refiner/time"),
        *_linear(r"txt_in\.c_embedder\.linear_1", "text/refiner/pooled_in"),
        *_linear(r"txt_in\.c_embedder\.linear_2", "text/refiner/pooled_out"),
        *_norm(block + "norm1", target + "norm1"),
        *_norm(block + "norm2", target + "norm2"),
        *_linear(block + "self_attn_qkv", target + "qkv"),
        *_linear(block + "self_attn_proj", target + "out"),
        *_linear(block + r"mlp\.fc1", target + "mlp/up"),
        *_linear(block + r"mlp\.fc2", target + "mlp/down"),
        *_linear(block + r"adaLN_modulation\.1", target + "modulation/linear"),
    ]


RULES: tuple[Rule, ...] = (
    Rule(r"img_in\.proj\.weight", "patch_in/kernel", patch_kernel),
    Rule(r"img_in\.proj\.bias", "patch_in/bias"),
    *_scalar_embedding("time_in", "time"),
    *_scalar_embedding("action_in", "action"),
    *_refiner(),
    *_norm(r"byt5_in\.layernorm", "text/glyph/norm"),
    *_linear(r"byt5_in\.fc1", "text/glyph/linear1"),
    *_linear(r"byt5_in\.fc2", "text/glyph/linear2"),
    *_linear(r"byt5_in\.fc3", "text/glyph/linear3"),
    *_norm(r"vision_in\.proj\.0", "text/vision/norm_in"),
    *_linear(r"vision_in\.proj\.1", "text/vision/linear1"),
    *_linear(r"vision_in\.proj\.3", "text/vision/linear2"),
    *_norm(r"vision_in\.proj\.4", "text/vision/norm_out"),
    Rule(r"cond_type_embedding\.weight", "text/type_embedding/embedding"),
    *_stream("img", "image"),
    *_stream("txt", "text"),
    *_linear(r"double_blocks\.(?P<layer>\d+)\.img_attn_prope_proj", "blocks/camera_out"),
    *_linear(r"final_layer\.adaLN_modulation\.1", "final_modulation/linear"),
    *_linear(r"final_layer\.linear", "patch_out"),
)
