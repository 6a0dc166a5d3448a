"""Every kind of export in the class of the other program, with the outputs that were recorded from that program.

Where no class exists here, keys, shapes and bytes are those of the recorded checkpoint. `KINDS` lists all
kinds: a family or a layout without a test fails `test_every_kind_has_a_test`.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import adapted
import converted
import diffusers
import gemma_folders
import golden_cases
import jax.numpy as jnp
import made_cases
import numpy as np
import peft
import pipeline_parts
import pytest
import test_adapter_exports
import torch
import torch_models
from diffusers.models.transformers import transformer_cosmos
from parity_checks import autoencoders

from conversion import __main__ as conversion
from conversion import families
from jworld.models.autoencoders import files
from jworld.utils import pretrained

GOLDEN = golden_cases.DEFAULT_ROOT


def case(name: str) -> golden_cases.GoldenCase:
    return golden_cases.GoldenCase(GOLDEN / name)


def tensors(golden: golden_cases.GoldenCase) -> dict[str, Any]:
    return {name: torch.from_numpy(value) for name, value in golden.inputs.items()}


def assert_close(found: Any, expected: np.ndarray) -> None:
    found = found.detach().numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def exported(folder: pathlib.Path, source: pathlib.Path, layout: str, *options: str) -> pathlib.Path:
    """Import a download by the command, and export it in this layout."""
    ours = folder / ("ours.safetensors" if options == ("autoencoder",) else "ours")
    conversion.main(["import", str(source), "--output", str(ours)])
    conversion.main(["export", str(ours), "--layout", layout, "--output", str(folder / "theirs")])
    return folder / "theirs"


def load(kind: type[Any], folder: pathlib.Path) -> Any:
    """Load a folder with a class of diffusers, which must use every tensor."""
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


# Networks


def hunyuan_network(model: Any) -> None:
    golden = made_cases.hunyuan_diffusers()
    with torch.inference_mode():
        assert_close(model(**tensors(golden), return_dict=False)[0], golden.outputs["sample"])


def cosmos_network(model: Any) -> None:
    golden = case("cosmos/diffusers_parity")
    given = tensors(golden)
    times = given["timesteps_B_T"]
    # The class resizes the mask with torchvision, which this project does not need.
    resize = mock.Mock(side_effect=lambda mask, size, **_: torch.nn.functional.interpolate(mask, tuple(size)))
    transforms = mock.Mock(functional=mock.Mock(resize=resize))
    with torch.inference_mode(), mock.patch.object(transformer_cosmos, "transforms", transforms, create=True):
        found = model(
            hidden_states=given["x_B_C_T_H_W"],
            timestep=times[:, None, :, None, None],
            encoder_hidden_states=given["crossattn_emb"],
            fps=None,
            condition_mask=given["condition_video_input_mask_B_C_T_H_W"],
            padding_mask=given["padding_mask"],
            return_dict=False,
        )[0]
    assert_close(found, golden.outputs["output_diffusers_fps_none"])


def cogvideox_network(model: Any) -> None:
    golden = case("matrix/s1_lora")
    with torch.inference_mode():
        assert_close(model(**tensors(golden), return_dict=False)[0], golden.outputs["output_base"])


def hunyuan_diffusers(folder: pathlib.Path) -> None:
    source = adapted.hunyuan_diffusers().write(folder / "source")
    theirs = exported(folder, source, "diffusers")
    with made_cases.small_glyphs():
        hunyuan_network(load(diffusers.HunyuanVideo15Transformer3DModel, theirs))


def worldplay_original(folder: pathlib.Path) -> None:
    source = adapted.worldplay().write(folder / "source")
    found = converted.contents(exported(folder, source, "original"))
    assert found == converted.contents(case("worldplay/transformer_ar_train").path / "weights.safetensors")


def cosmos_original(folder: pathlib.Path) -> None:
    source = adapted.cosmos_diffusers().write(folder / "source")
    found = converted.contents(exported(folder, source, "original"))
    expected = adapted.cosmos_original().weights
    assert {name: shape for name, (_, shape, _) in found.items()} == {name: x.shape for name, x in expected.items()}
    assert all(found[name][2] == value.tobytes() for name, value in expected.items())


def cosmos_diffusers(folder: pathlib.Path) -> None:
    source = adapted.cosmos_original().write(folder / "source")
    cosmos_network(load(diffusers.CosmosTransformer3DModel, exported(folder, source, "diffusers")))


def cogvideox_diffusers(folder: pathlib.Path) -> None:
    source = adapted.matrix().write(folder / "source")
    cogvideox_network(load(diffusers.CogVideoXTransformer3DModel, exported(folder, source, "diffusers")))


def gemma(style: str) -> Callable[[pathlib.Path], None]:
    def check(folder: pathlib.Path) -> None:
        golden = case("theworld/gemma3_text")
        theirs = exported(folder, adapted.gemma().write(folder / "source"), style)
        with pretrained.quiet() as transformers:
            model, report = transformers.Gemma3ForConditionalGeneration.from_pretrained(
                str(theirs), attn_implementation="eager", output_loading_info=True, local_files_only=True
            )
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        inputs = {name: torch.from_numpy(golden.inputs[name]) for name in ("input_ids", "attention_mask")}
        valid = golden.inputs["attention_mask"].astype(bool)
        with torch.inference_mode():
            np.testing.assert_allclose(
                model(**inputs).logits.numpy()[valid], golden.outputs["logits"][valid], rtol=1e-3, atol=1e-4
            )

    return check


def gemma_for_text(folder: pathlib.Path) -> None:
    source = gemma_folders.write(folder / "source", vision=False)
    given = gemma_folders.inputs(image=False)
    with torch.inference_mode():
        found, expected = (
            gemma_folders.load(each, "Gemma3ForCausalLM")(**given).logits
            for each in (exported(folder, source, "text"), source)
        )
    assert torch.equal(found, expected)


# Autoencoders


def autoencoder(folder: pathlib.Path, name: str, layout: str) -> pathlib.Path:
    return exported(folder, converted.autoencoder(folder / "source", case(name)), layout, "autoencoder")


def random_vae(folder: pathlib.Path, source: pathlib.Path, kind: type[Any], **settings: Any) -> tuple[Any, Any]:
    """The class computes the same with the exported weights, and so does the network here.

    Returns:
      The class with the downloaded weights, and the network here.
    """
    theirs = exported(folder, source, "diffusers", "autoencoder")
    ours: Any = files.load(folder / "ours.safetensors", dtype=jnp.float32, **settings)
    models = [load(kind, each) for each in (source, theirs)]
    for frames in (1, 5, 9):
        video = torch.randn(1, 3, frames, 24, 16)
        with torch.inference_mode():
            moments = [model.encode(video).latent_dist.parameters for model in models]
            latents = moments[0][:, :4]
            decoded = [model.decode(latents).sample for model in models]
        assert torch.equal(*moments)
        assert torch.equal(*decoded)
        values = {"video_T": video.numpy(), "latent_L": latents.numpy()}
        inputs = {f"{name}{frames}": value for name, value in values.items()}
        found = autoencoders.encoded(ours, inputs) | autoencoders.decoded(ours, inputs)
        assert_close(moments[0].permute(0, 2, 3, 4, 1), np.asarray(found[f"moments_T{frames}"]))
        assert_close(decoded[0].permute(0, 2, 3, 4, 1).clip(-1, 1), np.asarray(found[f"decoded_L{frames}"]).clip(-1, 1))
    return models[0], ours


def wan_vae(folder: pathlib.Path) -> None:
    """The same in tiles."""
    source = converted.wan_autoencoder(folder / "source")
    theirs, ours = random_vae(folder, source, diffusers.AutoencoderKLWan)
    tiling, (height, width) = autoencoders.Tiling(tile=(32, 32), stride=(24, 24)), (48, 40)
    theirs.enable_tiling(
        tile_sample_min_height=32, tile_sample_min_width=32, tile_sample_stride_height=24, tile_sample_stride_width=24
    )
    video = torch.randn(1, 3, 5, height, width)
    with torch.inference_mode():
        moments = theirs.encode(video).latent_dist.parameters
        decoded = theirs.decode(moments[:, :4]).sample
    inputs = {"tile_video": video.numpy(), "tile_latent": moments[:, :4].numpy()}
    found = autoencoders.in_tiles(ours, inputs, tiling)
    assert_close(moments.permute(0, 2, 3, 4, 1), np.asarray(found["tiled_moments"]))
    assert_close(decoded.permute(0, 2, 3, 4, 1), np.asarray(found["tiled_decoded"]).clip(-1, 1))


def hunyuan_vae(folder: pathlib.Path) -> None:
    source = converted.hunyuan15_autoencoder(folder / "source")
    random_vae(folder, source, diffusers.AutoencoderKLHunyuanVideo15, attention="causal", chunk=None)


def cogvideox_vae(folder: pathlib.Path) -> None:
    golden = case("matrix/vae")
    model = load(diffusers.AutoencoderKLCogVideoX, autoencoder(folder, "matrix/vae", "diffusers"))
    with torch.inference_mode():
        mean = model.encode(torch.from_numpy(golden.inputs["video"])).latent_dist.mean
        decoded = model.decode(torch.from_numpy(golden.inputs["latents"]) / model.config.scaling_factor).sample
    assert_close(mean, golden.outputs["posterior_mean"])
    assert_close(decoded, golden.outputs["decoded"])


def hunyuan_vae_original(folder: pathlib.Path) -> None:
    found = converted.contents(autoencoder(folder, "worldplay/vae", "original"))
    assert found == converted.contents(case("worldplay/vae").path / "weights.safetensors")


def wan_vae_original(folder: pathlib.Path) -> None:
    """The recorded original has 16 channels: its names and shapes as a digest."""
    found = converted.contents(pipeline_parts.autoencoder("cosmos", folder / "wan", "--layout", "original"))
    lines = sorted(f"{name} {shape}" for name, (_, shape, _) in found.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == "9fec849c10acf11f"


# Whole pipelines


def pipeline(
    folder: pathlib.Path, download: adapted.Download, base: pathlib.Path, *options: str, name: str = "transformer"
) -> pathlib.Path:
    conversion.main(
        ["import", str(download.write(folder / "source" / name)), "--output", str(folder / "ours"), *options]
    )
    out = folder / "pipeline"
    conversion.main(["export", str(folder / "ours"), "--pipeline", str(base), "--output", str(out)])
    conversion.main(
        ["verify", str(folder / "ours"), str(out / json.loads((out / "jworld_export.json").read_text())["network"])]
    )
    return out


def cogvideox_pipeline(folder: pathlib.Path) -> None:
    base = pipeline_parts.cogvideox_folder(folder / "CogVideoX-2b")
    out = pipeline(folder, adapted.matrix(), base, "--config.loss.snr_shift=2.0")
    pipe = diffusers.CogVideoXPipeline.from_pretrained(out)
    cogvideox_network(pipe.transformer)
    assert pipe.scheduler.config.snr_shift_scale == 2.0
    video = pipe(
        prompt_embeds=torch.zeros(1, 6, 12),
        negative_prompt_embeds=torch.zeros(1, 6, 12),
        height=32,
        width=64,
        num_frames=9,
        num_inference_steps=2,
        max_sequence_length=6,
        output_type="latent",
    ).frames
    assert torch.isfinite(video).all()


def cosmos_pipeline(folder: pathlib.Path) -> None:
    base = pipeline_parts.cosmos_folder(folder / "Cosmos-Predict2-2B-Video2World")
    out = pipeline(folder, adapted.cosmos_original(), base)

    class NoChecker(torch.nn.Module):
        pass

    pipe = diffusers.Cosmos2VideoToWorldPipeline.from_pretrained(out, safety_checker=NoChecker())
    cosmos_network(pipe.transformer)
    assert (pipe.scheduler.config.sigma_min, pipe.scheduler.config.sigma_max) == (0.002, 80.0)
    assert pipe.scheduler.config.use_karras_sigmas
    assert pipe.text_encoder.config.d_model == 12
    assert pipe.vae.config.z_dim == 16


def hunyuan_pipeline(folder: pathlib.Path) -> None:
    base = pipeline_parts.hunyuan_folder(folder / "HunyuanVideo-1.5-Diffusers-480p_i2v")
    out = pipeline(folder, adapted.hunyuan_diffusers(), base, "--config.sample.rollout.shift=7.0")
    with made_cases.small_glyphs():
        pipe = diffusers.HunyuanVideo15ImageToVideoPipeline.from_pretrained(out)
    hunyuan_network(pipe.transformer)
    assert pipe.scheduler.config.shift == 7.0
    assert pipe.guider.guidance_scale == 6.0


def worldplay_pipeline(folder: pathlib.Path) -> None:
    """The folder of HunyuanVideo-1.5 with the action model in its folder of HY-WorldPlay."""
    base = pipeline_parts.hunyuan_original_folder(folder / "HunyuanVideo-1.5")
    out = pipeline(folder, adapted.worldplay(), base, name="ar_distilled_action_model")
    assert converted.contents(out / "ar_distilled_action_model") == converted.contents(
        case("worldplay/transformer_ar_train").path / "weights.safetensors"
    )
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert names == [
        "ar_distilled_action_model/config.json",
        "ar_distilled_action_model/diffusion_pytorch_model.safetensors",
        "jworld_export.json",
        "scheduler/scheduler_config.json",
        "text_encoder/llm/config.json",
        "transformer/480p_i2v/weights.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert json.loads((out / "scheduler" / "scheduler_config.json").read_text())["shift"] == 7.0


# Adapters


def adapters(name: str, layout: str) -> Callable[[pathlib.Path], None]:
    def check(folder: pathlib.Path) -> None:
        run = test_adapter_exports.make_run(folder, name, test_adapter_exports.TARGETS[name])
        out, download = folder / "adapters", adapted.DOWNLOADS[name]()
        conversion.main(["export", str(run), "--layout", layout, "--adapters", "--output", str(out)])
        theirs = {each.removeprefix(download.prefix): value for each, value in download.weights.items()}
        model = peft.PeftModel.from_pretrained(torch_models.from_tensors(theirs), out)
        parts = [value for key, value in model.named_parameters() if "lora_" in key]
        assert parts
        # peft's own initial second matrices are zero: every one of them was in the file.
        assert all(bool(value.any()) for value in parts)

    return check


def gemma_adapters(layout: str) -> Callable[[pathlib.Path], None]:
    """The class of transformers with peft's adapters computes what the merged weights compute."""
    vision = layout != "text"
    kind = "Gemma3ForConditionalGeneration" if vision else "Gemma3ForCausalLM"
    targets = ("language/layers/attention/(query|key|value|out)", "language/layers/mlp/(gate|up|down)")
    # The modules of the vision tower have other names in version 4 of transformers.
    targets += ("vision/layers/(query|out|mlp/up)",) if layout not in ("text", "transformers4") else ()

    def check(folder: pathlib.Path) -> None:
        source = gemma_folders.write(folder / "source", vision=vision)
        run, out = test_adapter_exports.adapt(source, folder, targets), folder / "out"
        conversion.main(["export", str(run), "--output", str(folder / "merged")])
        conversion.main(["export", str(run), "--layout", layout, "--adapters", "--output", str(out)])
        model = peft.PeftModel.from_pretrained(gemma_folders.load(source, kind), out).eval()
        given = gemma_folders.inputs(image=vision)
        with torch.inference_mode():
            plain, expected = (gemma_folders.load(each, kind)(**given).logits for each in (source, folder / "merged"))
            unmerged = model(**given).logits
            assert all(bool(value.any()) for name, value in model.named_parameters() if "lora_B" in name)
            merged = model.merge_and_unload()(**given).logits
        largest = float(expected.abs().max())
        assert float((plain - expected).abs().max()) > 1e-2 * largest
        assert float((unmerged - expected).abs().max()) < 1e-5 * largest
        assert float((merged - expected).abs().max()) < 1e-5 * largest

    return check


