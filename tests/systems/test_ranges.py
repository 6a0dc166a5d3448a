"""Every number of every recipe has a range: values outside are one sentence, values inside make a run."""

import dataclasses
import functools
import math
import pathlib
import runpy
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from jworld.systems import common_keys, recipes, training_job
from jworld.utils import config as run_config
from jworld.utils import config_keys, errors, ranges

FILES = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))
NAMES = [f"configs/{file.name}:{variant}" for file in FILES for variant in runpy.run_path(str(file))["VARIANTS"]]
BASES = [f"configs/{file.name}" for file in FILES]
WRONG = ("-1", "0", "nan", "inf", "1e30", "1" + 30 * "0", "text")
#: Meanings of 0 and -1 where they are accepted; any other key refuses them.
ZERO = {
    *("seed", "data.recording.seed", "data.questions.seed", "sample.seed", "epochs"),
    # Off, none or all.
    "checkpoint.emergency.every",
    *("checkpoint.hub.patience", "data.conversations.limit", "data.encoding.clip_frames", "evaluation.interval"),
    *("log.watchdog_minutes", "sample.interval", "sample.rollout.top_k", "sample.rollout.temperature"),
    *("optimizer.clip_norm", "optimizer.ema_decay", "optimizer.ema_rate", "optimizer.skip_limit"),
    *("optimizer.skip_norm", "optimizer.warmup_steps", "optimizer.weight_decay", "data.clip.images"),
    *("data.clip.world_size", "data.clip.glyph_tokens", "data.clip.temporal_context", "model.vision_layers"),
    *("model.blocks", "model.refiner_layers", "model.world.autoencoder_blocks", "model.world.steps"),
    *("data.clip.command_size", "data.clip.vision_tokens"),
    # The number of a camera, and its direction.
    *("data.clip.view_ids", "data.clip.caption_view", "data.recording.yaws"),
    # Shares.
    *("data.clip.control_dropout", "data.clip.memory_probability", "data.clip.text_dropout", "data.videos.val_share"),
    *("data.conversations.val_share", "data.encoding.whitening", "loss.clean_context", "loss.own_errors"),
    *("loss.sigma_floor", "loss.noisy_context", "model.whitening"),
    *("loss.high_ratio", "loss.text_dropout", "optimizer.b1", "optimizer.b2", "optimizer.momentum"),
    *("optimizer.min_lr_ratio", "optimizer.start_lr_ratio"),
    # Weights, scales and places.
    *("loss.absolute", "loss.squared", "loss.gradient", "loss.kl", "loss.given_sigma", "loss.log_mean"),
    *("loss.log_std", "loss.logit_mean", "loss.logit_std", "loss.mode_scale", "optimizer.power"),
    "loss.teacher_guidance",
    *("sample.rollout.guidance", "sample.rollout.control_guidance", "sample.rollout.guidance_embedding_scale"),
    *("sample.rollout.given_sigma", "sample.rollout.context_time"),
    *("model.image_token", "model.world.start_token", "model.world.end_token"),
}
MINUS_ONE = {
    *("checkpoint.step", "mesh.data", "mesh.fsdp", "mesh.sequence", "loss.log_mean", "loss.logit_mean"),
    "data.recording.yaws",
}


