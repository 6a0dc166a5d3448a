"""The commands of `python -m conversion`: their output, and one sentence for every mistake."""

import json
import pathlib
from collections.abc import Sequence

import commands
import converted
import numpy as np
import pytest

from conversion import __main__ as conversion
from jworld.systems import runs

ACTION, BASE = "transformer_ar_train", "base"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Make download/ar_rl_model with an action model, base/ with a plain one, and imported/ from the first."""
    folder = tmp_path_factory.mktemp("cli")
    converted.download(folder / "download" / "ar_rl_model", ACTION)
    converted.download(folder / "base", BASE)
    conversion.main(["import", str(folder / "download" / "ar_rl_model"), "--output", str(folder / "imported")])
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    conversion.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one sentence on stderr of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        conversion.main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_round_trip_on_the_command_line(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Run the module in its own process, on the downloaded file itself."""
    file = folder / "base" / "diffusion_pytorch_model.safetensors"
    result = commands.run("conversion", "import", str(file), "--output", str(tmp_path / "imported"))
    assert result.returncode == 0, result.stderr
    tensors = converted.case(BASE).weights
    parameters = sum(tensor.size for tensor in tensors.values())
    assert f"imported {len(tensors)} tensors, {parameters:,} parameters (float32, checksum" in result.stdout
    assert "HunyuanVideo-1.5, sampled as base" in result.stdout
    assert f"next: python -m conversion verify {tmp_path / 'imported'} {file}" in result.stdout
    result = commands.run("conversion", "export", str(tmp_path / "imported"), "--output", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    assert converted.contents(tmp_path / "out") == converted.contents(file)
    assert "always 1472 there" in result.stdout
    assert result.stderr == ""


def test_verify_prints_what_it_compared(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run(capsys, "verify", folder / "imported", folder / "download" / "ar_rl_model")
    record = runs.import_record(folder / "imported")
    assert record["variant"] == "rl"
    assert f"equal: {record['tensors']} tensors, {record['parameters']:,} parameters" in printed
    assert f"checksum {record['checksum']}" in printed


@pytest.mark.parametrize("name", ["download/ar_rl_model", "imported"])
def test_inspect_reads_headers_alone(
    folder: pathlib.Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("data was read")

    monkeypatch.setattr("conversion.sources.Source.read", refuse)
    monkeypatch.setattr("conversion.folders.Folder.read", refuse)
    monkeypatch.setattr(conversion.console, "_width", 200)
    rows = {}
    for line in run(capsys, "inspect", folder / name).splitlines():
        cells = [cell.strip() for cell in line.split("│")]
        if len(cells) == 4:
            rows[cells[1]] = cells[2]
    tensors = converted.case(ACTION).weights
    assert (rows["family"], rows["layout"]) == ("worldplay", "original")
    assert rows["variant"].startswith("WorldPlay")
    assert (rows["layers"], rows["width"], rows["heads"]) == ("2", "64", "4")
    assert (rows["rope_dims"], rows["text_dim"]) == ("4x6x6", "24")
    assert rows["parameters"] == f"{sum(tensor.size for tensor in tensors.values()):,}"
    if name == "imported":
        assert "imported from" in rows["kind"]
        assert "(rl)" in rows["kind"]
        assert rows["tensors of the original"] == str(len(tensors))
    else:
        assert (rows["tensors"], rows["dtypes"]) == (str(len(tensors)), f"float32 ({len(tensors)})")
        assert rows["bytes"] == f"{(folder / name / 'diffusion_pytorch_model.safetensors').stat().st_size:,}"


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["import", "{}/none", "--output", "{}/out"], "no such file or folder"),
        (["import", "{}/base", "--output", "{}/imported"], "exists already"),
        (
            ["import", "{}/base", "--output", "{}/out", "--config", "configs/none.py"],
            "there is no file configs/none.py",
        ),
        (
            ["import", "{}/base", "--output", "{}/new/out", "--config.model.width=65"],
            "determine model.width, which is 64 by the tensors' shapes",
        ),
        (["import", "{}/base", "--output", "{}/base/config.json/out"], "config.json is not a folder"),
        (["export", "{}/base", "--output", "{}/out"], "is not a folder of jworld's weights"),
        (["export", "{}/none", "--output", "{}/out"], "is not a folder of jworld's weights"),
        (["inspect", "{}"], "no weights in this folder"),
        (["import", "{}/imported", "--output", "{}/out"], "has weights of jworld, which need no import"),
        (["verify", "{}/imported", "{}/base"], "missing action_in.mlp.0.weight"),
        (["verify", "{}/imported", "{}/imported"], "no weights in this folder"),
    ],
)
def test_mistakes_end_in_one_sentence(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], part: str
) -> None:
    before = sorted(folder.rglob("*"))
    assert part in mistake(capsys, *(argument.replace("{}", str(folder)) for argument in arguments))
    assert sorted(folder.rglob("*")) == before


def test_verify_ends_with_code_two_when_something_differs(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {name: tensor.copy() for name, tensor in converted.case(ACTION).weights.items()}
    tensors["byt5_in.fc2.bias"][0] += np.float32(1e-6)
    converted.rewrite(converted.download(tmp_path, ACTION), tensors)
    assert "byt5_in.fc2.bias" in mistake(capsys, "verify", folder / "imported", tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", '{"arrays": 3}', "not json"])
def test_damaged_records(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (tmp_path / "config.json").write_text((folder / "imported" / "config.json").read_text())
    (tmp_path / "weights").symlink_to(folder / "imported" / "weights")
    (tmp_path / "import.json").write_text(content)
    error = mistake(capsys, "export", tmp_path, "--output", tmp_path / "out")
    assert "import.json " in error
    assert error.endswith(": import the weights again")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        conversion.main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for command in ("import", "export", "inspect", "verify"):
        assert f"  {command}" in printed
        with pytest.raises(SystemExit) as ended:
            conversion.main([command, "--help"])
        assert ended.value.code == 0
    assert "--set KEY=VALUE" in capsys.readouterr().out


def test_record_is_json_that_people_can_read(folder: pathlib.Path) -> None:
    lines = (folder / "imported" / "import.json").read_text().splitlines()
    assert '  "family": "worldplay",' in lines
    assert json.loads("\n".join(lines))["files"] == ["diffusion_pytorch_model.safetensors"]
