"""Toy network of two stacked layers and a training run of it, small enough to compile quickly."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jworld.parallel import axes
from jworld.parallel import mesh as meshes
from jworld.training import optimizers, state, step

WIDTH, HIDDEN, BATCH = 16, 24, 8


def linear(din: int, dout: int, names: tuple[str | None, ...], rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        din, dout, rngs=rngs, kernel_metadata={"out_sharding": names}, bias_metadata={"out_sharding": names[-1:]}
    )


class Block(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.up = linear(width, HIDDEN, ("embed", "mlp"), rngs)
        self.down = linear(HIDDEN, width, ("mlp", "embed"), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(jnp.tanh(self.up(x)))


class Toy(nnx.Module):
    """Toy network: [B, width] -> [B, width]."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        @nnx.split_rngs(splits=2)
        @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layer"})
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(width, rngs=rngs)

        self.blocks = stack(rngs)
        self.head = linear(width, width, ("embed", "heads"), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        graphdef, params = nnx.split(self.blocks)
        x, _ = jax.lax.scan(lambda x, layer: (nnx.merge(graphdef, layer)(x), None), x, params)
        return self.head(x)


def loss(model: Any, batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    error = batch["scale"][:, None] * (model(batch["x"]) - batch["y"])
    return jnp.mean(error**2), {"error": jnp.mean(jnp.abs(error))}


class Run:
    """Train step with its state; `step()` trains on the batch of the state's step."""

    def __init__(
        self,
        *,
        mesh: tuple[int, int, int] = (1, 1, 1),
        width: int = WIDTH,
        trainable: Any = nnx.Param,
        loss: Any = loss,
        model: type[Toy] = Toy,
        critic: dict[str, Any] | None = None,
        critic_loss: Any = None,
        steps: int = 100,
        **optimizer: Any,
    ) -> None:
        self.mesh = make_mesh(mesh)
        config = ml_collections.ConfigDict({"optimizer": {"learning_rate": 0.01} | optimizer})
        if critic is not None:
            config.critic = critic
        self.optimizer = optimizers.from_config(config, steps=steps)
        self.init: dict[str, Any] = {
            "init_model": lambda rngs: model(width, rngs=rngs),
            "trainable": trainable,
            "optimizer": self.optimizer,
        }
        self.graphdef, self.state, self.shardings = state.create_state(
            **self.init, key=jax.random.key(0), mesh=self.mesh
        )
        self.batch_shardings = {name: axes.sharding(self.mesh, ("batch",)) for name in ("x", "y", "scale")}
        self.train_step = step.make_train_step(
            self.graphdef,
            loss,
            self.optimizer,
            shardings=self.shardings,
            batch_shardings=self.batch_shardings,
            mesh=self.mesh,
            critic_loss=critic_loss,
        )
        self.width = width
        self.count = 0

    def abstract(self, mesh: tuple[int, int, int] | None = None) -> Any:
        """Return the abstract state on another mesh."""
        return state.abstract_state(**self.init, mesh=make_mesh(mesh) if mesh else self.mesh)[1]

    def batch(self, number: int, scale: float = 1.0) -> dict[str, np.ndarray]:
        """Return the batch of a step."""
        x = np.random.default_rng(number).normal(size=(BATCH, self.width)).astype(np.float32)
        return {"x": x, "y": np.roll(x, 1, axis=1), "scale": np.full(BATCH, scale, np.float32)}

    def step(self, scale: float = 1.0) -> dict[str, jax.Array]:
        batch = self.batch(self.count, scale)
        self.count += 1
        with jax.set_mesh(self.mesh):
            self.state, metrics = self.train_step(
                self.state, jax.device_put(batch, self.batch_shardings), jax.random.key(1)
            )
        return metrics


def make_mesh(sizes: tuple[int, int, int]) -> Mesh:
    data, fsdp, sequence = sizes
    return meshes.make_mesh(data=data, fsdp=fsdp, sequence=sequence, devices=jax.devices()[: data * fsdp * sequence])


def pairs(a: Any, b: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.asarray(x), np.asarray(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]


def assert_close(a: Any, b: Any, tolerance: float) -> None:
    for x, y in pairs(a, b):
        np.testing.assert_allclose(x, y, atol=tolerance, rtol=0)
