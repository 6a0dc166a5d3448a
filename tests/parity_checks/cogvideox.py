"""The Matrix: forward passes of the CogVideoX transformer in each stage."""

import golden_cases
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion import cogvideox, engine
from jworld.models.cogvideox.config import CogVideoXConfig
from jworld.models.cogvideox.transformer import CogVideoXTransformer, guidance_embedding


def config_of(case: golden_cases.GoldenCase) -> CogVideoXConfig:
    model = case.config["model"]
    control = model.get("control_dim")
    return CogVideoXConfig(
        channels=model["in_channels"],
        patch_size=model["patch_size"],
        width=model["num_attention_heads"] * model["attention_head_dim"],
        num_heads=model["num_attention_heads"],
        num_layers=model["num_layers"],
        time_dim=model["time_embed_dim"],
        text_dim=model["text_embed_dim"],
        text_tokens=model["max_text_seq_length"],
        spatial_scale=model["spatial_interpolation_scale"],
        temporal_scale=model["temporal_interpolation_scale"],
        norm_eps=model["norm_eps"],
        control_dim=control,
        control_layers=(model["control_start_layer"], model["control_end_layer"]) if control else (0, 0),
        guidance_dim=model.get("cond_proj_dim"),
        dtype=jnp.float32,
    )


def load_model(case: golden_cases.GoldenCase) -> CogVideoXTransformer:
    return filled(config_of(case), case.weights)


def filled(cfg: CogVideoXConfig, weights: dict[str, np.ndarray]) -> CogVideoXTransformer:
    with nnx.use_eager_sharding(False):
        abstract = nnx.eval_shape(lambda: CogVideoXTransformer(cfg, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(abstract)
        return nnx.merge(graphdef, engine.to_state(state, engine.import_tensors(weights, state, cogvideox.rules(cfg))))


def channels_last(x: np.ndarray) -> np.ndarray:
    """Transpose [B, F, C, H, W] -> [B, F, H, W, C]."""
    return np.moveaxis(x, 2, -1)


forward = nnx.jit(CogVideoXTransformer.__call__)


def optional(inputs: dict[str, np.ndarray], name: str) -> jnp.ndarray | None:
    return jnp.asarray(inputs[name]) if name in inputs else None


def _transformer(case: golden_cases.GoldenCase) -> float:
    inputs, model = case.inputs, load_model(case)
    output = forward(
        model,
        jnp.asarray(channels_last(inputs["hidden_states"])),
        jnp.asarray(inputs["encoder_hidden_states"]),
        jnp.asarray(inputs["timestep"]),
        control=optional(inputs, "control_emb"),
        guidance=optional(inputs, "guidance_w"),
    )
    errors = [golden_cases.relative_error(output, channels_last(case.outputs["output"]))]
    if "guidance_w" in inputs:
        embedded = guidance_embedding(jnp.asarray(inputs["guidance_w"]), model.cfg.guidance_dim)
        errors.append(golden_cases.relative_error(embedded, case.outputs["guidance_embedding"]))
    return max(errors)


CHECKS = {f"matrix/s{stage}_transformer_forward": _transformer for stage in (1, 2, 3, 4)}
