"""Video autoencoders: encoding and decoding whole, in chunks, as a stream and in tiles, and outputs of layers."""

import collections
import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import converted
import golden_cases
import jax
import jax.numpy as jnp
import numpy as np

from conversion import __main__ as conversion
from conversion import families
from jworld.models.autoencoders import files
from jworld.models.autoencoders.blocks import Coder
from jworld.models.autoencoders.cogvideox import CogVideoXAutoencoder
from jworld.models.autoencoders.hunyuan15 import Hunyuan15Autoencoder
from jworld.models.autoencoders.network import VideoAutoencoder
from jworld.models.autoencoders.tiling import Tiling
from jworld.models.autoencoders.wan import WanAutoencoder
from parity_checks.hunyuan import channels_last

Arrays = dict[str, Any]


def load(case: golden_cases.GoldenCase, **fields: Any) -> Any:
    """Import the case's weights with the command, check that an export restores them, and load the autoencoder."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        source = converted.autoencoder(folder / "source", case)
        ours, exported = folder / "ours.safetensors", folder / "exported"
        conversion.main(["import", str(source), "--output", str(ours)])
        conversion.main(["export", str(ours), "--output", str(exported)])
        assert converted.contents(exported) == converted.contents(source)
        require_settings(case, files.read_config(ours)[1])
        return files.load(ours, dtype=jnp.float32, **fields)


def require_settings(case: golden_cases.GoldenCase, imported: Any) -> None:
    """Fail unless the config of the import has every setting of the original class."""
    settings = case.config.get("constructor") or case.config["model"]
    _, layout = families.detect(case.weights, case.name)
    golden_cases.require({"key_layout": case.config.get("key_layout", layout.name).split()[0]}, key_layout=layout.name)
    # Wan's original has its statistics outside the class.
    for name, value in layout.from_config(collections.ChainMap(settings, case.config), case.name).items():
        assert getattr(imported, name) == value, f"{name} is {getattr(imported, name)}, expected {value}"
    written = layout.to_config(imported)
    derived = ("down_block_types", "up_block_types", "scale_factor_temporal", "scale_factor_spatial")
    golden_cases.require(settings, **{name: written[name] for name in derived if name in written})
    golden_cases.require(settings, dropout=0.0)
    # Sizes of tiles in default calls, and float32 in float16 pipelines.
    golden_cases.without_effect(
        settings, "sample_height", "sample_width", "sample_size", "sample_tsize", "force_upcast"
    )
    if not any(field.startswith("latents_") for field in written):
        golden_cases.require(settings, latents_mean=None, latents_std=None)


def require_inputs(case: golden_cases.GoldenCase) -> None:
    """Fail unless the stored videos and latents have the sizes that the config states."""
    config, inputs = case.config, case.inputs
    lengths = {
        kind: sorted(int(match[1]) for name in inputs if (match := re.fullmatch(kind + r"(\d+)", name)))
        for kind in ("video_T", "latent_L")
    }
    golden_cases.require(config, frames=lengths["video_T"], latent_lengths=lengths["latent_L"])
    for length in lengths["video_T"]:
        batch, _, frames, *size = inputs[f"video_T{length}"].shape
        assert frames == length
        golden_cases.require(config, batch=batch, height_width=size)
    if "tiling" in config:
        golden_cases.require(config["tiling"], input_hw=inputs["tile_video"].shape[-2:])


def encoded(model: VideoAutoencoder, inputs: Mapping[str, np.ndarray], prefix: str = "") -> Arrays:
    """Compute moments_T* of all inputs video_T*, and the normalized latents."""
    results = {}
    for name in inputs:
        if found := re.fullmatch(r"video_(T\d+)", name):
            moments = jax.jit(_moments, static_argnames="tiling")(model, channels_last(inputs[name]))
            results[f"{prefix}moments_{found[1]}"] = moments
            normalized = model.config.normalisation.apply(jnp.split(moments, 2, axis=-1)[0])
            results |= {f"{prefix}{kind}_{found[1]}": normalized for kind in ("latents", "model_latents")}
    return results


def decoded(model: VideoAutoencoder, inputs: Mapping[str, np.ndarray], prefix: str = "", **options: Any) -> Arrays:
    """Compute decoded_L* of all inputs latent_L*."""
    results = {}
    for name in inputs:
        if found := re.fullmatch(r"latent_(L\d+)", name):
            results[f"{prefix}decoded_{found[1]}"] = decode(model, channels_last(inputs[name]), **options)
    return results


def inside(case: golden_cases.GoldenCase) -> list[tuple[str, str]]:
    """List the runs with recorded intermediates: their prefix (enc_T9, dec_L3) and the name of their input."""
    found = {match[0] for name in case.outputs if (match := re.match(r"(enc_T|dec_L)\d+(?=\.)", name))}
    return [(prefix, prefix.replace("enc_", "video_").replace("dec_", "latent_")) for prefix in sorted(found)]


def in_tiles(model: VideoAutoencoder, inputs: Mapping[str, np.ndarray], tiling: Tiling) -> Arrays:
    moments = jax.jit(_moments, static_argnames="tiling")(model, channels_last(inputs["tile_video"]), tiling=tiling)
    return {
        "tiled_moments": moments,
        "tiled_decoded": decode(model, channels_last(inputs["tile_latent"]), tiling=tiling),
    }


def decode(
    model: VideoAutoencoder, latents: np.ndarray, *, normalized: bool = False, tiling: Tiling | None = None
) -> jax.Array:
    """Decode latents; most cases have latents that are not normalized."""
    latents = latents if normalized else np.asarray(model.config.normalisation.apply(latents))
    return jax.jit(type(model).decode, static_argnames="tiling")(model, latents, tiling=tiling)


def _moments(model: VideoAutoencoder, video: jax.Array, tiling: Tiling | None = None) -> jax.Array:
    return jnp.concatenate(model.posterior(video, tiling=tiling), axis=-1)


@jax.jit
def layer_outputs(coder: Coder, x: jax.Array, latents: jax.Array | None = None) -> Arrays:
    """Return the output of every layer at the start of a video, by its path in the coder."""
    middle = [(f"middle/{i}", layer) for i, layer in enumerate(coder.middle)]
    levels: list[tuple[str, Any]] = []
    for i, level in enumerate(coder.levels):
        levels += [(f"levels/{i}/blocks/{j}", block) for j, block in enumerate(level.blocks)]
        levels += [(f"levels/{i}/sampler", level.sampler)] * (level.sampler is not None)
    outputs = {}
    body = middle + levels if coder.decoder else levels + middle
    for path, layer in [("conv_in", coder.conv_in), *body]:
        x, _ = layer(x, None, latents)
        outputs[path] = x
    return outputs | {"head/norm": coder.head.norm(x) if latents is None else coder.head.norm(x, latents)}


def error(
    case: golden_cases.GoldenCase, actual: Arrays, *, cached: Callable[[str], bool] = lambda name: False
) -> float:
    """Return the largest error over all outputs of the case; caches are cut to the frames of the recorded ones."""
    expected = {name: channels_last(value) for name, value in case.outputs.items()}
    for name in filter(cached, expected):
        actual[name] = actual[name][:, -expected[name].shape[1] :]
    return golden_cases.largest_error(actual, expected)


def longest(inputs: Mapping[str, np.ndarray]) -> Arrays:
    """Return the longest video and the longest latents."""
    names = [name for name in inputs if re.fullmatch(r"(video_T|latent_L)\d+", name)]
    chosen = {max((n for n in names if n.startswith(kind)), key=lambda n: inputs[n].shape[2]) for kind in ("v", "l")}
    return {name: inputs[name] for name in chosen}


def shorter(inputs: Mapping[str, np.ndarray]) -> Arrays:
    return {name: value for name, value in inputs.items() if name not in longest(inputs)}


# Wan 2.1


def _wan(case: golden_cases.GoldenCase) -> float:
    inputs, original = case.inputs, "dim" in case.config["constructor"]
    require_inputs(case)
    window = case.config["constructor"].get("temporal_window", 4)
    model = load(case, chunk=window // 4)
    actual = encoded(model, longest(inputs)) | decoded(model, longest(inputs), normalized=original)
    # The results do not depend on the chunks of a clip.
    model.config = dataclasses.replace(model.config, chunk=None)
    actual |= encoded(model, shorter(inputs)) | decoded(model, shorter(inputs), normalized=original)
    if "tiling" in case.config:
        tiling = case.config["tiling"]
        actual |= in_tiles(
            model,
            inputs,
            Tiling(
                tile=(tiling["tile_sample_min_height"], tiling["tile_sample_min_width"]),
                stride=(tiling["tile_sample_stride_height"], tiling["tile_sample_stride_width"]),
            ),
        )
    if original:
        actual |= _wan_stream(case, model) | _wan_layers(case, model)
    else:
        actual = {name: jnp.clip(x, -1, 1) if "decoded" in name else x for name, x in actual.items()}
    return error(case, actual, cached=lambda name: ".cache." in name)


def _wan_stream(case: golden_cases.GoldenCase, model: WanAutoencoder) -> Arrays:
    """Decode one latent frame per call; -> frames, and the caches in the case."""
    count = sum(bool(re.fullmatch(r"stream_step\d+\.frames", name)) for name in case.outputs)
    latents = channels_last(case.inputs[f"latent_L{count}"])
    step = jax.jit(WanAutoencoder.decode_step)
    cache, results = None, {}
    for i in range(latents.shape[1]):
        results[f"stream_step{i}.frames"], cache = step(model, latents[:, i : i + 1], cache)
        for slot in case.config["decoder_cache_slots"]:
            if (name := f"stream_step{i}.cache.{slot}") in case.outputs:
                results[name] = _wan_slot(cache, slot.split("."), model.config.blocks + 2)
    return results


def _wan_slot(cache: Any, name: list[str], places: int) -> jax.Array:
    """Return our cache of the original decoder's module `name`; a level has `places` modules."""
    if name[0] == "middle":
        return cache[1 + int(name[1])][name[3] == "6"]
    if name[0] == "upsamples":
        level, place = divmod(int(name[1]), places)
        slot = cache[4 + level][place]
        return slot if name[2] == "time_conv" else slot[name[3] == "6"]
    return cache[{"conv1": 0, "head": -1}[name[0]]]