def numeric_keys(name: str) -> Iterator[recipes.Key]:
    """Return the keys of a recipe that are numbers or lists of numbers."""
    config = run_config.load_recipe(name)
    for key in recipes.keys(config, config, {}):
        values = key.value if isinstance(key.value, list | tuple) else [key.value]
        is_number = any(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if is_number or "integer" in key.kind or "a number" in key.kind:
            yield key


def hint_of(key: str, types: dict[str, type]) -> Any:
    section, _, name = key.rpartition(".")
    fields = ranges.hints(types[section]) if section in types else {}
    return fields.get(name) or common_keys.PLAIN[key][0]


@functools.cache
def refusal(key: str, hint: Any, text: str, kind: type | None) -> str:
    """Return the sentence with which the text of a command line is refused as a value of a type, "" if it is not."""
    del kind
    try:
        run_config.checked(key, config_keys.parse(text, hint), hint)
    except ValueError:
        return f"config.{key}: expected {ranges.describe(hint)}, got {text!r}"
    except errors.UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_absurd_values_of_every_key_are_one_sentence(name: str) -> None:
    config = run_config.load_recipe(name)
    try:
        types = recipes.section_types(config)
    except errors.UserError:
        # The recipe continues another run, which does not exist here.
        types = recipes.section_types(run_config.load_recipe(name.partition(":")[0]))
    tried = 0
    for key in numeric_keys(name):
        hint = hint_of(key.name, types)
        # A critic has the keys of an optimizer.
        meaning = key.name.replace("critic.", "optimizer.")
        for text in WRONG:
            sentence = refusal(key.name, hint, text, type(key.value))
            accepted = (text == "0" and meaning in (*ZERO, "steps")) or (text == "-1" and key.name in MINUS_ONE)
            assert bool(sentence) != accepted, (key.name, text, sentence)
            if sentence:
                assert sentence.startswith(f"config.{key.name}: ")
                assert "expected" in sentence
                assert len(sentence) < 300
                assert "\n" not in sentence
            tried += 1
    assert tried > 300


def build_accepted(name: str, folder: pathlib.Path) -> None:
    """Make a run of a recipe with each accepted value of each number, or find the sentence of those that do not fit."""
    config = run_config.load_recipe(name)
    types = recipes.section_types(config)
    for key in numeric_keys(name):
        for text in ("0", "-1"):
            if refusal(key.name, hint_of(key.name, types), text, type(key.value)):
                continue
            try:
                changed = config_keys.override(config, {key.name: text}, types)
                training_job.TrainingJob.from_config(changed, folder)
            except errors.UserError as error:
                refused = str(error)
            else:
                continue
            assert key.name.rpartition(".")[2] in refused, (key.name, text, refused)


@pytest.mark.parametrize("name", BASES)
def test_accepted_values_make_a_run(name: str, tmp_path: pathlib.Path) -> None:
    build_accepted(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*NAMES} - {f"{base}:" for base in BASES} - {"configs/theworld.py:tiny_steps"}))
def test_accepted_values_make_a_run_of_every_variant(name: str, tmp_path: pathlib.Path) -> None:
    build_accepted(name, tmp_path)


@pytest.mark.parametrize("name", BASES)
def test_the_command_line_gives_the_sentence(name: str) -> None:
    """The command prints the sentence of `refusal`, whether a value is from the command line or from a recipe."""
    config = run_config.load_recipe(name)
    for key, text, found in (
        ("checkpoint.max_to_keep", "0", 0),
        ("checkpoint.interval", "0", 0),
        ("seed", "-1", -1),
        ("seed", str(2**63), 2**63),
        ("data.prefetch", "-1", -1),
        ("global_batch", "0", 0),
        ("mesh.data", "0", 0),
        ("optimizer.learning_rate", "nan", math.nan),
        ("optimizer.trainable", "(", "("),
        ("optimizer.eps", "1e30", 1e30),
        ("log.interval", "0", 0),
        ("evaluation.batches", "0", 0),
    ):
        with pytest.raises(errors.UserError) as refused:
            training_job.TrainingJob.from_config(recipes.change(config, {key: text}), pathlib.Path("runs/none"))
        assert str(refused.value).startswith(f"config.{key}: ")
        with pytest.raises(errors.UserError) as refused:
            training_job.TrainingJob.from_config(with_value(config, key, found), pathlib.Path("runs/none"))
        assert str(refused.value).startswith(f"config.{key}: found {found!r}, expected ")


def with_value(config: Any, key: str, value: Any) -> Any:
    changed = type(config)(config.to_dict())
    *parents, name = key.split(".")
    node = changed
    for parent in parents:
        if parent not in node:
            node[parent] = type(config)()
        node = node[parent]
    if name in node:
        del node[name]
    node[name] = value
    return changed.lock()


