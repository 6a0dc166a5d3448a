"""The Matrix: noise schedules and solvers, losses with gradients, and the sampling loops of each stage."""

import functools
from typing import Any

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion import cogvideox, engine, exporting
from conversion import lora as lora_keys
from jworld.diffusion import consistency, v_prediction, windows
from jworld.models.cogvideox.transformer import CogVideoXTransformer
from jworld.models.layers import lora
from jworld.systems.matrix import objective, sampling
from jworld.training import state as train_state
from parity_checks.cogvideox import channels_last, config_of, filled, forward, load_model, optional, require_sizes

#: Values of a scheduler's config that our noise schedule and solvers fix.
FIXED_SCHEDULER = {
    "num_train_timesteps": v_prediction.NUM_TIMESTEPS,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "v_prediction",
}
TOKENS = ("D", "DL", "DR", "B", "BL", "BR", "N", "NL", "NR")


def _alphas(case: golden_cases.GoldenCase) -> np.ndarray:
    scheduler = case.config["scheduler"]
    golden_cases.require(scheduler, **FIXED_SCHEDULER)
    # The original's schedulers never clip. What depends on the spacing of the timesteps reads it where it samples.
    golden_cases.without_effect(scheduler, "clip_sample", "timestep_spacing")
    return objective.ObjectiveConfig(
        beta_start=scheduler["beta_start"],
        beta_end=scheduler["beta_end"],
        beta_schedule=scheduler["beta_schedule"],
        snr_shift=scheduler["snr_shift_scale"],
        zero_terminal_snr=scheduler["rescale_betas_zero_snr"],
    ).alphas_cumprod()


def _noise(case: golden_cases.GoldenCase, name: str, like: np.ndarray) -> np.ndarray:
    """Return stored noise, or zeros for noise that the case does not store because it has no effect."""
    if name in case.inputs:
        return case.inputs[name]
    assert name in set(case.config["noise_inputs_not_stored_because_without_effect"]), f"{name} is not stored"
    return np.zeros_like(like)


def _solve(case: golden_cases.GoldenCase, rows: np.ndarray, stride: int, prefix: str) -> dict[str, Any]:
    """Compute the states after every step of both solvers; row i [..., optional frames] has the times of step i."""
    alphas, inputs = _alphas(case), case.inputs
    actual: dict[str, Any] = {}
    for solver in ("ddim", "dpm"):
        x, last = jnp.asarray(inputs["sample"]), None
        for i, row in enumerate(rows):
            a, a_next = v_prediction.at(alphas, row), v_prediction.at(alphas, row - stride)
            clean = v_prediction.clean_from_velocity(x, inputs[f"model_output.{i}"], a)
            if solver == "ddim":
                x = v_prediction.ddim_step(x, clean, a, a_next)
            else:
                second = last is not None and (row >= stride).all()
                noise = _noise(case, f"noise.{i}", inputs["sample"])
                before = v_prediction.at(alphas, rows[i - 1])
                x = v_prediction.dpm_step(
                    x, clean, noise, a, a_next, last_clean=last if second else None, a_last=before
                )
                actual[f"{prefix}dpm_x0.{i}"] = clean
            actual[f"{prefix}{solver}.{i}"] = actual[f"{prefix}{solver}_final"] = x
            last = clean
    return actual


def _scheduler_base(case: golden_cases.GoldenCase) -> float:
    args, inputs, alphas = case.config["args"], case.inputs, _alphas(case)
    golden_cases.require(args, shape=inputs["sample"].shape, train_timesteps=inputs["train_timesteps"])
    steps = args["num_inference_steps"]
    a = v_prediction.at(alphas, inputs["train_timesteps"])
    times = v_prediction.spaced_timesteps(steps, case.config["scheduler"]["timestep_spacing"])
    rows = np.repeat(times[:, None], len(inputs["sample"]), axis=1)
    actual = _solve(case, rows, 1000 // steps, "") | {
        "alphas_cumprod": alphas,
        "add_noise": v_prediction.add_noise(inputs["x0"], inputs["eps"], a),
        "get_velocity": v_prediction.velocity(inputs["x0"], inputs["eps"], a),
    }
    for spacing in ("trailing", "linspace", "leading"):
        actual[f"timesteps.{spacing}"] = v_prediction.spaced_timesteps(steps, spacing)
    return golden_cases.largest_error(actual, case.outputs)


