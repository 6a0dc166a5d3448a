"""Operations by formula, compared with XLA's count of the same program."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jworld.diffusion import v_prediction
from jworld.models.cogvideox import flops as cogvideox_flops
from jworld.models.cogvideox.config import CogVideoXConfig
from jworld.models.cogvideox.transformer import CogVideoXTransformer
from jworld.models.cosmos import flops as cosmos_flops
from jworld.models.cosmos.config import CosmosConfig
from jworld.models.cosmos.transformer import CosmosInputs, CosmosTransformer
from jworld.models.hunyuan import flops
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import FrameInputs, HunyuanTransformer
from jworld.models.layers import flops as layers_flops
from jworld.training.state import path_filter

FRAMES, HEIGHT, WIDTH = 8, 8, 8
TEXT, GLYPH, VISION = 40, 24, 32
# XLA counts the body of a scan once for every length, so the models have one layer.
SIZES = {"width": 512, "num_heads": 4, "num_layers": 1, "refiner_layers": 1, "dtype": jnp.float32, "remat": "none"}


def counted(cfg: HunyuanConfig, chunk_frames: int | None, *, training: bool) -> float:
    """Return XLA's count, from shapes only, without compilation."""

    def zeros(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *shape), dtype)

    frames = FrameInputs(zeros(FRAMES, HEIGHT, WIDTH, 2 * cfg.channels + 1), zeros(FRAMES))
    if cfg.actions:
        frames = frames._replace(
            action=zeros(FRAMES, dtype=jnp.int32), w2c=zeros(FRAMES, 4, 4), intrinsics=zeros(FRAMES, 3, 3)
        )
    text = TextInputs(
        zeros(TEXT, cfg.text_dim),
        zeros(TEXT, dtype=jnp.bool_),
        zeros(VISION, cfg.vision_dim),
        zeros(GLYPH, cfg.glyph_dim),
        zeros(GLYPH, dtype=jnp.bool_),
    )
    with nnx.use_eager_sharding(False):
        graphdef, params = nnx.split(nnx.eval_shape(lambda: HunyuanTransformer(cfg, rngs=nnx.Rngs(0))))

    def total(params: nnx.State, frames: FrameInputs, text: TextInputs) -> jax.Array:
        return jnp.sum(nnx.merge(graphdef, params)(frames, text, jnp.zeros(1), chunk_frames=chunk_frames))

    program = jax.grad(total) if training else total
    return jax.jit(program).lower(params, frames, text).cost_analysis()["flops"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("options", "chunk_frames"),
    [
        ({}, 4),
        ({}, 2),
        ({"actions": False}, None),
        ({"channels": 128, "prediction": "clean", "references": True, "output_kernel": 3}, 4),
    ],
)
def test_formula_agrees_with_xla(options: dict[str, Any], chunk_frames: int | None, training: bool) -> None:
    cfg = HunyuanConfig(**options, **SIZES)
    formula = flops.forward_flops(
        cfg,
        frames=FRAMES,
        tokens_per_frame=HEIGHT * WIDTH,
        text_tokens=TEXT,
        glyph_tokens=GLYPH,
        vision_tokens=VISION,
        chunk_frames=chunk_frames,
    )
    expected = layers_flops.training(formula, 1) if training else formula.total
    assert counted(cfg, chunk_frames, training=training) == pytest.approx(expected, rel=0.05)


def test_formulas_of_a_rollout_add_up_to_the_whole() -> None:
    """The first chunk attends to text and itself, as in chunk-causal attention; a later one also to earlier chunks."""
    cfg = HunyuanConfig(num_layers=3)
    words = {"text_tokens": TEXT, "glyph_tokens": GLYPH, "vision_tokens": VISION}
    size = HEIGHT * WIDTH
    text = flops.text_pass_flops(cfg, **words)
    prefix = TEXT + GLYPH + VISION
    first, second = (
        flops.image_pass_flops(cfg, frames=4, tokens_per_frame=size, cached_tokens=cached)
        for cached in (prefix, prefix + 4 * size)
    )
    whole = flops.forward_flops(cfg, frames=8, tokens_per_frame=size, chunk_frames=4, **words)
    assert text.plus(first).plus(second) == whole
    assert text.plus(first, times=3).linear == text.linear + 3 * first.linear


def test_counts_scale_with_the_sizes() -> None:
    def of(**changes: Any) -> flops.Flops:
        arguments: dict[str, Any] = {"frames": 24, "tokens_per_frame": 64, "text_tokens": 0, "chunk_frames": 4}
        return flops.forward_flops(HunyuanConfig(glyph_dim=None, num_layers=10), **(arguments | changes))

    # With six chunks, 1 + ... + 6 of 36 pairs of chunks are computed; without text.
    assert of().attention / of(chunk_frames=None).attention == pytest.approx(21 / 36)
    assert of(frames=48).linear / of().linear == pytest.approx(2, rel=1e-2)
    assert of(chunk_frames=None, frames=48).attention == 4 * of(chunk_frames=None).attention


