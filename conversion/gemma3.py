"""Key tables of Gemma-3 with and without its vision tower, for published files and naming styles of transformers.

Source: the key tables of transformers 4.56 and 5.x, `models/gemma3`.
"""

import dataclasses
import re

from conversion.engine import IDENTITY, TRANSPOSED, Rule, patch_kernel
from jworld.models.gemma3.config import Gemma3Config


@dataclasses.dataclass(frozen=True)
class Names:
    """Prefixes of the keys of the three parts; None for parts that files of a style never have."""

    text: str
    vision: str | None = None
    projector: str | None = None


#: Layout -> prefixes.
STYLES = {
    "hub": Names("language_model.model.", "vision_tower.vision_model.", "multi_modal_projector."),
    "transformers4": Names("model.language_model.", "model.vision_tower.vision_model.", "model.multi_modal_projector."),
    "transformers5": Names("model.language_model.", "model.vision_tower.", "model.multi_modal_projector."),
    "transformers5-saved": Names("language_model.model.", "vision_tower.", "multi_modal_projector."),
    "text": Names("model."),
}
#: Output heads, which files repeat although they are the embedding.
HEADS = ("lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight")

#: Beginnings of a part's keys after the prefix; some styles insert one more word.
_BEGINS = {
    "text": re.compile(r"(embed_tokens|layers|norm)\."),
    "vision": re.compile(r"(embeddings|encoder|post_layernorm)\."),
    "projector": re.compile(r"mm_"),
}
# Theirs -> ours, below a layer.
_TEXT_MATRICES = (
    *(
        (f"self_attn.{theirs}_proj", f"attention/{ours}")
        for theirs, ours in zip("qkvo", ("query", "key", "value", "out"), strict=True)
    ),
    *((f"mlp.{name}_proj", f"mlp/{name}") for name in ("gate", "up", "down")),
)
_TEXT_NORMS = (
    ("self_attn.q_norm", "attention/query_norm"),
    ("self_attn.k_norm", "attention/key_norm"),
    ("input_layernorm", "attention_in_norm"),
    ("post_attention_layernorm", "attention_out_norm"),
    ("pre_feedforward_layernorm", "mlp_in_norm"),
    ("post_feedforward_layernorm", "mlp_out_norm"),
)
_VISION_MATRICES = (
    ("self_attn.q_proj", "query"),
    ("self_attn.k_proj", "key"),
    ("self_attn.v_proj", "value"),
    ("self_attn.out_proj", "out"),
    ("mlp.fc1", "mlp/up"),
    ("mlp.fc2", "mlp/down"),
)
_VISION_NORMS = (("layer_norm1", "attention_norm"), ("layer_norm2", "mlp_norm"))


def rules(cfg: Gemma3Config, names: Names) -> tuple[Rule, ...]:
    """Return the key table of a model of these sizes in one of the styles."""
    layer = names.text + "layers.{layer}"
    return (
        Rule(names.text + "embed_tokens.weight", "language/embedding"),
        Rule(names.text + "norm.weight", "language/norm/scale"),
        *(Rule(f"{layer}.{a}.weight", f"language/layers/{b}/kernel", TRANSPOSED) for a, b in _TEXT_MATRICES),
        *(Rule(f"{layer}.{a}.weight", f"language/layers/{b}/scale") for a, b in _TEXT_NORMS),
        *(() if names.vision is None else _vision(cfg, names.vision)),
        *(() if names.projector is None else _projector(names.projector)),
    )


def _vision(cfg: Gemma3Config, prefix: str) -> tuple[Rule, ...]:
    encoder = prefix + "encoder.layers.{layer}"
    patch = patch_kernel((cfg.patch_size, cfg.patch_size))
    return (
        Rule(prefix + "embeddings.patch_embedding.weight", "vision/patch_in/kernel", patch),
        Rule(prefix + "embeddings.patch_embedding.bias", "vision/patch_in/bias"),
        Rule(prefix + "embeddings.position_embedding.weight", "vision/positions"),
        *(
            Rule(f"{encoder}.{a}.{theirs}", f"vision/layers/{b}/{ours}", layout)
            for a, b in _VISION_MATRICES
            for theirs, ours, layout in (("weight", "kernel", TRANSPOSED), ("bias", "bias", IDENTITY))
        ),
        *(
            Rule(f"{encoder}.{a}.{theirs}", f"vision/layers/{b}/{ours}")
            for a, b in _VISION_NORMS
            for theirs, ours in (("weight", "scale"), ("bias", "bias"))
        ),
        Rule(prefix + "post_layernorm.weight", "vision/norm/scale"),
        Rule(prefix + "post_layernorm.bias", "vision/norm/bias"),
    )


def _projector(prefix: str) -> tuple[Rule, ...]:
    return (
        # Stored as [in, out], unlike the weights of linear layers.
        Rule(prefix + "mm_input_projection_weight", "projector/linear/kernel"),
        Rule(prefix + "mm_soft_emb_norm.weight", "projector/norm/scale"),
    )


def restyle(name: str, style: str) -> str | None:
    """Convert a tensor's name from any style to `style`; None for a name that is not of Gemma-3 in that style."""
    target = STYLES[style]
    for part, begins in _BEGINS.items():
        for names in STYLES.values():
            prefix, own = getattr(names, part), getattr(target, part)
            if prefix is not None and name.startswith(prefix) and begins.match(name.removeprefix(prefix)):
                return None if own is None else f"{own}{name.removeprefix(prefix)}"
    return None
