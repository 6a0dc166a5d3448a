"""State of a run: created sharded, and described without memory for checkpoints and dry runs."""

import math
import re
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from jworld.parallel import axes
from jworld.training import optimizers
from jworld.utils import errors, nnx_types

InitModel = Callable[[nnx.Rngs], nnx.Module]
PathFilter = Callable[[tuple[Any, ...], Any], bool]


@struct.dataclass
class CriticState:
    """Trained parameters of a critic, its optimizer's state, and its number of skipped updates, an int32 scalar."""

    params: nnx_types.State
    opt_state: Any
    skipped: jax.Array


@struct.dataclass
class TrainState:
    """All inputs and outputs of a step.

    `step` counts all steps, skipped ones included; `skipped` and `skipped_in_row` are int32 scalars. `ema` is None if
    disabled. `frozen` holds the parameters outside the filters of trainable ones. `critic` is None for a run without
    one.
    """

    step: jax.Array
    params: nnx_types.State
    frozen: nnx_types.State
    opt_state: Any
    ema: nnx_types.State | None
    skipped: jax.Array
    skipped_in_row: jax.Array
    critic: CriticState | None = None

    @property
    def others(self) -> nnx_types.State:
        """The parameters outside `params`: the frozen ones, and those of the critic."""
        return self.frozen if self.critic is None else nnx.merge_state(self.frozen, self.critic.params)


def path_filter(pattern: str) -> PathFilter:
    """Return an nnx filter of parameters whose whole path, such as `blocks/image/query/kernel`, matches `pattern`."""
    expression = re.compile(pattern)
    return lambda path, _: expression.fullmatch("/".join(map(str, path))) is not None


def divide(
    params: nnx_types.State, trainable: Any, optimizer: optimizers.Optimizer
) -> tuple[nnx_types.State, nnx_types.State, nnx_types.State | None]:
    """Divide the parameters of a model: (trained ones, frozen ones, trained ones of the critic or None)."""
    if optimizer.critic is None:
        trained, frozen = nnx.split_state(params, trainable, ...)
        return trained, frozen, None
    critic, trained, frozen = nnx.split_state(params, path_filter(optimizer.critic.config.trainable), trainable, ...)
    return trained, frozen, critic


def _start_critic(params: nnx_types.State | None, optimizer: optimizers.Optimizer) -> CriticState | None:
    if params is None or optimizer.critic is None:
        return None
    return CriticState(params, optimizer.critic.transform.init(params), jnp.zeros((), jnp.int32))


def _initializer(
    init_model: InitModel, trainable: Any, optimizer: optimizers.Optimizer
) -> Callable[[jax.Array], TrainState]:
    def init(key: jax.Array) -> TrainState:
        params, frozen, critic = divide(nnx.state(init_model(nnx.Rngs(key))), trainable, optimizer)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            frozen=frozen,
            opt_state=optimizer.transform.init(params),
            ema=jax.tree.map(jnp.copy, params) if optimizer.config.has_ema else None,
            skipped=jnp.zeros((), jnp.int32),
            skipped_in_row=jnp.zeros((), jnp.int32),
            critic=_start_critic(critic, optimizer),
        )

    return init


def _check_divisible(shapes: TrainState, shardings: TrainState) -> None:
    def check(path: Any, leaf: Any, sharding: NamedSharding) -> None:
        for size, names in zip(leaf.shape, sharding.spec, strict=False):
            names = (names,) if isinstance(names, str) else names or ()
            parts = math.prod(sharding.mesh.shape[name] for name in names)
            if size % parts:
                keys = " x ".join(f"config.mesh.{name}" for name in names if sharding.mesh.shape[name] > 1)
                raise errors.UserError(
                    f"{keys} is {parts}, but {leaf_name(path)} of shape {leaf.shape} has a dimension {size}, which is "
                    f"not a multiple of it: choose a divisor of {size}"
                )

    jax.tree_util.tree_map_with_path(check, shapes, shardings)


