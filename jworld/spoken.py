"""Answers in text: a model that makes tokens is asked, and what it says is shown as it comes."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import rich.console

from jworld.systems import runs
from jworld.utils import compilation, errors, files


def answer(
    run: runs.Run, images: list[np.ndarray], prompt: str, out: pathlib.Path | None, console: rich.console.Console
) -> dict[str, Any]:
    """Ask, print the answer token by token, and write it to `out`; -> question, answer, tokens and timings.

    Raises:
      UserError: there is nothing to ask, the question cannot be asked, or `out` is no name for it.
    """
    if not prompt:
        raise errors.UserError("--prompt is missing: ask something, such as --prompt 'What is to the left?'")
    if out is not None and out.suffix != ".json":
        raise errors.UserError(f"--out is {out}, expected a name that ends in .json: the model answers in text")
    session, decode = run.system.session(run.model, run.encoders), run.encoders.tokenizer.decode
    tokens: list[int] = []
    moments = []
    with compilation.CompileTimes() as compiling, jax.set_mesh(run.mesh):
        began = time.time()
        session.reset(images, prompt)
        ready = time.time()
        while (token := session.step()) is not None:
            _show(tokens, token, decode, console)
            moments.append(time.time())
    console.print()
    # The first token is there with the prompt; compiling the program of the others is told apart.
    spent = moments[-1] - ready - compiling.seconds(ready, moments[-1]) if moments else 0.0
    facts = {
        "prompt": prompt,
        "answer": decode(tokens),
        "tokens": tokens,
        "timings": {
            "compile_seconds": compiling.seconds(began, moments[-1] if moments else ready),
            "start_seconds": ready - began - compiling.seconds(began, ready),
            "tokens_per_second": len(tokens) / spent if spent > 0 else 0.0,
        },
    }
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(out, facts)
        except OSError as error:
            raise errors.UserError(f"--out {out} could not be written ({error}): give another name") from error
        console.print(f"wrote {out}")
    return facts


def _show(tokens: list[int], token: int, decode: Callable[[list[int]], str], console: rich.console.Console) -> None:
    """Print what the token adds to the text; a letter may need more than one."""
    before = decode(tokens)
    tokens.append(token)
    after = decode(tokens)
    if after.startswith(before) and not after.endswith("\N{REPLACEMENT CHARACTER}"):
        console.print(after[len(before) :], end="", markup=False)
