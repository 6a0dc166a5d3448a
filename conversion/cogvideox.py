"""Keys of the CogVideoX transformer in diffusers, with The Matrix's control blocks and guidance embedding."""

from collections.abc import Mapping
from typing import Any

from conversion import cogvideox_config
from conversion.base import KeyLayout, check_prediction
from conversion.engine import TRANSPOSED, Rule, Shape, patch_kernel
from conversion.hunyuan import linear, norm
from jworld.models.cogvideox.config import CogVideoXConfig

#: Prefix of the names in a file of adapters, which belongs to a pipeline with the transformer as a part.
ADAPTER_PREFIX = "transformer."


def _expert_norm(source: str, target: str) -> list[Rule]:
    return linear(f"{source}.linear", f"{target}/modulation/linear") + norm(f"{source}.norm", f"{target}/norm")


def _projections(source: str, target: str) -> list[Rule]:
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "out"}
    rules = [rule for key, ours in names.items() for rule in linear(f"{source}.{key}", f"{target}/{ours}")]
    return rules + norm(f"{source}.norm_q", f"{target}/query_norm") + norm(f"{source}.norm_k", f"{target}/key_norm")


def rules(cfg: CogVideoXConfig) -> list[Rule]:
    """Return the key table of one model; a UserError names a network that other programs cannot run."""
    check_prediction(cfg.prediction)
    patch = patch_kernel((cfg.patch_size, cfg.patch_size))
    block, control = "transformer_blocks.{layer}", "control_blocks.{layer}"
    table = [
        Rule("patch_embed.proj.weight", "patch_in/kernel", patch),
        Rule("patch_embed.proj.bias", "patch_in/bias"),
        *linear("patch_embed.text_proj", "text_in"),
        *linear("time_embedding.linear_1", "time/hidden"),
        *linear("time_embedding.linear_2", "time/output"),
        *_expert_norm(f"{block}.norm1", "blocks/attention_norm"),
        *_projections(f"{block}.attn1", "blocks/attention"),
        *_expert_norm(f"{block}.norm2", "blocks/mlp_norm"),
        *linear(f"{block}.ff.net.0.proj", "blocks/mlp/up"),
        *linear(f"{block}.ff.net.2", "blocks/mlp/down"),
        *norm("norm_final", "final_norm"),
        *linear("norm_out.linear", "out_modulation/linear"),
        *norm("norm_out.norm", "out_norm"),
        *linear("proj_out", "patch_out"),
    ]
    if cfg.control_dim is not None:
        for key, ours in (("0", "first"), ("2", "second"), ("4", "third")):
            table += linear(f"control_embedding.{key}", f"control_embedding/{ours}")
        table += _expert_norm(f"{control}.norm1", "control_blocks/norm")
        table += _projections(f"{control}.attn1", "control_blocks/attention")
    if cfg.guidance_dim is not None:
        table.append(Rule("time_embedding.cond_proj.weight", "guidance/kernel", TRANSPOSED))
    return table


def from_shapes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the fields of `CogVideoXConfig` that follow from shapes: neither text length nor control layers do."""

    def of(name: str, rank: int) -> Shape | None:
        shape = shapes.get(name)
        return shape if shape is not None and len(shape) == rank and all(shape) else None

    control, guidance = of("control_embedding.0.weight", 2), of("time_embedding.cond_proj.weight", 2)
    fields: dict[str, Any] = {
        "num_layers": len({name.split(".")[1] for name in shapes if name.startswith("transformer_blocks.")}),
        "control_dim": control[1] if control else None,
        "guidance_dim": guidance[1] if guidance else None,
    }
    if patch := of("patch_embed.proj.weight", 4):
        fields |= {"width": patch[0], "channels": patch[1], "patch_size": patch[2]}
        if head := of("transformer_blocks.0.attn1.norm_q.weight", 1):
            fields["num_heads"] = patch[0] // head[0]
        if up := of("transformer_blocks.0.ff.net.0.proj.weight", 2):
            fields["mlp_ratio"] = up[0] / patch[0]
    if time := of("time_embedding.linear_1.weight", 2):
        fields["time_dim"] = time[0]
    if text := of("patch_embed.text_proj.weight", 2):
        fields["text_dim"] = text[1]
    return fields


LAYOUT = KeyLayout(
    name="diffusers",
    title=f"The Matrix and diffusers' {cogvideox_config.CLASS_NAME}",
    marks=("patch_embed.text_proj.weight",),
    rules=rules,
    from_shapes=from_shapes,
    from_config=cogvideox_config.from_config,
    to_config=cogvideox_config.to_config,
    limits=cogvideox_config.limits,
    adapter_prefix=ADAPTER_PREFIX,
)
