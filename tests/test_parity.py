"""Parity with the original systems: every golden case below the root runs the check of its kind."""

from collections.abc import Callable

import golden_cases
import made_cases
import parity_checks
import pytest

pytestmark = pytest.mark.parity

PENDING: set[str] = set()

CHECKS: dict[str, golden_cases.Check] = golden_cases.merged(parity_checks, "CHECKS")
TOLERANCES: dict[str, tuple[float, str]] = golden_cases.merged(parity_checks, "TOLERANCES")
CASES = golden_cases.discover(golden_cases.root())
KINDS = {case.name: golden_cases.kind_of(case.name, CHECKS.keys() | PENDING) for case in CASES}
#: Numbers of a library that computes them when the test runs.
MADE = {"worldplay/transformer_diffusers": made_cases.hunyuan_diffusers}
READY = [case for case in CASES if KINDS[case.name] in CHECKS]


def test_every_case_has_a_known_kind(record_property: Callable[[str, object], None]) -> None:
    assert CASES, f"no golden case below {golden_cases.root()}"
    unknown = [name for name, kind in KINDS.items() if kind is None]
    assert not unknown, f"golden cases of unknown kind: {unknown}"
    pending = [name for name, kind in KINDS.items() if kind not in CHECKS]
    record_property("pending", f"pending ({len(pending)}): {' '.join(pending)}" if pending else "")


def check(case: golden_cases.GoldenCase, kind: str, record_property: Callable[[str, object], None]) -> None:
    error = CHECKS[kind](case)
    tolerance, reason = TOLERANCES.get(kind, (golden_cases.DEFAULT_TOLERANCE, ""))
    record_property("parity", f"{kind:38s} {case.path.name:38s} {error:.2e}")
    assert error < tolerance, f"relative error {error:.2e}, tolerance {tolerance:.0e} {reason}"
    unread = case.unread()
    assert not unread, f"the check of {kind} does not read {', '.join(unread)} of {case.path / 'config.json'}"


@pytest.mark.parametrize("case", READY, ids=lambda case: case.name)
def test_golden_case(case: golden_cases.GoldenCase, record_property: Callable[[str, object], None]) -> None:
    kind = KINDS[case.name]
    assert kind is not None
    check(case, kind, record_property)


@pytest.mark.parametrize("kind", MADE)
def test_made_case(kind: str, record_property: Callable[[str, object], None]) -> None:
    check(MADE[kind](), kind, record_property)
