"""Gemma-3 in every naming style, with more rows than the model, and TheWorld with its base checkpoints."""

import json
import pathlib
import shutil

import converted
import golden_cases
import numpy as np
import pytest
import safetensors.numpy

from conversion import __main__ as conversion
from conversion import folders, gemma3, importing, theworld
from jworld import generate
from jworld.models.gemma3.config import Gemma3Config
from jworld.systems import runs
from jworld.utils import errors

GOLDEN = golden_cases.DEFAULT_ROOT / "theworld"


@pytest.fixture
def gemma(tmp_path: pathlib.Path) -> pathlib.Path:
    """Make a small Gemma-3 in the published layout, as downloaded."""
    case = golden_cases.GoldenCase(GOLDEN / "gemma3_text")
    folder = tmp_path / "gemma"
    folder.mkdir()
    shutil.copy(case.path / "weights.safetensors", folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(case.config))
    for name in ("tokenizer.json", "preprocessor_config.json", "notes.txt"):
        (folder / name).write_text("{}")
    return folder


def test_every_style_in_and_out(gemma: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Each style's export has the same tensors with its own names, and the files of the tokenizer."""
    ours = tmp_path / "ours"
    conversion.main(["import", str(gemma), "--output", str(ours)])
    original = converted.contents(gemma)
    for style in (name for name, names in gemma3.STYLES.items() if names.vision is not None):
        exported = tmp_path / style
        conversion.main(["export", str(ours), "--layout", style, "--output", str(exported)])
        assert converted.contents(exported) == {gemma3.restyle(name, style): x for name, x in original.items()}
        assert {path.name for path in exported.iterdir()} == {
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
            "tokenizer.json",
        }
        conversion.main(["verify", str(ours), str(exported)])


def test_an_export_without_a_layout_has_names_for_all_versions(
    gemma: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever names were imported, as the help of --layout says."""
    with pytest.raises(SystemExit):
        conversion.main(["export", "--help"])
    assert "that all versions of transformers load, hub or text" in " ".join(capsys.readouterr().out.split())
    conversion.main(["import", str(gemma), "--output", str(tmp_path / "first")])
    saved = ["--layout", "transformers5-saved", "--output", str(tmp_path / "saved")]
    conversion.main(["export", str(tmp_path / "first"), *saved])
    conversion.main(["import", str(tmp_path / "saved"), "--output", str(tmp_path / "second")])
    assert runs.import_record(tmp_path / "second")["layout"] == "transformers5-saved"
    conversion.main(["export", str(tmp_path / "second"), "--output", str(tmp_path / "back")])
    assert "(--layout hub)" in capsys.readouterr().out
    assert converted.contents(tmp_path / "back") == converted.contents(gemma)


def test_an_import_without_a_tokenizer_says_so_and_generation_takes_it_from_a_folder(
    gemma: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = tmp_path / "ours"
    (gemma / "tokenizer.json").unlink()
    conversion.main(["import", str(gemma), "--output", str(ours)])
    absent = f"{ours}/encoders/tokenizer.json is absent: copy"
    assert f"{absent} it there before generating" in capsys.readouterr().out
    question = ["--checkpoint", str(ours), "--prompt", "What is this?"]
    with pytest.raises(SystemExit):
        generate.main(question)
    assert f"{absent} the tokenizer.json of the published model there" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(SystemExit):
        generate.main([*question, "--encoders", str(other)])
    assert f"{other}/tokenizer.json is not a chat tokenizer" in capsys.readouterr().err


def test_rows_that_no_token_uses_are_left_out(gemma: pathlib.Path, tmp_path: pathlib.Path) -> None:
    case = golden_cases.GoldenCase(GOLDEN / "gemma3_text")
    options = importing.Options(settings=("model.vocabulary=157",))
    importing.import_weights(gemma, tmp_path / "ours", options)
    opened = folders.open_weights(tmp_path / "ours")
    rows = opened.read("language/embedding")
    np.testing.assert_array_equal(rows, case.weights["language_model.model.embed_tokens.weight"][:157])
    conversion.main(["verify", str(tmp_path / "ours"), str(gemma)])


def test_fewer_rows_than_the_model_has_are_refused(gemma: pathlib.Path, tmp_path: pathlib.Path) -> None:
    rows = golden_cases.GoldenCase(GOLDEN / "gemma3_text").config["text_config"]["vocab_size"]
    options = importing.Options(settings=(f"model.vocabulary={rows + 3}",))
    message = f"the embedding has {rows} rows, but the model {rows + 3}: .*--config.model.vocabulary={rows}"
    with pytest.raises(errors.UserError, match=message):
        importing.import_weights(gemma, tmp_path / "ours", options)
    assert not (tmp_path / "ours").exists()


def test_a_checkpoint_without_its_base_is_refused(tmp_path: pathlib.Path) -> None:
    weights = {"world_projector.projection.0.weight": np.zeros((32, 16), np.float32)}
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(
        errors.UserError, match=r"missing .*cosmos_vae.*: give the checkpoints that it was trained from with --base"
    ):
        importing.import_weights(tmp_path, tmp_path / "ours", importing.Options())


def test_both_versions_give_the_same_config() -> None:
    """Version 5 has a table of rotary settings per kind of layer."""
    config = golden_cases.GoldenCase(GOLDEN / "gemma3_text").config
    text = dict(config["text_config"])
    old = {name: text.pop(name) for name in ("rope_theta", "rope_local_base_freq", "rope_scaling")}
    text["rope_parameters"] = {
        "full_attention": {"rope_theta": old["rope_theta"], **old["rope_scaling"]},
        "sliding_attention": {"rope_type": "default", "rope_theta": old["rope_local_base_freq"]},
    }
    facts = theworld.from_config(config, "v4")
    assert theworld.from_config(config | {"text_config": text}, "v5") == facts
    assert facts["pattern"] == Gemma3Config().pattern
    assert (facts["rope_theta"], facts["rope_factor"], facts["local_rope_factor"]) == (1e6, 8.0, 1.0)
    text["rope_parameters"]["full_attention"]["rope_type"] = "yarn"
    with pytest.raises(errors.UserError, match="full_attention are scaled by 'yarn'"):
        theworld.from_config(config | {"text_config": text}, "v5")
