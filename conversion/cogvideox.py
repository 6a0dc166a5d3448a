"""Keys of the CogVideoX transformer in diffusers, with The Matrix' control blocks and guidance embedding."""

from conversion.engine import TRANSPOSED, Rule, patch_kernel
from conversion.hunyuan import linear, norm
from jworld.models.cogvideox.config import CogVideoXConfig

#: How the names of a file of adapters begin: they are those of a pipeline, of which the transformer is a part.
ADAPTER_PREFIX = "transformer."


def _expert_norm(source: str, target: str) -> list[Rule]:
    return linear(f"{source}.linear", f"{target}/modulation/linear") + norm(f"{source}.norm", f"{target}/norm")


def _projections(source: str, target: str) -> list[Rule]:
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "out"}
    rules = [rule for key, ours in names.items() for rule in linear(f"{source}.{key}", f"{target}/{ours}")]
    return rules + norm(f"{source}.norm_q", f"{target}/query_norm") + norm(f"{source}.norm_k", f"{target}/key_norm")


def rules(cfg: CogVideoXConfig) -> list[Rule]:
    """The table of one model."""
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
