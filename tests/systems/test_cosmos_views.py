"""Several synchronized cameras in the Cosmos system: examples, loss, windows, texts, meshes, refusals."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import mesh_steps
import ml_collections
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from tiny_systems import make_batch, make_model

from jworld.data import camera_grids
from jworld.models.cosmos.transformer import CosmosInputs
from jworld.parallel import mesh
from jworld.systems.cosmos import data, objective, sampling
from jworld.systems.cosmos.session import Session
from jworld.systems.cosmos.system import Cosmos
from jworld.utils import config as run_config
from jworld.utils import errors

RECIPE = str(pathlib.Path(__file__).parents[2] / "configs" / "cosmos_video2world.py")
CHANNELS, SIZE, FRAMES, IDS, TOKENS = 8, (2, 4), 4, (2, 0, 1), 6


def make_config(**changes: Any) -> ml_collections.ConfigDict:
    config = run_config.load_recipe(f"{RECIPE}:tiny_multiview")
    with config.unlocked():
        config.model.update({"channels": CHANNELS, "width": 48, "num_heads": 2, "num_layers": 1})
        config.model.update({"text_dim": 16, "text_width": 16})
        config.data.clip.update({"latent_size": SIZE, "text_tokens": TOKENS, "view_ids": IDS})
        config.sample.rollout.update({"num_steps": 2, "guidance": 1.5})
        config.update_from_flattened_dict(changes)
    return config


def as_views(array: np.ndarray | jax.Array) -> np.ndarray:
    """Return [B, V * F, ...] as [B, V, F, ...]."""
    return np.asarray(array).reshape(len(array), len(IDS), FRAMES, *array.shape[2:])


def test_examples_have_one_camera_after_the_other() -> None:
    """Latents view by view, a caption only for the camera with the id 0, zeros for all others, the rate of the set."""

    class Store:
        def prompt(self, row: int, /) -> dict[str, np.ndarray]:
            return {"text_states": np.full((2 + row, 16), row + 1, ml_dtypes.bfloat16)}

    latent = np.random.default_rng(0).standard_normal((3, FRAMES + 1, *SIZE, CHANNELS)).astype(ml_dtypes.bfloat16)
    record = {"latent": latent, "prompt": 1, "view_prompts": np.array([2, 1, 0]), "index": 0}
    clip = Cosmos(make_config()).clip

    def example(clip: data.ClipConfig) -> dict[str, Any]:
        made = data.FirstFrames(clip, text_store=Store(), fps=10.0).random_map(
            {"record": record, "position": 0}, np.random.default_rng(0)
        )
        return dict(made)

    made = example(clip)
    for view in range(3):
        np.testing.assert_array_equal(made["latent"][view * FRAMES : (view + 1) * FRAMES], latent[view, :FRAMES])
    text = made["text_states"].astype(np.float32).reshape(3, TOKENS, 16)
    assert text[:, :, 0].tolist() == [[0] * 6, [2, 2, 2, 0, 0, 0], [0] * 6]
    assert made["fps"] == np.float32(10)
    own = Cosmos(make_config(**{"data.clip.caption_view": None})).clip
    text = example(own)["text_states"].astype(np.float32).reshape(3, TOKENS, 16)
    # Row 0 stands for no caption.
    assert text[:, :, 0].tolist() == [[3, 3, 3, 3, 0, 0], [2, 2, 2, 0, 0, 0], [0] * 6]


def test_loss_equals_an_oracle_in_numpy() -> None:
    """The loss of a small known network, summed by hand over samples, cameras and frames.

    The oracle follows cosmos-predict2: the first n frames of every camera enter clean with the time of sigma 1e-4, and
    the mean of the squared error of the velocity counts them as zeros.
    """
    system = Cosmos(make_config())
    batch = make_batch(system, 2) | {"fps": jnp.full(2, 10.0)}
    draws = objective.draw(jax.random.key(0), batch["latent"].shape, system.objective, cameras=3)
    draws = draws._replace(given=jnp.array([1, 0]), keep_text=jnp.array([True, False]), sigma=jnp.array([[2.0], [0.5]]))

    def network(inputs: CosmosInputs) -> jax.Array:
        assert inputs.view is not None
        assert inputs.given is not None
        assert inputs.fps is not None
        text = jnp.repeat(inputs.text.reshape(2, 3, -1).mean(-1), FRAMES, axis=1)
        frame = inputs.time + 0.1 * inputs.view + 0.3 * inputs.given + 0.01 * inputs.fps + text
        return 0.5 * inputs.video + frame[:, :, None, None, None].astype(jnp.float32)

    found, metrics = objective.loss(network, batch, draws, system.objective, IDS)  # type: ignore[arg-type]
    clean, noise = as_views(batch["latent"].astype(jnp.float32)), as_views(draws.noise)
    texts = np.asarray(batch["text_states"].astype(jnp.float32)).reshape(2, 3, -1).mean(-1)
    errors_found, predicted = [], 0
    for sample, (count, sigma) in enumerate(((1, 2.0), (0, 0.5))):
        for camera, number in enumerate(IDS):
            for frame in range(FRAMES):
                x0, eps = clean[sample, camera, frame], noise[sample, camera, frame]
                if frame < count:
                    errors_found.append(np.zeros_like(x0))
                    continue
                time = sigma / (1 + sigma)
                text = texts[sample, camera] if sample == 0 else 0.0
                velocity = 0.5 * (1 - time) * (x0 + sigma * eps) + time + 0.1 * number + 0.1 + text
                errors_found.append((velocity - (eps - x0)) ** 2)
                predicted += 1
    expected = 10 * np.mean(errors_found)
    assert float(found) == pytest.approx(expected, rel=2e-3)
    assert float(metrics["velocity_error"]) == pytest.approx(expected / 10 * 24 / predicted, rel=2e-3)


def test_noise_grows_with_the_frames_of_one_camera() -> None:
    cfg = objective.ObjectiveConfig(high_ratio=0.0, conditioning_frames=(0, 1))
    draws = objective.draw(jax.random.key(1), (4000, 12, 1, 1, 1), cfg, cameras=3)
    assert set(np.unique(draws.given)) == {0, 1}
    assert float(np.median(np.log(np.asarray(draws.sigma)))) == pytest.approx(np.log(2), abs=0.1)


def test_given_frames_of_every_camera_reach_the_network() -> None:
    """The first frame of each camera changes the prediction of all, its noise changes nothing; without any, it does."""
    system = Cosmos(make_config())
    model, batch = make_model(system), make_batch(system, 1) | {"fps": jnp.full(1, 10.0)}
    draws = objective.draw(jax.random.key(0), batch["latent"].shape, system.objective, cameras=3)
    draws = draws._replace(keep_text=jnp.ones(1, bool), sigma=jnp.full((1, 1), 2.0))
    predict = jax.jit(lambda batch, draws: objective.predict(model, batch, draws, system.objective, IDS))

    def predicted(count: int, *, frame: int | None = None, noisy: int | None = None) -> np.ndarray:
        latent = batch["latent"] if frame is None else batch["latent"].at[:, frame].add(1.0)
        noise = draws.noise if noisy is None else draws.noise.at[:, noisy].add(1.0)
        found = predict(batch | {"latent": latent}, draws._replace(given=jnp.array([count]), noise=noise))
        return as_views(found)[0]

    base, free = predicted(1), predicted(0)
    np.testing.assert_array_equal(base[:, 0], as_views(batch["latent"].astype(jnp.float32))[0, :, 0])
    for camera in range(3):
        changed = predicted(1, frame=camera * FRAMES)
        assert all(np.abs(changed[other, 1:] - base[other, 1:]).max() > 1e-4 for other in range(3))
        np.testing.assert_array_equal(predicted(1, noisy=camera * FRAMES), base)
        assert np.abs(predicted(0, noisy=camera * FRAMES) - free).max() > 1e-4


def test_cameras_are_told_apart_by_their_ids_alone() -> None:
    """The same cameras in another order predict the same; with ids of another order they do not."""
    system = Cosmos(make_config())
    model, batch = make_model(system), make_batch(system, 1) | {"fps": jnp.full(1, 10.0)}
    draws = objective.draw(jax.random.key(0), batch["latent"].shape, system.objective, cameras=3)
    draws = draws._replace(given=jnp.array([1]), keep_text=jnp.ones(1, bool))
    order = (1, 2, 0)

    def moved(array: jax.Array, rows: int) -> jax.Array:
        parts = array.reshape(1, 3, rows, *array.shape[2:])[:, jnp.array(order)]
        return parts.reshape(array.shape)

    predict = jax.jit(lambda *given: objective.predict(model, *given[:2], system.objective, given[2]), static_argnums=2)

    def predicted(batch: dict[str, jax.Array], draws: objective.Draws, ids: tuple[int, ...]) -> np.ndarray:
        return as_views(predict(batch, draws, ids))[0]

    expected = predicted(batch, draws, IDS)
    other = batch | {"latent": moved(batch["latent"], FRAMES), "text_states": moved(batch["text_states"], TOKENS)}
    noise = draws._replace(noise=moved(draws.noise, FRAMES))
    ids = tuple(IDS[i] for i in order)
    np.testing.assert_allclose(predicted(other, noise, ids), expected[list(order)], atol=2e-4)
    assert np.abs(predicted(other, noise, IDS) - expected[list(order)]).max() > 1e-2


def test_text_reaches_only_its_own_camera() -> None:
    """A block attends to the video before the text, so in a network of one block other cameras stay as they are."""
    system = Cosmos(make_config())
    model, batch = make_model(system), make_batch(system, 1) | {"fps": jnp.full(1, 10.0)}
    view = jnp.repeat(jnp.array(IDS), FRAMES)[None]

    def velocity(text: jax.Array) -> np.ndarray:
        video = batch["latent"].astype(jnp.float32)
        inputs = CosmosInputs(video, jnp.full((1, 1), 0.4), text, given=jnp.zeros((1, 12)), fps=10.0, view=view)
        return as_views(model(inputs))[0]

    base = velocity(batch["text_states"])
    for camera in range(3):
        changed = velocity(batch["text_states"].at[:, camera * TOKENS].add(1.0)) - base
        differs = [bool(np.abs(changed[other]).max() > 1e-4) for other in range(3)]
        assert differs == [other == camera for other in range(3)]


class TinyAutoencoder:
    """A minimal autoencoder: 8 x 8 pixels per latent pixel, four frames per latent."""

    temporal_ratio, spatial_ratio = 4, 8

    def encode(self, video: np.ndarray) -> np.ndarray:
        picked = video[:, ::4, ::8, ::8].astype(np.float32) / 255
        return np.tile(picked, (1, 1, 1, 1, 3))[..., :CHANNELS]

    def decode(self, latents: np.ndarray) -> np.ndarray:
        pixels = np.repeat(np.repeat(np.clip(latents[..., :3], 0, 1), 8, axis=2), 8, axis=3)
        frames = np.concatenate([pixels[:, :1], np.repeat(pixels[:, 1:], 4, axis=1)], axis=1)
        return np.round(255 * frames).astype(np.uint8)


class Encoders:
    autoencoder, fps = TinyAutoencoder(), 10.0

    def resize(self, frame: np.ndarray) -> np.ndarray:
        return frame

    def prompt(self, prompt: str) -> dict[str, np.ndarray]:
        return {"text_states": np.full((2 + len(prompt) % 3, 16), 0.1 * len(prompt), np.float32)}


def make_session(**changes: Any) -> Session:
    system = Cosmos(make_config(**changes))
    return system.session(make_model(system), Encoders())  # type: ignore[arg-type]


IMAGES = np.random.default_rng(2).integers(0, 256, (3, 1, 16, 32, 3), dtype=np.uint8)


def test_windows_of_all_cameras_continue_each_other() -> None:
    """Every tile starts with its own image, and a window with the last frames of the same tile."""
    session = make_session()
    session.reset(camera_grids.join(IMAGES), "a room", seed=0)
    first, second = session.step(), session.step()
    assert (first.shape, second.shape) == ((13, 16, 96, 3), (12, 16, 96, 3))
    autoencoder = TinyAutoencoder()
    for tile, image in zip(camera_grids.split(first, 3), IMAGES, strict=True):
        np.testing.assert_array_equal(tile[0], autoencoder.decode(autoencoder.encode(image[None]))[0, 0])
    session.reset(camera_grids.join(IMAGES[[0, 2, 1]]), "a room", seed=0)
    assert (camera_grids.split(session.step(), 3)[0][1:] != camera_grids.split(first, 3)[0][1:]).any()
    with pytest.raises(errors.UserError, match="has 32x16 pixels, expected a grid of 3x1 tiles for 3 cameras"):
        session.reset(IMAGES[0], "a room")


def test_conditioning_latents_are_the_first_of_their_camera() -> None:
    """The sampler keeps every camera's latents where they belong, also of two frames."""
    system = Cosmos(make_config())
    sampler = sampling.WindowSampler(
        make_model(system), sampling.SampleConfig(num_steps=1, guidance=0.0), fps=10.0, view_ids=IDS
    )
    given = np.random.default_rng(0).standard_normal((3, 2, *SIZE, CHANNELS)).astype(np.float32)
    noise = jax.random.normal(jax.random.key(0), (12, *SIZE, CHANNELS))
    found = np.asarray(sampler(given, jnp.zeros((1, 18, 16)), noise)).reshape(3, FRAMES, *SIZE, CHANNELS)
    np.testing.assert_array_equal(found[:, :2], given)
    assert np.abs(found[:, 2:]).min(axis=(1, 2, 3, 4)).shape == (3,)


