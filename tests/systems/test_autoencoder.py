"""Training of autoencoders: clips cut from decoded videos, the loss, meshes, the released file, refused configs."""

import copy
import functools
import importlib.util
import json
import pathlib
import shutil
import types
from typing import Any

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import rich.console
import tiny_videos
from flax import nnx

from jworld import systems
from jworld.encoders import autoencoders
from jworld.evaluation import results
from jworld.models.autoencoders import linear, network, patch
from jworld.models.autoencoders.latents import Posterior
from jworld.parallel import axes, mesh
from jworld.systems.autoencoder import data as pixels
from jworld.systems.autoencoder import evaluation, objective, overlap, release, transform
from jworld.systems.autoencoder.system import Autoencoder
from jworld.training import optimizers, state, step
from jworld.utils import config as run_config
from jworld.utils import errors

RECIPE = pathlib.Path(__file__).parents[2] / "configs" / "autoencoder.py"
BATCH = 8


@functools.cache
def _recipe() -> Any:
    spec = importlib.util.spec_from_file_location("autoencoder", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe


def make_config(**changes: Any) -> ml_collections.ConfigDict:
    """Make a config with 2x2 pixels and 2 frames per latent, and clips of 5 frames of 16x8.

    `changes` are values by dotted key, with __ for the dots.
    """
    config = copy.deepcopy(_recipe().get_config())
    with config.unlocked():
        config.global_batch = BATCH
        config.model.update({"latent_channels": 4, "widths": (4, 8), "spatial_ratio": 2, "temporal_ratio": 2})
        config.data.clip.update({"frames": 5, "size": (16, 8)})
        config.data.videos.image_size = (32, 24)
        config.optimizer.update({"schedule": "constant", "warmup_steps": 0, "ema_decay": 0.0, "learning_rate": 5e-4})
        for name, value in changes.items():
            config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


@functools.cache
def system() -> Autoencoder:
    return systems.create(make_config())


# Clips


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> pixels.FrameFiles:
    """Videos of 14, 14 and 9 frames for training and one of 13 held out; every frame has one gray level."""
    folder = tmp_path_factory.mktemp("pixels")
    for name, frames in (("a", 14), ("b", 14), ("c", 9), ("d", 13)):
        tiny_videos.write(folder / "videos" / f"{name}.mp4", tiny_videos.numbered(frames, width=64, height=48))
        (folder / "videos" / f"{name}.txt").write_text("a caption")
    videos = pixels.VideosConfig(format="videos", path=str(folder / "videos"), image_size=(32, 24), val_share=0.1)
    pixels.decode(folder / "frames", videos, console=rich.console.Console(quiet=True))
    return pixels.FrameFiles(folder / "frames")


def test_every_frame_of_every_video_is_there(decoded: pixels.FrameFiles) -> None:
    lengths = {}
    for split in ("train", "val"):
        for number, length in enumerate(decoded.lengths(split)):
            frames = decoded.read(split, number)
            assert frames.shape == (length, 24, 32, 3)
            assert tiny_videos.numbers(frames) == list(range(length))
            lengths[decoded.name(split, number)] = length
    assert lengths == {"a": 14, "b": 14, "c": 9, "d": 13}
    # One of these names is in the tenth that is held out.
    assert decoded.lengths("val") == [13]
    assert decoded.fps == pytest.approx(10)
    assert sorted(path.name for path in decoded.directory.parent.iterdir()) == ["frames", "videos"]


def test_several_folders_make_one_set(tmp_path: pathlib.Path) -> None:
    """Each keeps its order, and a folder that is named twice counts twice."""
    folders = [str(tmp_path / name) for name in ("rooms", "doom", "doom")]
    for folder, name, frames in (("rooms", "d", 13), ("rooms", "a", 5), ("doom", "b", 9)):
        tiny_videos.write(tmp_path / folder / f"{name}.mp4", tiny_videos.numbered(frames, width=64, height=48))
        (tmp_path / folder / f"{name}.txt").write_text("a caption")
    fields: dict[str, Any] = {"format": "videos", "image_size": (32, 24), "val_share": 0.1}
    videos = pixels.VideosConfig(path=folders[0], more_paths=tuple(folders[1:]), **fields)
    pixels.decode(tmp_path / "frames", videos, console=rich.console.Console(quiet=True))
    both = pixels.FrameFiles(tmp_path / "frames")
    found = [(both.name(split, i), n) for split in ("train", "val") for i, n in enumerate(both.lengths(split))]
    assert sorted(found) == [("a", 5), ("b", 9), ("b", 9), ("d", 13)]
    numbers = [tiny_videos.numbers(both.read("train", i)) for i in range(len(both.lengths("train")))]
    assert numbers == [list(range(n)) for n in both.lengths("train")]


def test_long_videos_occur_more_often_and_take_turns(decoded: pixels.FrameFiles) -> None:
    lengths = decoded.lengths("train")
    source = pixels.Videos(decoded, "train", frames=4)
    numbers = [int(source[i]["index"]) for i in range(len(source))]
    assert numbers[:3] == [0, 1, 2]
    assert [numbers.count(i) for i in range(3)] == [length // 4 for length in lengths]
    with pytest.raises(errors.UserError, match=r"video 'c' of .* has 9 frames, config.data.clip.frames is 13"):
        pixels.Videos(decoded, "train", frames=13)


def test_clips_are_cut_everywhere_and_depend_on_the_seed() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (9, 12, 20, 3), np.uint8)
    cut = pixels.CutClip(pixels.ClipConfig(frames=5, size=(16, 8)))
    assert isinstance(cut, grain.transforms.RandomMap)
    element = {"record": {"frames": frames, "index": np.int32(3)}, "position": 0}
    windows = np.lib.stride_tricks.sliding_window_view(frames, (5, 8, 16), axis=(0, 1, 2))
    places = set()
    for seed in range(60):
        found = cut.random_map(element, np.random.default_rng(seed))
        again = cut.random_map(element, np.random.default_rng(seed))
        np.testing.assert_array_equal(found["video"], again["video"])
        assert found["index"] == 3
        same = (np.moveaxis(windows, 3, -1) == found["video"]).all(axis=(3, 4, 5, 6))
        (place,) = np.argwhere(same)
        places.add(tuple(int(i) for i in place))
    for axis, size in enumerate((5, 5, 5)):
        assert {place[axis] for place in places} == set(range(size))


def test_batches_resume_where_they_stopped(decoded: pixels.FrameFiles) -> None:
    data = systems.create(make_config(data__records=str(decoded.directory))).data
    whole = data.batches("train")
    expected = [next(whole) for _ in range(4)]
    stopped, resumed = data.batches("train"), data.batches("train")
    for _ in range(2):
        next(stopped)
    resumed.set_state(stopped.get_state())
    for batch in expected[2:]:
        for name, value in next(resumed).items():
            np.testing.assert_array_equal(value, batch[name])
    assert not np.array_equal(expected[0]["video"], expected[2]["video"])
    assert expected[0]["video"].shape == (BATCH, 5, 8, 16, 3)
    wrong = systems.create(make_config(data__records=str(decoded.directory), data__videos__image_size=(48, 24))).data
    with pytest.raises(errors.UserError, match=r"holds frames of \(32, 24\), config.data.videos.image_size"):
        wrong.batches("train")


def test_damaged_frames_are_named(decoded: pixels.FrameFiles, tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.UserError, match=r"manifest\.json is absent"):
        pixels.FrameFiles(tmp_path)
    damaged = {
        "{": "not valid JSON",
        "[]": "holds a list",
        '{"videos": {"val": []}}': "not a manifest of decoded videos",
        (decoded.directory / "manifest.json").read_text().replace('"fps": ', '"fps": 1'): "differs from its checksum",
    }
    for text, message in damaged.items():
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(errors.UserError, match=message):
            pixels.FrameFiles(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(decoded.manifest | {"version": 0}))
    with pytest.raises(errors.UserError, match="expected 'jworld-frames' 1"):
        pixels.FrameFiles(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(decoded.manifest))
    with pytest.raises(errors.UserError, match=r"train-00000\.npy is absent or damaged"):
        pixels.FrameFiles(tmp_path).read("train", 0)
    np.save(tmp_path / "train-00000.npy", np.zeros((3, 24, 32, 3), np.uint8))
    with pytest.raises(errors.UserError, match=r"holds uint8 \[3, 24, 32, 3\]"):
        pixels.FrameFiles(tmp_path).read("train", 0)


def test_a_bad_video_leaves_no_files(tmp_path: pathlib.Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"no video")
    (tmp_path / "videos" / "a.txt").write_text("a caption")
    with pytest.raises(errors.UserError, match=r"a\.mp4 is damaged or not a video"):
        pixels.decode(tmp_path / "frames", pixels.VideosConfig(format="videos", path=str(tmp_path / "videos")))
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]


