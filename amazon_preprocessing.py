"""Stage 1: raw ratings in, encoded rows without leakage out.

    python amazon_preprocessing.py                                                     # the built-in demo log
    python amazon_preprocessing.py --dataset amazon-reviews --input reviews_Electronics_5.json.gz

Reads   the files named by --input and --metadata, one line per review, rating or product.
Writes  processed_data/: processed_reviews.parquet, users.parquet, items.parquet, vocabularies.pkl,
        rejected_rows.jsonl, exploration.png and, last, dataset.json, which names the others with size and SHA-256.

The rule of the file: every statistic is fitted on training rows, and what a row knows of its user and item
comes from strictly earlier training rows. Row number == encoded id in both tables; row 0 and code 0 are "unknown".
"""

import argparse
import hashlib
import io
import json
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from readers import ITEM, RATING, TIMESTAMP, USER, Attributes, InputError
from readers.formats import DAY_S, FORMATS, obtain, read_attributes, read_ratings

# ----------------------------------------------------------------------------------------------------------------------
UNKNOWN = "<unknown>"  # code 0 of every vocabulary, row 0 of both tables
SPLITS = ("train", "validation", "test")
CONTEXT = ("year", "month", "weekday", "period")  # what a moment says; period is the quarter of the year, so it recurs
STATE = ("review_count", "avg_rating", "avg_review_length", "avg_word_count", "avg_residual")  # of a user, of an item
PAIR_STATE = ("user_category_review_count", "user_category_avg_residual")  # of a user in the item's category
RECENCY = ("user_days_since_last", "item_days_since_last", "item_age_days")
NUMERIC = (*(f"user_{s}" for s in STATE), *(f"item_{s}" for s in STATE), *PAIR_STATE, *RECENCY)  # beside the data set's own attributes
OWN_TEXT = ("review_length", "word_count")  # of the row itself: exist only after the purchase, as-published only
CROSSES = {"cross_user_item": ("user_id", "item_id"), "cross_user_period": ("user_id", "period"), "cross_item_period": ("item_id", "period"),
           "cross_user_category": ("user_id", "category"), "cross_rating_buckets": ("user_rating_bucket", "item_rating_bucket")}  # fmt: skip
TEXTS = ("title", "category", "brand")  # of the items, in every data set
MULTI_HOT = 64  # of a field with several values (genres), the most frequent get a column each
EXACT_PAIRS = 2_000_000  # a cross with more distinct training pairs is hashed: a sorted table of 16 MB is still cheap
RATING_BUCKETS = 10  # quantile buckets of a damped average; bucket 0 is "no earlier rating"
DAMPING = 5.0  # an average counts as if this many ratings at the training mean came first
QUANTILES = 101  # knots of a numeric feature's distribution function
PARQUET_ROW_GROUP = 262_144
THIN = ("user_id", "item_id", RATING, TIMESTAMP, "label", "split")  # columns of all rows that are read where others do not fit into memory
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of this machine, for each of its workers
ROW_BYTES = 500  # of memory for a row while it is read, encoded and trained on
REJECTED_SHOWN = 1_000  # lines kept in rejected_rows.jsonl per reason; dataset.json has the true counts
DATA = REVIEWS, USERS, ITEMS, VOCABULARIES = "processed_reviews.parquet", "users.parquet", "items.parquet", "vocabularies.pkl"  # for the later stages
REJECTED, EXPLORATION, INDEX = "rejected_rows.jsonl", "exploration.png", "dataset.json"
INDEX_KEYS = ("rows", "users", "items", "fingerprint", "name", "split", "seed", "features", "positive_threshold", "rating_range", "last_training_timestamp")
# ----------------------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and whose --help prints every default."""

    def __init__(self, doc: str) -> None:
        super().__init__(description=doc, formatter_class=type("Help", (argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter), {}))

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        return super().add_argument(*names, **{"help": "default: %(default)s", **settings})

    def error(self, message: str) -> None:
        raise InputError(f"{message} (--help lists the flags)")


def run_script(main: Callable[[], None]) -> int:
    """Run a stage and turn what the user can mend into one line on standard error and exit code 2."""
    try:
        main()
        return 0
    except (InputError, OSError, MemoryError) as error:  # OSError: full disk, no permission
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted; finished files are kept, none is half-written", file=sys.stderr)
        return 130


