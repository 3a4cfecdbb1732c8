"""The data sets by name: how a file of ratings is read, what ratings there are, and what else is known of users and items.

A further data set is one entry in FORMATS, one function that yields tables of `readers.ROWS` from a file, and, where it has
attributes, one that returns `readers.Attributes`. Nothing downstream knows which data set it is.
"""

import re
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from readers import ITEM, OWN_TEXT, RATING, TIMESTAMP, USER, Attributes, Codes, Columns, InputError, amazon, anime, delimited, demo, movielens
from readers.download import download

EARLIEST_S, DAY_S = 631_152_000, 86_400  # 1990-01-01: no web shop is older
KINDS = {RATING: np.float64, TIMESTAMP: np.float64, **dict.fromkeys(OWN_TEXT, np.float32), "line": np.uint32}  # of columns of `readers.ROWS`
KINDS |= {"file": np.int16, "given": np.int8}  # number of the file, and the split that it is given for


class Format(NamedTuple):
    read: Callable[[Path], Iterator[pa.Table]]  # a file -> tables of ROWS
    lowest: float  # ratings outside lowest..highest are rejected
    highest: float
    attributes: Callable[[Path, set[str], set[str]], Attributes] | None = None  # (path, kept users, kept items)
    find: Callable[[Path], Path] = lambda path: path  # the file of ratings, where --input may be the folder that holds it
    beside: bool = False  # attributes lie in the folder of the ratings, and are read without --metadata


def amazon_products(path: Path, users: set[str], items: set[str]) -> Attributes:
    table, rejected = amazon.read_metadata(path, items)
    return Attributes(items=table.to_pandas().set_index(ITEM), rejected=[(path, *line) for line in rejected])


FORMATS = {
    "amazon-reviews": Format(amazon.read_reviews, 1, 5, amazon_products),
    "amazon-ratings": Format(amazon.read_ratings, 1, 5, amazon_products),
    "movielens": Format(movielens.read_ratings, 0.5, 5, movielens.read_attributes, movielens.find_ratings, beside=True),
    "anime": Format(anime.read_ratings, 1, 10, anime.read_attributes, anime.find_ratings, beside=True),
    "csv": Format(delimited.read_delimited, -1e9, 1e9),  # sums of what is larger would drown all others
}


def obtain(args: Namespace) -> str:
    """Choose the format where --dataset does not, download or generate what --download or the demo needs, put it where --input and --metadata would, and
    name the data set."""
    args.dataset = args.dataset or ("csv" if args.columns else "amazon-reviews" if args.input or args.download else "demo")
    for wrong, message in (
        (args.download and args.input, "--download and --input exclude each other"),
        ((args.dataset == "demo") == bool(args.input or args.download), "--dataset demo writes its own --input; every other --dataset needs one"),
        ((args.dataset == "csv") != bool(args.columns), "--dataset csv and --columns user=..,item=..,rating=..,timestamp=.. go together"),
    ):
        if wrong:
            raise InputError(f"{message} (--help lists the flags)")
    if args.download:
        args.input = download(args.download, args.output_dir)
        args.input, args.metadata = args.input[:1], args.metadata or next(iter(args.input[1:]), None)
    elif args.dataset == "demo":
        args.output_dir.mkdir(parents=True, exist_ok=True)
        reviews, args.metadata = demo.write_demo(args.output_dir, args.seed)
        args.input, args.dataset = [reviews], "amazon-reviews"
        return "demo"
    return re.sub(r"(_5)?(\.(json|jsonl|csv|tsv|txt|dat|data|parquet|gz))+$", "", args.input[0].resolve().name)


