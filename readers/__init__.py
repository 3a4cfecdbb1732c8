"""What every reader hands to preprocessing: one row per input line, in file order, nothing filtered.

A reader knows its format (header, column order, time unit) and nothing else. It yields pyarrow tables of `ROWS`;
what a line lacks, or what cannot be parsed, is null. A line that has no row shape at all (not JSON, wrong number of
fields) is a row of nulls whose `problem` says why. `readers.formats` separates usable lines from the others.
"""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

USER, ITEM, RATING, TIMESTAMP = "user", "item", "rating", "timestamp"

ROWS = pa.schema(
    {
        USER: pa.string(),
        ITEM: pa.string(),
        RATING: pa.float64(),
        TIMESTAMP: pa.int64(),  # seconds since 1970, UTC
        "review_length": pa.int32(),  # characters of the review text; null where the format has no text
        "word_count": pa.int32(),  # runs of non-blank characters in it
        "line": pa.int64(),  # 1-based line in the file
        "problem": pa.string(),  # null for a line of the right shape
    }
)

METADATA = pa.schema({ITEM: pa.string(), "title": pa.string(), "brand": pa.string(), "category": pa.string(), "price": pa.float64()})


class Attributes(NamedTuple):
    """What is known of users and items beside the ratings: tables indexed by raw id, one row per id.

    A column's type says what it is: text is one category, a list of texts several (genres), a number is numeric; None or NaN
    is missing. `title` is for display. A name that begins with `site_` is a site-wide figure that contains the ratings themselves.
    """

    users: pd.DataFrame = pd.DataFrame()
    items: pd.DataFrame = pd.DataFrame()
    rejected: list[tuple[Path, int, str]] = []  # noqa: RUF012 - file, line, reason


class InputError(Exception):
    """Something the user gave is wrong. The message is one line: what, where (file, line, flag), what to do."""


def collect(read: Callable[[Path], Iterator[pa.Table]], sources: list[tuple[Path, int]]) -> pd.DataFrame:
    """All lines of all files as one frame: ROWS, with ids as categories, plus `file` (position in sources) and `given`
    (the number that stands beside the path)."""
    tables, coded = [], (USER, ITEM, "problem")
    for file, (path, given) in enumerate(sources):
        for table in read(path):
            for name in coded:  # a block at a time, because the texts of a whole log are many times as large as their codes
                table = table.set_column(table.column_names.index(name), name, table[name].dictionary_encode())
            for name, value, kind in (("file", file, np.int16), ("given", given, np.int8)):
                table = table.append_column(name, pa.array(np.full(len(table), value, kind)))
            tables.append(table)
    if not tables:
        raise InputError(f"{sources[0][0]}: the file is empty")
    table, rows = pa.concat_tables(tables).unify_dictionaries(), {}
    tables.clear()
    for name in table.column_names:  # one by one, and given up one by one
        column, table = table[name].combine_chunks(), table.drop_columns(name)
        rows[name] = column.to_numpy(zero_copy_only=False) if name not in coded else pd.Categorical.from_codes(
            column.indices.fill_null(-1).to_numpy(zero_copy_only=False), column.dictionary.to_pandas())  # fmt: skip
        if name in ("review_length", "word_count"):
            rows[name] = rows[name].astype(np.float32)
    return pd.DataFrame(rows, copy=False)


def find_file(path: Path, names: Collection[str], what: str) -> Path:
    """The first of these names that a folder holds; a file is itself."""
    found = first_file(path, names) if path.is_dir() else path
    if not found:
        raise InputError(f"{path}: no {what} ratings in this folder ({', '.join(names)}); give the file itself or another folder")
    return found


def first_file(folder: Path, names: Collection[str]) -> Path | None:
    """The first of these names that the folder holds."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def to_table(rows: dict[str, tuple], kind: str, columns: dict[str, str]) -> pd.DataFrame:
    """One row per id; `columns` are names and dtypes, given even where all values are missing."""
    values = zip(*rows.values()) if rows else [()] * len(columns)
    index = pd.Index(list(rows), dtype="str", name=kind)
    return pd.DataFrame({name: pd.Series(list(v), index, dtype) for (name, dtype), v in zip(columns.items(), values)}, index)
