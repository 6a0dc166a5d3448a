"""The Matrix' endless stream: conditioning of a window, its start, and constant memory."""

import collections
import dataclasses
import gc
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from tiny_systems import make_model

from jworld.cameras import driving
from jworld.systems import generation
from jworld.systems.matrix import sampling, streaming
from jworld.systems.matrix.system import Matrix
from jworld.utils import config as run_config
from jworld.utils import errors

RECIPES = pathlib.Path(__file__).parents[2] / "configs"
CHANNELS, SIZE = 4, (2, 4)


def make_config(recipe: str, **changes: Any) -> ml_collections.ConfigDict:
    """Load a recipe with a model of a few thousand parameters."""
    config = run_config.load_recipe(f"{RECIPES / recipe}")
    with config.unlocked():
        sizes = {"channels": CHANNELS, "width": 32, "num_heads": 2, "num_layers": 2, "time_dim": 16, "text_dim": 8}
        config.model.update(sizes | {"text_tokens": 5, "control_dim": 6, "control_layers": (1, 2)})
        config.data.clip.latent_size = SIZE
        config.sample.rollout.update({"window_frames": 1, "num_steps": 4})
        config.data.clip.window_frames = 5
        config.update_from_flattened_dict(changes)
    return config


class Stream:
    """A decoder that records its last inputs."""

    def __init__(self) -> None:
        self.inputs: collections.deque[np.ndarray] = collections.deque(maxlen=8)

    def step(self, latents: np.ndarray) -> np.ndarray:
        """Return one frame for the first latent of all, and four for every other one."""
        frames = np.round(127 + 30 * latents[..., :3]).clip(0, 255).astype(np.uint8).repeat(4, axis=0)
        frames = frames[3:] if not self.inputs else frames
        self.inputs.append(latents)
        return frames


class TinyAutoencoder:
    """A minimal autoencoder: one pixel per latent pixel."""

    temporal_ratio = 4

    def encode(self, video: np.ndarray) -> np.ndarray:
        return np.pad(video[:, ::4].astype(np.float32) / 255, [(0, 0)] * 4 + [(0, CHANNELS - 3)])

    def stream(self) -> Stream:
        self.last = Stream()
        return self.last


class Fit:
    def frame(self, frame: np.ndarray) -> np.ndarray:
        return frame


class Encoders:
    def __init__(self) -> None:
        self.autoencoder, self.fit = TinyAutoencoder(), Fit()

    def resize(self, frame: np.ndarray) -> np.ndarray:
        return self.fit.frame(frame)

    def prompt(self, prompt: str) -> dict[str, np.ndarray]:
        return {"text_states": np.full((1 + len(prompt) % 3, 8), 0.1 + 0.1 * len(prompt), np.float32)}


def make_session(system: Matrix) -> streaming.StreamSession:
    session = system.session(make_model(system, scale=0.3), Encoders())  # type: ignore[arg-type]
    assert isinstance(session, streaming.StreamSession)
    return session


@pytest.fixture(scope="module")
def system() -> Matrix:
    return Matrix(make_config("matrix_swin_dpm.py"))