def read_ratings(args: Namespace) -> tuple[dict[str, np.ndarray], dict[str, pd.Index], pd.DataFrame]:
    """Columns of the usable lines of all files, the raw ids by the codes of `user` and `item`, and the other lines: file, line, reason. Lengths of texts
    are float32 and there where any line has a text; `given` is -1 for --input, 1 for --validation-input, 2 for --test-input."""
    known, usable, codes, columns, rejected = FORMATS[args.dataset], 0, {USER: Codes(), ITEM: Codes()}, Columns(KINDS), []
    read = partial(known.read, columns=delimited.parse_columns(args.columns)) if args.columns else known.read
    sources = [(known.find(path), -1) for path in args.input]
    sources += [(path, split) for path, split in ((args.validation_input, 1), (args.test_input, 2)) if path]
    for file, (path, given) in enumerate(sources):
        for table in read(path):
            reason = reject_unusable(table, known.lowest, known.highest)
            rejected.append(pd.DataFrame({"file": path, "line": table["line"].to_numpy()[reason.index], "reason": reason}))
            keep = ~np.isin(table[RATING].to_numpy(), args.drop_rating)
            keep[reason.index] = False
            usable += len(table) - len(reason)
            table = table if keep.all() else table.filter(pa.array(keep))
            for name in codes:
                codes[name].add(table[name])
            values = {name: table[name].to_numpy() for name in KINDS if name in table.column_names and table[name].null_count < len(table)}
            columns.add(len(table), values | {"file": np.full(len(table), file), "given": np.full(len(table), given)})
    rejected = pd.concat(rejected or [pd.DataFrame(columns=["file", "line", "reason"])], ignore_index=True)
    if not usable:
        why = f"line {rejected['line'].iloc[0]}: {rejected['reason'].iloc[0]}" if len(rejected) else "the file has no rows"
        raise InputError(f"{sources[0][0]}: no usable line ({why}); is it a file for --dataset {args.dataset}?")
    rows, ids = columns.result(OWN_TEXT), {}
    for name in [*codes]:
        rows[name], ids[name] = codes.pop(name).result()
    pa.default_memory_pool().release_unused()  # what the texts of a large log took
    if args.columns and TIMESTAMP in delimited.parse_columns(args.columns) and np.isnan(rows[TIMESTAMP]).all():
        raise InputError(f"{sources[0][0]}: no time of --columns can be read: give seconds, milliseconds or ISO dates (2014-10-11), or leave out timestamp=")
    paths = np.array([path for path, _ in sources], object)
    for reason, find in (("missing or unparsable timestamp", without_time), ("duplicate user-item pair, a later row stays", repeated)):
        if (bad := find(rows)).any():
            told = {"file": paths[rows["file"][bad]], "line": rows["line"][bad], "reason": reason}
            rejected = pd.concat([rejected, pd.DataFrame(told)], ignore_index=True)
            rows = {name: rows.pop(name)[~bad] for name in [*rows]}  # one by one, so that no second copy of all is held
    del rows["file"], rows["line"]
    return rows, ids, rejected


def reject_unusable(table: pa.Table, low: float, high: float) -> pd.Series:
    """The first reason why a line cannot be used, by number of the row; of those that can, nothing."""
    rating, when = table[RATING].to_numpy(), table[TIMESTAMP].to_numpy().astype(np.float64)
    reasons = {
        "": table["problem"].is_valid().to_numpy(),
        "missing user": table[USER].is_null().to_numpy(),
        "missing item": table[ITEM].is_null().to_numpy(),
        "missing or unparsable rating": ~np.isfinite(rating),
        f"rating outside {low:g}..{high:g}": (rating < low) | (rating > high),
        "impossible timestamp": (when < EARLIEST_S) | (when > time.time() + DAY_S),
    }
    number = np.select([*reasons.values()], np.arange(len(reasons)), -1)
    bad = np.flatnonzero(number >= 0)
    found = pd.Series(np.array([*reasons], object)[number[bad]], index=bad)
    return found.where(number[bad] > 0, pd.Series(table["problem"].take(bad).to_pylist(), bad, object))


def without_time(rows: dict[str, np.ndarray]) -> np.ndarray:
    """Mask of rows without a time, where others have one: a log without times is fine."""
    missing = np.isnan(rows[TIMESTAMP])
    return missing & ~missing.all()


def repeated(rows: dict[str, np.ndarray]) -> np.ndarray:
    """Mask of all but the last row of each user-item pair, by time; a row of the user's own test or validation file wins."""
    items = rows[ITEM].max(initial=0) + 1
    pairs = rows[USER].astype(np.int64) * items + rows[ITEM]
    pairs.sort()  # one number a row: sorted much sooner than rows by several keys
    twice, found = np.unique(pairs[1:][pairs[1:] == pairs[:-1]]), np.zeros(len(pairs), bool)
    if len(twice):
        pair = rows[USER].astype(np.int64) * items + rows[ITEM]
        at = np.flatnonzero(twice[np.searchsorted(twice, pair).clip(max=len(twice) - 1)] == pair)
        at = at[np.lexsort((rows[TIMESTAMP][at], rows["given"][at], pair[at]))]
        found[at[:-1]] = pair[at[1:]] == pair[at[:-1]]
    return found


def read_attributes(args: Namespace, ids: dict[str, pd.Index]) -> Attributes:
    """What is known of the kept users and items, whose raw ids are given; empty tables where there is nothing."""
    known, metadata = FORMATS[args.dataset], args.metadata
    if metadata and not known.attributes:
        raise InputError(f"--metadata {metadata}: --dataset {args.dataset} has no metadata; leave the flag out")
    if not metadata and not known.beside:
        return Attributes()
    found = known.attributes(metadata or known.find(args.input[0]), set(ids[USER][1:]), set(ids[ITEM][1:]))
    if metadata and found.users.empty and found.items.empty:
        raise InputError(f"--metadata {metadata}: it says nothing about the users and items that are kept; check the path")
    return found
