"""Muon as in WorldPlay's training: orthogonalized momentum for matrices, AdamW for all other parameters.

`optax.contrib.muon` differs: it averages the momentum with a bias correction inside the Nesterov step, adds AdamW's
epsilon after the bias correction, and scales a convolution by its whole fan-in. Therefore this one is composed of
`optax.trace`, `optax.partition` and two small transformations.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jworld.utils import nnx_types

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPSILON = 1e-7
LAYER_AXIS = "layer"


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _value(leaf: Any) -> Any:
    return leaf.get_raw_value() if _is_variable(leaf) else leaf


def is_stacked(leaf: Any) -> bool:
    """Return whether the leading axis of a variable counts layers; always False for a plain array."""
    names = leaf.get_metadata().get("out_sharding") if _is_variable(leaf) else None
    return names is not None and len(names) > 0 and names[0] == LAYER_AXIS


def is_matrix(leaf: Any) -> bool:
    """Return whether one layer of this parameter has at least two dimensions: Muon updates those, AdamW the rest."""
    ndim: int = _value(leaf).ndim
    return ndim - is_stacked(leaf) >= 2


def check_named(params: nnx_types.State) -> None:
    """Require logical axis names for every parameter of two dimensions or more.

    Raises:
      ValueError: a parameter has none, so a stack of vectors cannot be distinguished from a matrix.
    """
    for path, leaf in nnx.to_flat_state(params):
        if _value(leaf).ndim >= 2 and not leaf.get_metadata().get("out_sharding"):
            raise ValueError(
                f"parameter {'/'.join(map(str, path))} of shape {_value(leaf).shape} names no logical axes: give its "
                "metadata an out_sharding (None for an axis without a name), which separates stacks from matrices"
            )


def newton_schulz(x: jax.Array, *, steps: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Orthogonalize [rows, columns] -> [rows, columns] in `dtype`, with all singular values near 1.

    Operands of every product are in `dtype`, sums stay in float32 until they are operands again.
    """
    a, b, c = COEFFICIENTS
    x = x.astype(dtype)
    transpose = x.shape[0] > x.shape[1]
    if transpose:
        x = x.T
    # The epsilon keeps an exactly zero gradient (the last block's text branch) at zero instead of NaN.
    x = x / (jnp.linalg.norm(x.astype(jnp.float32)).astype(dtype) + EPSILON)
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)

    def iterate(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        gram = product(x, x.T).astype(dtype)
        polynomial = (b * gram.astype(jnp.float32) + c * product(gram, gram)).astype(dtype)
        return (a * x.astype(jnp.float32) + product(polynomial, x)).astype(dtype), None

    # A loop: unrolled, these products would dominate compilation time.
    x, _ = jax.lax.scan(iterate, x, length=steps)
    return x.T if transpose else x


def _orthogonalize(leaf: Any, *, steps: int, dtype: jax.typing.DTypeLike) -> Any:
    """Orthogonalize one parameter's update: kernels [..., in, out] as matrices [rest, out], each layer separately."""
    if _is_variable(leaf):
        return leaf.replace(_orthogonalize_array(_value(leaf), is_stacked(leaf), steps=steps, dtype=dtype))
    return _orthogonalize_array(leaf, False, steps=steps, dtype=dtype)


def _orthogonalize_array(x: jax.Array, stacked: bool, *, steps: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    layers = x.shape[0] if stacked else 1
    # As [out, rest], the original's orientation: transposed, a square matrix rounds differently.
    matrices = x.reshape(layers, -1, x.shape[-1]).swapaxes(1, 2)
    y = jax.vmap(lambda matrix: newton_schulz(matrix, steps=steps, dtype=dtype))(matrices).swapaxes(1, 2)
    # The original scales by the first two dimensions of [out, in, ...], here the last two.
    return 0.2 * math.sqrt(max(x.shape[-2:])) * y.reshape(x.shape).astype(x.dtype)


def scale_by_orthogonalization(
    *, steps: int = 5, dtype: jax.typing.DTypeLike = jnp.bfloat16
) -> optax.GradientTransformation:
    """Make every update orthogonal, with a root mean square of about 0.2 for every shape."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return jax.tree.map(
            lambda leaf: _orthogonalize(leaf, steps=steps, dtype=dtype), updates, is_leaf=_is_variable
        ), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def scale_by_early_epsilon_adam(*, b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam that adds epsilon to the root of the second moment before the bias correction."""

    def init(params: Any) -> optax.ScaleByAdamState:
        return optax.ScaleByAdamState(
            count=jnp.zeros((), jnp.int32), mu=optax.tree.zeros_like(params), nu=optax.tree.zeros_like(params)
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        count = state.count + 1
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        scale = jnp.sqrt(1 - b2 ** count.astype(jnp.float32)) / (1 - b1 ** count.astype(jnp.float32))
        updates = jax.tree.map(lambda m, v: scale * m / (eps + jnp.sqrt(v)), mu, nu)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def muon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float,
    momentum: float = 0.95,
    nesterov: bool = True,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    steps: int = 5,
    dtype: jax.typing.DTypeLike = jnp.bfloat16,
) -> optax.GradientTransformation:
    """Return the optimizer of WorldPlay's training.

    Parameters are an `nnx.State` whose variables name their axes, or any pytree of unstacked arrays. Weight decay
    applies to all of them, biases and norms included. The original iterates in bfloat16; float32 is slower, but its
    rounding does not depend on the mesh.
    """

    def labels(params: Any) -> Any:
        if isinstance(params, nnx.State):
            check_named(params)
        return jax.tree.map(lambda leaf: "muon" if is_matrix(leaf) else "adam", params, is_leaf=_is_variable)

    directions = optax.partition(
        {
            "muon": optax.chain(
                optax.trace(momentum, nesterov=nesterov), scale_by_orthogonalization(steps=steps, dtype=dtype)
            ),
            "adam": scale_by_early_epsilon_adam(b1=betas[0], b2=betas[1], eps=eps),
        },
        labels,
    )
    return optax.chain(directions, optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(learning_rate))
