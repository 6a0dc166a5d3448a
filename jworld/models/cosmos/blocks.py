"""Transformer block: self-attention, cross-attention to the text and an MLP, each modulated by the time."""

from typing import Any, NamedTuple

import einops
import jax
from flax import nnx

from jworld.models.cosmos.config import CosmosConfig
from jworld.models.layers.attention import attention
from jworld.models.layers.linear import truncated_init
from jworld.models.layers.mlp import MLP, gelu_exact
from jworld.models.layers.modulation import Modulation, gated, modulated_norm
from jworld.models.layers.projections import Projections
from jworld.models.layers.rotary import rotate_halves
from jworld.parallel.axes import constrain


class Context(NamedTuple):
    """Inputs of every block in addition to the tokens.

    Attributes:
      vector: [B, 1 or F, 1, D] float32 embedding of times and actions.
      offset: [B, 1 or F, 1, 3D] float32 common term of all modulations, or None without one.
      rope: cos and sin, [F, T, K/2] each, T tokens per frame.
      text: [B, V * S, E]; view v of V attends to its own S rows.
      position: [F, T, D] added before every block, or None.
    """

    vector: jax.Array
    offset: jax.Array | None
    rope: tuple[jax.Array, jax.Array]
    text: jax.Array
    position: jax.Array | None


def modulation(cfg: CosmosConfig, parts: int, rngs: nnx.Rngs) -> Modulation:
    return Modulation(
        cfg.width,
        cfg.width,
        parts,
        rank=cfg.modulation_rank,
        use_bias=False,
        leading=("batch", "frames", None),
        param_dtype=cfg.param_dtype,
        rngs=rngs,
    )


class Block(nnx.Module):
    """Layer over tokens [B, F, T, D]; times are per frame."""

    def __init__(self, cfg: CosmosConfig, *, rngs: nnx.Rngs):
        self.implementation = cfg.attention
        common: dict[str, Any] = {
            "use_bias": False,
            "kernel_init": truncated_init,
            "dtype": cfg.dtype,
            "param_dtype": cfg.param_dtype,
            "rngs": rngs,
        }
        self.self_modulation = modulation(cfg, 3, rngs)
        self.self_attention = Projections(cfg.width, cfg.num_heads, **common)
        self.cross_modulation = modulation(cfg, 3, rngs)
        self.cross_attention = Projections(cfg.width, cfg.num_heads, context_width=cfg.text_width, **common)
        self.mlp_modulation = modulation(cfg, 3, rngs)
        self.mlp = MLP(cfg.width, int(cfg.width * cfg.mlp_ratio), gelu_exact, **common)

    def __call__(self, x: jax.Array, context: Context, views: int) -> jax.Array:
        """Apply the layer: [B, F, T, D] -> [B, F, T, D]; `views` cameras have F / views consecutive frames each."""
        if context.position is not None:
            x = x + context.position.astype(x.dtype)
        shift, scale, gate = self.self_modulation(context.vector, context.offset)
        x = gated(x, self._attend_video(modulated_norm(x, shift, scale), context), gate)
        shift, scale, gate = self.cross_modulation(context.vector, context.offset)
        x = gated(x, self._attend_text(modulated_norm(x, shift, scale), context.text, views), gate)
        shift, scale, gate = self.mlp_modulation(context.vector, context.offset)
        return gated(x, self.mlp(modulated_norm(x, shift, scale)), gate)

    def _attend_video(self, x: jax.Array, context: Context) -> jax.Array:
        """Attend from every token to all tokens of all frames."""
        # Tokens stay sharded here, so that the exchange for attention moves activations and never reshards a kernel.
        q, k, v = (constrain(part, "batch", "frames", None, None, None) for part in self.self_attention.heads(x))
        q, k = (rotate_halves(part, *context.rope) for part in (q, k))
        q, k, v = (einops.rearrange(part, "b f t n k -> b (f t) n k") for part in (q, k, v))
        out = attention(q, k, v, implementation=self.implementation)
        return self.self_attention.out(einops.rearrange(out, "b (f t) n k -> b f t (n k)", f=x.shape[1]))

    def _attend_text(self, x: jax.Array, text: jax.Array, views: int) -> jax.Array:
        """Attend to the text without a mask: the zero rows after a prompt are attended as well, as in the original."""
        q, k, v = self.cross_attention.heads(x, text)
        q = constrain(q, "batch", "frames", None, None, None)
        k, v = (constrain(part, "batch", None, None, None) for part in (k, v))
        q = einops.rearrange(q, "b (v f) t n k -> (b v) (f t) n k", v=views)
        k, v = (einops.rearrange(part, "b (v s) n k -> (b v) s n k", v=views) for part in (k, v))
        out = attention(q, k, v, implementation=self.implementation)
        out = einops.rearrange(out, "(b v) (f t) n k -> b (v f) t (n k)", v=views, t=x.shape[2])
        return self.cross_attention.out(out)
