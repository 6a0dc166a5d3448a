"""Encoding of the text of a data set: every distinct prompt once, in shards that processes share."""

from collections.abc import Mapping, Sequence
from typing import Any

import rich.console

from jworld.data import records
from jworld.data.inputs import items
from jworld.data.records import shards, text_store
from jworld.encoders import choices, registry, weightless
from jworld.utils.errors import UserError

PROMPTS_PER_SHARD = 256
_BATCH = 32


def collect(listed: Sequence[items.Item]) -> list[str]:
    """Return the prompts in the order of their rows: the negative one, then training and held-out captions."""
    chosen = [item for split in records.SPLITS for item in listed if item.split == split]
    captions = [one.caption for item in chosen for one in (item, *item.views)]
    return list(dict.fromkeys(["", *captions]))


def plan(prompts: Sequence[str]) -> list[shards.Shard]:
    """Divide the prompts into shards."""
    return shards.plan({shards.TEXT: range(len(prompts))}, items_per_shard=PROMPTS_PER_SHARD)


def write(
    output: shards.Output,
    mine: Sequence[shards.Shard],
    prompts: Sequence[str],
    specs: Mapping[str, str],
    options: registry.Options,
    *,
    console: rich.console.Console | None,
) -> None:
    """Encode the missing shards among those of this process; encoders are opened only if a shard is missing."""
    missing = [shard for shard in mine if output.result(shard) is None]
    if not missing:
        return
    encoder, glyphs = (choices.load(role, specs[role.attribute], options) for role in (choices.TEXT, choices.GLYPH))
    if encoder is None:
        raise ValueError("prompts without a text encoder")
    facts = {
        role.key: (found or weightless.NoText(0)).manifest_entry()
        for role, found in ((choices.TEXT, encoder), (choices.GLYPH, glyphs))
    }
    done = sum(len(shard.items) for shard in mine) - sum(len(shard.items) for shard in missing)
    total = sum(len(shard.items) for shard in mine)
    with shards.meter("encoding text", total, done=done, unit="prompts", console=console) as advance:
        for shard in missing:
            with shards.ShardWriter(output.directory, shard) as writer:
                writer.result.facts = facts
                for start in range(0, len(shard.items), _BATCH):
                    rows = [prompts[row] for row in shard.items[start : start + _BATCH]]
                    drawn = [None] * len(rows) if glyphs is None else glyphs.encode(rows)
                    for prompt, states, glyph in zip(rows, encoder.encode(rows), drawn, strict=True):
                        before = writer.bytes
                        writer.write_prompt(prompt, text_store.prompt_record(states, glyph))
                        advance(writer.bytes - before)


def facts(results: Sequence[shards.Result]) -> dict[str, Any]:
    """Return the manifest's entries of the encoders that wrote the text shards; those of no encoder without shards."""
    if not results:
        none = weightless.NoText(0).manifest_entry()
        return {role.key: none for role in (choices.TEXT, choices.GLYPH)}
    for result in results[1:]:
        if result.facts != results[0].facts:
            raise UserError(
                f"shards of text were encoded by different encoders, {results[0].facts} and {result.facts}: give all "
                "processes the same folders, remove the output and start again"
            )
    return results[0].facts
