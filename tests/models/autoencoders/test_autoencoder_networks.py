"""The networks at tiny sizes: streams, memory, meshes, precision, refusals."""

import dataclasses
import functools
import json
from typing import Any

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conversion import engine
from jworld.models.autoencoders import cogvideox, hunyuan15, network, patch, wan
from jworld.models.autoencoders.latents import Normalization, Posterior
from jworld.parallel import mesh
from jworld.utils.errors import UserError

#: Size and frames are halved twice: 4x4 pixels and 4 frames per latent.
CONFIGS: dict[str, tuple[Any, Any]] = {
    "wan": (
        wan.WanAutoencoder,
        wan.WanConfig(blocks=1, channels=8, multipliers=(1, 2, 2), time_levels=(True, True), dtype=jnp.float32),
    ),
    "hunyuan15": (
        hunyuan15.Hunyuan15Autoencoder,
        hunyuan15.Hunyuan15Config(latent_channels=4, blocks=1, widths=(8, 16, 16), spatial_ratio=4, dtype=jnp.float32),
    ),
    "cogvideox": (
        cogvideox.CogVideoXAutoencoder,
        cogvideox.CogVideoXConfig(latent_channels=4, blocks=1, widths=(8, 16, 16), groups=4, dtype=jnp.float32),
    ),
    "patch": (
        patch.PatchAutoencoder,
        patch.PatchConfig(latent_channels=4, blocks=1, width=8, rank=3, spatial_ratio=4, dtype=jnp.float32),
    ),
}
FAMILIES = sorted(CONFIGS)


@functools.cache
def graphdef(family: str, **changes: Any) -> tuple[nnx.GraphDef, nnx.State]:
    autoencoder, config = CONFIGS[family]
    config = dataclasses.replace(config, **changes)
    return nnx.split(nnx.eval_shape(lambda: autoencoder(config, rngs=nnx.Rngs(0))))


def tiny(family: str, **changes: Any) -> Any:
    """Return a model with the same random weights for every config."""
    structure, abstract = graphdef(family, **changes)
    rng = np.random.default_rng(0)
    arrays = {}
    for path, leaf in nnx.to_flat_state(abstract):
        deviation = 0.1 if len(leaf.shape) == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        mean = path[-1] == "scale"
        arrays["/".join(map(str, path))] = mean + deviation * rng.standard_normal(leaf.shape)
    return nnx.merge(structure, engine.to_state(abstract, arrays))


def video(frames: int, *, batch: int = 1, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (batch, frames, size, 2 * size, 3)).astype(np.float32)


def latents(model: network.VideoAutoencoder, frames: int, *, batch: int = 1, size: int = 4) -> np.ndarray:
    shape = (batch, frames, size, 2 * size, model.config.latent_channels)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


# Streams


@functools.cache
def decoded(family: str) -> np.ndarray:
    """Decode 5 latent frames, in the chunks of the config."""
    model = tiny(family)
    return np.asarray(jax.jit(type(model).decode)(model, latents(model, 5)))


@pytest.mark.parametrize(
    ("family", "cuts"), [("wan", (5, 12)), ("hunyuan15", (5, 12)), ("cogvideox", (9, 8)), ("patch", (5, 12))]
)
def test_encoding_in_parts_equals_encoding_the_whole(family: str, cuts: tuple[int, ...]) -> None:
    model = tiny(family)
    step = jax.jit(type(model).encode_step)
    first, cache = step(model, video(17)[:, : cuts[0]], None)
    second, _ = step(model, video(17)[:, cuts[0] :], cache)
    whole = jax.jit(type(model).encode)(model, video(17))
    assert whole.shape == (1, *model.latent_shape(17, 16, 32))
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "cuts"), [("wan", (2, 3)), ("hunyuan15", (2, 3)), ("cogvideox", (3, 2)), ("patch", (2, 3))]
)
def test_decoding_in_parts_equals_decoding_the_whole(family: str, cuts: tuple[int, ...]) -> None:
    model = tiny(family)
    z = latents(model, 5)
    step = jax.jit(type(model).decode_step)
    first, cache = step(model, z[:, : cuts[0]], None)
    second, _ = step(model, z[:, cuts[0] :], cache)
    assert first.shape[1] == model.frames_of(cuts[0])
    assert second.shape[1] == model.frames_of(cuts[1], first=False)
    assert decoded(family).shape == (1, model.frames_of(5), 16, 32, 3)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), decoded(family), atol=1e-5)
    # The second call depends on the first.
    _, other = step(model, z[:, : cuts[0]] + 1, None)
    assert golden_cases.relative_error(step(model, z[:, cuts[0] :], other)[0], second) > 1e-3


