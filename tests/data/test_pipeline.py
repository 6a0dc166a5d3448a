"""Data pipeline: batches depend only on seed and step, processes divide them, positions restore exactly."""

import json

import grain
import numpy as np
import pytest

from jworld.data import pipeline, records
from jworld.utils.errors import UserError

SPEC = {
    "value": records.ArraySpec((4, 2), np.float32, ("batch", None)),
    "noise": records.ArraySpec((4,), np.float32, ("batch",)),
    "position": records.ArraySpec((4,), np.int32, ("batch",)),
}


class Source:
    def __init__(self, size: int = 10, wide: int | None = None) -> None:
        self.size = size
        self.wide = wide

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> records.Record:
        width = 3 if index == self.wide else 2
        return {"value": np.full(width, index, np.float32), "index": np.int32(index)}


class Transform(grain.transforms.RandomMap):
    def random_map(self, element, rng):
        noise, position = np.float32(rng.random()), np.int32(element["position"])
        return {**element["record"], "noise": noise, "position": position}


def make(source=None, spec=None, **options) -> pipeline.BatchIterator:
    settings = {"global_batch": 4, "seed": 7, **options}
    return pipeline.make_dataset(source or Source(), Transform(), spec or SPEC, **settings)


def take(iterator, count: int) -> list[pipeline.Batch]:
    return [next(iterator) for _ in range(count)]


def assert_same(left: list[pipeline.Batch], right: list[pipeline.Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_epochs_are_permutations_that_depend_on_the_seed():
    batches = take(make(), 5)
    order = np.concatenate([batch["index"] for batch in batches])
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10].tolist() != order[10:].tolist()
    assert np.concatenate([batch["position"] for batch in batches]).tolist() == list(range(20))
    assert len(np.unique(np.concatenate([batch["noise"] for batch in batches]))) == 20
    np.testing.assert_array_equal(batches[0]["value"][:, 0], batches[0]["index"])
    assert_same(batches, take(make(), 5))
    other = np.concatenate([batch["index"] for batch in take(make(seed=8), 5)])
    assert other.tolist() != order.tolist()


def test_processes_divide_the_batch():
    whole = take(make(), 6)
    parts = [take(make(process_index=i, process_count=2), 6) for i in range(2)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*parts, strict=True)]
    assert_same(whole, joined)
    epoch = [set(np.concatenate([batch["position"] for batch in part])) for part in parts]
    assert not epoch[0] & epoch[1]


def test_resume_from_state():
    iterator = make()
    first = take(iterator, 3)
    state = json.loads(json.dumps(iterator.get_state()))
    assert state["next_batch"] == 3
    rest = take(iterator, 4)
    resumed = make()
    resumed.set_state(state)
    assert resumed.get_state() == state
    assert_same(take(resumed, 4), rest)
    resumed.set_state({**state, "next_batch": 0})
    assert_same(take(resumed, 3), first)
    # The number of processes is not part of the state.
    half = make(process_index=1, process_count=2)
    half.set_state(state)
    np.testing.assert_array_equal(next(half)["position"], rest[0]["position"][2:])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 8}, "seed is 8, this run has 7"),
        ({"records": 11}, "records is 11"),
        ({"next_batch": -1}, "next_batch"),
    ],
)
def test_foreign_state_is_refused(change, message):
    iterator = make()
    with pytest.raises(UserError, match=message):
        iterator.set_state({**iterator.get_state(), **change})


def test_a_position_belongs_to_a_data_set():
    state = json.loads(json.dumps(make(content="first").get_state()))
    assert make(content="first").set_state(state) == ""
    with pytest.raises(UserError, match=r"data set first, .* is now second: .* --accept-data"):
        make(content="second").set_state(state)
    larger = make(source=Source(12), content="second")
    assert larger.set_state({**state, "next_batch": 3}, accept_data=True) == (
        "continuing with the data set second, after first"
    )
    assert next(larger)["position"].tolist() == [12, 13, 14, 15]
    assert larger.get_state()["content"] == "second"


def test_a_position_without_a_data_set_continues_with_a_note():
    old = make().get_state()
    assert "content" not in old
    assert "does not record the identity" in make(content="first").set_state(old)
    with pytest.raises(UserError, match="records is 10, this run has 12"):
        make(source=Source(12), content="first").set_state(old)


def test_unshuffled_batches_are_in_order():
    batches = take(make(shuffle=False), 3)
    assert np.concatenate([batch["index"] for batch in batches]).tolist() == [*range(10), 0, 1]
    assert_same(batches, take(make(shuffle=False), 3))


def test_a_split_smaller_than_the_batch_repeats():
    assert sorted(set(next(make(source=Source(2)))["index"].tolist())) == [0, 1]


@pytest.mark.parametrize(
    "spec, message",
    [
        ({**SPEC, "more": SPEC["noise"]}, "lacks 'more'"),
        ({name: SPEC[name] for name in ("value", "noise")}, "holds 'position'"),
        (
            {**SPEC, "value": records.ArraySpec((4, 3), np.float32, (None, None))},
            r"'value' is float32 \[4, 2\], .* float32 \[4, 3\]",
        ),
        ({**SPEC, "noise": records.ArraySpec((4,), np.float64, (None,))}, "'noise' is float32"),
    ],
)
def test_batch_must_fit_the_spec(spec, message):
    with pytest.raises(UserError, match=message):
        next(make(spec=spec))


def test_rows_must_agree():
    with pytest.raises(UserError, match=r"example of record \d: 'value' is of shape"):
        take(make(source=Source(wide=3)), 3)


def test_batch_must_divide():
    with pytest.raises(UserError, match="global_batch is 4, expected a multiple of the 3 processes"):
        make(process_count=3)


def test_padded_rows_are_filled_with_zeros() -> None:
    rows = [np.arange(6.0).reshape(3, 2), np.zeros((0, 2)), np.ones((4, 2))]
    examples = [{"x": pipeline.Padded(row, 4), "index": np.int32(i)} for i, row in enumerate(rows)]
    batch = pipeline.stack(examples)["x"]
    assert batch.tolist() == [[[0, 1], [2, 3], [4, 5], [0, 0]], [[0, 0]] * 4, [[1, 1]] * 4]
    with pytest.raises(UserError, match=r"record 1: 'x' is of shape \[5, 2\], expected \[4, 2\]"):
        pipeline.stack([examples[0], {"x": pipeline.Padded(rows[0], 5), "index": np.int32(1)}])
