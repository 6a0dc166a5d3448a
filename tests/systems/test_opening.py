"""Generation opens a session and compiles its programs while the weights are read."""

import inspect
import io
import json
import pathlib
import re
import sys
from typing import Any

import jax
import pytest
import tiny_run
import video_runs
from jax._src import compiler

from jworld import generate
from jworld.systems import generation
from jworld.utils import config as run_config

#: Programs of the networks, by the name of a run in `video_runs`.
PROGRAMS = {
    "worldplay": {"start_cache", "denoise_chunk", "cache_context"},
    "cosmos": {"_steps"},
    "clip": {"guided_velocity"},
    "stream": {"_one_pass"},
}


#: The same for large models, whose denoising steps are calls of their own.
WATCHED = PROGRAMS | {"stream": {"guided_velocity"}}


def compiled(arguments: list[str], caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the names of the programs that `generate` compiles."""
    # Another test may have compiled the same programs.
    jax.clear_caches()
    # Not the context manager, which has no effect in other threads.
    jax.config.update("jax_log_compiles", True)
    try:
        generate.main(arguments)
    finally:
        jax.config.update("jax_log_compiles", False)
    return [match[1] for text in caplog.messages if (match := re.match(r"Compiling jit\((\w+)\)", text))]


def count_callbacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of callbacks of every program that JAX compiles."""
    counts: list[int] = []
    original = compiler.compile_or_get_cached

    def counting(*arguments: Any, **options: Any) -> Any:
        counts.append(len(inspect.signature(original).bind(*arguments, **options).arguments["host_callbacks"]))
        return original(*arguments, **options)

    monkeypatch.setattr(compiler, "compile_or_get_cached", counting)
    return counts


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
    callbacks = count_callbacks(monkeypatch)
    folder = tmp_path_factory.getbasetemp() / "video_runs"
    arguments = video_runs.arguments(name, folder, folder / f"opening-{name}.mp4")
    if watched:
        monkeypatch.setattr(generation, "WATCHED_PARAMETERS", 1)
    expected = (WATCHED if watched else PROGRAMS)[name]
    assert sorted(x for x in compiled(arguments, caplog) if x in expected) == sorted(expected)
    assert "first chunk after" in capsys.readouterr().out
    assert callbacks
    assert not any(callbacks)


@pytest.mark.parametrize("flags", [(), pytest.param(("--temperature", "1", "--chat"), marks=pytest.mark.slow)])
def test_programs_of_an_answer_are_compiled_once(
    flags: tuple[str, ...],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """While the weights are read, for the length of the question that is asked then."""
    config = run_config.load_recipe(str(video_runs.ROOT / "configs" / "theworld.py"))
    with config.unlocked():
        config.model.update({"num_layers": 1, "vision_layers": 1})
    arguments = ["--checkpoint", str(tiny_run.write(tmp_path / "run", config)), "--prompt", "What is to the left?"]
    arguments += ["--image", str(video_runs.image(tmp_path)), "--max-tokens", str(2 + len(flags)), *flags]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    programs = ["choose", "prefill", "step"]
    found = compiled([*arguments, "--encoders", str(video_runs.ROOT / "assets" / "tokenizer")], caplog)
    assert sorted(x for x in found if x in programs) == programs
    assert ("first token after" in capsys.readouterr().out) == (not flags)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", ["0", "1"])
def test_programs_of_a_file_of_questions_are_compiled_once(
    temperature: str, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the weights are read: one for each length, with and without images."""
    config = run_config.load_recipe(str(video_runs.ROOT / "configs" / "theworld.py"))
    with config.unlocked():
        config.model.update({"num_layers": 1, "vision_layers": 1})
    image = str(video_runs.image(tmp_path))
    questions = [{"prompt": "What is to the left?", "image": image}, {"prompt": "Why? " * 10}, {"prompt": "Where?"}]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    arguments = ["--checkpoint", str(tiny_run.write(tmp_path / "run", config)), "--max-tokens", "3"]
    arguments += ["--batch", str(tmp_path / "questions.jsonl"), "--batch-size", "2", "--temperature", temperature]
    arguments += ["--encoders", str(video_runs.ROOT / "assets" / "tokenizer"), "--out", str(tmp_path / "out.jsonl")]
    compiled(arguments, caplog)
    messages = [text for text in caplog.messages if text.startswith("Compiling jit(answer)")]
    lengths = [re.findall(r"int32\[2,(\d+)\]", text)[0] for text in messages]
    assert len(lengths) == len(set(lengths)) >= 2
    printed = capsys.readouterr().out
    early, late = (
        re.search(text, printed)
        for text in (r"at the same time (\d+\.\d) s", r"after (\d+\.\d) s of further compiling")
    )
    assert early is not None
    assert late is not None
    assert float(early[1]) > float(late[1])