@pytest.mark.parametrize(
    ("options", "training"),
    [
        ({"modulation_rank": 64}, False),
        ({"modulation_rank": 64}, True),
        ({"modulation_rank": None}, False),
        ({"modulation_rank": None}, True),
        # Its backward pass has no gradient of the input, which counts with as many channels.
        ({"modulation_rank": 64, "channels": 128, "prediction": "clean", "output_kernel": 3}, False),
    ],
)
def test_formula_of_cosmos_agrees_with_xla(options: dict[str, Any], training: bool) -> None:
    """Forward and backward pass; `counted` above does the same for the other network."""
    sizes = {"width": 512, "num_heads": 4, "num_layers": 1, "text_dim": 96, "text_width": 64}
    cfg = CosmosConfig(**sizes, **options, dtype=jnp.float32, remat="none")

    def zeros(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *shape), jnp.float32)

    inputs = CosmosInputs(zeros(FRAMES, HEIGHT, WIDTH, cfg.channels), zeros(FRAMES), zeros(TEXT, 96))
    with nnx.use_eager_sharding(False):
        graphdef, params = nnx.split(nnx.eval_shape(lambda: CosmosTransformer(cfg, rngs=nnx.Rngs(0))))

    def total(params: nnx.State, inputs: CosmosInputs) -> jax.Array:
        return jnp.sum(nnx.merge(graphdef, params)(inputs))

    formula = cosmos_flops.forward_flops(cfg, frames=FRAMES, height=HEIGHT, width=WIDTH, text_tokens=TEXT)
    program, expected = (jax.grad(total), layers_flops.training(formula, 1)) if training else (total, formula.total)
    count = jax.jit(program).lower(params, inputs).cost_analysis()["flops"]
    assert count == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("control_dim", "timestep_shape", "options"),
    [
        (None, (1,), {}),
        (96, (1, FRAMES), {}),
        (None, (1,), {"channels": 128, "prediction": "clean", "output_kernel": 3}),
    ],
)
def test_formula_of_cogvideox_agrees_with_xla(
    control_dim: int | None, timestep_shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    """Forward and backward pass, without control and one time, and with control and a time per frame.

    The last case has so many channels that the gradient of the input, which the backward pass lacks, counts.
    """
    sizes = {"width": 512, "num_heads": 4, "num_layers": 1, "text_dim": 96, "text_tokens": TEXT, "time_dim": 64}
    cfg = CogVideoXConfig(
        **sizes,
        **options,
        control_dim=control_dim,
        control_layers=(0, 1),
        dtype=jnp.float32,
        remat="none",
        attention="xla",
    )

    def zeros(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *shape), jnp.float32)

    inputs = (zeros(FRAMES, HEIGHT, WIDTH, cfg.channels), zeros(TEXT, 96), jax.ShapeDtypeStruct(timestep_shape, int))
    control = None if control_dim is None else zeros(FRAMES, control_dim)
    with nnx.use_eager_sharding(False):
        graphdef, params = nnx.split(
            nnx.eval_shape(lambda: CogVideoXTransformer(cfg, schedule=v_prediction.Schedule(), rngs=nnx.Rngs(0)))
        )

    def total(params: nnx.State, inputs: Any, control: Any) -> jax.Array:
        return jnp.sum(nnx.merge(graphdef, params)(*inputs, control=control))

    formula = cogvideox_flops.forward_flops(
        cfg, frames=FRAMES, height=HEIGHT, width=WIDTH, control=control is not None, frame_times=control is not None
    )
    training = [(jax.grad(total), layers_flops.training(formula, 1))] if not options else []
    for program, expected in ((total, formula.total), *training):
        count = jax.jit(program).lower(params, inputs, control).cost_analysis()["flops"]
        assert count == pytest.approx(expected, rel=0.05)


def test_frozen_weights_have_no_gradient() -> None:
    """Only the first layer is trained; all others propagate the gradient of their inputs."""
    cfg = CogVideoXConfig(
        width=512,
        num_heads=4,
        num_layers=1,
        text_dim=96,
        text_tokens=TEXT,
        time_dim=64,
        dtype=jnp.float32,
        remat="none",
    )
    shapes = ((1, FRAMES, HEIGHT, WIDTH, cfg.channels), (1, TEXT, 96))
    inputs = [*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes), jax.ShapeDtypeStruct((1,), int)]
    with nnx.use_eager_sharding(False):
        graphdef, *parts = nnx.split(
            nnx.eval_shape(lambda: CogVideoXTransformer(cfg, rngs=nnx.Rngs(0))), path_filter("patch_in/.*"), ...
        )

    def total(trained: nnx.State, frozen: nnx.State, *inputs: Any) -> jax.Array:
        return jnp.sum(nnx.merge(graphdef, trained, frozen)(*inputs))

    formula = cogvideox_flops.forward_flops(
        cfg, frames=FRAMES, height=HEIGHT, width=WIDTH, control=False, frame_times=False
    )
    count = jax.jit(jax.grad(total)).lower(*parts, *inputs).cost_analysis()["flops"]
    assert count == pytest.approx(layers_flops.training(formula, 0), rel=0.05)
    assert layers_flops.trained_share({"a": (1, 4), "b": (0, 4)}) == 1 / 8
    assert layers_flops.trained_share({"a": (1, 4), "b": (0, 4)}, "a") == 1 / 4
