"""`jworld view`: recordings that Rerun's own program reads, of episodes and of a session with its memory."""

import importlib.util
import pathlib
import re
import subprocess
import sys
import sysconfig

import live_server
import numpy as np
import pytest

from jworld.evaluation import rerun_files
from jworld.play import view
from jworld.systems import key_logs
from jworld.utils.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
needs_rerun = pytest.mark.skipif(importlib.util.find_spec("rerun") is None, reason="the extra rerun is not installed")


def entities(recording: pathlib.Path) -> set[str]:
    """Return the paths of what a recording holds."""
    program = pathlib.Path(sysconfig.get_path("scripts")) / "rerun"
    subprocess.run([program, "rrd", "verify", recording], check=True, capture_output=True)
    printed = subprocess.run([program, "rrd", "print", recording], check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"/(?:session|episode)[\w/]*", printed))


@needs_rerun
def test_episodes(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = [sys.executable, ROOT / "scripts/record_episodes.py", "--source=rooms", "--episodes=2", "--frames=9"]
    subprocess.run([*record, "--size=32x24", f"--output={tmp_path / 'raw'}"], check=True, capture_output=True)
    output = tmp_path / "rooms.rrd"
    view.main([f"--episodes={tmp_path / 'raw'}", "--limit=1", f"--output={output}"])
    assert capsys.readouterr().out == f"{output}: 9 frames of 1 episodes. Show it with: rerun {output}\n"
    (name,) = {entity.split("/")[1] for entity in entities(output)}
    assert entities(output) == {f"/{name}/{part}" for part in ("camera", "camera/image", "path", "action")}


@needs_rerun
def test_a_session_has_its_memory(tmp_path: pathlib.Path) -> None:
    warm = live_server.warm()
    steps = ["w", "right", "right", "right", "left", "left"]
    log = key_logs.KeyLog(model="", start=warm.start, entries=[key_logs.Entry(keys=keys) for keys in steps])
    output = tmp_path / "session.rrd"
    recording = rerun_files.Recording(output)
    links: list[int] = []
    draw = recording.links

    def noted(name: str, w2c: np.ndarray, others: list[np.ndarray]) -> None:
        links.append(len(others))
        draw(name, w2c, others)

    recording.links = noted  # type: ignore[method-assign, assignment]
    done = warm.thread.submit(view.show_session, recording, warm.world, log, "keys.json").result()
    recording.close()
    assert done == "93 frames of 6 steps"
    assert entities(output) == {f"/session/{part}" for part in ("camera", "camera/image", "path", "action", "memory")}
    # The first chunk has no past; later ones see more and more of it, up to the model's limit.
    assert links[0] == 0
    assert links == sorted(links)
    assert links[-1] == warm.world.run.config.data.clip.memory_frames
    wrong = key_logs.KeyLog(model="", start=warm.start, entries=[key_logs.Entry(keys="jump")])
    with pytest.raises(UserError, match=r"keys\.json: step 1: .*jump"):
        warm.thread.submit(view.show_session, recording, warm.world, wrong, "keys.json").result()


@pytest.mark.parametrize("flags", [[], ["--episodes=a", "--keys=b"], ["--checkpoint=a"], ["--keys=a", "--limit=2"]])
def test_one_of_two_ways(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        view.main(flags)
    assert re.search(
        "give either --episodes, or --checkpoint and --keys|--limit has no effect", capsys.readouterr().err
    )


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[rerun\]"'):
        rerun_files.rerun()
