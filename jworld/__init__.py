"""jworld: interactive video world models in JAX and Flax NNX."""
