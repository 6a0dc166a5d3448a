"""Key tables of Gemma-3 with its vision tower, for the published files and three naming styles of transformers.

Source: the key tables of transformers 4.56 and 5.x, `models/gemma3`.
"""

import dataclasses
import re

from conversion.engine import IDENTITY, TRANSPOSED, Rule, patch_kernel
from jworld.models.gemma3.config import Gemma3Config


@dataclasses.dataclass(frozen=True)
class Names:
    """Prefixes of the keys of the three parts."""

    text: str
    vision: str
    projector: str


#: Layout -> prefixes.
STYLES = {
    "hub": Names("language_model.model.", "vision_tower.vision_model.", "multi_modal_projector."),
    "transformers4": Names("model.language_model.", "model.vision_tower.vision_model.", "model.multi_modal_projector."),
    "transformers5": Names("model.language_model.", "model.vision_tower.", "model.multi_modal_projector."),
    "transformers5-saved": Names("language_model.model.", "vision_tower.", "multi_modal_projector."),
}
#: Output heads in old files, equal to the embedding.
HEADS = ("lm_head.weight", "language_model.lm_head.weight")

#: Beginning of the vision tower's keys after the prefix; some styles insert one more word.
_VISION_BEGINS = re.compile(r"(embeddings|encoder|post_layernorm)\.")
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
    layer, encoder = names.text + "layers.{layer}", names.vision + "encoder.layers.{layer}"
    patch = patch_kernel((cfg.patch_size, cfg.patch_size))
    return (
        Rule(names.text + "embed_tokens.weight", "language/embedding"),
        Rule(names.text + "norm.weight", "language/norm/scale"),
        *(Rule(f"{layer}.{a}.weight", f"language/layers/{b}/kernel", TRANSPOSED) for a, b in _TEXT_MATRICES),
        *(Rule(f"{layer}.{a}.weight", f"language/layers/{b}/scale") for a, b in _TEXT_NORMS),
        Rule(names.vision + "embeddings.patch_embedding.weight", "vision/patch_in/kernel", patch),
        Rule(names.vision + "embeddings.patch_embedding.bias", "vision/patch_in/bias"),
        Rule(names.vision + "embeddings.position_embedding.weight", "vision/positions"),
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
        Rule(names.vision + "post_layernorm.weight", "vision/norm/scale"),
        Rule(names.vision + "post_layernorm.bias", "vision/norm/bias"),
        # Stored as [in, out], unlike the weights of linear layers.
        Rule(names.projector + "mm_input_projection_weight", "projector/linear/kernel"),
        Rule(names.projector + "mm_soft_emb_norm.weight", "projector/norm/scale"),
    )


def restyle(name: str, style: str) -> str | None:
    """Convert a tensor's name from any style to `style`; None for a name that is not of Gemma-3."""
    target = STYLES[style]
    for part in ("text", "vision", "projector"):
        for names in STYLES.values():
            rest = name.removeprefix(getattr(names, part))
            if rest != name and (part != "vision" or _VISION_BEGINS.match(rest)):
                return f"{getattr(target, part)}{rest}"
    return None
