"""Leaderboards: what a report's measures become, several results side by side, wrong files."""

import json
import pathlib

import pytest

from jworld import evaluate
from jworld.evaluation import held_out, leaderboard, results
from jworld.utils.errors import UserError


def make_report() -> results.Report:
    return results.Report(
        numbers={},
        summary=[],
        curves={held_out.MODEL: [22.0, 17.5], "first frame repeated": [20.0, 15.0]},
        images={"edges": {held_out.MODEL: [0.9, 1.3]}, "colors": {held_out.MODEL: [6.0, 18.0]}},
        bars={"90 degrees,\nwith retrieval": 20.5},
    )


def test_measures_of_a_report() -> None:
    found = leaderboard.measures(make_report(), 0.25)
    assert {name: (measure.value, measure.better) for name, measure in found.items()} == {
        "psnr, chunk 1": (22.0, "higher"),
        "psnr, chunk 2": (17.5, "higher"),
        "edges, chunk 1": (0.9, "one"),
        "edges, chunk 2": (1.3, "one"),
        "colors, chunk 1": (6.0, "lower"),
        "colors, chunk 2": (18.0, "lower"),
        "90 degrees, with retrieval": (20.5, "higher"),
        "held-out loss": (0.25, "lower"),
    }


def make_result(folder: pathlib.Path, values: dict[str, tuple[float, str]]) -> str:
    folder.mkdir()
    (folder / "evaluation.json").write_text("{}")
    found = {name: leaderboard.Measure(*value) for name, value in values.items()}
    leaderboard.write(folder / leaderboard.FILE, found, checkpoint=f"runs/{folder.name}", step=7)
    return str(folder)


def test_the_command_marks_the_best_of_each_row(tmp_path: pathlib.Path) -> None:
    boards = {
        "a": {"psnr": leaderboard.Measure(20, "higher"), "edges": leaderboard.Measure(1.4, "one")},
        "b": {"psnr": leaderboard.Measure(21, "higher"), "edges": leaderboard.Measure(0.5, "one")},
        "c": {"psnr": leaderboard.Measure(19, "higher"), "loss": leaderboard.Measure(0.5, "lower")},
    }
    columns = [list(column.cells) for column in leaderboard.table(boards).columns]
    assert columns == [
        ["psnr", "edges"],
        ["20", "[bold]1.4[/bold]"],
        ["[bold]21[/bold]", "0.5"],
        ["19", ""],
        ["higher", "one"],
    ]


def test_the_command_compares_results(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [
        make_result(tmp_path / "first", {"psnr, chunk 1": (20.0, "higher"), "colors, chunk 1": (5.0, "lower")}),
        make_result(tmp_path / "second", {"psnr, chunk 1": (21.5, "higher")}),
    ]
    evaluate.main(["--compare", *paths, "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "psnr, chunk 1" in printed
    assert "colors" not in printed
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == {
        "results": paths,
        "measures": {
            "first": {"psnr, chunk 1": 20.0, "colors, chunk 1": 5.0},
            "second": {"psnr, chunk 1": 21.5},
        },
    }


def test_wrong_results_end_with_one_sentence(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = make_result(tmp_path / "good", {"psnr, chunk 1": (20.0, "higher")})
    other = make_result(tmp_path / "other", {"loss": (1.0, "lower")})
    for results_given, message in (
        ([good, str(tmp_path / "absent")], "absent"),
        ([good, other], "have no measure in common"),
        ([good, good], "expected a different one for each"),
    ):
        with pytest.raises(SystemExit) as exit_:
            evaluate.main(["compare", *results_given, "--output", str(tmp_path / "out")])
        assert exit_.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
    (tmp_path / "good" / leaderboard.FILE).write_text('{"format": "jworld-leaderboard", "version": 2}')
    with pytest.raises(UserError, match="holds no measures"):
        leaderboard.read(tmp_path / "good")