def fraction(text: str) -> float:
    if not 0 <= float(text) < 1:
        raise ValueError(text)
    return float(text)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--dataset", choices=("demo", *FORMATS), help="format of --input; demo when there is none")
    add("--input", type=Path, nargs="+", metavar="PATH", help="files of ratings or reviews, gzip or plain; of movielens and anime also their folder")
    add("--metadata", type=Path, metavar="PATH", help="Amazon product metadata; movielens, anime: folder of the attributes, if not that of --input")
    add("--test-input", type=Path, metavar="PATH", help="test rows of your own; --split then governs the validation rows only")
    add("--validation-input", type=Path, metavar="PATH", help="validation rows of your own")
    add("--columns", metavar="user=..,item=..", help="with csv: header names or 0-based positions of user, item, rating, timestamp")
    add("--download", metavar="NAME", help="fetch an Amazon category first, such as Electronics-2014, and use it as --input")
    add("--min-core", type=int, default=5, metavar="K", help="keep users and items with at least K ratings")
    add("--core-passes", default="until-stable", metavar="N", help="until-stable, or the number of filtering passes")
    add("--drop-rating", type=float, nargs="+", default=[], metavar="R", help="ratings to drop before anything is counted")
    add("--positive-threshold", type=float, default=4.0, metavar="R", help="like = rating >= R")
    add("--cross", nargs="+", default=[], metavar="LEFT:RIGHT", help="further crosses of two fields, such as user_gender:user_age_band")
    add("--split", choices=("time", "random", "per-user", "stratified", "leave-one-out"), default="time")
    add("--test-fraction", type=fraction, default=0.1, metavar="F")
    add("--validation-fraction", type=fraction, default=0.1, metavar="F")
    add("--features", choices=("honest", "as-published"), default="honest", help="as-published rebuilds leaky features, to measure the leak")
    add("--output-dir", type=Path, default=Path("processed_data"), metavar="DIR")
    add("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    args.dataset = args.dataset or ("csv" if args.columns else "amazon-reviews" if args.input or args.download else "demo")
    for wrong, message in (
        (args.download and args.input, "--download and --input exclude each other"),
        ((args.dataset == "demo") == bool(args.input or args.download), "--dataset demo writes its own --input; every other --dataset needs one"),
        ((args.dataset == "csv") != bool(args.columns), "--dataset csv and --columns user=..,item=..,rating=..,timestamp=.. go together"),
        (args.test_fraction + args.validation_fraction >= 1, "--test-fraction and --validation-fraction leave no training rows"),
        (args.min_core < 0 or args.seed < 0, "--min-core and --seed take numbers >= 0"),
        (not np.isfinite(args.positive_threshold), "--positive-threshold takes a finite number"),
        (any(cross.count(":") != 1 for cross in args.cross), "--cross takes two fields with a colon between them, such as user_gender:category"),
        (args.core_passes != "until-stable" and not args.core_passes.isdigit(), "--core-passes takes until-stable or a number"),
    ):
        if wrong:
            parser.error(message)
    return args


# ------------------------------------------------------------------------------------------------------------ cleaning
def k_core(user: np.ndarray, item: np.ndarray, k: int, passes: int | None = None) -> np.ndarray:
    """Mask [rows] of the largest set in which every user and item has at least k rows (`passes` None), or after that many passes."""
    keep = np.ones(len(user), bool)
    while passes is None or passes > 0:
        users, items = np.bincount(user[keep], minlength=user.max(initial=0) + 1), np.bincount(item[keep], minlength=item.max(initial=0) + 1)
        kept = keep & (users[user] >= k) & (items[item] >= k)
        if (kept == keep).all():
            break
        keep, passes = kept, passes and passes - 1
    return keep


def clean(args: argparse.Namespace, rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, pd.Index], pd.DataFrame]:
    """Encoded rows after de-duplication and k-core, in the order (time, user, item), the raw ids by encoded id, and the duplicates: of a
    user-item pair the latest row stays; a row of the user's own test or validation file wins."""
    rows = rows[~rows[RATING].isin(args.drop_rating).to_numpy()] if args.drop_rating else rows
    user, item = (rows[name].cat.codes.to_numpy() for name in (USER, ITEM))
    pair = user.astype(np.int64) * (item.max(initial=0) + 1) + item
    order, repeated = np.lexsort((rows[TIMESTAMP], rows["given"], pair)), np.zeros(len(rows), bool)
    repeated[order[:-1]] = pair[order[1:]] == pair[order[:-1]]
    duplicates = rows.loc[repeated, ["file", "line"]].assign(reason="duplicate user-item pair, a later row stays")
    keep, passes = ~repeated, None if args.core_passes == "until-stable" else int(args.core_passes)
    keep[keep] = k_core(user[keep], item[keep], args.min_core, passes)
    if not keep.any():
        raise InputError(f"{args.input[0]}: the {args.min_core}-core is empty: none of {(~repeated).sum():,} usable rows has a user and an item with "
                         f"{args.min_core} ratings each; give a complete file or lower --min-core")
    rows, ids = rows[keep], {}
    for name in (USER, ITEM):  # codes in the order of the raw ids, so that they do not depend on the order of lines
        sorted_ids = rows[name].cat.set_categories(sorted(rows[name].unique())).cat
        rows[f"{name}_id"], ids[name] = sorted_ids.codes.astype(np.int32) + 1, sorted_ids.categories.insert(0, UNKNOWN)
    order = np.lexsort((rows["item_id"], rows["user_id"], rows[TIMESTAMP]))
    texts = [name for name in OWN_TEXT if rows[name].notna().any()]
    return rows[["user_id", "item_id", RATING, TIMESTAMP, "given", *texts]].iloc[order].reset_index(drop=True), ids, duplicates


