"""The PyTorch side of benchmarks/autoencoder.py, for an interpreter that has torch and diffusers but may lack JAX.

Reads one JSON object (family, fields of the diffusers class, sizes, threads) and then, line by line, "encode" or
"decode"; answers each line with one JSON object.
"""

import json
import sys
import time
from typing import Any

CLASSES = {
    "wan": "AutoencoderKLWan",
    "cogvideox": "AutoencoderKLCogVideoX",
    "hunyuan15": "AutoencoderKLHunyuanVideo15",
}


def answer(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    try:
        import diffusers
        import torch
    except ImportError as error:
        answer(missing=str(error))
        return
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    model = getattr(diffusers, CLASSES[settings["family"]])(**settings["fields"]).eval()
    frames, height, width = settings["video"]
    video = torch.rand(1, 3, frames, height, width) * 2 - 1
    latents = torch.randn(1, *settings["latents"])
    run = {
        "encode": lambda: model.encode(video).latent_dist.mode(),
        "decode": lambda: model.decode(latents).sample,
    }
    answer(
        versions=f"diffusers {diffusers.__version__}, torch {torch.__version__}",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    with torch.inference_mode():
        for line in sys.stdin:
            began, worked = time.perf_counter(), time.process_time()
            result = run[line.strip()]()
            seconds = time.perf_counter() - began
            answer(seconds=seconds, cpu_seconds=time.process_time() - worked, shape=list(result.shape))


if __name__ == "__main__":
    main()
