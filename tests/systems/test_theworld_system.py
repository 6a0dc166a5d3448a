"""TheWorld: trained parameters, the fused sequence, the loss in chunks, answers with and without the KV cache."""

import io
import json
import math
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import rich.console
from flax import nnx

from jworld import evaluate, systems
from jworld.data.conversations import chat, dataset
from jworld.evaluation import results
from jworld.models.theworld.config import TheWorldConfig, WorldConfig
from jworld.models.theworld.model import TheWorld
from jworld.parallel import mesh
from jworld.systems import asking, initial_weights, runs
from jworld.systems.theworld import answering, objective
from jworld.systems.theworld.evaluation import vsr
from jworld.training import checkpoints, optimizers
from jworld.training import state as train_state
from jworld.training.state import path_filter
from jworld.utils import config as run_config

PROJECTION, LANGUAGE, VISION = 6_599_680, 3_880_107_008, 416_866_032 + 2_950_272
ENCODER = 53_595_872 + 1_056


@pytest.mark.parametrize(
    ("variant", "trained"),
    [
        ("projection", PROJECTION),
        ("vision", PROJECTION + VISION),
        ("language", PROJECTION + LANGUAGE),
        ("full", PROJECTION + LANGUAGE + VISION + ENCODER),
    ],
)
def test_trained_parameters_of_recipes(variant: str, trained: int) -> None:
    """Counts are the original's; frozen parameters are bfloat16, trained ones float32."""
    config = run_config.load_recipe(f"configs/theworld.py:{variant}")
    system = systems.create(config)
    with nnx.use_eager_sharding(False):
        params = nnx.state(nnx.eval_shape(lambda: system.init(nnx.Rngs(0))), nnx.Param)
    mine, frozen = nnx.split_state(params, path_filter(config.optimizer.trainable), ...)
    counts = [sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part)) for part in (mine, frozen)]
    assert counts[0] == trained
    assert sum(counts) == 4_433_415_523
    assert {leaf.dtype for leaf in jax.tree.leaves(mine)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("layout", "architecture", "count"),
    [
        ("spatial", "mlp", 6_599_680),
        ("spatial", "linear", 43_520),
        ("channel", "mlp_no_final_gelu", 17_044_480),
        ("channel", "linear", 10_488_320),
    ],
)
def test_sizes_of_the_projections(layout: Any, architecture: Any, count: int) -> None:
    gemma = run_config.load_recipe("configs/theworld.py:projection")
    cfg = TheWorldConfig(
        gemma=systems.create(gemma).model_config.gemma, world=WorldConfig(layout=layout, architecture=architecture)
    )
    with nnx.use_eager_sharding(False):
        params = nnx.state(nnx.eval_shape(lambda: TheWorld(cfg, rngs=nnx.Rngs(0))), nnx.Param)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params["world"])) == count


def test_compat_is_one_value() -> None:
    """With compat the projection ends in a GELU, as in published checkpoints."""
    assert WorldConfig().projection == "mlp_no_final_gelu"
    assert WorldConfig(compat="original").projection == "mlp"
    assert WorldConfig(compat="original", architecture="linear").projection == "linear"


# A tiny model


@pytest.fixture(scope="module")
def system() -> Any:
    config = run_config.load_recipe("configs/theworld.py")
    with config.unlocked():
        config.model.update({"num_layers": 3, "window": 8, "vision_layers": 1})
    return systems.create(config)


@pytest.fixture(scope="module")
def model(system: Any) -> TheWorld:
    with nnx.use_eager_sharding(False):
        model = jax.jit(lambda: system.init(nnx.Rngs(0)))()
    # A new projector is zero, so images would have no effect.
    kernel = model.projector.linear.kernel
    kernel.set_value(0.05 * jax.random.normal(jax.random.key(1), kernel.shape))
    return model


@pytest.fixture(scope="module")
def encoders() -> dataset.RunEncoders:
    return dataset.RunEncoders(chat.load("assets/tokenizer", image_tokens=16))


def image(seed: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 132, 3), np.uint8))


