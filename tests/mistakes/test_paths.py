"""Every command with every kind of wrong path and file: exit code 2, one sentence that names it, nothing written.

The tables are in `mistakes.slots` and `mistakes.wrong`; `python tests/mistakes/tally.py` prints what fails by kind.
"""

import pathlib

import pytest

from mistakes import inputs, slots, tries

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return inputs.make(tmp_path_factory.mktemp("inputs") / "valid")


def test_there_are_many_tries() -> None:
    assert sum(len(tries.of_slot(slot)) for slot in slots.SLOTS) >= 2000
    assert sum(len(tries.of_slot(slot)) for slot in slots.SLOTS if not slot.slow) >= 800
    assert len({slot.name for slot in slots.SLOTS}) > 50


@pytest.mark.parametrize(
    "slot",
    [pytest.param(slot, marks=[pytest.mark.slow] if slot.slow else [], id=slot.name) for slot in slots.SLOTS],
)
def test_wrong_paths(slot: slots.Slot, valid: pathlib.Path, tmp_path: pathlib.Path) -> None:
    problems = []
    for number, (member, kind) in enumerate(tries.of_slot(slot)):
        outcome = tries.run(slot, member, kind, valid, tmp_path / str(number))
        if outcome.problem:
            problems.append(f"{member or slot.valid}, {kind}: {outcome.problem}\n{outcome.printed}")
    assert not problems, "\n".join([f"{len(problems)} tries failed", *problems])
