"""PyTorch side of a comparison, for an interpreter with torch and diffusers; JAX is not needed.

Reads one JSON object: class of diffusers, its fields, shapes of the inputs, threads. Then reads one method per line:
"encode" or "decode" for an autoencoder, "forward" or "training" for a transformer. Writes one JSON object per line.
"""

import json
import sys
import time
from typing import Any


def reply(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    try:
        import diffusers
        import torch
    except ImportError as error:
        reply(missing=str(error))
        return
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    model = getattr(diffusers, settings["class"])(**settings["fields"]).eval()
    inputs = {name: torch.rand(shape) * 2 - 1 for name, shape in settings["inputs"].items()}

    def training() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        loss = model(**inputs, return_dict=False)[0].square().mean()
        loss.backward()
        return loss

    run = {
        "encode": lambda: model.encode(inputs["video"]).latent_dist.mode(),
        "decode": lambda: model.decode(inputs["latents"]).sample,
        "forward": lambda: model(**inputs, return_dict=False)[0].square().mean(),
        "training": training,
    }
    reply(
        versions=f"diffusers {diffusers.__version__}, torch {torch.__version__}",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    for line in sys.stdin:
        method = line.strip()
        began, worked = time.perf_counter(), time.process_time()
        with torch.inference_mode(method != "training"):
            run[method]()
        reply(seconds=time.perf_counter() - began, cpu_seconds=time.process_time() - worked)


if __name__ == "__main__":
    main()
