"""Cosmos-Predict2: the transformer in all variants, its rotary angles and its action labels."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion import cosmos, cosmos_diffusers, engine
from conversion import lora as lora_keys
from jworld.cameras import robots
from jworld.models.cosmos.config import CosmosConfig
from jworld.models.cosmos.embeddings import video_rotary
from jworld.models.cosmos.transformer import CosmosInputs, CosmosTransformer
from jworld.models.layers import lora, rotary
from jworld.training.state import path_filter

CONDITION = "condition_video_input_mask_B_C_T_H_W"


#: Backends of the original that compute plain softmax attention; NATTEN's is sparse.
BACKENDS = ("torch", "transformer_engine", "minimal_a2a")


def config_of(case: golden_cases.GoldenCase) -> CosmosConfig:
    constructor, kind = case.config["model_kwargs"], case.config.get("class_name", "MinimalV1LVGDiT")
    patch = constructor["patch_temporal"], constructor["patch_spatial"], constructor["patch_spatial"]
    multiview = kind == "MultiViewDiT"
    names = {"views": "n_cameras_emb", "view_dim": "view_condition_dim", "view_frames": "state_t"}
    fields = {ours: constructor[theirs] for ours, theirs in names.items()} if multiview else {}
    golden_cases.require(constructor, in_channels=constructor["out_channels"], pos_emb_cls="rope3d")
    golden_cases.require(constructor, concat_view_embedding=True)
    assert constructor["atten_backend"] in BACKENDS, f"atten_backend is {constructor['atten_backend']!r}, a sparse one"
    # Learned positions are always cropped; the original accepts the others and ignores them.
    golden_cases.require(constructor, pos_emb_interpolation="crop")
    golden_cases.without_effect(constructor, "pos_emb_learnable", "min_fps", "max_fps")
    golden_cases.without_effect(constructor, *(f"extra_{axis}_extrapolation_ratio" for axis in "thw"))
    # The multiview class ignores the switch and always modulates.
    fps_modulation = constructor["rope_enable_fps_modulation"] or multiview
    rank = constructor["adaln_lora_dim"]
    return CosmosConfig(
        channels=constructor["out_channels"],
        patch_size=patch,
        width=constructor["model_channels"],
        num_heads=constructor["num_heads"],
        num_layers=constructor["num_blocks"],
        mlp_ratio=constructor["mlp_ratio"],
        text_dim=constructor["crossattn_proj_in_channels"],
        text_width=constructor["crossattn_emb_channels"],
        modulation_rank=rank if constructor["use_adaln_lora"] else None,
        rope_scale=tuple(constructor[f"rope_{axis}_extrapolation_ratio"] for axis in "thw"),
        fps_modulation=fps_modulation,
        time_scale=case.config.get("t_scaling_factor", 1.0),
        max_size=(constructor["max_frames"], constructor["max_img_h"], constructor["max_img_w"]),
        absolute_positions=constructor["extra_per_block_abs_pos_emb"],
        condition_mask=kind != "MiniTrainDIT",
        padding_mask=constructor["concat_padding_mask"],
        action_dim=constructor.get("action_dim"),
        dtype=jnp.float32,
        **fields,
    )


def weights_of(case: golden_cases.GoldenCase) -> dict[str, np.ndarray]:
    """Return the case's own weights, or those of the case that it refers to."""
    path = case.path / "weights.safetensors"
    shared = case if path.exists() else golden_cases.GoldenCase(case.path.parent / case.config["weights_of"])
    return {name: value for name, value in shared.weights.items() if not cosmos.IGNORED.fullmatch(name)}


