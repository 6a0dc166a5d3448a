"""Find phrases that the documentation and the source do not use, and print what to write instead.

    python scripts/check_words.py                    # every tracked *.py and *.md file
    python scripts/check_words.py docs jworld/data   # the files below these paths
    python scripts/check_words.py --summary          # one line per file with its number of findings

In Python files, comments and string literals with a space in them are checked; in Markdown files, everything but code.
Names in backquotes are code in both. Each finding is printed as `file:line: "phrase" -> replacement`. Exit code 1 where
there is one.
"""

import argparse
import ast
import bisect
import collections
import dataclasses
import io
import pathlib
import re
import subprocess
import tokenize
from collections.abc import Iterable, Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUFFIXES = (".md", ".py")
#: Files that list the phrases themselves.
EXEMPT = frozenset({"scripts/check_words.py", "tests/docs/test_words.py"})
#: (file, phrase) -> why the phrase is right there. The phrase is what a finding prints, in lower case.
ALLOWED: dict[tuple[str, str], str] = {
    ("jworld/data/recording/rooms.py", "coloured"): "captions of recorded data, on which released weights were trained",
    ("jworld/models/autoencoders/network.py", "normalisation"): "a key of saved autoencoder files",
    ("tests/models/autoencoders/test_autoencoder_networks.py", "normalisation"): "a key of saved autoencoder files",
    ("scripts/make_tokenizer.py", "behind"): "text that the released tokenizer was trained on",
    ("scripts/make_tokenizer.py", "colour"): "text that the released tokenizer was trained on",
    ("tests/conversion/test_autoencoders_cli.py", "normalisation"): "a key of saved autoencoder files",
}

