"""Stage 4 of The Matrix: an oracle has loss zero, the teacher does not change, and the effect of options."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from jworld import systems
from jworld.diffusion import consistency, v_prediction, windows
from jworld.parallel import axes, mesh
from jworld.systems import initial_weights, runs
from jworld.systems.matrix import distillation, objective
from jworld.systems.matrix.system import Matrix
from jworld.training import optimizers, step
from jworld.training import state as train_state
from jworld.utils import config as run_config
from jworld.utils import errors

RECIPE = pathlib.Path(__file__).parents[2] / "configs" / "matrix_scm.py"
ALPHAS = v_prediction.alphas_cumprod()
#: [B, F, H, W, C]: one context frame, and two groups of two frames.
SHAPE = (3, 5, 2, 2, 4)


class Oracle(nnx.Module):
    """A model that returns the exact v, from the clean latents and the noise of every trajectory."""

    def __init__(self, clean: jax.Array, noise: jax.Array, scale: float = 1.0):
        self.cfg = type("Config", (), {"guidance_dim": None})()
        self.clean, self.noise, self.scale = nnx.data(clean), nnx.data(noise), scale

    def __call__(self, x: jax.Array, text: jax.Array, timestep: jax.Array, **_: Any) -> jax.Array:
        # For guidance the batch has all clips twice, one copy after the other.
        copies = (len(timestep) // len(self.clean), 1, 1, 1, 1)
        clean, noise = jnp.tile(self.clean, copies), jnp.tile(self.noise, copies)
        return self.scale * v_prediction.velocity(clean, noise, v_prediction.at(ALPHAS, timestep))


def oracle_loss(how: objective.Distillation, timestep: jax.Array, *, scale: float = 1.0) -> float:
    """Return the loss of a student whose v is exact times `scale`, with an exact teacher."""
    clean, noise = (jax.random.normal(jax.random.key(i), SHAPE) for i in range(2))
    example = objective.Example(clean, jnp.zeros((3, 1, 1)), None)
    teacher: Any = Oracle(clean, noise)
    student: Any = Oracle(clean, noise, scale)
    draws = objective.Draws(timestep, noise)
    path = objective.teacher_step(teacher, example, example.text, draws, ALPHAS, how)
    return float(objective.consistency_loss(student, student, example, path, ALPHAS, how))


@pytest.mark.parametrize(("groups", "parts", "steps"), [(2, 1, 40), (2, 5, 40), (4, 1, 50)])
def test_an_oracle_has_loss_zero_at_any_time(groups: int, parts: int, steps: int) -> None:
    stride = 1000 // steps
    how = objective.Distillation(groups * parts, stride, 1.0, "l2")
    size = 4 // groups
    for key in range(8):
        times = windows.sample_timesteps(jax.random.key(key), 3, groups, size, phases_per_group=parts, lowest=stride)
        # No step of the teacher leaves its phase.
        np.testing.assert_array_equal(
            consistency.edge(times[:, 1:], how.phases), consistency.edge(times[:, 1:] - stride, how.phases)
        )
        assert oracle_loss(how, times) < 1e-10
        assert oracle_loss(how, times, scale=0.9) > 1e-6
    assert oracle_loss(how._replace(distance="huber"), times) < 1e-6


def make_config(variant: str = "", **changes: Any) -> ml_collections.ConfigDict:
    """Load the recipe with a model of a few thousand parameters."""
    config = run_config.load_recipe(f"{RECIPE}:{variant}" if variant else str(RECIPE))
    with config.unlocked():
        sizes = {"channels": 4, "width": 32, "num_heads": 2, "num_layers": 1, "time_dim": 16, "text_dim": 8}
        config.model.update(sizes | {"text_tokens": 5, "control_dim": 6, "control_layers": (0, 1)})
        config.data.clip.update({"latent_size": (2, 2), "window_frames": 5})
        config.optimizer.warmup_steps = 0
        config.update_from_flattened_dict(changes)
    return config


class Training:
    """Training of a recipe for a few steps on random batches."""

    def __init__(self, config: ml_collections.ConfigDict, sizes: tuple[int, int, int] = (1, 1, 1)):
        self.system: Any = systems.create(config)
        self.mesh = mesh.make_mesh(
            **dict(zip(mesh.AXIS_NAMES, sizes, strict=True)), devices=jax.devices()[: int(np.prod(sizes))]
        )
        self.optimizer = optimizers.make_optimizer(
            run_config.section(optimizers.OptimizerConfig, config.optimizer, "optimizer"), steps=10
        )
        graphdef, state, shardings = train_state.create_state(
            self.system.init_training,
            trainable=train_state.path_filter(config.optimizer.trainable),
            optimizer=self.optimizer,
            mesh=self.mesh,
            key=jax.random.key(0),
        )
        # No weight is zero, and the teacher equals the initial student.
        rng = np.random.default_rng(0)
        drawn = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32), state.params)
        student = dict(nnx.to_flat_state(drawn))
        frozen = nnx.from_flat_state((path, student[path[1:]]) for path, _ in nnx.to_flat_state(state.frozen))
        state = train_state.start_state(drawn, frozen, optimizer=self.optimizer, shardings=shardings, mesh=self.mesh)
        self.state = jax.device_put(state, shardings)
        spec = self.system.batch_spec(4)
        self.batch_shardings = {name: axes.sharding(self.mesh, entry.axes) for name, entry in spec.items()}
        self.batch = {name: np.asarray(rng.standard_normal(entry.shape), entry.dtype) for name, entry in spec.items()}
        self.function = step.make_train_step(
            graphdef,
            self.system.loss,
            self.optimizer,
            shardings=shardings,
            batch_shardings=self.batch_shardings,
            mesh=self.mesh,
            loss_takes_ema=self.system.loss_takes_ema,
        )

    def run(self, steps: int) -> list[float]:
        losses = []
        with jax.set_mesh(self.mesh):
            for _ in range(steps):
                batch = jax.device_put(self.batch, self.batch_shardings)
                self.state, metrics = self.function(self.state, batch, jax.random.key(1))
                losses.append(float(metrics["loss"]))
        return losses


def flat(state: nnx.State) -> dict[str, np.ndarray]:
    return {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


@pytest.mark.slow
def test_the_student_learns_and_the_teacher_stays() -> None:
    training = Training(make_config())
    before, initial = flat(training.state.frozen), flat(training.state.params)
    assert {name.removeprefix("teacher/") for name in before} == set(initial)
    assert all(name.startswith("teacher/") for name in before)
    training.run(2)
    for name, value in flat(training.state.frozen).items():
        np.testing.assert_array_equal(value, before[name])
    changed = {name for name, value in flat(training.state.params).items() if (value != initial[name]).any()}
    # The bias of the keys is the same for all keys and has no effect.
    assert {name for name in initial if name not in changed} <= {"control_blocks/attention/key_norm/bias"}


@pytest.mark.slow
def test_an_ema_target_and_a_guidance_embedding() -> None:
    """The first loss is the same, because the EMA starts as the weights; then the targets differ."""
    runs_of = {
        name: Training(make_config("tiny_ema", **{"loss.target": name, "optimizer.ema_decay": 0.95})).run(3)
        for name in ("student", "ema")
    }
    assert runs_of["student"][0] == pytest.approx(runs_of["ema"][0], rel=1e-5)
    assert abs(runs_of["student"][2] - runs_of["ema"][2]) > 1e-6
    training = Training(make_config("tiny_guidance"))
    before = flat(training.state.params)["guidance/kernel"]
    training.run(1)
    assert (flat(training.state.params)["guidance/kernel"] != before).any()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [3, 4])
def test_devices_do_not_change_the_steps(stage: int) -> None:
    """Tokens of a frame are split over `sequence`, weights over `fsdp`, the batch over `data`."""
    make = {3: windows_config, 4: make_config}[stage]
    losses = [Training(make(**{"data.clip.latent_size": (4, 2)}), sizes).run(3) for sizes in ((1, 1, 1), (2, 2, 2))]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5)


def windows_config(**changes: Any) -> ml_collections.ConfigDict:
    """Make a config of stage 3, whose model has no teacher."""
    config = run_config.load_recipe(str(RECIPE.with_name("matrix_swin_dpm.py")))
    with config.unlocked():
        config.model.update(make_config().model)
        config.data.clip.update({"window_frames": 5})
        config.optimizer.warmup_steps = 0
        config.update_from_flattened_dict(changes)
    return config


def test_teacher_and_student_start_from_the_loaded_weights(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = Matrix(make_config("tiny_guidance", **{"loss.teacher_dtype": "bfloat16"}))
    base = Matrix(windows_config())

    def drawn(init: Any, seed: int) -> nnx.State:
        rng = np.random.default_rng(seed)
        with nnx.use_eager_sharding(False):
            shapes = nnx.state(nnx.eval_shape(lambda: init(nnx.Rngs(0))), nnx.Param)
        return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), shapes)

    initial, stored = drawn(system.init_training, 0), drawn(base.init, 1)
    kept = flat(stored)
    monkeypatch.setattr(runs, "load_params", lambda directory, abstract: (stored, None))
    run_config.save(windows_config(), tmp_path)
    params, notes = initial_weights.load_initial(tmp_path, initial, copies=system.copies)
    assert notes == ["not in those weights, so new: guidance/kernel"]
    found = flat(params)
    assert set(found) == {*kept, *(f"teacher/{name}" for name in kept), "guidance/kernel"}
    for name, value in kept.items():
        np.testing.assert_array_equal(found[name], value)
        np.testing.assert_array_equal(found[f"teacher/{name}"], value.astype(jnp.bfloat16))


def test_few_steps_are_compared_with_many() -> None:
    system = Matrix(make_config())
    compared = distillation.compared(system.sample, system.objective)
    assert {name: (each.solver, each.num_steps, each.guidance) for name, each in compared.items()} == {
        "teacher in many steps": ("ddim", 40, 1.5),
        "teacher in few steps": ("ddim", 4, 1.5),
        "student": ("consistency", 4, 1.0),
        "student in twice the steps": ("consistency", 8, 1.0),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, "config.init_from is empty, expected a run of stage 3"),
        ({"optimizer.trainable": ".*"}, "which trains the teacher too"),
        ({"loss.target": "ema", "optimizer.ema_decay": 0.0}, "which needs EMA weights"),
        ({"loss.guidance": (1.0, 3.0)}, "the student has no guidance embedding"),
        ({"loss.solver_steps": 4}, "at least two steps in each of the 4 phases"),
        ({"loss.phases_per_group": 3}, "groups \\* phases_per_group is 12"),
    ],
)
def test_contradictions_are_reported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        Matrix(make_config(**changes))
