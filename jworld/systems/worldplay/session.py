"""A rollout in pixels: what `generate` and interactive front ends drive."""

import jax
import jax.numpy as jnp
import numpy as np

from jworld.cameras import pose_strings
from jworld.data import worldplay
from jworld.data.encoders import Encoders
from jworld.models.autoencoders import linear
from jworld.models.hunyuan.text import TextInputs
from jworld.systems.worldplay.latents import Controls, LatentSession


class Session:
    """First frame and prompt in, then actions in and frames out, chunk by chunk, for as long as one likes."""

    def __init__(
        self,
        latents: LatentSession,
        encoders: Encoders,
        *,
        text_tokens: int,
        units: pose_strings.Units = pose_strings.PUBLISHED,
    ):
        """`units` say what a held key does."""
        self.latents, self.encoders, self.text_tokens, self.units = latents, encoders, text_tokens, units

    @property
    def chunk_frames(self) -> int:
        """Latent frames per step."""
        return self.latents.chunk_frames

    def reset(self, first_frame: np.ndarray, prompt: str, *, seed: int = 0) -> None:
        """Start from an image uint8 [H, W, 3] of any size; of another shape than the model's, its middle is taken."""
        image_latent, vision = self.encoders.image(centre_crop(first_frame, *self.encoders.image_size))
        prompts = [prompt] if self.latents.sample.guidance == 1 else ["", prompt]
        rows = [
            worldplay.padded(self.encoders.prompt(text)[: self.text_tokens], self.text_tokens, "text_tokens")
            for text in prompts
        ]
        states, mask = (np.stack(part) for part in zip(*rows, strict=True))
        vision = np.broadcast_to(vision, (len(states), *vision.shape))
        glyph, glyph_mask = self._no_glyphs(len(states))
        inputs = TextInputs(jnp.asarray(states), jnp.asarray(mask), jnp.asarray(vision), glyph, glyph_mask)
        self.latents.reset(image_latent, inputs, seed=seed)

    def step(self, action: Controls | str) -> np.ndarray:
        """One chunk -> frames uint8 [T, H, W, 3]: 1 + 4 (f - 1) in the first chunk, 4 f afterwards.

        `action` is where the camera is in each latent, or the keys held meanwhile: "w", "w+right", "none".
        """
        controls = self._held(action) if isinstance(action, str) else action
        first = self.latents.num_frames == 0
        return linear.to_uint8(self.encoders.autoencoder.decode_step(self.latents.step(controls), first=first))

    def _held(self, keys: str) -> Controls:
        after = self.latents.last_w2c if self.latents.num_frames else None
        path = pose_strings.held(keys, self.chunk_frames, self.units, after=after)
        return Controls(path.action, path.w2c, path.intrinsics)

    def _no_glyphs(self, rows: int) -> tuple[jax.Array | None, jax.Array | None]:
        dim = self.latents.model.cfg.glyph_dim
        if dim is None:
            return None, None
        return jnp.zeros((rows, 1, dim)), jnp.zeros((rows, 1), bool)


def centre_crop(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    """The largest middle part of an image [H, W, 3] that has the shape of width x height; made smaller nowhere."""
    rows, columns = frame.shape[:2]
    scale = min(columns / width, rows / height)
    kept_rows, kept_columns = round(height * scale), round(width * scale)
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    return frame[top : top + kept_rows, left : left + kept_columns]
