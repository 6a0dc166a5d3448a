"""The negative prompt's files: made from a text, and read by the import of published data."""

import json
import pathlib
import shlex

import ml_dtypes
import numpy as np
import published_set
import pytest

from jworld.data import records
from jworld.data.records import text_store
from jworld.encoders import registry
from jworld.systems.worldplay import encode_negative, import_data, published_files

torch = pytest.importorskip("torch")
tiny_encoders = pytest.importorskip("tiny_encoders")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_encoders.save(tmp_path_factory.mktemp("encoders"))


def test_the_files_have_the_published_layout(
    encoders: dict[str, str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my negative"
    spec = encoders["--text-encoder"]
    encode_negative.main(["--text-encoder", spec, "--output", str(folder), "--encoder-dtype", "float32"])
    contents = [torch.load(folder / name, weights_only=True) for name in published_set.NAMES]
    shapes = {key: (tuple(x.shape), x.dtype) for content in contents for key, x in content.items()}
    assert shapes == {
        "negative_prompt_embeds": ((1, 1000, tiny_encoders.TEXT_DIM), torch.float16),
        "negative_prompt_mask": ((1, 1000), torch.int64),
        "byt5_text_states": ((1, 256, 1472), torch.float32),
        "byt5_text_mask": ((1, 256), torch.int64),
    }
    negative = published_files.read_negative(*(folder / name for name in published_set.NAMES))
    (expected,) = registry.load_text_encoder(spec, registry.Options(dtype="float32")).encode([""])
    stored = expected.astype(np.float16).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(negative.text_states, stored)
    assert negative.glyph_states.shape == (0, 1472)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    assert str(folder / published_set.NAMES[0]) in shlex.split(line)


def test_the_import_uses_them(encoders: dict[str, str], tmp_path: pathlib.Path) -> None:
    """The printed command, on clips whose text has the same widths."""
    glyphs = encoders["--glyph-encoder"]
    encode_negative.main(
        [
            *("--prompt", 'no text like "SALE" ', "--text-encoder", encoders["--text-encoder"]),
            *("--glyph-encoder", glyphs, "--output", str(tmp_path / "negative")),
        ]
    )
    size = {**published_set.SIZE, "text": tiny_encoders.TEXT_DIM, "glyph": tiny_encoders.GLYPH_DIM}
    published_set.write_set(tmp_path / "published", 2, frames=4, size=size)
    index = tmp_path / "published" / "index.json"
    assert json.loads(index.read_text())
    prompt, glyph = (str(tmp_path / "negative" / name) for name in published_set.NAMES)
    import_data.main(
        [
            *("--index", str(index), "--negative-prompt", prompt, "--negative-glyph", glyph, "--min-frames=4"),
            *("--output", str(tmp_path / "set")),
        ]
    )
    store = text_store.TextStore(tmp_path / "set", records.read_manifest(tmp_path / "set"))
    (expected,) = registry.load_text_encoder(glyphs).encode(['no text like "SALE"'])
    assert len(expected)
    np.testing.assert_array_equal(store.prompt(0)["glyph_states"], expected.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--text-encoder", "none:16"), "--text-encoder none:16 gives no states"),
        (("--text-encoder", "none"), "an encoder is 'none'"),
        (("--text-encoder", "bert:x"), "there is no text encoder 'bert'"),
    ],
)
def test_encoders_that_are_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        encode_negative.main([*flags, "--output", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
