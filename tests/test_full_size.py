"""The script of published sizes: all stages at a tiny size, and its page."""

import math
import pathlib
import re
import sys

import numpy as np
import pytest
import safetensors.numpy
import xla_flags

from conversion import hunyuan
from jworld.utils import errors
from scripts import full_size, full_size_keys


@pytest.mark.slow
@pytest.mark.parametrize("system", ["cosmos", "worldplay", "hunyuan15-vae"])
def test_all_stages_at_a_tiny_size(system: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", xla_flags.fast_compilation(1))
    page = tmp_path / "page.md"
    others = ["--page", str(page), "--workdir", str(tmp_path / "work"), "--python", sys.executable]
    full_size.main(["--system", system, "--scale", "tiny", *others])
    rows = full_size.read_rows(page)
    title = full_size.SYSTEMS[system].title
    outcomes = {stage: rows[title, stage].outcome for stage in full_size.STAGES}
    sampled, trained = outcomes.pop("generate"), outcomes.pop("train")
    assert set(outcomes.values()) == {"good"}
    assert sampled == ("not run: the network generates nothing alone" if system == "hunyuan15-vae" else "good")
    if system == "cosmos":
        assert re.fullmatch(r"good; planned 0\.\d\d GB", trained)
    else:
        assert trained == f"not run: {full_size.NOT_TRAINED}"
    assert all(
        float(row.seconds) > 0 and float(row.peak) > 0 for row in rows.values() if row.outcome.startswith("good")
    )
    assert not (tmp_path / "work" / system).exists()


def test_a_run_replaces_its_rows_and_keeps_all_others(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{full_size.BEGIN}\n{full_size.END}\n\nThe end.\n")
    first = full_size.Result("CogVideoX-2B", "import", "1.0", "2.00", "good")
    full_size.write_page(page, [first, full_size.Result("Gemma-3-4b", "load", "1.0", "2.00", "failed: exit 1")])
    again = full_size.Result("Gemma-3-4b", "load", "3.0", "4.00", "good")
    full_size.write_page(page, [again])
    rows = full_size.read_rows(page)
    assert len(rows) == len(full_size.SYSTEMS) * len(full_size.STAGES)
    assert {row for row in rows.values() if row.outcome != "not run"} == {first, again}
    assert page.read_text().startswith("# Title\n")
    assert page.read_text().endswith("\nThe end.\n")


def test_the_committed_page_has_a_row_for_every_stage() -> None:
    rows = full_size.read_rows(full_size.PAGE)
    assert rows.keys() == {(x.title, stage) for x in full_size.SYSTEMS.values() for stage in full_size.STAGES}


def test_the_list_of_worldplay_is_that_of_the_published_model() -> None:
    """Its numbers are those of an instance of the original's class."""
    shapes = full_size_keys.worldplay(full_size_keys.WORLDPLAY)
    assert len(shapes) == 1905
    assert sum(map(math.prod, shapes.values())) == 8_557_933_856
    assert hunyuan.from_shapes(shapes)["num_layers"] == 54


def test_a_changed_byte_is_found(tmp_path: pathlib.Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        tensors = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(5)}
        safetensors.numpy.save_file(tensors, tmp_path / name / "model.safetensors")
    full_size.compare(tmp_path / "first", tmp_path / "second")
    data = bytearray((tmp_path / "second" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "second" / "model.safetensors").write_bytes(data)
    with pytest.raises(errors.UserError, match=r"1 tensors of .*second differ from .*first: b"):
        full_size.compare(tmp_path / "first", tmp_path / "second")


@pytest.mark.parametrize(
    "arguments, message", [([], "--system is missing"), (["--system=cosmos", "--stages=make,x"], "found 'x'")]
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        full_size.main(arguments)
