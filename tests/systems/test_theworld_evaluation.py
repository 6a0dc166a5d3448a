"""The report of a benchmark, from options to files, and the comparison of evaluations."""

import io
import json
import pathlib
import types
from typing import Any

import numpy as np
import PIL.Image
import pytest
import rich.console

from jworld import evaluate
from jworld.data.conversations import batches, chat, formats
from jworld.evaluation import accuracy
from jworld.evaluation import results as reports
from jworld.systems.theworld.evaluation import held_out, questions, report
from jworld.utils.errors import UserError


class Episodes:
    """Four questions of two kinds about one image each; the second image is absent."""

    answers = ("left", "right", "nearer", "farther")

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        np.save(directory / "views-val.npy", np.full((4, 6, 8, 3), np.arange(4)[:, None, None, None], np.uint8))

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> formats.Conversation:
        kind = "turn" if number < 2 else "distance"
        return formats.Conversation(
            name=f"episode_00007/{kind}/{number}-9",
            turns=(chat.Turn("user", f"{kind}?"), chat.Turn("model", self.answers[number])),
            places=({"array": "views-val.npy", "index": number + 90 * (number == 1)},),
        )


@pytest.fixture
def data(tmp_path: pathlib.Path) -> Any:
    source = Episodes(tmp_path)
    return types.SimpleNamespace(
        set=formats.SetConfig(), clip=batches.ClipConfig(), source=lambda split: {"val": source}[split]
    )


def answer_right(images: list[list[PIL.Image.Image]], prompts: list[str], *, max_tokens: int) -> list[str]:
    return [f"It is {Episodes.answers[own[0].getpixel((0, 0))[0]]}, not another" for own in images]  # type: ignore[index]


def guess(images: list[list[PIL.Image.Image]], prompts: list[str], *, max_tokens: int) -> list[str]:
    return ["right of nearer, left of farther"] * len(prompts)


def run(conversations: Any, **options: Any) -> reports.Report:
    console = rich.console.Console(file=io.StringIO())
    answers: Any = {"with world": answer_right, "without": guess}
    return report.evaluate(answers, conversations, reports.Options(**options), console, max_tokens=8)


def test_questions_about_episodes(data: Any) -> None:
    result = run(data, batch=3)
    assert result.scores == {
        "with world": {"turn": 100.0, "distance": 100.0},
        "without": {"turn": 0.0, "distance": 50.0},
    }
    assert result.chance == 50.0
    assert list(result.numbers["left_out"]) == ["episode_00007/turn/1-9"]
    assert ("questions", "3") in result.summary
    assert [row["parsed"] for row in result.numbers["answers"]["without"]] == ["right", "nearer", "nearer"]
    json.dumps(result.numbers, allow_nan=False)
    assert run(data, limit=2).numbers["tasks"]["with world"]["turn"]["total"] == 1


def test_an_answer_without_a_choice_is_not_parsed(data: Any) -> None:
    benchmark = questions.load(data.source("val"), limit=0)
    example = benchmark.examples[0]
    assert [benchmark.read(example, text) for text in ("", "up", "Right, then left", "LEFT")] == [
        None,
        None,
        "right",
        "left",
    ]


