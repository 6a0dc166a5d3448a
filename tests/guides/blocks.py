"""Commands of a Markdown page in their order: fenced blocks, and whole commands in the cells of tables.

A fenced block without a language, or of `bash`, is a shell program; `python` is a Python program; `text` is neither.
A comment `<!-- not run: REASON -->` before a block, or in the row of a table before its command, marks what needs
hardware, an account or a network.
"""

import dataclasses
import functools
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent.parent
#: Language of a fenced block -> how it runs.
KINDS = {"": "shell", "bash": "shell", "python": "python", "text": "text"}
_MARK = re.compile(r"<!-- not run: (.*?) -->")
_FENCE = re.compile(r"^( *)(```+)(.*)$")
#: A command of this project with at least one argument.
COMMAND = re.compile(
    r"(python -m (jworld|conversion)\b\S*|jworld [a-z]+|python (scripts|benchmarks)/\S+|scripts/\S+\.sh) \S"
)
_SPAN = re.compile(r"<!-- not run: .*? -->|`((?:[^`\\]|\\.)+)`")


@dataclasses.dataclass(frozen=True)
class Block:
    """A command block.

    Attributes:
      page: path from the root of the repository.
      line: number of its first line, or of its row in a table.
      kind: "shell", "python" or "text".
      text: what is run, with `\\|` of a table's cell as `|`.
      reason: why it is not run, None for a block that is run.
    """

    page: str
    line: int
    kind: str
    text: str
    reason: str | None = None

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


class MarkError(ValueError):
    """A mark that stands before no command, or a fenced block of unknown language."""


def pages() -> list[str]:
    """Return README.md and the pages of docs/, as paths from the root."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [str(path.relative_to(ROOT)) for path in found]


@functools.cache
def of_page(page: str) -> tuple[Block, ...]:
    """Return all blocks of a page, those that are not run included."""
    return tuple(parse(page, (ROOT / page).read_text()))


def parse(page: str, text: str) -> list[Block]:
    found: list[Block] = []
    lines = text.splitlines()
    mark: tuple[int, str] | None = None
    number = 0
    while number < len(lines):
        line = lines[number]
        if fence := _FENCE.match(line):
            end = _end(page, lines, number, fence[1] + fence[2])
            block = _fenced(page, lines, number, end, fence)
            found.append(dataclasses.replace(block, reason=mark[1] if mark else None))
            number, mark = end, None
        elif line.lstrip().startswith("|"):
            found += _cells(page, number + 1, line)
        elif line.strip():
            if mark:
                raise MarkError(f"{page}:{mark[0]}: the mark stands before no block")
            if marked := _MARK.fullmatch(line.strip()):
                mark = number + 1, marked[1]
        number += 1
    if mark:
        raise MarkError(f"{page}:{mark[0]}: the mark stands before no block")
    return found


def _end(page: str, lines: list[str], start: int, fence: str) -> int:
    for number in range(start + 1, len(lines)):
        if lines[number].rstrip() == fence:
            return number
    raise MarkError(f"{page}:{start + 1}: the block has no end")


def _fenced(page: str, lines: list[str], start: int, end: int, fence: re.Match[str]) -> Block:
    language = fence[3].strip()
    if language not in KINDS:
        raise MarkError(f"{page}:{start + 1}: the block is {language!r}, expected one of {', '.join(KINDS)}")
    text = "\n".join(line.removeprefix(fence[1]) for line in lines[start + 1 : end]) + "\n"
    if KINDS[language] == "text" and any(COMMAND.match(line) for line in text.splitlines()):
        raise MarkError(f"{page}:{start + 1}: the block is text and holds a command")
    return Block(page, start + 1, KINDS[language], text)


def _cells(page: str, number: int, row: str) -> list[Block]:
    """Return the commands in a table's row; a mark belongs to the command that follows it."""
    found, reason = [], None
    for span in _SPAN.finditer(row):
        if mark := _MARK.fullmatch(span[0]):
            reason = mark[1]
        elif COMMAND.match(span[1]):
            found.append(Block(page, number, "shell", span[1].replace("\\|", "|") + "\n", reason))
            reason = None
    if reason is not None:
        raise MarkError(f"{page}:{number}: the mark stands before no command")
    return found
