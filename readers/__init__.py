"""What every reader hands to preprocessing: one row per input line, in file order, nothing filtered.

A reader knows its format (header, column order, time unit) and nothing else. It yields pyarrow tables of `ROWS`;
what a line lacks, or what cannot be parsed, is null. A line that has no row shape at all (not JSON, wrong number of
fields) is a row of nulls whose `problem` says why. Preprocessing decides what to keep.
"""

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


class InputError(Exception):
    """Something the user gave is wrong. The message is one line: what, where (file, line, flag), what to do."""
