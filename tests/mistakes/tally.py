"""python tests/mistakes/tally.py [WORD [FOLDER]]: run every try, and print how many fail by command and by kind.

WORD is part of the name of a slot; the valid inputs are kept in FOLDER for the next time.
"""

import collections
import pathlib
import sys
import tempfile

TESTS = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(TESTS)]

import conftest  # noqa: E402, F401 - settings before the first import of jax


def main() -> None:
    """Run the tries whose slot has the word in its name."""
    from mistakes import inputs, slots, tries

    word = sys.argv[1] if len(sys.argv) > 1 else ""
    by_slot: collections.Counter[str] = collections.Counter()
    by_kind: collections.Counter[str] = collections.Counter()
    by_problem: collections.Counter[str] = collections.Counter()
    seconds: collections.Counter[str] = collections.Counter()
    total = 0
    with tempfile.TemporaryDirectory() as name:
        valid = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else name) / "valid"
        if not valid.is_dir():
            inputs.make(valid)
        for number, slot in enumerate(slots.SLOTS):
            if word not in slot.name:
                continue
            for member, kind in tries.of_slot(slot):
                total += 1
                outcome = tries.run(slot, member, kind, valid, pathlib.Path(name) / f"{number}-{total}")
                seconds[slot.name] += outcome.seconds
                if outcome.problem:
                    by_slot[slot.name] += 1
                    by_kind[kind] += 1
                    by_problem[outcome.problem] += 1
                    print(f"--- {slot.name} | {member} | {kind}: {outcome.problem}\n{outcome.printed}", flush=True)
    for title, counts in (("slot", by_slot), ("kind", by_kind), ("problem", by_problem), ("seconds", seconds)):
        print(f"== by {title}")
        for key, count in counts.most_common():
            print(f"{count:8.4g}  {key}")
    print(f"{sum(by_problem.values())} of {total} failed")


if __name__ == "__main__":
    main()
