"""Published files of tiny decoders: what is read, what is refused, and the autoencoder that they decode for."""

import dataclasses
import pathlib

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_autoencoders
import tiny_previews

from jworld.data import records
from jworld.encoders import autoencoders, preview_decoders
from jworld.models.autoencoders import cogvideox, taehv
from jworld.utils.errors import UserError


def test_sizes_follow_from_both_kinds_of_files(tmp_path: pathlib.Path) -> None:
    for variant, ratio, suffix in (("taew2_1", 8, ".pth"), ("taew2_2", 16, ".safetensors")):
        path = tiny_previews.save(tmp_path / f"{variant}{suffix}", variant, encoder=suffix == ".pth")
        config, arrays = preview_decoders.read(path)
        chosen = taehv.VARIANTS[variant]
        assert (config.latent_channels, config.patch) == (chosen.latent_channels, chosen.patch)
        assert (config.widths, config.spatial_ratio, config.temporal_ratio) == (tiny_previews.WIDTHS, ratio, 4)
        drawn = tiny_previews.tensors(variant, encoder=False)
        assert arrays.keys() == drawn.keys()
        for name, array in arrays.items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, drawn[name])


def test_the_published_sizes() -> None:
    shapes = preview_decoders.shapes(taehv.TinyConfig(latent_channels=16))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 9_844_611
    assert shapes["decoder.13.conv.weight"] == (256, 128, 1, 1)
    assert shapes["decoder.20.weight"] == (64, 64, 3, 3)
    assert len(preview_decoders.encoder_names()) == 64


def test_one_error_lists_all_that_does_not_fit(tmp_path: pathlib.Path) -> None:
    found = tiny_previews.tensors()
    del found["decoder.4.conv.2.bias"]
    found["decoder.9.conv.0.weight"] = np.zeros((6, 12, 1, 1), np.float16)
    found["decoder.22.bias"][0] = np.nan
    found["encoder.18.weight"] = found["text"] = np.zeros(1, np.float16)
    safetensors.numpy.save_file(found, tmp_path / "taew2_1.safetensors")
    with pytest.raises(UserError) as raised:
        preview_decoders.read(tmp_path / "taew2_1.safetensors")
    message = str(raised.value)
    assert ": 5 tensors do not fit a preview decoder: missing decoder.4.conv.2.bias; " in message
    for part in (
        "misshapen decoder.9.conv.0.weight: [6, 12, 1, 1], expected [6, 12, 3, 3]",
        "not finite decoder.22.bias",
        "unexpected encoder.18.weight",
        "unexpected text",
    ):
        assert part in message


def test_wrong_files(tmp_path: pathlib.Path) -> None:
    (tmp_path / "text.pth").write_text("text")
    (tmp_path / "text.safetensors").write_text("text")
    (tmp_path / "taew2_1.bin").write_text("text")
    super_names = {"decoder.0.weight": np.zeros((4, 16, 1, 1), np.float32)}
    safetensors.numpy.save_file(super_names, tmp_path / "taehv1_5_super.safetensors")
    safetensors.numpy.save_file({}, tmp_path / "empty.safetensors")
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    for name, part in {
        "none.pth": "is absent",
        "none.safetensors": "is absent",
        "text.pth": "is not a .pt file that may be loaded",
        "text.safetensors": "is not a safetensors file",
        "taew2_1.bin": "is not a .safetensors or .pth file",
        "taehv1_5_super.safetensors": "'super' architecture",
        "empty.safetensors": "64 tensors do not fit",
        "pointer.pth": "LFS",
    }.items():
        with pytest.raises(UserError, match=part) as raised:
            preview_decoders.read(tmp_path / name)
        assert "\n" not in str(raised.value)
        assert str(tmp_path / name) in str(raised.value)


def test_objects_other_than_tensors_are_refused(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"decoder.1.weight": 3}, tmp_path / "number.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    for name in ("number.pth", "list.pth"):
        with pytest.raises(UserError, match="does not hold tensors by name alone"):
            preview_decoders.read(tmp_path / name)


@pytest.fixture(scope="module")
def full() -> autoencoders.Autoencoder:
    return autoencoders.Autoencoder(tiny_autoencoders.drawn("wan", tiny_previews.WAN))


