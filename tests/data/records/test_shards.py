"""Record sets written shard by shard: interrupted commands resume and give the same bytes."""

import json
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import rich.console

from jworld.data import records
from jworld.data.records import shards, statistics, text_store
from jworld.utils.errors import UserError

SIZES: dict[str, Any] = {
    "arrays": records.make_arrays((1, 2, 3), cameras=True, action=True, vision=(1, 2), prompt=True),
    "autoencoder": {"family": "linear", "normalised": True},
    "latent_shape": [1, 2, 3],
    "temporal_ratio": 4,
    "fps": 8.0,
    "camera_convention": records.CAMERA_CONVENTION,
    "image_size": [16, 8],
    "text_encoder": {"family": "hashed-words", "dim": 4},
    "glyph_encoder": {"family": "byt5-glyph", "dim": 5},
    "vision_encoder": {"family": "thumbnail", "tokens": 1, "dim": 2},
}
ITEMS = {"train": [0, 1, 2, 3, 4], "val": [5, 6]}
PLAN = shards.plan(ITEMS, items_per_shard=2)
REQUEST = {"seed": 3, "sizes": (1, 2)}


def make_record(item: int) -> records.Record:
    latent = np.full((3 + item, 1, 2, 3), item, ml_dtypes.bfloat16)
    return {
        "latent": latent,
        "image_cond": latent[:1],
        "w2c": np.tile(np.eye(4, dtype=np.float32), (len(latent), 1, 1)),
        "intrinsics": np.tile(np.eye(3, dtype=np.float32), (len(latent), 1, 1)),
        "action": np.zeros(len(latent), np.int32),
        "vision_states": np.zeros((1, 2), ml_dtypes.bfloat16),
        "prompt": np.array(0, np.int32),
    }


class Work:
    """Writer of numbered items: the first has the only prompt, some are bad, and one interrupts the process."""

    def __init__(self, *, bad: tuple[int, ...] = (), stop_at: int | None = None) -> None:
        self.bad, self.stop_at = bad, stop_at
        self.loaded: list[int] = []

    def load(self, item: int) -> records.Record:
        if item == self.stop_at:
            raise KeyboardInterrupt
        if item in self.bad:
            raise UserError(f"number {item} is bad")
        self.loaded.append(item)
        return make_record(item)

    def store(self, writer: shards.ShardWriter, item: int, record: records.Record) -> None:
        if item == 0:
            writer.write_prompt("nothing", text_store.prompt_record(np.ones((2, 4)), np.zeros((0, 5))))
        writer.write(f"clip {item}", record)

    def run(self, directory: pathlib.Path, *, skip_errors: bool = False) -> shards.Summary:
        output = shards.Output(directory, REQUEST)
        if not output.complete:
            results = shards.write(
                output,
                PLAN,
                output.finished(PLAN),
                load=self.load,
                store=self.store,
                name=lambda item: f"clip {item}",
                skip_errors=skip_errors,
                title="working",
                console=rich.console.Console(quiet=True),
            )
            output.finish(PLAN, results, SIZES)
        return shards.Summary.read(directory)