def test_files_and_comparison(data: Any, tmp_path: pathlib.Path) -> None:
    result = run(data)
    console = rich.console.Console(file=io.StringIO(), width=120)
    for table in evaluate.tables(result):
        console.print(table)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("50.0 (-50.0)", "100.0", "chance", "mean", "left out"):
        assert part in printed
    numbers = {"checkpoint": "runs/a", "step": 1, **result.numbers}
    paths = evaluate.write(tmp_path / "a" / "evaluation", numbers, result)
    assert [path.name for path in paths[:3]] == ["evaluation.json", "evaluation.png", "evaluation.html"]
    page = paths[2].read_text()
    assert page.count("<section>") == page.count("<img ") == 3
    assert '<td class="right">It is left, not another</td>' in page
    assert '<td class="wrong">right of nearer, left of farther</td>' in page
    assert PIL.Image.open(paths[1]).size[0] > 500
    gemma = {"scores": {"answers": {"turn": 40.0, "distance": 80.0, "side": 1.0}}, "chance": 50.0}
    (tmp_path / "gemma.json").write_text(json.dumps(gemma))
    found = accuracy.compare(
        [tmp_path / "gemma.json", paths[0].parent], ["Gemma", "TheWorld"], tmp_path / "out", console
    )
    assert found["scores"]["TheWorld, with world"] == {"turn": 100.0, "distance": 100.0, "mean": 100.0}
    assert found["scores"]["Gemma"] == {"turn": 40.0, "distance": 80.0, "mean": 60.0}
    assert found["changes"]["TheWorld, without"]["distance"] == {"points": -30.0, "percent": -37.5}
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == found
    assert PIL.Image.open(tmp_path / "out" / "comparison.png").size[0] > 500


def test_the_command_compares(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("one", 50.0), ("two", 75.0)):
        folder = tmp_path / name / "evaluation"
        folder.mkdir(parents=True)
        numbers = {"scores": {"answers": {"VSR": value}}, "chance": 50.0}
        (folder / "evaluation.json").write_text(json.dumps(numbers))
    results = [str(tmp_path / name / "evaluation") for name in ("one", "two")]
    evaluate.main(["compare", *results, "--output", str(tmp_path / "out")])
    assert "75.0 (+25.0)" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["compare", *results, "--labels", "a", "a"])
    assert ended.value.code == 2
    (tmp_path / "two" / "evaluation" / "evaluation.json").write_text("{}")
    with pytest.raises(SystemExit):
        evaluate.main(["compare", *results, "--output", str(tmp_path / "other")])
    assert "holds no accuracies" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_mistakes(data: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="expected one of questions, blink, spatial_rgpt, vsr"):
        run(data, benchmark="mmmu")
    with pytest.raises(UserError, match="--data is missing"):
        run(data, benchmark="blink")
    with pytest.raises(UserError, match="is absent"):
        run(data, benchmark="blink", data=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="--images is missing"):
        run(data, benchmark="vsr", data=str(tmp_path))
    data.set = formats.SetConfig(format="llava")
    with pytest.raises(UserError, match="was trained on 'llava'"):
        run(data, benchmark="questions")


def test_held_out_conversations(data: Any) -> None:
    """Any set of conversations is answered and compared with its references; unlike case and periods do not count."""
    data.set = formats.SetConfig(format="llava")
    result = run(data, limit=3)
    assert result.numbers["benchmark"] == "held-out conversations"
    rows = result.numbers["answers"]["without"]
    assert [(row["truth"], row["reference"]) for row in rows] == [("left", "left"), ("farther", "farther")]
    assert result.scores["without"] == {"equal to the reference": 0.0}
    assert [entry.truth for entry in result.entries] == ["left", "farther"]
    assert held_out.normalized(" The  Left\none. ") == "the left one"


def test_how_answers_are_read_is_in_the_summary(data: Any) -> None:
    result = run(data)
    assert ("scoring", "sound") in result.summary
    assert ("unparsed answers", "with world 0 of 3, without 0 of 3") in result.summary
    with pytest.raises(UserError, match="--scoring is 'kind', expected one of sound, original, likelihood"):
        run(data, scoring="kind")


def test_losses_are_added_to_the_summary(data: Any) -> None:
    losses = {name: {"loss": 0.5, "token_accuracy": 75.0, "tokens": 8.0} for name in ("with world", "without")}
    result = report.with_losses(run(data), losses)
    assert ("held-out token accuracy, without", "75.0 %") in result.summary
    assert result.numbers["held_out_loss"] == 0.5
    assert result.numbers["held_out"] == losses