# The loss


def test_divergence_of_gaussians() -> None:
    """The result equals the integral of p log(p / q) over a fine grid."""
    mean, logvar = np.array([0.0, 0.7, -2.0, 0.1]), np.array([0.0, -1.5, 0.4, -6.0])
    z = np.linspace(-12, 12, 400_001)[:, None]
    p = np.exp(-0.5 * (z - mean) ** 2 / np.exp(logvar)) / np.sqrt(2 * np.pi * np.exp(logvar))
    log_ratio = -0.5 * (z - mean) ** 2 / np.exp(logvar) - 0.5 * logvar + 0.5 * z**2
    expected = np.sum(p * log_ratio, axis=0) * (z[1, 0] - z[0, 0])
    for i in range(4):
        found = objective.divergence(Posterior(jnp.full((1, 1), mean[i]), jnp.full((1, 1), logvar[i])))
        np.testing.assert_allclose(found, expected[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("axis", "edges"), [(1, 3), (2, 5), (3, 7)])
def test_gradient_error_counts_edges_of_each_axis(axis: int, edges: int) -> None:
    """Errors alternate by 0.5 along one axis and are constant along the others; their mean does not matter."""
    error = np.zeros((2, 4, 6, 8, 3), np.float32)
    index = np.arange(error.shape[axis]).reshape([-1 if i == axis else 1 for i in range(5)])
    assert error.shape[axis] == edges + 1
    np.testing.assert_allclose(objective.gradient_error(jnp.asarray(error + 0.5 * (index % 2) + 3)), 0.5)
    np.testing.assert_allclose(objective.gradient_error(jnp.asarray(error + 0.25 * index)), 0.25)


@functools.cache
def split_model() -> tuple[nnx.GraphDef, nnx.State]:
    with nnx.use_eager_sharding(False):
        return nnx.split(system().init(nnx.Rngs(0)))


def model() -> network.VideoAutoencoder:
    return nnx.merge(*split_model())


@jax.jit
def loss_of(
    model: network.VideoAutoencoder, batch: dict[str, jax.Array], key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    return objective.loss(model, batch, key, objective.ObjectiveConfig(gradient=0.5, kl=0.01))


@jax.jit
def posterior_of(model: network.VideoAutoencoder, video: jax.Array) -> Posterior:
    return model.posterior(video)


@jax.jit
def decoded_by(model: network.VideoAutoencoder, latents: jax.Array) -> jax.Array:
    return model.decode(latents)


def make_batch(seed: int) -> dict[str, np.ndarray]:
    """Make a batch of smooth random colors, which a few steps already fit."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 255, (BATCH, 1, 1, 1, 3))
    slopes = rng.uniform(-4, 4, (BATCH, 1, 1, 16, 3)).cumsum(axis=3)
    video = np.broadcast_to(corners + slopes, system().batch_spec(BATCH)["video"].shape)
    return {"video": np.clip(video, 0, 255).astype(np.uint8)}


def test_loss_is_the_weighted_sum_of_its_terms() -> None:
    video = make_batch(0)["video"]
    total, terms = loss_of(model(), {"video": video}, jax.random.key(0))
    expected = terms["l1"] + 0.5 * terms["gradient"] + 0.01 * terms["kl"]
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert min(float(terms[name]) for name in ("l1", "gradient", "kl")) > 1e-3
    mean, logvar = posterior_of(model(), video)
    noise = jax.random.normal(jax.random.key(0), mean.shape)
    made = np.asarray(decoded_by(model(), mean + np.exp(0.5 * logvar) * noise))
    error = made - (video.astype(np.float64) / 127.5 - 1)
    np.testing.assert_allclose(terms["l1"], np.abs(error).mean(), rtol=1e-4)
    np.testing.assert_allclose(terms["psnr"], 10 * np.log10(4 / np.square(error).mean()), rtol=1e-4)


def test_the_key_draws_the_latents() -> None:
    values = [float(loss_of(model(), make_batch(0), jax.random.key(seed))[0]) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


WAN = {"family": "wan", "latent_channels": 4, "blocks": 1, "channels": 4, "multipliers": (1, 2), "time_levels": (True,)}
COGVIDEOX = {"family": "cogvideox", "latent_channels": 4, "blocks": 1, "widths": (4, 4, 4), "groups": 2}


def test_cogvideox_accepts_an_even_number_of_latents() -> None:
    """It decodes the 4 latents of 13 frames to 16 frames."""
    config = make_config()
    with config.unlocked():
        config.model = {**COGVIDEOX, "dtype": "float32"}
    built = systems.create(config)
    with nnx.use_eager_sharding(False):
        made = built.init(nnx.Rngs(0))
    video = np.random.default_rng(0).integers(0, 256, (13, 8, 8, 3), np.uint8)
    assert np.isfinite(jax.jit(built.loss)(made, {"video": video[None]}, jax.random.key(0))[0])
    assert evaluation.reconstructor(made)(video).shape == video.shape


@pytest.mark.parametrize("section", [{}, WAN, COGVIDEOX], ids=["hunyuan15", "wan", "cogvideox"])
def test_latents_have_little_noise_at_initialization(section: dict[str, Any]) -> None:
    config = make_config()
    with config.unlocked():
        config.model = {**section, "dtype": "float32"} if section else config.model
    with nnx.use_eager_sharding(False):
        made = systems.create(config).init(nnx.Rngs(0))
    video = np.random.default_rng(0).integers(0, 256, (1, 5, 16, 16, 3), np.uint8)
    posterior = jax.jit(type(made).posterior)(made, video)
    assert np.abs(np.mean(posterior.logvar) + 4) < 1
    assert np.abs(np.mean(posterior.mean)) < 1


# Training on meshes


@functools.cache
def trained(sizes: tuple[int, int, int]) -> tuple[nnx.State, nnx.State, list[float]]:
    """Train for five steps; return the parameters before and after, and the losses."""
    data, fsdp, sequence = sizes
    devices = mesh.make_mesh(data=data, fsdp=fsdp, sequence=sequence, devices=jax.devices()[: data * fsdp * sequence])
    values = make_config().optimizer
    optimizer = optimizers.make_optimizer(run_config.section(optimizers.OptimizerConfig, values, "optimizer"), steps=5)
    graphdef, run, shardings = state.create_state(
        system().init, trainable=nnx.Param, optimizer=optimizer, key=jax.random.key(0), mesh=devices
    )
    spec = system().batch_spec(BATCH)
    batch_shardings = {name: axes.sharding(devices, entry.axes) for name, entry in spec.items()}
    train_step = step.make_train_step(
        graphdef, system().loss, optimizer, shardings=shardings, batch_shardings=batch_shardings, mesh=devices
    )
    before, losses, key = jax.tree.map(np.asarray, run.params), [], jax.random.key(1)
    with jax.set_mesh(devices):
        batch = jax.device_put(make_batch(0), batch_shardings)
        compiled = train_step.lower(run, batch, key).compile()
        for _ in range(5):
            run, metrics = compiled(run, batch, key)
            losses.append(float(metrics["loss"]))
    return before, jax.tree.map(np.asarray, run.params), losses


@pytest.mark.slow
def test_training_lowers_the_loss() -> None:
    _, _, losses = trained((1, 1, 1))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_a_mesh_trains_like_one_device() -> None:
    before, expected, losses = trained((1, 1, 1))
    _, actual, others = trained((2, 2, 2))
    np.testing.assert_allclose(others, losses, rtol=1e-4)
    assert _distance(actual, expected) < 1e-3 * _distance(before, expected)


def _distance(a: nnx.State, b: nnx.State) -> float:
    pairs = zip(*map(jax.tree.leaves, (a, b)), strict=True)
    return float(np.concatenate([np.abs(x - y).ravel() for x, y in pairs]).mean())


# Release and evaluation


@pytest.mark.slow
def test_released_latents_have_unit_deviation(decoded: pixels.FrameFiles, tmp_path: pathlib.Path) -> None:
    trained = model()
    video = np.array(decoded.read("train", 0)[:9])[None]
    before = linear.to_uint8(decoded_by(trained, posterior_of(trained, video).mean))
    path = tmp_path / "folder" / "autoencoder.safetensors"
    release.release(trained, decoded, path, console=rich.console.Console(quiet=True))
    loaded = autoencoders.load(path)
    assert loaded.hash == trained.hash()
    # The middle nine frames of the three videos, which have 14, 14 and 9.
    videos = [decoded.read("train", i)[start : start + 9] for i, start in enumerate((2, 2, 0))]
    posterior = posterior_of(loaded.network, np.stack(videos))
    samples = jax.vmap(posterior.sample)(jax.random.split(jax.random.key(0), 200))
    samples = loaded.network.config.normalisation.apply(samples)
    np.testing.assert_allclose(np.mean(samples, axis=(0, 1, 2, 3, 4)), 0, atol=0.02)
    np.testing.assert_allclose(np.std(samples, axis=(0, 1, 2, 3, 4)), 1, rtol=0.02)
    # Normalization is undone before decoding.
    np.testing.assert_allclose(loaded.decode(loaded.encode(video)), before, atol=1)


def test_evaluation_measures_every_latent(decoded: pixels.FrameFiles) -> None:
    options = results.Options(windows=2, chunks=3)
    report = evaluation.evaluate(model(), decoded, options, rich.console.Console(quiet=True))
    # The linear autoencoder does not support patches of two pixels.
    assert list(report.curves) == [evaluation.MODEL]
    assert [row["first_frame"] for row in report.numbers["per_window"]] == [0, 5]
    row = report.numbers["per_window"][1]
    truth = np.array(decoded.read("val", 0)[5:10])
    found = np.asarray(linear.to_uint8(decoded_by(model(), posterior_of(model(), truth[None]).mean)))[0]
    expected = [linear.psnr(truth[a:b], found[a:b]) for a, b in ((0, 1), (1, 3), (3, 5))]
    np.testing.assert_allclose(row["psnr"][evaluation.MODEL], expected, atol=0.05)
    with pytest.raises(errors.UserError, match="a clip needs 21"):
        evaluation.choose_clips(decoded, frames=21, count=1)


def test_the_linear_autoencoder_of_the_same_size(decoded: pixels.FrameFiles) -> None:
    """Frames of one gray level lie on a line, so the linear autoencoder loses only the rounding."""
    settings = transform.settings(types.SimpleNamespace(latent_channels=6, spatial_ratio=8, temporal_ratio=4))
    assert settings == linear.LinearConfig(channels=6, spatial_ratio=8, temporal_ratio=4)
    found = transform.load_or_fit(decoded, settings, console=rich.console.Console(quiet=True))
    assert (decoded.directory / transform.file_name(settings)).is_file()
    truth = np.array(decoded.read("val", 0)[:9])
    assert evaluation.psnr(truth, evaluation.round_trip(found, truth)) > 40


def test_sampled_clips_are_spread(decoded: pixels.FrameFiles) -> None:
    length = decoded.lengths("val")[0]
    chosen = evaluation.choose_clips(decoded, frames=3, count=2)
    assert chosen == [(0, 0), (0, length // 3 * 3 - 3)]
    comparison = evaluation.sample(lambda video: 255 - video, decoded, count=2, frames=3)
    np.testing.assert_array_equal(comparison.prediction, 255 - comparison.truth)
    assert tiny_videos.numbers(comparison.truth) == [0, 1, 2, *range(chosen[1][1], chosen[1][1] + 3)]
    assert [(chunk.start, chunk.stop) for chunk in comparison.chunks] == [(0, 3), (3, 6)]


# Refused configs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__family": "vqvae"}, "config.model.family is 'vqvae', expected one of wan"),
        ({"model__dtype": "float33"}, "expected float32 or bfloat16"),
        ({"data__clip__frames": 6}, r"config.data.clip.frames is 6, expected 2k\+1"),
        ({"sample__frames": 1}, "config.sample.frames is 1"),
        ({"data__clip__size": (16, 9)}, r"config.data.clip.size is \(16, 9\), expected multiples of 2"),
        ({"data__clip__size": (64, 16)}, "width 64, expected at most the 32"),
        ({"optimizer__name": "muon"}, "config.optimizer.name is 'muon', expected 'adamw'"),
        ({"loss__kl": -1.0}, "config.loss.kl: found -1.0"),
    ],
)
def test_mistakes_in_the_config(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        systems.create(make_config(**changes))


def test_patches_start_from_a_closed_form(decoded: pixels.FrameFiles, tmp_path: pathlib.Path) -> None:
    """The first command fits transform and overlap, the model starts from them, and only convolutions are trained."""
    folder = shutil.copytree(decoded.directory, tmp_path / "frames", ignore=shutil.ignore_patterns("linear*"))
    config = make_config(data__records=str(folder), sample__frames=5, data__clip__frames=5)
    with config.unlocked():
        config.model = {
            "family": "patch",
            "latent_channels": 6,
            "blocks": 1,
            "width": 8,
            "rank": 3,
            "spatial_ratio": 8,
            "dtype": "float32",
        }
    system = systems.create(config)
    system.data.prepare()
    model = system.init(nnx.Rngs(0))
    fitted = linear.LinearAutoencoder.load(folder / "linear-6x4x8.safetensors")
    stored = overlap.Overlap.load(folder / "overlap-6x4x8-3.safetensors")
    np.testing.assert_array_equal(model.decoder.overlap[...], stored.overlap)
    truth = np.array(decoded.read("val", 0)[:9])
    # The first frame is coded as a group that stands still.
    stood = np.concatenate([truth[:1]] * 5 + [truth[1:]])[None]
    latents = model.encode(truth[None])
    np.testing.assert_allclose(
        latents[..., :4], fitted.encode(jnp.asarray(stood))[:, 1:, ..., :4], rtol=1e-4, atol=1e-2
    )
    assert evaluation.psnr(truth, np.asarray(linear.to_uint8(model.decode(latents)))[0]) > 35
    key = jax.random.key(0)
    batch = {"video": jnp.asarray(truth[None, :5])}
    graphdef, params = nnx.split(model)
    step = jax.jit(jax.value_and_grad(lambda p: system.loss(nnx.merge(graphdef, p), batch, key), has_aux=True))
    (_, terms), grads = step(params)
    # Little noise is drawn at the start, and the zero layer, too, has a gradient.
    assert terms["psnr"] > 35
    norms = {"/".join(map(str, path)): float(jnp.linalg.norm(leaf[...])) for path, leaf in nnx.to_flat_state(grads)}
    assert norms["decoder/leave/kernel"] > 0
    trained = state.path_filter(_recipe().get_config("patch").optimizer.trainable)
    names = {name for name in norms if trained(tuple(name.split("/")), None)}
    parts = {"/".join(name.split("/")[:2]) for name in names}
    assert parts == {f"decoder/{part}" for part in ("hints", "enter", "blocks", "leave")}


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_whitening_evens_the_released_latents(
    decoded: pixels.FrameFiles, tmp_path: pathlib.Path, whitening: float
) -> None:
    """Deviations of the normalized latents are a power of those of the principal components."""
    # The middle nine frames of the three videos, which have 14, 14 and 9.
    videos = np.stack([decoded.read("train", i)[start : start + 9] for i, start in enumerate((2, 2, 0))])
    config = patch.PatchConfig(latent_channels=4, blocks=0, width=8, rank=2, spatial_ratio=8, whitening=whitening)
    network = patch.PatchAutoencoder(config, rngs=nnx.Rngs(0))
    network.transform.fit(linear.fit(videos, linear.LinearConfig(channels=4, spatial_ratio=8), seed=0, whitening=1.0))
    # No noise in the posterior.
    network.moments[...] = jnp.repeat(jnp.array([0.0, -30.0]), 4)
    components = np.asarray(network.posterior(videos).mean * network.transform.deviation[...])
    expected = components.std(axis=(0, 1, 2, 3)) ** (1 - whitening)
    assert whitening == 1 or expected.max() > 1.3 * expected.min()
    path = tmp_path / "autoencoder.safetensors"
    release.release(network, decoded, path, console=rich.console.Console(quiet=True))
    latents = np.asarray(autoencoders.load(path).network.encode(videos))
    np.testing.assert_allclose(latents.mean(axis=(0, 1, 2, 3)), 0, atol=1e-3)
    deviation = latents.std(axis=(0, 1, 2, 3))
    np.testing.assert_allclose(deviation, expected / np.sqrt(np.mean(np.square(expected))), rtol=1e-3)


def test_patches_of_a_ratio_without_linear_autoencoder(tmp_path: pathlib.Path) -> None:
    config = make_config(data__records=str(tmp_path))
    with config.unlocked():
        config.model = {"family": "patch", "latent_channels": 6, "blocks": 1, "width": 8, "spatial_ratio": 4}
    with pytest.raises(errors.UserError, match=r"config.model.spatial_ratio is 4, expected 8 or 16"):
        systems.create(config)


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_other_families_are_built_from_the_config(family: str) -> None:
    config = make_config()
    fields = {"wan": {"channels": 8, "multipliers": (1, 2, 2), "time_levels": (True, True)}}
    fields["cogvideox"] = {"widths": (8, 16, 16), "groups": 4}
    with config.unlocked():
        config.model = {"family": family, "latent_channels": 6, "blocks": 1, "dtype": "bfloat16", **fields[family]}
    built = systems.create(config)
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: built.init(nnx.Rngs(0)))
    assert model.family == family
    assert model.config.dtype == jnp.bfloat16
    assert model.config.normalisation.scale == (1.0,)


def test_variants_fit_their_image_sizes() -> None:
    for variant in _recipe().VARIANTS:
        built = systems.create(_recipe().get_config(variant))
        with nnx.use_eager_sharding(False):
            model = nnx.eval_shape(lambda built=built: built.init(nnx.Rngs(0)))
        width, height = built.data.videos.image_size
        assert model.latent_shape(built.clip.frames, height, width)[1:3] == (height // 16, width // 16)
    with pytest.raises(ValueError, match="no variant 'large'"):
        _recipe().get_config("large")
