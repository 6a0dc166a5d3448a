"""The option --preview-decoder of generate and play on a tiny model with Wan latents, and mistakes."""

import dataclasses
import importlib
import json
import pathlib
from typing import Any

import commands
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import rich.console
import tiny_previews

from jworld import generate
from jworld.data.recording import episodes
from jworld.encoders import autoencoders, preview_decoders
from jworld.models.autoencoders import taehv
from jworld.play import __main__ as play
from jworld.systems import runs
from jworld.utils import errors

Run = tuple[pathlib.Path, list[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny_previews.make_run(tmp_path_factory.mktemp("previews"))


@pytest.fixture(scope="module")
def image(run: Run) -> pathlib.Path:
    path = run[0].parent / "first.png"
    pixels = np.random.default_rng(3).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    PIL.Image.fromarray(pixels).resize((32, 24), PIL.Image.Resampling.NEAREST).save(path)
    return path


def arguments(run: Run, image: pathlib.Path, out: pathlib.Path, *extra: str) -> list[str]:
    own = ["--checkpoint", str(run[0]), "--image", str(image), "--prompt", "rooms", "--pose", "w-3", "--out", str(out)]
    return [*own, *run[1], *extra]


@pytest.mark.slow
def test_generate_decodes_the_latents_with_the_preview_decoder(
    run: Run, image: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latents, also that of the first image, are those of the full autoencoder."""
    decoded: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    own_step = autoencoders.Stream.step

    def step(stream: autoencoders.Stream, latents: np.ndarray) -> np.ndarray:
        frames = own_step(stream, latents)
        decoded[out.stem].append((latents, frames))
        return frames

    monkeypatch.setattr(autoencoders.Stream, "step", step)
    file = tiny_previews.save(tmp_path / "taew2_1.pth")
    videos = {}
    for out, extra in ((tmp_path / "full.mp4", ()), (tmp_path / "tiny.mp4", (preview_decoders.FLAG, str(file)))):
        decoded[out.stem] = []
        generate.main(arguments(run, image, out, *extra))
        videos[out.stem] = episodes.read_video(out).astype(int)
    assert videos["full"].shape == videos["tiny"].shape == (13, 24, 32, 3)
    (latents, full), (same, tiny) = (map(np.concatenate, zip(*decoded[name], strict=True)) for name in videos)
    np.testing.assert_array_equal(latents, same)
    facts = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in videos}
    assert (facts["full"]["preview_decoder"], facts["tiny"]["preview_decoder"]) == (None, str(file))
    config, arrays = preview_decoders.read(file)
    alone = preview_decoders.make(dataclasses.replace(config, dtype=jnp.float32), arrays)
    expected = (np.asarray(jax.jit(taehv.TinyDecoder.decode)(alone, latents[None]), np.float64)[0] + 1) * 127.5
    assert np.abs(tiny - expected).max() < 1.01
    assert np.abs(full - expected).mean() > 40
    # Noise does not survive the compression of the video, but differs from that of the full decoder.
    assert np.abs(videos["full"] - videos["tiny"]).mean() > 20


@pytest.mark.slow
def test_play_decodes_with_the_preview_decoder(run: Run, image: pathlib.Path, tmp_path: pathlib.Path) -> None:
    file = tiny_previews.save(tmp_path / "taew2_1.safetensors")
    common = ["--checkpoint", str(run[0]), "--image", str(image), "--recordings", str(tmp_path / "recordings")]
    found = play.make_parser().parse([*common, *run[1], "--prompt=rooms", preview_decoders.FLAG, str(file)])
    world = play.load(found, rich.console.Console(quiet=True)).world
    autoencoder = world.run.encoders.autoencoder
    assert autoencoder.preview is not None
    assert world.new_frames == 4 * 4
    # Recorded keys belong to the frames of this decoder.
    assert "previews" in autoencoder.hash


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights of the model or of its autoencoder are read."""

    def read(*arguments: Any, **options: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(runs, "load_params", read)
    monkeypatch.setattr(autoencoders, "load", read)


def sentence(module: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command and return its error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == errors.MISTAKE
    return line


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("name", "variant", "message"),
    [
        ("taehv1_5.safetensors", "taehv1_5", "decodes latents of HunyuanVideo-1.5 by its name, expected Wan 2.1 or"),
        ("taecvx.pth", "taecvx", "decodes latents of CogVideoX by its name, expected Wan 2.1 or Wan 2.2"),
        ("mine.pth", "taehv1_5", "decodes latents with 32 channels, expected 16, as the model's autoencoder: give"),
        ("taew2_2.safetensors", "taew2_2", "decodes latents with 48 channels, expected 16"),
    ],
)
def test_a_decoder_of_other_latents_is_refused_before_weights_are_read(
    run: Run,
    image: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    variant: str,
    message: str,
) -> None:
    file = tiny_previews.save(tmp_path / name, variant)
    words = arguments(run, image, tmp_path / "out.mp4", preview_decoders.FLAG, str(file))
    found = sentence("jworld.generate", words, capsys)
    assert found.startswith(f"error: {preview_decoders.FLAG}: {file} ")
    assert message in found
    assert not (tmp_path / "out.mp4").exists()
    played = ["--checkpoint", str(run[0]), *run[1], f"--recordings={tmp_path}", "--port=0"]
    assert sentence("jworld.play.__main__", [*played, preview_decoders.FLAG, str(file)], capsys) == found


@pytest.mark.usefixtures("no_weights")
def test_a_model_without_a_preview_decoder(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny_previews.save(tmp_path / "taew2_1.safetensors")
    starter = commands.ROOT / "assets" / "starter"
    image = tmp_path / "first.png"
    PIL.Image.new("RGB", (32, 24)).save(image)
    words = [f"--checkpoint={starter}", f"--image={image}", "--pose=w-3", f"--out={tmp_path / 'out.mp4'}"]
    assert "there is no preview decoder for the model's autoencoder (family patch): leave the option out" in sentence(
        "jworld.generate", [*words, f"{preview_decoders.FLAG}={file}"], capsys
    )