def fill(cfg: CosmosConfig, weights: Mapping[str, np.ndarray], rules: Any) -> CosmosTransformer:
    with nnx.use_eager_sharding(False):
        abstract = nnx.eval_shape(lambda: CosmosTransformer(cfg, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(abstract)
        return nnx.merge(graphdef, engine.to_state(state, engine.import_tensors(weights, state, rules)))


def load_model(case: golden_cases.GoldenCase, **changes: Any) -> CosmosTransformer:
    cfg = dataclasses.replace(config_of(case), **changes)
    return fill(cfg, weights_of(case), cosmos.rules(cfg, prefix=""))


def channels_last(x: np.ndarray) -> jax.Array:
    """Transpose [..., C, F, H, W] -> [..., F, H, W, C]."""
    return jnp.asarray(np.moveaxis(x, -4, -1))


def conditioning_frames(inputs: Mapping[str, np.ndarray], index: Any = ...) -> jax.Array | None:
    """Return the condition mask as [B, F]: all pixels of a frame have one value."""
    if CONDITION not in inputs:
        return None
    mask = inputs[CONDITION][index]
    assert (mask == mask[..., :1, :1]).all()
    return jnp.asarray(mask[..., 0, :, 0, 0])


def model_inputs(inputs: Mapping[str, np.ndarray]) -> CosmosInputs:
    def optional(name: str) -> jax.Array | None:
        return jnp.asarray(inputs[name]) if name in inputs else None

    time = jnp.asarray(inputs["timesteps_B_T"])
    padding, fps = optional("padding_mask"), optional("fps")
    return CosmosInputs(
        video=channels_last(inputs["x_B_C_T_H_W"]),
        time=time if time.ndim == 2 else time[:, None],
        text=jnp.asarray(inputs["crossattn_emb"]),
        given=conditioning_frames(inputs),
        padding=None if padding is None else padding[:, 0],
        action=optional("action"),
        fps=None if fps is None else fps[0],
        view=optional("view_indices_B_T"),
    )


forward = jax.jit(CosmosTransformer.__call__)


def _require_inputs(config: Mapping[str, Any], inputs: CosmosInputs) -> None:
    """Fail unless the stored inputs are what the config states."""
    is_image = inputs.given is None or (inputs.video.shape[1] == 1 and not np.any(inputs.given))
    golden_cases.require(config, data_type="IMAGE" if is_image else "VIDEO")
    if inputs.action is not None:
        golden_cases.require(config, action_steps=inputs.action.shape[1], action_width=inputs.action.shape[2])
    if inputs.view is not None:
        golden_cases.require(config, n_views=len(np.unique(inputs.view)))


def _transformer(case: golden_cases.GoldenCase) -> float:
    model, inputs = load_model(case), model_inputs(case.inputs)
    _require_inputs(case.config, inputs)
    output = forward(model, inputs)
    error = golden_cases.relative_error(output, channels_last(case.outputs["output"]))
    if "output_default_view_indices" in case.outputs:
        output = forward(model, inputs._replace(view=None))
        expected = channels_last(case.outputs["output_default_view_indices"])
        error = max(error, golden_cases.relative_error(output, expected))
    return error


def _diffusers(case: golden_cases.GoldenCase) -> float:
    """Compare both layouts of the same weights; with a frame rate, diffusers' class modulates by fps."""
    weights = case.diffusers_weights
    fields = cosmos_diffusers.from_config(case.config["diffusers_config"], case.name)
    sizes = cosmos_diffusers.from_shapes({name: value.shape for name, value in weights.items()})
    cfg = CosmosConfig(**(sizes | fields), dtype=jnp.float32)
    assert cfg == config_of(case)
    written = cosmos_diffusers.to_config(cfg)
    golden_cases.require(case.config["diffusers_config"], **written)
    assert written.keys() >= case.config["diffusers_config"].keys()
    model, inputs = fill(cfg, weights, cosmos_diffusers.rules(cfg)), model_inputs(case.inputs)
    original = fill(cfg, weights_of(case), cosmos.rules(cfg, prefix=""))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, nnx.state(model), nnx.state(original))))
    outputs = {"output_original": forward(model, inputs)}
    outputs["output_diffusers_fps_none"] = outputs["output_original"]
    modulated = fill(dataclasses.replace(cfg, fps_modulation=True), weights, cosmos_diffusers.rules(cfg))
    for name in case.outputs.keys() - outputs.keys():
        fps = jnp.float32(name.removeprefix("output_diffusers_fps_"))
        outputs[name] = forward(modulated, inputs._replace(fps=fps))
    return golden_cases.largest_error(outputs, {name: channels_last(x) for name, x in case.outputs.items()})


#: Names of layers in the original -> our names.
LORA_TARGETS = {
    "q_proj": ".*_attention/query",
    "k_proj": ".*_attention/key",
    "v_proj": ".*_attention/value",
    "output_proj": ".*_attention/out",
    "mlp.layer1": ".*mlp/up",
    "mlp.layer2": ".*mlp/down",
}