def _wan_layers(case: golden_cases.GoldenCase, model: WanAutoencoder) -> Arrays:
    """Return the first chunk's intermediates with the names of the original."""
    results: Arrays = {}
    for prefix, name in inside(case):
        x, coder = jnp.asarray(channels_last(case.inputs[name])), model.encoder
        if name.startswith("latent"):
            x, coder = model.latents(model.config.normalisation.invert(x)), model.decoder
            results[f"{prefix}.conv2"] = x
        else:
            results[f"{prefix}.conv1_moments"] = jax.jit(_moments)(model, x)
        numbered = 0
        for path, value in layer_outputs(coder, x[:, :1]).items():
            name = path.replace("conv_in", "conv1").replace("middle/", "middle")
            if path.startswith("levels"):
                name = f"{'upsamples' if coder.decoder else 'downsamples'}{numbered}"
                numbered += 1
            results[f"{prefix}.step0.{name}"] = value
    return results


# HunyuanVideo-1.5


def _hunyuan15(case: golden_cases.GoldenCase) -> float:
    inputs = case.inputs
    if isinstance(case.config["frames"], int):
        return _worldplay(case, load(case))
    require_inputs(case)
    causal = load(case, attention="causal", chunk=None)
    prefix = "whole_" if "cached_convs" in case.config else ""
    actual = encoded(causal, inputs, prefix) | decoded(causal, inputs, prefix)
    if prefix:
        model = load(case)
        actual |= _hunyuan15_stream(case, model)
        actual |= encoded(model, longest(inputs), "cached_") | decoded(model, longest(inputs), "cached_")
        # Attention covers one latent frame, independent of the chunks of a clip.
        model.config = dataclasses.replace(model.config, chunk=None)
        actual |= encoded(model, shorter(inputs), "cached_") | decoded(model, shorter(inputs), "cached_")
    if "tiling" in case.config:
        size = case.config["tiling"]["tile_sample_min_size"]
        golden_cases.require(case.config["tiling"], tile_latent_min_size=size // causal.config.spatial_ratio)
        stride = int(size * (1 - case.config["tiling"]["tile_overlap_factor"]))
        actual |= in_tiles(causal, inputs, Tiling(tile=(size, size), stride=(stride, stride)))
        untiled = encoded(causal, {"video_T0": inputs["tile_video"]}) | decoded(
            causal, {"latent_L0": inputs["tile_latent"]}
        )
        actual |= {"untiled_moments": untiled["moments_T0"], "untiled_decoded": untiled["decoded_L0"]}
    for prefix, name in inside(case):
        coder = causal.encoder if prefix.startswith("enc") else causal.decoder
        actual |= _hunyuan15_layers(prefix, coder, channels_last(inputs[name]))
    return error(case, actual, cached=lambda name: name.startswith("cache_"))


def _worldplay(case: golden_cases.GoldenCase, model: Hunyuan15Autoencoder) -> float:
    video = channels_last(case.inputs["video"])
    _, frames, height, width, _ = video.shape
    golden_cases.require(case.config, frames=frames, height=height, width=width)
    assert case.config["dtype"] == video.dtype
    posterior = jax.jit(Hunyuan15Autoencoder.posterior)(model, video)
    actual = {
        "latent_mode": posterior.mean,
        "latent_logvar": posterior.logvar,
        "first_frame_mode": jax.jit(Hunyuan15Autoencoder.posterior)(model, video[:, :1]).mean,
        "decoded": decode(model, channels_last(case.inputs["latents"])),
    }
    return error(case, actual)


def _hunyuan15_stream(case: golden_cases.GoldenCase, model: Hunyuan15Autoencoder) -> Arrays:
    """Return the caches after decoding the first frames of the second longest latents, one at a time."""
    lengths = sorted(int(name[8:]) for name in case.inputs if name.startswith("latent_L"))
    latents = model.config.normalisation.apply(channels_last(case.inputs[f"latent_L{lengths[-2]}"]))
    step = jax.jit(Hunyuan15Autoencoder.decode_step)
    cache, results = None, {}
    for i in range(latents.shape[1]):
        _, cache = step(model, latents[:, i : i + 1], cache)
        # The original counts slots in the order of the convolutions, as the leaves of our cache.
        results |= {f"cache_after_step{i}.slot{n}": slot for n, slot in enumerate(jax.tree.leaves(cache))}
    _, encoder = jax.jit(Hunyuan15Autoencoder.encode_step)(model, channels_last(case.inputs["video_T1"]), None)
    slots = {name: len(jax.tree.leaves(caches)) for name, caches in (("decoder", cache), ("encoder", encoder))}
    golden_cases.require(case.config, cached_convs=slots)
    return results


def _hunyuan15_layers(prefix: str, coder: Coder, x: np.ndarray) -> Arrays:
    """Intermediates under the names of the original."""
    way = ("up", "upsample") if coder.decoder else ("down", "downsample")
    results = {}
    for path, value in layer_outputs(coder, x).items():
        if coder.decoder and path == "conv_in":
            # The original value does not include the added input.
            value = value - np.repeat(x, value.shape[-1] // x.shape[-1], axis=-1)
        name = re.sub(r"levels/(\d+)/blocks/\d+", way[0] + r"\1_blocks", path)
        name = re.sub(r"levels/(\d+)/sampler", way[0] + r"\1_" + way[1], name)
        for ours, theirs in (("middle/0", "mid_block_1"), ("middle/1", "mid_attn_1"), ("middle/2", "mid_block_2")):
            name = name.replace(ours, theirs)
        results[f"{prefix}.{name.replace('head/norm', 'norm_out')}"] = value
    return results


# CogVideoX


def _cogvideox(case: golden_cases.GoldenCase) -> float:
    if "splits" in case.config:
        return _cogvideox_stream(case)
    inputs = case.inputs
    require_inputs(case)
    chunk = case.config["num_latent_frames_batch_size"]
    model = load(case, double_lone_frame=False, chunk=chunk)
    config = model.config
    golden_cases.require(case.config, num_sample_frames_batch_size=chunk * config.temporal_ratio)
    actual = encoded(model, inputs) | decoded(model, inputs)
    if "tiling" in case.config:
        tiling = case.config["tiling"]
        latent = [tiling[f"tile_latent_min_{axis}"] for axis in ("height", "width")]
        stride = [int(size * (1 - tiling[f"overlap_{axis}"])) for size, axis in zip(latent, "hw", strict=True)]
        tile, stride = (tuple(size * config.spatial_ratio for size in sizes) for sizes in (latent, stride))
        golden_cases.require(tiling, tile_sample_min_height=tile[0], tile_sample_min_width=tile[1])
        actual |= in_tiles(model, inputs, Tiling(tile=tile, stride=stride))
    for prefix, name in inside(case):
        x = channels_last(inputs[name])
        if prefix.startswith("enc"):
            actual |= _cogvideox_layers(prefix, layer_outputs(model.encoder, x))
        else:
            outputs = layer_outputs(model.decoder, x, x)
            actual |= _cogvideox_layers(prefix, outputs)
            normed = model.decoder.middle[0].norm1(outputs["conv_in"], jnp.asarray(x))
            actual[f"{prefix}.mid_block.resnets.0.norm1"] = normed
    # If one chunk suffices, the single pass equals the chunked one.
    actual |= {f"single_pass_{name}": value for name, value in actual.items()}
    model.config = dataclasses.replace(config, chunk=None)
    videos = {name: x for name, x in inputs.items() if x.shape[2] >= 2 * chunk * config.temporal_ratio}
    latents = {name: x for name, x in inputs.items() if name.startswith("latent_L") and x.shape[2] >= 2 * chunk}
    actual |= encoded(model, videos, "single_pass_") | decoded(model, latents, "single_pass_")
    return error(case, actual)


def _cogvideox_layers(prefix: str, outputs: Arrays) -> Arrays:
    """Intermediates under the names of the original."""
    way = ("down", "downsample") if prefix.startswith("enc") else ("up", "upsample")
    results = {}
    for path, value in outputs.items():
        name = re.sub(r"levels/(\d+)/blocks/\d+", way[0] + r"\1_resnets", path)
        name = re.sub(r"levels/(\d+)/sampler", way[0] + r"\1_" + way[1], name)
        name = re.sub(r"middle/\d", "mid_block", name)
        results[f"{prefix}.{name.replace('head/norm', 'norm_out')}"] = value
    return results


def _streamed(model: CogVideoXAutoencoder, latents: np.ndarray, lengths: Sequence[int]) -> list[jax.Array]:
    """Return the frames of consecutive calls with these numbers of latents."""
    step = jax.jit(CogVideoXAutoencoder.decode_step)
    cache, start, frames = None, 0, []
    for length in lengths:
        video, cache = step(model, latents[:, start : start + length], cache)
        assert video.shape[1] == model.frames_of(length)
        frames.append(video)
        start += length
    return frames


def _cogvideox_stream(case: golden_cases.GoldenCase) -> float:
    model = load(case, double_lone_frame=True)
    raw = channels_last(case.inputs["latent"])
    batch, frames, *size, _ = raw.shape
    pixels = [model.config.spatial_ratio * side for side in size]
    golden_cases.require(case.config, batch=batch, latent_frames=frames, height_width=pixels)
    latents = np.asarray(model.config.normalisation.apply(raw))
    actual = {"one_call_stage3": decode(model, raw), "single_latent_stage3": decode(model, raw[:, :1])}
    for name, lengths in case.config["splits"].items():
        calls = _streamed(model, latents, list(lengths))
        actual |= {f"{name}.call{i}": decoded for i, decoded in enumerate(calls)}
    first = load(case, double_lone_frame=False)
    actual |= {"one_call_stage1": decode(first, raw), "single_latent_stage1": decode(first, raw[:, :1])}
    return error(case, actual)


def _cogvideox_matrix(case: golden_cases.GoldenCase) -> float:
    model = load(case, double_lone_frame=True)
    video, latents = (channels_last(case.inputs[name]) for name in ("video", "latents"))
    _, frames, height, width, _ = video.shape
    golden_cases.require(case.config["args"], frames=frames, H=height, W=width, latent_frames=latents.shape[1])
    posterior = jax.jit(CogVideoXAutoencoder.posterior)(model, video)
    lengths = list(case.config["args"]["stream_chunks"])
    frames = _streamed(model, latents, lengths)
    actual = {
        "posterior_mean": posterior.mean,
        "posterior_logvar": posterior.logvar,
        "decoded": decode(model, latents, normalized=True),
        "stream_decoded": jnp.concatenate(frames, axis=1),
    }
    actual |= {f"stream.{sum(lengths[:i])}": part for i, part in enumerate(frames)}
    return error(case, actual)


CHECKS = {
    "vae/wan": _wan,
    "vae/hunyuan15": _hunyuan15,
    "vae/cogvideox": _cogvideox,
    "worldplay/vae": _hunyuan15,
    "matrix/vae": _cogvideox_matrix,
}
