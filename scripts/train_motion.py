"""Train the network that reads motion from generated videos, on recorded episodes.

    python scripts/train_motion.py --episodes data/rooms256/episodes --output motion.safetensors

Prints the accuracy on held-out episodes, also of blurred and noisy frames, as generated ones may be.
"""

import pathlib
from collections.abc import Iterator, Sequence

import jworld  # noqa: F401 - before JAX, whose environment it sets up

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.progress
from flax import nnx

from jworld.cameras import actions
from jworld.data.recording import episodes
from jworld.evaluation import motion as measures
from jworld.models import motion
from jworld.utils import arguments, errors, outputs

BATCH, LEARNING_RATE, WEIGHT_DECAY, NUMBERS_WEIGHT = 128, 2e-3, 0.05, 0.1
#: Action label -> the label with left and right swapped.
MIRRORED, _ = actions.swap_left_right(np.arange(actions.NUM_LABELS), np.eye(4))


class Examples:
    """Motions of a split: windows uint8 [N, 5, H, W, 3], labels [N], numbers [N, 3]."""

    def __init__(self, directory: pathlib.Path, split: str, config: motion.MotionConfig) -> None:
        names = [entry["name"] for entry in episodes.read_manifest(directory)["episodes"] if entry["split"] == split]
        if not names:
            raise errors.UserError(f"--episodes {directory}: no episode has the split {split!r}: record more")
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for name in rich.progress.track(names, f"reading {split}"):
            episode = episodes.read_episode(directory, name)
            w2c = episode.w2c[:: actions.FRAMES_PER_LATENT]
            frames = measures.resized(episode.frames[: 1 + actions.FRAMES_PER_LATENT * (len(w2c) - 1)], config)
            labels = actions.labels_from_poses(w2c, min_translation=actions.TRAINING_MIN_TRANSLATION)[1:]
            parts.append((measures.windows(frames), labels, measures.true_numbers(w2c)))
        self.windows, self.labels, self.numbers = (np.concatenate(values) for values in zip(*parts, strict=True))

    def batches(self, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield batches without end; half of them are mirrored."""
        rng = np.random.default_rng(seed)
        while True:
            order = rng.permutation(len(self.labels))
            size = min(BATCH, len(order))
            for start in range(0, len(order) - size + 1, size):
                chosen = order[start : start + size]
                windows, labels, numbers = self.windows[chosen], self.labels[chosen], self.numbers[chosen]
                if rng.random() < 0.5:
                    labels, windows, numbers = MIRRORED[labels], windows[..., ::-1, :], numbers * [-1, 1, -1]
                yield windows, labels, numbers


def disturb(images: jax.Array, key: jax.Array) -> jax.Array:
    """Blur, add noise and change the contrast of images [N, 5, H, W, 3] in [-1, 1], each sample by its own amount."""
    blur_key, noise_key, amount_key, light_key = jax.random.split(key, 4)
    count, frames, height, width, colors = images.shape
    small = (count, frames, height // 2, width // 2, colors)
    blurred = jax.image.resize(jax.image.resize(images, small, "linear"), images.shape, "linear")
    share = jax.random.uniform(blur_key, (count, 1, 1, 1, 1))
    noise = 0.1 * jax.random.uniform(amount_key, (count, 1, 1, 1, 1)) * jax.random.normal(noise_key, images.shape)
    light, contrast = jnp.split(
        jax.random.uniform(light_key, (count, 2, 1, 1, 1), minval=-0.15, maxval=0.15), 2, axis=1
    )
    return (images + share * (blurred - images)) * (1 + contrast) + light + noise


def loss(
    model: motion.MotionNetwork, windows: jax.Array, labels: jax.Array, numbers: jax.Array, key: jax.Array
) -> jax.Array:
    found = model(disturb(windows.astype(jnp.float32) / 127.5 - 1, key))
    move, turn = labels // actions.NUM_CLASSES, labels % actions.NUM_CLASSES
    classes = optax.softmax_cross_entropy_with_integer_labels
    error = (found.numbers - numbers) / jnp.array(model.config.scale)
    total: jax.Array = classes(found.move, move).mean() + classes(found.turn, turn).mean()
    return total + NUMBERS_WEIGHT * optax.huber_loss(error).mean()


@nnx.jit
def step(
    model: motion.MotionNetwork,
    optimizer: nnx.Optimizer[motion.MotionNetwork],
    windows: jax.Array,
    labels: jax.Array,
    numbers: jax.Array,
    key: jax.Array,
) -> jax.Array:
    value, grads = nnx.value_and_grad(loss)(model, windows, labels, numbers, key)
    optimizer.update(model, grads)
    return value


@jax.jit
def predict(
    model: motion.MotionNetwork, windows: jax.Array, key: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    images = windows.astype(jnp.float32) / 127.5 - 1
    found = model(images if key is None else disturb(images, key))
    return found.move.argmax(axis=-1), found.turn.argmax(axis=-1), found.numbers


def report(model: motion.MotionNetwork, examples: Examples, console: rich.console.Console) -> None:
    """Print the accuracy of moves, of turns and of both, and the median errors of the numbers."""
    for name, key in (("as recorded", None), ("blurred and noisy", jax.random.key(1))):
        parts = [predict(model, examples.windows[i : i + BATCH], key) for i in range(0, len(examples.labels), BATCH)]
        move, turn, numbers = (np.concatenate(values) for values in zip(*parts, strict=True))
        true_move, true_turn = np.divmod(examples.labels, actions.NUM_CLASSES)
        both = (move == true_move) & (turn == true_turn)
        right, forward, yaw = np.median(np.abs(numbers - examples.numbers), axis=0)
        console.print(
            f"held-out, {name}: moves {(move == true_move).mean():.2%}, turns {(turn == true_turn).mean():.2%}, both "
            f"{both.mean():.2%}; median errors {forward:.4f} forward, {right:.4f} right, {yaw:.3f} degrees"
        )


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.Parser("python scripts/train_motion.py", str(__doc__))
    parser.add_argument("--episodes", type=pathlib.Path, required=True, help="folder of recorded episodes")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="file to write, .safetensors")
    parser.add_argument("--steps", type=arguments.positive, default=4000, help="training steps")
    parser.add_argument("--seed", type=arguments.seed, default=0, help="random seed")
    options = parser.parse(argv)
    outputs.check_file("--output", options.output)
    console = rich.console.Console(highlight=False, soft_wrap=True)
    config = motion.MotionConfig()
    train, val = (Examples(options.episodes, split, config) for split in ("train", "val"))
    config = motion.MotionConfig(scale=tuple(float(x) for x in train.numbers.std(axis=0).clip(1e-3)))
    model = motion.MotionNetwork(config, rngs=nnx.Rngs(options.seed))
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, min(200, options.steps // 10), options.steps)
    optimizer = nnx.Optimizer(model, optax.adamw(schedule, weight_decay=WEIGHT_DECAY), wrt=nnx.Param)
    batches, key = train.batches(options.seed), jax.random.key(options.seed)
    for i in rich.progress.track(range(options.steps), "training", console=console):
        value = step(model, optimizer, *next(batches), jax.random.fold_in(key, i))
        if (i + 1) % 500 == 0:
            console.print(f"step {i + 1}: loss {float(value):.4f}")
    report(model, val, console)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    motion.save(model, options.output)
    console.print(f"wrote {options.output} ({options.output.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