def test_a_preview_decoder_decodes_and_the_autoencoder_encodes(
    full: autoencoders.Autoencoder, tmp_path: pathlib.Path
) -> None:
    file = tiny_previews.save(tmp_path / "any name.safetensors")
    both = preview_decoders.attached(full, str(file))
    video = np.random.default_rng(1).integers(0, 256, (1, 9, 16, 24, 3)).astype(np.uint8)
    latents = both.encode(video)
    np.testing.assert_array_equal(latents, full.encode(video))
    config, arrays = preview_decoders.read(file)
    # In the dtype of the autoencoder.
    exact = preview_decoders.make(dataclasses.replace(config, dtype=jnp.float32), arrays)
    alone = np.asarray(jax.jit(taehv.TinyDecoder.decode)(exact, latents))
    decoded = both.decode(latents)
    assert decoded.shape == video.shape
    assert np.abs(decoded - (alone + 1) * 127.5).max() < 1.01
    stream = both.stream()
    parts = [stream.step(latents[0, i : i + 1]) for i in range(3)]
    assert [len(part) for part in parts] == [1, 4, 4]
    assert np.abs(np.concatenate(parts).astype(int) - decoded[0]).max() <= 1
    assert both.manifest_entry() == full.manifest_entry()
    assert both.hash == both.on(both._mesh).hash != full.hash
    programs = both.streaming((1, 2, 3, 16))
    assert [program.results()[0].shape for program in programs] == [(1, 1, 16, 24, 3), (1, 4, 16, 24, 3)]


def test_the_decoder_of_cogvideox_takes_latents_without_their_scale(tmp_path: pathlib.Path) -> None:
    config = cogvideox.CogVideoXConfig(blocks=1, widths=(4, 4, 4, 4), groups=2, dtype=jnp.float32)
    full = autoencoders.Autoencoder(tiny_autoencoders.drawn("cogvideox", config))
    file = tiny_previews.save(tmp_path / "taecvx.safetensors", "taecvx")
    preview = preview_decoders.attached(full, str(file)).preview
    assert preview is not None
    assert preview.config.even_whole
    config, arrays = preview_decoders.read(file)
    alone = preview_decoders.make(dataclasses.replace(config, dtype=jnp.float32), arrays)
    raw = np.random.default_rng(0).standard_normal((1, 3, 1, 2, 16)).astype(np.float32)
    decode = jax.jit(taehv.TinyDecoder.decode)
    assert np.abs(decode(preview, 1.15258426 * raw) - decode(alone, raw)).max() < 1e-4
    # Frames as the autoencoder makes them: of clips, and of a stream of pairs.
    for length in (2, 3):
        latents = jax.ShapeDtypeStruct((1, length, 1, 2, 16), jnp.float32)
        own, expected = (jax.eval_shape(decoder.decode, latents) for decoder in (preview, full.network))
        assert own.shape == expected.shape
    pair = jax.ShapeDtypeStruct((1, 2, 1, 2, 16), jnp.float32)
    first, cache = jax.eval_shape(lambda x: preview.decode_step(x, None), pair)
    assert first.shape[1] == jax.eval_shape(preview.decode_step, pair, cache)[0].shape[1] == 8


def test_facts_of_autoencoders(tmp_path: pathlib.Path) -> None:
    manifest = records.read_manifest(commands.ROOT / "assets" / "starter" / "encoders")
    assert preview_decoders.of_manifest(manifest) == ("patch", 128, 16, 4)
    folder = tiny_autoencoders.save(tmp_path / "wan", "wan")
    assert preview_decoders.of_file(str(folder)) == ("wan", 16, 4, 4)
    file = tiny_previews.save(tmp_path / "mine.safetensors")
    with pytest.raises(UserError, match="with 8 pixels per latent, expected 4"):
        preview_decoders.check(str(file), preview_decoders.of_file(str(folder)))
    with pytest.raises(UserError, match=r"no preview decoder .* \(family linear\)"):
        preview_decoders.check(str(file), preview_decoders.Full("linear", 16, 8, 4))
