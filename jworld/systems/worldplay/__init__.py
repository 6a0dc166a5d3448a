"""WorldPlay (HY-World 1.5): HunyuanVideo-1.5 with actions, cameras, chunk-causal attention and retrieved memory."""
