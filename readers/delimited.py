"""Delimited ratings: CSV, TSV or blank separated text, plain or gzip, or Parquet; `--columns` says which column is which.

    user,item,rating,timestamp          --columns user=user,item=item,rating=rating,timestamp=timestamp
    A1B2C3,B00004Z5M1,5.0,1365811200    --columns user=0,item=1,rating=2,timestamp=3      (no header: positions from 0)

Times may be seconds, milliseconds (above 1e11) or ISO dates, UTC unless they say otherwise. Blocks without quotes and with
the same number of fields on every line go through pyarrow; any other block goes through the csv module line by line.
"""

import csv
import io
import itertools
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from readers import ITEM, RATING, ROWS, TIMESTAMP, USER, InputError
from readers.lines import LONGEST_LINE, Block, read_blocks

MILLISECONDS_ABOVE = 1e11  # as seconds this is the year 5138, as milliseconds 1973
EXAMPLE = "--columns user=0,item=1,rating=2,timestamp=3"
NOT_UTF8 = re.compile("[\ud800-\udfff]")  # what stands for such bytes
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


class Layout(NamedTuple):
    """How a line of text divides into fields, and which field is the user, the item, the rating, the time."""

    delimiter: str
    fields: int
    positions: dict[str, int]
    header: bool


def parse_columns(text: str) -> dict[str, str]:
    """`user=..,item=..,rating=..[,timestamp=..]` as a dict; values are header names or positions from 0."""
    columns = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value or name not in (USER, ITEM, RATING, TIMESTAMP):
            raise InputError(f"--columns: cannot read '{part}'; write name=column with user, item, rating, timestamp: {EXAMPLE}")
        if name in columns:
            raise InputError(f"--columns: '{name}' is given twice")
        columns[name] = value
    if missing := [name for name in (USER, ITEM, RATING) if name not in columns]:
        raise InputError(f"--columns: {', '.join(missing)} is missing; write for instance {EXAMPLE}")
    return columns


def read_delimited(path: Path, columns: dict[str, str]) -> Iterator[pa.Table]:
    """Tables of `readers.ROWS` from a delimited or Parquet file, by the columns of `parse_columns`."""
    if _is_parquet(path):
        yield from _read_parquet(path, columns)
        return
    first, blocks = peek(path)
    header = not all(value.isdecimal() for value in columns.values())
    delimiter = guess_delimiter(first[0])
    names = split_lines(first[:1], delimiter)[0]
    positions = _resolve(path, columns, names, header)
    yield from read_rows(blocks, Layout(delimiter, len(names), positions, header))


def peek(path: Path, lines: int = 1000) -> tuple[list[str], Iterator[Block]]:
    """The first non-blank lines of a file, and its blocks from the beginning."""
    blocks = read_blocks(path)
    line, block = next(blocks, (1, b""))
    end = block.find(b"\n", lines * 200)
    first = [text for text in block[: end if end > 0 else None].decode(errors="replace").splitlines() if text.strip()]
    if not first:
        raise InputError(f"{path}: the file is empty")
    if max(map(len, first[:lines])) > csv.field_size_limit():
        raise InputError(f"{path}: one of the first lines has more than {csv.field_size_limit():,} characters: this is not a file of delimited ratings")
    return first[:lines], itertools.chain([(line, block)], blocks)


def guess_delimiter(line: str) -> str:
    """The most frequent of tab, comma, semicolon and bar; blanks where there is none of them."""
    best = max("\t,;|", key=line.count)
    return best if best in line else " "


def split_lines(lines: list[str], delimiter: str) -> list[list[str]]:
    """Fields of each line by the csv rules; runs of blanks are one delimiter."""
    if delimiter == " ":
        return [line.split() for line in lines]
    return list(csv.reader(lines, delimiter=delimiter))


def read_rows(blocks: Iterator[Block], layout: Layout) -> Iterator[pa.Table]:
    """Tables of `readers.ROWS` from blocks of delimited text."""
    header = layout.header
    for line, block in whole_records(blocks):
        if header:
            end = block.index(b"\n") + 1
            line, block, header = line + 1, block[end:], False
        fields = _split_fast(block, layout)
        if fields is None:
            yield to_rows(*_split_slowly(line, block, layout))
        else:
            yield to_rows(fields, np.arange(line, line + block.count(b"\n")))


def to_rows(fields: dict[str, pa.Array], lines: np.ndarray, problems: list[str | None] | None = None) -> pa.Table:
    """`ROWS` from string or typed columns by name; what cannot be parsed becomes null."""
    columns = {name: pa.nulls(len(lines), ROWS.field(name).type) for name in ROWS.names}
    columns |= {name: _ids(fields[name]) for name in (USER, ITEM)} | {RATING: _numbers(fields[RATING])}
    if TIMESTAMP in fields:
        columns[TIMESTAMP] = _seconds(fields[TIMESTAMP])
    columns["line"] = pa.array(lines, pa.int64())
    if problems:
        columns["problem"] = pa.array(problems, pa.string())
    return pa.table(columns, schema=ROWS)


def whole_records(blocks: Iterator[Block]) -> Iterator[Block]:
    """Join blocks until quotes pair up: a newline inside quotes does not end a record. Bounded, as a quote may be stray."""
    start, held = 1, b""
    for line, block in blocks:
        start, held = (start, held + block) if held else (line, block)
        if held.count(b'"') % 2 == 0 or len(held) > LONGEST_LINE:
            yield start, held
            held = b""
    if held:
        yield start, held