@pytest.fixture(scope="module")
def session(system: Matrix) -> streaming.StreamSession:
    return make_session(system)


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Names of JAX's compilation events."""
    events: list[str] = []

    def listen(event: str, start_time: float, end_time: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            events.append(event)

    jax.monitoring.register_event_time_span_listener(listen)
    yield events
    jax.monitoring.unregister_event_time_span_listener(listen)


IMAGE = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def test_500_windows_need_the_memory_and_programs_of_one(
    session: streaming.StreamSession, compilations: list[str]
) -> None:
    def live() -> tuple[int, int]:
        gc.collect()
        arrays = jax.live_arrays()
        return len(arrays), sum(array.nbytes for array in arrays)

    session.reset(IMAGE, "rooms")
    for _ in range(10):
        session.step("DR")
    compilations.clear()
    before = live()
    for i in range(500):
        frames = session.step(driving.TOKENS[i % 9])
        assert frames.shape == (4, *SIZE, 3)
    assert live() == before
    assert not compilations


def test_a_stream_needs_an_image(session: streaming.StreamSession) -> None:
    with pytest.raises(errors.UserError, match="first_frame is None, but the model continues an image"):
        session.reset(None, "rooms")


def test_a_held_key_applies_to_the_frames_that_enter(session: streaming.StreamSession) -> None:
    """Only the noisiest frames are conditioned on it."""
    assert session.delay == 4
    session.reset(IMAGE, "rooms")
    assert session._tokens == ("N",) * 5
    session.step("DL")
    session.step("DL")
    session.step("B")
    assert session._tokens == ("N", "N", "DL", "DL", "B")
    session.reset(np.stack([IMAGE] * 9), "rooms")
    assert session._tokens == ("D",) * 5


def test_every_frame_of_a_script_has_its_own_token(session: streaming.StreamSession) -> None:
    actions = streaming.script(driving.parse("D*2,DR,N"), session.sample)
    assert [action.name for action in actions] == ["D", "D", "DR", "N"]
    tokens = [action.control.tokens for action in actions]
    assert tokens[0] == ("D", "D", "D", "DR", "N")
    assert tokens[1] == ("D", "D", "DR", "N", "N")
    assert tokens[3] == ("DR", "N", "N", "N", "N")
    threes = sampling.SampleConfig(mode="stream", window_frames=3, groups=2)
    with pytest.raises(errors.UserError, match="--actions has 5 "):
        streaming.script(("D",) * 5, threes)


def test_the_stream_depends_on_image_prompt_actions_and_seed(session: streaming.StreamSession) -> None:
    def generated(image: np.ndarray = IMAGE, prompt: str = "rooms", action: str = "D", seed: int = 0) -> np.ndarray:
        session.reset(image, prompt, seed=seed)
        return np.concatenate([session.advance(action) for _ in range(5)])

    base = generated()
    np.testing.assert_array_equal(generated(), base)
    for other in (generated(IMAGE[::-1]), generated(prompt="mazes!"), generated(action="DL"), generated(seed=1)):
        assert np.abs(other - base).max() > 1e-3
    session.reset(IMAGE, "rooms")
    changed = [session.advance("D")]
    session.describe("mazes!")
    changed += [session.advance("D") for _ in range(4)]
    np.testing.assert_array_equal(changed[0], base[:1])
    assert np.abs(np.concatenate(changed[1:]) - base[1:]).max() > 1e-3


def test_the_decoder_receives_the_clip_before_the_stream_and_then_every_latent_once(
    session: streaming.StreamSession,
) -> None:
    video = np.random.default_rng(2).integers(0, 256, (30, *SIZE, 3), dtype=np.uint8)
    session.reset(video, "rooms")
    assert session.start_frames == 21
    latents = session.encoders.autoencoder.encode(video[None, -21:])[0]
    first = session.step("D")
    inputs = session.encoders.autoencoder.last.inputs  # type: ignore[attr-defined]
    # A clip's first latent, the context frame, and the generated latent.
    np.testing.assert_array_equal(inputs[0][:2], latents[:2])
    assert len(inputs[0]) == 3
    session.step("D")
    assert [len(part) for part in inputs] == [3, 1]
    np.testing.assert_array_equal(
        first, np.round(127 + 30 * inputs[0][2:, ..., :3]).clip(0, 255).astype(np.uint8).repeat(4, 0)
    )


def test_an_even_number_of_latents_reaches_the_decoder_whole_and_an_odd_one_in_pairs(system: Matrix) -> None:
    session = make_session(system)
    for count, parts in ((2, [2]), (4, [4]), (3, [2, 1]), (5, [2, 2, 1])):
        session._before, session._decoder = None, Stream()  # type: ignore[assignment]
        session._decoder.inputs.append(np.zeros(0))  # type: ignore[attr-defined]
        decoded = session.decode(np.zeros((count, *SIZE, CHANNELS), np.float32))
        assert [len(part) for part in decoded] == [4 * part for part in parts]
        assert [len(part) for part in session._decoder.inputs][1:] == parts  # type: ignore[attr-defined]


def test_guidance_on_the_control_moves_away_from_no_control(system: Matrix) -> None:
    """With scale 3 the effect of the control counts three times."""
    model, table = make_model(system, scale=0.3), system.control_table()
    assert table is not None
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.standard_normal((1, 5, *SIZE, CHANNELS)), jnp.float32)
    text = jnp.asarray(rng.standard_normal((2, 5, 8)), jnp.float32)
    control = jnp.asarray(table[:5])[None]
    times = jnp.array([[0, 100, 350, 600, 850]])

    none = jnp.broadcast_to(table[-1], control.shape)
    plain = sampling.SampleConfig()

    def velocities(model: Any) -> list[jax.Array]:
        def velocity(conditions: sampling.Conditions, sample: sampling.SampleConfig = plain) -> jax.Array:
            return sampling.guided_velocity(model, x, conditions, times, 2.0, sample)

        guided = velocity(
            sampling.Conditions(text, control, jnp.asarray(table[-1])), sampling.SampleConfig(control_guidance=3.0)
        )
        on_text = velocity(sampling.Conditions(text, control))
        alone, uncontrolled = (velocity(sampling.Conditions(text[1:], each)) for each in (control, none))
        return [guided, on_text, alone, uncontrolled]

    guided, on_text, alone, uncontrolled = jax.jit(velocities)(model)
    np.testing.assert_allclose(guided, on_text + 2 * (alone - uncontrolled), atol=2e-5)
    assert np.abs(guided - on_text).max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample.rollout.num_steps": 6}, "num_steps is 6, expected a multiple of the 4 groups"),
        ({"data.clip.window_frames": 8}, "window_frames is 8, expected one more than a multiple"),
        ({"sample.rollout.mode": "clip", "sample.rollout.solver": "consistency"}, "which generates streams"),
        ({"loss.groups": 7}, "groups is 7, expected a divisor of 1000"),
    ],
)
def test_contradictions_are_reported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        Matrix(make_config("matrix_swin_dpm.py", **changes))


