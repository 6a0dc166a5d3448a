"""Benchmark of a chat with Gemma-3: tokens per second of one answer, next to transformers on the same cores.

    python benchmarks/chat.py
    python benchmarks/chat.py --layers 26 --width 1152 --mlp-width 6912 --json chat.json

Random weights in float32, by default of Gemma-3-270m's size. Both sides read a prompt into a KV cache and then choose
one token after another, each of which reaches Python before the next one is asked for, as when an answer is streamed.
They run alternately, and the fastest of --repeats runs counts. Needs torch and transformers.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jworld  # noqa: F401 - before JAX, whose environment it sets up

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from decode import prefill, random_model
from flax import nnx

from jworld.models.gemma3 import decoding
from jworld.models.gemma3.config import Gemma3Config
from jworld.utils import arguments as command_line


def make_config(arguments: argparse.Namespace) -> Gemma3Config:
    return Gemma3Config(
        vocabulary=arguments.vocabulary,
        width=arguments.width,
        mlp_width=arguments.mlp_width,
        num_layers=arguments.layers,
        num_heads=arguments.heads,
        num_key_heads=1,
        head_dim=256,
        query_scale=256.0,
        window=512,
        image_token=arguments.vocabulary,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        remat="none",
    )


_step = jax.jit(decoding.step, donate_argnums=2)


def ours(cfg: Gemma3Config, prompt: np.ndarray, new: int) -> tuple[int, Callable[[], list[float]]]:
    """Return the number of parameters, and a function that answers and returns the time of every token."""
    model = random_model(cfg)

    def run() -> list[float]:
        times = [time.perf_counter()]
        state = prefill(model, jnp.asarray(prompt), capacity=prompt.shape[1] + new)
        for _ in range(new):
            token = jnp.argmax(state.logits, axis=-1).astype(jnp.int32)
            state = _step(model, token, state)
            int(token[0])
            times.append(time.perf_counter())
        return times

    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))), run


def theirs(cfg: Gemma3Config, prompt: np.ndarray, new: int) -> tuple[int, str, Callable[[], list[float]]]:
    """Return the number of parameters, the versions, and a function as that of `ours`."""
    import torch
    import transformers

    config = transformers.Gemma3TextConfig(
        vocab_size=cfg.vocabulary,
        hidden_size=cfg.width,
        intermediate_size=cfg.mlp_width,
        num_hidden_layers=cfg.num_layers,
        num_attention_heads=cfg.num_heads,
        num_key_value_heads=cfg.num_key_heads,
        head_dim=cfg.head_dim,
        sliding_window=cfg.window,
        attn_implementation="sdpa",
    )
    model = transformers.Gemma3ForCausalLM(config).eval()

    @torch.inference_mode()
    def run() -> list[float]:
        times, tokens, cache = [time.perf_counter()], torch.from_numpy(prompt), None
        for _ in range(new):
            found = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            tokens, cache = found.logits[:, -1:].argmax(dim=-1), found.past_key_values
            int(tokens[0, 0])
            times.append(time.perf_counter())
        return times

    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return sum(parameter.numel() for parameter in model.parameters()), versions, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=command_line.Formatter)
    for name, default, text in (
        ("layers", 18, "layers"),
        ("width", 640, "model width"),
        ("mlp-width", 2048, "width of the MLP"),
        ("heads", 4, "query heads; there is one key head"),
        ("vocabulary", 262144, "rows of the embedding"),
        ("prompt", 256, "tokens of the prompt"),
        ("new", 64, "tokens of the answer"),
        ("repeats", 3, "answers to time; the fastest counts"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--json", type=pathlib.Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    cfg = make_config(arguments)
    prompt = np.random.default_rng(0).integers(0, cfg.vocabulary, (1, arguments.prompt))
    parameters, run = ours(cfg, prompt, arguments.new)
    their_parameters, versions, their_run = theirs(cfg, prompt, arguments.new)
    if parameters != their_parameters:
        raise SystemExit(f"error: the models differ in their parameters: {parameters:,} and {their_parameters:,}")
    rows: dict[str, list[dict[str, float]]] = {"jworld": [], "transformers": []}
    for i in range(arguments.repeats + 1):
        for name, answer in (("jworld", run), ("transformers", their_run)):
            times = answer()
            row = {
                "first_token_seconds": times[1] - times[0],
                "tokens_per_second": (len(times) - 2) / (times[-1] - times[1]),
            }
            rows[name] += [row] * (i > 0)
    table = rich.table.Table("", "first token, s", "tokens/s", title=f"{parameters:,} parameters, {versions}")
    for name, own in rows.items():
        first, rate = min(row["first_token_seconds"] for row in own), max(row["tokens_per_second"] for row in own)
        table.add_row(name, f"{first:.2f}", f"{rate:.1f}")
    rich.console.Console(highlight=False).print(table)
    if arguments.json:
        settings: dict[str, Any] = {name: value for name, value in vars(arguments).items() if name != "json"}
        arguments.json.write_text(
            json.dumps({"settings": settings, "versions": versions, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
