"""World steps of TheWorld: predicted frames, order of their tokens, trained parameters, origin of the weights."""

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx
from tiny_systems import make_model

from conversion import theworld
from jworld import systems
from jworld.data import records
from jworld.models.autoencoders import files as autoencoder_files
from jworld.models.cosmos.config import CosmosConfig
from jworld.models.cosmos.transformer import CosmosTransformer
from jworld.models.gemma3.vision import vision_values
from jworld.models.theworld.model import TheWorld
from jworld.parallel import axes
from jworld.parallel import mesh as mesh_lib
from jworld.systems import initial_weights, runs
from jworld.systems.cosmos.sampling import SampleConfig, WindowSampler
from jworld.systems.theworld import objective, world_steps
from jworld.training import optimizers, step, weights
from jworld.training import state as train_state
from jworld.utils import config as run_config
from jworld.utils.errors import UserError

NETWORK: dict[str, Any] = {
    "channels": 128,
    "patch_size": (1, 1, 1),
    "width": 48,
    "num_heads": 2,
    "num_layers": 2,
    "text_dim": 16,
    "text_width": 24,
    "modulation_rank": 8,
    "dtype": "float32",
    "remat": "none",
}
STEPS, TOKENS = 2, 16
PROJECTION, ALL, COSMOS_2B = 6_599_680, 4_433_415_523, 1_956_413_440


def make_config(steps: int = STEPS) -> ml_collections.ConfigDict:
    """Load `configs/theworld.py` with one layer per network."""
    config = run_config.load_recipe("configs/theworld.py")
    with config.unlocked():
        sizes = {"width": 48, "mlp_width": 64, "num_layers": 1, "pattern": ("full",), "num_heads": 2, "head_dim": 16}
        vision = {"vision_width": 32, "vision_mlp_width": 32, "vision_layers": 1, "vision_heads": 2}
        config.model.update({**sizes, **vision, "num_key_heads": 1})
        config.model.world.steps = steps
        config.global_batch = 8
        if steps:
            config.model.predictor = NETWORK
    return config


def make(config: ml_collections.ConfigDict) -> TheWorld:
    """Make a model with random weights and the autoencoder of the recipe."""
    model = make_model(systems.create(config))
    model.autoencoder = autoencoder_files.load(config.model.world.autoencoder_file)
    return model


@pytest.fixture(scope="module")
def system() -> Any:
    return systems.create(make_config())


@pytest.fixture(scope="module")
def model() -> TheWorld:
    return make(make_config())


@pytest.fixture(scope="module")
def batch(system: Any) -> dict[str, jax.Array]:
    """A batch of two rows: a question without labels, an answer with labels, and padding."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(20, 490, (2, 40), np.int32)
    tokens[:, 5:21] = 7
    mask = np.arange(40) < np.array([[40], [33]])
    has_loss = mask & (np.arange(40) >= 30)
    return {
        "tokens": jnp.asarray(np.where(mask, tokens, 0)),
        "mask": jnp.asarray(mask),
        "labels": jnp.asarray(np.where(has_loss, tokens, objective.IGNORED)),
        "pixel_values": jnp.asarray(rng.integers(0, 256, (2, 1, 64, 64, 3), np.uint8)),
        "world_pixels": jnp.asarray(rng.integers(0, 256, (2, 64, 64, 3), np.uint8)),
    }


@pytest.fixture(scope="module")
def latents(model: TheWorld, batch: dict[str, jax.Array]) -> jax.Array:
    return jax.jit(world_steps.world_latents)(model, batch["world_pixels"])


# Predicted frames


def test_frames_are_those_of_the_cosmos_port(model: TheWorld, batch: dict[str, jax.Array], latents: jax.Array) -> None:
    """Every frame equals the result of the Cosmos sampler for each image alone, with an empty text of full length."""
    assert latents.shape == (2, 1 + STEPS, 4, 4, 128)
    first = model.autoencoder.encode(batch["world_pixels"].astype(jnp.float32)[:, None] / 127.5 - 1)
    np.testing.assert_allclose(latents[:, :1], first, atol=1e-6)
    sampler = WindowSampler(model.predictor, SampleConfig(num_steps=4, guidance=0.0))
    noise = world_steps.start_noise(1 + STEPS, 4, 4, 128)[0]
    for row in range(2):
        expected = sampler(np.asarray(first[row]), jnp.zeros((1, 32, 16)), noise)
        error = jnp.linalg.norm(latents[row] - expected) / jnp.linalg.norm(expected)
        assert error < 1e-5
    # Another text gives another video, so the comparison depends on the text.
    other = sampler(np.asarray(first[1]), jnp.ones((1, 32, 16)), noise)
    assert jnp.linalg.norm(latents[1] - other) / jnp.linalg.norm(other) > 1e-2


def test_one_frame_is_the_image(model: TheWorld, batch: dict[str, jax.Array], latents: jax.Array) -> None:
    np.testing.assert_array_equal(
        world_steps.world_latents(model, batch["world_pixels"], 1), model.latents(batch["world_pixels"])
    )
    assert jnp.linalg.norm(latents[:, 1] - latents[:, 2]) > 1e-2 * jnp.linalg.norm(latents[:, 1])


def test_published_checkpoints_use_other_latents_than_the_predictor() -> None:
    """With `compat` the first frame is the original's, but the prediction starts from correctly normalized latents."""
    config = make_config()
    with config.unlocked():
        sizes = {"autoencoder_width": 4, "autoencoder_multipliers": (1, 1), "autoencoder_blocks": 1}
        config.model.world.update(
            {**sizes, "autoencoder_time_levels": (True,), "latent_channels": 16, "autoencoder_file": ""}
        )
        config.model.world.update({"compat": "original", "image_size": 8})
        config.data.clip.world_size = 8
        config.model.predictor.channels = 16
    model = make_model(systems.create(config))
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8))

    @jax.jit
    def both(model: TheWorld) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        values = pixels[:, None].astype(jnp.float32)
        mean = model.autoencoder.posterior(values).mean
        sound = model.autoencoder.encode(values / 127.5 - 1)
        return world_steps.world_latents(model, pixels), mean, sound, world_steps.predict(model, sound)

    found, mean, sound, predicted = both(model)
    np.testing.assert_allclose(found[:, :1], mean, rtol=1e-5)
    np.testing.assert_allclose(predicted[:, :1], sound, rtol=1e-5, atol=1e-5)
    normalisation = model.autoencoder.config.normalisation
    scaled = (np.asarray(found[:, 1:]) - normalisation.shift) * normalisation.scale
    np.testing.assert_allclose(scaled, predicted[:, 1:], rtol=1e-3, atol=1e-3)


