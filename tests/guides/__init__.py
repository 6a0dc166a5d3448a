"""Execution of the guides: every command block of README.md and docs/*.md, page by page, on stand-ins of downloads."""
