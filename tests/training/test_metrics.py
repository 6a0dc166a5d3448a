"""The progress log: its lines, its rows after a resume, its reports of skipped steps."""

import io
import json
import pathlib
import subprocess
import sys
import time
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import rich.console

from jworld.training import goodput, metrics, rates, writers
from jworld.utils import errors


def values(loss: float, *, skipped: int = 0, in_row: int = 0, norm: float = 0.5) -> dict[str, Any]:
    return {
        "loss": jnp.float32(loss),
        "grad_norm": jnp.float32(norm),
        "learning_rate": jnp.float32(1e-3),
        "skipped": jnp.int32(skipped),
        "skipped_in_row": jnp.int32(in_row),
    }


def make_log(
    workdir: pathlib.Path, *, terminal: bool = False, **options: Any
) -> tuple[metrics.ProgressLog, io.StringIO]:
    text = io.StringIO()
    console = rich.console.Console(file=text, width=200, force_terminal=terminal)
    arguments: dict[str, Any] = {
        "start_step": 0,
        "steps": 6,
        "log": metrics.LogConfig(interval=2),
        "work": rates.Work(examples=8, tokens=320, flops=1e6, peak_flops=1e9),
    }
    arguments |= options
    return metrics.ProgressLog(workdir, console=console, **arguments), text


def test_plain_lines_and_json_lines(tmp_path: pathlib.Path) -> None:
    log, text = make_log(tmp_path, steps=5)
    with log:
        for step in range(1, 6):
            with log.waiting(step):
                pass
            log.step(step, values(step))
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("first step after ")
    for word in ("start-up", "first batch", "compilation", "step"):
        assert word in lines[0]
    assert [line.split(" | ")[0] for line in lines[1:]] == ["step 2/5", "step 4/5", "step 5/5"]
    for word in ("loss 1.5", "grad norm 0.5", "s/step", "examples/s", "MFU", "data wait", "ETA 0:00:00"):
        assert word in lines[1]
    rows = metrics.read(tmp_path)
    assert [(row["step"], row["loss"], row["loss_mean"]) for row in rows] == [(2, 2, 1.5), (4, 4, 3.5), (5, 5, 5)]
    assert rows[0]["learning_rate"] == pytest.approx(1e-3)
    for row in rows:
        seconds = row["step_seconds"]
        assert row["examples_per_second"] == pytest.approx(8 / seconds)
        assert row["tokens_per_second"] == pytest.approx(320 / seconds)
        assert row["mfu"] == pytest.approx(1e6 / seconds / 1e9)
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_terminal_gets_one_live_line(tmp_path: pathlib.Path) -> None:
    log, text = make_log(tmp_path, terminal=True)
    with log:
        for step in range(1, 7):
            log.step(step, values(step))
    assert "step 6/6" in text.getvalue()
    assert "\x1b[2K" in text.getvalue()


def test_resume_drops_rows_of_repeated_steps(tmp_path: pathlib.Path) -> None:
    with make_log(tmp_path)[0] as log:
        for step in range(1, 7):
            log.step(step, values(step))
    with (tmp_path / metrics.FILE).open("a") as file:
        file.write('{"step": 8, "lo')
    with make_log(tmp_path, start_step=3)[0] as log:
        for step in range(4, 7):
            log.step(step, values(10 * step))
    assert [(row["step"], row["loss"]) for row in metrics.read(tmp_path)] == [(2, 2), (4, 40), (6, 60)]
    with make_log(tmp_path)[0]:
        pass
    assert metrics.read(tmp_path) == []


