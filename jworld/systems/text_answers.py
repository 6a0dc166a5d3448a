"""Answers in text of an open run: one question, a conversation in the terminal, or a file of questions."""

import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.console

from jworld.data import media
from jworld.data.conversations import chat
from jworld.systems import asking, generation, question_files, runs
from jworld.systems.sessions import TextSession
from jworld.utils import compilation, errors, files, outputs

#: What the terminal offers during a conversation.
CHAT_HELP = "/image FILE adds an image to the next question, /reset starts again, /quit or end of input ends"


def asked(turns: Sequence[chat.Turn], prompt: str, images: int) -> list[chat.Turn]:
    """Return the turns of a conversation with the next question and its number of images.

    Images precede the question, unless it has a `<image>` for each.
    """
    places = "" if chat.PLACE in prompt else chat.PLACE * images
    return [*turns, chat.Turn("user", places + prompt)]


def opened(system: str) -> list[chat.Turn]:
    """Return the turns before the first question: the system text, if there is one."""
    return [chat.Turn("system", system)] if system else []


class Chat:
    """A conversation with a model, in which every question may have images of its own.

    Attributes:
      turns: all turns so far.
      images: all images so far.
    """

    def __init__(
        self, run: runs.Run, *, sampling: asking.Sampling, system: str = "", session: TextSession | None = None
    ) -> None:
        """Begin a conversation with the `session`; None opens one."""
        self._run, self._sampling, self._system = run, sampling, system
        self.session = session or generation.text_system(run.system, run.config).session(run.model, run.encoders)
        self.reset()

    def reset(self) -> None:
        """Forget all turns; the system text stays."""
        self.turns = opened(self._system)
        self.images: list[np.ndarray] = []

    def ask(
        self, prompt: str, images: Sequence[np.ndarray] = (), *, take: Callable[[int], object] = lambda token: None
    ) -> tuple[list[int], dict[str, float]]:
        """Answer the next question, see `asked`; `take` receives every token.

        Returns:
          The tokens, and timings in seconds.

        Raises:
          UserError: the question is invalid; the conversation is unchanged.
        """
        turns = asked(self.turns, prompt, len(images))
        shown = [*self.images, *images]
        tokens, timings = generation.answer(
            self.session, shown, turns, sampling=self._sampling, mesh=self._run.mesh, take=take
        )
        self.turns, self.images = [*turns, chat.Turn("model", self.session.decode(tokens))], shown
        return tokens, timings

    def print_answer(
        self, prompt: str, images: Sequence[np.ndarray], console: rich.console.Console
    ) -> tuple[list[int], dict[str, float]]:
        """Print the answer to the next question as its tokens are decoded; see `ask`."""
        text = asking.TextStream(self.session.decode, self._sampling)
        found = self.ask(prompt, images, take=lambda token: console.print(text.add(token), end="", markup=False))
        console.print(text.end(), markup=False)
        return found


def one(
    run: runs.Run,
    prompt: str,
    images: Sequence[np.ndarray],
    *,
    sampling: asking.Sampling,
    system: str,
    console: rich.console.Console,
    session: TextSession | None = None,
) -> dict[str, Any]:
    """Answer a question token by token, with the `session`; None opens one.

    Returns:
      prompt, answer, tokens and timings, as JSON.
    """
    conversation = Chat(run, sampling=sampling, system=system, session=session)
    tokens, timings = conversation.print_answer(prompt, images, console)
    answer = conversation.turns[-1].text
    return {"prompt": prompt, "answer": answer, "tokens": tokens, "timings": timings}


def converse(
    run: runs.Run,
    prompt: str,
    images: Sequence[np.ndarray],
    *,
    sampling: asking.Sampling,
    system: str,
    console: rich.console.Console,
    session: TextSession | None = None,
) -> dict[str, Any]:
    """Answer questions from the standard input, after `prompt` if there is one, until its end.

    Returns:
      system text, messages and timings, as JSON.
    """
    conversation = Chat(run, sampling=sampling, system=system, session=session)
    console.print(CHAT_HELP, style="dim")
    pending = list(images)
    spent: list[dict[str, float]] = []
    for line in _lines(prompt, console):
        command, _, rest = line.partition(" ")
        try:
            if command == "/image":
                pending.append(media.read_image(pathlib.Path(rest.strip())))
            elif command == "/reset":
                conversation.reset()
                pending = []
            elif command.startswith("/"):
                console.print(f"{command} is unknown: {CHAT_HELP}", markup=False)
            else:
                spent.append(conversation.print_answer(line, pending, console)[1])
                pending = []
        except errors.UserError as error:
            # One wrong line does not end the conversation.
            console.print(f"{error}", markup=False)
    roles = {"model": "assistant"}
    messages = [{"role": roles.get(turn.role, turn.role), "content": turn.text} for turn in conversation.turns]
    return {"messages": messages, "timings": spent}


def _lines(prompt: str, console: rich.console.Console) -> Iterator[str]:
    """Yield the lines of the user."""
    if prompt:
        yield prompt
    while True:
        if sys.stdin.isatty():
            try:
                line = console.input("> ")
            except EOFError:
                return
        elif not (line := sys.stdin.readline()):
            return
        if line.strip() == "/quit":
            return
        if line.strip():
            yield line.strip()


def many(
    run: runs.Run,
    entries: Sequence[question_files.Entry],
    out: pathlib.Path,
    *,
    batch: int,
    console: rich.console.Console,
) -> dict[str, float]:
    """Answer a file of questions, and write `out`: a JSON line per question, in their order, with "answer".

    Returns:
      Number of answers, of their tokens and of compiled programs, and times in seconds.

    Raises:
      UserError: a question is invalid, or an image cannot be read.

    If it fails or is interrupted, the answers so far are in `outputs.partial` of `out`.
    """
    system = generation.text_system(run.system, run.config)
    answers = system.answers(run.model, run.encoders)
    found: dict[int, asking.Answer] = {}
    with compilation.CompileTimes() as compiling, jax.set_mesh(run.mesh):
        began = time.time()
        try:
            for number, answer in answers.many([entry.question for entry in entries], batch=batch):
                found[number] = answer
                if len(found) % batch == 0 or len(found) == len(entries):
                    console.print(f"{len(found)} of {len(entries)} questions are answered")
        except BaseException as error:
            if found:
                part = outputs.partial(out)
                _write(part, entries, found)
                console.print(f"wrote {part}: the {len(found)} answers so far")
            if isinstance(error, ValueError):
                raise errors.UserError(f"--batch: {error}: correct the file") from error
            raise
        spent = time.time() - began
        compiled = compiling.seconds(began, began + spent)
    _write(out, entries, found)
    console.print(f"wrote {out}")
    tokens = sum(answer.tokens for answer in found.values())
    seconds = max(spent - compiled, 1e-9)
    return {"answers": len(entries), "tokens_per_second": tokens / seconds, "compile_seconds": compiled}


def _write(out: pathlib.Path, entries: Sequence[question_files.Entry], found: Mapping[int, asking.Answer]) -> None:
    """Write the questions that are answered with their answers."""
    rows = [{**entry.values, "answer": found[number].text} for number, entry in enumerate(entries) if number in found]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(out) as temporary:
            temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    except OSError as error:
        raise errors.UserError(f"--out {out} could not be written ({error}): give another name") from error
