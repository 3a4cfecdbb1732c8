"""What every reader hands to preprocessing: one row per input line, in file order, nothing filtered.

A reader knows its format (header, column order, time unit) and nothing else. It yields pyarrow tables of `ROWS`, a block
of lines at a time; what a line lacks, or what cannot be parsed, is null. A line that has no row shape at all (not JSON,
wrong number of fields) is a row of nulls whose `problem` says why. `readers.formats` separates usable lines from the others,
and keeps of them what `Columns` and `Codes` hold.
"""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute

USER, ITEM, RATING, TIMESTAMP = "user", "item", "rating", "timestamp"
OWN_TEXT = ("review_length", "word_count")  # of a row itself: they exist only after the purchase

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


class Columns:
    """Numbers of lines, column by column, a block of lines at a time. They grow in place: blocks that are joined in the end would take twice the memory."""

    def __init__(self, kinds: dict[str, type]) -> None:
        self.kinds, self.columns, self.lines = kinds, {name: bytearray() for name in kinds}, 0

    def pad(self, name: str) -> None:
        """NaN for all lines so far that had nothing there: a log may have no times, no texts, or them in its last file only."""
        self.columns[name].extend(np.full(self.lines - len(self.columns[name]) // self.kinds[name]().itemsize, np.nan, self.kinds[name]))

    def add(self, lines: int, values: dict[str, np.ndarray]) -> None:
        for name, of_lines in values.items():
            self.pad(name)
            self.columns[name].extend(of_lines.astype(self.kinds[name]))
        self.lines += lines

    def result(self, optional: Collection[str]) -> dict[str, np.ndarray]:
        """All columns, of the optional ones those that have anything."""
        names = [name for name in self.kinds if self.columns[name] or name not in optional]
        for name in names:
            self.pad(name)
        return {name: np.frombuffer(self.columns.pop(name), self.kinds[name]) for name in names}


class Codes:
    """Codes of texts, a block of lines at a time: the texts of a whole log are many times as large."""

    least = 1 << 18  # so many distinct texts of blocks must wait before they are looked up among the known ones

    def __init__(self) -> None:
        self.words, self.waiting, self.codes = pa.array([], pa.string()), [], bytearray()  # distinct texts; blocks with codes of their own; codes so far

    def add(self, texts: pa.ChunkedArray) -> None:
        self.waiting.append(texts.combine_chunks().dictionary_encode())
        if sum(len(block.dictionary) for block in self.waiting) > max(len(self.words), self.least):  # so that no text is looked up often
            self.translate()

    def translate(self) -> None:
        known = pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), self.words)
        known, *blocks = pa.chunked_array([known, *self.waiting]).unify_dictionaries().chunks  # known ones first, so that their codes stay
        self.words, self.waiting = known.dictionary, []
        for block in blocks:
            self.codes.extend(block.indices.to_numpy())

    def result(self) -> tuple[np.ndarray, pd.Index]:
        """Codes int32 [lines] and the texts by code, sorted, so that nothing depends on the order of lines."""
        self.translate()
        order = pa.compute.array_sort_indices(self.words)
        code = np.empty(len(order), np.int32)
        code[order] = np.arange(len(order))
        return code[np.frombuffer(self.codes, np.int32)], pd.Index(self.words.take(order).to_pandas())


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
