"""The PyTorch side of benchmarks/transformer.py, for an interpreter that has torch and diffusers but may lack JAX.

Reads one JSON object (class, fields, shapes of the inputs, threads) and then, line by line, "forward" or "training";
answers each line with one JSON object.
"""

import json
import sys
import time
from typing import Any


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
    model = getattr(diffusers, settings["class"])(**settings["fields"])
    inputs = {name: torch.randn(shape) for name, shape in settings["inputs"].items()}
    inputs["timestep"] = torch.full((1,), 0.5)

    def forward() -> torch.Tensor:
        return model(**inputs, return_dict=False)[0]

    def run(method: str) -> float:
        if method == "forward":
            with torch.inference_mode():
                return float(forward().square().mean())
        model.zero_grad(set_to_none=True)
        loss = forward().square().mean()
        loss.backward()
        return loss.item()

    answer(
        versions=f"diffusers {diffusers.__version__}, torch {torch.__version__}",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    for line in sys.stdin:
        began, worked = time.perf_counter(), time.process_time()
        run(line.strip())
        answer(seconds=time.perf_counter() - began, cpu_seconds=time.process_time() - worked)


if __name__ == "__main__":
    main()
