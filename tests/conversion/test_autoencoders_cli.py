"""`python -m conversion` for video autoencoders: round trips of every layout, sizes, settings, mistakes."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import commands
import converted
import golden_cases
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch

from conversion import __main__ as conversion
from conversion import families, sources, tensor_files
from jworld.data import records
from jworld.models.autoencoders import files, linear

GOLDEN = pathlib.Path(golden_cases.__file__).parent / "golden"
CASES = {
    "worldplay": "worldplay/vae",
    "cogvideox": "matrix/vae",
}


def download(folder: pathlib.Path, name: str, **options: Any) -> pathlib.Path:
    return converted.autoencoder(folder, golden_cases.GoldenCase(GOLDEN / CASES[name]), **options)


def run(*arguments: object) -> None:
    conversion.main([str(argument) for argument in arguments])


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one sentence on stderr of a command that ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Make a folder with NAME/ as downloaded and NAME.safetensors as imported for every case."""
    folder = tmp_path_factory.mktemp("autoencoders")
    sources_of = {name: download(folder / name, name) for name in CASES}
    sources_of["hunyuan15"] = converted.hunyuan15_autoencoder(folder / "hunyuan15")
    sources_of["wan"] = converted.wan_autoencoder(folder / "wan")
    for name, source in sources_of.items():
        run("import", source, "--output", folder / f"{name}.safetensors")
    return folder


def tensors_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / sources.WEIGHTS_NAME)


def config(path: pathlib.Path) -> Any:
    return files.read_config(path)[1]


# Round trips


@pytest.mark.parametrize("name", [*CASES, "hunyuan15", "wan"])
def test_import_and_export_is_bit_exact(
    folder: pathlib.Path, name: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("export", folder / f"{name}.safetensors", "--output", tmp_path / "out")
    assert converted.contents(tmp_path / "out") == converted.contents(folder / name)
    assert "cannot load" not in capsys.readouterr().out
    with sources.open_source(tmp_path / "out") as exported, sources.open_source(folder / name) as original:
        layout = families.detect(exported.tensors, name)[1]
        fields = (layout.from_config(source.config or {}, name) for source in (exported, original))
        assert next(fields) | {"normalisation": None} == next(fields) | {"normalisation": None}
    run("verify", folder / f"{name}.safetensors", tmp_path / "out")
    tensors = tensors_of(folder / name)
    assert f"equal: {len(tensors)} tensors, {sum(t.size for t in tensors.values()):,} param" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("wan", ((-0.7571, -0.7089, -0.9113, 0.1075), (2.8184, 1.4541, 2.3275, 2.6558))),
        ("hunyuan15", ((0.0,), (1 / 1.03682,))),
        ("worldplay", ((0.0,), (1 / 1.03682,))),
        ("cogvideox", ((0.0,), (1 / 1.15258426,))),
    ],
)
def test_the_file_opens_with_its_config_and_weights(
    folder: pathlib.Path, name: str, numbers: tuple[Sequence[float], Sequence[float]]
) -> None:
    model: Any = files.load(folder / f"{name}.safetensors", dtype=jnp.float32)
    assert model.config.latent_channels == 4
    np.testing.assert_allclose(model.config.normalisation.shift, numbers[0])
    np.testing.assert_allclose(1 / np.array(model.config.normalisation.scale), numbers[1])
    tensors = tensors_of(folder / name)
    tensor = tensors["encoder.conv_in.weight" if name == "wan" else "encoder.conv_in.conv.weight"]
    np.testing.assert_array_equal(model.encoder.conv_in.kernel[...], tensor.transpose(2, 3, 4, 1, 0))


@pytest.mark.parametrize("name", ["wan", "hunyuan15", "worldplay"])
def test_other_layouts(folder: pathlib.Path, name: str, tmp_path: pathlib.Path) -> None:
    """A round trip through the other layout restores the same file and config."""
    file = folder / f"{name}.safetensors"
    layout = "diffusers" if name == "worldplay" else "original"
    run("export", file, "--layout", layout, "--output", tmp_path / "other")
    run("import", tmp_path / "other", "--output", tmp_path / "again")
    again = tmp_path / "again" / records.AUTOENCODER_FILE
    assert config(again) == config(file)
    assert converted.contents(again) == converted.contents(file)


