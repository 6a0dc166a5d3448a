"""Cosmos-Predict2: preconditioning, training loss, sampler, schedules and whole training steps."""

from collections.abc import Mapping
from typing import Any

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from conversion import cosmos, engine
from jworld.diffusion import adams_bashforth, rectified_flow
from jworld.models.cosmos.transformer import CosmosInputs, CosmosTransformer
from jworld.parallel import mesh
from jworld.training import optimizers, schedules, state, step
from parity_checks import cosmos as networks

Arrays = Mapping[str, np.ndarray]


def network(model: CosmosTransformer, inputs: Arrays, given: jax.Array | None) -> rectified_flow.Network:
    """Return the model as a function of video and time, with the text and masks of the case."""
    text = jnp.asarray(inputs["crossattn_emb"])
    padding = jnp.asarray(inputs["padding_mask"])[:, 0] if "padding_mask" in inputs else None
    return lambda video, time: networks.forward(model, CosmosInputs(video, time, text, given, padding))


def _denoise(case: golden_cases.GoldenCase) -> float:
    inputs, model = case.inputs, networks.load_model(case)
    golden_cases.require(case.config, sigma_data=1.0, conditioning_strategy="frame_replace")
    noisy, frames = networks.channels_last(inputs["xt"]), networks.channels_last(inputs["gt_frames"])
    mask = networks.conditioning_frames(inputs)
    assert mask is not None
    given = rectified_flow.ConditioningFrames(frames, mask, case.config["sigma_conditional"])
    level, levels = jnp.asarray(inputs["sigma_B"]), jnp.asarray(inputs["sigma_B_T"])
    # Name -> noisy video, noise levels, context frames in the network's input, and in the prediction.
    calls = {
        "video": (noisy, level, given, given),
        "video_per_frame_sigma": (noisy, levels, given, given),
        "video_condition_dropped": (noisy, level, given._replace(frames=0 * frames), given),
        "image": (noisy[:, :1], level, None, None),
    }
    outputs: dict[str, Any] = {}
    for name, (video, sigma, given_in, given_out) in calls.items():
        predict = network(model, inputs, None if given_in is None else mask)
        scaled, time = rectified_flow.network_inputs(video, sigma, given_in)
        clean = rectified_flow.clean_from_velocity(predict(scaled, time), video, sigma, given_out)
        if given_in is given_out:
            np.testing.assert_array_equal(clean, rectified_flow.denoise(predict, video, sigma, given_out))
        outputs |= {f"{name}.net_input": scaled, f"{name}.x0": clean}
        outputs[f"{name}.eps"] = rectified_flow.noise_from_clean(clean, video, sigma)
        # The model itself scales its times.
        outputs[f"{name}.net_timesteps"] = time * model.cfg.time_scale
    time = rectified_flow.time_of(level)
    scaling = {"c_in": 1 - time, "c_skip": 1 - time, "c_out": -time, "c_noise": time * model.cfg.time_scale}
    outputs |= {f"scaling.{name}": value for name, value in scaling.items()}
    return golden_cases.largest_error(outputs, {name: _last(x) for name, x in case.outputs.items()})


def _last(x: np.ndarray) -> np.ndarray | jax.Array:
    return networks.channels_last(x) if x.ndim >= 5 else x


def _training_loss(case: golden_cases.GoldenCase) -> float:
    inputs, outputs = case.inputs, case.outputs
    clean, noise = networks.channels_last(inputs["x0"]), networks.channels_last(inputs["epsilon"])
    sigma, mask = jnp.asarray(inputs["sigma_B_T"]), networks.conditioning_frames(inputs)
    assert mask is not None
    golden_cases.require(case.config, sigma_data=1.0)
    graphdef, params = nnx.split(networks.load_model(case))
    options = {"given_sigma": case.config["sigma_conditional"], "scale": case.config["loss_scale"]}

    @jax.jit
    def run(params: nnx.State) -> Any:
        def loss(params: nnx.State) -> Any:
            predict = network(nnx.merge(graphdef, params), inputs, mask)
            noisy = rectified_flow.add_noise(clean, noise, sigma)
            given = rectified_flow.ConditioningFrames(clean, mask, options["given_sigma"])
            prediction = rectified_flow.denoise(predict, noisy, sigma, given)
            error = rectified_flow.squared_error(clean, prediction, sigma)
            value, frames = rectified_flow.training_loss(predict, clean, noise, sigma, mask, **options)
            return value, {
                "loss_mean_x10": value,
                "edm_loss_per_frame": frames,
                "edm_loss_elementwise": error,
                "loss_sum_x10": options["scale"] * jnp.mean(jnp.sum(error, axis=-1)),
                "mse_loss": jnp.mean(jnp.square(clean - prediction)),
                "weights_per_sigma": 1 / jnp.square(rectified_flow.time_of(sigma)),
                "x0_pred": prediction,
                "xt": noisy,
            }

        return jax.grad(loss, has_aux=True)(params)

    grads, actual = run(params)
    actual["grad_global_norm"] = np.sqrt(sum(float(jnp.sum(jnp.square(x))) for x in jax.tree.leaves(grads)))
    places = _places(case, params)
    own = {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(grads)}
    for name in outputs:
        if name.startswith("grad."):
            place = places[name.removeprefix("grad.")]
            actual[name] = place.take(own[place.path])
    return golden_cases.largest_error(actual, {name: _last(x) for name, x in outputs.items()})


