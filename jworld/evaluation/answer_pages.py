"""Pages of answers next to their references and images: one HTML file that needs nothing else."""

import base64
import dataclasses
import html
import io
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
import rich.markup
import rich.table

from jworld.utils import files

#: Longest side of an image on a page, in pixels.
_SIDE = 448
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }
section { display: flex; gap: 1.2rem; padding: 1rem 0; border-top: 1px solid #ddd; align-items: flex-start }
figure { margin: 0; flex: 0 0 20rem } img { max-width: 100%; display: block; margin-bottom: .4rem }
p, td { white-space: pre-wrap; margin: 0 0 .5rem; vertical-align: top }
td { padding: .1rem .8rem .1rem 0 } td:first-child { color: #777; white-space: nowrap }
.right { color: #197a31 } .wrong { color: #b3261e }
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A question with its answers.

    Attributes:
      question: text of the prompt.
      answers: way of answering, such as "with world" -> answer.
      truth: the reference, or None without one.
      images: uint8 [H, W, 3] each.
      right: way of answering -> whether its answer counts as right; empty without a score.
    """

    question: str
    answers: Mapping[str, str]
    truth: str | None = None
    images: Sequence[np.ndarray] = ()
    right: Mapping[str, bool] = dataclasses.field(default_factory=dict)


def write(path: pathlib.Path, title: str, entries: Sequence[Entry], facts: Sequence[tuple[str, str]] = ()) -> None:
    """Write a page; `facts` are (name, value) pairs above the entries."""
    rows = "".join(_row(name, value) for name, value in facts)
    table = f"<table>{rows}</table>" if rows else ""
    body = "\n".join(map(_section, entries))
    text = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{html.escape(title)}</h1>\n{table}\n{body}\n</html>\n"
    )
    with files.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def table(entries: Sequence[Entry], *, limit: int) -> rich.table.Table:
    """Return a table of the first `limit` entries: question, reference, and the answer of each way."""
    ways = list(entries[0].answers)
    drawn = rich.table.Table("question", "reference", *ways, show_lines=True)
    for entry in entries[:limit]:
        cells = (entry.question, entry.truth or "", *(entry.answers[way] for way in ways))
        drawn.add_row(*(rich.markup.escape(cell) for cell in cells))
    return drawn


def _section(entry: Entry) -> str:
    pictures = "".join(f'<img alt="" src="{_data_url(image)}">' for image in entry.images)
    rows = "" if entry.truth is None else _row("reference", entry.truth)
    for name, answer in entry.answers.items():
        kind = {True: "right", False: "wrong", None: ""}[entry.right.get(name)]
        rows += _row(name, answer, kind)
    figure = f"<figure>{pictures}</figure>" if pictures else ""
    return f"<section>{figure}<div><p>{html.escape(entry.question)}</p><table>{rows}</table></div></section>"


def _row(name: str, value: str, kind: str = "") -> str:
    return f'<tr><td>{html.escape(name)}</td><td class="{kind}">{html.escape(value)}</td></tr>'


def _data_url(image: np.ndarray) -> str:
    small = PIL.Image.fromarray(image)
    small.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    small.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