# --------------------------------------------------------------------------------------------------------------- splits
def split_rows(args: argparse.Namespace, rows: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Split of every row, 0 train, 1 validation, 2 test. Rows of the user's own files keep theirs."""
    split = rows["given"].to_numpy().copy()
    free = np.flatnonzero(split < 0)
    test_fraction = 0.0 if args.test_input else args.test_fraction
    validation_fraction = 0.0 if args.validation_input else args.validation_fraction
    if args.test_input and not args.validation_input:  # fractions of the rows that are left to split
        validation_fraction = min(args.validation_fraction / (1 - args.test_fraction), 0.99)
    if args.split == "time":  # the whole log cut at two moments: a row at the moment of a cut falls after it, so no moment is in two splits
        times = rows[TIMESTAMP].to_numpy()[free]
        if np.isnan(times).any():
            raise InputError("--split time needs timestamps and this data set has none; it can have --split random, per-user, stratified, leave-one-out")
        ordered = np.append(np.sort(times), np.inf)
        split[free] = np.digitize(times, [ordered[round(len(free) * (1 - f))] for f in (test_fraction + validation_fraction, test_fraction)])
    else:
        split[free] = split_by_rank(args, rows.iloc[free], test_fraction, validation_fraction, rng)
    for code, wanted in ((0, True), (1, args.validation_fraction > 0), (2, args.test_fraction > 0)):
        if wanted and not (split == code).any():
            raise InputError(f"--split {args.split} leaves no {SPLITS[code]} rows among {len(rows):,}; choose another --split or larger fractions")
    return split


def split_by_rank(args, rows, test_fraction, validation_fraction, rng) -> np.ndarray:
    """A share of each group's rows in a random order. random: of all rows; stratified: of each label; per-user: of each user,
    rounding up or down by chance; leave-one-out: a user's last row is test, the one before validation."""
    groups = {"random": np.zeros(len(rows), int), "stratified": rows["label"].to_numpy().astype(int)}.get(args.split, rows["user_id"].to_numpy())
    keys, size = [rng.permutation(len(rows))], np.bincount(groups)[groups]
    if args.split == "leave-one-out":
        keys.append(-rows[TIMESTAMP].fillna(0).to_numpy())  # the random order decides between equal times, and where there are none
        test, held = int(test_fraction > 0), int(test_fraction > 0) + int(validation_fraction > 0)
    else:
        rounding = rng.random(groups.max() + 1)[groups] if args.split == "per-user" else 0.5
        test, held = (np.floor(size * fraction + rounding) for fraction in (test_fraction, test_fraction + validation_fraction))
    held = np.minimum(held, size - 1)  # everybody keeps a training row
    rank = rank_within(groups, keys)
    return (rank < held) + (rank < np.minimum(test, held)).astype(np.int8)


def rank_within(groups: np.ndarray, keys: Sequence[np.ndarray]) -> np.ndarray:
    """0-based rank of each row inside its group when the group is sorted by `keys` (last key first, as in np.lexsort)."""
    ordered = pd.Series(groups).iloc[np.lexsort(keys)]
    return ordered.groupby(ordered, sort=False).cumcount().sort_index().to_numpy()


# ------------------------------------------------------------------------------------------- point-in-time features
def earlier_statistics(key: np.ndarray, moment: np.ndarray, counted: np.ndarray, values: dict[str, np.ndarray], size: int, times: bool = True) -> tuple:
    """What each row knows of its key from *counted* rows at strictly earlier moments, and what is known of every key in the end.

    key: [rows] in 0..size-1; moment: [rows]; counted: bool [rows], the training rows; values: name -> [rows], NaN is missing.
    Returns two dicts of arrays, [rows] and [size]: `review_count` int32, in float64 `avg_<name>` (NaN where nothing came before), with `times`
    also `last` and `first` moment (NaN likewise). Rows of one key with equal moments do not see each other.
    """
    n = len(key)  # a last row per key, at a moment after all others, finds the state at the end
    key, moment, counted = np.r_[key, np.arange(size, dtype=key.dtype)], np.r_[moment, np.full(size, np.inf)], np.r_[counted, np.zeros(size, bool)]
    order = np.lexsort((moment, key))
    key, moment, counted = key[order], moment[order], counted[order]
    above = np.cumsum(counted, dtype=np.int32) - counted  # counted rows above each row; it knows those from number begin to end - 1
    new, begin, end = np.r_[True, key[1:] != key[:-1]], np.empty(len(key), np.int32), np.empty(len(key), np.int32)
    begin[order] = np.maximum.accumulate(np.where(new, above, 0))
    new[1:] |= moment[1:] != moment[:-1]
    end[order] = np.maximum.accumulate(np.where(new, above, 0))
    numbers, when = order[counted], np.r_[moment[counted], np.nan] if times else None  # rows and moments of the counted; number -1 is none
    del order, above, new, key, moment, counted  # tens of millions of rows must fit into memory

    def total(v: np.ndarray) -> np.ndarray:
        running = np.zeros(len(v) + 1)
        np.cumsum(v, dtype=np.float64, out=running[1:])
        return np.subtract(upto := running[end], running[begin], out=upto)

    found = {"review_count": end - begin}
    for name, value in values.items():
        value = value[numbers]
        known = total(~np.isnan(value)) if np.isnan(value).any() else found["review_count"]
        with np.errstate(invalid="ignore"):
            found[f"avg_{name}"] = np.divide(of_all := total(np.nan_to_num(value, copy=False)), known, out=of_all)
    if times:
        found |= {"last": when[np.where(end > begin, end - 1, -1)], "first": when[np.where(end > begin, begin, -1)]}
    return {name: value[:n] for name, value in found.items()}, {name: value[n:].copy() for name, value in found.items()}  # a view would keep all


def moments_of(rows: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """When each row happened, for "earlier". Without times: training rows in a random order, all other rows after them."""
    return rows[TIMESTAMP].to_numpy() if rows[TIMESTAMP].notna().all() else np.where(rows["split"] == 0, rng.permutation(len(rows)), len(rows))


def add_history(features: str, rows: pd.DataFrame, moment: np.ndarray, ids: dict[str, pd.Index]) -> dict[str, pd.DataFrame]:
    """Add the user_* and item_* columns of every row; return both tables with their numeric state at the end of training.

    A residual is a rating minus what was expected of it at its moment: for the user's average, the item's damped average
    so far, and the other way round. It tells a generous user from one who bought good things.
    """
    train, timed = (rows["split"] == 0).to_numpy(), bool(rows[TIMESTAMP].notna().all())
    keys, sizes = {who: rows[f"{who}_id"].to_numpy() for who in ids}, {who: len(raw) for who, raw in ids.items()}
    values, tables, expected = {n: rows[n].to_numpy() for n in (RATING, *OWN_TEXT) if n in rows}, {}, {}
    overall = earlier_statistics(np.zeros(len(rows), np.int8), moment, train, {RATING: values[RATING]}, 1, False)[0]["avg_rating"]
    for who, size in sizes.items():
        columns, state = earlier_statistics(keys[who], moment, train, values, size, timed)  # the place in a random order is no time
        expected[who] = damped(columns["avg_rating"], columns["review_count"], overall)
        if features == "as-published":  # averages and counts over all rows, the row itself and the test rows included
            leak = earlier_statistics(keys[who], moment, np.ones_like(train), values, size, False)[1]
            columns, state = columns | {name: value[keys[who]] for name, value in leak.items()}, state | leak
        rows[f"{who}_days_since_last"] = ((moment - columns.pop("last", np.nan)) / DAY_S).astype(np.float32)
        if who == "item":
            rows["item_age_days"] = ((moment - columns.pop("first", np.nan)) / DAY_S).astype(np.float32)
        for name in [name for name in STATE if name in columns]:
            rows[f"{who}_{name}"] = columns.pop(name).astype(np.int32 if name == "review_count" else np.float32)
        ends = {f"{who}_{name}_timestamp": state.get(name, np.nan) for name in ("last", "first")}
        trained = {who: ids[who], "train_count": np.bincount(keys[who][train], minlength=size)}
        tables[who] = pd.DataFrame(trained | {f"{who}_{name}": state.get(name, np.nan) for name in STATE} | ends)
    for who, other in (("item", "user"), ("user", "item")):
        residual = values[RATING] - expected.pop(other)
        known, ended = (found["avg_residual"] for found in earlier_statistics(keys[who], moment, train, {"residual": residual}, sizes[who], False))
        rows[f"{who}_avg_residual"], tables[who][f"{who}_avg_residual"] = known.astype(np.float32), ended
    rows["user_residual"] = residual.astype(np.float32)
    return tables


# ------------------------------------------------------------------------------ vocabularies, numeric features, crosses
def encode(values: Iterable, vocabulary: list) -> np.ndarray:
    """Code of every value, 0 where the vocabulary lacks it."""
    return pd.Index(vocabulary[1:]).get_indexer(pd.Index(values)).astype(np.int32) + 1


def moment_values(timestamp_s: np.ndarray) -> dict[str, np.ndarray]:
    """year, month 1..12, weekday 0..6 (Monday 0) and period 1..4 (quarter of the year) of UTC timestamps; NaN where there is no time."""
    when = pd.DatetimeIndex(np.asarray(timestamp_s).astype("datetime64[s]"))
    return {"year": when.year, "month": when.month, "weekday": when.day_of_week, "period": when.quarter}


def encode_moments(timestamp_s: np.ndarray, vocabularies: dict) -> dict[str, np.ndarray]:
    """Codes of the CONTEXT fields; all 0 where there is no time (NaN)."""
    return {name: encode(values, vocabularies[name]).astype(np.int8) for name, values in moment_values(timestamp_s).items()}


def damped(average: np.ndarray, count: np.ndarray, prior: float) -> np.ndarray:
    """Average shrunk towards the prior as if DAMPING observations of it came first; the prior where there are none."""
    return (np.nan_to_num(average) * count + prior * DAMPING) / (count + DAMPING)


def numeric_values(name: str, frame: pd.DataFrame, tables: dict[str, pd.DataFrame], spec: dict) -> np.ndarray:
    """A numeric feature before normalisation: averages are damped by their counts, counts are log(1 + n). What no rating
    changes, a price or a genre, stands in the users' or items' table; all else in the frame."""
    who = name.split("_")[0]
    values = (frame[name].to_numpy() if name in frame else tables[who][name].to_numpy()[frame[f"{who}_id"]]).astype(np.float64)
    if spec["prior"] is None:
        return np.log1p(values) if name.endswith("_count") else values
    count = frame[f"{name.split('_avg_')[0]}_review_count"].to_numpy(np.float64)
    return damped(values, np.where(np.isnan(values), 0, count), spec["prior"])


def normalise(values: np.ndarray, spec: dict) -> np.ndarray:
    """float32 around 0, missing is 0. Averages and counts are standardised: they go on growing after training, and how far
    an average is from usual would be lost in its rank. All else becomes its training quantile, as in Cheng et al. 2016
    (section 4.1), spread to -1..1."""
    if spec["knots"]:
        return np.nan_to_num(2 * np.interp(values, spec["knots"], spec["levels"]) - 1).astype(np.float32)
    return np.nan_to_num((values - spec["mean"]) / spec["deviation"]).astype(np.float32)


def fit_numeric(name: str, rows: pd.DataFrame, train: np.ndarray, tables: dict[str, pd.DataFrame], averages: dict[str, float]) -> dict:
    """Specification of one numeric feature from the training rows, a mask: prior of its damping; mean and deviation, or quantile knots with levels in 0..1.
    A column of a field with several values, named field=value, stays 0 or 1."""
    spec = {"prior": averages.get(name.split("_avg_")[-1]) if "_avg_" in name else None, "mean": 0.0, "deviation": 1.0, "knots": [], "levels": []}
    values = numeric_values(name, rows, tables, spec)
    values = values[train & ~np.isnan(values)]
    if not len(values) or "=" in name:
        return spec
    if "_avg_" in name or name.endswith("_count"):
        return spec | {"mean": float(values.mean()), "deviation": max(float(values.std()), 0.1)}  # next to 0 where all are alike
    knots, first, repeats = np.unique(np.quantile(values, np.linspace(0, 1, QUANTILES)), return_index=True, return_counts=True)
    return spec | {"knots": knots.tolist(), "levels": ((first + (repeats - 1) / 2) / (QUANTILES - 1)).tolist()}


def cross_ids(left: np.ndarray, right: np.ndarray, spec: dict) -> np.ndarray:
    """Ids of the crosses left x right, 0 where either code is unknown or the pair is not in the vocabulary.

    left, right: integer arrays that broadcast. Exact crosses look the pair up among the sorted training pairs;
    hashed ones mix its key (the finaliser of splitmix64, Steele et al. 2014), which is stable across machines.
    The id depends on the two codes and the specification alone, so any candidate gets it at any time.
    """
    key = np.asarray(left, np.int64) * spec["right_size"] + np.asarray(right, np.int64)  # distinct for distinct pairs
    if spec["kind"] == "exact":
        keys = spec["keys"] if len(spec["keys"]) else np.array([-1])
        found = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        ids = np.where(keys[found] == key, found + 1, 0)
    else:
        z = key.astype(np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        ids = ((z ^ (z >> np.uint64(31))) % np.uint64(spec["size"] - 1)).astype(np.int64) + 1
    return np.where((np.asarray(left) == 0) | (np.asarray(right) == 0), 0, ids).astype(np.int32)


def fit_cross(left: np.ndarray, right: np.ndarray, right_size: int) -> dict:
    """Specification of a cross from the training rows' codes: the exact pairs where they are few, else a hash."""
    known = (left > 0) & (right > 0)
    keys = np.sort(left[known].astype(np.int64) * right_size + right[known])
    keys = keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]  # np.unique collects them in a hash table, which takes longer and more memory
    if len(keys) <= EXACT_PAIRS:
        return {"right_size": int(right_size), "kind": "exact", "size": len(keys) + 1, "keys": keys}
    return {"right_size": int(right_size), "kind": "hash", "size": 1 + min(1 << (4 * len(keys) - 1).bit_length(), 1 << 26)}


def field_codes(frame: pd.DataFrame, tables: dict[str, pd.DataFrame], vocabularies: dict) -> dict[str, np.ndarray]:
    """Codes of every categorical field for rows with user_id, item_id, the CONTEXT codes and the users' and items' state.

    The one way in which training rows, test rows and catalogue candidates get their features. An id without
    training rows becomes 0 (its attributes stay): nothing was learned for it.
    """
    codes = {name: frame[name].to_numpy() for name in CONTEXT}
    for who, table in tables.items():
        ids = frame[f"{who}_id"].to_numpy()
        codes |= {name: table[name].to_numpy()[ids] for name in vocabularies["categories"][who]}
        codes[f"{who}_id"] = np.where(table["train_count"].to_numpy()[ids] > 0, ids, 0)
        average = f"{who}_avg_rating"
        values = numeric_values(average, frame, tables, vocabularies["numeric"][average])
        bucket = np.searchsorted(vocabularies["bucket_edges"][average], values, side="right") + 1
        codes[f"{who}_rating_bucket"] = np.where(frame[f"{who}_review_count"] > 0, bucket, 0).astype(np.int32)
    return codes


class Features:
    """Turns rows into the model's inputs: the tables, vocabularies and names of the features, nothing learned.
    One object serves training, evaluation and a candidate scored years later, so they cannot disagree."""

    def __init__(self, tables: dict[str, pd.DataFrame], vocabularies: dict, config: dict) -> None:
        self.tables, self.vocabularies = tables, vocabularies
        self.wide, self.categorical, wide_numeric, numeric = (config[n] for n in ("wide", "categorical", "wide_numeric", "numeric"))
        names = dict.fromkeys([*wide_numeric, *numeric])  # the wide part's own come first, the deep part's own last, the common ones between
        self.columns = sorted(names, key=lambda name: (name in numeric) - (name in wide_numeric))
        self.wide_numeric, self.numeric = self.columns[: len(wide_numeric)], self.columns[len(self.columns) - len(numeric) :]

    def size(self, name: str) -> int:
        """Number of codes of a field or cross, code 0 included."""
        return self.vocabularies["crosses"][name]["size"] if name in self.vocabularies["crosses"] else len(self.values(name))

    def encode(self, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """rows -> wide ids int32 [n, W], categorical codes int32 [n, C], numeric columns float32 [n, N] around 0. A cross that rows have is theirs."""
        known, specs = {name: rows[name].to_numpy() for name in self.vocabularies["crosses"] if name in rows}, self.vocabularies["numeric"]
        codes = field_codes(rows, self.tables, self.vocabularies) | known
        wide, deep = ([self.wide_ids(name, codes) for name in names] for names in (self.wide, self.categorical))
        numeric = [normalise(numeric_values(name, rows, self.tables, specs[name]), specs[name]) for name in self.columns]
        parts = ((wide, np.int32), (deep, np.int32), (numeric, np.float32))
        return tuple(np.stack(columns, axis=1, dtype=dtype) if columns else np.empty((len(rows), 0), dtype) for columns, dtype in parts)

    def values(self, name: str) -> np.ndarray:
        """What the codes of a field stand for, UNKNOWN where an id has no training rows."""
        if name in ("user_id", "item_id"):
            table = self.tables[name[:4]]
            return table[name[:4]].where(table["train_count"] > 0, UNKNOWN).to_numpy()
        return np.array(self.vocabularies.get(name, range(RATING_BUCKETS + 1)), object)

    def wide_ids(self, name: str, codes: dict[str, np.ndarray]) -> np.ndarray:
        spec = self.vocabularies["crosses"].get(name)
        return codes[name] if name in codes else cross_ids(codes[spec["left"]], codes[spec["right"]], spec)

    def at_moment(self, user_ids: np.ndarray, item_ids: np.ndarray, timestamp_s: float | None) -> pd.DataFrame:
        """Rows (user, item) as they would look at a moment, from the state at the end of training."""
        now, rows = np.nan if timestamp_s is None else float(timestamp_s), {"user_id": user_ids, "item_id": item_ids}
        for who, table in self.tables.items():
            names = [f"{who}_{name}" for name in (*STATE, "last_timestamp", "first_timestamp")]
            rows |= {name: table[name].to_numpy()[rows[f"{who}_id"]] for name in names}
            rows[f"{who}_days_since_last"] = (now - rows[f"{who}_last_timestamp"]) / DAY_S
        rows["item_age_days"] = (now - rows["item_first_timestamp"]) / DAY_S
        moment = {name: codes[0] for name, codes in encode_moments(np.array([now]), self.vocabularies).items()}
        frame = pd.DataFrame(rows | moment | dict.fromkeys(OWN_TEXT, np.nan))  # the row's own text is not written yet
        pairs = self.wide_ids("cross_user_category", field_codes(frame, self.tables, self.vocabularies))
        return frame.assign(**{name: state[pairs] for name, state in self.vocabularies["crosses"]["cross_user_category"]["state"].items()})


def impute(numbers: pd.DataFrame, trained: np.ndarray) -> pd.DataFrame:
    """Fill what is missing by linear regression, fitted on trained ids, on the other column that it correlates with most."""
    filled, correlation = numbers.copy(), numbers[trained].corr().abs()
    for name in numbers.columns[numbers.isna().any()]:
        other = correlation[name].drop(name).idxmax() if correlation[name].drop(name).notna().any() else None
        if other and len(pairs := numbers.loc[trained, [other, name]].dropna()) >= 10:
            filled[name] = numbers[name].fillna(pd.Series(np.polyval(np.polyfit(*pairs.to_numpy().T, 1), numbers[other]), numbers.index))
    return filled


def add_attributes(who: str, table: pd.DataFrame, known: pd.DataFrame, vocabularies: dict) -> pd.DataFrame:
    """The table with what is known of users or items: a code per category, a 0/1 column per value of a field with several,
    numbers as they are. Missing is code 0, column field=<unknown>, NaN. Vocabularies are fitted on ids with training rows."""
    trained, parts, vocabularies["attributes"][who] = table["train_count"].to_numpy() > 0, [table], []
    known = known.reindex(table[who]).reset_index(drop=True).rename(columns=lambda name: name if name in TEXTS else f"{who}_{name}")
    numbers = impute(known.select_dtypes("number").astype(np.float64), trained)
    for name, values in known.items():
        if name in numbers:
            values = numbers[name].astype(np.float32)
            vocabularies["attributes"][who].append(name)
        elif values.map(pd.api.types.is_list_like).any():
            hot = pd.get_dummies(values.explode()).groupby(level=0).max()
            common = hot[trained].sum().loc[lambda counts: counts > 0].nlargest(MULTI_HOT).index
            values = hot[sorted(common)].assign(**{UNKNOWN: values.isna()}).add_prefix(f"{name}=").astype(np.int8)
            vocabularies["groups"][name] = [*values]
            vocabularies["attributes"][who] += [*values]
        elif name != "title":
            vocabularies["categories"][who].append(name)
            vocabularies[name] = [UNKNOWN, *sorted(values[trained].dropna().unique().tolist())]
            values = pd.Series(encode(values, vocabularies[name]), name=name)
        parts.append(values)
    return pd.concat(parts, axis=1)


def fit_vocabularies(args, rows: pd.DataFrame, tables: dict[str, pd.DataFrame], vocabularies: dict) -> None:
    """Every vocabulary, quantile and bucket of rows and moments, from the training rows."""
    train = (rows["split"] == 0).to_numpy()
    times = rows.loc[train, TIMESTAMP].dropna().to_numpy(np.int64)
    vocabularies |= {name: [UNKNOWN, *np.unique(values).tolist()] for name, values in moment_values(times).items()}
    averages = {name: float(rows.loc[train, name].mean()) for name in (RATING, *OWN_TEXT) if name in rows} | {"residual": 0.0}
    of_rows = [*NUMERIC, *(name for name in OWN_TEXT if name in rows and args.features != "honest")]  # a row's own text came after what is to be predicted
    numeric = [n for n in of_rows if n not in PAIR_STATE] + [n for names in vocabularies["attributes"].values() for n in names]
    vocabularies["numeric"] = {name: fit_numeric(name, rows, train, tables, averages) for name in numeric}
    levels = np.arange(1, RATING_BUCKETS) / RATING_BUCKETS
    averages = {name: numeric_values(name, rows, tables, vocabularies["numeric"][name])[train] for name in ("user_avg_rating", "item_avg_rating")}
    vocabularies["bucket_edges"] = {name: np.unique(np.quantile(values, levels)).tolist() for name, values in averages.items()}


def add_crosses(wanted: dict[str, tuple[str, str]], rows: pd.DataFrame, moment: np.ndarray, tables: dict[str, pd.DataFrame], vocabularies: dict) -> None:
    """Fit every cross, given as name: (left, right), on the training rows; add the cross_* columns and PAIR_STATE to all rows. The state of
    pairs at the end of training stands, by cross id, in the specification of cross_user_category."""
    codes, train = field_codes(rows, tables, vocabularies), (rows["split"] == 0).to_numpy()
    sizes = {f"{who}_id": len(table) for who, table in tables.items()} | {f"{who}_rating_bucket": RATING_BUCKETS + 1 for who in tables}
    sizes |= {name: len(vocabularies[name]) for name in codes if name in vocabularies}
    vocabularies["crosses"] = {}
    for name, (left, right) in wanted.items():
        if unknown := {left, right} - sizes.keys():
            raise InputError(f"--cross {left}:{right}: {min(unknown)} is not a field of this data set; it has {', '.join(sorted(sizes))}")
        left, right = sorted((left, right), key=lambda field: not field.startswith("user_"))  # serving goes from the user to the items
        spec = fit_cross(codes[left][train], codes[right][train], sizes[right])
        rows[name] = cross_ids(codes[left], codes[right], spec)
        vocabularies["crosses"][name] = {"left": left, "right": right, **spec}
    del codes
    key, spec = rows["cross_user_category"].to_numpy(), vocabularies["crosses"]["cross_user_category"]
    counted, spec["state"] = train & (key > 0), {}  # pairs outside the vocabulary, id 0, have no history of their own
    known, state = earlier_statistics(key, moment, counted, {"residual": rows["user_residual"].to_numpy()}, spec["size"], False)
    for name, short, dtype in zip(PAIR_STATE, ("review_count", "avg_residual"), (np.int32, np.float32)):
        rows[name], spec["state"][name] = known[short].astype(dtype), state[short].astype(dtype)
        vocabularies["numeric"][name] = fit_numeric(name, rows, train, {}, {"residual": 0.0})


def build(args: argparse.Namespace, rows: pd.DataFrame, ids: dict[str, pd.Index], attributes: Attributes) -> tuple[pd.DataFrame, dict[str, pd.DataFrame], dict]:
    """Split the clean rows and add every feature: (rows by time, tables of users and items, vocabularies)."""
    rng = np.random.default_rng(args.seed)
    rows["label"] = (rows[RATING] >= args.positive_threshold).astype(np.int8)
    rows["split"] = split_rows(args, rows, rng).astype(np.int8)
    moment = moments_of(rows, rng)
    state = add_history(args.features, rows, moment, ids)
    products = attributes.items.reindex(columns=[*dict.fromkeys([*TEXTS, *attributes.items])]).astype(dict.fromkeys(TEXTS, object))
    vocabularies, tables = {"categories": {USER: [], ITEM: []}, "attributes": {}, "groups": {}}, {}
    for who, table in ((USER, attributes.users), (ITEM, products)):
        leaky = [name for name in table if name.startswith("site_") and args.features == "honest"]  # a site-wide figure contains what is to be predicted
        tables[who] = add_attributes(who, state[who], table.drop(columns=leaky), vocabularies)
    fit_vocabularies(args, rows, tables, vocabularies)
    rows = rows.assign(**encode_moments(rows[TIMESTAMP].to_numpy(), vocabularies))
    further = {f"cross_{left}_{right}": (left, right) for left, right in (cross.split(":") for cross in args.cross)}
    add_crosses(CROSSES | further, rows, moment, tables, vocabularies)
    return rows.drop(columns=["given", "user_residual", *(OWN_TEXT if args.features == "honest" else ())], errors="ignore"), tables, vocabularies


# ------------------------------------------------------------------------------------------------------------ artifacts
def replace_files(writers: dict[Path, Callable[[Path], None]]) -> None:
    """Write all files under temporary names beside them and flush them to disk, then rename all in this order: none is ever half-written."""
    temporary = {path: path.with_name(f".{path.name}.tmp") for path in writers}
    try:
        for path, write in writers.items():
            write(temporary[path])
            with open(temporary[path], "rb") as handle:
                os.fsync(handle.fileno())
        for path in writers:
            os.replace(temporary[path], path)
    finally:
        for path in writers:
            temporary[path].unlink(missing_ok=True)


def describe_file(path: Path) -> dict:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_reviews(path: Path, rows: pd.DataFrame) -> None:
    """The rows in zstd parquet, by split; no row group spans two splits, so a split can be read alone."""
    with pq.ParquetWriter(path, reviews_table(rows[:1]).schema, compression="zstd") as writer:
        for of_split in (np.flatnonzero(rows["split"] == split) for split in range(len(SPLITS))):
            for begin in range(0, len(of_split), PARQUET_ROW_GROUP):
                writer.write_table(reviews_table(rows.iloc[of_split[begin : begin + PARQUET_ROW_GROUP]]))


def reviews_table(rows: pd.DataFrame) -> pa.Table:
    """Rows as they are stored: the split by its name, the time a whole number or nothing, lengths of texts also where there are no texts."""
    table = pa.Table.from_pandas(rows.assign(**dict.fromkeys([name for name in NUMERIC if name not in rows], np.float32("nan"))), preserve_index=False)
    table = table.set_column(table.column_names.index("split"), "split", pa.array(np.array(SPLITS, object)[rows["split"]]).dictionary_encode())
    return table.set_column(table.column_names.index(TIMESTAMP), TIMESTAMP, pa.array(rows[TIMESTAMP], from_pandas=True).cast(pa.int64()))


def convert(tree: Any, kind: type, function: Callable) -> Any:
    """The same nested dicts with `function` applied to every leaf of a kind."""
    if isinstance(tree, dict):
        return {key: convert(value, kind, function) for key, value in tree.items()}
    return function(tree) if isinstance(tree, kind) else tree


def write_index(path: Path, index: dict) -> None:
    """dataset.json: the index with size and SHA-256 of the other files, which are still under temporary names like its own."""
    index["files"] = {name: describe_file(path.with_name(path.name.replace(INDEX, name))) for name in (*DATA, REJECTED, EXPLORATION)}
    contents = "".join(index["files"][name]["sha256"] for name in DATA)
    index["fingerprint"] = hashlib.sha256(contents.encode()).hexdigest()[:16]
    path.write_text(json.dumps(index, indent=1) + "\n")


class BuiltinsOnly(pickle.Unpickler):
    """Opens plain dicts, lists, strings and numbers; any other object needs a global, and every global is refused."""

    def find_class(self, module: str, name: str) -> None:
        raise pickle.UnpicklingError(f"asks for {module}.{name}")


@dataclass
class Dataset:
    """Stage 1's artifacts, verified. reviews: rows in file order (train, validation, test); users, items: row == encoded id."""

    folder: Path
    index: dict
    reviews: pd.DataFrame
    users: pd.DataFrame
    items: pd.DataFrame
    vocabularies: dict
    streamed: bool = False  # reviews has the columns THIN only, as all do not fit into memory

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        return {USER: self.users, ITEM: self.items}

    def blocks(self, split: str) -> list[Callable[[], pd.DataFrame]]:
        """What reads the rows of a split with all their columns, at most a row group of the file at a time."""
        of_split = (self.reviews["split"] == split).to_numpy()
        if not self.streamed:
            places = np.flatnonzero(of_split)
            return [partial(self.reviews.take, places[begin : begin + PARQUET_ROW_GROUP]) for begin in range(0, len(places), PARQUET_ROW_GROUP)]
        file = pq.ParquetFile(self.folder / REVIEWS)
        ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
        return [lambda group=group: file.read_row_group(group).to_pandas() for group in np.flatnonzero(of_split[ends - 1])]

    def rows(self, split: str) -> pd.DataFrame:
        return pd.concat([block() for block in self.blocks(split)], ignore_index=True)


def load_dataset(folder: Path) -> Dataset:
    """Read and verify a folder written by this script. Raises InputError with the line to run where anything is amiss."""
    again = f"; make it anew: python amazon_preprocessing.py --output-dir {folder}"
    name = INDEX  # the file that an error is about
    try:
        index = json.loads((folder / INDEX).read_bytes())
        missing = {*INDEX_KEYS} - index.keys() | {*DATA} - index["files"].keys()
        require(not missing, f"it does not tell {', '.join(sorted(missing))}")
        for name, told in index["files"].items():
            require(describe_file(folder / name) == told, f"it is not the file that {INDEX} names")
        columns = {REVIEWS: [*THIN]} if ROW_BYTES * sum(index["rows"].values()) > MEMORY / 2 else {}
        frames = [pq.read_table(folder / (name := table), columns=columns.get(table)).to_pandas() for table in (REVIEWS, USERS, ITEMS)]
        name = VOCABULARIES
        vocabularies = BuiltinsOnly(io.BytesIO((folder / name).read_bytes())).load()
        vocabularies["crosses"] = convert(vocabularies["crosses"], list, np.array)
        dataset, name = Dataset(folder, index, *frames, vocabularies, bool(columns)), ""
        check_dataset(dataset)
        return dataset
    except FileNotFoundError:
        raise InputError(f"{folder / name} is missing{again}") from None
    except Exception as error:  # whatever a damaged or hostile file provokes
        raise InputError(f"{folder / name} cannot be used ({type(error).__name__}: {' '.join(str(error)[:200].split())}){again}") from None


def require(true: bool, otherwise: str) -> None:
    if not true:
        raise ValueError(otherwise)


def require_codes(table: pd.DataFrame, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        codes = table[name].to_numpy()
        require(codes.dtype.kind == "i" and len(codes) and codes.min() >= 0 and codes.max() < size, f"{name} holds codes outside its vocabulary of {size}")


def check_dataset(ds: Dataset) -> None:
    """Refuse artifacts that contradict their contract: later stages index by these codes without looking again."""
    words, split = ds.vocabularies, pd.Index(SPLITS).get_indexer(ds.reviews["split"])
    told = {name: int((split == code).sum()) for code, name in enumerate(SPLITS)} == ds.index["rows"]
    require(told and (np.diff(split, prepend=0) >= 0).all(), f"the rows are not as many as {INDEX} tells, in the order train, validation, test")
    for who, table in ds.tables.items():
        require_codes(table, {name: len(words[name]) for name in words["categories"][who]})
        trained = np.bincount(ds.reviews[f"{who}_id"].to_numpy()[split == 0], minlength=len(table))
        numbers = [*(f"{who}_{n}" for n in (*STATE, "last_timestamp", "first_timestamp")), *words["attributes"][who]]
        whole = who in table and np.array_equal(trained, table["train_count"]) and all(table[n].dtype.kind in "if" for n in numbers)
        require(whole, f"{who}s.parquet does not belong to {REVIEWS}")
    edges = words["bucket_edges"].values()
    require("title" in ds.items and all(len(e) < RATING_BUCKETS and (np.diff(e) > 0).all() for e in edges), "no titles, or buckets do not increase")
    for name, spec in words["crosses"].items():
        even = spec["kind"] == "hash" or (spec["kind"] == "exact" and spec["size"] == len(spec["keys"]) + 1 and (np.diff(spec["keys"]) > 0).all())
        require(even and all(len(values) == spec["size"] for values in spec.get("state", {}).values()), f"{name} is not a cross")
    for name, spec in words["numeric"].items():
        numbers = [*spec["knots"], *spec["levels"], spec["mean"], spec["deviation"], 1 / spec["deviation"]]
        whole = np.isfinite(numbers).all() and len(spec["knots"]) == len(spec["levels"]) and (np.diff(spec["knots"]) > 0).all()
        require(whole, f"{name} is not finite, or its quantiles do not increase")
    for name in SPLITS:
        for block in ds.blocks(name):
            check_rows(ds, block(), name)


def check_rows(ds: Dataset, rows: pd.DataFrame, split: str) -> None:
    """The same of some rows of a split. A sample is used as later stages will use it: what is missing or of another kind fails here, not there."""
    words = ds.vocabularies
    sizes = {"user_id": len(ds.users), "item_id": len(ds.items), "label": 2, **{name: len(words[name]) for name in CONTEXT}}
    require_codes(rows, sizes | {name: words["crosses"][name]["size"] for name in {*CROSSES, *words["crosses"]}})
    require(rows["user_id"].min() and rows["item_id"].min() and (rows["split"] == split).all(), "a row has no user, no item or another split")
    numbers = {RATING, TIMESTAMP, *words["numeric"]} - {n for names in words["attributes"].values() for n in names}
    require(all(rows[n].dtype.kind in "if" for n in numbers) and np.isfinite(rows[RATING]).all(), "a numeric column holds something else")
    sample = rows.iloc[:: len(rows) // 1000 + 1]
    codes = field_codes(sample, ds.tables, words)
    for name, spec in words["crosses"].items():
        require(np.array_equal(cross_ids(codes[spec["left"]], codes[spec["right"]], spec), sample[name]), f"{name} is not the cross of {VOCABULARIES}")
    for name in {*NUMERIC, *words["numeric"]}:
        values = numeric_values(name, sample, ds.tables, words["numeric"][name])
        require(not np.isinf(values).any() and np.isfinite(normalise(values, words["numeric"][name])).all(), f"{name} is not finite")
    moments = encode_moments(sample[TIMESTAMP].to_numpy(), words).items()
    require(all(np.array_equal(found, sample[name]) for name, found in moments), "the moments of the rows are not those of their timestamps")
    features = Features(ds.tables, words, {part: [] for part in ("wide", "categorical", "wide_numeric", "numeric")})
    features.at_moment(sample["user_id"].to_numpy(), sample["item_id"].to_numpy(), None)[[*PAIR_STATE]].astype(np.float32)


def with_validation(ds: Dataset) -> Dataset:
    """The data set as if its validation rows were training rows, for a model refitted on both: what ratings say of users, items and
    pairs is counted anew. What attributes and moments stand for, scales, and lengths of texts stay as training rows have them."""
    if ds.streamed:
        raise InputError(f"{ds.folder}: its rows do not fit into the memory of this machine, and --refit needs them there")
    split, vocabularies = ds.reviews["split"], ds.vocabularies | {"numeric": dict(ds.vocabularies["numeric"])}
    rows = ds.reviews.drop(columns=[*OWN_TEXT], errors="ignore").assign(split=2 * (split == "test"))  # no lengths of texts, so no new averages of them
    moment = moments_of(rows, np.random.default_rng(ds.index["seed"]))
    state = add_history(ds.index["features"], rows, moment, {who: table[who] for who, table in ds.tables.items()})
    tables = {who: table.assign(**state[who].dropna(axis="columns", how="all")) for who, table in ds.tables.items()}
    add_crosses({name: (spec["left"], spec["right"]) for name, spec in vocabularies["crosses"].items()}, rows, moment, tables, vocabularies)
    index = ds.index | {"last_training_timestamp": None if rows[TIMESTAMP].isna().any() else int(rows[TIMESTAMP][split != "test"].max())}
    return Dataset(ds.folder, index, ds.reviews.assign(**rows.drop(columns=["split", "user_residual"])), *tables.values(), vocabularies)


# ---------------------------------------------------------------------------------------------------------- the report
def plot_exploration(path: Path, name: str, rows: pd.DataFrame, users: pd.DataFrame, items: pd.DataFrame) -> None:
    """Six views of the kept rows: ratings, their number per user and item, activity, likes over time, cold share."""
    import matplotlib.pyplot as plt  # here, because importing it costs a second that no later stage should pay
    import seaborn as sns

    plt.switch_backend("agg")
    sns.set_theme(style="whitegrid", palette="colorblind")
    margins = {"left": 0.055, "right": 0.98, "bottom": 0.07, "top": 0.9, "wspace": 0.2, "hspace": 0.3}
    figure, ((ratings, of_users, of_items), (activity, likes, cold)) = plt.subplots(2, 3, figsize=(16, 9), gridspec_kw=margins)
    figure.suptitle(f"{name}: {len(rows):,} ratings, {len(users) - 1:,} users, {len(items) - 1:,} items", fontsize=15)
    split, new = pd.Categorical.from_codes(rows["split"], SPLITS), {}
    rows[RATING].value_counts(normalize=True).sort_index().rename("{:g}".format).mul(100).plot.bar(ax=ratings, title="Ratings", ylabel="% of rows", rot=0)
    for axis, who, table in ((of_users, "user", users), (of_items, "item", items)):
        counts = np.sort(np.bincount(rows[f"{who}_id"])[1:])[::-1]
        axis.loglog(np.arange(1, len(counts) + 1), counts)
        axis.set(title=f"Ratings per {who}: median {np.median(counts):g}, most {counts[0]:,}", xlabel=f"{who}s, most rated first", ylabel="ratings")
        new[f"new {who}s"] = rows[f"{who}_id"].map(table["train_count"] == 0)
    shares = pd.DataFrame(new).groupby(split, observed=True).mean().drop("train").mul(100)
    if len(shares):  # not all rows are training rows
        shares.plot.bar(ax=cold, rot=0, title="Rows of users and items without a training row", xlabel="split", ylabel="% of rows")
    for axis in (ratings, cold):
        axis.margins(y=0.12)
        for bars in axis.containers:
            axis.bar_label(bars, fmt="%.1f %%")
    if rows[TIMESTAMP].isna().any():
        activity.set_title("no timestamps, so no activity over time")
        likes.set_axis_off()
    else:
        quarter = rows[TIMESTAMP].to_numpy("datetime64[s]").astype("datetime64[M]").astype(np.int64) // 3  # since 1970
        first, quarters = pd.Period(ordinal=quarter.min(), freq="Q"), quarter - quarter.min()
        counts = np.bincount(quarters * len(SPLITS) + rows["split"], minlength=len(SPLITS) * (quarters.max() + 1)).reshape(-1, len(SPLITS))
        by_split = pd.DataFrame(counts, pd.period_range(first, periods=len(counts), freq="Q"), SPLITS)
        by_split.plot.area(ax=activity, title="Activity over time", xlabel="quarter", ylabel="rows per quarter", lw=0)
        liked = (np.bincount(quarters, rows["label"]) / by_split.sum(axis=1))[by_split.sum(axis=1) >= 30].mul(100)
        liked.plot(ax=likes, title="Likes over time (quarters with 30 rows or more)", xlabel="quarter", ylabel="% of rows liked", ylim=(0, 100))
        likes.tick_params(axis="x", which="both", labelsize=9)
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    args, started = parse_args(argv), time.perf_counter()
    name = obtain(args)
    rows, unusable = read_ratings(args)
    rows, ids, repeated = clean(args, rows)
    pa.default_memory_pool().release_unused()  # what the texts of a large log took
    attributes = read_attributes(args, *(set(ids[name][1:]) for name in (USER, ITEM)))
    rejected = pd.concat([unusable, repeated, pd.DataFrame(attributes.rejected, columns=unusable.columns)])
    shown = rejected.groupby("reason", sort=False).head(REJECTED_SHOWN).astype({"file": str})
    rows, tables, vocabularies = build(args, rows, ids, attributes)
    times, train = rows[TIMESTAMP], rows["split"] == 0
    index = {  # what the later stages and a reader need to know about the data set; write_index adds the files
        "name": name,
        "users": len(ids[USER]) - 1,
        "items": len(ids[ITEM]) - 1,
        "rows": {split: int((rows["split"] == code).sum()) for code, split in enumerate(SPLITS)},
        "positive_rate": float(rows["label"].mean()),
        "rating_range": [float(rows.loc[train, RATING].min()), float(rows.loc[train, RATING].max())],  # predictions are clipped to it
        **{key: getattr(args, key) for key in ("positive_threshold", "split", "features", "seed", "min_core")},
        "last_training_timestamp": None if times.isna().any() else int(times[train].max()),
        "rejected": {str(reason): int(count) for reason, count in rejected["reason"].value_counts().items()},
        "arguments": {key: [str(v) for v in value] if isinstance(value, list) else str(value) for key, value in vars(args).items()},
        "seconds": round(time.perf_counter() - started, 2),
    }
    writers = {
        REVIEWS: lambda path: write_reviews(path, rows),
        USERS: lambda path: tables[USER].to_parquet(path, compression="zstd", index=False),
        ITEMS: lambda path: tables[ITEM].to_parquet(path, compression="zstd", index=False),
        VOCABULARIES: lambda path: path.write_bytes(pickle.dumps(convert(vocabularies, np.ndarray, np.ndarray.tolist), protocol=4)),
        REJECTED: lambda path: shown.to_json(path, orient="records", lines=True),
        EXPLORATION: lambda path: plot_exploration(path, name, rows, *tables.values()),
        INDEX: lambda path: write_index(path, index),  # last: a run killed among the renames leaves files that it does not name
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    replace_files({args.output_dir / name: write for name, write in writers.items()})
    liked = f"{100 * index['positive_rate']:.1f} % liked (rating >= {args.positive_threshold:g})"
    print(f"{name}: {len(rows):,} rows, {index['users']:,} users, {index['items']:,} items, {liked}")
    print(f"{args.split} split: " + ", ".join(f"{count:,} {split}" for split, count in index["rows"].items()))
    for reason, count in index["rejected"].items():
        print(f"rejected {count:,}: {reason}")
    print(f"wrote {args.output_dir} in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    sys.exit(run_script(main))
