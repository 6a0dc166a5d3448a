"""Ctrl-C during an import: threads that write end before the folder is removed."""

import os
import pathlib
import signal
import time

import converted
import pytest

from conversion import importing


def test_nothing_is_left(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = converted.download(tmp_path / "download", "transformer_ar_train")
    read, count = importing._Reader.read, 0

    def slow(reader: importing._Reader, index: tuple[slice, ...]) -> object:
        nonlocal count
        count += 1
        if count == 8:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.02)
        return read(reader, index)

    monkeypatch.setattr(importing._Reader, "read", slow)
    output = tmp_path / "new" / "imported"
    with pytest.raises(KeyboardInterrupt):
        importing.import_weights(source, output, importing.Options(variant="ar"))
    seen = count
    time.sleep(0.3)
    assert count == seen
    assert not output.parent.exists()