def test_skipped_steps_are_reported_with_their_batches(tmp_path: pathlib.Path) -> None:
    log, text = make_log(tmp_path)
    with log:
        log.step(1, values(1.0), indices=np.array([1, 2]))
        log.step(2, values(np.nan, skipped=1, in_row=1, norm=np.nan), indices=np.array([3, 4]))
        log.step(3, values(2.0, skipped=1), indices=np.array([5, 6]))
        log.step(4, values(3.0, skipped=1), indices=np.array([7, 8]))
    assert "step 2 skipped: loss nan, gradient norm nan, batch indices [3, 4]" in text.getvalue()
    assert "skipped 1" in text.getvalue()
    first, second = metrics.read(tmp_path)
    assert (first["loss"], first["loss_mean"], first["skipped"]) == (None, 1.0, 1)
    assert second["loss_mean"] == 2.5


def test_too_many_skipped_steps_in_a_row_stop_the_run(tmp_path: pathlib.Path) -> None:
    log, _ = make_log(tmp_path, skip_limit=3)
    for step in range(1, 4):
        log.step(step, values(1.0, skipped=step - 1, in_row=step - 1, norm=np.inf), indices=np.array([step]))
    with pytest.raises(errors.UserError, match=r"3 steps in a row were skipped, the last at step 4 .* \[4\]"):
        log.step(4, values(1.0, skipped=3, in_row=3, norm=np.inf), indices=np.array([4]))
    log.close()
    assert [row["step"] for row in metrics.read(tmp_path)] == [2, 4]