def _scheduler_swin(case: golden_cases.GoldenCase) -> float:
    args, inputs, alphas = case.config["args"], case.inputs, _alphas(case)
    golden_cases.require(args, chw=inputs["sample"].shape[2:])
    steps, groups, size = args["num_inference_steps"], args["num_noise_groups"], args["window"]
    times = v_prediction.spaced_timesteps(steps, case.config["scheduler"]["timestep_spacing"])
    rows = windows.timestep_rows(times, groups, size)
    a = v_prediction.at(alphas, rows[:1])
    actual = _solve(case, rows[:, None, 1:], 1000 // steps, "swin_") | {
        "timesteps": times,
        "timesteps_grouped": rows,
        "add_noise": v_prediction.add_noise(inputs["x0"], inputs["eps"], a),
        "get_velocity": v_prediction.velocity(inputs["x0"], inputs["eps"], a),
    }
    phases = groups * args["lcm_multiplier"]
    times = consistency.sampling_timesteps(args["lcm_steps"], solver_steps=args["original_inference_steps"])
    rows = windows.timestep_rows(times, groups, size)
    actual |= {"lcm_timesteps": times, "lcm_timesteps_grouped": rows}
    following = dict(zip(times, [*times[1:], -1], strict=True))
    x = jnp.asarray(inputs["sample"])
    for i, row in enumerate(rows[:, None, 1:]):
        skip, out = consistency.coefficients(alphas, row, phases)
        low = consistency.jump(x, inputs[f"model_output.{i}"], alphas, row, phases)
        next_row = np.vectorize(following.get)(row)
        x = consistency.renoise(low, inputs[f"noise.{i}"], alphas, row, next_row, phases)
        actual |= {f"lcm_boundary.{i}": consistency.edge(row, phases)[0], f"lcm_c_skip.{i}": skip[0]}
        actual |= {f"lcm_c_out.{i}": out[0], f"lcm_denoised.{i}": low, f"lcm.{i}": x, "lcm_final": x}
    return golden_cases.largest_error(actual, case.outputs)


def _gradients(model: CogVideoXTransformer, loss: Any, names: list[str], trainable: str = ".*") -> dict[str, Any]:
    """Return the loss, the gradients by their original names, and the norm of all trained gradients."""
    places = engine.plan(engine.parameter_shapes(nnx.state(model)), cogvideox.rules(model.cfg))
    graphdef, params, frozen = nnx.split(model, train_state.path_filter(trainable), ...)
    value, grads = jax.jit(jax.value_and_grad(lambda params: loss(nnx.merge(graphdef, params, frozen))))(params)
    flat = {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(grads)}
    norm = np.sqrt(sum(np.sum(np.square(g.astype(np.float64))) for g in flat.values()))
    named = {f"grad.{name}": places[name].take(flat[places[name].path]) for name in names}
    return {"loss": np.reshape(value, 1), "grad_norm_all": np.reshape(norm, 1)} | named


def _example(inputs: dict[str, np.ndarray]) -> objective.Example:
    latents = jnp.asarray(channels_last(inputs["latents"]))
    return objective.Example(latents, jnp.asarray(inputs["encoder_hidden_states"]), optional(inputs, "control_emb"))


def _draws(inputs: dict[str, np.ndarray]) -> objective.Draws:
    return objective.Draws(jnp.asarray(inputs["timesteps"]), jnp.asarray(channels_last(inputs["noise"])))


def _require_groups(timesteps: np.ndarray, groups: int) -> None:
    """Fail unless the frames after the first are `groups` groups, and each has timesteps of its own range."""
    group_size = (timesteps.shape[1] - 1) // groups
    ranges = timesteps[:, 1:] // (v_prediction.NUM_TIMESTEPS // groups)
    assert (ranges == np.repeat(np.arange(groups), group_size)).all()


def _velocity_loss(case: golden_cases.GoldenCase) -> float:
    alphas, inputs = _alphas(case), case.inputs
    example, draws, model = _example(inputs), _draws(inputs), load_model(case)
    args = case.config["args"]
    require_sizes(args, inputs["latents"])
    golden_cases.require(args, timestep=inputs["timesteps"])
    if "num_noise_groups" in args:
        _require_groups(inputs["timesteps"], args["num_noise_groups"])
    names = list(args["grads"])
    # Stage 2 trains only the control adapter; stage 3 trains everything.
    trainable = ".*control.*" if all("control" in name for name in names) else ".*"
    actual = _gradients(model, lambda model: objective.velocity_loss(model, example, draws, alphas), names, trainable)
    return golden_cases.largest_error(actual, {name: case.outputs[name] for name in actual if name in case.outputs})