def _split_fast(block: bytes, layout: Layout) -> dict[str, pa.Array] | None:
    """The wanted fields of a block as string columns; None where pyarrow and the lines do not agree one to one."""
    if b'"' in block or not block:
        return None
    names = [str(position) for position in range(layout.fields)]
    wanted = {name: str(position) for name, position in layout.positions.items()}
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(block),
            pyarrow.csv.ReadOptions(use_threads=False, block_size=len(block), column_names=names),
            pyarrow.csv.ParseOptions(delimiter=layout.delimiter, quote_char=False),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), include_columns=sorted(set(wanted.values())), null_values=[]
            ),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != block.count(b"\n"):
        return None
    return {name: table[column].combine_chunks() for name, column in wanted.items()}


def _split_slowly(line: int, block: bytes, layout: Layout) -> tuple[dict[str, pa.Array], np.ndarray, list[str | None]]:
    """The same, record by record: quoted fields, blank lines, and lines that are not UTF-8 or have another number of fields (`problem`)."""
    rows, lines, problems = [], [], []
    for start, fields in _records(block.decode(errors="surrogateescape"), layout):
        if not fields:
            continue
        problem = None if len(fields) == layout.fields else f"{len(fields)} fields instead of {layout.fields}"
        values = [fields[position] for position in layout.positions.values()] if not problem else []
        problem = "not UTF-8" if any(NOT_UTF8.search(value) for value in values) else problem
        rows.append([None] * len(layout.positions) if problem else values)
        problems.append(problem)
        lines.append(line + start)
    columns = zip(*rows) if rows else [[] for _ in layout.positions]
    arrays = {name: pa.array(column, pa.string()) for name, column in zip(layout.positions, columns)}
    return arrays, np.array(lines, np.int64), problems


def _records(text: str, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """(number of lines before it, fields) of each record. Lines that a stray quote joins are records of their own: no id or number has two lines."""
    if layout.delimiter == " ":
        yield from enumerate(line.split() for line in text.split("\n"))
        return
    lines, end = io.StringIO(text, newline="").readlines(), 0
    reader = csv.reader(lines, delimiter=layout.delimiter)
    while end < len(lines):
        start, fields = end, []
        with suppress(csv.Error):  # a field of more than 128 KB: a quote that never closes
            fields = next(reader)
        end = reader.line_num
        if end - start == 1 or (len(fields) == layout.fields and not any("\n" in fields[position].strip() for position in layout.positions.values())):
            yield start, fields
        else:
            yield from ((number, _line(lines[number], layout.delimiter)) for number in range(start, end))


def _line(text: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([text], delimiter=delimiter))
    except csv.Error as error:
        return [str(error)]


def _ids(column: pa.Array) -> pa.Array:
    if pa.types.is_floating(column.type):  # whole numbers, of which pandas makes floats where one is missing
        column = pc.if_else(pc.is_finite(column), column, None)
        with suppress(pa.ArrowInvalid):
            column = column.cast(pa.int64())
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    return pc.if_else(pc.equal(text, ""), None, text)


def _numbers(column: pa.Array) -> pa.Array:
    """As float64; text that is no finite number becomes null."""
    if not pa.types.is_string(column.type):
        numbers = column.cast(pa.float64(), safe=False)
    else:
        try:
            numbers = column.cast(pa.float64())
        except pa.ArrowInvalid:
            text = pc.utf8_trim_whitespace(column)
            numbers = pc.if_else(pc.match_substring_regex(text, NUMBER), text, None).cast(pa.float64())
    return pc.if_else(pc.is_finite(numbers), numbers, None)


def _seconds(column: pa.Array) -> pa.Array:
    """Seconds since 1970 from seconds, milliseconds, ISO text, or a date or timestamp column."""
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
        return pa.array(column.to_numpy(zero_copy_only=False) // 1000, from_pandas=True).cast(pa.int64())
    values = _numbers(column).to_numpy(zero_copy_only=False).astype(np.float64)
    if pa.types.is_string(column.type):
        for row in np.flatnonzero(np.isnan(values)):
            values[row] = _iso_seconds(column[int(row)].as_py())
    values = np.floor(np.where(np.abs(values) > MILLISECONDS_ABOVE, values / 1000, values))
    known = np.abs(values) < 2**62  # false for NaN too
    return pa.array(np.where(known, values, 0).astype(np.int64), mask=~known)


def _iso_seconds(text: str | None) -> float:
    try:
        moment = datetime.fromisoformat((text or "").strip())
    except ValueError:
        return np.nan
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _is_parquet(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PAR1"
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None


def _read_parquet(path: Path, columns: dict[str, str]) -> Iterator[pa.Table]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        positions = _resolve(path, columns, names, header=not all(v.isdecimal() and v not in names for v in columns.values()))
        line = 1
        for batch in file.iter_batches(1 << 20, columns=[names[position] for position in positions.values()]):
            fields = {name: _plain(batch.column(names[position])) for name, position in positions.items()}
            yield to_rows(fields, np.arange(line, line + batch.num_rows))
            line += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None


def _plain(column: pa.Array) -> pa.Array:
    """Text of any kind as strings, which is how text files come."""
    column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    return column.cast(pa.string()) if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type) else column


def _resolve(path: Path, columns: dict[str, str], names: list[str], header: bool) -> dict[str, int]:
    """Column positions by name or number."""
    names = [name.strip() for name in names]
    positions = {}
    for name, value in columns.items():
        if header and value in names:
            positions[name] = names.index(value)
        elif not header and int(value) < len(names):
            positions[name] = int(value)
        else:
            found = f"its header is {', '.join(names)}"[:300] if header else f"it has {len(names)} columns, counted from 0"
            raise InputError(f"{path}: --columns {name}={value}: there is no such column; {found}")
    return positions
