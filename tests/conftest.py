"""Settings of all tests: CPU, 8 virtual devices, full float32 matmuls, compiled programs cached between runs."""

import collections
import os
import pathlib
import signal
import sys
import time

TESTS = pathlib.Path(__file__).parent

sys.path[:0] = [str(TESTS), str(TESTS.parent)]
import xla_flags  # noqa: E402

# Before the first import of jax; commands started as subprocesses inherit the same settings.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", xla_flags.fast_compilation(8))
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(TESTS.parent / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Jobs in the background of a shell ignore Ctrl-C, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402

#: Start of the session, in seconds of `time.monotonic`.
STARTED = pytest.StashKey[float]()


@pytest.fixture
def tpu_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA flags for a test that loads the TPU compiler into this process or into one that it starts."""
    monkeypatch.setenv("XLA_FLAGS", xla_flags.for_tpu())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files that take long first, so that no process waits for another at the end: guides, then many tests.

    Two processes take whole files in this order (`--no-loadscope-reorder` in the Makefile).
    """
    counts = collections.Counter(item.path for item in items)
    root = TESTS.parent
    guides = {f"test_guide_{page.stem.lower()}": page for page in (root / "README.md", *(root / "docs").glob("*.md"))}

    def order(item: pytest.Item) -> tuple[int, int]:
        page = guides.get(item.path.stem, root)
        return (-page.stat().st_size if page.is_file() else 0, -counts[item.path])

    items.sort(key=order)


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[STARTED] = time.monotonic()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what has not begun when the seconds in JWORLD_TEST_SECONDS are over; the summary lists it."""
    seconds = os.environ.get("JWORLD_TEST_SECONDS")
    if seconds and time.monotonic() - item.config.stash[STARTED] > float(seconds):
        pytest.skip("NOT RUN: the time is over")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a line per golden case and one with the pending kinds; the pages that ran and the blocks that did not."""
    reports = [r for key in ("passed", "failed") for r in terminalreporter.stats.get(key, []) if r.when == "call"]
    properties = [dict(report.user_properties) for report in reports if hasattr(report, "user_properties")]
    lines = sorted(p["parity"] for p in properties if "parity" in p)
    lines += [p["pending"] for p in properties if p.get("pending")]
    guides = [str(text) for report in reports for name, text in report.user_properties if name == "guide"]
    for title, listed in (("golden cases: kind, case, largest relative error", lines), ("guides", guides)):
        if listed:
            terminalreporter.section(title)
        for line in listed:
            terminalreporter.write_line(line)
    late = [r.nodeid for r in terminalreporter.stats.get("skipped", []) if "NOT RUN" in str(r.longrepr)]
    if late:
        terminalreporter.section(f"{len(late)} TESTS DID NOT RUN: the time is over")
        for name in late:
            terminalreporter.write_line(name)
