"""The Matrix: forward passes of the CogVideoX transformer in each stage."""

from collections.abc import Mapping
from typing import Any

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion import cogvideox, cogvideox_config, engine
from jworld.models.cogvideox.config import CogVideoXConfig
from jworld.models.cogvideox.transformer import CogVideoXTransformer, guidance_embedding


def config_of(case: golden_cases.GoldenCase) -> CogVideoXConfig:
    model = case.config["model"]
    golden_cases.require(model, dropout=0.0)
    # The table of positions is made for the size of the input, and weights are stored.
    golden_cases.without_effect(
        model, "sample_width", "sample_height", "sample_frames", "temporal_compression_ratio", "control_zero_init"
    )
    return CogVideoXConfig(**cogvideox_config.from_config(model, case.name), dtype=jnp.float32)


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


forward = jax.jit(CogVideoXTransformer.__call__)


def optional(inputs: dict[str, np.ndarray], name: str) -> jnp.ndarray | None:
    return jnp.asarray(inputs[name]) if name in inputs else None


def require_sizes(args: Mapping[str, Any], latents: np.ndarray) -> None:
    """Compare the sizes that a config states with latents [B, F, C, H, W]."""
    B, F, _, H, W = latents.shape
    golden_cases.require(args, B=B, F=F, H=H, W=W)


def _transformer(case: golden_cases.GoldenCase) -> float:
    args, inputs, model = case.config["args"], case.inputs, load_model(case)
    require_sizes(args, inputs["hidden_states"])
    golden_cases.require(args, timestep=inputs["timestep"])
    if "guidance_w" in inputs:
        golden_cases.require(args, guidance_w=inputs["guidance_w"])
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
