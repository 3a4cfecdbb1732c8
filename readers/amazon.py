"""Amazon product reviews: JSON lines, ratings CSV and product metadata of the 2014, 2018 and 2023 releases, plain or gzip.

    2014, 2018  {"reviewerID": "A2..", "asin": "B0..", "overall": 5.0, "unixReviewTime": 1393545600, "reviewText": "..", ..}
    2023        {"user_id": "AE..", "parent_asin": "B0..", "rating": 5.0, "timestamp": 1588687728923, "text": "..", ..}

Reviews are parsed a block at a time by pyarrow; a block that it refuses is parsed line by line, so that one bad line costs
one row. Both ways end in the same columns (`RAW`) and share everything after that.
"""

import ast
import html
import json
import math
import re
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from readers import ITEM, METADATA, RATING, ROWS, TIMESTAMP, USER, InputError
from readers.delimited import Layout, guess_delimiter, peek, read_rows, split_lines
from readers.lines import read_blocks

RAW = pa.schema(
    {
        **dict.fromkeys(("reviewerID", "user_id", "parent_asin", "asin"), pa.string()),
        **dict.fromkeys(("overall", "rating"), pa.float64()),
        **dict.fromkeys(("unixReviewTime", "timestamp"), pa.int64()),  # seconds; milliseconds
        **dict.fromkeys(("reviewText", "text"), pa.string()),
    }
)
ASIN = re.compile(r"[A-Z0-9]{10}")
SMALL_BLOCK = 64 << 10  # bytes; a refused block is halved down to this size, then parsed line by line
BLANKS = " \t\r\n"  # around an id they are none of it
METADATA_LINE = 1 << 20  # characters; a longer line is not given to the literal parser
TITLE = 200  # characters kept
FIELD_ITEM = re.compile(r"""['"](?:parent_)?asin['"]: *['"](\w+)""")
PRICE = re.compile(r"(?:from )?\$?([\d,]+(?:\.\d+)?)(?: *- *\$?[\d,.]+)?")


def read_reviews(path: Path) -> Iterator[pa.Table]:
    """Tables of `readers.ROWS`. One thread parses a block while this one gunzips the next."""
    with ThreadPoolExecutor(1) as pool:
        pending = None
        for line, block in read_blocks(path):
            parsed = pool.submit(_parse_block, line, block)
            if pending:
                yield pending.result()
            pending = parsed
        if pending:
            yield pending.result()


def _parse_block(line: int, block: bytes) -> pa.Table:
    """Rows of a block; one that is refused is halved, so that a bad line slows down only its neighbours."""
    raw = _parse_fast(block)
    if raw is not None:
        return _to_rows(raw, np.arange(line, line + raw.num_rows), None)
    middle = block.rfind(b"\n", 0, len(block) // 2) + 1
    if len(block) < SMALL_BLOCK or not middle:
        return _to_rows(*_parse_slowly(line, block))
    later = line + block.count(b"\n", 0, middle)
    return pa.concat_tables([_parse_block(line, block[:middle]), _parse_block(later, block[middle:])])


def _parse_fast(block: bytes) -> pa.Table | None:
    """RAW columns by pyarrow; None unless each line is certain to be one object that json.loads reads as well.

    Where every line starts with { and ends with }, no object can span lines, so equal counts mean one object a line.
    """
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    if data[0] != ord("{") or (data[ends[:-1] + 1] != ord("{")).any() or (data[ends - 1] != ord("}")).any():
        return None
    try:
        pa.array([block], pa.large_binary()).cast(pa.large_string())  # refuses what is not UTF-8
        raw = pyarrow.json.read_json(
            pa.BufferReader(block),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(block)),
            pyarrow.json.ParseOptions(explicit_schema=RAW, unexpected_field_behavior="ignore"),
        ).combine_chunks()
        raw.validate(full=True)
    except pa.ArrowInvalid:
        return None
    finite = all(pc.all(pc.is_finite(raw[name])).as_py() is not False for name in ("overall", "rating"))
    return raw if raw.num_rows == len(ends) and finite else None


