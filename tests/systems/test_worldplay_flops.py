"""Operations and tokens of a WorldPlay training step: by formula, by XLA's count, and at published size."""

import pathlib

import jax
import pytest
from flax import nnx

from jworld import systems
from jworld.utils import config as run_config

RECIPE = str(pathlib.Path(__file__).parents[2] / "configs" / "ar_mem.py")


@pytest.mark.parametrize("batch", [1, 2])
def test_step_flops_agree_with_xla(batch: int) -> None:
    config = run_config.load_recipe(RECIPE)
    with config.unlocked():
        # XLA counts the body of a scan only once, and also element-wise work, whose share decreases with the width.
        config.model.update({"width": 512, "num_layers": 1, "rope_dims": (32, 48, 48), "channels": 16})
        config.model.update({"patch_size": (1, 1, 1), "mlp_ratio": 4.0})
        config.data.clip.update({"latent_size": (8, 8), "text_tokens": 40, "vision_tokens": 32})
    system = systems.create(config)
    with nnx.use_eager_sharding(False):
        graphdef, params = nnx.split(nnx.eval_shape(lambda: system.init(nnx.Rngs(0))))
    inputs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in system.batch_spec(batch).items()}

    def loss(params: nnx.State, inputs: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        return system.loss(nnx.merge(graphdef, params), inputs, key)[0]

    key = jax.eval_shape(lambda: jax.random.key(0))
    counted = jax.jit(jax.grad(loss)).lower(params, inputs, key).cost_analysis()["flops"]
    assert counted == pytest.approx(system.step_flops(batch), rel=0.05)
    assert system.step_tokens(batch) == batch * 16 * 64


def test_the_published_model() -> None:
    """A forward pass of 24 latents of 30x52 needs 0.22 PFLOP for weights and 0.72 for attention, text included.

    Training needs three times that.
    """
    system = systems.create(run_config.load_recipe(f"{RECIPE}:8b"))
    assert system.step_tokens(1) == 37_440
    assert system.step_flops(1) == pytest.approx(3 * (0.22e15 + 0.72e15), rel=0.1)
    assert system.step_flops(32) == 32 * system.step_flops(1)
