"""Which of many are shown or measured."""


def evenly(total: int, count: int) -> list[int]:
    """At most `count` of the positions 0 to `total` - 1, from the first to the last, evenly spread."""
    count = min(count, total)
    return [i * (total - 1) // max(count - 1, 1) for i in range(count)]