def content(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def visible(directory: pathlib.Path) -> set[str]:
    return {path.name for path in directory.iterdir() if not path.name.startswith(".")}


def test_the_plan_divides_every_split_in_order():
    assert [(shard.name, shard.items) for shard in PLAN] == [
        ("train-00000-of-00003", (0, 1)),
        ("train-00001-of-00003", (2, 3)),
        ("train-00002-of-00003", (4,)),
        ("val-00000-of-00001", (5, 6)),
    ]


def test_a_complete_set_is_read_as_written(tmp_path):
    summary = Work().run(tmp_path / "set")
    assert summary.clips == {"train": 5, "val": 2}
    assert summary.hours == pytest.approx(sum(4 * (2 + item) + 1 for item in range(7)) / 8 / 3600)
    files = [data for name, data in content(tmp_path / "set").items() if str(name).endswith(".arrow")]
    assert summary.bytes == sum(len(data) for data in files)
    assert not (tmp_path / "set" / shards.PROGRESS).exists()
    for split, items in ITEMS.items():
        source = records.RecordSource(tmp_path / "set", split)
        assert source.episodes == [f"clip {item}" for item in items]
        for i, item in enumerate(items):
            np.testing.assert_array_equal(source[i]["latent"], make_record(item)["latent"])
    assert source.manifest["prompts"] == ["nothing"]
    assert len(text_store.TextStore(tmp_path / "set", source.manifest).prompt(0)["text_states"]) == 2


@pytest.mark.parametrize("stop_at", [0, 1, 3, 4, 6])
def test_an_interrupted_set_resumes_with_the_same_result(tmp_path, stop_at):
    Work().run(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        Work(stop_at=stop_at).run(tmp_path / "set")
    done = [shard for shard in PLAN if max(shard.items) < stop_at]
    assert visible(tmp_path / "set") == {shard.records_file for shard in done} | (
        {PLAN[0].text_file} if done else set()
    )
    work = Work()
    work.run(tmp_path / "set")
    assert work.loaded == [item for shard in PLAN[len(done) :] for item in shard.items]
    assert content(tmp_path / "set") == content(tmp_path / "straight")
    again = Work()
    again.run(tmp_path / "set")
    assert again.loaded == []


def test_damaged_shards_and_later_ones_are_written_again(tmp_path):
    straight = tmp_path / "straight"
    Work().run(straight)
    with pytest.raises(KeyboardInterrupt):
        Work(stop_at=6).run(tmp_path / "set")
    (tmp_path / "set" / PLAN[1].records_file).write_bytes(b"short")
    with pytest.raises(KeyboardInterrupt):
        Work(stop_at=4).run(tmp_path / "set")
    work = Work()
    work.run(tmp_path / "set")
    assert work.loaded == [4, 5, 6]
    assert content(tmp_path / "set") == content(straight)


def test_files_of_a_killed_process_are_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Work(stop_at=3).run(tmp_path / "set")
    left = tmp_path / "set" / shards.PROGRESS / f"{PLAN[1].records_file}.1.tmp"
    left.write_bytes(b"half")
    with pytest.raises(KeyboardInterrupt):
        Work(stop_at=4).run(tmp_path / "set")
    assert not left.exists()


def test_a_kill_after_the_manifest_leaves_a_complete_set(tmp_path):
    Work().run(tmp_path / "set")
    whole = content(tmp_path / "set")
    (tmp_path / "set" / shards.PROGRESS).mkdir()
    work = Work()
    work.run(tmp_path / "set")
    assert (work.loaded, content(tmp_path / "set")) == ([], whole)


def test_bad_items_stop_or_are_listed(tmp_path):
    with pytest.raises(UserError, match="number 3 is bad; give --on-error skip to leave out bad items"):
        Work(bad=(3, 5, 6)).run(tmp_path / "set")
    assert PLAN[0].records_file in visible(tmp_path / "set")
    summary = Work(bad=(3, 5, 6)).run(tmp_path / "set", skip_errors=True)
    assert summary.clips == {"train": 4, "val": 0}
    expected = [{"item": f"clip {item}", "reason": f"number {item} is bad"} for item in (3, 5, 6)]
    assert summary.skipped == expected
    report = json.loads((tmp_path / "set" / shards.REPORT).read_text())
    assert report == {"items": 7, "skipped": expected}
    assert records.RecordSource(tmp_path / "set", "train").episodes == ["clip 0", "clip 1", "clip 2", "clip 4"]
    assert not list((tmp_path / "set").glob("val-*"))


def test_another_request_and_other_files_are_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Work(stop_at=3).run(tmp_path / "set")
    match = r"was started with seed = 3, this command has 4: repeat the first command or give another --output"
    with pytest.raises(UserError, match=match):
        shards.Output(tmp_path / "set", {**REQUEST, "seed": 4})
    Work().run(tmp_path / "set")
    with pytest.raises(UserError, match=r"was started with more = None, this command has 1"):
        shards.Output(tmp_path / "set", {**REQUEST, "more": 1})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("")
    with pytest.raises(UserError, match=r"mine holds other files: give another --output"):
        shards.Output(tmp_path / "mine", REQUEST)
    assert visible(tmp_path / "mine") == {"letter.txt"}
    # A process that was killed before it wrote its request.
    (tmp_path / "started" / shards.PROGRESS).mkdir(parents=True)
    assert not shards.Output(tmp_path / "started", REQUEST).complete


def test_progress_counts_items_and_bytes(tmp_path):
    console = rich.console.Console(record=True, width=120)
    with shards.meter("working", 4, done=1, size=10**9, console=console) as advance:
        for _ in range(3):
            advance(5 * 10**8)
    assert "4/4" in (printed := console.export_text())
    assert "items/s, 2.50 GB" in printed


@pytest.mark.parametrize(
    ("hours", "words"), [(1.5, "1.50 hours"), (0.5, "30.00 minutes"), (7.2 / 3600, "7.2 seconds"), (0, "0.0 seconds")]
)
def test_durations_have_a_suitable_unit(hours, words):
    assert statistics.duration(hours) == words
