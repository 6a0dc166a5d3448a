"""What the settings of several systems must have in common."""

from collections.abc import Sequence

from jworld.utils import errors


def latents_fit_patches(latent_size: Sequence[int], patch_size: Sequence[int]) -> None:
    """A UserError where a latent frame (height, width) does not divide into patches."""
    if any(size % patch for size, patch in zip(latent_size, patch_size, strict=True)):
        raise errors.UserError(
            f"config.data.clip.latent_size {tuple(latent_size)} is no multiple of config.model.patch_size "
            f"{tuple(patch_size)}"
        )


def frames_fit_mesh(window_frames: int, sequence: int) -> None:
    """A UserError where the mesh does not split the latent frames of a window into equal parts."""
    if sequence > 0 and window_frames % sequence:
        raise errors.UserError(
            f"config.mesh.sequence is {sequence}, which does not divide config.data.clip.window_frames "
            f"{window_frames}: choose a divisor of it"
        )
