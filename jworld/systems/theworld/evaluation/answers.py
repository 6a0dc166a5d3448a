"""Parsers of answers and of judges' replies: those of the original's scripts, and sound ones for models' answers.

Sources: evaluate_blink.py, evaluate_vsr.py, evaluation/spatial_metrics.py, evaluation/metrics.py, compare_results.py.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LETTERS = "ABCD"

_LEADING = re.compile(rf"[{LETTERS}][):.\s]", re.IGNORECASE)
_STATED = re.compile(rf"answer is ([{LETTERS}])", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?\d*\.?\d+")
_TRUE = frozenset({"true", "yes", "correct", "right", "entails"})
_FALSE = frozenset({"false", "no", "incorrect", "wrong", "contradiction"})

#: A quantitative answer counts as right up to this relative error (SpatialRGPT, Table 13).
RIGHT_WITHIN = 0.25
_SUCCESS_RATES = (10, 25, 50)


def blink_prompt(question: str, choices: Sequence[str]) -> str:
    """Return the question followed by its choices with letters."""
    lines = [f"{chr(ord('A') + i)}) {choice}" for i, choice in enumerate(choices)]
    return "\n".join([f"Question: {question}", *lines, "Answer:"])


def blink_choice(text: str, choices: Sequence[str]) -> str:
    """Return the letter that an answer chooses, "A" if there is none.

    This is the original's reading. The first match decides: the letter alone, the letter at the start, "answer is X", a
    choice in words, any such letter.
    """
    text = text.strip()
    if len(text) == 1 and text.upper() in LETTERS:
        return text.upper()
    if _LEADING.match(text):
        return text[0].upper()
    if stated := _STATED.search(text):
        return stated.group(1).upper()
    for i, choice in enumerate(choices):
        if choice.lower() in text.lower():
            return chr(ord("A") + i)
    return next((letter for letter in text.upper() if letter in LETTERS), "A")


def read_choice(text: str, choices: Sequence[str]) -> str | None:
    """Return the letter that an answer chooses, or None if it chooses none or several.

    The first of these decides: the letter alone; "answer", "option" or "choice" with a letter; a letter with a bracket,
    period or colon at the start; the text of a single choice; a single letter in brackets; a single capital letter
    other than the article "A".
    """
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    text, own = text.strip(), "".join(letters)
    for pattern in (
        rf"\(?([{own}{own.lower()}])[).:]*",
        rf".*?\b(?i:answer|option|choice)\b(?i:[\s:*]|is|would be)*[(*]*([{own}])\b.*",
        rf"\(?([{own}{own.lower()}])(?:\)|[.:](?!\w)).*",
    ):
        if found := re.fullmatch(pattern, text, re.DOTALL):
            return found[1].upper()
    named = _named(text, choices)
    if len(named) == 1:
        return letters[named[0]]
    for pattern in (rf"\(([{own}])\)", rf"\b([{own}])\b(?!(?<=\bA) [a-z])"):
        if len(found_letters := set(re.findall(pattern, text))) == 1:
            return str(found_letters.pop())
    return None


def _named(text: str, choices: Sequence[str]) -> list[int]:
    """Return the numbers of the choices that a text names; a choice within a longer one that is named is not."""
    rest, named = text.lower(), []
    for number in sorted(range(len(choices)), key=lambda i: -len(choices[i])):
        pattern = rf"(?<!\w){re.escape(choices[number].strip().lower())}(?!\w)"
        if choices[number].strip() and re.search(pattern, rest):
            named.append(number)
            rest = re.sub(pattern, " ", rest)
    return named


def read_verdict(text: str) -> int | None:
    """Return 0 or 1: the only lone digit, else the first word that means true or false, negated after "not"."""
    digits = set(re.findall(r"(?<![\w.])[01](?![\w.]*\d)\b", text))
    if len(digits) == 1:
        return int(digits.pop())
    words = re.findall("[a-z']+", text.lower().replace("\u2019", "'"))
    for number, word in enumerate(words):
        if word in _TRUE | _FALSE:
            before = words[max(0, number - 2) : number]
            negated = any(one in ("not", "never") or one.endswith("n't") for one in before)
            return int((word in _TRUE) != negated)
    return None


def is_yes(text: str) -> bool:
    """Return whether a judge's reply is a yes; anything else is a no."""
    return text.strip().lower().startswith("yes")