def test_torch_files(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wan's original is distributed without config.json, so that sizes follow from the shapes."""
    run("export", folder / "wan.safetensors", "--layout", "original", "--output", tmp_path / "other")
    tensors = safetensors.numpy.load_file(tmp_path / "other" / sources.WEIGHTS_NAME)
    (tmp_path / "alone").mkdir()
    # The config.json next to the published file is the transformer's.
    (tmp_path / "alone" / "config.json").write_text('{"_class_name": "WanModel", "dim": 1536}')
    for folder_name in ("alone", "other"):
        torch.save(
            {key: torch.from_numpy(tensor) for key, tensor in tensors.items()}, tmp_path / folder_name / "VAE.pth"
        )
    run("import", tmp_path / "other" / "VAE.pth", "--output", tmp_path / "again.safetensors")
    assert config(tmp_path / "again.safetensors") == config(folder / "wan.safetensors")
    assert converted.contents(tmp_path / "again.safetensors") == converted.contents(folder / "wan.safetensors")
    message = mistake(capsys, "import", tmp_path / "alone", "--output", tmp_path / "lone.safetensors")
    assert "shift has 16 numbers, expected 1 or 4" in message


@pytest.mark.parametrize(
    ("name", "options", "layout"),
    [
        ("Wan2.1_VAE.pth", (), "original"),
        ("vae.safetensors", (), "diffusers"),
        ("vae", (), "diffusers"),
        ("wan.pth", ("--layout", "diffusers"), "diffusers"),
        ("wan.safetensors", ("--layout", "original"), "original"),
    ],
)
def test_the_suffix_or_the_option_decides_the_layout(
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    options: Sequence[str],
    layout: str,
) -> None:
    """An autoencoder imported from diffusers."""
    run("export", folder / "wan.safetensors", "--output", tmp_path / name, *options)
    assert f"(--layout {layout}) to {tmp_path / name}" in capsys.readouterr().out
    found = families.detect(converted.contents(tmp_path / name), "x")[1]
    assert found.name == layout


def test_half_precision_is_preserved(tmp_path: pathlib.Path) -> None:
    source = converted.wan_autoencoder(tmp_path / "half")
    tensors = tensors_of(source)
    halves = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    with (source / sources.WEIGHTS_NAME).open("wb") as file:
        described = {name: (tensor.shape, tensor.dtype) for name, tensor in halves.items()}
        for name, offset in tensor_files.write_header(file, described, {}).items():
            tensor_files.write_at(file, halves[name], offset)
    run("import", source, "--output", tmp_path / "ours.safetensors")
    run("export", tmp_path / "ours.safetensors", "--output", tmp_path / "back")
    assert converted.contents(tmp_path / "back") == converted.contents(source)
    run("verify", tmp_path / "ours.safetensors", source)
    model: Any = files.load(tmp_path / "ours.safetensors")
    expected = halves["encoder.conv_in.bias"].astype(np.float32)
    np.testing.assert_array_equal(model.encoder.conv_in.bias[...], expected)


# Sizes and settings


@pytest.mark.parametrize(
    ("name", "unknown"),
    [("hunyuan15", set()), ("worldplay", set()), ("cogvideox", {"groups", "eps", "temporal_ratio"}), ("wan", set())],
)
def test_shapes_determine_the_sizes(folder: pathlib.Path, name: str, unknown: set[str]) -> None:
    with sources.open_source(folder / name) as source:
        layout = families.detect(source.tensors, name)[1]
        facts = layout.from_shapes({tensor: info.shape for tensor, info in source.tensors.items()})
        expected = layout.from_config(source.config or {}, name)
    assert facts == {key: value for key, value in expected.items() if key not in unknown | {"normalisation"}}


def test_without_config_json_the_rest_is_published(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = download(tmp_path / "source", "cogvideox", config=False)
    assert "must be multiples of the 32 groups" in mistake(capsys, "import", source, "--output", tmp_path / "out")
    run("import", source, "--output", tmp_path / "out", "--set", "groups=4", "--set", "double_lone_frame=false")
    printed = capsys.readouterr().out
    assert "not given by the checkpoint: normalisation, chunk, temporal_ratio, eps\n" in printed
    found = config(tmp_path / "out" / records.AUTOENCODER_FILE)
    assert (found.groups, found.double_lone_frame, found.normalisation.scale) == (4, False, (1.15258426,))


def test_settings_reach_the_file(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    settings = ["attention=causal", "chunk=None", "dtype=float32"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    run("import", folder / "hunyuan15", "--output", tmp_path / "causal.safetensors", *arguments)
    found = config(tmp_path / "causal.safetensors")
    assert (found.attention, found.chunk, found.dtype) == ("causal", None, jnp.float32)


@pytest.mark.parametrize("name", ["worldplay", "worldplay.safetensors"])
def test_inspect(
    folder: pathlib.Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("data was read")

    monkeypatch.setattr("conversion.sources.Source.read", refuse)
    monkeypatch.setattr(conversion.console, "_width", 200)
    run("inspect", folder / name)
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        cells = [cell.strip() for cell in line.split("│")]
        if len(cells) == 4:
            rows[cells[1]] = cells[2]
    assert (rows["family"], rows["layout"]) == ("hunyuan15-vae", "original")
    assert (rows["widths"], rows["spatial_ratio"], rows["latent_channels"]) == ("8x16x16x16x16", "16", "4")
    assert rows["normalisation"] == "(latent - 0) * 1.03682"
    tensors = golden_cases.GoldenCase(GOLDEN / CASES["worldplay"]).weights
    assert rows["parameters"] == f"{sum(tensor.size for tensor in tensors.values()):,}"
    if name.endswith(".safetensors"):
        assert rows["kind"] == f"jworld, imported from {folder / 'worldplay'}"
        assert rows["tensors of the original"] == str(len(tensors))
        assert rows["attention"] == "frame"


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["import", "{}/wan", "--output", "{}/wan.safetensors"], "exists already"),
        (["import", "{}/wan", "--output", "{}/cogvideox"], "exists already"),
        (["import", "{}/wan", "--output", "{}/cogvideox", "--overwrite"], "contains other files"),
        (["import", "{}/wan", "--output", "{}/out", "--family", "cogvideox-vae"], "not weights of a known network"),
        (["import", "{}/wan", "--output", "{}/out", "--dtype", "bfloat16"], "--dtype: not for an autoencoder"),
        (["import", "{}/wan", "--output", "{}/out", "--variant", "ar"], "--variant: not for an autoencoder"),
        (["import", "{}/wan", "--output", "{}/out", "--config.chunks=2"], "expected one of latent_channels"),
        (["import", "{}/wan", "--output", "{}/out", "--config.chunk=two"], "found 'two', expected a value like 1"),
        (["import", "{}/wan", "--output", "{}/out", "--config.chunk=0"], "chunk: found 0, expected an integer from 1"),
        (["import", "{}/wan", "--output", "{}/out", "--config.dtype=int8"], "expected float32, bfloat16 or float16"),
        (
            ["import", "{}/wan", "--output", "{}/new/out", "--config.channels=9"],
            "determine channels, which is 8 by the tensors",
        ),
        (["import", "{}/hunyuan15", "--output", "{}/out", "--config.attention=causal"], "set chunk to None"),
        (["import", "{}/hunyuan15", "--output", "{}/out", "--config.attention=none"], "one of 'frame', 'causal'"),
        (
            ["export", "{}/cogvideox.safetensors", "--output", "{}/out", "--layout", "original"],
            "--layout is 'original'",
        ),
        (["export", "{}/wan.safetensors", "--output", "{}/wan.safetensors", "--overwrite"], "is in the folder of"),
        (["import", "{}/wan.safetensors", "--output", "{}/out"], "has weights of jworld, which need no import"),
        (["export", "{}/wan", "--output", "{}/out"], "is not a folder of jworld's weights"),
        (["verify", "{}/wan.safetensors", "{}/hunyuan15"], "not weights of a known network"),
        (["verify", "{}/hunyuan15.safetensors", "{}/worldplay"], "tensors do not fit the model"),
    ],
)
def test_mistakes_end_in_one_sentence(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], part: str
) -> None:
    before = sorted(folder.rglob("*"))
    assert part in mistake(capsys, *(argument.replace("{}", str(folder)) for argument in arguments))
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_dim": 16}, "channels is 8 by the tensors' shapes, but 16 by"),
        ({"decoder_base_dim": 16}, "decoder_base_dim is 16, which contradicts channels 8"),
        ({"is_residual": True}, "is_residual is True, only False is supported"),
        ({"dim_mult": 4}, "dim_mult is 4"),
        ({"temperal_downsample": [1, 0]}, "temperal_downsample is [1, 0]"),
        ({"latents_std": None}, "only one of latents_mean and latents_std"),
        ({"latents_std": ["1"]}, "latents_std is ['1']"),
        ({"latents_std": [1.0], "latents_mean": [0.0, 0.0]}, "shift has 2 numbers, expected 1 or 4"),
    ],
)
def test_config_json_that_does_not_fit(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    source = converted.wan_autoencoder(tmp_path / "source", **changes)
    assert message in mistake(capsys, "import", source, "--output", tmp_path / "out")


def test_every_tensor_has_its_place(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = converted.wan_autoencoder(tmp_path / "source")
    tensors = tensors_of(source)
    bias = tensors.pop("decoder.conv_in.bias")
    converted.rewrite(source, tensors | {"more": bias, "quant_conv.bias": bias})
    message = mistake(capsys, "import", source, "--output", tmp_path / "out")
    assert "3 tensors do not fit the model" in message
    for part in ("unexpected more", "missing decoder.conv_in.bias", "misshapen quant_conv.bias"):
        assert part in message
    tensors |= {"decoder.conv_in.bias": np.full_like(bias, np.nan)}
    converted.rewrite(source, tensors)
    assert "non-finite decoder.conv_in.bias" in mistake(capsys, "import", source, "--output", tmp_path / "out")
    converted.rewrite(source, {name: tensor.astype(np.float64) for name, tensor in tensors.items()})
    assert "has tensors of float64" in mistake(capsys, "import", source, "--output", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_verify_names_what_differs(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = tensors_of(folder / "wan")
    tensors["encoder.conv_in.bias"][0] += np.float32(1e-6)
    converted.rewrite(converted.wan_autoencoder(tmp_path / "source"), tensors)
    message = mistake(capsys, "verify", folder / "wan.safetensors", tmp_path / "source")
    assert "1 of 146 tensors" in message
    assert "encoder.conv_in.bias" in message


def test_the_linear_autoencoder_cannot_be_exported(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    linear.fit([clip], linear.LinearConfig(channels=2), seed=0).save(tmp_path / records.AUTOENCODER_FILE)
    assert "is a linear autoencoder" in mistake(capsys, "export", tmp_path, "--output", tmp_path / "out")


def test_normalisation_by_channel_has_no_place_in_some_programs(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Autoencoders trained with jworld are normalized per channel."""
    model: Any = files.load(folder / "hunyuan15.safetensors")
    normalisation = type(model.config.normalisation)(shift=(0.0,) * 4, scale=(1.0, 2.0, 3.0, 4.0))
    model.config = type(model.config)(**{**vars(model.config), "normalisation": normalisation})
    files.save(model, tmp_path / "own.safetensors")
    run("export", tmp_path / "own.safetensors", "--layout", "diffusers", "--output", tmp_path / "out")
    assert "latents are normalized per channel" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["scaling_factor"] == 1.0
    assert converted.contents(tmp_path / "out") == converted.contents(folder / "hunyuan15")


def test_as_a_user_does(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    result = commands.run("conversion", "import", str(folder / "wan"), "--output", str(tmp_path / "ours"))
    assert result.returncode == 0, result.stderr
    assert "imported 146 tensors, 635,679 parameters (float32, checksum" in result.stdout
    assert f"next: python -m conversion verify {tmp_path / 'ours'} {folder / 'wan'}" in result.stdout
    assert f"python -m jworld.precompute --autoencoder {tmp_path / 'ours'}" in result.stdout
    assert result.stderr == ""
    ours = tmp_path / "ours" / records.AUTOENCODER_FILE
    assert ours.read_bytes() == (folder / "wan.safetensors").read_bytes()