@pytest.mark.parametrize(
    ("actions", "windows", "message"),
    [
        ("D*3,U", None, "found 'U', expected <token>"),
        ("D*0", None, r"found 'D\*0'"),
        (None, None, "the model needs driving tokens: give --actions"),
        ("D", 3, "and no --windows"),
    ],
)
def test_bad_actions_are_reported(system: Matrix, actions: str | None, windows: int | None, message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        system.controls(actions, windows)


def test_tokens_counted_as_in_the_original(system: Matrix, capsys: pytest.CaptureFixture[str]) -> None:
    """One token more than whole windows: the first one belongs to the given frame."""
    sample = dataclasses.replace(system.sample, window_frames=4)
    ours = streaming.script(driving.parse("DR*4,N*28"), sample)
    assert capsys.readouterr().err == ""
    theirs = streaming.script(driving.parse("D,DR*4,N*28"), sample)
    assert "has 33 tokens: the first one belongs to the given frame, as in the original" in capsys.readouterr().err
    assert len(theirs) == len(ours) == 8
    assert theirs[0].control.tokens[0] == "D"
    assert theirs[0].control.tokens[1:] == ours[0].control.tokens[1:]
    assert theirs[1:] == ours[1:]
    assert len(system.controls("random*8", None)) == 8 // system.sample.window_frames


def test_streams_that_end_within_a_window(system: Matrix) -> None:
    size = 3
    sample = dataclasses.replace(system.sample, window_frames=size)
    with pytest.raises(errors.UserError, match=r"has 5 latents, expected a multiple of 3, a window: add 1, or give"):
        streaming.script(("D",) * 5, sample)
    padded = streaming.script((*["D"] * 4, "N"), sample, "pad")
    assert [action.name for action in padded] == ["D*3", "D, N*2"]
    assert [action.name for action in streaming.script((*["D"] * 4, "N"), sample, "cut")] == ["D*3"]


def test_the_stream_needs_an_image(system: Matrix) -> None:
    assert system.steering == "--actions"
    with pytest.raises(errors.UserError, match="--image is missing"):
        generation.find_start(None, system, fps=None)