def _places(case: golden_cases.GoldenCase, params: nnx.State) -> dict[str, engine.TensorPlacement]:
    return engine.plan(engine.parameter_shapes(params), cosmos.rules(networks.config_of(case), prefix=""))


def _sampler(case: golden_cases.GoldenCase) -> float:
    config, inputs, model = case.config, case.inputs, networks.load_model(case)
    frames = networks.channels_last(inputs["gt_latent"])
    B, F, H, W, C = frames.shape
    # The autoencoder has 4 frames per latent frame, and one for the first.
    given_latents = config["num_conditional_latent_frames"]
    golden_cases.require(config, num_conditional_pixel_frames=4 * (given_latents - 1) + 1)
    noise = adams_bashforth.start_noise(config["noise_seed"], frames=F, height=H, width=W, channels=C)
    sigmas = adams_bashforth.noise_levels(
        config["steps"], lowest=config["sigma_min"], highest=config["sigma_max"], order=config["order"]
    )
    mask = rectified_flow.given_mask(jnp.full(B, given_latents), F)
    given = rectified_flow.ConditioningFrames(frames, mask)

    @jax.jit
    def predict(x: jax.Array, sigma: jax.Array) -> jax.Array:
        positive, negative = (
            rectified_flow.denoise(network(model, {"crossattn_emb": inputs[name]}, mask), x, sigma, given)
            for name in ("crossattn_emb", "neg_crossattn_emb")
        )
        return rectified_flow.guided(positive, negative, config["guidance"])

    outputs: dict[str, Any] = {"sigmas_f64": sigmas}
    outputs["samples"] = jax.jit(lambda x: adams_bashforth.sample(predict, x, sigmas))(jnp.asarray(noise))
    x, cleans, states = sigmas[0].astype(np.float32) * noise, [np.zeros_like(noise)], []
    for sigma, weights in zip(sigmas, adams_bashforth.step_weights(sigmas).astype(np.float32), strict=False):
        cleans.append(predict(x, jnp.full(B, sigma, jnp.float32)))
        x = adams_bashforth.step(x, cleans[-1], cleans[-2], weights)
        states.append(x)
    outputs |= {"x0_guided_trajectory": jnp.stack(cleans[1:]), "x_trajectory": jnp.stack(states)}
    error = golden_cases.largest_error(outputs, {name: _last(x) for name, x in case.outputs.items()})
    return max(error, golden_cases.relative_error(noise, networks.channels_last(inputs["noise"])))


def _schedules(case: golden_cases.GoldenCase) -> float:
    outputs: dict[str, Any] = {}
    for name, values in case.config["lr"].items():
        for shape in ("linear", "cosine"):
            schedule = schedules.cycles(_cycles(values), shape)  # type: ignore[arg-type]
            outputs[f"{name}.{shape}"] = schedule(case.inputs[f"{name}.n"])
    for name in case.outputs:
        kind, _, rate = name.partition(".rate")
        if kind == "ema_gamma":
            outputs[name] = np.array([schedules.power_exponent(float(rate))])
        elif kind == "ema_beta":
            exponent = schedules.power_exponent(float(rate))
            outputs[name] = schedules.power_decay(exponent, case.inputs["ema.iteration"])
        elif kind.startswith("sigmas_"):
            outputs[name] = adams_bashforth.noise_levels(int(kind.split("_")[1]))
    return golden_cases.largest_error(outputs, case.outputs)


def _cycles(values: Mapping[str, Any]) -> list[schedules.Cycle]:
    names = ("warm_up_steps", "cycle_lengths", "f_start", "f_max", "f_min")
    return [schedules.Cycle(*cycle) for cycle in zip(*(values[name] for name in names), strict=True)]