def _consistency_loss(case: golden_cases.GoldenCase) -> float:
    args, alphas, inputs = case.config["args"], _alphas(case), case.inputs
    require_sizes(args, inputs["latents"])
    _require_groups(inputs["timesteps"], args["num_noise_groups"])
    cfg = config_of(case)
    models = {
        name: filled(cfg, {k.removeprefix(name): v for k, v in case.weights.items() if k.startswith(name)})
        for name in ("student.", "teacher.")
    }
    how = objective.Distillation(
        phases=args["num_noise_groups"] * args["lcm_multiplier"],
        stride=args["k"],
        guidance=args["guidance_scale"],
        huber_c=args["huber_c"],
    )
    example, draws = _example(inputs), _draws(inputs)
    null = jnp.asarray(inputs["null_encoder_hidden_states"])
    path = jax.jit(lambda teacher: objective.teacher_step(teacher, example, null, draws, alphas, how))(
        models["teacher."]
    )

    def loss(model: CogVideoXTransformer, how: objective.Distillation = how) -> jax.Array:
        return objective.consistency_loss(model, model, example, path, alphas, how)

    student = models["student."]
    actual = _gradients(student, loss, list(args["grads"]))
    actual |= {
        "x_t": np.moveaxis(path.noisy, -1, 2),
        "x_s_hat": np.moveaxis(path.earlier, -1, 2),
        "loss_l2": np.reshape(jax.jit(functools.partial(loss, how=how._replace(distance="l2")))(student), 1),
    }
    return golden_cases.largest_error(actual, {name: case.outputs[name] for name in actual if name in case.outputs})


def _adapted(case: golden_cases.GoldenCase, *, alpha: float) -> CogVideoXTransformer:
    """Load the base model with adapters whose product is scaled by alpha / rank."""
    cfg = config_of(case)
    adapters = lora.LoRAConfig(
        targets=("blocks/attention/(query|key|value|out)",), rank=case.config["args"]["rank"], alpha=alpha
    )

    def make() -> CogVideoXTransformer:
        model = CogVideoXTransformer(cfg, rngs=nnx.Rngs(0))
        lora.add(model, adapters, rngs=nnx.Rngs(0))
        return model

    with nnx.use_eager_sharding(False):
        graphdef, state = nnx.split(nnx.eval_shape(make))
    base = cogvideox.rules(cfg)
    own = lora_keys.adapter_rules(base, engine.parameter_shapes(state), prefix=cogvideox.ADAPTER_PREFIX)
    return nnx.merge(graphdef, engine.to_state(state, engine.import_tensors(case.weights, state, [*base, *own])))


