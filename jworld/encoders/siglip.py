"""The SigLIP vision tower of FLUX.1-Redux, as HunyuanVideo-1.5 and WorldPlay use it: last hidden state, no mask."""

import pathlib

import numpy as np
import PIL.Image

from jworld.encoders import base, sources, torch_models
from jworld.utils.errors import UserError

FAMILY = "siglip"
_PARTS = ("image_encoder", "feature_extractor")
_FIX = "download the model's preprocessor_config.json"


class Siglip(base.ImageEncoder):
    """SigLIP, from a flat folder or from one with image_encoder/ and feature_extractor/; the published: [729, 1152]."""

    def __init__(self, source: str, options: torch_models.Options) -> None:
        self._batch_size = options.batch_size
        dtype, self._device = options.dtype or "float16", torch_models.resolve_device(options)
        folder = sources.open_folder(source, parts=_PARTS)
        weights = sources.part(folder, "image_encoder")
        sources.check_model_type(weights, expected=("siglip_vision_model", "siglip"), kind=FAMILY)
        self._model = torch_models.load_model(
            "SiglipVisionModel", weights, dtype=dtype, device=self._device, unneeded=r"text_model\.|logit_"
        )
        config = self._model.config
        path = sources.part(folder, "feature_extractor") / "preprocessor_config.json"
        self._size = config.image_size
        self._resample, self._mean, self._std = _read_preprocessor(path, config.image_size)
        self.entry = base.Entry(
            kind=FAMILY,
            family=FAMILY,
            source=source,
            hash=sources.fingerprint(folder, parts=_PARTS),
            dtype=dtype,
            tokens=(config.image_size // config.patch_size) ** 2,
            dim=config.hidden_size,
        )

    def encode(self, images: np.ndarray) -> np.ndarray:
        torch = torch_models.require("torch")
        states = []
        for batch in torch_models.batches(images, self._batch_size):
            pixels = torch.from_numpy(self.pixels(batch)).to(self._device, self._model.dtype)
            with torch.inference_mode():
                states.append(self._model(pixel_values=pixels).last_hidden_state.float().cpu().numpy())
        torch_models.check_finite(states, self._model.dtype)
        return np.concatenate(states)

    def pixels(self, images: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3] -> float32 [B, 3, size, size], stretched to the square and normalised.

        Resized on bytes by Pillow, as when the published states were made; resizing on floats gives other pixels.
        """
        size = (self._size, self._size)
        resized = [np.asarray(PIL.Image.fromarray(image).resize(size, self._resample)) for image in images]
        scaled = np.stack(resized).astype(np.float32) / np.float32(255)
        return ((scaled - self._mean) / self._std).transpose(0, 3, 1, 2)


def _read_preprocessor(path: pathlib.Path, image_size: int) -> tuple[PIL.Image.Resampling, np.ndarray, np.ndarray]:
    """How to resize, and mean and standard deviation [3] of the pixels, from preprocessor_config.json."""
    config = sources.read_json(path, fix=_FIX)
    expected = {
        "size": {"height": image_size, "width": image_size},
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
    }
    for key, value in expected.items():
        if config.get(key) != value:
            raise UserError(f"{path}: {key} is {config.get(key)}, expected {value}: {_FIX}")
    try:
        resample = PIL.Image.Resampling(config["resample"])
        mean, std = (np.array(config[key], np.float32).reshape(3) for key in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: resample, image_mean or image_std is missing or wrong: {_FIX}") from error
    if abs(config.get("rescale_factor", 0) * 255 - 1) > 1e-6:
        raise UserError(f"{path}: rescale_factor is {config.get('rescale_factor')}, expected 1/255: {_FIX}")
    return resample, mean, std
