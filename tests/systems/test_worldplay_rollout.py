"""WorldPlay's rollouts: fixed shapes, the KV cache, context frames, meshes, constant memory."""

import dataclasses
import functools
import pathlib
import sys
from typing import Any

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity_checks import worldplay as parity

from jworld.cameras import memory, pose_strings
from jworld.evaluation.held_out import Controls
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import HunyuanTransformer
from jworld.parallel import axes, mesh
from jworld.systems.worldplay import latents
from jworld.systems.worldplay.autoregressive import AutoregressiveSession
from jworld.systems.worldplay.bidirectional import BidirectionalSession
from jworld.systems.worldplay.latents import LatentSession

ROOT = pathlib.Path(__file__).parents[2]
CHUNK, SIZE, CHANNELS = 4, (2, 2), 4
MEMORY = latents.MemoryConfig(chunk_frames=CHUNK, memory_frames=3 * CHUNK, temporal_context=CHUNK)
CONFIG = HunyuanConfig(
    channels=CHANNELS,
    width=32,
    num_heads=4,
    num_layers=2,
    rope_dims=(4, 2, 2),
    refiner_layers=1,
    text_dim=6,
    glyph_dim=None,
    vision_dim=5,
    dtype=jnp.float32,
    remat="none",
)
BOTH = pytest.mark.parametrize("kind", [AutoregressiveSession, BidirectionalSession])


@functools.cache
def split_model(cfg: HunyuanConfig = CONFIG) -> tuple[nnx.GraphDef, nnx.State]:
    """Make a model without zero weights, because zero gates would hide the blocks."""
    with nnx.use_eager_sharding(False):
        graphdef, params = nnx.split(nnx.eval_shape(lambda: HunyuanTransformer(cfg, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    return graphdef, jax.tree.map(lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape), x.dtype), params)


def make_session(kind: type[LatentSession], *, guidance: float = 1.0, model: Any = None, **options: Any) -> Any:
    return kind(
        model or nnx.merge(*split_model()),
        sample=latents.SampleConfig(num_steps=2, shift=3.0, guidance=guidance),
        memory_config=MEMORY,
        points=memory.monte_carlo_points(200, seed=0),
        **options,
    )


def text_of(rows: int) -> TextInputs:
    rng = np.random.default_rng(0)
    text, vision = (jnp.asarray(rng.normal(size=(rows, *shape)), jnp.float32) for shape in ((4, 6), (3, 5)))
    return TextInputs(text=text, text_mask=jnp.arange(4) < jnp.array([[4], [3]])[:rows], vision=vision)


def roll(session: LatentSession, chunks: int, turn: str = "right") -> np.ndarray:
    """Move ahead and turn until the camera looks back, so that frames are retrieved."""
    session.reset(np.ones((1, *SIZE, CHANNELS), np.float32), text_of(1 if session.sample.guidance == 1 else 2), seed=5)
    frames = chunks * session.chunk_frames
    path = pose_strings.path(f"w-{frames // 2 - 1}, {turn}-{frames - frames // 2}", pose_strings.Units(turn=10))
    parts = []
    for start in range(0, frames, session.chunk_frames):
        part = slice(start, start + session.chunk_frames)
        parts.append(session.step(Controls(path.action[part], path.w2c[part], path.intrinsics[part])))
    assert session.num_frames == frames
    return np.concatenate(parts)


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


class Compilations:
    """A counter of XLA compilations, including those read from the compilation cache."""

    def __enter__(self) -> "Compilations":
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: object) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


