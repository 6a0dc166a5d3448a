"""TheWorld on conversations of its own: trained, measured during training and at its end, and evaluated."""

import io
import json
import pathlib
from collections.abc import Callable

import numpy as np
import PIL.Image
import pytest

from jworld import evaluate, train
from jworld.training import metrics

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

ROWS = 24


def png(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def llava(folder: pathlib.Path) -> str:
    """Rows with one image, with two in two turns, and with none."""
    rows: list[dict[str, object]] = []
    for number in range(ROWS):
        said = [("system", "be brief"), ("user", "is it <image>?"), ("assistant", "no")]
        said += [("user", "or <image>?"), ("assistant", "yes")]
        talk = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a wall"}]
        rows.append(
            (
                {"image": f"{number}.png", "conversations": talk},
                {
                    "images": [f"{number}.png", "0.png"],
                    "messages": [{"role": role, "content": text} for role, text in said],
                },
                {"messages": [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "hi"}]},
            )[number % 3]
        )
    (folder / "data.json").write_text(json.dumps(rows))
    return "data.json"


def spatial_rgpt(folder: pathlib.Path) -> str:
    talk = [{"from": "human", "value": "<image>\nIs <mask> <depth> red?"}, {"from": "gpt", "value": "Region [0] is."}]
    rows = [{"filename": str(i), "conversations": talk, "bbox": [[2, 2, 9, 9]]} for i in range(ROWS)]
    (folder / "data.json").write_text(json.dumps(rows))
    return "data.json"


@pytest.mark.parametrize("make", [llava, spatial_rgpt])
def test_own_conversations(make: Callable[[pathlib.Path], str], tmp_path: pathlib.Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(ROWS):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(number))
    run = tmp_path / "run"
    settings = {
        "data.records": tmp_path / "records",
        "data.conversations.format": make.__name__,
        "data.conversations.path": tmp_path / make(tmp_path),
        "data.conversations.images": tmp_path / "images",
        "data.conversations.val_share": 0.4,
        "data.conversations.draw_boxes": True,
        "data.clip.images": 2,
        "data.clip.lengths": "(128,)",
        "global_batch": 8,
        "steps": 3,
        "log.interval": 1,
        "evaluation.interval": 2,
        "optimizer.warmup_steps": 0,
        "model.num_layers": 1,
        "model.vision_layers": 1,
        "sample.questions": 2,
    }
    given = [f"--config.{key}={value}" for key, value in settings.items()]
    train.main(["--config=configs/theworld.py", f"--workdir={run}", *given])
    # At the interval, and at the end.
    measured = {row["step"]: row for row in metrics.read(run) if "val_loss" in row}
    assert list(measured) == [2, 3]
    sample = json.loads((run / "samples" / "answers.json").read_text())
    assert set(sample[0]) == {"question", "answer", "truth"}
    assert (run / "samples" / "answers.html").read_text().count("<section>") == 2

    evaluate.main(["--checkpoint", str(run), "--limit", "3"])
    numbers = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert numbers["benchmark"] == "held-out conversations"
    assert set(numbers["held_out"]) == {"with world", "without"}
    assert numbers["held_out"]["with world"]["loss"] != numbers["held_out"]["without"]["loss"]
    assert numbers["held_out"]["with world"]["tokens"] > 0
    assert len(numbers["answers"]["with world"]) == 3
    page = (run / "evaluation" / "evaluation.html").read_text()
    assert page.count("<section>") == 3
    assert "held-out token accuracy, without" in page
