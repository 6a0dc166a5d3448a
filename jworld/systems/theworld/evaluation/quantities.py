"""Lengths and clock directions in free text, such as "5 feet 3 inches", "half a meter" and "at 2 o'clock"."""

import re
from fractions import Fraction

#: Spellings of a unit -> meters.
_UNITS: dict[str, float] = {
    r"kilomet(?:er|re)s?|kms?": 1000.0,
    r"met(?:er|re)s?|m": 1.0,
    r"decimet(?:er|re)s?|dm": 0.1,
    r"centimet(?:er|re)s?|cms?": 0.01,
    r"millimet(?:er|re)s?|mm": 0.001,
    r"miles?|mi": 1609.344,
    r"yards?|yds?": 0.9144,
    r"feet|foot|ft|'": 0.3048,
    r"inch(?:es)?|ins?|\"": 0.0254,
}
_UNIT = "|".join(_UNITS)
#: A number with thousands separators, a mixed number, a fraction, a decimal number.
_NUMBER = r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+\s+\d+/\d+|\d+/\d+|\d+(?:[.,]\d+)?|\.\d+"
#: What may follow the abbreviation "in": elsewhere it is the preposition, as in "2 in front".
_AFTER_INCH = (
    r"(?=\.?\s*(?:$|[.,;:!?)\"'(]|\d|(?:wide|tall|high|long|deep|thick|away|apart|across|from|or|and|to|by|x|above|below|"
    r"behind|in)\b))"
)
_QUANTITY = re.compile(
    rf"(?<![\w.,/\[])(?:(?P<between>between\s+)?(?P<low>{_NUMBER})\s*(?:-|to|and)\s*)??"
    rf"(?P<number>{_NUMBER})\s*-?\s*(?P<unit>['\"]|(?:(?!ins?\b)(?:{_UNIT})|ins?{_AFTER_INCH})(?![a-z0-9\u00b2\u00b3]))\.?"
)
#: Feet and inches whose last mark is left out: 5'3.
_FEET_INCHES = re.compile(r"(\d+)\s*'\s*(\d+(?:\.\d+)?)(?![\d.\"'])")
_ADJACENT = re.compile(r"[\s,-]*(?:and\s+)?")
_CLOCK = re.compile(r"(?<![\d:.])(1[0-2]|0?[1-9])(?::([0-5]\d))?\s*-?\s*o\s*'?\s*clock")

_WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
_TENS = {
    word: 10 * number
    for number, word in enumerate(["thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], 3)
}
_NUMBERS = {word: number for number, word in enumerate(_WORDS)} | _TENS
_NUMBER_WORD = re.compile(rf"\b({'|'.join(sorted(_NUMBERS, key=len, reverse=True))})\b")
#: Quotation marks and primes, dashes, and fractions as one sign.
_SIGNS = str.maketrans(
    dict.fromkeys("\u2018\u2019\u2032`", "'")
    | dict.fromkeys("\u201c\u201d\u2033", '"')
    | dict.fromkeys("\u2012\u2013\u2014", "-")
    | {"\u00bd": " 1/2", "\u00bc": " 1/4", "\u00be": " 3/4"}
)
#: Texts of numbers -> digits, in this order.
_REPLACED: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"''", '"'),
        (rf"\b(\d+|an?) ((?:{_UNIT})) and (?:a|1) half\b", r"\1 and a half \2"),
        (r"\b(\d+) and (?:a|1) half\b", r"\1.5"),
        (r"\ban? and (?:a|1) half\b", "1.5"),
        (r"\b(?:1 |a )?half(?:[ -]of)?(?:[ -](?:an?|1))?[ -](?=\w)", "0.5 "),
        (r"\b3[ -]quarters(?: of)?(?: (?:an?|1))? (?=\w)", "0.75 "),
        (r"\b(?:1 |a )?quarter(?: of)?(?: (?:an?|1))? (?=\w)", "0.25 "),
        (rf"\ban? (?=(?:{_UNIT})\b)", "1 "),
    )
)
#: Largest error of a direction that counts as right, in degrees: an hour of the clock.
RIGHT_DEGREES = 30.0


def _normalized(text: str) -> str:
    text = text.lower().translate(_SIGNS)
    text = _NUMBER_WORD.sub(lambda match: str(_NUMBERS[match[1]]), text)
    for pattern, new in _REPLACED:
        text = pattern.sub(new, text)
    return _FEET_INCHES.sub(r"""\1' \2" """, text)


def length(text: str) -> float | None:
    """Return the first length of a text, in meters, or None without one.

    Adjacent quantities of ever smaller units are one length, as in "5 ft 3 in"; of a range, the middle is taken. A
    number without a unit is not a length.
    """
    text = _normalized(text)
    total, last_end, last_unit = None, 0, 0.0
    for match in _QUANTITY.finditer(text):
        unit = _meters(match["unit"])
        value = _middle(match) * unit
        if total is None:
            total = value
        elif _ADJACENT.fullmatch(text, last_end, match.start()) and unit < last_unit and value < last_unit:
            total += value
        else:
            break
        last_end, last_unit = match.end(), unit
    return total


def _meters(unit: str) -> float:
    return next(meters for spelling, meters in _UNITS.items() if re.fullmatch(spelling, unit))


def _middle(match: re.Match[str]) -> float:
    number = _value(match["number"])
    low = None if match["low"] is None else _value(match["low"])
    return number if low is None else (low + number) / 2


def _value(number: str) -> float:
    if "/" in number:
        whole, _, fraction = number.rpartition(" ")
        top, bottom = map(int, fraction.split("/"))
        return (int(whole) if whole else 0) + (float(Fraction(top, bottom)) if bottom else 0.0)
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", number):
        return float(number.replace(",", ""))
    return float(number.replace(",", "."))


def clock(text: str) -> float | None:
    """Return the first clock direction of a text, in degrees clockwise from 12 o'clock, or None without one."""
    found = _CLOCK.search(_normalized(text))
    return None if found is None else 30.0 * (int(found[1]) % 12) + 0.5 * int(found[2] or 0)


def degrees_between(first: float, second: float) -> float:
    """Return the angle between two directions, in degrees, at most 180."""
    return abs((first - second + 180.0) % 360.0 - 180.0)
