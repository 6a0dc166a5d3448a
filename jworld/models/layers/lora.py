"""Low-rank adapters of frozen dense layers: W + (alpha / rank) A B (LoRA, https://arxiv.org/abs/2106.09685).

Any network with dense layers from `layers.linear` can be adapted after it is built: `add` attaches an adapter to the
selected layers. Its parameters are `<path>/lora/a` and `<path>/lora/b`, below the layer. All other paths stay the same,
so key tables and checkpoints of the base model keep working. With `config.optimizer.trainable = lora.TRAINABLE` only
the adapters have gradients and moments and are saved at every interval. Layers in a stack have one adapter with a
leading layer axis, which runs under the same scan.
"""

import dataclasses
import difflib
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.layers.linear import Linear
from jworld.utils import errors, ranges

#: Paths of the adapters' parameters, for `config.optimizer.trainable`.
TRAINABLE = r"(.*/)?lora/[ab]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Settings of LoRA: adapted layers and initialization.

    Attributes:
      targets: regular expressions of whole paths of dense layers, such as `blocks/self_attention/(query|key)`; each
        must
        match at least one. The layers of a stack have one path and are adapted together.
      rank: inner width r.
      alpha: the adapters' product is scaled by alpha / rank.
      init: of A, uniform in +-1/sqrt(fan in) as PyTorch's dense layers, or "gaussian" with a deviation of 1/rank; B is
        zero, so that the initial model equals the base model.
      base_dtype: dtype of all other parameters; None leaves it unchanged.
    """

    targets: tuple[ranges.Regex, ...]
    rank: ranges.Size = 16
    alpha: ranges.Positive = 16.0
    init: Literal["uniform", "gaussian"] = "uniform"
    base_dtype: Literal["bfloat16", "float32"] | None = None

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets is empty: name the layers to adapt")
        ranges.check(self)


class Adapter(nnx.Module):
    """Adapter x [..., I] -> (alpha / rank) x A B [..., O]; parameters float32, products in the layer's dtype."""

    def __init__(self, kernel: nnx.Param[jax.Array], cfg: LoRAConfig, *, rngs: nnx.Rngs):
        """Create A and B for the layer's `kernel` [..., I, O].

        They take its leading axes and are sharded along I and O.
        """
        *layers, inputs, outputs = kernel.shape
        *layer_axes, input_axis, output_axis = kernel.get_metadata().get("out_sharding") or [None] * len(kernel.shape)
        # A kernel is sharded along one of I and O. With only that axis, either A or B would be replicated.
        input_axis, output_axis = ("embed" if axis else None for axis in (input_axis, output_axis))
        self.scale = cfg.alpha / cfg.rank
        shape = (*layers, inputs, cfg.rank)
        if cfg.init == "gaussian":
            a = jax.random.normal(rngs.params(), shape) / cfg.rank
        else:
            a = jax.random.uniform(rngs.params(), shape, minval=-1.0, maxval=1.0) * inputs**-0.5
        self.a = nnx.Param(a, out_sharding=(*layer_axes, input_axis, None))
        b = jnp.zeros((*layers, cfg.rank, outputs))
        self.b = nnx.Param(b, out_sharding=(*layer_axes, None, output_axis))

    def __call__(self, x: jax.Array, dtype: Any) -> jax.Array:
        a, b = self.a[...].astype(dtype), self.b[...].astype(dtype)
        return self.scale * ((x.astype(dtype) @ a) @ b)

    def product(self) -> jax.Array:
        """Return the adapter's addition to the kernel, [..., I, O] float32."""
        a, b = self.a[...].astype(jnp.float32), self.b[...].astype(jnp.float32)
        return self.scale * (a @ b)


Adapters = dict[str, Adapter]


def dense_layers(model: nnx.Module) -> dict[str, Linear]:
    """Return the layers that can be adapted, by path."""
    found = ((path, module) for path, module in nnx.iter_modules(model) if isinstance(module, Linear))
    return dict(sorted(("/".join(map(str, path)), module) for path, module in found))


def targeted(paths: list[str], targets: tuple[str, ...]) -> list[str]:
    """Return the paths that a target matches.

    Raises:
      UserError: a target matches none.
    """
    for target in targets:
        if not any(re.fullmatch(target, path) for path in paths):
            near = difflib.get_close_matches(target, paths, n=3, cutoff=0.3) or paths[:3]
            raise errors.UserError(
                f"config.model.lora.targets: {target!r} matches none of the {len(paths)} dense layers of this model; a "
                f"target matches a whole path, such as {', '.join(near)}"
            )
    return [path for path in paths if any(re.fullmatch(target, path) for target in targets)]


def add(model: nnx.Module, cfg: LoRAConfig, *, rngs: nnx.Rngs) -> None:
    """Attach an adapter to each targeted layer of `model`.

    Raises:
      UserError: a target matches no layer, or a targeted layer already has an adapter.
    """
    layers = dense_layers(model)
    chosen = targeted(list(layers), cfg.targets)
    if cfg.base_dtype is not None:
        for _, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
            leaf.set_value(leaf[...].astype(cfg.base_dtype))
    for path in chosen:
        if layers[path].lora is not None:
            raise errors.UserError(f"config.model.lora.targets: {path} already has an adapter")
        layers[path].lora = Adapter(layers[path].kernel, cfg, rngs=rngs)


def merge(model: nnx.Module) -> Adapters:
    """Add all adapters to their kernels and detach them, for inference at the cost of the base model; returns them."""
    adapters: Adapters = {}
    for path, layer in dense_layers(model).items():
        if isinstance(layer.lora, Adapter):
            adapters[path] = layer.lora
            del layer.lora
            _shift(layer, adapters[path], 1)
    return adapters


def unmerge(model: nnx.Module, adapters: Adapters) -> None:
    """Invert `merge`, up to the rounding of the kernels' dtype."""
    layers = dense_layers(model)
    for path, adapter in adapters.items():
        _shift(layers[path], adapter, -1)
        layers[path].lora = adapter


def _shift(layer: Linear, adapter: Adapter, sign: int) -> None:
    kernel = layer.kernel[...]
    # Not kernel[...] = value: that would write into a NumPy array that a running program may still read.
    layer.kernel.set_value((kernel.astype(jnp.float32) + sign * adapter.product()).astype(kernel.dtype))