#: Family, kind of export (a layout, a class of pipelines, or adapters in a layout) -> the check that loads it.
KINDS: dict[tuple[str, str], Callable[[pathlib.Path], None]] = {
    ("worldplay", "original"): worldplay_original,
    ("worldplay", "diffusers"): hunyuan_diffusers,
    ("worldplay", "pipeline of original"): worldplay_pipeline,
    ("worldplay", "pipeline of diffusers"): hunyuan_pipeline,
    ("worldplay", "adapters of original"): adapters("worldplay", "original"),
    ("worldplay", "adapters of diffusers"): adapters("hunyuan_diffusers", "diffusers"),
    ("cosmos", "original"): cosmos_original,
    ("cosmos", "diffusers"): cosmos_diffusers,
    ("cosmos", "pipeline of diffusers"): cosmos_pipeline,
    ("cosmos", "adapters of original"): adapters("cosmos_original", "original"),
    ("cosmos", "adapters of diffusers"): adapters("cosmos_diffusers", "diffusers"),
    ("cogvideox", "diffusers"): cogvideox_diffusers,
    ("cogvideox", "pipeline of diffusers"): cogvideox_pipeline,
    ("cogvideox", "adapters of diffusers"): adapters("matrix", "diffusers"),
    **{("theworld", style): gemma(style) for style in families.FAMILIES["theworld"].layouts if style != "text"},
    ("theworld", "text"): gemma_for_text,
    **{("theworld", f"adapters of {style}"): gemma_adapters(style) for style in families.FAMILIES["theworld"].layouts},
    ("hunyuan15-vae", "original"): hunyuan_vae_original,
    ("hunyuan15-vae", "diffusers"): hunyuan_vae,
    ("wan-vae", "original"): wan_vae_original,
    ("wan-vae", "diffusers"): wan_vae,
    ("cogvideox-vae", "diffusers"): cogvideox_vae,
}


def test_every_kind_has_a_test() -> None:
    expected = set()
    for family in families.FAMILIES.values():
        expected |= {(family.name, layout) for layout in family.layouts}
        if family.runs is not None:
            expected |= {(family.name, f"adapters of {layout}") for layout in family.layouts}
            expected |= {(family.name, f"pipeline of {each.layout}") for each in family.runs.pipelines}
    assert set(KINDS) == expected


@pytest.mark.parametrize(("family", "kind"), list(KINDS), ids=lambda value: str(value))
def test_the_other_program_loads_it(family: str, kind: str, tmp_path: pathlib.Path) -> None:
    KINDS[family, kind](tmp_path)