# The sequence


def test_frames_follow_each_other(model: TheWorld, batch: dict[str, jax.Array], latents: jax.Array) -> None:
    """Each frame's tokens have the frame's temporal vector; with fewer frames only the last ones are missing."""
    tokens, mask = batch["tokens"], batch["mask"]
    fused, fewer = (model.fuse(tokens, mask, None, latents[:, :frames]) for frames in (1 + STEPS, 1))
    assert fused.embeds.shape[1] == 40 + 2 + (1 + STEPS) * TOKENS == 40 + 2 + model.config.world.tokens
    layers = model.world.hidden, model.world.output
    (w0, b0), (w1, b1) = ((np.asarray(x.kernel[...]), np.asarray(x.bias[...])) for x in layers)
    for frame in range(1 + STEPS):
        hidden = np.asarray(latents[:, frame].reshape(2, TOKENS, 128)) @ w0 + b0
        gelu = np.array([x / 2 * (1 + math.erf(x / math.sqrt(2))) for x in hidden.ravel()]).reshape(hidden.shape)
        expected = gelu @ w1 + b1 + np.asarray(model.world.temporal[frame])
        first = 2 + frame * TOKENS
        np.testing.assert_allclose(fused.embeds[:, first : first + TOKENS], expected, rtol=1e-3, atol=1e-4)
    end = 2 + TOKENS
    np.testing.assert_allclose(fewer.embeds[:, :end], fused.embeds[:, :end], atol=1e-5)
    np.testing.assert_array_equal(fewer.embeds[:, end:], fused.embeds[:, end + STEPS * TOKENS :])
    np.testing.assert_array_equal(fewer.mask.sum(axis=1) + STEPS * TOKENS, fused.mask.sum(axis=1))


