"""The name under which remat policies find the output of attention."""

#: The attention output and, where a backend has them, its row statistics.
OUTPUT_NAME = "attention"
