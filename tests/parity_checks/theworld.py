"""Gemma-3 and TheWorld: intermediate outputs, logits, generated tokens, losses and gradients."""

import dataclasses
import json
import math
import pathlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import converted
import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from flax import nnx

from conversion import __main__ as conversion
from conversion import engine, gemma3, theworld
from jworld.data.conversations import image_files
from jworld.models.gemma3 import decoding
from jworld.models.gemma3.config import Gemma3Config
from jworld.models.gemma3.masks import Images
from jworld.models.gemma3.model import Gemma3
from jworld.models.gemma3.text import places
from jworld.models.gemma3.vision import vision_values
from jworld.models.theworld.config import TheWorldConfig, WorldConfig
from jworld.models.theworld.model import TheWorld, world_values
from jworld.systems import runs
from jworld.systems.theworld import objective
from jworld.training.state import path_filter
from jworld.utils import config

#: Parts of our model that the original freezes together.
PARTS = {"vision": "vision|projector", "language": "language", "vae": "autoencoder"}
#: Name of a key style in the golden cases -> our name.
STYLES = {"hub": "hub", "v4": "transformers4", "v5": "transformers5-saved"}


def config_of(case: golden_cases.GoldenCase) -> Gemma3Config:
    text, vision = case.config["text_config"], case.config["vision_config"]
    golden_cases.require(
        text,
        hidden_activation="gelu_pytorch_tanh",
        attention_bias=False,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        tie_word_embeddings=True,
    )
    golden_cases.require(vision, hidden_act="gelu_pytorch_tanh", num_channels=3, vision_use_head=False)
    golden_cases.require(case.config, dtype="float32")
    # Tokens of the processor and of generation, which the cases do not stop; the limit of a tokenizer.
    golden_cases.without_effect(text, "pad_token_id", "bos_token_id", "max_position_embeddings")
    golden_cases.without_effect(case.config, "boi_token_index", "eoi_token_index", "eos_token_id")
    # How attention is computed.
    golden_cases.without_effect(case.config, "attn_implementation")
    scaling = text["rope_scaling"] or {"factor": 1.0}
    golden_cases.require(scaling, rope_type="linear")
    kinds = {"sliding_attention": "sliding", "full_attention": "full"}
    return Gemma3Config(
        vocabulary=text["vocab_size"],
        width=text["hidden_size"],
        mlp_width=text["intermediate_size"],
        num_layers=text["num_hidden_layers"],
        num_heads=text["num_attention_heads"],
        num_key_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        eps=text["rms_norm_eps"],
        pattern=tuple(kinds[kind] for kind in text["layer_types"]),
        window=text["sliding_window"],
        query_scale=text["query_pre_attn_scalar"],
        rope_theta=text["rope_theta"],
        rope_factor=scaling["factor"],
        local_rope_theta=text["rope_local_base_freq"],
        image_token=case.config["image_token_index"],
        image_tokens=case.config["mm_tokens_per_image"],
        vision_width=vision["hidden_size"],
        vision_mlp_width=vision["intermediate_size"],
        vision_layers=vision["num_hidden_layers"],
        vision_heads=vision["num_attention_heads"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        vision_eps=vision["layer_norm_eps"],
        dtype=jnp.float32,
    )


def fill(model: Any, weights: Mapping[str, np.ndarray], rules: Any) -> Any:
    """Build the module that `model` makes, with these weights."""
    with nnx.use_eager_sharding(False):
        graphdef, state = nnx.split(nnx.eval_shape(lambda: model(nnx.Rngs(0))))
        return nnx.merge(graphdef, engine.to_state(state, engine.import_tensors(weights, state, rules)))


def load(case: golden_cases.GoldenCase, **changes: Any) -> Gemma3:
    cfg = dataclasses.replace(config_of(case), **changes)
    rules = gemma3.rules(cfg, gemma3.STYLES[STYLES[case.config["key_style"]]])
    return fill(lambda rngs: Gemma3(cfg, rngs=rngs), case.weights, rules)


def by_rows(cfg: Gemma3Config, tokens: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Group images [N, 3, H, W], in the order of the tokens, to [B, I, H, W, 3], padded with zeros."""
    counts = (tokens == cfg.image_token).sum(axis=1) // cfg.image_tokens
    rows = np.zeros((len(tokens), max(counts), cfg.image_size, cfg.image_size, 3), np.float32)
    images = iter(np.moveaxis(pixels, 1, -1))
    for row, count in zip(rows, counts, strict=True):
        for i in range(count):
            row[i] = next(images)
    return rows


def _inside(model: Gemma3, embeds: jax.Array, mask: jax.Array, images: jax.Array | None) -> dict[str, jax.Array]:
    """Return the outputs of the layers, in order."""
    text, outputs = model.language, {}
    x, contexts = text.start(embeds, mask, None, images)
    graphdef, layers = nnx.split(text.layers)
    for i in range(text.cfg.num_layers):
        params, place = jax.tree.map(lambda leaf, i=i: leaf[i], (layers, places(text.cfg.kinds)))
        x, _ = nnx.merge(graphdef, params)(x, place, contexts)
        outputs[f"hidden_after_layer{i}"] = x
    return outputs | {"final_norm": text.norm(x)}


def images_of(case: golden_cases.GoldenCase) -> Images:
    tokens = case.inputs["token_type_ids"] == 1
    return Images(jnp.asarray(tokens), longest=max(int(tokens.sum(axis=1).max()), 1))


def _require_rows(case: golden_cases.GoldenCase) -> None:
    """Fail unless every row is <bos>, then the stated numbers of text tokens and, at "I", an image's tokens."""
    config = case.config
    image = [config["boi_token_index"], *[config["image_token_index"]] * config["mm_tokens_per_image"]]
    image.append(config["eoi_token_index"])
    rows = zip(case.inputs["input_ids"], case.inputs["attention_mask"], config["rowspec"], strict=True)
    for tokens, mask, spec in rows:
        parts = [image if part == "I" else [None] * int(part) for part in spec]
        expected = [config["text_config"]["bos_token_id"], *(token for part in parts for token in part)]
        row = tokens[mask == 1].tolist()
        assert len(row) == len(expected)
        assert all(token in (None, own) for token, own in zip(expected, row, strict=True))


def _forward(case: golden_cases.GoldenCase) -> float:
    model, inputs = load(case), case.inputs
    tokens, mask = jnp.asarray(inputs["input_ids"]), jnp.asarray(inputs["attention_mask"]) == 1
    with_images = "pixel_values" in inputs
    if "rowspec" in case.config:
        _require_rows(case)

    @jax.jit
    def forward(model: Gemma3) -> dict[str, Any]:
        pixels = images = None
        if with_images:
            pixels = jnp.asarray(by_rows(model.cfg, inputs["input_ids"], inputs["pixel_values"]))
            images = images_of(case)
        embeds = model.embed(tokens, pixels)
        outputs = {
            "inputs_embeds": embeds,
            **_inside(model, embeds, mask, images),
            "logits": model(tokens, pixels, mask=mask, images=images),
        }
        outputs = {name: value * mask[..., None] for name, value in outputs.items()}
        if with_images:
            real = jnp.moveaxis(jnp.asarray(inputs["pixel_values"]), 1, -1)
            outputs |= {
                "logits_no_token_type_ids": model(tokens, pixels, mask=mask) * mask[..., None],
                "vision_embeddings": model.vision.embed(real),
                "vision_last_hidden_state": model.vision(real),
                "image_features": model.image_features(real[:, None]),
            }
        else:
            labels = jnp.where(mask, inputs["labels"], objective.IGNORED)
            states = model.language(embeds, mask=mask)
            total = objective.score(model.language, states[:, :-1], labels[:, 1:], chunk=7)
            outputs["loss"] = (total.entropy / total.total)[None]
        return outputs

    outputs = forward(model)
    expected = {name: value for name, value in case.outputs.items() if name in outputs}
    expected["inputs_embeds"] = expected["inputs_embeds"] * inputs["attention_mask"][..., None]
    return golden_cases.largest_error(outputs, expected)


def _generate(case: golden_cases.GoldenCase) -> float:
    """Compare tokens exactly, and the logits of every step with the KV cache and recomputed without it."""
    model, inputs = load(case), case.inputs
    expected, steps = case.outputs["generated"], case.config["max_new_tokens"]
    mask = jnp.asarray(inputs["attention_mask"]) == 1
    pixels = jnp.asarray(by_rows(model.cfg, inputs["input_ids"], inputs["pixel_values"]))

    @jax.jit
    def generate(model: Gemma3) -> Any:
        text, images = model.language, images_of(case)
        embeds = model.embed(jnp.asarray(inputs["input_ids"]), pixels)
        state = decoding.prefill(text, embeds, mask, images, capacity=mask.shape[1] + steps)
        tokens = decoding.generate(text, state, steps=steps)

        def follow(state: decoding.State, chosen: jax.Array) -> Any:
            return decoding.step(text, chosen, state), state.logits

        _, logits = jax.lax.scan(follow, state, tokens.T)
        later = jnp.ones_like(tokens, bool)
        whole = jnp.concatenate([embeds, text.embed(tokens)], axis=1)
        visible = jnp.concatenate([mask, later], axis=1)
        again = text(
            whole,
            mask=visible,
            positions=jnp.cumsum(visible, axis=1) - 1,
            images=dataclasses.replace(images, tokens=jnp.concatenate([images.tokens, ~later], axis=1)),
        )
        return tokens, jnp.moveaxis(logits, 0, 1), text.logits(again[:, mask.shape[1] - 1 : -1])

    tokens, logits, again = generate(model)
    np.testing.assert_array_equal(tokens, expected)
    return max(golden_cases.relative_error(x, case.outputs["step_logits"]) for x in (logits, again))


def world_of(case: golden_cases.GoldenCase) -> WorldConfig:
    fields, vae = case.config, case.config["vae_config"]
    golden_cases.require(fields, model_type="the_world")
    # The original does not normalize latents.
    golden_cases.without_effect(vae, "latents_mean", "latents_std")
    return WorldConfig(
        compat="original",
        layout=fields["world_projection_mode"],
        architecture=fields["projection_architecture"],
        latent_channels=vae["z_dim"],
        autoencoder_width=vae["base_dim"],
        autoencoder_multipliers=tuple(vae["dim_mult"]),
        autoencoder_blocks=vae["num_res_blocks"],
        start_token=fields["sow_token_id"],
        end_token=fields["eow_token_id"],
    )


def load_world(case: golden_cases.GoldenCase) -> TheWorld:
    cfg = TheWorldConfig(gemma=config_of(case), world=world_of(case))
    rules = theworld.rules(cfg, STYLES[case.config["key_style"].split()[0]])
    model = fill(lambda rngs: TheWorld(cfg, rngs=rngs), case.weights, rules)
    golden_cases.require(case.config, num_world_tokens=world_of(case).tokens)
    places = engine.plan(engine.parameter_shapes(nnx.state(model)), rules)
    for setting, saved in case.config["freeze_to_saved"].items():
        frozen = {part: flag == "1" for part, flag in (each.split("=") for each in setting.split())}
        names = [name for name, place in places.items() if re.fullmatch(trained_parts(frozen), place.path)]
        golden_cases.require(
            saved,
            n_tensors=len(names),
            n_params=sum(math.prod(places[name].source_shape) for name in names),
            prefixes=sorted({".".join(name.split(".")[:2]) for name in names}),
        )
    return model


def trained_parts(frozen: Mapping[str, bool]) -> str:
    """Return the regular expression of the trained parameters' paths; the projection of the world always trains."""
    return f"({'|'.join(['world', *(paths for part, paths in PARTS.items() if not frozen[part])])})/.*"


def batch_of(case: golden_cases.GoldenCase, cfg: Gemma3Config) -> dict[str, jax.Array]:
    """Make the system's batch, with the prompt's images as floats: the case has no uint8 images."""
    inputs = case.inputs
    pixels = by_rows(cfg, inputs["input_ids"], inputs["pixel_values"])
    images = [PIL.Image.fromarray(inputs[f"image_{i}"]) for i in range(len(inputs["input_ids"]))]
    golden_cases.require(case.config, image_sizes_wh=[list(image.size) for image in images])
    return {
        "tokens": jnp.asarray(inputs["input_ids"]),
        "mask": jnp.asarray(inputs["attention_mask"]) == 1,
        "labels": jnp.asarray(inputs["labels"]),
        "pixel_values": jnp.asarray(pixels),
        "world_pixels": jnp.asarray(np.stack([image_files.resized(image, image_files.WORLD_SIZE) for image in images])),
    }


def _world(case: golden_cases.GoldenCase) -> float:
    model = load_world(case)
    batch, positions = batch_of(case, model.cfg), case.outputs.get("position_index", slice(None))
    latents = jax.jit(TheWorld.latents)(model, batch.pop("world_pixels"))
    cfg = objective.ObjectiveConfig(chunk=16)
    graphdef, trained, rest = nnx.split(model, path_filter("world/.*"), ...)

    @jax.jit
    def forward(trained: Any, rest: Any, batch: dict[str, jax.Array]) -> dict[str, Any]:
        model = nnx.merge(graphdef, trained, rest)
        latents, pixels = batch["world_latent"], batch["pixel_values"]
        fused = model.fuse(batch["tokens"], batch["mask"], pixels, latents)
        states = model.language(fused.embeds, mask=fused.mask, images=fused.images)
        loss, gradients = jax.value_and_grad(
            lambda trained: objective.latent_loss(nnx.merge(graphdef, trained, rest), batch, pixels, latents, cfg)[0]
        )(trained)
        without = model.fuse(batch["tokens"], batch["mask"], pixels, None)
        plain = model.language.logits(model.language(without.embeds, mask=without.mask))
        return {
            "latents": jnp.moveaxis(latents[:, 0], -1, 1),
            "world_tokens": model.world.tokens(latents)[:, 0],
            "world_embeds": model.world(latents),
            "image_features": model.image_features(pixels[:, :1]),
            "fused_embeds": (fused.embeds * fused.mask[..., None])[:, positions],
            "fused_attention_mask": fused.mask,
            "final_norm": (states * fused.mask[..., None])[:, positions],
            "logits": (model.language.logits(states) * fused.mask[..., None])[:, positions],
            "logits_without_images": plain * without.mask[..., None],
            "labels_used": objective.fused_labels(batch["tokens"], batch["labels"], batch["mask"], model.config.world)
            * fused.mask,
            "loss": loss[None],
            "gradients": gradients["world"],
        }

    outputs = forward(trained, rest, batch | {"world_latent": latents})
    gradients = outputs.pop("gradients")
    for name, layer in ((".0", "hidden"), (".2", "output"), ("", "output")):
        if f"grad.world_projector.projection{name}.weight" in case.outputs:
            outputs[f"grad.world_projector.projection{name}.weight"] = gradients[layer]["kernel"][...].T
            outputs[f"grad.world_projector.projection{name}.bias"] = gradients[layer]["bias"][...]
    expected = {name: value for name, value in case.outputs.items() if name in outputs}
    if "position_index" in case.outputs:
        outputs["world_tokens"] = outputs["world_tokens"][
            :, :: outputs["world_tokens"].shape[1] // expected["world_tokens"].shape[1]
        ]
    return golden_cases.largest_error(outputs, expected)


def _preprocess(case: golden_cases.GoldenCase) -> float:
    """Compare images of every mode, resized and as inputs of both encoders; every 37th row of the world's images."""
    stored = [PIL.Image.fromarray(case.inputs[f"image_{i}"]) for i in range(len(case.inputs))]
    for image, (height, width, *_, mode) in zip(stored, case.config["image_sizes_hw_mode"], strict=True):
        assert ((width, height), mode) == (image.size, image.mode)
    images = [image.convert("RGB") for image in stored]
    resized = np.stack([image_files.resized(image, case.config["siglip_size"]) for image in images])
    world = np.stack([image_files.resized(image, image_files.WORLD_SIZE) for image in images])[:, ::37]
    values = world_values(jnp.asarray(world), original=True).astype(jnp.bfloat16)
    outputs = {
        "pixel_values": np.moveaxis(vision_values(jnp.asarray(resized)), -1, 1),
        "vae_resized_uint8": world,
        "vae_input_bf16_rows": np.moveaxis(np.asarray(values, np.float32), -1, 1),
    }
    return golden_cases.largest_error(outputs, case.outputs)


def _require_imported(case: golden_cases.GoldenCase, cfg: TheWorldConfig) -> None:
    """Fail unless an imported model has the sizes and settings of the case."""
    stated, world = config_of(case), cfg.world
    for field in dataclasses.fields(Gemma3Config):
        if field.name not in ("dtype", "param_dtype", "frozen_dtype", "remat", "attention", "pattern"):
            own, theirs = getattr(cfg.gemma, field.name), getattr(stated, field.name)
            assert own == theirs, f"{field.name} is {own}, expected {theirs}"
    assert cfg.gemma.kinds == stated.kinds
    assert world is not None
    golden_cases.require(
        case.config,
        world_projection_mode=world.layout,
        projection_architecture=world.projection,
        sow_token_id=world.start_token,
        eow_token_id=world.end_token,
    )


def _checkpoint(case: golden_cases.GoldenCase) -> float:
    """Import a checkpoint with its base by the command, compare outputs, and check that an export restores it."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        checkpoint, base = case.path / "checkpoint", folder / "base"
        base.mkdir()
        shutil.copy(case.path.parent / case.config["base_case"] / "weights.safetensors", base / "model.safetensors")
        trained = trained_parts({part: case.config["freeze"][part] for part in PARTS})
        settings = ["model.dtype=float32", "model.frozen_dtype=None", f"optimizer.trainable={trained}"]
        options = [part for setting in settings for part in ("--set", setting)]
        ours, exported = folder / "ours", folder / "exported"
        conversion.main(["import", str(checkpoint), "--base", str(base), "--output", str(ours), *options])
        conversion.main(["export", str(ours), "--trained", "--output", str(exported)])
        assert converted.contents(exported) == converted.contents(checkpoint)
        golden_cases.require(case.config, saved_keys=sorted(converted.contents(exported)))
        written, original = (json.loads((path / "config.json").read_text()) for path in (exported, checkpoint))
        assert (
            written.items() >= {key: original[key] for key in original if key.startswith(("freeze_", "world_"))}.items()
        )
        model, _ = runs.load_model(ours, config.load(ours))
    assert isinstance(model, TheWorld)
    _require_imported(case, model.config)
    batch = batch_of(case, model.cfg)
    latents = jax.jit(TheWorld.latents)(model, batch.pop("world_pixels"))

    @jax.jit
    def forward(model: TheWorld, batch: dict[str, jax.Array], latents: jax.Array) -> dict[str, jax.Array]:
        fused = model.fuse(batch["tokens"], batch["mask"], batch["pixel_values"], latents)
        logits = model.language.logits(model.language(fused.embeds, mask=fused.mask, images=fused.images))
        settings = objective.ObjectiveConfig(chunk=16)
        loss, _ = objective.latent_loss(model, batch, batch["pixel_values"], latents, settings)
        return {
            "fused_attention_mask": fused.mask,
            "logits": logits * fused.mask[..., None],
            "loss": loss[None],
        }

    return golden_cases.largest_error(forward(model, batch, latents), case.outputs)


CHECKS = {
    "theworld/gemma3_generate": _generate,
    "theworld/gemma3_image_text": _forward,
    "theworld/gemma3_text": _forward,
    "theworld/theworld_channel": _world,
    "theworld/theworld_checkpoint": _checkpoint,
    "theworld/theworld_preprocess": _preprocess,
    "theworld/theworld_spatial": _world,
}