def load_adapted_model(case: golden_cases.GoldenCase) -> CosmosTransformer:
    cfg = config_of(case)
    targets = tuple(LORA_TARGETS[name] for name in case.config["lora_target_modules"].split(","))
    adapters = lora.LoRAConfig(targets=targets, rank=case.config["lora_rank"], alpha=case.config["lora_alpha"])

    def make() -> CosmosTransformer:
        rngs = nnx.Rngs(0)
        model = CosmosTransformer(cfg, rngs=rngs)
        lora.add(model, adapters, rngs=rngs)
        return model

    with nnx.use_eager_sharding(False):
        graphdef, state = nnx.split(nnx.eval_shape(make))
        rules = lora_keys.rules(cosmos.rules(cfg, prefix=""), engine.parameter_shapes(state))
        return nnx.merge(graphdef, engine.to_state(state, engine.import_tensors(weights_of(case), state, rules)))


def _lora(case: golden_cases.GoldenCase) -> float:
    """Compare outputs with adapters, with adapters merged into the kernels, and without adapters."""
    model, inputs = load_adapted_model(case), model_inputs(case.inputs)
    _, trained = nnx.split(model)
    trained, _ = nnx.split_state(trained, path_filter(lora.TRAINABLE), ...)
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == case.config["num_lora_parameters"]
    outputs = [("output_with_lora", forward(model, inputs))]
    adapters = lora.merge(model)
    outputs.append(("output_with_lora", forward(model, inputs)))
    lora.unmerge(model, adapters)
    for adapter in adapters.values():
        adapter.b.set_value(jnp.zeros_like(adapter.b[...]))
    outputs.append(("output_base_only", forward(model, inputs)))
    return max(golden_cases.relative_error(x, channels_last(case.outputs[name])) for name, x in outputs)


def _rotary(case: golden_cases.GoldenCase) -> float:
    expected: dict[str, np.ndarray] = {}
    for entry in case.config["entries"]:
        angles = case.outputs[f"{entry['key']}.angles_L_1_1_hd"][:, 0, 0, : entry["head_dim"] // 2]
        expected |= {f"{entry['key']}.cos": np.cos(angles), f"{entry['key']}.sin": np.sin(angles)}
        expected[f"{entry['key']}.q"] = case.outputs[f"{entry['key']}.q_rotated"]

    @jax.jit
    def actual(inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        outputs = {}
        for entry in case.config["entries"]:
            # Width and heads determine only the size of a head here.
            cfg = CosmosConfig(
                width=entry["head_dim"],
                num_heads=1,
                rope_scale=(entry["t_ratio"], entry["h_ratio"], entry["w_ratio"]),
                fps_modulation=entry["enable_fps_modulation"],
                base_fps=entry["base_fps"],
                max_size=(case.config["len_t"], 2 * case.config["len_h"], 2 * case.config["len_w"]),
            )
            factors = {
                axis: rotary.extrapolated_theta(entry[f"{axis}_ratio"], cfg.rope_dims["thw".index(axis)], 1.0)
                for axis in "th"
            }
            golden_cases.require(entry, **{f"{axis}_ntk_factor": np.array(factors[axis]) for axis in factors})
            tables = video_rotary(cfg, frames=entry["T"], height=entry["h"], width=entry["w"], fps=entry["fps"])
            cos, sin = (table.reshape(-1, entry["head_dim"] // 2) for table in tables)
            q = rotary.rotate_halves(inputs[f"{entry['key']}.q_B_L_heads_hd"], cos, sin)
            outputs |= {f"{entry['key']}.cos": cos, f"{entry['key']}.sin": sin, f"{entry['key']}.q": q}
        return outputs

    return golden_cases.largest_error(actual(case.inputs), expected)


def _action_labels(case: golden_cases.GoldenCase) -> float:
    golden_cases.require(case.config, sequence_length=len(case.inputs["arm_states"]))
    outputs = {
        f"actions_scaled_accumulate_{whole}": robots.relative_actions(
            case.inputs["arm_states"],
            case.inputs["gripper_states"],
            scale=tuple(case.config["scale"]),
            from_first=whole,
        )
        for whole in (False, True)
    }
    return golden_cases.largest_error(outputs, case.outputs)


CHECKS = {
    "cosmos/action_labels": _action_labels,
    "cosmos/diffusers_parity": _diffusers,
    "cosmos/dit": _transformer,
    "cosmos/lora": _lora,
    "cosmos/rope3d": _rotary,
}
