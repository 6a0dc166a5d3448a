"""Lengths and clock directions in free text."""

import pytest

from jworld.systems.theworld.evaluation import quantities

FOOT, INCH = 0.3048, 0.0254


@pytest.mark.parametrize(
    ("text", "meters"),
    [
        ("1,200 meters", 1200),
        ("1,200.5 m", 1200.5),
        ("12,345,678 mm", 12345.678),
        ("1,5 meters", 1.5),
        ("15 millimeters", 0.015),
        ("3 mm.", 0.003),
        ("2.5 kilometers", 2500),
        ("4 dm", 0.4),
        ("80cm", 0.8),
        (".5 m", 0.5),
        ("5 feet 3 inches", 5 * FOOT + 3 * INCH),
        ("5 ft. 3 in.", 5 * FOOT + 3 * INCH),
        ("5 feet and 3.5 inches", 5 * FOOT + 3.5 * INCH),
        ("5'3\"", 5 * FOOT + 3 * INCH),
        ("5'3", 5 * FOOT + 3 * INCH),
        ("5' 3''", 5 * FOOT + 3 * INCH),
        ("5\u2019 3\u201d", 5 * FOOT + 3 * INCH),
        ("6' tall", 6 * FOOT),
        ('about 8" wide', 8 * INCH),
        ("a 5-foot wall", 5 * FOOT),
        ("1 m 20 cm", 1.2),
        ("2 meters, 50 centimeters", 2.5),
        ("1 yard 2 feet 6 inches", 0.9144 + 2 * FOOT + 6 * INCH),
        ("half a meter", 0.5),
        ("half meter", 0.5),
        ("half of a foot", FOOT / 2),
        ("a half inch", INCH / 2),
        ("a quarter of a mile", 402.336),
        ("three quarters of a meter", 0.75),
        ("one and a half meters", 1.5),
        ("2 and a half feet", 2.5 * FOOT),
        ("a meter and a half", 1.5),
        ("two meters and a half", 2.5),
        ("a meter", 1.0),
        ("an inch", INCH),
        ("Twelve feet", 12 * FOOT),
        ("thirty centimeters", 0.3),
        ("3 1/2 feet", 3.5 * FOOT),
        ("1/2 inch", INCH / 2),
        ("1\u00bd m", 1.5),
        ("2-3 meters", 2.5),
        ("2\u20133 meters", 2.5),
        ("2 to 3 meters", 2.5),
        ("between 1 and 2 feet", 1.5 * FOOT),
        # The preposition is not a unit.
        ("2 in front: 3 meters", 3),
        ("2 in the back, 40 inches", 40 * INCH),
        ("It is 7 in wide", 7 * INCH),
        ("7 in.", 7 * INCH),
        ("7 in", 7 * INCH),
        # Numbers of regions and other numbers are not lengths.
        ("Region [1] is 3.5 feet away, or 1 m.", 3.5 * FOOT),
        ("Region 3 is 2 meters from Region 4", 2),
        ("The second of the 2 is 4 m away", 4),
        # Only smaller units continue a length.
        ("2 meters (6.6 feet)", 2),
        ("2 m 200 cm", 2),
        ("2 meters and 3 meters", 2),
        ("5 feet. 3 inches below it", 5 * FOOT + 3 * INCH),
    ],
)
def test_lengths(text: str, meters: float) -> None:
    assert quantities.length(text) == pytest.approx(meters)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12 o'clock",
        "far away",
        "3",
        "2 in front",
        "5 minutes",
        "3 months",
        "10 mph",
        "4 m\u00b2",
        "1/0 apples",
        "2 men",
    ],
)
def test_texts_without_a_length(text: str) -> None:
    assert quantities.length(text) is None


@pytest.mark.parametrize(
    ("text", "degrees"),
    [
        ("12 o'clock", 0),
        ("at 3 o\u2019clock", 90),
        ("Region [1] is at 2 o'clock from Region [0].", 60),
        ("roughly 10 oclock", 300),
        ("11 O'Clock", 330),
        ("four o'clock", 120),
        ("10:30 o'clock", 315),
        ("the 6-o'clock position", 180),
        ("9 o' clock", 270),
        ("3 meters at 1 o'clock", 30),
    ],
)
def test_clock_directions(text: str, degrees: float) -> None:
    assert quantities.clock(text) == degrees


@pytest.mark.parametrize("text", ["", "3 meters", "13 o'clock", "0 o'clock", "to the left", "noon"])
def test_texts_without_a_direction(text: str) -> None:
    assert quantities.clock(text) is None


def test_angles_between_directions() -> None:
    assert quantities.degrees_between(330, 30) == 60
    assert quantities.degrees_between(0, 180) == 180
    assert quantities.degrees_between(90, 60) == 30