def _lora(case: golden_cases.GoldenCase) -> float:
    """Compare a model with separate adapters, with adapters merged into the kernels, and without adapters.

    The file of adapters stores no alpha: the original's loader takes the rank for it.
    """
    args, inputs = case.config["args"], case.inputs
    require_sizes(args, inputs["hidden_states"])
    golden_cases.require(args, timestep=inputs["timestep"])
    golden_cases.require(case.config, lora_files=[exporting.ADAPTERS_NAME])
    # A forward pass has no schedule.
    golden_cases.without_effect(case.config, "scheduler")
    timestep = jnp.asarray(inputs["timestep"])

    def output(model: CogVideoXTransformer) -> np.ndarray:
        video = jnp.asarray(channels_last(inputs["hidden_states"]))
        return np.moveaxis(forward(model, video, jnp.asarray(inputs["encoder_hidden_states"]), timestep), -1, 2)

    actual = {"output_lora": output(_adapted(case, alpha=args["lora_alpha"]))}
    model = _adapted(case, alpha=args["rank"] * args["lora_scale"])
    taken = lora.merge(model)
    actual["output_fused"] = output(model)
    fused = {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    places = engine.plan({path: leaf.shape for path, leaf in fused.items()}, cogvideox.rules(model.cfg))
    actual |= {f"fused.{name}": place.take(np.asarray(fused[place.path])) for name, place in places.items()}
    lora.unmerge(model, taken)
    for adapter in taken.values():
        adapter.b.set_value(jnp.zeros_like(adapter.b[...]))
    actual["output_base"] = output(model)
    return golden_cases.largest_error(actual, case.outputs)


def _control(case: golden_cases.GoldenCase) -> jax.Array:
    """Return the control states, [1, tokens, control_dim]."""
    rows = [TOKENS.index(token) for token in case.config["args"]["control_signal"].split(",")]
    return jnp.asarray(case.inputs["control_table"][rows])[None]


def _text(inputs: dict[str, np.ndarray]) -> jax.Array:
    names = [name for name in ("negative_prompt_embeds", "prompt_embeds") if name in inputs]
    return jnp.concatenate([jnp.asarray(inputs[name]) for name in names])


def _clip(case: golden_cases.GoldenCase) -> float:
    args, inputs = case.config["args"], case.inputs
    config = sampling.SampleConfig(
        solver=args["scheduler_class"],
        num_steps=args["num_inference_steps"],
        spacing=case.config["scheduler"]["timestep_spacing"],
        guidance=args["guidance_scale"],
        dynamic_guidance=args["use_dynamic_cfg"],
    )
    require_sizes(args, inputs["initial_noise"])
    initial = jnp.asarray(channels_last(inputs["initial_noise"]))

    def noise(i: int) -> jax.Array:
        if config.solver == "ddim":
            return jnp.zeros(initial.shape)
        return jnp.asarray(channels_last(_noise(case, f"noise.{i}", inputs["initial_noise"])))

    sampler = sampling.ClipSampler(load_model(case), config, _alphas(case))
    output = sampler(initial, sampling.Conditions(_text(inputs), _control(case)), noise)
    return golden_cases.relative_error(output, channels_last(case.outputs["output_latents"]))


def _stream(case: golden_cases.GoldenCase, solver: str) -> float:
    args, inputs = case.config["args"], case.inputs
    require_sizes(args, inputs["init_latents"])
    optional_args = {"solver_steps": "original_inference_steps", "phases_per_group": "lcm_multiplier"}
    config = sampling.SampleConfig(
        mode="stream",
        solver=solver,
        num_steps=args["num_inference_steps"],
        spacing=case.config["scheduler"]["timestep_spacing"],
        guidance=args["guidance_scale"],
        groups=args["num_noise_groups"],
        window_frames=args["window"],
        **{ours: args[theirs] for ours, theirs in optional_args.items() if theirs in args},
    )
    sampler = sampling.StreamSampler(load_model(case), config, _alphas(case))
    first = jnp.asarray(channels_last(inputs["init_latents"]))
    sampler.reset(first, jnp.asarray(channels_last(inputs["noise.init"])))
    control, emitted = _control(case), []

    def noise(name: str, frames: int) -> jax.Array:
        return jnp.asarray(channels_last(_noise(case, name, inputs["init_latents"][:, :frames])))

    for k in range(args["num_sample_groups"]):
        start = k * args["window"]
        steps = [noise(f"noise.step.{k}.{i}", sampler.frames - 1) for i in range(len(sampler.rows))]
        # What enters after the last window is not seen.
        last = k + 1 == args["num_sample_groups"]
        new = jnp.zeros_like(first[:, : args["window"]]) if last else noise(f"noise.new.{k}", args["window"])
        visible = control[:, start : start + sampler.frames]
        emitted.append(sampler.step(sampling.Conditions(_text(inputs), visible), jnp.stack(steps), new))
    output = jnp.concatenate(emitted, axis=1)
    return golden_cases.relative_error(output, channels_last(case.outputs["output_latents"]))


CHECKS = {
    "matrix/s1_lora": _lora,
    "matrix/s1_train_loss": _velocity_loss,
    "matrix/s2_train_loss": _velocity_loss,
    "matrix/s3_train_loss": _velocity_loss,
    "matrix/s4_scm_loss": _consistency_loss,
    "matrix/scheduler_base": _scheduler_base,
    "matrix/scheduler_swin": _scheduler_swin,
    "matrix/s2_sampling": _clip,
    "matrix/s3_endless_loop": functools.partial(_stream, solver="dpm"),
    "matrix/s4_stream_loop": functools.partial(_stream, solver="consistency"),
}