@pytest.fixture(scope="module")
def trained(system: Any, model: TheWorld, batch: dict[str, jax.Array]) -> Any:
    """(loss, metrics), gradients of all parameters, and log probabilities [B, L', V] of the whole sequence."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def both(params: nnx.State) -> Any:
        found = jax.value_and_grad(
            lambda params: system.loss(nnx.merge(graphdef, params, rest), batch, jax.random.key(0)), has_aux=True
        )(params)
        model = nnx.merge(graphdef, params, rest)
        latents = world_steps.world_latents(model, batch["world_pixels"])
        fused = model.fuse(batch["tokens"], batch["mask"], vision_values(batch["pixel_values"]), latents)
        states = model.language(fused.embeds, mask=fused.mask, images=fused.images)
        return *found, jax.nn.log_softmax(model.language.logits(states))

    return both(params)


def test_the_loss_covers_the_same_tokens(trained: Any, batch: dict[str, jax.Array]) -> None:
    """It covers the tokens of the answers, each predicted from the token before it in the longer sequence."""
    (loss, metrics), _, predicted = trained
    labels, shift = np.asarray(batch["labels"]), 2 + (1 + STEPS) * TOKENS
    rows, places = np.nonzero(labels != objective.IGNORED)
    expected = -np.mean(np.asarray(predicted)[rows, places + shift - 1, labels[rows, places]])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics["loss_tokens"] == len(rows) == 13


def test_the_predictor_does_not_train(trained: Any) -> None:
    """The temporal vector of every frame does, and the projection."""
    gradients = trained[1]
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients["predictor"]))
    assert np.all(np.any(np.asarray(gradients["world"]["temporal"][...]), axis=1))
    assert np.any(gradients["world"]["hidden"]["kernel"][...])


@pytest.mark.slow
def test_a_mesh_does_not_change_the_step(system: Any) -> None:
    """Eight devices give the same loss and update as one."""
    config, rng = make_config(), np.random.default_rng(0)
    optimizer = optimizers.make_optimizer(optimizers.OptimizerConfig(warmup_steps=0), steps=2)
    trainable = train_state.path_filter(config.optimizer.trainable)
    spec = system.batch_spec(8)
    batch: dict[str, Any] = {
        name: rng.integers(0, 256 if entry.dtype == np.uint8 else 2, entry.shape).astype(entry.dtype)
        for name, entry in spec.items()
    }
    batch["mask"] = np.ones_like(batch["mask"])
    found = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = mesh_lib.make_mesh(data=1, fsdp=-1, sequence=1, devices=devices)
        graphdef, state, shardings = train_state.create_state(
            system.init, trainable=trainable, optimizer=optimizer, mesh=mesh, key=jax.random.key(0)
        )
        split = {name: axes.sharding(mesh, entry.axes) for name, entry in spec.items()}
        function = step.make_train_step(
            graphdef, system.loss, optimizer, shardings=shardings, batch_shardings=split, mesh=mesh
        )
        with jax.set_mesh(mesh):
            state, values = function(state, batch, jax.random.key(0))
        found.append((float(values["loss"]), np.asarray(state.params["world"]["temporal"][...])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-6)
    assert np.any(found[0][1])


# Parameters and their origin


def test_trained_parameters_at_published_size() -> None:
    """There is one more vector per frame; the predictor is frozen in bfloat16."""
    config = run_config.load_recipe("configs/theworld.py:projection")
    with config.unlocked():
        config.model.world.steps = 4
        config.model.predictor = {}
    system = systems.create(config)
    with nnx.use_eager_sharding(False):
        params = nnx.state(nnx.eval_shape(lambda: system.init(nnx.Rngs(0))), nnx.Param)
    mine, frozen = nnx.split_state(params, train_state.path_filter(config.optimizer.trainable), ...)
    counts = [sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part)) for part in (mine, frozen)]
    assert counts == [PROJECTION + 5 * 2560, ALL - PROJECTION + COSMOS_2B]
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {jnp.dtype("bfloat16")}
    assert system.model_config.world.tokens == 5 * 4096
    # Computed by hand: five passes over five frames of 32 x 32 tokens, with less than 2 P operations per token.
    before = systems.create(run_config.load_recipe("configs/theworld.py:projection"))
    longer = system.step_flops(1) - before.step_flops(1)
    assert longer > 5 * 5 * 1024 * 2 * 0.75 * COSMOS_2B


def write_run(folder: pathlib.Path, config: ml_collections.ConfigDict, model: nnx.Module) -> pathlib.Path:
    """Write a folder of released weights."""
    folder.mkdir()
    run_config.save(config, folder)
    weights.save(nnx.state(model, nnx.Param), folder / runs.WEIGHTS, np.float32)
    return folder


def write_predictor(folder: pathlib.Path, **values: Any) -> CosmosTransformer:
    config = run_config.load_recipe("configs/cosmos_video2world.py")
    with config.unlocked():
        config.model.update(NETWORK | values)
    network = make_model(systems.create(config), scale=0.1)
    write_run(folder, config, network)
    return network


def test_a_stage_with_steps_starts_from_one_without(tmp_path: pathlib.Path, batch: dict[str, jax.Array]) -> None:
    """Weights come from the former stage, those and the sizes of the predictor from its folder."""
    before_config = make_config(steps=0)
    before = make(before_config)
    former = write_run(tmp_path / "former", before_config, before)
    network = write_predictor(tmp_path / "cosmos")
    config = run_config.load_recipe("configs/theworld.py:tiny_steps")
    with config.unlocked():
        config.model.update({name: before_config.model[name] for name in before_config.model if name != "world"})
        config.model.world.predictor = str(tmp_path / "cosmos")
        config.model.frozen_dtype = "bfloat16"
    completed = systems.completed(config)
    assert completed.model.predictor.width == 48
    assert systems.completed(completed) is completed
    system = systems.create(completed)
    with nnx.use_eager_sharding(False):
        model = make_model(system)
    graphdef, new = nnx.split(model)
    new["world"]["temporal"][...] = jnp.zeros((1 + STEPS, 48))
    parts = system.parts
    params = initial_weights.load_parts(new, parts)
    params, notes = initial_weights.load_initial(former, params, parts=parts)
    assert notes == ["not in those weights, so new: world/temporal"]
    expected = nnx.state(network, nnx.Param)
    for leaf, other in zip(jax.tree.leaves(params["predictor"]), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(leaf, other.astype(jnp.bfloat16))
    model = nnx.merge(graphdef, params)
    first = before.latents(batch["world_pixels"])
    reference = before.fuse(batch["tokens"], batch["mask"], None, first)
    found = model.fuse(batch["tokens"], batch["mask"], None, first)
    np.testing.assert_allclose(found.embeds, reference.embeds, rtol=1e-5, atol=1e-5)


def test_without_steps_nothing_is_read() -> None:
    """There is no folder to read, and there are no parameters."""
    config = run_config.load_recipe("configs/theworld.py")
    with config.unlocked():
        config.model.world.predictor = "nowhere"
    assert systems.completed(config) is config
    system = systems.create(config)
    assert system.model_config.predictor is None
    assert system.parts == {}
    with nnx.use_eager_sharding(False):
        paths = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: system.init(nnx.Rngs(0))), nnx.Param))
    assert not [path for path, _ in paths if path[0] == "predictor" or "temporal" in path]


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        ({"channels": 16}, {}, "latents of 16 channels, but config.model.world.latent_channels is 128"),
        ({"action_dim": 49}, {}, "needs actions or several cameras"),
        ({"patch_size": (1, 3, 3)}, {}, "do not divide the 4 along"),
        ({}, {"optimizer.trainable": ".*"}, "which trains the predictor too"),
        ({}, {"mesh.sequence": 2}, "config.mesh.sequence is 2, which does not divide the 3 frames"),
        ({}, {"model.world.steps": -1}, "steps: found -1"),
    ],
)
def test_values_that_do_not_fit(network: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    config = make_config()
    with config.unlocked():
        config.model.predictor = NETWORK | network
        config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        systems.create(config)


def test_folders_without_a_predictor(tmp_path: pathlib.Path) -> None:
    config = run_config.load_recipe("configs/theworld.py:tiny_steps")
    with config.unlocked():
        config.model.world.predictor = str(tmp_path / "cosmos")
    with pytest.raises(UserError, match=r"cosmos has no config.json, but config.model.world.steps is 2"):
        systems.create(config)
    write_run(tmp_path / "other", run_config.load_recipe("configs/ar_mem.py"), nnx.Module())
    with config.unlocked():
        config.model.world.predictor = str(tmp_path / "other")
    with pytest.raises(UserError, match="holds a model of 'worldplay'"):
        systems.create(config)


def test_latents_of_another_autoencoder(tmp_path: pathlib.Path) -> None:
    """The manifest in the predictor's run has the hash of its autoencoder."""
    write_predictor(tmp_path / "cosmos")
    kept = tmp_path / "cosmos" / runs.ENCODERS
    kept.mkdir()
    config = run_config.load_recipe("configs/theworld.py:tiny_steps")
    with config.unlocked():
        config.model.world.predictor = str(tmp_path / "cosmos")
    own = autoencoder_files.load(config.model.world.autoencoder_file).manifest_entry()
    manifest = records.read_manifest(pathlib.Path("assets/starter") / runs.ENCODERS)
    records.write_manifest(kept, manifest | {"autoencoder": own})
    predictor = systems.create(config).model_config.predictor
    assert isinstance(predictor, CosmosConfig)
    assert (predictor.channels, predictor.width) == (NETWORK["channels"], NETWORK["width"])
    records.write_manifest(kept, manifest | {"autoencoder": own | {"hash": "0" * 64}})
    with pytest.raises(UserError, match=r"'patch' \(00000000\), but the world's is 'patch'"):
        systems.create(config)


def test_the_original_has_no_world_steps() -> None:
    config = run_config.load_recipe("configs/theworld.py:projection")
    with config.unlocked():
        config.model.world.steps = 4
        config.model.predictor = {}
    with pytest.raises(UserError, match="receives 4 predicted frames of the world"):
        theworld.to_config(systems.create(config).model_config, theworld.STYLE)
