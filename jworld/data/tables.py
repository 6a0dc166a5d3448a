"""Reader of parquet tables, one row group at a time; pages are compared with their checksums where they have any."""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyarrow import compute, parquet

from jworld.utils import limits
from jworld.utils.errors import UserError, one_line
from jworld.utils.files import refuse_devices


@functools.lru_cache(maxsize=16)
def _open(path: str) -> Any:
    try:
        refuse_devices(pathlib.Path(path))
        table = parquet.ParquetFile(path, page_checksum_verification=True)
    except (OSError, ValueError, MemoryError) as error:
        raise UserError(
            f"{path} is not a readable parquet file ({one_line(error)}): correct the path, or download it again"
        ) from error
    for number in range(table.num_row_groups):
        group = table.metadata.row_group(number)
        if group.total_byte_size > limits.PARQUET_GROUP_BYTES or group.num_rows > limits.PARQUET_GROUP_ROWS:
            raise UserError(
                f"{path}: row group {number} has {group.num_rows:,} rows of {group.total_byte_size:,} bytes, expected "
                f"at most {limits.PARQUET_GROUP_ROWS:,} of {limits.PARQUET_GROUP_BYTES:,}: write it with smaller groups"
            )
    return table


def columns(path: str | pathlib.Path) -> list[str]:
    """Return the names of a table's columns."""
    return list(_open(str(path)).schema_arrow.names)


def types(path: str | pathlib.Path) -> dict[str, pa.DataType]:
    """Return the types of a table's columns by their names."""
    schema: pa.Schema = _open(str(path)).schema_arrow
    return dict(zip(schema.names, schema.types, strict=True))


def _read_group(path: str | pathlib.Path, group: int, names: list[str]) -> pa.Table:
    try:
        return _open(str(path)).read_row_group(group, columns=names)
    except (OSError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"{path}: row group {group} is damaged ({reason}): download the file again") from error


def rows(path: str | pathlib.Path, names: list[str]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield (group, row in the group, {column: value}) of every row, for these columns."""
    table = _open(str(path))
    for group in range(table.num_row_groups):
        for number, row in enumerate(_read_group(path, group, names).to_pylist()):
            yield group, number, row


@functools.lru_cache(maxsize=4)
def _column(path: str, group: int, column: str) -> Any:
    return _read_group(path, group, [column]).column(column)


def cell(path: str, group: int, column: str, row: int) -> Any:
    """Return one value of a table."""
    return _column(path, group, column)[row].as_py()


def files(path: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    """Return `path` itself if it is a file, else the files below it with this suffix; a `UserError` if none exist."""
    found = [path] if path.is_file() else sorted(path.rglob(f"*{suffix}"))
    if not found:
        raise UserError(f"{path} holds no {suffix} file, expected at least one: correct the path or the format")
    return found


def select(path: str | pathlib.Path, names: list[str], column: str, value: int) -> pa.Table:
    """Return these columns of the rows whose `column` has this value; groups of other rows are not read."""
    table = _open(str(path))
    if lacking := [name for name in (*names, column) if name not in table.schema_arrow.names]:
        raise UserError(f"{path} has no column {lacking[0]!r}, expected {', '.join(names)}: download the file again")
    parts = [table.schema_arrow.empty_table().select(names)]
    for group in range(table.num_row_groups):
        if not _may_hold(table.metadata.row_group(group), column, value):
            continue
        part = _read_group(path, group, list(dict.fromkeys((*names, column))))
        parts.append(part.filter(compute.equal(part.column(column), value)).select(names))
    return pa.concat_tables(parts)


def _may_hold(group: Any, column: str, value: int) -> bool:
    """Return whether a row group can hold this value by the range of its column, if the file has it."""
    for place in range(group.num_columns):
        facts = group.column(place)
        if facts.path_in_schema == column:
            known = facts.statistics
            return known is None or not known.has_min_max or bool(known.min <= value <= known.max)
    return True