def _optimizer(config: Mapping[str, Any]) -> optimizers.Optimizer:
    """Convert the case's optimizer to a recipe's section, with rates relative to the peak.

    The case's clip_grad_norm is ignored because it has no effect. The original passes a generator of parameters to its
    clipping function; measuring the norm exhausts it, so that no gradient is scaled. The recorded moments are those of
    unclipped gradients.
    """
    ((warmup, length, start, peak, end),) = _cycles(config["lr_schedule"])
    section = config["optimizer"]
    golden_cases.require(section, type="torch.optim.AdamW standing in for FusedAdam(adam_w_mode)")
    golden_cases.without_effect(config, "clip_grad_norm")
    own = optimizers.OptimizerConfig(
        learning_rate=section["lr"] * peak,
        schedule="linear_with_min_lr",
        warmup_steps=warmup,
        start_lr_ratio=start / peak,
        min_lr_ratio=end / peak,
        weight_decay=section["weight_decay"],
        b1=section["betas"][0],
        b2=section["betas"][1],
        eps=section["eps"],
        ema_rate=config["ema_rate"],
    )
    return optimizers.make_optimizer(own, steps=length)


def _train_steps(case: golden_cases.GoldenCase) -> float:
    """Compare whole training steps; errors of parameters are relative to their distance from the start."""
    config, inputs = case.config, case.inputs
    model, optimizer = networks.load_model(case), _optimizer(config)
    devices = mesh.make_mesh(data=1, fsdp=1, sequence=1, devices=jax.devices()[:1])

    def loss(model: Any, batch: step.Batch, key: jax.Array) -> tuple[jax.Array, step.Metrics]:
        predict = network(model, batch, batch["mask"])
        parts = [batch[name] for name in ("clean", "noise", "sigma", "mask")]
        value, _ = rectified_flow.training_loss(predict, *parts, scale=config["loss_scale"])
        return value, {}

    batches: dict[str, Any] = {
        "clean": networks.channels_last(inputs["x0"]),
        "noise": networks.channels_last(inputs["epsilon"]),
        "sigma": inputs["sigma_B_T"],
        "mask": networks.conditioning_frames(inputs),
        "crossattn_emb": inputs["crossattn_emb"],
    }
    golden_cases.require(config, batch=batches["clean"].shape[1])
    graphdef, created, shardings = state.create_state(
        lambda rngs: CosmosTransformer(model.cfg, rngs=rngs),
        trainable=nnx.Param,
        optimizer=optimizer,
        key=jax.random.key(0),
        mesh=devices,
    )
    start = networks.weights_of(case)
    rules = cosmos.rules(model.cfg, prefix="")
    arrays = engine.import_tensors(start, created.params, rules)
    params = engine.to_state(created.params, arrays)
    train_state = state.start_state(params, created.frozen, optimizer=optimizer, shardings=shardings, mesh=devices)
    replicated = NamedSharding(devices, PartitionSpec())
    run = step.make_train_step(
        graphdef,
        loss,
        optimizer,
        shardings=shardings,
        batch_shardings=dict.fromkeys(batches, replicated),
        mesh=devices,
    )
    measured = []
    with jax.set_mesh(devices):
        for index in range(config["steps"]):
            batch = {name: jnp.asarray(x[index]) for name, x in batches.items()}
            train_state, metrics = run(train_state, batch, jax.random.key(0))
            measured.append([float(metrics[name]) for name in ("loss", "grad_norm", "learning_rate")])
    exponent = schedules.power_exponent(config["ema_rate"])
    actual: dict[str, Any] = dict(zip(("loss", "grad_norm", "lr"), np.array(measured).T, strict=True))
    actual["ema_beta"] = schedules.power_decay(exponent, np.arange(config["steps"]))
    error = golden_cases.largest_error(actual, {name: case.outputs[name] for name in actual})
    moments = next(part for part in jax.tree.leaves(train_state.opt_state, is_leaf=_is_adam) if _is_adam(part))
    trees = {
        "net": train_state.params,
        "net_ema": train_state.ema,
        "exp_avg": moments.mu,
        "exp_avg_sq": moments.nu,
    }
    return max(error, *(_tree_error(case, name, tree, start) for name, tree in trees.items()))


def _is_adam(part: Any) -> bool:
    return hasattr(part, "mu")


def _tree_error(case: golden_cases.GoldenCase, prefix: str, tree: nnx.State, start: Arrays) -> float:
    """Return the error of all tensors together; for weights (net, net_ema) relative to the distance from the start."""
    arrays = {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(tree)}
    places, pairs = _places(case, tree), []
    for name, expected in case.outputs.items():
        head, _, tensor = name.partition(".")
        if head == prefix:
            own = places[tensor].take(arrays[places[tensor].path])
            origin = start[tensor] if prefix.startswith("net") else 0.0
            pairs.append((np.ravel(own - origin), np.ravel(expected - origin)))
    actual, expected = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return golden_cases.relative_error(actual, expected)


CHECKS = {
    "cosmos/denoise": _denoise,
    "cosmos/sampler": _sampler,
    "cosmos/schedules": _schedules,
    "cosmos/train_steps": _train_steps,
    "cosmos/training_loss": _training_loss,
}
