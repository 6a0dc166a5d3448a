"""One attention function for every network, with structured masks instead of dense ones, and its backends."""

from jworld.models.layers.attention.backends import check_implementation
from jworld.models.layers.attention.base import Backend, Request
from jworld.models.layers.attention.dispatch import Implementation, attention
from jworld.models.layers.attention.masks import (
    Causal,
    ChunkCausal,
    Intervals,
    Mask,
    Prefix,
    SlidingWindow,
)
from jworld.models.layers.attention.names import OUTPUT_NAME

__all__ = [
    "OUTPUT_NAME",
    "Backend",
    "Causal",
    "ChunkCausal",
    "Implementation",
    "Intervals",
    "Mask",
    "Prefix",
    "Request",
    "SlidingWindow",
    "attention",
    "check_implementation",
]