def test_attention_over_earlier_frames_needs_the_whole_clip() -> None:
    with pytest.raises(UserError, match="set chunk to None"):
        dataclasses.replace(CONFIGS["hunyuan15"][1], attention="causal")
    model = tiny("hunyuan15", attention="causal", chunk=None)
    with pytest.raises(UserError, match="stream with attention 'frame'"):
        model.decode_step(latents(model, 1), None)
    with pytest.raises(UserError, match="stream with attention 'frame'"):
        model.encode_step(video(1), None)


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("hunyuan15", "decode"),
        ("patch", "decode"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("cogvideox", "decode"), ("wan", "decode"))),
        ("hunyuan15", "encode"),
    ],
)
def test_memory_does_not_grow_with_the_clip(family: str, method: str) -> None:
    model = tiny(family)
    sizes = []
    for frames in (9, 33):
        x = video(1, size=32) if method == "encode" else latents(model, 1, size=8)
        length = frames if method == "decode" else 4 * frames - 3
        abstract = jax.ShapeDtypeStruct((1, length, *x.shape[2:]), jnp.float32)
        program = jax.jit(getattr(type(model), method)).lower(model, abstract).compile()
        sizes.append(program.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 1.1 * sizes[0]


@pytest.mark.slow
def test_gradients_do_not_depend_on_the_chunks() -> None:
    def loss(model: wan.WanAutoencoder) -> jax.Array:
        return jnp.mean(jnp.square(model.decode(latents(model, 3)) - video(9)))

    chunked, whole = (nnx.state(jax.jit(jax.grad(loss))(tiny("wan", chunk=chunk)).decoder) for chunk in (1, None))
    for actual, expected in zip(jax.tree.leaves(chunked), jax.tree.leaves(whole), strict=True):
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


# Meshes


@pytest.mark.parametrize(("family", "method"), [("wan", "encode"), ("hunyuan15", "decode"), ("cogvideox", "decode")])
def test_width_and_batch_are_sharded(family: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The results are equal, and in the program for accelerators a device holds a part of the activations."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, cpu, default: default(*arrays))
    model = tiny(family, chunk=1 if family == "hunyuan15" else None)
    x = video(5, batch=2) if method == "encode" else latents(model, 3, batch=2)
    # A new function, so that the trace for CPUs is not reused.
    function = jax.jit(lambda model, x: getattr(model, method)(x))
    alone = function.lower(model, x).compile()
    with jax.set_mesh(mesh.make_mesh(data=2, fsdp=1, sequence=4)):
        spread = function.lower(model, x).compile()
        result = spread(model, x)
    assert result.sharding.shard_shape(result.shape)[0] == 1
    assert result.sharding.shard_shape(result.shape)[3] == result.shape[3] // 4
    assert spread.memory_analysis().temp_size_in_bytes < alone.memory_analysis().temp_size_in_bytes / 4
    np.testing.assert_allclose(result, alone(model, x), atol=2e-5)


def test_dimensions_that_do_not_divide_are_replicated() -> None:
    with jax.set_mesh(mesh.make_mesh(data=2, fsdp=1, sequence=4)):
        for shape, expected in (((2, 1, 3, 6, 4), (1, 1, 3, 6, 4)), ((1, 1, 3, 8, 4), (1, 1, 3, 2, 4))):
            x = jax.jit(network.constrain_video)(jnp.zeros(shape))
            assert x.sharding.shard_shape(x.shape) == expected


# Numbers


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_runs_through_chunks(family: str) -> None:
    model = tiny(family, dtype=jnp.bfloat16)
    for x, method in ((video(33), type(model).encode), (latents(model, 9), type(model).decode)):
        assert jax.eval_shape(method, model, x).dtype == jnp.float32


def test_bfloat16_stays_near_float32() -> None:
    model = tiny("hunyuan15", dtype=jnp.bfloat16)
    result = jax.jit(type(model).decode)(model, latents(model, 5))
    assert 1e-5 < golden_cases.relative_error(result, decoded("hunyuan15")) < 0.03


def test_bytes_are_pixels() -> None:
    model = tiny("wan")
    pixels = np.random.default_rng(2).integers(0, 256, (1, 1, 8, 8, 3), np.uint8)
    encode = jax.jit(wan.WanAutoencoder.encode)
    np.testing.assert_allclose(encode(model, pixels), encode(model, pixels / np.float32(127.5) - 1), atol=1e-5)


def test_samples_of_the_posterior() -> None:
    posterior = Posterior(
        jnp.full((1, 400, 8, 8, 3), 2.0), jnp.array([np.log(9.0), -200.0, 60.0]) * jnp.ones((1, 400, 8, 8, 1))
    )
    sample = np.asarray(posterior.sample(jax.random.key(0)))
    np.testing.assert_allclose(sample.mean(axis=(0, 1, 2, 3))[:2], 2, atol=0.1)
    # Log variances are clipped to [-30, 20].
    np.testing.assert_allclose(sample.std(axis=(0, 1, 2, 3)), [3, np.exp(-15), np.exp(10)], rtol=0.05)


def test_encoding_with_a_key_draws_from_the_posterior() -> None:
    model = tiny("cogvideox")
    key = jax.random.key(3)
    posterior = jax.jit(cogvideox.CogVideoXAutoencoder.posterior)(model, video(5))
    drawn = jax.jit(cogvideox.CogVideoXAutoencoder.encode)(model, video(5), key=key)
    np.testing.assert_allclose(drawn, 1.15258426 * posterior.sample(key), atol=1e-5)


@pytest.mark.parametrize(
    ("owners", "count"),
    [([0, 1, 1, 2, 2], 3), ([0, 1, 1, 1, 1, 2, 2, 2, 2], 3), ([0, 0, 1, 1], 2), ([0, 0, 0, 0], 1), ([0], 1)],
)
def test_latents_that_condition_each_frame(owners: list[int], count: int) -> None:
    """With an odd number of frames, the first one has its own latent."""
    rng = np.random.default_rng(4)
    norm = cogvideox.LatentNorm(2, 4, dtype=jnp.float32, param_dtype=jnp.float32, num_groups=2, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.normal(size=(1, len(owners), 4, 4, 4)), jnp.float32)
    z = jnp.asarray(rng.normal(size=(1, count, 2, 2, 2)), jnp.float32)
    own = z[:, np.array(owners)][:, :, np.array([0, 0, 1, 1])][:, :, :, np.array([0, 0, 1, 1])]
    grouped = np.asarray(x, np.float64).reshape(*x.shape[:-1], 2, 2)
    axes = (1, 2, 3, 5)
    mean, variance = (function(grouped, axis=axes, keepdims=True) for function in (np.mean, np.var))
    normed = ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
    np.testing.assert_allclose(norm(x, z), normed * norm.scale(own) + norm.shift(own), atol=1e-5)


def test_normalization() -> None:
    normalisation = Normalization.from_statistics((1.0, -2.0), (2.0, 0.5))
    x = jnp.array([[3.0, -2.5]])
    np.testing.assert_allclose(normalisation.apply(x), [[1.0, -1.0]], rtol=1e-6)
    np.testing.assert_allclose(normalisation.invert(normalisation.apply(x)), x, rtol=1e-6)
    with pytest.raises(UserError, match=r"normalisation.shift has 2 numbers, expected 1 or 16"):
        wan.WanConfig(normalisation=normalisation)


# Refusals and manifests


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_that_do_not_fit(family: str) -> None:
    model = tiny(family)
    with pytest.raises(UserError, match="8 frames, expected 4k\\+1: cut 3 frames"):
        model.encode(video(8))
    with pytest.raises(UserError, match="36x18, expected multiples of 4"):
        model.encode(video(5, size=18))
    with pytest.raises(UserError, match=r"\[1, 5, 16, 32\], expected \[B, T, H, W, 3\]"):
        model.encode(video(5)[..., 0])
    with pytest.raises(UserError, match="later part of a video has 5 frames, expected a multiple of 4"):
        model.encode_step(video(5), ())
    with pytest.raises(UserError, match="use the autoencoder that encoded them"):
        model.decode(latents(model, 2)[..., 1:])


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("wan", {"chunk": 0}, "chunk: found 0"),
        ("wan", {"time_levels": (True,)}, "time_levels has 1 entries, expected 2"),
        ("hunyuan15", {"spatial_ratio": 12}, "spatial_ratio is 12, expected a power of 2"),
        ("hunyuan15", {"spatial_ratio": 16}, "3 widths allow a spatial_ratio of at most 4"),
        ("hunyuan15", {"latent_channels": 6}, "the last width 16 is not a multiple of 2 x 6"),
        ("hunyuan15", {"attention": "all"}, "attention: found 'all'"),
        ("cogvideox", {"temporal_ratio": 8}, "temporal_ratio is 8"),
        ("cogvideox", {"groups": 5}, "multiples of the 5 groups"),
    ],
)
def test_configs_that_do_not_fit(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIGS[family][1], **changes)


def test_manifest_and_hash() -> None:
    """The hash depends only on settings and weights that change latents."""
    model = tiny("wan")
    entry = json.loads(json.dumps(model.manifest_entry()))
    assert entry["family"] == "wan"
    assert entry["normalised"] is True
    assert entry["hash"] == model.hash()
    assert tiny("wan", dtype=jnp.bfloat16, chunk=None).hash() == model.hash()
    assert tiny("wan", normalisation=Normalization()).hash() != model.hash()
    model.moments.bias[...] += 1
    assert model.hash() != entry["hash"]
    chunks = [tiny("cogvideox", chunk=chunk).hash() for chunk in (2, 3)]
    assert chunks[0] != chunks[1]
