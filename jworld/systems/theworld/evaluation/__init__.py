"""How well a model answers questions about images: the published benchmarks, and questions about recorded walks."""
