"""Original keys of Cosmos-Predict2: Video2World and its text2image, action-conditioned and multiview variants.

A published file holds the weights under the prefix `net.`. A training checkpoint also has their EMA, under `net_ema.`.
"""

import re
from collections.abc import Mapping
from typing import Any

from conversion import cosmos_config
from conversion.base import KeyLayout, check_prediction
from conversion.engine import TRANSPOSED, Rule, Shape
from jworld.models.cosmos.config import CosmosConfig

WEIGHTS = "net."
EMA = "net_ema."
#: Tensors in a file that are not weights: rotary tables, counters of the trainer, states of Transformer Engine.
IGNORED = re.compile(r"(.*\.)?(pos_embedder(_options\.\w+)?\.(seq|dim_\w+_range)|accum_\w+|.*_extra_state)")

# Name in a block of the original -> name in our block.
_ATTENTIONS = (("self_attn", "self_attention"), ("cross_attn", "cross_attention"))
_PROJECTIONS = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("output_proj", "out"))
_MODULATIONS = (("self_attn", "self_modulation"), ("cross_attn", "cross_modulation"), ("mlp", "mlp_modulation"))


def matrix(source: str, target: str) -> Rule:
    """Return the rule of an nn.Linear without bias."""
    return Rule(source + ".weight", target + "/kernel", TRANSPOSED)


def biased(source: str, target: str) -> list[Rule]:
    """Return the rules of an nn.Linear with bias."""
    return [matrix(source, target), Rule(source + ".bias", target + "/bias")]


def _modulation(source: str, target: str, cfg: CosmosConfig) -> list[Rule]:
    if cfg.modulation_rank is None:
        return [matrix(f"{source}.1", f"{target}/linear")]
    return [matrix(f"{source}.1", f"{target}/reduce"), matrix(f"{source}.2", f"{target}/linear")]


def _blocks(cfg: CosmosConfig) -> list[Rule]:
    block, rules = "blocks.{layer}", []
    for theirs, ours in _ATTENTIONS:
        for name, projection in _PROJECTIONS:
            rules.append(matrix(f"{block}.{theirs}.{name}", f"blocks/{ours}/{projection}"))
        for name in ("q", "k"):
            target = {"q": "query_norm", "k": "key_norm"}[name]
            rules.append(Rule(f"{block}.{theirs}.{name}_norm.weight", f"blocks/{ours}/{target}/scale"))
    for theirs, ours in _MODULATIONS:
        rules += _modulation(f"{block}.adaln_modulation_{theirs}", f"blocks/{ours}", cfg)
    rules.append(matrix(f"{block}.mlp.layer1", "blocks/mlp/up"))
    rules.append(matrix(f"{block}.mlp.layer2", "blocks/mlp/down"))
    return rules


def rules(cfg: CosmosConfig, prefix: str = WEIGHTS) -> tuple[Rule, ...]:
    """Return the key table for a model of these sizes; `prefix` is `WEIGHTS`, `EMA` or empty."""
    check_prediction(cfg.prediction)
    table = [
        matrix("x_embedder.proj.1", "patch_in"),
        *biased("t_embedder.1.linear_1", "time/hidden"),
        matrix("t_embedder.1.linear_2", "time/output"),
        Rule("t_embedding_norm.weight", "time/norm/scale"),
        *biased("crossattn_proj.0", "text"),
        *(Rule(f"extra_pos_embedder.pos_emb_{name[0]}", f"positions/{name}") for name in ("time", "height", "width")),
        *biased("action_embedder_B_D.fc1", "action/hidden"),
        *biased("action_embedder_B_D.fc2", "action/output"),
        *biased("action_embedder_B_3D.fc1", "action_offset/hidden"),
        *biased("action_embedder_B_3D.fc2", "action_offset/output"),
        Rule("view_embeddings.weight", "views/embedding"),
        *_blocks(cfg),
        *_modulation("final_layer.adaln_modulation", "final_modulation", cfg),
        matrix("final_layer.linear", "patch_out"),
    ]
    return tuple(Rule(prefix + rule.source, rule.target, rule.layout, rule.part) for rule in table)


def from_shapes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the hyper-parameters that follow from the tensors' shapes; names may have either prefix or none.

    The rotary scales follow from nothing in a file. Patches are assumed to be 2 x 2, as in all published models.
    """
    names = {name.removeprefix(WEIGHTS).removeprefix(EMA): shape for name, shape in shapes.items()}
    sizes: dict[str, Any] = {}

    def of(name: str, rank: int) -> Shape | None:
        shape = names.get(name)
        return shape if shape is not None and len(shape) == rank and all(shape) else None

    if patch := of("x_embedder.proj.1.weight", 2):
        width = patch[0]
        sizes["width"] = width
        if head := of("blocks.0.self_attn.q_norm.weight", 1):
            sizes["num_heads"] = width // head[0]
        if mlp := of("blocks.0.mlp.layer1.weight", 2):
            sizes["mlp_ratio"] = mlp[0] / width
    if layers := len({name.split(".")[1] for name in names if name.startswith("blocks.")}):
        sizes["num_layers"] = layers
    if key := of("blocks.0.cross_attn.k_proj.weight", 2):
        projection = of("crossattn_proj.0.weight", 2)
        sizes |= {"text_width": key[1], "text_dim": projection[1] if projection else key[1]}
    reduced = of("blocks.0.adaln_modulation_mlp.2.weight", 2)
    sizes["modulation_rank"] = reduced[1] if reduced else None
    if time := of("extra_pos_embedder.pos_emb_t", 2):
        rows, columns = (of(f"extra_pos_embedder.pos_emb_{axis}", 2) or (0, 0) for axis in "hw")
        sizes |= {"absolute_positions": True, "max_size": (time[0], 2 * rows[0], 2 * columns[0])}
    if action := of("action_embedder_B_D.fc1.weight", 2):
        sizes["action_dim"] = action[1]
    if view := of("view_embeddings.weight", 2):
        sizes |= {"views": view[0], "view_dim": view[1], "fps_modulation": True}
    return sizes | _channels(of("final_layer.linear.weight", 2), patch, sizes.get("view_dim", 0))


def _channels(output: Shape | None, patch: Shape | None, view_dim: int) -> dict[str, Any]:
    """Return latent channels and masks; a model with one mask has the padding mask (text2image)."""
    if output is None or patch is None:
        return {}
    masks = patch[1] // 4 - output[0] // 4 - view_dim
    return {"channels": output[0] // 4, "condition_mask": masks > 1, "padding_mask": masks > 0}


LAYOUT = KeyLayout(
    name="original",
    title="Cosmos-Predict2",
    one_file=True,
    marks=tuple(prefix + "x_embedder.proj.1.weight" for prefix in (WEIGHTS, EMA, "")),
    rules=rules,
    from_shapes=from_shapes,
    from_config=cosmos_config.from_config,
    to_config=cosmos_config.to_config,
    limits=cosmos_config.limits,
    prefixes=(WEIGHTS, EMA),
    ignored=IGNORED,
)
