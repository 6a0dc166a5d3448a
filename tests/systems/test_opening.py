"""Generation opens a session and compiles its programs while the weights are read."""

import inspect
import re
from typing import Any

import jax
import pytest
import video_runs
from jax._src import compiler

from jworld import generate
from jworld.systems import generation

#: Programs of the networks, by the name of a run in `video_runs`.
PROGRAMS = {
    "worldplay": {"start_cache", "denoise_chunk", "cache_context"},
    "cosmos": {"_steps"},
    "clip": {"guided_velocity"},
    "stream": {"_one_pass"},
}


#: The same for large models, whose denoising steps are calls of their own.
WATCHED = PROGRAMS | {"stream": {"guided_velocity"}}


@pytest.mark.parametrize(
    ("name", "watched"),
    [
        pytest.param(name, watched, marks=[] if (name, watched) == ("cosmos", True) else pytest.mark.slow)
        for watched in (False, True)
        for name in PROGRAMS
    ],
)
def test_programs_are_compiled_once_with_the_shapes_of_the_rollout(
    name: str,
    watched: bool,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Shapes, dtypes and shardings of the thread are those of the rollout, or it would compile again.

    JAX stores no program with a callback in its compilation cache, so every launch would compile it.
    """
    callbacks: list[int] = []
    compiled = compiler.compile_or_get_cached

    def counting(*arguments: Any, **options: Any) -> Any:
        callbacks.append(len(inspect.signature(compiled).bind(*arguments, **options).arguments["host_callbacks"]))
        return compiled(*arguments, **options)

    monkeypatch.setattr(compiler, "compile_or_get_cached", counting)
    folder = tmp_path_factory.getbasetemp() / "video_runs"
    arguments = video_runs.arguments(name, folder, folder / f"opening-{name}.mp4")
    if watched:
        monkeypatch.setattr(generation, "WATCHED_PARAMETERS", 1)
    # Not the context manager, which has no effect in other threads.
    jax.config.update("jax_log_compiles", True)
    try:
        generate.main(arguments)
    finally:
        jax.config.update("jax_log_compiles", False)
    expected = (WATCHED if watched else PROGRAMS)[name]
    found = [match[1] for text in caplog.messages if (match := re.match(r"Compiling jit\((\w+)\)", text))]
    assert sorted(x for x in found if x in expected) == sorted(expected)
    assert "first chunk after" in capsys.readouterr().out
    assert callbacks
    assert not any(callbacks)
