"""Precomputation in parts, by several processes, and after a kill: equal files."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import commands
import numpy as np
import pytest
import tiny_videos
from precompute_inputs import content, cut_of, video_arguments, video_settings, wall, write_videos

from jworld.data import records
from jworld.data.inputs import clips, formats
from jworld.data.records import shards
from jworld.encoders import autoencoders
from jworld.encoders.choices import EncoderOverrides
from jworld.precompute import __main__ as precompute
from jworld.precompute import job
from jworld.utils.errors import UserError


def test_the_parts_of_two_processes_equal_one_run(tmp_path, autoencoder_path):
    folder = write_videos(tmp_path / "in", "videos", "abcdefg")
    settings = video_settings(folder, autoencoder_path, items_per_shard=2, val_share=0.4)
    whole = job.precompute(settings, tmp_path / "whole")
    assert min(whole.clips.values()) > 0
    assert job.precompute(settings, tmp_path / "parts", shard=(1, 2)) is None
    halfway = set(content(tmp_path / "parts"))
    assert records.MANIFEST not in halfway
    assert job.precompute(settings, tmp_path / "parts", shard=(1, 2)) is None
    parts = job.precompute(settings, tmp_path / "parts", shard=(0, 2))
    assert parts.clips == whole.clips
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    # Another number of processes resumes the work of the stopped ones.
    assert job.precompute(settings, tmp_path / "three", shard=(2, 3)) is None
    job.precompute(settings, tmp_path / "three", shard=(0, 1))
    assert content(tmp_path / "three") == content(tmp_path / "whole")
    with pytest.raises(UserError, match="--shard is 2/2"):
        job.precompute(settings, tmp_path / "more", shard=(2, 2))
    alone = dataclasses.replace(settings, given=EncoderOverrides())
    with pytest.raises(UserError, match="only one process can fit the autoencoder"):
        job.precompute(alone, tmp_path / "more", shard=(0, 2))
    assert not (tmp_path / "more").exists()


def test_two_processes_at_once(tmp_path, autoencoder_path):
    folder = write_videos(tmp_path / "in", "videos", "abcde")
    argv = video_arguments(folder, autoencoder_path, items_per_shard=1)
    parts = [
        commands.start("jworld.precompute", *argv, f"--output={tmp_path / 'parts'}", f"--shard={i}/2") for i in range(2)
    ]
    printed = [part.communicate()[0] for part in parts]
    assert [part.returncode for part in parts] == [0, 0], printed
    assert any("5 train, 0 val clips" in text for text in printed), printed
    precompute.main([*argv, f"--output={tmp_path / 'whole'}"])
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from jworld.precompute import __main__ as precompute
from jworld.data.records import shards
write, count = shards.ShardWriter.{method}, [0]
def killed(*arguments):
    count[0] += 1
    if count[0] == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    write(*arguments)
shards.ShardWriter.{method} = killed
precompute.main({argv!r})
"""


def test_a_killed_command_resumes(tmp_path, autoencoder_path):
    folder = write_videos(tmp_path / "in", "videos", "abcde")
    argv = video_arguments(folder, autoencoder_path, items_per_shard=2)
    precompute.main([*argv, f"--output={tmp_path / 'whole'}"])
    output = tmp_path / "killed"
    for method, at, left in (("write_prompt", 2, {".progress"}), ("write", 4, {".progress", "text", "train"})):
        code = KILLED.format(root=str(commands.ROOT), method=method, at=at, argv=[*argv, f"--output={output}"])
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=os.environ)
        assert done.returncode == -signal.SIGKILL, done.stderr
        found = {path.name.split("-")[0] for path in output.iterdir()} - {records.AUTOENCODER_FILE}
        assert found == left
    complete = output / "train-00000-of-00003.arrow"
    assert [path.name for path in output.glob("train-*")] == [complete.name]
    written = complete.stat().st_mtime_ns
    precompute.main([*argv, f"--output={output}"])
    assert complete.stat().st_mtime_ns == written
    assert content(output) == content(tmp_path / "whole")


def test_encoders_that_differ_between_processes(tmp_path, autoencoder_path, monkeypatch):
    monkeypatch.setattr(job.prompts, "PROMPTS_PER_SHARD", 1)
    settings = video_settings(write_videos(tmp_path / "in", "videos"), autoencoder_path)
    job.precompute(settings, tmp_path / "set", shard=(0, 2))
    for path in (tmp_path / "set" / shards.PROGRESS).glob("text-*.json"):
        result = json.loads(path.read_text())
        result["facts"]["text_encoder"]["hash"] = "another"
        path.write_text(json.dumps(result))
    with pytest.raises(UserError, match="text were encoded by different encoders"):
        job.precompute(settings, tmp_path / "set", shard=(1, 2))


def test_batches_over_the_devices_change_nothing(tmp_path, autoencoder_path):
    """Four clips of two lengths leave seven rows of the last batches empty."""
    folder = write_videos(tmp_path / "in", "videos", "abcd")
    tiny_videos.write(folder / "b.mp4", wall(1, 15))
    settings = video_settings(folder, autoencoder_path, frames=None)
    job.precompute(settings, tmp_path / "set")
    source = records.RecordSource(tmp_path / "set", "train")
    assert source.clips == [3, 2, 3, 3]
    autoencoder = autoencoders.load(autoencoder_path)
    cut = cut_of(source.manifest)
    for i, item in enumerate(formats.list_items("videos", folder, val_share=0).items):
        (clip,) = clips.read_clips(item, cut)
        expected = autoencoder.encode(clip.frames[None])[0]
        np.testing.assert_allclose(source[i]["latent"].astype(np.float32), expected, rtol=1e-2, atol=1e-5)