def test_metrics_stay_on_the_device_between_lines(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    original = metrics.jax.device_get
    monkeypatch.setattr(metrics.jax, "device_get", lambda tree: (fetched.append(len(tree)), original(tree))[1])
    with make_log(tmp_path, steps=10, log=metrics.LogConfig(interval=5))[0] as log:
        for step in range(1, 11):
            log.step(step, values(step))
    assert fetched == [5, 5]


def test_a_line_of_only_the_first_step_has_no_speed(tmp_path: pathlib.Path) -> None:
    log, text = make_log(tmp_path, log=metrics.LogConfig(interval=1))
    with log:
        for step in (1, 2):
            log.step(step, values(step))
    first, second = metrics.read(tmp_path)
    assert "step_seconds" not in first
    assert "s/step" not in text.getvalue().splitlines()[1]
    assert second["step_seconds"] > 0


def test_goodput_counts_a_repeated_step_once(tmp_path: pathlib.Path) -> None:
    """The second launch begins after step 3, so the later steps of the first launch are lost."""

    def launch(start: int, steps: int) -> None:
        with make_log(tmp_path, start_step=start, steps=steps)[0] as log:
            for step in range(start + 1, steps + 1):
                with log.waiting(step):
                    pass
                time.sleep(0.01)
                log.step(step, values(step, skipped=int(step == 2), in_row=int(step == 2)))

    launch(0, 6)
    before = json.loads((tmp_path / goodput.FILE).read_text())
    resumed = goodput.productive_seconds(metrics.read(tmp_path), 3)
    assert 0.0099 < resumed < before["productive_seconds"]
    launch(3, 8)
    after = json.loads((tmp_path / goodput.FILE).read_text())
    assert (before["launches"], after["launches"], after["step"]) == (1, 2, 8)
    assert after["first_launch"] == before["first_launch"]
    assert after["productive_seconds"] >= resumed + 4 * 0.01
    assert after["goodput"] == pytest.approx(after["productive_seconds"] / after["elapsed_seconds"])
    rows = [row["productive_seconds"] for row in metrics.read(tmp_path)]
    assert rows == sorted(rows)
    assert rows[-1] == after["productive_seconds"]


def test_productive_seconds_between_two_lines() -> None:
    rows = [{"step": 4, "productive_seconds": 2.0}, {"step": 8, "productive_seconds": 6.0}, {"step": 9}]
    found = [goodput.productive_seconds(rows, step) for step in (0, 2, 4, 5, 8, 20)]
    assert found == [0, 1, 2, 3, 6, 6]
    assert goodput.productive_seconds([], 5) == 0


def test_weights_and_biases_get_every_line(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    run = types.SimpleNamespace(
        define_metric=lambda *names, **options: calls.append((names, options)),
        log=lambda row: calls.append(row),
        finish=lambda: calls.append("finish"),
    )
    options: list[dict[str, Any]] = []
    monkeypatch.setitem(
        sys.modules, "wandb", types.SimpleNamespace(init=lambda **arguments: (options.append(arguments), run)[1])
    )
    settings = metrics.LogConfig(interval=2, wandb="offline")
    for start in (0, 2):
        with make_log(tmp_path, log=settings, start_step=start, steps=4, config={"seed": 1})[0] as log:
            for step in range(start + 1, 5):
                log.step(step, values(step if step < 4 else np.nan))
    assert calls[0] == (("*",), {"step_metric": "step"})
    assert [(row["step"], row.get("loss")) for row in calls if isinstance(row, dict)] == [(2, 2), (4, None), (4, None)]
    assert calls[-1] == "finish"
    assert (options[0]["mode"], options[0]["config"], options[0]["name"]) == ("offline", {"seed": 1}, tmp_path.name)
    assert options[0]["id"] == options[1]["id"]


def test_samples_in_wandb(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    run = types.SimpleNamespace(define_metric=lambda *_, **__: None, log=calls.append, finish=lambda: None)
    package = types.SimpleNamespace(
        init=lambda **_: run,
        Video=lambda data, **options: ("video", data.getvalue()[:6], options),
        Html=lambda text: ("html", text),
    )
    monkeypatch.setitem(sys.modules, "wandb", package)
    with make_log(tmp_path, log=metrics.LogConfig(wandb="offline"))[0] as log:
        log.media(3, writers.Media(name="rollout", frames=np.zeros((2, 8, 8, 3), np.uint8), fps=8))
        log.media(3, writers.Media(name="answers", text="1 < 2?"))
    assert calls == [
        {"step": 3, "samples/rollout": ("video", b"GIF89a", {"format": "gif"})},
        {"step": 3, "samples/answers": ("html", "<pre>1 &lt; 2?</pre>")},
    ]


def test_a_missing_wandb_is_reported(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(errors.UserError, match=r"config\.log\.wandb is 'online' but the package wandb is missing: pip"):
        make_log(tmp_path, log=metrics.LogConfig(wandb="online"))


def test_a_failing_writer_of_samples_is_not_hidden(tmp_path: pathlib.Path) -> None:
    log, _ = make_log(tmp_path)
    with log, pytest.raises(ZeroDivisionError):
        log.media(1, writers.Media(name="rollout", frames=np.zeros((2, 8, 8, 3), np.uint8), fps=0))


def test_videos_of_event_files_are_bounded(tmp_path: pathlib.Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (300, 30, 1100, 3), dtype=np.uint8)
    animation, size = writers.gif(frames, 24)
    with PIL.Image.open(io.BytesIO(animation)) as image:
        assert image.size == size == (512, 14)
        assert image.n_frames == 100
        assert image.info["duration"] == 120  # every third frame of 24 per second, in hundredths of a second


def test_measurements_and_excluded_time(tmp_path: pathlib.Path) -> None:
    log, text = make_log(tmp_path, steps=4, log=metrics.LogConfig(interval=4))
    with log:
        for step in range(1, 5):
            with log.waiting(step):
                pass
            log.step(step, values(step))
            if step == 2:
                with log.excluded():
                    time.sleep(0.5)
                    log.extra(step, {"val_loss": 0.25, "val_loss_t0.125": 0.5, "val_accuracy": float("nan")})
    extra, row = metrics.read(tmp_path)
    assert extra == {"step": 2, "val_loss": 0.25, "val_loss_t0.125": 0.5, "val_accuracy": None}
    assert "step 2/4 | val_loss 0.25 | val_accuracy nan" in text.getvalue().splitlines()
    assert row["step_seconds"] < 0.1


def test_no_command_imports_torch_at_its_start() -> None:
    program = "import sys, jworld.train, jworld.generate, jworld.evaluate, jworld.plan, jworld.doctor\n"
    program += "print([name for name in ('torch', 'tensorboardX') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