def test_labels_of_a_fused_sequence() -> None:
    """Our loss covers the answers; the original's covers every token and the brackets."""
    cfg: dict[str, Any] = {"latent_channels": 3, "layout": "channel", "start_token": 7, "end_token": 8}
    tokens, labels = jnp.array([[2, 5, 6, 0]]), jnp.array([[-100, -100, 6, -100]])
    mask = tokens > 0
    answers = objective.fused_labels(tokens, labels, mask, WorldConfig(**cfg))
    assert answers.tolist() == [[-100, *[-100] * 5, -100, 6, -100]]
    original = objective.fused_labels(tokens, labels, mask, WorldConfig(compat="original", **cfg))
    assert original.tolist() == [[2, 7, -100, -100, -100, 8, 5, 6, -100]]


def test_labels_of_rows_without_a_world() -> None:
    """Their sequence begins at the end bracket's column, and their labels are the given ones, also with compat."""
    cfg: dict[str, Any] = {"latent_channels": 2, "layout": "channel", "start_token": 7, "end_token": 8}
    tokens, labels = jnp.array([[2, 5, 6], [2, 5, 6]]), jnp.array([[-100, -100, 6]] * 2)
    for compat, with_world in (("", [-100] * 6 + [6]), ("original", [2, 7, -100, -100, 8, 5, 6])):
        found = objective.fused_labels(
            tokens, labels, tokens > 0, WorldConfig(compat=compat, **cfg), jnp.array([True, False])
        )
        assert found.tolist() == [with_world, [-100] * 6 + [6]]


def test_a_row_without_images_is_its_text_alone(system: Any, model: TheWorld, encoders: dataset.RunEncoders) -> None:
    """In a batch with images, its loss and its answer are those of the text without any world."""
    prompts = system.prompts(encoders)
    questions = ["hello?", "left or right?"]
    mixed = prompts([[], [image(0)]], questions)
    assert mixed["has_world"].tolist() == [False, True]
    alone = prompts([[]], questions[:1])
    length = mixed["tokens"].shape[1]
    labelled = {**mixed, "labels": mixed["tokens"].at[1].set(chat.IGNORED)}
    padded = {name: jnp.pad(x, [(0, 0), (0, length - x.shape[1])]) for name, x in alone.items()}

    @jax.jit
    def score_alone(model: TheWorld) -> objective.Score:
        plain = model.fuse(padded["tokens"], padded["mask"], None, None)
        states = model.language(plain.embeds, mask=plain.mask)
        targets = jnp.where(padded["mask"], padded["tokens"], chat.IGNORED)
        return objective.score(model.language, states[:, :-1], targets[:, 1:], chunk=256)

    expected = score_alone(model)
    graphdef, params = nnx.split(model)
    loss = jax.jit(
        jax.value_and_grad(lambda p: objective.loss(nnx.merge(graphdef, p), labelled, system.objective), has_aux=True)
    )
    (value, metrics), gradient = loss(params)
    assert metrics["loss_tokens"] == expected.total
    np.testing.assert_allclose(value, expected.entropy / expected.total, rtol=1e-5)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))
    together = system.answers(model, encoders)([[], [image(0)]], questions, max_tokens=5)
    separate = [
        *system.answers(model, encoders)([[]], questions[:1], max_tokens=5),
        *system.answers(model, encoders)([[image(0)]], questions[1:], max_tokens=5),
    ]
    assert together == separate


def ask(question: str, *images: PIL.Image.Image, **sampling: Any) -> asking.Question:
    turns = (chat.Turn("user", question),)
    pixels = [np.asarray(image) for image in images]
    return asking.Question(
        turns=turns, images=len(images), load=lambda: pixels, sampling=asking.Sampling(**{"max_tokens": 6, **sampling})
    )


def test_batches_of_any_order_give_the_answers_of_single_questions(
    system: Any, model: TheWorld, encoders: dataset.RunEncoders
) -> None:
    """Sampled or not, with several images or none: an answer does not depend on the rest of its batch."""
    questions = [
        ask("left?", image(0)),
        ask("hello?", temperature=1.0, seed=5),
        ask("is <image> like <image>?", image(1), image(2), temperature=2.0, top_k=5, seed=1),
        ask("left or right? " * 8, image(3), max_tokens=2),
    ]
    answers = system.answers(model, encoders)
    found = dict(answers.many(questions, batch=2))
    session = system.session(model, encoders)
    for number, question in enumerate(questions):
        session.reset(question.load(), question.turns, sampling=question.sampling)
        tokens = list(iter(session.step, None))
        assert found[number] == (session.decode(tokens).rstrip(), len(tokens))
    assert found[1] != dict(answers.many([ask("hello?", temperature=1.0, seed=6)], batch=1))[0]
    # One program per length and number of image inputs, for any number of questions.
    before = answering.answer._cache_size()
    dict(answers.many(questions * 3, batch=2))
    assert answering.answer._cache_size() == before


