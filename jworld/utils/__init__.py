"""Small shared modules, independent of video models: errors, config, files, compilation cache, hardware."""