@pytest.mark.parametrize(
    ("name", "key", "text"),
    [
        ("configs/ar_mem.py", "model.num_heads", "0"),
        ("configs/ar_mem.py", "model.dtype", "str"),
        ("configs/ar_mem.py", "model.dtype", "int32"),
        ("configs/autoencoder.py", "model.dtype", "str"),
        ("configs/cosmos_video2world.py:tiny_lora", "model.lora.targets", "("),
        ("configs/theworld.py", "model.num_key_heads", "0"),
        ("configs/theworld.py", "model.frozen_dtype", "str"),
    ],
)
def test_sizes_and_dtypes_of_networks(name: str, key: str, text: str) -> None:
    config = run_config.load_recipe(name)
    with pytest.raises(errors.UserError, match=f"^config.{key}"):
        training_job.TrainingJob.from_config(recipes.change(config, {key: text}), pathlib.Path("runs/none"))


@pytest.mark.parametrize("name", NAMES)
def test_every_number_declares_its_range(name: str) -> None:
    """A field of a config's dataclass, or an entry of the table of plain keys, that has no bounds is a mistake."""
    types = recipes.section_types(run_config.load_recipe("configs/theworld.py" if "tiny_steps" in name else name))
    for section, cls in types.items():
        for field, hint in ranges.hints(cls).items():
            assert not bare_number(hint), f"{section}.{field} of {cls.__name__} has no range"
    for key, (hint, _) in common_keys.PLAIN.items():
        assert not bare_number(hint), key


def bare_number(hint: Any) -> bool:
    """Return whether a type has a part that is any integer or any number."""
    if hasattr(hint, "__metadata__"):
        return not any(
            isinstance(condition, ranges.Range | ranges.FloatType | ranges.Pattern | ranges.NotEmpty)
            for condition in hint.__metadata__
        )
    return hint in (int, float) or any(bare_number(argument) for argument in typing.get_args(hint))


def test_a_dataclass_checks_itself() -> None:
    @dataclasses.dataclass(frozen=True)
    class Section:
        width: ranges.Size = 4
        shares: tuple[ranges.Share, ...] = (0.5,)

        def __post_init__(self) -> None:
            ranges.check(self)

    assert Section(shares=(0.0, 1.0)).width == 4
    with pytest.raises(ValueError, match=r"^width: found 0, expected an integer from 1 to 1048576$"):
        Section(width=0)
    with pytest.raises(
        ValueError, match=r"^shares: found .*, expected a list such as 0\.5,0\.5, each a number from 0 to 1$"
    ):
        Section(shares=(0.5, math.nan))


def test_sections_and_missing_keys() -> None:
    config = run_config.load_recipe("configs/ar_mem.py")
    for key, value, words in (
        ("mesh.rows", 1, "config.mesh.rows: unknown key, expected data, fsdp or sequence"),
        ("log", 3, "config.log: found 3, expected a section with keys"),
        ("model", "big", "config.model: found 'big', expected a section with keys"),
        ("steps", 2.5, "config.steps: found 2.5, expected an integer from 0 to 2147483647"),
        ("system", ("a",), "config.system is"),
        (
            "checkpoint.intervall",
            5,
            "config.checkpoint.intervall: this config has no such key; did you mean 'interval'?",
        ),
        ("data.thread", 5, "config.data.thread: this config has no such key; did you mean 'threads'?"),
        ("sample.action", "", "config.sample.action: this config has no such key; did you mean 'actions'?"),
    ):
        with pytest.raises(errors.UserError) as refused:
            training_job.TrainingJob.from_config(with_value(config, key, value), pathlib.Path("runs/none"))
        assert words in str(refused.value)
    for key in common_keys.REQUIRED:
        changed = with_value(config, key, 1)
        section, _, name = key.rpartition(".")
        changed.unlock()
        del (changed[section] if section else changed)[name]
        with pytest.raises(errors.UserError, match=f"^config.{key} is missing"):
            training_job.TrainingJob.from_config(changed, pathlib.Path("runs/none"))