def test_likelihoods_of_answers(system: Any, model: TheWorld, encoders: dataset.RunEncoders) -> None:
    """They are the sums of the log probabilities of an answer's tokens and its end, given the question."""
    answers, tokenizer = system.answers(model, encoders), encoders.tokenizer
    options = ["left", "the right one", "left"]
    found = answers.likelihoods([[image(0)], [image(0)], []], ["which?"] * 3, options)
    assert found[0] != found[2]
    for images, option, value in zip(([image(0)], [image(0)], []), options, found, strict=True):
        batch = system.prompts(encoders)([images], ["which?"])
        state = answering.prefill(model, batch, steps=20, frames=1 if images else 0)
        start = len(tokenizer.encode([chat.Turn("user", "which?")], images=len(images), is_open=True).tokens)
        turns = [chat.Turn("user", "which?"), chat.Turn("model", option)]
        # Without the line break after the end of the turn.
        tokens = tokenizer.encode(turns, images=len(images)).tokens[start:-1]
        total = 0.0
        for token in tokens:
            total += float(jax.nn.log_softmax(state.logits[0])[token])
            state = answering.step(model, jnp.array([token]), state)
        assert value == pytest.approx(total, abs=1e-3)


def test_a_stop_text_ends_an_answer(system: Any, model: TheWorld, encoders: dataset.RunEncoders) -> None:
    whole = dict(system.answers(model, encoders).many([ask("left?", image(0))], batch=1))[0].text
    stop = whole[2:4]
    question = ask("left?", image(0), stop=(stop,))
    expected = whole[: whole.index(stop)]
    assert dict(system.answers(model, encoders).many([question], batch=1))[0].text == expected.rstrip()
    session = system.session(model, encoders)
    session.reset(question.load(), question.turns, sampling=question.sampling)
    assert session.decode(list(iter(session.step, None))) == expected