HEADLESS = "What|How|Which|Where|Whether|When|Why|Who|Of"
_IZE_STEMS = (
    "anonym|categor|central|character|custom|discret|emphas|equal|factor|final|general|initial|local|material|maxim|memor"
    "|minim|normal|optim|organ|orthogonal|orthonormal|parallel|polar|priorit|quant|random|real|recogn|regular|sanit|serial"
    "|special|stabil|standard|summar|synchron|token|util|vector|visual"
)
_OUR_STEMS = "behavi|col|endeav|fav|flav|harb|hon|hum|lab|neighb|rum|vap"
_NOUN_BEFORE = (
    "a|about|all|an|another|each|either|every|few|first|for|from|held-out|in|its|last|longer|many|mirrored|more|new|of|on"
    r"|one|other|own|past|random|real|recorded|rooms'|same|scripted|several|short|single|some|such|the|their|these|this"
    r"|those|three|two|unseen|whole|with|\d+"
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A phrase that is not used.

    Attributes:
        pattern: regular expression; a space matches any white space, line breaks included.
        replacement: what to write instead.
        case: whether capitals matter.
    """

    pattern: str
    replacement: str
    case: bool = False

    def compiled(self) -> re.Pattern[str]:
        """Return the compiled pattern."""
        return re.compile(self.pattern.replace(" ", r"\s+"), re.NOFLAG if self.case else re.IGNORECASE)


RULES = (
    Rule(r"\b(?:told|tells?|telling)\b", "report, record, receive, condition on, distinguish (only people tell)"),
    Rule(r"\bkept keys\b", "KV cache"),
    Rule(r"\bbeside\b", "next to, compared with"),
    Rule(r"\bbehind\b", "after"),
    Rule(r"\banew\b", "again, from scratch"),
    Rule(r"\bfor good\b", "permanently, as valid"),
    Rule(r"\bat birth\b", "at initialization"),
    Rule(r"\b(?:go|goes|went|gone) on\b", "continue, resume"),
    Rule(r"\bwants\b", "needs"),
    Rule(r"(?<!\bthere\s)\b(?:is|are|was) no (?!longer\b|more\b|less\b|fewer\b|[a-z]+er than\b)[a-z]+", "is not a ..."),
    Rule(r"\bof several processes\b", "in multi-process runs"),
    Rule(r"(?<![\w-])Of (?!course\b)[a-z]+", "start the sentence with its subject, not with a genitive", case=True),
    Rule(
        r"(?<!\bvideo\s)(?<!H\.264\s)(?<!ffmpeg\s)\bcodecs?\b(?! of ffmpeg)", "autoencoder (video codec for mp4 files)"
    ),
    Rule(r"\bpictures?\b", "image"),
    Rule(rf"\b(?:{_NOUN_BEFORE}) walks?\b(?! (?:forward|back|out)\b)|\bWalks:", "episode"),
    Rule(rf"\b\w*(?:{_OUR_STEMS})our\w*\b", "American spelling: -or"),
    Rule(rf"\b\w*(?:{_IZE_STEMS})is(?:e|es|ed|er|ers|ing|ation|ations)\b", "American spelling: -iz-"),
    Rule(r"\b(?:re)?cent(?:re|res|red|ring)\b", "American spelling: center"),
    Rule(r"\b(?:milli|centi|kilo)?(?:metre|litre|theatre)s?\b", "American spelling: -er"),
    Rule(r"\b\w*analys(?:e|ed|er|ers|ing)\b", "American spelling: analyze"),
    Rule(
        r"\b(?:cancel|channel|label|level|model|signal|travel|tunnel)l(?:ed|ing|er)\b",
        "American spelling: one l",
    ),
    Rule(r"\b(?:licence|defence|offence|pretence)s?\b", "American spelling: -se"),
    Rule(r"\b(?:grey|greys|greyscale)\b", "American spelling: gray"),
    Rule(r"\b(?:artefact|artefacts)\b", "American spelling: artifact"),
    Rule(r"\b(?:learnt|burnt|spelt|dreamt)\b", "American spelling: learned, burned, spelled"),
    Rule(r"\b(?:whilst|amongst)\b", "while, among"),
    Rule(r"\b(?:catalogue|programme|cheque|judgement|ageing|fulfil|skilful)s?\b", "American spelling"),
)
PATTERNS = tuple((rule.compiled(), rule.replacement) for rule in RULES)


@dataclasses.dataclass(frozen=True, order=True)
class Finding:
    """A phrase in a file: path below the repository, line from 1, the phrase, and what to write instead."""

    path: str
    line: int
    phrase: str
    replacement: str

    def __str__(self) -> str:
        return f'{self.path}:{self.line}: "{self.phrase}" -> {self.replacement}'


class Passage:
    """Text in pieces, of which each starts on a known line."""

    def __init__(self, pieces: Iterable[tuple[int, str]]) -> None:
        self.text = ""
        self._starts: list[int] = []
        self._lines: list[int] = []
        for first, piece in pieces:
            for number, line in enumerate(piece.splitlines(keepends=True)):
                self._starts.append(len(self.text))
                self._lines.append(first + number)
                self.text += line

    def line(self, offset: int) -> int:
        """Return the line of the character at `offset`."""
        return self._lines[bisect.bisect_right(self._starts, offset) - 1]


def blank(pattern: str, text: str) -> str:
    """Replace every match by as many spaces, line breaks kept."""
    return re.sub(pattern, lambda match: re.sub(r"[^\n]", " ", match[0]), text, flags=re.MULTILINE | re.DOTALL)


def markdown_passages(text: str) -> Iterator[Passage]:
    """Yield the text of a Markdown file without code, comments and link targets."""
    for pattern in (r"^ *(```|~~~).*?^ *\1", r"<!--.*?-->", r"``.*?``|`[^`]*`", r"(?<=\])\([^)\s]*\)", r"https?://\S+"):
        text = blank(pattern, text)
    if text:
        yield Passage([(1, text)])


def python_passages(text: str) -> Iterator[Passage]:
    """Yield comments and string literals; neighboring ones are one passage."""
    pieces: list[tuple[int, str]] = []
    kind = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NL, tokenize.NEWLINE) or (token.type == tokenize.OP and token.string in "()"):
            continue
        if pieces and token.type != kind:
            yield from _passages(pieces)
            pieces = []
        kind = token.type
        if kind == tokenize.COMMENT:
            pieces.append((token.start[0], token.string.lstrip("#:!") + "\n"))
        elif kind == tokenize.STRING:
            pieces.append((token.start[0], literal(token.string)))
    yield from _passages(pieces)


def _passages(pieces: list[tuple[int, str]]) -> Iterator[Passage]:
    joined = "".join(piece for _, piece in pieces)
    if " " in joined.strip():
        yield Passage(pieces)


def literal(token: str) -> str:
    """Return the inside of a string literal as it stands in the source, without code and with escapes as spaces."""
    body = re.sub(r"^[A-Za-z]*(\"\"\"|'''|\"|')(.*)\1$", r"\2", token, flags=re.DOTALL)
    for pattern in (r"\\[nrt]", r"``.*?``|`[^`]*`", r"https?://\S+"):
        body = blank(pattern, body)
    return body


def headless(path: str, tree: ast.Module) -> Iterator[Finding]:
    """Yield docstrings whose first sentence has no head, and help texts that start with "of"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match = re.match(rf"\s*({HEADLESS})\b.*", ast.get_docstring(node) or "")
            if match:
                advice = "an imperative for a function, a noun phrase for a class or module"
                yield Finding(path, node.body[0].lineno, _shorten(match[0]), advice)
        elif isinstance(node, ast.keyword) and node.arg == "help" and isinstance(node.value, ast.Constant):
            match = re.match(r"of .*", str(node.value.value))
            if match:
                yield Finding(path, node.value.lineno, _shorten(match[0]), "a help text that can be read alone")


def _shorten(text: str, words: int = 6) -> str:
    return " ".join(text.split()[:words])


def check_text(path: str, text: str) -> list[Finding]:
    """Return the findings in a file's text, in order; `path` decides how it is read."""
    findings = []
    for passage in python_passages(text) if path.endswith(".py") else markdown_passages(text):
        for pattern, replacement in PATTERNS:
            for match in pattern.finditer(passage.text):
                phrase = " ".join(match[0].split())
                findings.append(Finding(path, passage.line(match.start()), phrase, replacement))
    if path.endswith(".py"):
        findings += headless(path, ast.parse(text))
    return sorted(findings)


def tracked_files(root: pathlib.Path, paths: Sequence[str] = ()) -> list[str]:
    """Return the Python and Markdown files that git tracks below `paths`, or all of them."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--", *(paths or ["."])]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return [path for path in listed if path.endswith(SUFFIXES) and path not in EXEMPT and (root / path).is_file()]


def check_files(root: pathlib.Path, paths: Iterable[str]) -> list[Finding]:
    """Return the findings in files below `root`, the allowed ones included."""
    return [finding for path in paths for finding in check_text(path, (root / path).read_text(encoding="utf-8"))]


def is_allowed(finding: Finding) -> bool:
    """Return whether the phrase is right in this file."""
    return (finding.path, finding.phrase.lower()) in ALLOWED


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Find phrases that this project does not use.")
    parser.add_argument("paths", nargs="*", help="files or folders (default: the whole repository)")
    parser.add_argument("--summary", action="store_true", help="print counts per file (default: every finding)")
    arguments = parser.parse_args()
    paths = [str(pathlib.Path(path).resolve().relative_to(ROOT)) for path in arguments.paths]
    findings = [finding for finding in check_files(ROOT, tracked_files(ROOT, paths)) if not is_allowed(finding)]
    if arguments.summary:
        for path, count in collections.Counter(finding.path for finding in findings).most_common():
            print(f"{count:5d} {path}")
    else:
        for finding in findings:
            print(finding)
    print(f"{len(findings)} findings in {len({finding.path for finding in findings})} files")
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