def leaf_name(path: Any) -> str:
    """Format a pytree path as `params/blocks/query/kernel`, without the last step from a variable to its value."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def described_state(
    init_model: InitModel, *, trainable: Any, optimizer: optimizers.Optimizer, mesh: AbstractMesh
) -> TrainState:
    """Return the state of ShapeDtypeStructs on a mesh without devices.

    Raises:
      UserError: as `abstract_state`.
    """
    with (
        jax.sharding.use_abstract_mesh(mesh),
        nnx.logical_axis_rules(axes.RULES),
        nnx.use_eager_sharding(False),
    ):
        key = jax.eval_shape(lambda: jax.random.key(0))
        shapes: TrainState = jax.eval_shape(_initializer(init_model, trainable, optimizer), key)
        # Shardings need no devices, although flax declares a mesh with devices.
        _check_divisible(shapes, nnx.get_named_sharding(shapes, cast(Mesh, mesh)))
    return shapes


def abstract_state(
    init_model: InitModel, *, trainable: Any, optimizer: optimizers.Optimizer, mesh: Mesh, rules: Any = axes.RULES
) -> tuple[nnx_types.GraphDef, TrainState, TrainState]:
    """Return (graph definition, state of ShapeDtypeStructs with their sharding, shardings); allocates nothing.

    The graph definition merges `(params, others)` into the model.

    Raises:
      UserError: a parameter has a dimension that its mesh axis does not divide.
    """
    with jax.set_mesh(mesh), nnx.logical_axis_rules(rules):
        # A concrete key would be computed on the mesh, whose devices may be described but absent.
        key = jax.eval_shape(lambda: jax.random.key(0))
        shapes = jax.eval_shape(_initializer(init_model, trainable, optimizer), key)
        graphdef = nnx.graphdef(nnx.eval_shape(lambda: init_model(nnx.Rngs(0))))
        shardings = nnx.get_named_sharding(shapes, mesh)
    _check_divisible(shapes, shardings)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    return graphdef, abstract, shardings


def create_state(
    init_model: InitModel,
    *,
    trainable: Any,
    optimizer: optimizers.Optimizer,
    key: jax.Array,
    mesh: Mesh,
    rules: Any = axes.RULES,
) -> tuple[nnx_types.GraphDef, TrainState, TrainState]:
    """Return (graph definition, state at step 0, shardings).

    Every leaf is computed on its own devices, without a host copy.
    """
    graphdef, _, shardings = abstract_state(
        init_model, trainable=trainable, optimizer=optimizer, mesh=mesh, rules=rules
    )
    state = draw_state(
        init_model, trainable=trainable, optimizer=optimizer, shardings=shardings, key=key, mesh=mesh, rules=rules
    )
    return graphdef, state, shardings


def draw_state(
    init_model: InitModel,
    *,
    trainable: Any,
    optimizer: optimizers.Optimizer,
    shardings: TrainState,
    key: jax.Array,
    mesh: Mesh,
    rules: Any = axes.RULES,
) -> TrainState:
    """Return the state at step 0, with the shardings of `abstract_state`."""
    with jax.set_mesh(mesh), nnx.logical_axis_rules(rules):
        state: TrainState = initial_program(init_model, trainable=trainable, optimizer=optimizer, shardings=shardings)(
            key
        )
    return state


def initial_program(
    init_model: InitModel, *, trainable: Any, optimizer: optimizers.Optimizer, shardings: TrainState
) -> Any:
    """Return the compiled function from a key to the state at step 0."""
    return jax.jit(_initializer(init_model, trainable, optimizer), out_shardings=shardings)


def draw_missing(
    init_model: InitModel, params: nnx_types.State, *, key: jax.Array, mesh: Mesh, rules: Any = axes.RULES
) -> nnx_types.State:
    """Return `params` with drawn weights instead of descriptions, the same ones as `create_state` draws.

    Nothing is computed for the other parameters.
    """
    missing = {path for path, leaf in nnx.to_flat_state(params) if isinstance(leaf.get_value(), jax.ShapeDtypeStruct)}
    if not missing:
        return params

    def is_missing(path: tuple[Any, ...], _: Any) -> bool:
        return path in missing

    def init(key: jax.Array) -> nnx_types.State:
        return nnx.split_state(nnx.state(init_model(nnx.Rngs(key))), is_missing, ...)[0]

    _, rest = nnx.split_state(params, is_missing, ...)
    with jax.set_mesh(mesh), nnx.logical_axis_rules(rules):
        shardings = nnx.get_named_sharding(jax.eval_shape(init, key), mesh)
        return nnx.merge_state(rest, jax.jit(init, out_shardings=shardings)(key))


def start_state(
    params: nnx_types.State,
    frozen: nnx_types.State,
    critic: nnx_types.State | None = None,
    *,
    optimizer: optimizers.Optimizer,
    shardings: TrainState,
    mesh: Mesh,
) -> TrainState:
    """Return the state at step 0 for given weights, which it takes over; see `divide`."""

    def rest(params: nnx_types.State) -> tuple[Any, ...]:
        zero = jnp.zeros((), jnp.int32)
        return optimizer.transform.init(params), zero, zero, zero

    def rest_of_critic(params: nnx_types.State) -> tuple[Any, ...]:
        started = _start_critic(params, optimizer)
        assert started is not None
        return started.opt_state, started.skipped

    placed = shardings.opt_state, shardings.step, shardings.skipped, shardings.skipped_in_row
    critic_state = None
    with jax.set_mesh(mesh):
        opt_state, step, skipped, in_row = jax.jit(rest, out_shardings=placed)(params)
        if critic is not None and shardings.critic is not None:
            outputs = shardings.critic.opt_state, shardings.critic.skipped
            critic_state = CriticState(critic, *jax.jit(rest_of_critic, out_shardings=outputs)(critic))
    return TrainState(
        step=step,
        params=params,
        frozen=frozen,
        opt_state=opt_state,
        # Separate buffers, because a step donates both.
        ema=jax.tree.map(jnp.copy, params) if optimizer.config.has_ema else None,
        skipped=skipped,
        skipped_in_row=in_row,
        critic=critic_state,
    )


def sizes(params: nnx_types.State, frozen: nnx_types.State) -> dict[str, tuple[int, int]]:
    """Count trained and all weights, by the first name of their paths."""
    found: dict[str, tuple[int, int]] = {}
    for part, is_trained in ((params, True), (frozen, False)):
        for name, below in part.items():
            count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(below))
            trained, total = found.get(str(name), (0, 0))
            found[str(name)] = trained + is_trained * count, total + count
    return found
