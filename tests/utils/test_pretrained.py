"""Files of published models through transformers: late, quiet, local, without PyTorch and without foreign code."""

import json
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from jworld.utils import pretrained
from jworld.utils.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
TOKENIZER = ROOT / "assets" / "tokenizer"
PROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "size": {"height": 8, "width": 8},
}
#: Makes importing PyTorch fail, as where it is not installed, and any use of the network.
ALONE = """
import importlib.machinery, socket

finder = importlib.machinery.PathFinder
find_spec = finder.find_spec

def without_torch(name, path=None, target=None):
    return None if name.split(".")[0] in ("torch", "torchvision") else find_spec(name, path, target)

def refuse(*arguments, **options):
    raise AssertionError("network access")

finder.find_spec = staticmethod(without_torch)
socket.socket.connect = socket.getaddrinfo = refuse
"""


def run(code: str, *, prelude: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh process, from the folder of the checkout."""
    program = prelude + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_no_command_imports_transformers_to_start() -> None:
    """Importing it takes seconds where PyTorch is installed."""
    found = run("""
        import sys
        import conversion.__main__
        import jworld.doctor, jworld.evaluate, jworld.generate, jworld.plan, jworld.precompute.__main__, jworld.train
        print("transformers" in sys.modules)
    """)
    assert found.stdout == "False\n", found.stderr


def test_files_are_read_without_pytorch_network_and_noise(tmp_path: pathlib.Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    found = run(
        f"""
        import pathlib, sys
        import numpy as np
        from conversion import gemma3_config
        from jworld.utils import pretrained
        tokenizer = pretrained.load_tokenizer(pathlib.Path({str(TOKENIZER)!r}))
        processor = pretrained.load_image_processor(pathlib.Path({str(tmp_path)!r}), size=8)
        values = pretrained.image_values(processor, np.full((1, 5, 9, 3), 255, np.uint8))
        config = gemma3_config.from_config({{"text_config": {{"hidden_size": 64}}}}, "config.json")
        print(tokenizer.bos_token, values.shape, values.max(), config["width"], "torch" in sys.modules)
        """,
        prelude=ALONE,
    )
    assert found.stdout == "<bos> (1, 3, 8, 8) 1.0 64 False\n", found.stderr
    assert found.stderr == ""


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "0"):
        if value is None:
            monkeypatch.delenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", raising=False)
        else:
            monkeypatch.setenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", value)
        with pretrained.quiet() as transformers:
            assert transformers.utils.logging.get_verbosity() == transformers.utils.logging.ERROR
        assert pretrained.os.environ.get("TRANSFORMERS_NO_ADVISORY_WARNINGS") == value


@pytest.mark.parametrize("kind", ["tokenizer", "image processor"])
def test_code_of_a_model_is_not_run(tmp_path: pathlib.Path, kind: str) -> None:
    """A folder may name classes of its own; they are neither imported nor asked about."""
    proof = tmp_path / "was_run"
    (tmp_path / "own.py").write_text(f"open({str(proof)!r}, 'w')\nclass Own: pass\n")
    if kind == "tokenizer":
        (tmp_path / "tokenizer.json").write_bytes((TOKENIZER / "tokenizer.json").read_bytes())
        config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=r"^tokenizer in .* cannot be read \(.*\): download the model again$"):
            pretrained.load_tokenizer(tmp_path)
    else:
        config = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | config))
        with pytest.raises(UserError, match=r"preprocessor_config.json is not usable \(.*\): download the model's"):
            pretrained.load_image_processor(tmp_path, size=8)
    assert not proof.exists()


def test_a_processor_saved_by_version_5_has_one_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"preprocessor_config.json is absent: download the model's"):
        pretrained.load_image_processor(tmp_path, size=8)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": PROCESSOR}))
    processor = pretrained.load_image_processor(tmp_path, size=8)
    black, white = pretrained.image_values(processor, np.stack([np.full((4, 4, 3), v, np.uint8) for v in (0, 255)]))
    assert (black.min(), black.max(), white.min(), white.max()) == (-1, -1, 1, 1)
