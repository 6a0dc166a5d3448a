"""Generation opens a session and compiles its programs while the weights are read."""

import re

import jax
import pytest
import video_runs

from jworld import generate

#: Programs of the networks, by the name of a run in `video_runs`.
PROGRAMS = {
    "worldplay": {"start_cache", "denoise_chunk", "cache_context"},
    "cosmos": {"_window"},
    "clip": {"guided_velocity"},
    "stream": {"_one_pass"},
}


@pytest.mark.parametrize(
    "name", ["cosmos", *(pytest.param(x, marks=pytest.mark.slow) for x in PROGRAMS if x != "cosmos")]
)
def test_programs_are_compiled_once_with_the_shapes_of_the_rollout(
    name: str,
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Shapes, dtypes and shardings of the thread are those of the rollout, or it would compile again."""
    folder = tmp_path_factory.getbasetemp() / "video_runs"
    arguments = video_runs.arguments(name, folder, folder / f"opening-{name}.mp4")
    # Not the context manager, which has no effect in other threads.
    jax.config.update("jax_log_compiles", True)
    try:
        generate.main(arguments)
    finally:
        jax.config.update("jax_log_compiles", False)
    found = [match[1] for text in caplog.messages if (match := re.match(r"Compiling jit\((\w+)\)", text))]
    assert sorted(x for x in found if x in PROGRAMS[name]) == sorted(PROGRAMS[name])
    assert "first chunk after" in capsys.readouterr().out
