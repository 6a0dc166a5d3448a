"""HunyuanVideo-1.5: forward passes of the transformer in all modes."""

import dataclasses
from collections.abc import Sequence

import golden_cases
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion import engine, hunyuan, hunyuan_diffusers
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import FrameInputs, HunyuanTransformer


def config_of(case: golden_cases.GoldenCase) -> HunyuanConfig:
    constructor = case.config["constructor"]
    return HunyuanConfig(
        channels=constructor["in_channels"],
        patch_size=tuple(constructor["patch_size"]),
        width=constructor["hidden_size"],
        num_heads=constructor["heads_num"],
        num_layers=constructor["mm_double_blocks_depth"],
        mlp_ratio=constructor["mlp_width_ratio"],
        rope_dims=tuple(constructor["rope_dim_list"]),
        rope_theta=constructor["rope_theta"],
        text_dim=constructor["text_states_dim"],
        glyph_dim=case.config["byt5_in_dim"],
        glyph_hidden=case.config["byt5_hidden_dim"],
        glyph_out=case.config["byt5_out_dim"],
        vision_dim=constructor["vision_states_dim"],
        actions="action_in.mlp.0.weight" in case.weights,
        dtype=jnp.float32,
    )


def load_model(case: golden_cases.GoldenCase, **changes: object) -> HunyuanTransformer:
    cfg = dataclasses.replace(config_of(case), **changes)
    return _filled(cfg, case.weights, hunyuan.rules(cfg))


def load_diffusers_model(case: golden_cases.GoldenCase) -> HunyuanTransformer:
    shapes = {name: weight.shape for name, weight in case.weights.items()}
    fields = hunyuan_diffusers.from_config(case.config["transformer_config"], case.name)
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
    inputs = case.inputs
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
    forward = nnx.jit(HunyuanTransformer.__call__, static_argnames="chunk_frames")
    time = jnp.asarray(inputs["timestep_txt"])
    output = forward(load_model(case), frames, text, time, chunk_frames=case.config.get("chunk_latents"))
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
    forward = nnx.jit(HunyuanTransformer.__call__, static_argnames="chunk_frames")
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