@pytest.mark.parametrize(
    ("caption_view", "prompt", "expected"),
    [
        (0, "abc", [0.0, 0.3, 0.0]),
        (0, "a\nab\nabc", [0.0, 0.2, 0.0]),
        (None, "abc", [0.3, 0.3, 0.3]),
        (None, "a\n\nabc", [0.1, 0.0, 0.3]),
    ],
)
def test_prompts_of_cameras(caption_view: int | None, prompt: str, expected: list[float]) -> None:
    """A line for each camera, or one text for those that have captions; the rest is zeros, as in training."""
    session = make_session(**{"data.clip.caption_view": caption_view})
    session.reset(camera_grids.join(IMAGES), prompt)
    negative, states = np.asarray(session._text).reshape(2, 3, TOKENS, 16)
    np.testing.assert_allclose(states[:, 0, 0], expected, rtol=1e-6)
    assert not negative.any()


@pytest.mark.slow
def test_mesh_equals_one_device() -> None:
    """Examples, weights and frames, also within a camera, are split over 8 devices: the same loss and gradient."""
    system = Cosmos(make_config())
    batch = make_batch(system, 2) | {"fps": jnp.full(2, 10.0)}
    devices = mesh.make_mesh(data=1, fsdp=2, sequence=4)
    expected, actual = mesh_steps.loss_and_gradient(system, make_model(system), batch, devices)
    for one, eight in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        scale = float(jnp.abs(one).max()) + 1e-6
        np.testing.assert_allclose(np.asarray(one) / scale, np.asarray(eight) / scale, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.clip.views": (), "data.clip.view_ids": ()},
            r"config.data.clip.views is \(\) but config.model.views is 3",
        ),
        ({"model.views": None}, "but config.model.views is None"),
        ({"model.views": 2}, "expected numbers below config.model.views 2"),
        ({"data.clip.view_ids": (0, 1)}, "expected an id for each of several"),
        ({"data.clip.view_ids": (0, 1, 1)}, "expected different ones"),
        ({"data.clip.caption_view": 5}, "caption_view is 5, expected None or one of"),
        ({"model.view_frames": 8}, "window_frames is 4, expected config.model.view_frames 8"),
        ({"mesh.sequence": 5}, "config.mesh.sequence is 5, which does not divide 12, the latent frames of 3 cameras"),
    ],
)
def test_configs_that_contradict_themselves(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        Cosmos(make_config(**changes))


def test_the_published_recipe() -> None:
    """Five cameras of 8 latents at 720p; the published network and seven embeddings."""
    system = Cosmos(run_config.load_recipe(f"{RECIPE}:2b_multiview"))
    assert system.step_tokens(1) == 5 * 8 * 44 * 80
    assert {name: spec.shape for name, spec in system.batch_spec(1).items()} == {
        "latent": (1, 40, 88, 160, 16),
        "text_states": (1, 5 * 512, 1024),
        "fps": (1,),
    }
    with nnx.use_eager_sharding(False):
        params = nnx.state(nnx.eval_shape(lambda: system.init(nnx.Rngs(0))), nnx.Param)
    # The 2B model, seven more channels of patches of 2 x 2, and the table.
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_956_413_440 + 7 * 4 * 2048 + 7 * 7
    assert system.fps == 10.0
