"""SigLIP vision tower of FLUX.1-Redux, the image encoder of HunyuanVideo-1.5 and WorldPlay (last hidden state)."""

import numpy as np

from jworld.encoders import base, sources, torch_models
from jworld.utils import pretrained

FAMILY = "siglip"
_PARTS = ("image_encoder", "feature_extractor")


class Siglip(base.ImageEncoder):
    """SigLIP encoder, from a flat folder or one with image_encoder/ and feature_extractor/.

    The states of the published model are [729, 1152] per image.
    """

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
        self._processor = pretrained.load_image_processor(
            sources.part(folder, "feature_extractor"), size=config.image_size
        )
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
        """Stretch images to the model's square and normalize them: uint8 [B, H, W, 3] -> float32 [B, 3, size, size]."""
        return pretrained.image_values(self._processor, images)
