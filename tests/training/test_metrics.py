"""The progress log: what it prints, what it keeps over a resume, what it says of skipped steps."""

import io
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from jworld import errors
from jworld.training import metrics


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
    arguments: dict[str, Any] = {"start_step": 0, "steps": 6, "log_every": 2, "batch_size": 8} | options
    return metrics.ProgressLog(workdir, console=console, **arguments), text


def test_plain_lines_and_json_lines(tmp_path: pathlib.Path) -> None:
    log, text = make_log(tmp_path, steps=5)
    with log:
        for step in range(1, 6):
            log.step(step, values(step), wait_seconds=1e-9)
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("compiled in ")
    assert [line.split(" | ")[0] for line in lines[1:]] == ["step 2/5", "step 4/5", "step 5/5"]
    for word in ("loss 1.5", "grad norm 0.5", "s/step", "examples/s", "data wait 0.0%", "ETA 0:00:00"):
        assert word in lines[1]
    rows = metrics.read(tmp_path)
    assert [(row["step"], row["loss"], row["loss_mean"]) for row in rows] == [(2, 2, 1.5), (4, 4, 3.5), (5, 5, 5)]
    assert rows[0]["learning_rate"] == pytest.approx(1e-3)
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_terminal_gets_one_live_line(tmp_path: pathlib.Path) -> None:
    log, text = make_log(tmp_path, terminal=True)
    with log:
        for step in range(1, 7):
            log.step(step, values(step))
    assert "step 6/6" in text.getvalue()
    assert "\x1b[2K" in text.getvalue()


def test_resume_drops_what_will_be_done_again(tmp_path: pathlib.Path) -> None:
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
    assert "step 2 skipped: gradient norm nan, batch indices [3, 4]" in text.getvalue()
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
    honest = metrics.jax.device_get
    monkeypatch.setattr(metrics.jax, "device_get", lambda tree: (fetched.append(len(tree)), honest(tree))[1])
    with make_log(tmp_path, steps=10, log_every=5)[0] as log:
        for step in range(1, 11):
            log.step(step, values(step))
    assert fetched == [5, 5]
