"""Reports of single denoising steps: for models of published size, and without a trace in small ones."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
import rich.progress
import video_runs

from jworld import generate
from jworld.data.recording import episodes
from jworld.diffusion import adams_bashforth, step_reports
from jworld.systems import generation, video_files

#: Denoising steps of a chunk with `--steps 4`: a stream moves each of its four groups by a step per window.
STEPS = {"worldplay": 4, "cosmos": 4, "clip": 4, "stream": 1}


@pytest.mark.parametrize("name", list(video_runs.RUNS))
def test_every_step_is_a_line_for_a_large_model(
    name: str,
    tmp_path: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path_factory.getbasetemp() / "video_runs"
    steps = STEPS[name]
    generate.main(video_runs.arguments(name, folder, tmp_path / "quiet.mp4", "--steps", "4"))
    assert ", step " not in capsys.readouterr().out
    monkeypatch.setattr(generation, "WATCHED_PARAMETERS", 1)
    generate.main(video_runs.arguments(name, folder, tmp_path / "loud.mp4", "--steps", "4"))
    lines = [line for line in capsys.readouterr().out.splitlines() if ", step " in line]
    assert [line.partition(", step ")[2].split(",")[0] for line in lines] == [
        f"{i + 1} of {steps}" for i in range(steps)
    ]
    assert all(line.startswith("chunk 1 of 1, step ") and line.endswith(" s") for line in lines)
    quiet, loud = (episodes.read_video(tmp_path / f"{kind}.mp4") for kind in ("quiet", "loud"))
    np.testing.assert_allclose(quiet.astype(int), loud.astype(int), atol=1)


def test_a_terminal_shows_the_step_in_the_bar() -> None:
    console = rich.console.Console(force_terminal=True, record=True, width=120)
    with rich.progress.Progress(console=console) as progress:
        bar = video_files.ProgressBar(progress, chunks=3)
        bar.advance()
        bar.step(2, 5)
        (task,) = progress.tasks
        assert task.description == "chunk 2 of 3, step 2 of 5"
        assert 1 < task.completed < 2
        bar.advance()
        assert task.completed == 2
    assert "chunk 2 of 3" in console.export_text()


def test_reports_come_in_order_after_their_results() -> None:
    """Steps in calls of their own give the numbers of one call, to which no one listens."""
    sigmas, noise = adams_bashforth.noise_levels(3), jnp.linspace(-1, 1, 8).reshape(1, 2, 2, 2, 1)
    seen: list[tuple[int, int]] = []
    programs: list[jax.Array] = []

    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return jnp.tanh(x) / (1 + sigma[0])

    @jax.jit
    def call(state: adams_bashforth.State, steps: adams_bashforth.Steps) -> adams_bashforth.State:
        programs.append(steps.levels)
        return adams_bashforth.run(denoise, state, steps)

    state, steps = adams_bashforth.start(noise, sigmas), adams_bashforth.all_steps(sigmas)
    whole = step_reports.run(call, state, steps, None).x
    parts = step_reports.run(call, state, steps, lambda done, all_steps: seen.append((done, all_steps))).x
    assert seen == [(i + 1, 4) for i in range(4)]
    # All steps share a program.
    assert [len(levels) for levels in programs] == [4, 1]
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    np.testing.assert_allclose(adams_bashforth.sample(denoise, noise, sigmas), whole, rtol=1e-6)
