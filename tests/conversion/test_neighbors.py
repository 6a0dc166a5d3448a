"""Notes after an import: every other model in the folder of the published weights, with the command that uses it."""

import pathlib

import pytest

from conversion import families

#: Family, path of the network, other files of the folder -> notes.
FOLDERS = {
    ("cosmos", "Cosmos/model-720p-16fps.pt", ("tokenizer/tokenizer.pth",)): [
        "its autoencoder: python -m conversion import Cosmos/tokenizer/tokenizer.pth --output weights/wan"
    ],
    ("cosmos", "C/transformer/config.json", ("model_index.json", "vae/config.json", "text_encoder/config.json")): [
        "its autoencoder: python -m conversion import C/vae --output weights/wan",
        "its text encoder: --text-encoder t5-cosmos:C, for precompute and generate",
    ],
    ("cogvideox", "X/transformer/config.json", ("model_index.json", "vae/config.json", "text_encoder/config.json")): [
        "its autoencoder: python -m conversion import X/vae --output weights/cogvideox-vae",
        "its text encoder: --text-encoder t5-matrix:X, for precompute and generate",
    ],
    (
        "worldplay",
        "H/transformer/480p_i2v/diffusion_pytorch_model.safetensors",
        ("vae/config.json", "text_encoder/llm/x", "text_encoder/Glyph-SDXL-v2/x", "vision_encoder/siglip/x"),
    ): [
        "its autoencoder: python -m conversion import H/vae --output weights/hunyuan15-vae",
        "its text encoder: --text-encoder qwen2.5-vl:H/text_encoder/llm, for precompute and generate",
        "its glyph encoder: --glyph-encoder byt5-glyph:H/text_encoder, for precompute and generate",
        "its image encoder: --image-encoder siglip:H/vision_encoder/siglip, for precompute and generate",
    ],
    # Not the folder of published weights.
    ("cosmos", "Cosmos/model-720p-16fps.pt", ("vae/config.json",)): [],
    ("worldplay", "mine/model.safetensors", ("vae/config.json",)): [],
}


@pytest.mark.parametrize(("given", "expected"), FOLDERS.items())
def test_notes(
    given: tuple[str, str, tuple[str, ...]],
    expected: list[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    family, network, others = given
    path = pathlib.Path(network)
    for name in (network, *(f"{path.parts[0]}/{other}" for other in others)):
        file = pathlib.Path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    notes = families.FAMILIES[family].folder_notes
    assert notes(path) == expected
    # Also for the folder of the file.
    assert notes(path.parent) == expected
