"""Selection of evenly spaced indices."""


def evenly(total: int, count: int) -> list[int]:
    """Return at most `count` of the positions 0 to `total` - 1, from the first to the last, evenly spaced."""
    count = min(count, total)
    return [i * (total - 1) // max(count - 1, 1) for i in range(count)]