def test_the_loss_in_chunks(model: TheWorld) -> None:
    """Loss and gradients equal those of the whole sequence, but no array has the logits of all tokens."""
    states = jax.random.normal(jax.random.key(0), (2, 50, 128))
    targets = jax.random.randint(jax.random.key(1), (2, 50), 0, 491).at[:, :20].set(objective.IGNORED)

    def loss(states: jax.Array, chunk: int) -> jax.Array:
        sums = objective.score(model.language, states, targets, chunk=chunk)
        return sums.entropy / sums.total

    both = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    (value, gradient), (whole, expected) = both(states, 8), both(states, 50)
    log_probabilities = jax.nn.log_softmax(model.language.logits(states))
    chosen = jnp.take_along_axis(log_probabilities, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(value, -jnp.mean(chosen[:, 20:]), rtol=1e-5)
    np.testing.assert_allclose(value, whole, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected, atol=1e-7)
    sizes = [
        max(math.prod(map(int, shape.split(","))) for shape in re.findall(r"f32\[([\d,]+)\]", text))
        for text in (both.lower(states, chunk).compile().as_text() for chunk in (8, 50))
    ]
    assert sizes[1] >= 2 * 50 * 491
    assert sizes[0] <= max(2 * 8 * 491, 128 * 491)


@pytest.mark.slow
def test_answers_by_the_batch_and_by_the_token(system: Any, model: TheWorld, encoders: dataset.RunEncoders) -> None:
    """Answers do not depend on padding, and the world adds its tokens to the sequence."""
    answers, session = system.answers(model, encoders), system.session(model, encoders)
    questions = ["Did the camera turn left or right?", "Is the wall ahead nearer or farther in the second view?"]
    texts = answers([[image(0)], [image(1)]], questions, max_tokens=system.sample.max_tokens)
    session.reset([np.asarray(image(0))], questions[0])
    tokens = list(iter(session.step, None))
    assert 0 < len(tokens) <= system.sample.max_tokens
    assert encoders.tokenizer.decode(tokens) == texts[0]
    batch = system.prompts(encoders)([[image(0)]], questions[:1])
    fused = model.fuse(batch["tokens"], batch["mask"], None, model.latents(batch["world_pixels"]))
    assert fused.embeds.shape[1] == batch["tokens"].shape[1] + 16 + 2


def test_decoding_with_the_kv_cache_equals_the_whole_sequence(
    system: Any, model: TheWorld, encoders: dataset.RunEncoders
) -> None:
    """The sequence has a world and an image, both longer than the attention window."""
    batch = system.prompts(encoders)([[image(0)]], ["Did the camera turn left or right?"])
    session = system.session(model, encoders)
    session.reset([np.asarray(image(0))], "Did the camera turn left or right?")
    tokens, logits = [], []
    for _ in range(6):
        logits.append(np.asarray(session._state.logits[0]))
        if (token := session.step()) is None:
            break
        tokens.append(token)
    length = int(batch["mask"].sum())
    whole = np.concatenate([np.asarray(batch["tokens"])[:, :length], np.array([tokens], np.int32)], axis=1)
    latents = model.latents(batch["world_pixels"])
    pixels = (batch["pixel_values"].astype(jnp.float32) / 255 - 0.5) / 0.5
    fused = model.fuse(jnp.asarray(whole), jnp.ones_like(whole, bool), pixels, latents)
    states = jax.jit(lambda model: model.language(fused.embeds, mask=fused.mask, images=fused.images))(model)
    expected = model.language.logits(states)[0, -len(tokens) - 1 :]
    np.testing.assert_allclose(np.stack(logits), expected[: len(logits)], atol=2e-4)


@pytest.mark.slow
def test_a_benchmark_runs_with_and_without_the_world(
    system: Any, model: TheWorld, encoders: dataset.RunEncoders, tmp_path: pathlib.Path
) -> None:
    rows = [{"image": f"{i}.png", "caption": f"The wall is {i}.", "label": i % 2} for i in range(3)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for i in range(3):
        image(i).save(tmp_path / f"{i}.png")
    options = results.Options(benchmark="vsr", data=str(tmp_path / "test.jsonl"), images=str(tmp_path), batch=2)
    report = system.evaluate(model, encoders, None, options, rich.console.Console(file=io.StringIO()))
    assert list(report.scores) == ["with world", "without"]
    assert [table.columns[0].header for table in evaluate.tables(report)] == ["question", "accuracy in %", ""]
    for name, frames in (("with world", 1), ("without", 0)):
        found = report.numbers["answers"][name]
        answers = system.answers(model, encoders, frames=frames)
        prompts = [row["prompt"] for row in found]
        texts = [answers([[image(i)]] * 2, [prompts[i]] * 2, max_tokens=vsr.MAX_TOKENS)[0] for i in range(3)]
        assert [row["prediction"] for row in found] == texts
    predictions = [[row["prediction"] for row in rows] for rows in report.numbers["answers"].values()]
    assert predictions[0] != predictions[1]


@pytest.mark.slow
def test_a_stage_can_train_what_the_previous_one_froze(tmp_path: pathlib.Path) -> None:
    """A run stores frozen weights in bfloat16; a run that starts from it trains them in float32."""
    config = run_config.load_recipe("configs/theworld.py")
    with config.unlocked():
        config.model.update({"num_layers": 1, "vision_layers": 1, "frozen_dtype": "bfloat16"})
        config.optimizer.trainable = "world/.*"
    optimizer = optimizers.make_optimizer(optimizers.OptimizerConfig(), steps=1)
    device = mesh.make_mesh(devices=jax.devices()[:1])
    common: dict[str, Any] = {"optimizer": optimizer, "mesh": device, "key": jax.random.key(0)}
    trainable = train_state.path_filter(config.optimizer.trainable)
    _, first, _ = train_state.create_state(systems.create(config).init, trainable=trainable, **common)
    run_config.save(config, tmp_path)
    with checkpoints.Checkpoints(tmp_path / runs.CHECKPOINTS) as manager:
        manager.save(first, {})
    config.optimizer.trainable = "(world|language)/.*"
    _, second, _ = train_state.create_state(systems.create(config).init, trainable=nnx.Param, **common)
    params, new = initial_weights.load_initial(tmp_path, second.params)
    assert not new
    assert {leaf.dtype for leaf in jax.tree.leaves(params["language"])} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(params["vision"])} == {jnp.dtype("bfloat16")}
    np.testing.assert_array_equal(
        params["language"]["embedding"][...], first.frozen["language"]["embedding"][...].astype(jnp.float32)
    )