def _parse_slowly(line: int, block: bytes) -> tuple[pa.Table, np.ndarray, list[str | None]]:
    """RAW columns by json.loads, line by line; blank lines are no rows, bad lines are nulls and a problem."""
    records, lines, problems = [], [], []
    for number, text in enumerate(block.split(b"\n"), line):
        if not text.strip():
            continue
        record, problem = _parse_line(text)
        records.append(record)
        problems.append(problem)
        lines.append(number)
    columns = {field.name: pa.array([CELL[field.type](r.get(field.name)) for r in records], field.type) for field in RAW}
    return pa.table(columns, schema=RAW), np.array(lines, np.int64), problems


def _parse_line(text: bytes) -> tuple[dict, str | None]:
    try:
        record = json.loads(text.decode())
    except UnicodeDecodeError:
        return {}, "not UTF-8"
    except (ValueError, RecursionError):
        return {}, "not JSON"
    return (record, None) if isinstance(record, dict) else ({}, "not an object")


def _text(value: object) -> str | None:
    """A string that UTF-8 can hold (lone surrogates become ?); numbers as written."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None


def _float(value: object) -> float | None:
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and math.isfinite(number) else None


def _int64(value: object) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool):
        value = _float(value)
    return int(value) if value is not None and -(2**63) <= value < 2**63 else None


CELL = {pa.string(): _text, pa.float64(): _float, pa.int64(): _int64}


def _to_rows(raw: pa.Table, lines: np.ndarray, problems: list[str | None] | None) -> pa.Table:
    """`readers.ROWS` from the fields of either era; the text is measured and dropped."""
    milliseconds = raw["timestamp"].combine_chunks()
    later = pc.if_else(milliseconds.is_valid(), pa.array(milliseconds.fill_null(0).to_numpy() // 1000), None)
    length, words = _measure(pc.coalesce(raw["reviewText"], raw["text"]).combine_chunks())
    columns = {
        USER: _nonempty(pc.coalesce(raw["reviewerID"], raw["user_id"])),
        ITEM: _nonempty(pc.coalesce(raw["parent_asin"], raw["asin"])),
        RATING: pc.coalesce(raw["overall"], raw["rating"]),
        TIMESTAMP: pc.coalesce(raw["unixReviewTime"], later),
        "review_length": length,
        "word_count": words,
        "line": pa.array(lines),
        "problem": pa.array(problems, pa.string()) if problems else pa.nulls(len(lines), pa.string()),
    }
    return pa.table(columns, schema=ROWS)


def _nonempty(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    ids = pc.utf8_trim(ids, BLANKS)
    return pc.if_else(pc.equal(ids, ""), None, ids)


def _measure(text: pa.StringArray) -> tuple[pa.Array, pa.Array]:
    """Characters, and runs of characters above U+0020: both counted in the UTF-8 bytes of all rows at once."""
    offsets = np.frombuffer(text.buffers()[1], np.int32, len(text) + 1, text.offset * 4)
    data = text.buffers()[2]
    solid = np.frombuffer(data, np.uint8, offsets[-1]) > 32 if data and offsets[-1] else np.zeros(0, bool)
    starts = solid.copy()
    starts[1:] &= ~solid[:-1]
    begins = offsets[:-1][np.diff(offsets) > 0]  # a row's first word does not continue the row before
    starts[begins] = solid[begins]
    counts = np.diff(np.searchsorted(np.flatnonzero(starts), offsets)).astype(np.int32)
    return pc.utf8_length(text), pc.if_else(text.is_valid(), pa.array(counts), None)


def read_ratings(path: Path) -> Iterator[pa.Table]:
    """Tables of `readers.ROWS` from a ratings-only CSV.

    2014: no header, user,item,rating,time. 2018: no header, item,user,rating,time. 2023: header
    user_id,parent_asin,rating,timestamp (milliseconds) and perhaps more columns.
    """
    sample, blocks = peek(path)
    rows = split_lines(sample, guess_delimiter(sample[0]))
    yield from read_rows(blocks, Layout(",", len(rows[0]), *_era(path, rows)))


def _era(path: Path, rows: list[list[str]]) -> tuple[dict[str, int], bool]:
    """Positions of the columns, and whether there is a header."""
    first = [name.strip() for name in rows[0]]
    if {"user_id", "parent_asin", "rating", "timestamp"} <= set(first):
        return {name: first.index(field) for name, field in zip((USER, ITEM, RATING, TIMESTAMP), _HEADER_2023)}, True
    fitting = [row for row in rows if len(row) == 4]
    shares = [np.mean([bool(ASIN.fullmatch(row[i])) for row in fitting]) if fitting else 0 for i in (0, 1)]
    if len(first) != 4 or max(shares) < 0.9 or min(shares) > 0.5:
        raise InputError(
            f"{path}: cannot tell which column is the user and which the item (line 1: {','.join(first)[:80]}); say it "
            "with --dataset csv and --columns user=0,item=1,rating=2,timestamp=3 (positions from 0, or header names)"
        )
    user, item = (1, 0) if shares[0] > shares[1] else (0, 1)
    return {USER: user, ITEM: item, RATING: 2, TIMESTAMP: 3}, False


_HEADER_2023 = ("user_id", "parent_asin", "rating", "timestamp")


def read_metadata(path: Path, items: Container[str] | None = None) -> tuple[pa.Table, list[tuple[int, str]]]:
    """A table of `readers.METADATA`, one row per item (the first line of an item counts), and (line, reason) of rejected lines.

    2014 lines are Python literals, 2018 and 2023 lines JSON. With `items`, lines of other items are skipped unparsed where
    the id can be seen: literals are slow to parse, and files hold many times the items that are kept.
    """
    found, rejected = {}, []
    for line, block in read_blocks(path):
        for number, text in enumerate(block.decode(errors="replace").split("\n"), line):
            seen = FIELD_ITEM.search(text) if items is not None else None
            if not text.strip() or (seen and seen[1] not in items):
                continue
            record, problem = _parse_product(text)
            row = _product(record)
            if problem or not row[ITEM]:
                rejected.append((number, problem or "no asin"))
            elif items is None or row[ITEM] in items:
                found.setdefault(row[ITEM], row)
    return pa.Table.from_pylist(list(found.values()), schema=METADATA), rejected


def _parse_product(text: str) -> tuple[dict, str | None]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        if len(text) > METADATA_LINE:
            return {}, "line too long"
        try:
            record = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return {}, "neither JSON nor a Python literal"
    return (record, None) if isinstance(record, dict) else ({}, "not an object")


def _product(record: dict) -> dict:
    """One row of METADATA. The category is the second level of the path, else the main category."""
    path = record.get("categories") or record.get("category") or []
    path = path[0] if isinstance(path, list) and path and isinstance(path[0], list) else path
    levels = [level for level in map(_clean, path if isinstance(path, list) else [path]) if level]
    main = _clean(record.get("main_category")) or _clean(record.get("main_cat")) or (levels[0] if levels else None)
    title = _clean(record.get("title"))
    return {
        ITEM: _clean(record.get("parent_asin")) or _clean(record.get("asin")),
        "title": title[:TITLE] if title else None,
        "brand": (_clean(record.get("brand")) or "").removeprefix("by ") or _clean(record.get("store")),
        "category": levels[1] if len(levels) > 1 and levels[1] != levels[0] else main,
        "price": _price(record.get("price")),
    }


def _clean(value: object) -> str | None:
    """Text without HTML entities, tags (2018 files hold pieces of pages), or runs of blanks; null where nothing is left."""
    text = re.sub(r"<[^>]*>", " ", html.unescape(_text(value) or ""))
    return " ".join(text.split()) or None


def _price(value: object) -> float | None:
    """Dollars: a number, "$12.99", or the lower end of "$12.99 - $15.00"; null for anything else, and from a billion on."""
    text = PRICE.fullmatch(str(value).strip())
    dollars = _float(text[1].replace(",", "")) if text else None
    return dollars if dollars is not None and dollars < 1e9 else None
