"""Benchmarks on small generated files, answered by a fake model."""

import io
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import PIL.Image
import pyarrow
import pytest
import rich.console
from pyarrow import parquet

from jworld.systems.theworld.evaluation import answers, benchmarks, blink, spatial_bench, vsr
from jworld.utils.errors import UserError

CONSOLE = rich.console.Console(file=io.StringIO())


def png(shade: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (200, 150), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def shade(image: PIL.Image.Image) -> int:
    return image.getpixel((199, 149))[0]  # type: ignore[index]


class Fake:
    """A model that answers by a function of the first image's shade and the prompt, and records its questions."""

    def __init__(self, answer: Callable[[int, str], str]) -> None:
        self.answer = answer
        self.questions: list[tuple[list[int], str]] = []
        self.batches: list[int] = []

    def __call__(
        self, images: Sequence[Sequence[PIL.Image.Image]], prompts: Sequence[str], *, max_tokens: int
    ) -> list[str]:
        self.batches.append(len(prompts))
        self.max_tokens = max_tokens
        self.questions += [(list(map(shade, own)), prompt) for own, prompt in zip(images, prompts, strict=True)]
        return [self.answer(shade(own[0]), prompt) for own, prompt in zip(images, prompts, strict=True)]


@pytest.fixture
def blink_folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two tasks of 3 and 2 questions; the shade of the first image is the number of the right choice."""
    for task, letters in {"Relative_Depth": "ABA", "Jigsaw": "BC"}.items():
        numbers = [ord(letter) - ord("A") for letter in letters]
        table: dict[str, Any] = {
            "question": [f"Which {i}?" for i in range(len(letters))],
            "choices": [["red", "green", "blue"]] * len(letters),
            "answer": [f"({letter})" for letter in letters],
            "image_1": [{"bytes": png(number), "path": None} for number in numbers],
            "image_2": [{"bytes": png(90), "path": None} if task == "Jigsaw" else None for _ in letters],
        }
        (tmp_path / task).mkdir()
        parquet.write_table(pyarrow.table(table), tmp_path / task / "val-00000-of-00001.parquet")
    return tmp_path


def test_blink(blink_folder: pathlib.Path) -> None:
    benchmark = blink.load(blink_folder, split="val", limit=0, images=4)
    model = Fake(lambda number, prompt: f"It is {'ABC'[number]}" if "0?" in prompt else "the red one")
    outcome = benchmarks.run(benchmark, model, batch=2, console=CONSOLE, title="fake")
    assert model.batches == [2, 2, 2]
    assert model.questions[0] == ([1, 90], "Question: Which 0?\nA) red\nB) green\nC) blue\nAnswer:")
    assert [len(images) for images, _ in model.questions[2:5]] == [1, 1, 1]
    assert outcome.tasks["Relative_Depth"] == {
        "accuracy": pytest.approx(200 / 3),
        "correct": 2,
        "total": 3,
        "unparsed": 0,
        "f1_macro": pytest.approx(40),
        "f1_weighted": pytest.approx(160 / 3),
        "letters": ["A", "B"],
        "confusion_matrix": [[2, 0], [1, 0]],
    }
    assert outcome.tasks["Jigsaw"]["correct"] == 1
    assert outcome.accuracy == pytest.approx((200 / 3 + 50) / 2)
    assert benchmark.chance == pytest.approx(100 / 3)
    few = blink.load(blink_folder, split="val", limit=1, images=1)
    assert [example.name for example in few.examples] == ["Jigsaw/0/0", "Relative_Depth/0/0"]
    assert len(few.examples[0].load()) == 1


def test_blink_without_answers(blink_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="holds no table of BLINK"):
        blink.load(blink_folder, split="dev", limit=0, images=4)
    path = blink_folder / "Jigsaw" / "test-00000-of-00001.parquet"
    table = {"question": ["?"], "choices": [["a", "b"]], "answer": ["hidden"], "image_1": [{"bytes": png(0)}]}
    parquet.write_table(pyarrow.table(table), path)
    with pytest.raises(UserError, match="the split test has no answers, use val"):
        blink.load(blink_folder, split="test", limit=0, images=4)


def vsr_files(folder: pathlib.Path) -> pathlib.Path:
    rows = [{"image": f"{i}.png", "caption": f"c{i}", "label": i % 2} for i in range(4)]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for i in range(4):
        (folder / f"{i}.png").write_bytes(png(i))
    return folder / "test.jsonl"


def test_vsr(tmp_path: pathlib.Path) -> None:
    path = vsr_files(tmp_path)
    (tmp_path / "2.png").write_bytes(b"broken")
    benchmark = vsr.load(path, tmp_path, limit=0)
    model = Fake(lambda number, prompt: ["0", "That is true.", "", "no idea"][number])
    outcome = benchmarks.run(benchmark, model, batch=3, console=CONSOLE, title="fake")
    assert model.questions[0][1].endswith("\n\nStatement: c0\nAnswer (only '1' or '0'):")
    assert [(row["parsed"], row["score"]) for row in outcome.rows] == [("0", 1.0), ("1", 1.0), ("0", 0.0)]
    assert outcome.tasks["VSR"]["accuracy"] == pytest.approx(200 / 3)
    assert list(outcome.skipped) == ["2"]
    assert "2.png cannot be read" in outcome.skipped["2"]
    assert model.batches == [3, 3]


def test_unparsed_answers_are_wrong(tmp_path: pathlib.Path) -> None:
    outcome = benchmarks.run(
        vsr.load(vsr_files(tmp_path), tmp_path, limit=2), Fake(lambda *_: "?"), batch=2, console=CONSOLE, title="fake"
    )
    assert outcome.tasks["VSR"] == {"accuracy": 0.0, "correct": 0, "total": 2, "unparsed": 2}


SPATIAL = (
    ("qualitative", "left_choice", "Is <mask> left of <mask>?", "Yes, Region [0] is.", "yes", 1.0, None),
    ("qualitative", "tall_choice", "Which of <mask>, <mask> is taller?", "Region [1] is.", "Region [0]", 0.0, None),
    ("quantitative", "width_data", "How wide is <mask>?", "Region [0] is 2 meters wide.", "80 inches", 1.0, 0.016),
    ("quantitative", "height_data", "How high is <mask>?", "It is 4.0 feet.", "about 3 ft", 1.0, 0.25),
    ("quantitative", "height_data", "How high is <mask>?", "It is 50 cm.", "1 m", 0.0, 1.0),
    ("quantitative", "height_data", "How high is <mask>?", "It is 50 cm.", "high", 0.0, None),
)


def spatial_table(folder: pathlib.Path) -> pathlib.Path:
    table = {
        "id": [str(i) for i in range(len(SPATIAL))],
        "image": [{"bytes": png(i), "path": None} for i in range(len(SPATIAL))],
        "text_q": [row[2] for row in SPATIAL],
        "answer": [row[3] for row in SPATIAL],
        "bbox": ["[[1, 1, 20, 20], [10, 10, 30, 25]]"] * len(SPATIAL),
        "qa_info": [str({"type": row[0], "category": row[1]}) for row in SPATIAL],
    }
    path = folder / "val.parquet"
    parquet.write_table(pyarrow.table(table), path)
    return path


def test_spatial_rgpt_by_rules(tmp_path: pathlib.Path) -> None:
    benchmark = spatial_bench.load(spatial_table(tmp_path), "", limit=0)
    model = Fake(lambda number, prompt: SPATIAL[number][4])
    outcome = benchmarks.run(benchmark, model, batch=4, console=CONSOLE, title="fake")
    assert model.questions[0][1] == "Is Region [0] left of Region [1]?"
    assert [row["score"] for row in outcome.rows] == [row[5] for row in SPATIAL]
    for row, expected in zip(outcome.rows, SPATIAL, strict=True):
        assert row.get("relative_error") == pytest.approx(expected[6])
    numbers = outcome.tasks["SpatialRGPT-Bench"]
    assert numbers["accuracy"] == pytest.approx(50)
    assert numbers["by_type"] == {"qualitative": 0.5, "quantitative": 0.5}
    assert numbers["quantitative_metrics"]["unparseable"] == 1
    assert len(benchmark.examples[0].load()[0].getcolors() or []) > 1  # the regions are drawn
    plain = spatial_bench.load(spatial_table(tmp_path), "", limit=1, draw_boxes=False)
    assert len(plain.examples[0].load()[0].getcolors() or []) == 1


def test_spatial_rgpt_by_a_judge(tmp_path: pathlib.Path) -> None:
    received: list[str] = []

    def judge(prompts: Sequence[str]) -> list[str]:
        received.extend(prompts)
        return ["1", "0", "2.0 2.1", "[1.2, 2.4]", "none", "0.5 0.5"]

    benchmark = spatial_bench.load(spatial_table(tmp_path), "", limit=0, judge=judge)
    outcome = benchmarks.run(benchmark, Fake(lambda *_: "so"), batch=8, console=CONSOLE, title="fake")
    assert [row["score"] for row in outcome.rows] == [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    assert all(
        f"Given answer: {row['prediction']}" in prompt for row, prompt in zip(outcome.rows, received, strict=True)
    )


def test_relative_errors_of_lengths() -> None:
    assert answers.relative_error(2.0, 1.5) == pytest.approx(0.25)
    assert answers.relative_error(0.0, 0.0) == 0.0
    assert answers.relative_error(0.0, 1.0) == float("inf")


def spatial_rows(*pairs: tuple[str, str, str]) -> list[benchmarks.Row]:
    """Return scored rows of (kind of question, truth, answer)."""
    rows: list[benchmarks.Row] = [
        {"name": str(i), "qa_type": kind, "truth": truth, "prediction": text, "parsed": text, "prompt": "?"}
        for i, (kind, truth, text) in enumerate(pairs)
    ]
    spatial_bench.judge_rows(rows, judge=None)
    return rows


def test_directions_are_compared_as_angles() -> None:
    rows = spatial_rows(
        ("quantitative", "Region [1] is at 12 o'clock.", "around 1 o'clock"),
        ("quantitative", "at 11 o'clock", "at 1 o'clock, 3 meters away"),
        ("quantitative", "at 6 o'clock", "3 meters"),
        ("quantitative", "2 meters", "at 2 o'clock, 2 meters away"),
    )
    assert [row["score"] for row in rows] == [1.0, 0.0, 0.0, 1.0]
    assert [row.get("degrees") for row in rows] == [30, 60, None, None]
    numbers = spatial_bench.measure(rows)
    assert numbers["direction_metrics"] == {"total": 3, "correct": 1, "mean_error_degrees": 45}
    assert numbers["quantitative_metrics"]["total"] == 1
    assert (numbers["accuracy"], numbers["unparsed"]) == (50, 1)


def test_truths_that_cannot_be_read_do_not_count() -> None:
    rows = spatial_rows(
        ("quantitative", "quite far", "2 meters"),
        ("quantitative", "1,200 meters", "1.1 km"),
        ("qualitative", "hard to say", "yes"),
        ("qualitative", "No, it is not.", "no"),
    )
    assert [row["score"] for row in rows] == [None, 1.0, None, 1.0]
    numbers = spatial_bench.measure(rows)
    assert (numbers["total"], numbers["accuracy"], numbers["unreadable_truths"]) == (2, 100, ["0", "2"])


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(c)", "C"),
        (" b. ", "B"),
        ("**A**", "A"),
        ("Answer: B", "B"),
        ("The correct answer is (B).", "B"),
        ("The answer is: C, not A", "C"),
        ("I choose option D because of A", "D"),
        ("B) the left one", "B"),
        ("(A) red", "A"),
        ("It is the red one", "A"),
        ("the dark red one", "D"),
        ("Green, I think", "B"),
        ("It must be C", "C"),
        ("Choose (B), as in the image", "B"),
        ("I can't see it", None),
        ("A car is closer", None),
        ("red or green", None),
        ("either B or C", None),
        ("", None),
        ("reddish", None),
    ],
)
def test_choices_are_read_or_not(text: str, letter: str | None) -> None:
    assert answers.read_choice(text, ["red", "green", "blue", "dark red"]) == letter


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("1", 1),
        ("0.", 0),
        ("The answer is 1", 1),
        ("True", 1),
        ("That is not true", 0),
        ("It isn't correct", 0),
        ("It is not false.", 1),
        ("No, the cat is right of it", 0),
        ("0 or 1", None),
        ("10 cats", None),
        ("I can't see it", None),
    ],
)
def test_verdicts_are_read_or_not(text: str, verdict: int | None) -> None:
    assert answers.read_verdict(text) == verdict


def test_unparsed_choices_are_counted(blink_folder: pathlib.Path) -> None:
    """By default "I can't see it" chooses nothing; the original takes the first of A to D, as published."""
    texts = ("Answer: B", "I can't see it", "The correct answer is (A).")
    model = Fake(lambda number, prompt: texts[int(prompt[16])])
    outcomes = {}
    for original in (False, True):
        benchmark = blink.load(blink_folder, split="val", limit=0, images=1, original=original)
        outcomes[original] = benchmarks.run(benchmark, model, batch=4, console=CONSOLE, title="fake")
    sound, original = ([row["parsed"] for row in outcomes[key].rows] for key in (False, True))
    assert sound == ["B", None, "B", None, "A"]
    assert original == ["A", "C", "A", "C", "C"]
    task = outcomes[False].tasks["Relative_Depth"]
    assert (task["unparsed"], task["correct"], task["total"]) == (1, 1, 3)
    assert task["confusion_matrix"] == [[1, 1], [0, 0]]


class Ranked(Fake):
    """A model that finds the option with the number of the first image's shade the most likely one."""

    def likelihoods(
        self, images: Sequence[Sequence[PIL.Image.Image]], prompts: Sequence[str], options: Sequence[str]
    ) -> list[float]:
        self.batches.append(len(prompts))
        return [-abs("ABC".index(option) - shade(own[0])) for own, option in zip(images, options, strict=True)]


def test_options_are_ranked_by_likelihood(blink_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    model = Ranked(lambda *_: "?")
    benchmark = blink.load(blink_folder, split="val", limit=0, images=1)
    outcome = benchmarks.run(benchmark, model, batch=4, console=CONSOLE, title="fake", by_likelihood=True)
    assert [row["score"] for row in outcome.rows] == [1.0] * 5
    assert outcome.rows[0]["likelihoods"] == {"A": -1, "B": 0, "C": -1}
    assert model.batches == [4] * 6
    spatial = spatial_bench.load(spatial_table(tmp_path), "", limit=0)
    with pytest.raises(UserError, match="the questions of SpatialRGPT-Bench have no options"):
        benchmarks.run(spatial, model, batch=4, console=CONSOLE, title="fake", by_likelihood=True)
