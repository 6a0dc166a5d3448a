"""A rollout in pixels: what `generate` and interactive front ends drive."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jworld.cameras import pose_strings
from jworld.data import pipeline
from jworld.encoders.model_encoders import Encoders
from jworld.evaluation.held_out import Controls
from jworld.models.hunyuan.text import TextInputs
from jworld.systems.worldplay import data
from jworld.systems.worldplay.latents import LatentSession


class Session:
    """First frame and prompt in, then actions in and frames out, chunk by chunk, for as long as one likes."""

    def __init__(
        self,
        latents: LatentSession,
        encoders: Encoders,
        *,
        clip: data.ClipConfig,
        units: pose_strings.Units = pose_strings.PUBLISHED,
    ):
        """`clip` has the limits of the text side, `units` say what a held key does."""
        self.latents, self.encoders, self.clip, self.units = latents, encoders, clip, units

    @property
    def chunk_frames(self) -> int:
        """Latent frames per step."""
        return self.latents.chunk_frames

    def reset(self, first_frame: np.ndarray, prompt: str, *, seed: int = 0) -> None:
        """Start from an image uint8 [H, W, 3] of any size; of another shape than the model's, its middle is taken.

        Of a video [T, H, W, 3] it is the last frame.
        """
        first_frame = first_frame[-1] if first_frame.ndim == 4 else first_frame
        image_latent, vision = self.encoders.image(centre_crop(first_frame, *self.encoders.image_size))
        assert vision is not None
        prompts = [prompt] if self.latents.sample.guidance == 1 else ["", prompt]
        rows = [self.encoders.prompt(text) for text in prompts]
        states, mask = self._padded(rows, "text")
        glyph, glyph_mask = self._padded(rows, "glyph") if self.clip.glyph_tokens else (None, None)
        vision = np.broadcast_to(vision, (len(rows), *vision.shape))
        self.latents.reset(image_latent, TextInputs(states, mask, jnp.asarray(vision), glyph, glyph_mask), seed=seed)
        self._decoder = self.encoders.autoencoder.stream()

    def step(self, action: Controls | str) -> np.ndarray:
        """One chunk -> frames uint8 [T, H, W, 3]: 1 + 4 (f - 1) in the first chunk, 4 f afterwards.

        `action` is where the camera is in each latent, or the keys held meanwhile: "w", "w+right", "none".
        """
        controls = self._held(action) if isinstance(action, str) else action
        return self._decoder.step(self.latents.step(controls))

    def _held(self, keys: str) -> Controls:
        after = self.latents.last_w2c if self.latents.num_frames else None
        path = pose_strings.held(keys, self.chunk_frames, self.units, after=after)
        return Controls(path.action, path.w2c, path.intrinsics)

    def _padded(self, rows: Sequence[Mapping[str, np.ndarray]], kind: str) -> tuple[jax.Array, jax.Array]:
        """States [B, S, D] and mask [B, S] of encoded prompts; what is beyond the limit is left out."""
        limit = f"{kind}_tokens"
        tokens = getattr(self.clip, limit)
        padded = [data.padded(row[f"{kind}_states"][:tokens], tokens, limit) for row in rows]
        batch = pipeline.stack([{"states": states, "mask": mask} for states, mask in padded])
        return jnp.asarray(batch["states"]), jnp.asarray(batch["mask"])


def centre_crop(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    """The largest middle part of an image [H, W, 3] that has the shape of width x height; made smaller nowhere."""
    rows, columns = frame.shape[:2]
    scale = min(columns / width, rows / height)
    kept_rows, kept_columns = round(height * scale), round(width * scale)
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    return frame[top : top + kept_rows, left : left + kept_columns]
