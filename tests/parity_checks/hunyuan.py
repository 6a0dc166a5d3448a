"""HunyuanVideo-1.5: forward passes of the transformer in all modes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion import engine, hunyuan, hunyuan_diffusers
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import FrameInputs, HunyuanTransformer


def config_of(case: golden_cases.GoldenCase) -> HunyuanConfig:
    config = case.config
    constructor = config["constructor"]
    fields = hunyuan.from_config(constructor, case.name)
    golden_cases.require(constructor, text_states_dim_2=None)
    # How attention is computed, and which published checkpoint the sizes belong to.
    golden_cases.without_effect(constructor, "attn_mode", "attn_param", "ideal_resolution", "ideal_task")
    actions = "action_in.mlp.0.weight" in case.weights
    golden_cases.require(config, action_parameters=actions)
    require_float32(config)
    return HunyuanConfig(
        **({"glyph_dim": config["byt5_in_dim"]} | fields),
        glyph_hidden=config["byt5_hidden_dim"],
        glyph_out=config["byt5_out_dim"],
        actions=actions,
        dtype=jnp.float32,
    )


def require_float32(config: Mapping[str, Any]) -> None:
    """Fail if the original computed in another type; the config may have a remark after its name."""
    assert config["dtype"].split()[0] == "float32", f"dtype is {config['dtype']}, expected float32"


def require_sizes(config: Mapping[str, Any], cfg: HunyuanConfig, video: np.ndarray) -> None:
    """Compare the sizes that a config states with video [B, C, F, H, W]."""
    B, _, F, H, W = video.shape
    golden_cases.require(config, batch=B, latent_frames=F, latent_h=H, latent_w=W)
    golden_cases.require(config, tokens_per_latent=H * W // math.prod(cfg.patch_size))


def require_text(config: Mapping[str, Any], text: TextInputs) -> None:
    """Compare the numbers of conditioning tokens that a config states with the stored ones."""
    golden_cases.require(
        config,
        text_tokens=text.text.shape[1],
        valid_text_tokens=np.asarray(text.text_mask).sum(axis=1),
        byt5_tokens=text.glyph.shape[1],
        valid_byt5_tokens=np.asarray(text.glyph_mask).sum(axis=1),
        vision_tokens=text.vision.shape[1],
    )


def load_model(case: golden_cases.GoldenCase, **changes: object) -> HunyuanTransformer:
    cfg = dataclasses.replace(config_of(case), **changes)
    return _filled(cfg, case.weights, hunyuan.rules(cfg))


def load_diffusers_model(case: golden_cases.GoldenCase) -> HunyuanTransformer:
    shapes = {name: weight.shape for name, weight in case.weights.items()}
    config = case.config["transformer_config"]
    fields = hunyuan_diffusers.from_config(config, case.name)
    golden_cases.require(config, _class_name=hunyuan_diffusers.CLASS_NAME)
    # Which published checkpoint the sizes belong to.
    golden_cases.without_effect(config, "target_size", "task_type")
    golden_cases.require(case.config, glyph_hidden_dim=shapes["context_embedder_2.linear_1.weight"][0])
    require_float32(case.config)
    cfg = HunyuanConfig(**(hunyuan_diffusers.from_shapes(shapes) | fields), dtype=jnp.float32)
    return _filled(cfg, case.weights, hunyuan_diffusers.rules(cfg))


def _filled(cfg: HunyuanConfig, weights: dict[str, np.ndarray], rules: Sequence[engine.Rule]) -> HunyuanTransformer:
    with nnx.use_eager_sharding(False):
        abstract = nnx.eval_shape(lambda: HunyuanTransformer(cfg, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(abstract)
        return nnx.merge(graphdef, engine.to_state(state, engine.import_tensors(weights, state, rules)))


def channels_last(x: np.ndarray) -> np.ndarray:
    """Transpose [B, C, F, H, W] -> [B, F, H, W, C]."""
    return np.moveaxis(x, 1, -1)


def text_inputs(inputs: dict[str, np.ndarray], text: str, mask: str) -> TextInputs:
    return TextInputs(
        text=jnp.asarray(inputs[text]),
        text_mask=jnp.asarray(inputs[mask], bool),
        vision=jnp.asarray(inputs["vision_states"]),
        glyph=jnp.asarray(inputs["byt5_text_states"]),
        glyph_mask=jnp.asarray(inputs["byt5_text_mask"], bool),
    )


def _transformer(case: golden_cases.GoldenCase) -> float:
    inputs, model = case.inputs, load_model(case)
    require_sizes(case.config, model.cfg, inputs["hidden_states"])
    video = jnp.asarray(channels_last(inputs["hidden_states"]))
    per_frame = video.shape[:2]
    actions = "action" in inputs
    frames = FrameInputs(
        video,
        jnp.asarray(inputs["timestep"]).reshape(per_frame),
        jnp.asarray(inputs["action"]).reshape(per_frame) if actions else None,
        jnp.asarray(inputs["viewmats"]) if actions else None,
        jnp.asarray(inputs["Ks"]) if actions else None,
    )
    text = text_inputs(inputs, "text_states", "encoder_attention_mask")
    require_text(case.config, text)
    forward = jax.jit(HunyuanTransformer.__call__, static_argnames="chunk_frames")
    time = jnp.asarray(inputs["timestep_txt"])
    output = forward(model, frames, text, time, chunk_frames=case.config.get("chunk_latents"))
    return golden_cases.relative_error(output, channels_last(case.outputs["output"]))


def _diffusers(case: golden_cases.GoldenCase) -> float:
    inputs = case.inputs
    video = jnp.asarray(channels_last(inputs["hidden_states"]))
    time = jnp.asarray(inputs["timestep"])
    frames = FrameInputs(video, jnp.repeat(time[:, None], video.shape[1], axis=1))
    vision = jnp.asarray(inputs["image_embeds"])
    text = TextInputs(
        text=jnp.asarray(inputs["encoder_hidden_states"]),
        text_mask=jnp.asarray(inputs["encoder_attention_mask"], bool),
        vision=vision,
        glyph=jnp.asarray(inputs["encoder_hidden_states_2"]),
        glyph_mask=jnp.asarray(inputs["encoder_attention_mask_2"], bool),
        vision_mask=jnp.ones(vision.shape[:2], bool),
    )
    # diffusers treats image states of zero as a call without image.
    without_image = text._replace(vision=jnp.zeros_like(vision), vision_mask=jnp.zeros(vision.shape[:2], bool))
    forward = jax.jit(HunyuanTransformer.__call__, static_argnames="chunk_frames")
    model = load_diffusers_model(case)
    outputs = {
        "sample": forward(model, frames, text, time, chunk_frames=None),
        "sample_t2v": forward(model, frames, without_image, time, chunk_frames=None),
    }
    return golden_cases.largest_error(outputs, {name: channels_last(value) for name, value in case.outputs.items()})


CHECKS = {
    "worldplay/transformer_ar_train": _transformer,
    "worldplay/transformer_bidirectional": _transformer,
    "worldplay/transformer_diffusers": _diffusers,
    "worldplay/transformer_plain": _transformer,
}
