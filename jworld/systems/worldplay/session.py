"""Step-by-step generation of a rollout in pixels."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jworld.cameras import pose_strings
from jworld.data import pipeline
from jworld.data.inputs import fitting
from jworld.diffusion import step_reports
from jworld.encoders.model_encoders import Encoders
from jworld.evaluation.held_out import Controls, FirstImage
from jworld.models.hunyuan.text import TextInputs
from jworld.parallel import axes
from jworld.parallel.programs import Program
from jworld.systems import frame_sizes, live, sessions
from jworld.systems.worldplay import data
from jworld.systems.worldplay.latents import LatentSession
from jworld.utils import errors


class CenteredFit(fitting.Fit):
    """A `Fit` that rounds the corner of its crop to whole pixels as HunyuanVideo-1.5 does, half to even."""

    def _corner(self, width: int, height: int) -> tuple[int, int]:
        return round((width - self.width) / 2), round((height - self.height) / 2)


class Session:
    """A `VideoSession`: each step generates a chunk of frames."""

    def __init__(
        self,
        latents: LatentSession,
        encoders: Encoders,
        *,
        clip: data.ClipConfig,
        units: pose_strings.Units = pose_strings.PUBLISHED,
        sizes: frame_sizes.FrameSizes | None = None,
    ):
        """Open a session.

        Args:
          latents: session without the encoders.
          encoders: encoders of the model's data.
          clip: limits of text tokens.
          units: motion of a held key.
          sizes: sizes of images for the image encoder, of which it receives the one nearest to the image's own shape;
            None for the model's size.
        """
        self.latents, self.encoders, self.clip, self.units, self.sizes = latents, encoders, clip, units, sizes

    @property
    def chunk_frames(self) -> int:
        """Latent frames per step."""
        return self.latents.chunk_frames

    def reset(
        self,
        first_frame: np.ndarray | None,
        prompt: str,
        *,
        seed: int = 0,
        negative_prompt: str | None = None,
        first: FirstImage | None = None,
    ) -> None:
        """Start from an image uint8 [H, W, 3] of any size, or from the last frame of a video [T, H, W, 3].

        The image is scaled to cover the model's size and cropped around its center, as in data sets. `first` has its
        stored states, which are used instead of the encoders. The negative branch has no glyph states, as in the
        original.

        Raises:
          UserError: the image encoder is absent.
        """
        image_latent, vision = self._encoded(sessions.as_video(first_frame)[-1]) if first is None else first
        if vision is None:
            raise errors.UserError(
                "the image encoder of the data set is absent, so only held-out clips with stored states can be "
                "continued: give --image-encoder, or to jworld.train --config.sample.encoders.image_encoder"
            )
        rows = [self.encoders.prompt(prompt)]
        if self.latents.sample.guidance != 1:
            negative = self.latents.sample.negative_prompt if negative_prompt is None else negative_prompt
            arrays = self.encoders.prompt(negative)
            rows.insert(0, {name: x[:0] if name == "glyph_states" else x for name, x in arrays.items()})
        states, mask = self._padded(rows, "text")
        glyph, glyph_mask = self._padded(rows, "glyph") if self.clip.glyph_tokens else (None, None)
        vision = np.broadcast_to(vision, (len(rows), *vision.shape))
        self.latents.reset(image_latent, TextInputs(states, mask, jnp.asarray(vision), glyph, glyph_mask), seed=seed)
        self._decoder = self.encoders.autoencoder.stream()

    def watch(self, listener: step_reports.Listener | None) -> None:
        """See `WatchedSession`."""
        self.latents.listener = listener

    def programs(self) -> Iterator[Program]:
        """See `CompiledSession`."""
        cfg, clip, rows = self.latents.model.cfg, self.clip, 1 if self.latents.sample.guidance == 1 else 2

        def described(tokens: int, width: int) -> Any:
            return axes.described((rows, tokens, width))

        def mask(tokens: int) -> Any:
            return axes.described((rows, tokens), bool)

        with_glyphs = clip.glyph_tokens > 0 and cfg.glyph_dim is not None
        text = TextInputs(
            described(clip.text_tokens, cfg.text_dim),
            mask(clip.text_tokens),
            described(clip.vision_tokens, cfg.vision_dim),
            described(clip.glyph_tokens, cfg.glyph_dim or 0) if with_glyphs else None,
            mask(clip.glyph_tokens) if with_glyphs else None,
        )
        return self.latents.programs(text, (1, *clip.latent_size, cfg.channels))

    @property
    def new_frames(self) -> int:
        """See `PlannedSession`."""
        return self.encoders.autoencoder.temporal_ratio * self.chunk_frames

    def decoding(self) -> Iterator[Program]:
        """See `PlannedSession`."""
        shape = (1, *self.clip.latent_size, self.latents.model.cfg.channels)
        return self.encoders.autoencoder.streaming(shape, runs=self.chunk_frames)

    def step(self, action: Controls | str) -> np.ndarray:
        """Generate a chunk, uint8 [T, H, W, 3]: 1 + 4 (f - 1) frames in the first chunk, then 4 f.

        `action` has the camera of each latent, or the keys that are held during the chunk: "w", "w+right", "none".
        """
        return np.concatenate(list(self.decode(self.advance(action))))

    def advance(self, action: Controls | str) -> np.ndarray:
        """See `LiveSession`."""
        return self.latents.step(self._held(action) if isinstance(action, str) else action)

    def decode(self, latents: np.ndarray) -> Iterator[np.ndarray]:
        """See `LiveSession`; a part is a latent."""
        for number in range(len(latents)):
            yield self._decoder.step(latents[number : number + 1])

    def view(self) -> live.View:
        """See `ViewedSession`."""
        return self.latents.view()

    def _encoded(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        if self.sizes is None:
            return self.encoders.image(image)
        width, height = self.sizes.choose(None, (image.shape[1], image.shape[0]))
        fit = CenteredFit(width=width, height=height, resampling=self.encoders.fit.resampling)
        return self.encoders.image(image, seen=fit.frame(image))

    def _held(self, keys: str) -> Controls:
        after = self.latents.last_w2c if self.latents.num_frames else None
        path = pose_strings.held(keys, self.chunk_frames, self.units, after=after)
        return Controls(path.action, path.w2c, path.intrinsics)

    def _padded(self, rows: Sequence[Mapping[str, np.ndarray]], kind: str) -> tuple[jax.Array, jax.Array]:
        """Return states [B, S, D] and mask [B, S] of encoded prompts, cropped or padded to the limit of tokens."""
        limit = f"{kind}_tokens"
        tokens = getattr(self.clip, limit)
        padded = [data.padded(row[f"{kind}_states"][:tokens], tokens, limit) for row in rows]
        batch = pipeline.stack([{"states": states, "mask": mask} for states, mask in padded])
        return jnp.asarray(batch["states"]), jnp.asarray(batch["mask"])
