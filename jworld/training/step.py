"""One training step: updates of a critic, gradients, clipping, the skip rule, the update, the EMA."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import einops
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jworld.training import optimizers, schedules
from jworld.training import state as train_state
from jworld.utils import errors, nnx_types

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainState = train_state.TrainState
LossFn = Callable[..., tuple[jax.Array, Metrics]]
#: Stream of a step's random numbers that its critic draws from.
_CRITIC_STREAM = 0x637269
#: (trained parameters, other weights of the model, batch, key) -> (loss, metrics), gradients.
GradFn = Callable[[nnx_types.State, Any, Batch, jax.Array], tuple[tuple[jax.Array, Metrics], nnx_types.State]]

CLIP_EPSILON = 1e-6
#: Entry of the loss's metrics for a mean whose number of terms differs between microbatches, such as tokens: that
#: number, at least 1 in a whole batch. Accumulation weights the microbatches by it and does not report it.
WEIGHT = "weight"


def _microbatches(batch: Batch, count: int, batch_shardings: Mapping[str, NamedSharding]) -> Batch:
    """Split [B, ...] into [count, B/count, ...]: microbatch i has the rows i, i + count, ...

    Strided, so that every device splits its own rows and none move between devices.

    Raises:
      UserError: the batch does not divide.
    """

    def split(name: str, x: jax.Array) -> jax.Array:
        if x.shape[0] % count:
            raise errors.UserError(
                f"config.optimizer.accumulate is {count}, which does not divide the batch of {x.shape[0]}"
            )
        x = einops.rearrange(x, "(b m) ... -> m b ...", m=count)
        rows = batch_shardings[name]
        sharding = NamedSharding(rows.mesh, PartitionSpec(None, *rows.spec))
        parts: jax.Array = jax.lax.with_sharding_constraint(x, sharding)
        return parts

    return {name: split(name, x) for name, x in batch.items()}


def _accumulated(grad_fn: GradFn, count: int, batch_shardings: Mapping[str, NamedSharding]) -> GradFn:
    """Accumulate gradients over `count` microbatches, each with its own key, in the memory of one.

    The means are weighted by `WEIGHT`.
    """

    def mean(
        params: nnx_types.State, others: Any, batch: Batch, key: jax.Array
    ) -> tuple[tuple[jax.Array, Metrics], nnx_types.State]:
        pieces = _microbatches(batch, count, batch_shardings)

        def body(carry: Any, piece: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            (total, weights), (microbatch, index) = carry, piece
            result = grad_fn(params, others, microbatch, jax.random.fold_in(key, index))
            weight = result[0][1].get(WEIGHT, jnp.ones(()))
            total = jax.tree.map(lambda t, x: t + (x * weight).astype(t.dtype), total, result)
            return (total, weights + weight), None

        first = {name: x[0] for name, x in pieces.items()}
        shapes = jax.eval_shape(grad_fn, params, others, first, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (total, weights), _ = jax.lax.scan(body, (zeros, jnp.zeros(())), (pieces, jnp.arange(count)))
        means: tuple[tuple[jax.Array, Metrics], nnx_types.State] = jax.tree.map(
            lambda x: (x / jnp.maximum(weights, 1)).astype(x.dtype), total
        )
        return means

    return mean


def _is_usable(loss: jax.Array, norm: jax.Array, config: optimizers.OptimizerConfig) -> jax.Array:
    # A comparison with NaN is false: NaN, infinity and the ceiling itself all skip. The loss is tested too, because a
    # constant term that overflows has a finite gradient.
    return (norm < (config.skip_norm or float("inf"))) & jnp.isfinite(loss)


def _updated(
    params: nnx_types.State, opt_state: Any, grads: nnx_types.State, norm: jax.Array, optimizer: optimizers.Optimizer
) -> tuple[nnx_types.State, Any]:
    """Clip the gradients, and return new parameters and optimizer state."""
    if clip_norm := optimizer.config.clip_norm:
        coefficient = jnp.minimum(1.0, clip_norm / (norm + CLIP_EPSILON))
        grads = jax.tree.map(lambda g: g * coefficient.astype(g.dtype), grads)
    updates, opt_state = optimizer.transform.update(grads, opt_state, params)
    # optax declares the union of all trees; the result has the structure of the parameters.
    return cast(nnx_types.State, optax.apply_updates(params, updates)), opt_state


def _update(state: TrainState, grads: nnx_types.State, norm: jax.Array, optimizer: optimizers.Optimizer) -> TrainState:
    config = optimizer.config
    params, opt_state = _updated(state.params, state.opt_state, grads, norm, optimizer)
    ema = state.ema
    if ema is not None:
        updates_made = state.step - state.skipped
        if config.ema_rate:
            decay = schedules.power_decay(schedules.power_exponent(config.ema_rate), updates_made)
        else:
            # Warm-up: with the full decay, the initial weights would dominate for 1/(1 - decay) steps.
            decay = jnp.minimum(config.ema_decay, (1 + updates_made) / (10 + updates_made))
        ema = jax.tree.map(lambda e, p: (decay * e + (1 - decay) * p).astype(e.dtype), ema, params)
    return dataclasses.replace(
        state, params=params, opt_state=opt_state, ema=ema, skipped_in_row=jnp.zeros_like(state.skipped_in_row)
    )


def _skip(state: TrainState) -> TrainState:
    return dataclasses.replace(state, skipped=state.skipped + 1, skipped_in_row=state.skipped_in_row + 1)


def _critic_updates(
    graphdef: nnx_types.GraphDef,
    loss_fn: LossFn,
    optimizer: optimizers.Optimizer,
    batch_shardings: Mapping[str, NamedSharding],
) -> Callable[[TrainState, Batch, jax.Array], tuple[train_state.CriticState, Metrics]]:
    """Return (state, batch, key) -> (critic after its updates of one step, metrics); only the critic changes.

    All updates have the same batch, each with its own key.
    """
    critic_optimizer = optimizer.critic
    assert critic_optimizer is not None

    def loss_of(params: nnx_types.State, others: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        return loss_fn(nnx.merge(graphdef, params, *others), batch, key)

    grad_fn: GradFn = jax.value_and_grad(loss_of, has_aux=True)
    if optimizer.config.accumulate > 1:
        grad_fn = _accumulated(grad_fn, optimizer.config.accumulate, batch_shardings)

    def updates(state: TrainState, batch: Batch, key: jax.Array) -> tuple[train_state.CriticState, Metrics]:
        def update(critic: train_state.CriticState, number: jax.Array) -> tuple[train_state.CriticState, Metrics]:
            others = state.frozen, state.params
            (loss, own_metrics), grads = grad_fn(critic.params, others, batch, jax.random.fold_in(key, number))
            norm = optax.global_norm(grads)

            def changed(critic: train_state.CriticState) -> train_state.CriticState:
                params, opt_state = _updated(critic.params, critic.opt_state, grads, norm, critic_optimizer)
                return dataclasses.replace(critic, params=params, opt_state=opt_state)

            def skipped(critic: train_state.CriticState) -> train_state.CriticState:
                return dataclasses.replace(critic, skipped=critic.skipped + 1)

            usable = _is_usable(loss, norm, critic_optimizer.config)
            own_metrics.pop(WEIGHT, None)
            metrics = own_metrics | {"critic_loss": loss, "critic_grad_norm": norm}
            return jax.lax.cond(usable, changed, skipped, critic), metrics

        assert state.critic is not None
        critic, metrics = jax.lax.scan(update, state.critic, jnp.arange(optimizer.critic_updates))
        return critic, jax.tree.map(jnp.mean, metrics) | {"critic_skipped": critic.skipped}

    return updates


def make_train_step(
    graphdef: nnx_types.GraphDef,
    loss_fn: LossFn,
    optimizer: optimizers.Optimizer,
    *,
    shardings: TrainState,
    batch_shardings: Mapping[str, NamedSharding],
    mesh: Mesh,
    loss_takes_ema: bool = False,
    critic_loss: LossFn | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Compile `(state, batch, key) -> (state, metrics)`; the given state is donated.

    `key` is the run's key and never changes: the step folds in its own number, so a resumed run draws the same noise.
    Call it under `jax.set_mesh(mesh)`. If the loss or the global gradient norm is not finite, or the norm reaches
    `skip_norm`, the step changes only the counters. Metrics are float32 scalars on the device (counters int32): loss,
    grad_norm (before clipping), learning_rate, skipped, skipped_in_row, and the loss's own.

    `loss_fn` receives the model, the batch and a key; with `loss_takes_ema` also the model with EMA weights, which
    the optimizer's config must enable.

    With an optimizer of a critic, each step first updates the critic several times and then the model once, all with
    the same batch. `critic_loss` is to the critic what `loss_fn` is to the model; both receive the whole model, and
    only the gradients of their own parameters are computed. The step's metrics are then also critic_loss and
    critic_grad_norm, means over these updates, and critic_skipped.
    """
    config = optimizer.config
    update_critic = None
    if optimizer.critic is not None:
        if critic_loss is None:
            raise errors.UserError("config.critic is set, but the system's loss has no critic: leave the section out")
        update_critic = _critic_updates(graphdef, critic_loss, optimizer, batch_shardings)

    def loss_of(params: nnx_types.State, others: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        rest, ema = others
        ema_model = [nnx.merge(graphdef, ema, rest)] if loss_takes_ema else []
        return loss_fn(nnx.merge(graphdef, params, rest), batch, key, *ema_model)

    grad_fn: GradFn = jax.value_and_grad(loss_of, has_aux=True)
    if config.accumulate > 1:
        grad_fn = _accumulated(grad_fn, config.accumulate, batch_shardings)

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        critic_metrics: Metrics = {}
        if update_critic is not None:
            critic, critic_metrics = update_critic(state, batch, jax.random.fold_in(key, _CRITIC_STREAM))
            # The model's part comes after the critic's: it may not gather weights while the critic's loop runs, which
            # costs memory, and on CPUs, whose devices share threads, two collectives at once can wait for each other.
            state, batch = jax.lax.optimization_barrier((dataclasses.replace(state, critic=critic), batch))
        others = (state.others, state.ema if loss_takes_ema else None)
        (loss, own_metrics), grads = grad_fn(state.params, others, batch, key)
        norm = optax.global_norm(grads)
        learning_rate = optimizer.schedule(state.step - state.skipped)
        usable = _is_usable(loss, norm, config)
        new = jax.lax.cond(usable, lambda s: _update(s, grads, norm, optimizer), _skip, state)
        new = dataclasses.replace(new, step=state.step + 1)
        own_metrics.pop(WEIGHT, None)
        metrics = (
            critic_metrics
            | own_metrics
            | {
                "loss": loss,
                "grad_norm": norm,
                "learning_rate": jnp.asarray(learning_rate, jnp.float32),
                "skipped": new.skipped,
                "skipped_in_row": new.skipped_in_row,
            }
        )
        return new, metrics

    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, dict(batch_shardings), replicated),
        out_shardings=(shardings, replicated),
    )
