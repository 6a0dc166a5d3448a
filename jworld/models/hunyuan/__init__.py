"""HunyuanVideo-1.5 transformer with WorldPlay's action and camera parts."""
