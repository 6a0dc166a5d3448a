"""WorldPlay: one training loss with its gradients, and rollouts of both models with memory."""

import functools
from typing import Literal

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion import engine, hunyuan
from jworld.evaluation.held_out import Controls
from jworld.systems.worldplay import objective
from jworld.systems.worldplay.latents import MemoryConfig, SampleConfig
from jworld.systems.worldplay.system import SESSIONS
from parity_checks.hunyuan import channels_last, load_model, require_sizes, require_text, text_inputs


def _batch(inputs: dict[str, np.ndarray], is_memory: bool) -> dict[str, jax.Array]:
    return {
        "latent": jnp.asarray(channels_last(inputs["latents"])),
        "image_cond": jnp.asarray(channels_last(inputs["image_cond"])),
        "w2c": jnp.asarray(inputs["w2c"]),
        "intrinsics": jnp.asarray(inputs["intrinsic"]),
        "action": jnp.asarray(inputs["action"]),
        "is_memory": jnp.full(len(inputs["action"]), is_memory),
        "text_states": jnp.asarray(inputs["prompt_embed"]),
        "text_mask": jnp.asarray(inputs["prompt_mask"], bool),
        "glyph_states": jnp.asarray(inputs["byt5_text_states"]),
        "glyph_mask": jnp.asarray(inputs["byt5_text_mask"], bool),
        "vision_states": jnp.asarray(inputs["vision_states"]),
    }


def _loss(case: golden_cases.GoldenCase) -> float:
    config, inputs, expected = case.config, case.inputs, case.outputs
    batch = _batch(inputs, bool(config["select_window_out_flag"]))
    num_chunks = inputs["u"].size
    # The last chunk has no memory time; its value is never read.
    memory_times = np.append(1000 - inputs["memory_idx"], 0).reshape(1, num_chunks)
    draws = objective.Draws(
        jnp.asarray(inputs["u"]).reshape(1, num_chunks),
        jnp.asarray(memory_times),
        jnp.asarray(channels_last(inputs["noise"])),
    )
    chunk_frames = config["latent_frames"] // num_chunks
    model = load_model(case)
    require_sizes(config, model.cfg, inputs["latents"])
    golden_cases.require(config, causal=True)
    places = engine.plan(engine.parameter_shapes(nnx.state(model)), hunyuan.rules(model.cfg))
    graphdef, params = nnx.split(model, nnx.Param)

    @jax.jit
    def compute(params: nnx.State) -> tuple[jax.Array, nnx.State]:
        return jax.value_and_grad(
            lambda params: (
                objective.loss(
                    nnx.merge(graphdef, params),
                    batch,
                    draws,
                    chunk_frames=chunk_frames,
                    shift=config["train_time_shift"],
                )[0]
                / config["gradient_accumulation_steps"]
            )
        )(params)

    loss, grads = compute(params)
    flat = {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(grads)}
    times = objective.chunk_timesteps(draws, batch["is_memory"], config["train_time_shift"])
    actual = {
        "loss": loss,
        "timesteps": np.repeat(np.asarray(times)[0], chunk_frames),
        "grad_total_norm": np.sqrt(sum(np.sum(np.square(g.astype(np.float64))) for g in flat.values())),
    }
    for name in config["grad_keys"]:
        actual[f"grad.{name}"] = places[name].take(flat[places[name].path])
    for name in config["params_without_grad"]:
        assert not places[name].take(flat[places[name].path]).any(), f"{name} has a gradient"
    return golden_cases.largest_error(actual, {name: expected[name] for name in actual})


def _rollout(case: golden_cases.GoldenCase, mode: Literal["autoregressive", "bidirectional"]) -> float:
    config, inputs = case.config, case.inputs
    chunk = config["chunk_latent_frames"]
    model, text = load_model(case), text_inputs(inputs, "prompt_embeds", "prompt_mask")
    require_sizes(config, model.cfg, inputs["noise"])
    require_text(config, text)
    golden_cases.require(config, chunks=config["latent_frames"] // chunk)
    session = SESSIONS[mode](
        model,
        sample=SampleConfig(
            mode=mode,
            num_steps=config["num_inference_steps"],
            shift=config["flow_shift"],
            guidance=config["guidance_scale"],
            context_time=config["context_timestep"],
        ),
        memory_config=MemoryConfig(
            chunk_frames=chunk // SESSIONS[mode].training_chunks,
            memory_frames=config["memory_frames"],
            temporal_context=config["temporal_context_size"],
        ),
        points=inputs["points_local"],
    )
    condition, noise = channels_last(inputs["cond_latents"])[0], channels_last(inputs["noise"])[0]
    session.reset(condition[:1, ..., :-1], text)
    latents = []
    for start in range(0, config["latent_frames"], chunk):
        span = slice(start, start + chunk)
        controls = Controls(inputs["action"][0, span], inputs["viewmats"][0, span], inputs["Ks"][0, span])
        latents.append(session.step(controls, noise[span]))
    return golden_cases.relative_error(np.concatenate(latents), channels_last(case.outputs["latents"])[0])


CHECKS = {
    "worldplay/loss": _loss,
    "worldplay/rollout_ar": functools.partial(_rollout, mode="autoregressive"),
    "worldplay/rollout_bidirectional": functools.partial(_rollout, mode="bidirectional"),
}
