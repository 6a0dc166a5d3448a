"""Answers in text of an open run: one question, a conversation in the terminal, or a file of questions."""

import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import rich.console

from jworld.data import media
from jworld.data.conversations import chat
from jworld.systems import asking, generation, question_files, runs
from jworld.utils import compilation, errors, files

#: What the terminal offers during a conversation.
CHAT_HELP = "/image FILE adds an image to the next question, /reset starts again, /quit or end of input ends"


class Chat:
    """A conversation with a model, in which every question may have images of its own.

    Attributes:
      turns: all turns so far.
      images: all images so far.
    """

    def __init__(self, run: runs.Run, *, sampling: asking.Sampling, system: str = "") -> None:
        self._run, self._sampling, self._system = run, sampling, system
        self.session = generation.text_system(run.system, run.config).session(run.model, run.encoders)
        self.reset()

    def reset(self) -> None:
        """Forget all turns; the system text stays."""
        self.turns = [chat.Turn("system", self._system)] if self._system else []
        self.images: list[np.ndarray] = []

    def ask(
        self, prompt: str, images: Sequence[np.ndarray] = (), *, take: Callable[[int], object] = lambda token: None
    ) -> tuple[list[int], dict[str, float]]:
        """Answer the next question; `take` receives every token.

        Images precede the question, unless it has a `<image>` for each.

        Returns:
          The tokens, and timings in seconds.

        Raises:
          UserError: the question is invalid; the conversation is unchanged.
        """
        places = "" if chat.PLACE in prompt else chat.PLACE * len(images)
        turns = [*self.turns, chat.Turn("user", places + prompt)]
        shown = [*self.images, *images]
        tokens, timings = generation.answer(
            self.session, shown, turns, sampling=self._sampling, mesh=self._run.mesh, take=take
        )
        self.turns, self.images = [*turns, chat.Turn("model", self.session.decode(tokens))], shown
        return tokens, timings


class TokenPrinter:
    """A printer of the text that each token adds; a letter, or a stop text, may need more than one token."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], sampling: asking.Sampling, console: rich.console.Console
    ):
        self._decode, self._sampling, self._console = decode, sampling, console
        self._tokens, self._shown = list[int](), ""

    def __call__(self, token: int) -> None:
        self._tokens.append(token)
        text = self._decode(self._tokens)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._show(self._sampling.settled(text))

    def end(self) -> None:
        """Print what was held back, and end the line."""
        self._show(self._decode(self._tokens))
        self._console.print()

    def _show(self, text: str) -> None:
        if text.startswith(self._shown):
            self._console.print(text[len(self._shown) :], end="", markup=False)
            self._shown = text


def one(
    run: runs.Run, prompt: str, images: Sequence[pathlib.Path], *, sampling: asking.Sampling, system: str, console: Any
) -> dict[str, Any]:
    """Answer a question token by token.

    Returns:
      prompt, answer, tokens and timings, as JSON.
    """
    conversation = Chat(run, sampling=sampling, system=system)
    printer = TokenPrinter(conversation.session.decode, sampling, console)
    tokens, timings = conversation.ask(prompt, list(map(media.read_image, images)), take=printer)
    printer.end()
    answer = conversation.turns[-1].text
    return {"prompt": prompt, "answer": answer, "tokens": tokens, "timings": timings}


def converse(
    run: runs.Run,
    prompt: str,
    images: Sequence[pathlib.Path],
    *,
    sampling: asking.Sampling,
    system: str,
    console: rich.console.Console,
) -> dict[str, Any]:
    """Answer questions from the standard input, after `prompt` if there is one, until its end.

    Returns:
      system text, messages and timings, as JSON.
    """
    conversation = Chat(run, sampling=sampling, system=system)
    console.print(CHAT_HELP, style="dim")
    pending = list(images)
    spent: list[dict[str, float]] = []
    for line in _lines(prompt, console):
        command, _, rest = line.partition(" ")
        try:
            if command == "/image":
                media.read_image(pathlib.Path(rest.strip()))
                pending.append(pathlib.Path(rest.strip()))
            elif command == "/reset":
                conversation.reset()
                pending = []
            elif command.startswith("/"):
                console.print(f"{command} is unknown: {CHAT_HELP}", markup=False)
            else:
                printer = TokenPrinter(conversation.session.decode, sampling, console)
                spent.append(conversation.ask(line, list(map(media.read_image, pending)), take=printer)[1])
                printer.end()
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
    run: runs.Run, entries: Sequence[question_files.Entry], out: pathlib.Path, *, batch: int, console: Any
) -> dict[str, float]:
    """Answer a file of questions, and write `out`: a JSON line per question, in their order, with "answer".

    Returns:
      Number of answers, of their tokens and of compiled programs, and times in seconds.

    Raises:
      UserError: a question is invalid, or an image cannot be read; nothing is written.
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
        except ValueError as error:
            raise errors.UserError(f"--batch: {error}: correct the file") from error
        spent = time.time() - began
        compiled = compiling.seconds(began, began + spent)
    rows = [{**entry.values, "answer": found[number].text} for number, entry in enumerate(entries)]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(out) as temporary:
            temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    except OSError as error:
        raise errors.UserError(f"--out {out} could not be written ({error}): give another name") from error
    console.print(f"wrote {out}")
    tokens = sum(answer.tokens for answer in found.values())
    seconds = max(spent - compiled, 1e-9)
    return {"answers": len(rows), "tokens_per_second": tokens / seconds, "compile_seconds": compiled}
