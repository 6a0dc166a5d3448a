"""Pieces of parameters: each tensor once, in bands that fit into memory; threads; checksums in any order."""

import jax
import ml_dtypes
import numpy as np
import pytest

from conversion import digests, engine, pieces
from jworld.training import checksums

RULES = [
    engine.Rule("blocks.{layer}.up.weight", "blocks/up/kernel", engine.TRANSPOSED),
    engine.Rule("q.weight", "qkv/kernel", engine.TRANSPOSED, (0, 2)),
    engine.Rule("k.weight", "qkv/kernel", engine.TRANSPOSED, (1, 2)),
    engine.Rule("embed.weight", "embedding"),
    engine.Rule("bias", "bias"),
    engine.Rule("scale", "scale"),
]
SHAPES = {"blocks/up/kernel": (7, 6, 10), "qkv/kernel": (6, 12), "embedding": (31, 5), "bias": (300,), "scale": ()}


@pytest.mark.parametrize("chunk_rows", [1, 3])
def test_every_element_of_every_tensor_is_in_one_piece(monkeypatch: pytest.MonkeyPatch, chunk_rows: int) -> None:
    monkeypatch.setattr(pieces, "BAND", 250)
    random = np.random.default_rng(0)
    places = engine.plan(SHAPES, RULES)
    found: dict[str, list[np.ndarray]] = {}
    counts = {}
    for path, shape in SHAPES.items():
        array = random.normal(size=shape).astype(np.float32)
        described = jax.ShapeDtypeStruct(shape, array.dtype)
        split = list(pieces.split(path, described, engine.places_of(places, path), chunk_rows))
        counts[path] = len(split)
        assert sum(piece.size for piece in split) == array.nbytes
        for piece in split:
            part = array if piece.rows is None else array[piece.rows]
            if piece.rows is not None:
                assert piece.rows.start % chunk_rows == 0
                assert part.nbytes <= max(250, chunk_rows * array[:1].nbytes)
            for name, value, rows in piece.take(part):
                assert (rows is None) == (path != "embedding")
                found.setdefault(name, []).append(value)
        for name, place in engine.places_of(places, path).items():
            np.testing.assert_array_equal(
                np.concatenate(found[name]) if path == "embedding" else found[name][0], place.take(array)
            )
    assert found.keys() == places.keys()
    # One layer of 240 bytes, and 12 rows of 20 bytes; a matrix of several tensors and vectors stay whole.
    expected = {"blocks/up/kernel": 7, "embedding": 3} if chunk_rows == 1 else {"blocks/up/kernel": 3, "embedding": 3}
    assert counts == {"qkv/kernel": 1, "bias": 1, "scale": 1, **expected}


def test_the_first_error_of_a_thread_ends_the_work() -> None:
    done = []

    def work(number: int) -> None:
        if number == 3:
            raise OSError("disk")
        done.append(number)

    with pytest.raises(OSError, match="disk"):
        pieces.process(range(10_000), work)
    assert len(done) < 10_000


@pytest.mark.parametrize("dtype", ["float32", ml_dtypes.bfloat16, "uint8", "bool"])
def test_shares_of_a_checksum_in_any_order(dtype: type) -> None:
    array = np.random.default_rng(0).integers(0, 2, (5, 300, 77)).astype(dtype)
    expected = int(checksums.sum_and_finite(jax.numpy.asarray(array))[0])
    shares = [checksums.part_checksum(array[rows], rows.start * 300 * 77) for rows in (slice(3, 5), slice(0, 3))]
    assert sum(shares) % 2**32 == expected
    array[4, 299, 76] = 1 - array[4, 299, 76]
    assert checksums.part_checksum(array, 0) != expected


def test_a_digest_depends_on_every_byte_and_not_on_the_order() -> None:
    array = np.arange(60, dtype=np.float32).reshape(5, 4, 3)
    described = jax.ShapeDtypeStruct(array.shape, array.dtype)
    first, second = digests.Digest(described), digests.Digest(described)
    assert first.add(array)
    assert [second.add(array[start : start + 2], start) for start in (2, 0, 4)] == [False, False, True]
    assert first.entry() == second.entry()
    for change in (array[::-1], array + np.float32(0), array.reshape(5, 3, 4)):
        other = digests.Digest(jax.ShapeDtypeStruct(change.shape, change.dtype))
        other.add(change)
        same = change.shape == array.shape and np.array_equal(change, array)
        assert (other.entry() == first.entry()) == same
