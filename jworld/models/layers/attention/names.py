"""The name under which remat policies find what attention computed."""

#: The attention output and, where a backend has them, its row statistics.
OUTPUT_NAME = "attention"
