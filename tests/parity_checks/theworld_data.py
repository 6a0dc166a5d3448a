"""TheWorld's data and evaluation: prompt layout, labels, conversion of rows, parsers, metrics."""

import json
import math
from typing import Any

import golden_cases
import jax.numpy as jnp
import numpy as np
import recorded_json
import tokenizers

from jworld.data.conversations import chat, spatial
from jworld.models.theworld.config import WorldConfig
from jworld.models.theworld.model import insert
from jworld.systems.theworld import objective, original
from jworld.systems.theworld.evaluation import answers

#: Entries of a batch of the original.
KEYS = ["attention_mask", "images", "input_ids", "labels", "pixel_values"]
SPECIAL = ("<unk>", *chat.SPECIAL)


def make_tokenizer(config: dict[str, Any]) -> chat.ChatTokenizer:
    """Make the case's greedy longest-match tokenizer."""
    vocab = {name: i for i, name in enumerate(config["vocab"])}
    golden_cases.require(config, vocab_size_before_world_tokens=len(vocab))
    model = tokenizers.models.WordPiece(
        vocab, unk_token="<unk>", continuing_subword_prefix="", max_input_chars_per_word=1_000_000
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens([name for name in SPECIAL if name in vocab])
    tokenizer.decoder = tokenizers.decoders.Fuse()
    return chat.ChatTokenizer(tokenizer, image_tokens=config["image_seq_length"])


def labels(case: golden_cases.GoldenCase) -> float:
    """Compare token ids, the collator's labels, brackets, fused layout and SpatialRGPT rows exactly."""
    config = case.config
    tokenizer = make_tokenizer(config)
    ids = {name: i for i, name in enumerate(config["vocab"])}
    ids |= {"sow": tokenizer.ids[chat.START_OF_WORLD], "eow": tokenizer.ids[chat.END_OF_WORLD]}
    errors = [ids.get(name, ids.get(f"<{name}>")) != config["ids"][name] for name in config["ids"]]
    errors += [_rendered(entry) != entry["text"] for entry in config["rendered"]]
    for batch in config["batches"]:
        errors += _batch_errors(tokenizer, batch)
    for number, entry in enumerate(config["spatial"]):
        row = spatial.read_row(recorded_json.whole(entry["raw"]), number=number)
        messages = [{"role": _role(turn), "content": turn.text} for turn in row.turns]
        errors += [messages != entry["messages"], row.id != entry["id"]]
        errors += [row.qa_type != entry["qa_type"], row.qa_category != entry["qa_category"]]
    return float(sum(errors))


def _role(turn: chat.Turn) -> str:
    return "assistant" if turn.role == "model" else "user"


def _rendered(entry: dict[str, Any]) -> str:
    """Render an entry as the template does: an image is only its opening token."""
    (message,) = entry["messages"]
    golden_cases.require(message, role="user")
    texts = [part["text"] for part in message["content"] if part["type"] == "text"]
    images = sum(part["type"] == "image" for part in message["content"])
    turns = [chat.Turn("user", "".join(texts))]
    text = chat.render(turns, images=images, image_tokens=0, is_open=entry["add_generation_prompt"]).text
    return text.replace(f"\n\n{chat.START_OF_IMAGE}{chat.END_OF_IMAGE}\n\n", chat.START_OF_IMAGE)


def _turns(item: dict[str, Any]) -> list[chat.Turn]:
    if "messages" in item:
        return [
            chat.Turn("user" if message["role"] == "user" else "model", message["content"])
            for message in item["messages"]
        ]
    answer = [] if item["label"] is None else [chat.Turn("model", item["label"])]
    return [chat.Turn("user", item["text"]), *answer]


def _batch_errors(tokenizer: chat.ChatTokenizer, batch: dict[str, Any]) -> list[bool]:
    rows = [
        tokenizer.encode(_turns(item), images=1, labels="original", single_turn="messages" not in item)
        for item in batch["items"]
    ]
    rows = [row for row in rows if len(row.tokens) <= batch["max_length"]]
    if "raises" in batch:
        golden_cases.require(batch, raises="ValueError")
        return [bool(rows)]
    golden_cases.require(batch, n_images=len(rows), keys=KEYS)
    images, channels, *_ = batch["pixel_values_shape"]
    assert (images, channels) == (len(rows), 3)
    found = chat.pad(rows, max(len(row.tokens) for row in rows), pad_id=tokenizer.ids[chat.PAD])
    brackets = (tokenizer.ids[chat.START_OF_WORLD], tokenizer.ids[chat.END_OF_WORLD])
    count = batch["num_world_tokens"]
    world = WorldConfig(
        compat="original", layout="channel", latent_channels=count, start_token=brackets[0], end_token=brackets[1]
    )
    tokens, mask = jnp.asarray(found["tokens"]), jnp.asarray(found["mask"])
    fused = np.asarray(insert(tokens, world, -1, brackets))
    fused_mask = np.asarray(insert(mask, world, True))
    labels = objective.fused_labels(tokens, jnp.asarray(found["labels"]), mask, world)
    inside = range(2, 2 + count)
    layout = np.array(batch["fused_layout"])
    pairs = [
        (tokens, batch["input_ids"]),
        (mask, batch["attention_mask"]),
        (found["labels"], batch["labels"]),
        (np.delete(fused, inside, axis=1), batch["injected_input_ids"]),
        (np.delete(fused_mask, inside, axis=1), batch["injected_attention_mask"]),
        # The case numbers the world's tokens -1, -2, ...
        (fused, np.where(layout < 0, -1, layout)),
        (fused_mask, batch["fused_attention_mask"]),
    ]
    errors = [not np.array_equal(mine, theirs) for mine, theirs in pairs]
    # Padding has labels in the case, which the mask removes.
    theirs = np.where(fused_mask, batch["fused_labels"], chat.IGNORED)
    return [*errors, not np.array_equal(labels, theirs)]


def eval_parse(case: golden_cases.GoldenCase) -> float:
    """Compare parsers exactly, and metrics up to rounding."""
    config = case.config
    wrong = [answers.blink_choice(e["text"], list(e["choices"])) != e["out"] for e in config["blink_parse_choice"]]
    for entry in config["blink_prompt"]:
        example = entry["example"]
        wrong.append(answers.blink_prompt(example["question"], example["choices"]) != entry["out"])
    wrong += [answers.is_yes(e["text"]) != e["out"] for e in config["yes_no"]]
    wrong += [answers.is_one(e["text"]) != e["out"] for e in config["qualitative"]]
    wrong += [list(answers.two_numbers(e["text"]) or (None, None)) != e["out"] for e in config["quantitative"]]
    wrong += [answers.vsr_digit(e["text"]) != e["out"] for e in config["vsr_parse"]]
    # The original sets the evaluation batch size to that of training at start-up.
    wrong.append(config["training_config_defaults"] != {**original.DEFAULTS, "eval_batch_size": 4})
    wrong += [spatial.clamp_box(*e["in"]) != e["out"] for e in config["clamp_bbox"]]
    lines = [
        line if isinstance(line, str) else json.dumps(recorded_json.whole(line)) for line in config["accuracy"]["lines"]
    ]
    numbers = [
        (answers.choice_accuracy(lines), config["accuracy"]["out"]),
        (
            answers.spatial_accuracy(recorded_json.whole(config["spatial_accuracy"]["rows"])),
            config["spatial_accuracy"]["out"],
        ),
        *((list(answers.change(*e["in"])), e["out"]) for e in config["delta"]),
    ]
    return float(sum(wrong) + sum(not _equal(found, expected) for found, expected in numbers))


def _equal(found: Any, expected: Any) -> bool:
    """Return True for equal structures, with numbers equal up to rounding."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_equal(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(_equal, found, expected))
    if isinstance(expected, int | float):
        return math.isclose(found, expected, rel_tol=1e-12)
    return found == expected


CHECKS = {
    "theworld/theworld_eval_parse": eval_parse,
    "theworld/theworld_labels": labels,
}
