"""The data sets by name: how a file of ratings is read, what ratings there are, and what else is known of users and items.

A further data set is one entry in FORMATS, one function that yields tables of `readers.ROWS` from a file, and, where it has
attributes, one that returns `readers.Attributes`. Nothing downstream knows which data set it is.
"""

import math
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

from readers import ITEM, RATING, TIMESTAMP, USER, Attributes, InputError, amazon, anime, collect, delimited, demo, movielens
from readers.download import download

EARLIEST_S, DAY_S = 631_152_000, 86_400  # 1990-01-01: no web shop is older


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
    "csv": Format(delimited.read_delimited, -math.inf, math.inf),
}


def obtain(args: Namespace) -> str:
    """Download or generate what --download or the demo needs, put it where --input and --metadata would, and name the data set."""
    if args.download:
        args.input = download(args.download, args.output_dir)
        args.input, args.metadata = args.input[:1], args.metadata or next(iter(args.input[1:]), None)
    elif args.dataset == "demo":
        args.output_dir.mkdir(parents=True, exist_ok=True)
        reviews, args.metadata = demo.write_demo(args.output_dir, args.seed)
        args.input, args.dataset = [reviews], "amazon-reviews"
        return "demo"
    return re.sub(r"(_5)?(\.(json|jsonl|csv|txt|dat|data|parquet|gz))+$", "", args.input[0].resolve().name)


def read_ratings(args: Namespace) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Usable lines of all files as `readers.collect` gives them, with `file` as its path, and the others: file, line, reason.
    `given` is -1 for --input, 1 for --validation-input, 2 for --test-input."""
    known = FORMATS[args.dataset]
    sources = [(known.find(path), -1) for path in args.input]
    sources += [(path, split) for path, split in ((args.validation_input, 1), (args.test_input, 2)) if path]
    rows = collect(partial(known.read, columns=delimited.parse_columns(args.columns)) if args.columns else known.read, sources)
    rows["file"] = pd.Categorical.from_codes(rows["file"], [str(path) for path, _ in sources])
    reason = reject_unusable(rows, known.lowest, known.highest)
    usable = reason.isna().to_numpy()
    rejected = rows.loc[~usable, ["file", "line"]].assign(reason=reason[~usable].astype(object))
    if not usable.any():
        why = f"line {rejected['line'].iloc[0]}: {rejected['reason'].iloc[0]}" if len(rows) else "the file is empty"
        raise InputError(f"{sources[0][0]}: no usable line ({why}); is it a file for --dataset {args.dataset}?")
    return rows.drop(columns="problem")[usable], rejected


def reject_unusable(rows: pd.DataFrame, low: float, high: float) -> pd.Series:
    """The first reason why each row cannot be used, or null."""
    reasons, number = [*rows["problem"].cat.categories], rows["problem"].cat.codes.to_numpy(np.int16, copy=True)

    def mark(bad: pd.Series, text: str) -> None:
        number[bad.to_numpy() & (number < 0)] = len(reasons)
        reasons.append(text)

    mark(rows[USER].cat.codes < 0, "missing user")
    mark(rows[ITEM].cat.codes < 0, "missing item")
    mark(~rows[RATING].between(-np.inf, np.inf, "neither"), "missing or unparsable rating")
    mark(~rows[RATING].between(low, high), f"rating outside {low:g}..{high:g}")
    if rows[TIMESTAMP].notna().any():  # a log without times is fine, a line without its time is not
        mark(rows[TIMESTAMP].isna(), "missing or unparsable timestamp")
        mark(~rows[TIMESTAMP].between(EARLIEST_S, time.time() + DAY_S), "impossible timestamp")
    return pd.Series(pd.Categorical.from_codes(number, reasons), index=rows.index)


def read_attributes(args: Namespace, users: set[str], items: set[str]) -> Attributes:
    """What is known of the kept users and items; empty tables where there is nothing."""
    known, metadata = FORMATS[args.dataset], args.metadata
    if metadata and not known.attributes:
        raise InputError(f"--metadata {metadata}: --dataset {args.dataset} has no metadata; leave the flag out")
    if not metadata and not known.beside:
        return Attributes()
    found = known.attributes(metadata or known.find(args.input[0]), users, items)
    if metadata and found.users.empty and found.items.empty:
        raise InputError(f"--metadata {metadata}: it says nothing about the users and items that are kept; check the path")
    return found
