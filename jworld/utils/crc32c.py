"""CRC-32C (Castagnoli), the checksum of TFRecord files, in NumPy.

A CRC is linear: the checksum of a long text follows from those of its parts. So the bytes are divided into rows that
are processed side by side, and the rows' checksums are joined.
"""

import functools

import numpy as np

#: The polynomial, with its bits reversed.
_POLYNOMIAL = 0x82F63B78
#: Bytes of a row, and rows that are processed side by side: what fits the cache of a core.
_ROW, _ROWS = 1 << 10, 1 << 10


def crc32c(content: bytes) -> int:
    """Return the checksum of some bytes."""
    rows = len(content) // _ROW
    state = 0xFFFFFFFF
    if rows:
        tables = _row_tables()
        data = np.frombuffer(content, "<u2", rows * _ROW // 2).reshape(rows, _ROW // 2)
        for first in range(0, rows, _ROWS):
            for part in _row_checksums(data[first : first + _ROWS]).tolist():
                state = tables[0][state & 0xFFFF] ^ tables[1][state >> 16] ^ part
    table = _byte_table()
    for byte in content[rows * _ROW :]:
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def masked(content: bytes) -> int:
    """Return the checksum as TFRecord files store it: rotated, plus a constant."""
    value = crc32c(content)
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _row_checksums(data: np.ndarray) -> np.ndarray:
    """Return the checksums of rows uint16 [R, _ROW / 2] that begin with 0, uint32 [R]; eight bytes are one step."""
    tables = _pair_tables()
    columns = np.ascontiguousarray(data.T)
    state = np.zeros(len(data), np.uint32)
    for first in range(0, len(columns), 4):
        low = columns[first] ^ (state & 0xFFFF).astype(np.uint16)
        high = columns[first + 1] ^ (state >> np.uint32(16)).astype(np.uint16)
        state = tables[3].take(low) ^ tables[2].take(high)
        state ^= tables[1].take(columns[first + 2]) ^ tables[0].take(columns[first + 3])
    return state


def _bytes_advanced(count: int) -> np.ndarray:
    """Return the checksums of each byte with `count` zeros after it, uint32 [256]."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    advanced = table
    for _ in range(count):
        advanced = table[advanced & 0xFF] ^ (advanced >> np.uint32(8))
    return advanced


@functools.cache
def _byte_table() -> list[int]:
    return [int(value) for value in _bytes_advanced(0)]


def _pairs(count: int) -> np.ndarray:
    """Return the checksums of each pair of bytes with `count` zeros after it, uint32 [65536]."""
    pairs = np.arange(1 << 16)
    advanced: np.ndarray = _bytes_advanced(count + 1)[pairs & 0xFF] ^ _bytes_advanced(count)[pairs >> 8]
    return advanced


@functools.cache
def _pair_tables() -> np.ndarray:
    """Return tables uint32 [4, 65536]: two bytes with 0, 2, 4 and 6 zeros after them."""
    return np.stack([_pairs(count) for count in (0, 2, 4, 6)])


@functools.cache
def _row_tables() -> tuple[list[int], list[int]]:
    """Return by the lower and by the upper half of a checksum what advances it by a row of zeros."""
    low, high = _pairs(_ROW - 2), _pairs(_ROW - 4)
    return low.tolist(), high.tolist()
