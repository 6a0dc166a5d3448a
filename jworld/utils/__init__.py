"""Small shared modules that know nothing of video models: errors, config, files, compilation cache, hardware."""
