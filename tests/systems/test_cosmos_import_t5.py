"""Pickled embeddings of Cosmos-Predict2: arrays are read, anything else is refused."""

import collections
import pathlib
import pickle

import numpy as np
import pytest

from jworld.encoders import registry
from jworld.systems.cosmos import import_t5
from jworld.utils.errors import UserError


def states(rows: int, seed: int = 0, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float16)


def data_set(folder: pathlib.Path, captions: dict[str, str], arrays: dict[str, object], protocol: int = 4) -> None:
    for name in ("metas", "t5_xxl"):
        (folder / name).mkdir()
    for name, caption in captions.items():
        (folder / "metas" / f"{name}.txt").write_text(caption)
    for name, array in arrays.items():
        (folder / "t5_xxl" / f"{name}.pickle").write_bytes(pickle.dumps([array], protocol))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_embeddings_reach_the_stored_encoder(tmp_path, capsys, protocol):
    door, sign = states(4), np.asfortranarray(states(3, 1))
    data_set(tmp_path, {"a": "a door\n", "b": "a sign", "c": " a door"}, {"a": door, "b": sign, "c": door}, protocol)
    import_t5.main(["--input", str(tmp_path)])
    text, glyphs = registry.read_embeddings(tmp_path / "t5_xxl.safetensors")
    assert glyphs is None
    assert (text.family, text.dim) == ("t5", 8)
    found = text.encode(["a sign", "a door", ""])
    np.testing.assert_array_equal(found[0], sign.astype(np.float32))
    np.testing.assert_array_equal(found[1], door.astype(np.float32))
    np.testing.assert_array_equal(found[2], np.zeros((1, 8)))
    assert "--text-embeddings" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metas", "t5_xxl", "t5_xxl.safetensors"]


class Trap:
    """An object whose unpickling creates a file."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (self.path,))


def test_nothing_in_a_pickle_is_executed(tmp_path):
    opened = tmp_path / "opened"
    pickle.loads(pickle.dumps([Trap(opened)]))
    opened.unlink()
    data_set(tmp_path, {"a": "a door"}, {"a": Trap(opened)})
    with pytest.raises(UserError, match=r"a\.pickle: it names pathlib\..*, which no array needs: expected"):
        import_t5.import_embeddings(tmp_path, tmp_path / "out.safetensors")
    assert not opened.exists()
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (pickle.dumps([states(3), states(3)]), "it holds something else"),
        (pickle.dumps(states(3)), "it holds something else"),
        (pickle.dumps([1.0]), "it holds something else"),
        (pickle.dumps([collections.OrderedDict()]), r"it names collections\.OrderedDict"),
        (pickle.dumps([np.float16(1)]), "it names numpy.*scalar"),
        (pickle.dumps([np.array([[{}]])]), "its array is of type 'O8'"),
        (pickle.dumps([np.zeros((2, 3), np.int64)]), "its array is of type 'i8'"),
        (pickle.dumps([np.zeros((2, 3), ">f2")]), "its array is of type 'f2'"),
        (pickle.dumps([states(3)[0]]), r"its array has shape \(8,\)"),
        (pickle.dumps([states(3)])[:-20], "is not a pickle that may be loaded"),
        (pickle.dumps([states(3)]).replace(b"K\x03K\x08", b"K\x04K\x08"), "its array of shape .* has 48 bytes"),
        (b"", "is empty"),
        (pickle.dumps([np.full((2, 3), np.nan, np.float16)]), "not finite"),
    ],
)
def test_pickles_of_other_things(tmp_path, content, message):
    data_set(tmp_path, {"a": "a door"}, {})
    (tmp_path / "t5_xxl" / "a.pickle").write_bytes(content)
    with pytest.raises(UserError, match=message):
        import_t5.import_embeddings(tmp_path, tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    "captions, arrays, message",
    [
        ({}, {}, r"has no \*\.pickle"),
        ({"a": "x"}, {"a": states(2), "b": states(2)}, r"metas/b\.txt is absent"),
        (
            {"a": "x", "b": "x"},
            {"a": states(2), "b": states(2, 1)},
            r"b\.pickle and .*a\.pickle differ, but both encode 'x'",
        ),
        ({"a": "x", "b": "y"}, {"a": states(2), "b": states(2, width=6)}, "different widths, 8 in .* and 6 in"),
    ],
)
def test_data_sets_that_do_not_fit(tmp_path, captions, arrays, message):
    data_set(tmp_path, captions, arrays)
    with pytest.raises(UserError, match=message):
        import_t5.import_embeddings(tmp_path, tmp_path / "out.safetensors")