def is_one(text: str) -> bool:
    """Return whether a judge's reply is 1; the first 0 or 1 in the text decides."""
    digit = re.search("[01]", text)
    return digit is not None and digit.group() == "1"


def two_numbers(text: str) -> tuple[float, float] | None:
    """Return a judge's (answer, response) in meters: the first two numbers of the text."""
    found = _NUMBER.findall(text)
    return (float(found[0]), float(found[1])) if len(found) >= 2 else None


def relative_error(truth: float, response: float) -> float:
    """Return the relative error of a length; infinite if the true one is not positive and the response is not 0."""
    if truth > 0:
        return abs(response - truth) / truth
    return 0.0 if response == 0 else float("inf")


def vsr_digit(text: str) -> int | None:
    """Return 0 or 1: the first lone digit, else the value of the first word that means true or false."""
    if digit := re.search(r"\b[01]\b", text):
        return int(digit.group())
    words = re.findall("[a-z]+", text.lower())
    return next((int(word in _TRUE) for word in words if word in _TRUE | _FALSE), None)


def spatial_accuracy(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compute the metrics of SpatialRGPT-Bench.

    Args:
      rows: each with `score` (1 is right), and optionally `qa_type`, `qa_category` and, if quantitative,
        `relative_error`.
    """
    right = sum(row.get("score", 0.0) == 1.0 for row in rows)
    return {
        "total": len(rows),
        "correct": right,
        "accuracy": right / len(rows) if rows else 0.0,
        "by_type": _mean_scores(rows, "qa_type"),
        "by_category": _mean_scores(rows, "qa_category"),
        "quantitative_metrics": _quantitative([row for row in rows if row.get("qa_type") == "quantitative"]),
    }


def _mean_scores(rows: Iterable[Mapping[str, Any]], key: str) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row.get(key):
            scores.setdefault(row[key], []).append(row.get("score", 0.0))
    return {name: sum(values) / len(values) for name, values in scores.items()}


def _quantitative(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compute success rates over all rows, and the mean error over rows whose answer was parsed."""
    if not rows:
        return {}
    errors = [row["relative_error"] for row in rows if row.get("relative_error") is not None]
    rates = {f"±{share}%": sum(error <= share / 100 for error in errors) / len(rows) for share in _SUCCESS_RATES}
    unread = len(rows) - len(errors)
    return {
        "total": len(rows),
        "success_rates": rates,
        "absolute_relative_error": sum(errors) / len(errors) if errors else None,
        "unparseable": unread,
        "unparseable_rate": unread / len(rows),
    }


def choice_accuracy(lines: Iterable[str]) -> dict[str, Any]:
    """Compute the accuracy of JSON lines with `parsed_choice` and `ground_truth`.

    Lines without both are skipped and counted. A letter is right if the truth begins with it.
    """
    total = correct = skipped = 0
    for line in filter(None, map(str.strip, lines)):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        values = [row.get(key) if isinstance(row, dict) else None for key in ("parsed_choice", "ground_truth")]
        if None in values:
            skipped += 1
            continue
        chosen, truth = (str(value).strip().upper() for value in values)
        is_letter = len(chosen) == 1 and chosen.isalpha()
        total += 1
        correct += chosen == truth or (is_letter and truth.startswith(chosen))
    return {"total": total, "correct": correct, "accuracy": correct / total if total else 0.0, "skipped": skipped}


def change(baseline: float, value: float) -> tuple[float, float]:
    """Return the difference from the baseline: absolute, and in percent of it (0 if the baseline is 0)."""
    return value - baseline, (value - baseline) / baseline * 100 if baseline > 0 else 0.0