@BOTH
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_rollout_of_any_length_compiles_once(kind: type[LatentSession], guidance: float) -> None:
    """The first chunk has no context, the second one does; after that nothing is compiled."""
    session = make_session(kind, guidance=guidance)
    with Compilations() as first:
        short = roll(session, 2)
    with Compilations() as later:
        long = roll(session, 6)
    assert first.count > 0
    assert later.count == 0
    assert np.isfinite(long).all()
    assert relative(long[: len(short)], short) > 1e-3  # another path, not the same latents again


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_kv_cache_does_not_change_results(guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference runs text, context frames and chunk together in every denoising step."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import rollout as benchmark

    expected = roll(make_session(benchmark.RecomputingSession, guidance=guidance), 6)
    assert relative(roll(make_session(AutoregressiveSession, guidance=guidance), 6), expected) < 1e-5
    sys.modules.pop("rollout")


@BOTH
def test_padding_has_no_effect(kind: type[LatentSession]) -> None:
    expected = roll(make_session(kind), 3)
    padded = make_session(kind)
    padded.context_frames += CHUNK
    assert relative(roll(padded, 3), expected) < 1e-5


def test_the_bidirectional_parity_check_notices_visible_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    original = LatentSession._context

    def unmasked(self: LatentSession, selected: list[int]) -> tuple[np.ndarray, latents.Frames]:
        past, frames = original(self, selected)
        return past, frames._replace(valid=np.ones_like(frames.valid))

    monkeypatch.setattr(LatentSession, "_context", unmasked)
    case = golden_cases.GoldenCase(ROOT / "tests/golden/worldplay/rollout_bidirectional_cfg")
    assert parity.CHECKS["worldplay/rollout_bidirectional"](case) > 1e-2


@BOTH
def test_context_frames_fit_and_start_with_the_first_chunk(kind: type[LatentSession]) -> None:
    rng = np.random.default_rng(1)
    session = make_session(kind)
    session._w2c = latents.GrowingArray((4, 4), np.float64)
    moves = [pose_strings.Motion(forward=a, yaw=b) for a, b in rng.normal(size=(159, 2))]
    session._w2c.append(pose_strings.path_from_c2w(pose_strings.trajectory(moves)).w2c)
    sizes = set()
    for current in range(0, 160, session.chunk_frames):
        selected = session.select(current)
        sizes.add(len(selected))
        assert selected == sorted(set(selected))
        assert max(selected, default=-1) == current - 1
        assert len(selected) <= session.context_frames
        assert selected[:CHUNK] == list(range(CHUNK))[:current]
    assert max(sizes) == session.context_frames


@BOTH
def test_without_retrieval_the_latest_frames_are_selected(kind: type[LatentSession]) -> None:
    session = make_session(kind, retrieve=False)
    assert session.select(0) == []
    assert session.select(8) == list(range(8))
    assert session.select(32) == list(range(20, 32))


def test_memory_does_not_grow_with_the_rollout() -> None:
    session = make_session(AutoregressiveSession)
    session.reset(np.ones((1, *SIZE, CHANNELS), np.float32), text_of(1))
    path = pose_strings.path("right-3")
    controls = Controls(path.action, path.w2c, path.intrinsics)

    def alive() -> tuple[int, int]:
        arrays = jax.live_arrays()
        return len(arrays), sum(x.nbytes for x in arrays)

    for _ in range(3):
        session.step(controls)
    before = alive()
    for _ in range(197):
        session.step(controls)
    assert alive() == before
    assert session.num_frames == 200 * CHUNK


def test_a_growing_array_keeps_its_rows_and_rarely_copies_them() -> None:
    growing, buffers = latents.GrowingArray((2,), np.int32), set()
    for i in range(500):
        growing.append(np.array([[i, -i]]))
        buffers.add(id(growing._buffer))
    np.testing.assert_array_equal(growing.rows, np.stack([np.arange(500), -np.arange(500)], axis=1))
    assert len(buffers) < 12
    assert len(growing._buffer) < 4 * 500


def on_mesh(sizes: tuple[int, int, int], cfg: HunyuanConfig = CONFIG) -> tuple[Any, HunyuanTransformer]:
    data, fsdp, sequence = sizes
    devices = mesh.make_mesh(data=data, fsdp=fsdp, sequence=sequence, devices=jax.devices()[: data * fsdp * sequence])
    graphdef, params = split_model(cfg)
    with jax.set_mesh(devices), nnx.logical_axis_rules(axes.RULES):
        shapes = nnx.eval_shape(lambda: HunyuanTransformer(cfg, rngs=nnx.Rngs(0)))
        shardings = nnx.get_named_sharding(nnx.state(shapes), devices)
    placed = map(jax.device_put, jax.tree.leaves(params), jax.tree.leaves(shardings))
    return devices, nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(params), placed))


@pytest.mark.parametrize(
    ("kind", "sizes", "guidance"),
    [
        (AutoregressiveSession, (1, 1, 4), 1.0),
        (AutoregressiveSession, (1, 2, 2), 3.0),
        (BidirectionalSession, (2, 2, 2), 1.0),
    ],
)
def test_a_mesh_gives_the_same_video(kind: type[LatentSession], sizes: tuple[int, int, int], guidance: float) -> None:
    expected = roll(make_session(kind, guidance=guidance), 2)
    devices, model = on_mesh(sizes)
    with jax.set_mesh(devices):
        actual = roll(make_session(kind, guidance=guidance, model=model), 2)
    assert relative(actual, expected) < 1e-5


def test_the_kv_cache_is_sharded() -> None:
    devices, model = on_mesh((1, 1, 4))
    session = make_session(AutoregressiveSession, model=model)
    with jax.set_mesh(devices):
        roll(session, 2)
    for keys in session._cache.layers:
        assert keys.sharding.shard_shape(keys.shape)[3] == keys.shape[3] // 4


def test_bfloat16_stays_close() -> None:
    cfg = dataclasses.replace(CONFIG, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    expected = roll(make_session(AutoregressiveSession), 2)
    actual = roll(make_session(AutoregressiveSession, model=nnx.merge(*split_model(cfg))), 2)
    assert actual.dtype == np.float32
    assert 1e-4 < np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 0.05


@pytest.mark.parametrize(("guidance", "rows"), [(1.0, 2), (3.0, 1)])
def test_guidance_needs_its_text(guidance: float, rows: int) -> None:
    session = make_session(AutoregressiveSession, guidance=guidance)
    with pytest.raises(ValueError, match=rf"guidance {guidance} needs text of batch {3 - rows}, got {rows}"):
        session.reset(np.ones((1, *SIZE, CHANNELS), np.float32), text_of(rows))


def test_controls_must_be_one_chunk() -> None:
    session = make_session(BidirectionalSession)
    session.reset(np.ones((1, *SIZE, CHANNELS), np.float32), text_of(1))
    path = pose_strings.path("w-3")
    with pytest.raises(ValueError, match="controls of 4 latents, expected 16"):
        session.step(Controls(path.action, path.w2c, path.intrinsics))
