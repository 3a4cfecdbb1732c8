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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from readers import ITEM, OWN_TEXT, RATING, TIMESTAMP, USER, Attributes, InputError
from readers.formats import DAY_S, FORMATS, obtain, read_attributes, read_ratings

# ----------------------------------------------------------------------------------------------------------------------
UNKNOWN, SPLITS = "<unknown>", ("train", "validation", "test")  # unknown: code 0 of every vocabulary, row 0 of both tables
CONTEXT = ("year", "month", "weekday", "period")  # what a moment says; period is the quarter of the year, so it recurs
STATE = ("review_count", "avg_rating", "avg_review_length", "avg_word_count", "avg_residual")  # of a user, of an item
PAIR_STATE = ("user_category_review_count", "user_category_avg_residual")  # of a user in the item's category
RECENCY = ("user_days_since_last", "item_days_since_last", "item_age_days")
NUMERIC = (*(f"user_{s}" for s in STATE), *(f"item_{s}" for s in STATE), *PAIR_STATE, *RECENCY)  # beside the data set's own attributes
CROSSES = {"cross_user_item": ("user_id", "item_id"), "cross_user_period": ("user_id", "period"), "cross_item_period": ("item_id", "period"),
           "cross_user_category": ("user_id", "category"), "cross_rating_buckets": ("user_rating_bucket", "item_rating_bucket")}  # fmt: skip
TEXTS = ("title", "category", "brand")  # of the items, in every data set
MULTI_HOT = 64  # of a field with several values (genres), the most frequent get a column each
EXACT_PAIRS = 2_000_000  # a cross with more distinct training pairs is hashed: a sorted table of 16 MB is still cheap
RATING_BUCKETS, QUANTILES = 10, 101  # of a damped average, where bucket 0 is "no earlier rating"; knots of a numeric feature's distribution function
DAMPING = 5.0  # an average counts as if this many ratings at the training mean came first
BLOCK, SAMPLE = 262_144, 2_000_000  # rows, about, that get features at a time, and of a row group; training rows, at most, that scales are fitted on
THIN = ("user_id", "item_id", RATING, TIMESTAMP, "label", "split")  # columns of all rows that are read where others do not fit into memory
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of this machine, for each of its workers
ROW_BYTES, REJECTED_SHOWN = 500, 1_000  # memory of a row while it is read, encoded and trained on; lines in rejected_rows.jsonl per reason
DATA = REVIEWS, USERS, ITEMS, VOCABULARIES = "processed_reviews.parquet", "users.parquet", "items.parquet", "vocabularies.pkl"  # for the later stages
REJECTED, EXPLORATION, INDEX = "rejected_rows.jsonl", "exploration.png", "dataset.json"
INDEX_KEYS = ("rows", "users", "items", "fingerprint", "name", "split", "seed", "features", "positive_threshold", "rating_range", "last_training_timestamp")


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
    getattr(sys.stdout, "reconfigure", dict)(errors="backslashreplace")  # some terminals know ASCII alone
    try:
        main()
        return 0
    except (InputError, OSError, MemoryError, RuntimeError) as error:  # OSError: full disk, no permission
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in ("allocate memory", "out of memory")):  # torch, on the CPU or a GPU
            raise
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
    add = (parser := Parser(__doc__)).add_argument
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
    for wrong, message in (
        (args.test_fraction + args.validation_fraction >= 1, "--test-fraction and --validation-fraction leave no training rows"),
        (args.min_core < 0 or args.seed < 0, "--min-core and --seed take numbers >= 0"),
        (not np.isfinite(args.positive_threshold), "--positive-threshold takes a finite number"),
        (not "".join(map(str, args.input or [])).isprintable(), "--input: the name of a file is no UTF-8, or has control characters; rename it"),
        (any(cross.count(":") != 1 for cross in args.cross), "--cross takes two fields with a colon between them, such as user_gender:category"),
        (args.core_passes != "until-stable" and not args.core_passes.isdecimal(), "--core-passes takes until-stable or a number"),
    ):
        if wrong:
            parser.error(message)
    return args


# ------------------------------------------------------------------------------------------------- cleaning and splits
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


def clean(args: argparse.Namespace, rows: dict[str, np.ndarray], ids: dict[str, pd.Index]) -> tuple[pd.DataFrame, dict[str, pd.Index]]:
    """Rows of the k-core in the order (time, user, item) with encoded ids, and the raw ids by encoded id. Takes the columns out of `rows`, one by one."""
    keep = k_core(rows[USER], rows[ITEM], args.min_core, None if args.core_passes == "until-stable" else int(args.core_passes))
    if not keep.any():
        raise InputError(f"{args.input[0]}: the {args.min_core}-core is empty: none of {len(keep):,} usable rows has a user and an item with "
                         f"{args.min_core} ratings each; give a complete file or lower --min-core")
    for split, flag in ((1, "--validation-input"), (2, "--test-input")):
        if lost := np.count_nonzero(~keep[rows["given"] == split]):
            print(f"{lost:,} rows of {flag} are outside of the {args.min_core}-core and left out: --min-core 0 keeps them")
    kept = {}
    for name in (USER, ITEM):
        codes = rows.pop(name)[keep]
        there = np.bincount(codes, minlength=len(ids[name])) > 0
        kept[f"{name}_id"], ids[name] = np.cumsum(there, dtype=np.int32)[codes], ids[name][there].insert(0, UNKNOWN)
    order = np.lexsort((kept["item_id"], kept["user_id"], rows[TIMESTAMP][keep]))
    kept, keep = {name: kept.pop(name)[order] for name in [*kept]}, np.flatnonzero(keep)[order]
    kept |= {name: rows.pop(name)[keep] for name in [*rows]}
    return pd.DataFrame({name: v for name, v in kept.items() if name not in OWN_TEXT or not np.isnan(v).all()}, copy=False), ids


def split_rows(args: argparse.Namespace, rows: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Split of every row, in the order of `clean`: 0 train, 1 validation, 2 test. Rows of the user's own files keep theirs."""
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
        cuts = [np.append(times[round(len(free) * (1 - f)) :][:1], np.inf)[0] for f in (test_fraction + validation_fraction, test_fraction)]
        split[free] = np.repeat(np.arange(3, dtype=np.int8), np.diff([0, *np.searchsorted(times, cuts), len(free)]))  # rows are in the order of time
    else:
        split[free] = split_by_rank(args, rows[["user_id", "label", TIMESTAMP]].iloc[free], test_fraction, validation_fraction, rng)
    for code, wanted in ((0, True), (1, args.validation_fraction > 0), (2, args.test_fraction > 0)):
        if wanted and not (split == code).any():
            raise InputError(f"--split {args.split} leaves no {SPLITS[code]} rows among {len(rows):,}; choose another --split or larger fractions")
    return split


def split_by_rank(args, rows, test_fraction, validation_fraction, rng) -> np.ndarray:
    """A share of each group's rows in a random order. random: of all rows; stratified: of each label; per-user: of each user,
    rounding up or down by chance; leave-one-out: a user's last row is test, the one before validation."""
    groups = {"random": np.zeros(len(rows), np.int8), "stratified": rows["label"].to_numpy()}.get(args.split, rows["user_id"].to_numpy())
    keys, size = [rng.permutation(len(rows))], np.bincount(groups)[groups]
    if args.split == "leave-one-out":
        keys.append(-rows[TIMESTAMP].fillna(0).to_numpy())  # the random order decides between equal times, and where there are none
        test, held = int(test_fraction > 0), int(test_fraction > 0) + int(validation_fraction > 0)
    else:
        rounding = rng.random(groups.max(initial=0) + 1)[groups] if args.split == "per-user" else 0.5
        test, held = (np.floor(size * fraction + rounding) for fraction in (test_fraction, test_fraction + validation_fraction))
    held = np.minimum(held, size - 1)  # everybody keeps a training row
    rank = rank_within(groups, keys)
    return (rank < held) + (rank < np.minimum(test, held)).astype(np.int8)


def rank_within(groups: np.ndarray, keys: Sequence[np.ndarray]) -> np.ndarray:
    """0-based rank of each row inside its group when the group is sorted by `keys` (last key first, as in np.lexsort)."""
    order = np.lexsort((*keys, groups))
    new, rank = np.append(True, np.diff(groups[order]) != 0), np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    return rank


# ------------------------------------------------------------------------------------------- point-in-time features
class History:
    """What earlier *counted* rows (training) tell of every key. Blocks of rows come in the order of their moments; rows of one moment share a block."""
    def __init__(self, size: int, timed: bool = False) -> None:
        self.count, self.totals = np.zeros(size, np.int32), {}
        self.last, self.first = (np.full(size if timed else 0, np.nan) for _ in range(2))

    def see(self, key: np.ndarray, moment: np.ndarray, counted: np.ndarray) -> dict[str, np.ndarray]:
        """The next block: what each row [n] knows of its key, `review_count` int32 and, where timed, moments `last` and `first`, NaN where there is none."""
        self.order = np.lexsort((moment, key))
        key, moment, counted = (of_rows[self.order] for of_rows in (key, moment, counted))
        above, self.counted = np.cumsum(counted) - counted, self.order[counted]  # a row knows of the counted ones those from number begin to end - 1
        new, later = (np.append(True, by[1:] != by[:-1]) for by in (key, moment))
        begin, end = (np.maximum.accumulate(np.where(at, above, 0)) for at in (new, new | later))
        bottom = np.flatnonzero(np.append(new[1:], True))  # the last row of every key
        self.of_rows, self.of_keys = (key, begin, end), (key[bottom], begin[bottom], above[bottom] + counted[bottom])
        known = {"review_count": self.sum(self.count, np.ones(len(self.counted))).astype(np.int32)}
        if len(self.last):
            when, known["last"], known["first"] = np.append(moment[counted], np.nan), *np.empty((2, len(key)))  # number -1 is none
            ends = [(np.where(end > begin, when[end - 1], self.last[key]), np.fmin(self.first[key], when[np.where(end > begin, begin, -1)]))
                    for key, begin, end in (self.of_rows, self.of_keys)]  # fmt: skip
            (known["last"][self.order], known["first"][self.order]), (self.last[self.of_keys[0]], self.first[self.of_keys[0]]) = ends
        return known

    def sum(self, sums: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Sum, float64 [rows], of the counted rows' values that each row of the block knows; the block's are added to the sums of the keys [size]."""
        running, found = np.append(0.0, np.cumsum(values, dtype=np.float64)), np.empty(len(self.order))
        found[self.order], sums[self.of_keys[0]] = (sums[key] + running[end] - running[begin] for key, begin, end in (self.of_rows, self.of_keys))
        return found

    @np.errstate(invalid="ignore")
    def average(self, name: str, values: np.ndarray) -> np.ndarray:
        """Mean, float64 [rows], of what each row knows of the values, NaN where nothing (NaN is a missing value); they then count. Once for each `see`."""
        sums, numbers = self.totals.setdefault(name, (np.zeros(len(self.count)), np.zeros(len(self.count), np.int32)))
        values = values[self.counted]
        return self.sum(sums, np.nan_to_num(values)) / self.sum(numbers, ~np.isnan(values))

    @np.errstate(invalid="ignore")
    def state(self) -> dict[str, np.ndarray]:
        """What is known of every key in the end, [size]."""
        moments = {"last_timestamp": self.last, "first_timestamp": self.first} if len(self.last) else {}
        return {"review_count": self.count, **{f"avg_{name}": sums / numbers for name, (sums, numbers) in self.totals.items()}, **moments}


def moments_of(rows: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """When each row happened, for "earlier". Without times: training rows in a random order, all other rows after them."""
    return rows[TIMESTAMP].to_numpy() if rows[TIMESTAMP].notna().all() else np.where(rows["split"] == 0, rng.permutation(len(rows)), len(rows))


def add_history(rows: pd.DataFrame, moment: np.ndarray, past: dict[str, History]) -> None:
    """Add the user_* and item_* columns of a block of rows, whose training rows then belong to the past. A residual is a rating minus what was expected of
    it: for the user's average, the item's damped average so far, and the other way round. It tells a generous user from one who bought good things."""
    train, values, expected = (rows["split"] == 0).to_numpy(), {n: rows[n].to_numpy() for n in (RATING, *OWN_TEXT) if n in rows}, {}
    past["all"].see(np.zeros(len(rows), np.int8), moment, train)
    overall = past["all"].average(RATING, values[RATING])
    for who in (USER, ITEM):
        known = past[who].see(rows[f"{who}_id"].to_numpy(), moment, train)
        known |= {f"avg_{name}": past[who].average(name, of_rows) for name, of_rows in values.items()}
        expected[who] = damped(known["avg_rating"], known["review_count"], overall)
        rows[f"{who}_days_since_last"] = ((moment - known.pop("last", np.nan)) / DAY_S).astype(np.float32)
        if who == ITEM:
            rows["item_age_days"] = ((moment - known.pop("first", np.nan)) / DAY_S).astype(np.float32)
        for name in [name for name in STATE if name in known]:
            rows[f"{who}_{name}"] = known[name].astype(np.int32 if name == "review_count" else np.float32)
    for who, other in ((ITEM, USER), (USER, ITEM)):
        residual = values[RATING] - expected[other]
        rows[f"{who}_avg_residual"] = past[who].average("residual", residual).astype(np.float32)
    rows["user_residual"] = residual.astype(np.float32)


def encoded(features: str, rows: pd.DataFrame, moment: np.ndarray, tables: dict[str, pd.DataFrame], vocabularies: dict) -> Iterator[pd.DataFrame]:
    """The rows with their features and crosses, about BLOCK at a time, all of a moment together (all at once if not in the order of their moments).
    After the last, the tables and the specification of cross_user_category, by cross id, hold the state at the end of training."""
    pairs, leak, timed = vocabularies["crosses"]["cross_user_category"], {}, rows[TIMESTAMP].notna().all()
    past = {"all": History(1), "pair": History(pairs["size"]), **{who: History(len(table), timed) for who, table in tables.items()}}
    for who, table in tables.items() if features == "as-published" else ():  # averages and counts over all rows, the row itself and the test rows included
        leak[who] = rows.groupby(f"{who}_id")[[n for n in (RATING, *OWN_TEXT) if n in rows]].mean().reindex(range(len(table))).add_prefix(f"{who}_avg_")
        leak[who][f"{who}_review_count"] = np.bincount(rows[f"{who}_id"], minlength=len(table))
    edges = np.unique([0, *(np.searchsorted(moment, moment[BLOCK - 1 :: BLOCK], "right") if (moment[1:] >= moment[:-1]).all() else ()), len(rows)])
    for at in map(slice, edges[:-1], edges[1:]):
        block = rows[at].reset_index(drop=True).assign(**encode_moments(rows[TIMESTAMP].to_numpy()[at], vocabularies))
        add_history(block, moment[at], past)
        for who, of_all in leak.items():
            block = block.assign(**of_all.take(block[f"{who}_id"]).astype(block.dtypes[[*of_all]]).set_axis(block.index))
        codes = field_codes(block, tables, vocabularies)
        block = block.assign(**{name: cross_ids(codes[spec["left"]], codes[spec["right"]], spec) for name, spec in vocabularies["crosses"].items()})
        counted = ((block["cross_user_category"] > 0) & (block["split"] == 0)).to_numpy()  # pairs outside the vocabulary have no history of their own
        block["user_category_review_count"] = past["pair"].see(block["cross_user_category"].to_numpy(), moment[at], counted)["review_count"]
        block["user_category_avg_residual"] = past["pair"].average("residual", block.pop("user_residual").to_numpy()).astype(np.float32)
        yield block.drop(columns=["given", *(OWN_TEXT if features == "honest" else ())], errors="ignore")
    for who, table in tables.items():
        tables[who] = table.assign(**{f"{who}_{name}": of_key for name, of_key in past[who].state().items()} | dict(leak.get(who, {})))
    state = past["pair"].state()
    pairs["state"] = dict(zip(PAIR_STATE, (state["review_count"], state["avg_residual"].astype(np.float32))))


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
    """A numeric feature before normalisation: of the frame or, what no rating changes (a price), of a table. Averages are damped, counts log(1 + n)."""
    who = name.split("_")[0]
    values = (frame[name].to_numpy() if name in frame else tables[who][name].to_numpy()[frame[f"{who}_id"]]).astype(np.float64)
    if spec["prior"] is None:
        return np.log1p(values) if name.endswith("_count") else values
    count = frame[f"{name.split('_avg_')[0]}_review_count"].to_numpy(np.float64)
    return damped(values, np.where(np.isnan(values), 0, count), spec["prior"])


def normalise(values: np.ndarray, spec: dict) -> np.ndarray:
    """float32 around 0, missing is 0. Averages and counts are standardised: they go on growing after training, and how far an average is from usual
    would be lost in its rank. All else becomes its training quantile, as in Cheng et al. 2016 (section 4.1), spread to -1..1."""
    if spec["knots"]:
        return np.nan_to_num(2 * np.interp(values, spec["knots"], spec["levels"]) - 1).astype(np.float32)
    return np.nan_to_num((values - spec["mean"]) / spec["deviation"]).astype(np.float32)


def fit_numeric(name: str, rows: pd.DataFrame, tables: dict[str, pd.DataFrame], averages: dict[str, float]) -> dict:
    """Specification of a numeric feature from training rows: prior of its damping; mean and deviation, or quantile knots and levels 0..1. field=value stays."""
    spec = {"prior": averages.get(name.split("_avg_")[-1]) if "_avg_" in name else None, "mean": 0.0, "deviation": 1.0, "knots": [], "levels": []}
    values = numeric_values(name, rows, tables, spec)
    values = values[~np.isnan(values)]
    if not len(values) or "=" in name:  # what no training row has is 0 for later rows too: the network has not learned what it means
        return spec | ({} if len(values) else {"knots": [0.0], "levels": [0.5]})
    if "_avg_" in name or name.endswith("_count"):
        return spec | {"mean": float(values.mean()), "deviation": max(float(values.std()), 0.1)}  # next to 0 where all are alike
    knots, first, repeats = np.unique(np.quantile(values, np.linspace(0, 1, QUANTILES)), return_index=True, return_counts=True)
    return spec | {"knots": knots.tolist(), "levels": ((first + (repeats - 1) / 2) / (QUANTILES - 1)).tolist()}


def cross_ids(left: np.ndarray, right: np.ndarray, spec: dict) -> np.ndarray:
    """Ids of the crosses left x right (integer arrays that broadcast), 0 where either code is unknown or the pair is not in the vocabulary. Exact crosses
    look the pair up among the sorted training pairs; hashed ones mix its key (the finaliser of splitmix64, Steele et al. 2014), which is stable across
    machines. The id depends on the two codes and the specification alone, so any candidate gets it at any time."""
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


def fit_cross(pairs: Iterable[tuple[np.ndarray, np.ndarray]], right_size: int, share: float = 1.0) -> dict:
    """Specification of a cross from the codes (left, right) of a share of the training rows, in blocks: the exact pairs where they are few, else a hash."""
    keys = np.concatenate([(left.astype(np.int64) * right_size + right)[(left > 0) & (right > 0)] for left, right in pairs])
    keys.sort()
    keys = keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]  # np.unique collects them in a hash table, which takes longer and more memory
    if (pairs := round(len(keys) / share)) <= EXACT_PAIRS:
        return {"right_size": int(right_size), "kind": "exact", "size": len(keys) + 1, "keys": keys}
    return {"right_size": int(right_size), "kind": "hash", "size": 1 + min(1 << (4 * pairs - 1).bit_length(), 1 << 26)}


def field_codes(frame: pd.DataFrame, tables: dict[str, pd.DataFrame], vocabularies: dict) -> dict[str, np.ndarray]:
    """Codes of every categorical field for rows with user_id, item_id, the CONTEXT codes and the users' and items' state: the one way in which training rows,
    test rows and catalogue candidates get their features. An id without training rows becomes 0 (its attributes stay): nothing was learned for it."""
    codes = {name: frame[name].to_numpy() for name in CONTEXT}
    for who, table in tables.items():
        ids = frame[f"{who}_id"].to_numpy()
        codes |= {name: table[name].to_numpy()[ids] for name in vocabularies["categories"][who]}
        codes[f"{who}_id"] = np.where(table["train_count"].to_numpy()[ids] > 0, ids, 0)
        if (average := f"{who}_avg_rating") in vocabularies["bucket_edges"] and average in frame:
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
        if (who := name.removesuffix("_id")) in self.tables:
            return self.tables[who][who].where(self.tables[who]["train_count"] > 0, UNKNOWN).to_numpy()
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


def fit_features(features: str, wanted: dict, rows: pd.DataFrame, moment: np.ndarray, tables: dict[str, pd.DataFrame], vocabularies: dict) -> None:
    """Fit on the training rows every cross, wanted as name: (left, right), and every scale, quantile and bucket that the vocabularies lack; give the tables
    their state. Of more than SAMPLE training rows some stand for all in scales, quantiles, buckets and crosses of buckets."""
    train, crosses, numeric, edges = rows["split"] == 0, *(vocabularies[name] for name in ("crosses", "numeric", "bucket_edges"))
    sizes = {f"{who}_id": len(table) for who, table in tables.items()} | {f"{who}_rating_bucket": RATING_BUCKETS + 1 for who in tables}
    sizes |= {name: len(vocabularies[name]) for name in (*CONTEXT, *vocabularies["categories"][USER], *vocabularies["categories"][ITEM])}

    def fit(name: str) -> None:
        """A cross of the pairs of all training rows, or of the sample where the rating buckets of a row must be known."""
        left, right = wanted[name]
        thin = (rows[at : at + BLOCK].loc[lambda block: block["split"] == 0] for at in range(0, len(rows), BLOCK))
        blocks = (block.assign(**encode_moments(block[TIMESTAMP].to_numpy(), vocabularies)) for block in thin)
        blocks, share = ([sample], len(sample) / train.sum()) if "rating_bucket" in left + right else (blocks, 1.0)
        codes = (field_codes(block, tables, vocabularies) for block in blocks)
        crosses[name] = {"left": left, "right": right, **fit_cross(((of_block[left], of_block[right]) for of_block in codes), sizes[right], share)}

    for sides in wanted.values():
        if unknown := {*sides} - sizes.keys():
            raise InputError(f"--cross {':'.join(sides)}: {min(unknown)} is not a field of this data set; it has {', '.join(sorted(sizes))}")
    wanted = {name: sorted(sides, key=lambda field: not field.startswith("user_")) for name, sides in wanted.items()}  # serving goes from the user to the items
    fit("cross_user_category")
    blocks = encoded(features, rows, moment, tables, vocabularies)  # with that cross alone: the others are fitted below
    sample = pd.concat([block.take(np.flatnonzero(block["split"] == 0)[:: train.sum() // SAMPLE + 1]) for block in blocks])
    averages = {name: float(rows.loc[train, name].mean()) for name in (RATING, *OWN_TEXT) if name in rows} | {"residual": 0.0}
    names = [*NUMERIC, *(n for n in OWN_TEXT if n in sample), *(n for names in vocabularies["attributes"].values() for n in names)]
    for name in sorted(names, key=PAIR_STATE.__contains__):  # the order of the network's inputs: those of pairs are last
        numeric[name] = numeric.get(name) or fit_numeric(name, sample, tables, averages)
    for name in ("user_avg_rating", "item_avg_rating"):
        levels = np.quantile(numeric_values(name, sample, tables, numeric[name]), np.arange(1, RATING_BUCKETS) / RATING_BUCKETS)
        edges[name] = edges.get(name) or np.unique(levels).tolist()
    for name in wanted.keys() - crosses.keys():
        fit(name)
    vocabularies["crosses"] = {name: crosses[name] for name in wanted}


def build(args: argparse.Namespace, rows: pd.DataFrame, ids: dict[str, pd.Index], attributes: Attributes) -> tuple[np.ndarray, dict[str, pd.DataFrame], dict]:
    """Split the clean rows and fit every feature: (moments of the rows, tables of users and items, vocabularies)."""
    rng = np.random.default_rng(args.seed)
    rows["label"] = (rows[RATING] >= args.positive_threshold).astype(np.int8)
    rows["split"] = split_rows(args, rows, rng).astype(np.int8)
    moment, train = moments_of(rows, rng), rows["split"] == 0
    products = attributes.items.reindex(columns=[*dict.fromkeys([*TEXTS, *attributes.items])]).astype(dict.fromkeys(TEXTS, object))
    vocabularies, tables = {"categories": {USER: [], ITEM: []}, **{name: {} for name in ("attributes", "groups", "numeric", "bucket_edges", "crosses")}}, {}
    for who, table in ((USER, attributes.users), (ITEM, products)):
        leaky = [name for name in table if name.startswith("site_") and args.features == "honest"]  # a site-wide figure contains what is to be predicted
        known = {who: ids[who], "train_count": np.bincount(rows.loc[train, f"{who}_id"], minlength=len(ids[who]))}
        known |= dict.fromkeys([f"{who}_{name}" for name in (*STATE, "last_timestamp", "first_timestamp")], np.nan)
        tables[who] = add_attributes(who, pd.DataFrame(known), table.drop(columns=leaky), vocabularies)
    days = np.unique(rows.loc[train, TIMESTAMP].dropna() // DAY_S)
    vocabularies |= {name: [UNKNOWN, *np.unique(values).tolist()] for name, values in moment_values(days * DAY_S).items()}
    further = {f"cross_{left}_{right}": (left, right) for left, right in (cross.split(":") for cross in args.cross)}
    fit_features(args.features, CROSSES | further, rows, moment, tables, vocabularies)
    return moment, tables, vocabularies


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


def write_reviews(path: Path, blocks: Iterable[pd.DataFrame], counts: Sequence[int]) -> None:
    """The rows in zstd parquet, by split (of so many rows); no row group spans two splits, so a split can be read alone. A row waits in memory until those
    of earlier splits are written. The split is written by its name, the time a whole number or nothing, lengths of texts also where there are no texts."""
    writer, waiting, left = None, [[], [], []], np.array(counts)
    for block in (several[at : at + BLOCK] for several in blocks for at in range(0, len(several), BLOCK)):
        names, times = pd.Categorical.from_codes(block["split"], SPLITS), block[TIMESTAMP].astype("Int64")
        missing = dict.fromkeys([name for name in NUMERIC if name not in block], np.float32("nan"))
        table = pa.Table.from_pandas(block.assign(**missing, split=names, timestamp=times), preserve_index=False).replace_schema_metadata()
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        for code, tables in enumerate(waiting):
            tables.append(table.filter(pa.array(block["split"] == code)))
            rows = pa.concat_tables(tables)
            if len(rows) and not left[:code].any() and (2 * len(rows) >= BLOCK or len(rows) == left[code]):
                writer.write_table(rows, row_group_size=-(-len(rows) // max(round(len(rows) / BLOCK), 1)))
                left[code] -= len(rows)
                tables.clear()
    writer.close()


def convert(tree: Any, kind: type, function: Callable) -> Any:
    """The same nested dicts with `function` applied to every leaf of a kind."""
    if isinstance(tree, dict):
        return {key: convert(value, kind, function) for key, value in tree.items()}
    return function(tree) if isinstance(tree, kind) else tree


def write_index(path: Path, index: dict) -> None:
    """dataset.json: the index with size and SHA-256 of the other files, which are still under temporary names like its own."""
    index["files"] = {name: describe_file(path.with_name(path.name.replace(INDEX, name))) for name in (*DATA, REJECTED, EXPLORATION)}
    index["fingerprint"] = hashlib.sha256("".join(index["files"][name]["sha256"] for name in DATA).encode()).hexdigest()[:16]
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
            return [lambda begin=begin: self.reviews.take(places[begin : begin + BLOCK]) for begin in range(0, len(places), BLOCK)]
        file = pq.ParquetFile(self.folder / REVIEWS)
        ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
        return [lambda group=group: file.read_row_group(group).to_pandas() for group in np.flatnonzero(of_split[ends - 1])]

    def rows(self, split: str) -> pd.DataFrame:
        return pd.concat([block() for block in self.blocks(split)], ignore_index=True)


def load_dataset(folder: Path) -> Dataset:
    """Read and verify a folder written by this script. Raises InputError with the line to run where anything is amiss."""
    name, again = INDEX, f"; make it anew: python amazon_preprocessing.py --output-dir {folder}"  # name: of the file that an error is about
    try:
        index = json.loads((folder / INDEX).read_bytes())
        missing = {*INDEX_KEYS} - index.keys() | {*DATA} - index["files"].keys()
        require(not missing, f"it does not tell {', '.join(sorted(missing))}")
        for name, told in index["files"].items():
            require(describe_file(folder / name) == told, f"it is not the file that {INDEX} names")
        columns = {REVIEWS: [*THIN]} if ROW_BYTES * sum(index["rows"].values()) > MEMORY / 2 else {}
        frames = [pq.read_table(folder / (name := table), columns=columns.get(table)).to_pandas() for table in (REVIEWS, USERS, ITEMS)]
        vocabularies = BuiltinsOnly(io.BytesIO((folder / (name := VOCABULARIES)).read_bytes())).load()
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
    require("title" in ds.items and all(len(e) < RATING_BUCKETS and (np.diff(e) > 0).all() for e in words["bucket_edges"].values()), "no titles or buckets")
    for name, spec in words["crosses"].items():
        even = spec["kind"] == "hash" or (spec["kind"] == "exact" and spec["size"] == len(spec["keys"]) + 1 and (np.diff(spec["keys"]) > 0).all())
        require(even and all(len(values) == spec["size"] for values in spec.get("state", {}).values()), f"{name} is not a cross")
    for name, spec in words["numeric"].items():
        numbers = [*spec["knots"], *spec["levels"], spec["mean"], spec["deviation"], 1 / spec["deviation"]]
        require(np.isfinite(numbers).all() and len(spec["knots"]) == len(spec["levels"]) and (np.diff(spec["knots"]) > 0).all(), f"{name} has no scale")
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
    rows = ds.reviews[["user_id", "item_id", RATING, TIMESTAMP, "label"]].assign(split=2 * (ds.reviews["split"] == "test"))  # no texts
    moment, train = moments_of(rows, np.random.default_rng(ds.index["seed"])), rows[rows["split"] == 0]
    vocabularies = ds.vocabularies | {"crosses": {}, "numeric": {name: spec for name, spec in ds.vocabularies["numeric"].items() if name not in PAIR_STATE}}
    tables = {who: table.assign(train_count=np.bincount(train[f"{who}_id"], minlength=len(table))) for who, table in ds.tables.items()}
    wanted = {name: (spec["left"], spec["right"]) for name, spec in ds.vocabularies["crosses"].items()}
    fit_features(ds.index["features"], wanted, rows, moment, tables, vocabularies)
    reviews = pd.concat(encoded(ds.index["features"], rows, moment, tables, vocabularies), ignore_index=True).drop(columns="split")
    index = ds.index | {"last_training_timestamp": None if rows[TIMESTAMP].isna().any() else int(train[TIMESTAMP].max())}
    return Dataset(ds.folder, index, ds.reviews.assign(**reviews), *tables.values(), vocabularies)


# ---------------------------------------------------------------------------------------------------------- the report
def plot_exploration(path: Path, name: str, rows: pd.DataFrame, users: pd.DataFrame, items: pd.DataFrame) -> None:
    """Six views of the kept rows: ratings, their number per user and item, activity, likes over time, cold share."""
    import matplotlib.pyplot as plt  # here, because importing it costs a second that no later stage should pay
    import seaborn as sns

    plt.switch_backend("agg")
    sns.set_theme(style="whitegrid", palette="colorblind")
    margins = {"left": 0.055, "right": 0.98, "bottom": 0.07, "top": 0.9, "wspace": 0.2, "hspace": 0.3}
    figure, ((ratings, of_users, of_items), (activity, likes, cold)) = plt.subplots(2, 3, figsize=(16, 9), gridspec_kw=margins)
    figure.suptitle(f"{name}: {len(rows):,} ratings, {len(users) - 1:,} users, {len(items) - 1:,} items", fontsize=15, parse_math=False)
    split, shares = rows["split"].to_numpy(), {}
    share = rows[RATING].value_counts(normalize=True, bins=10 if (many := rows[RATING].nunique() > 30) else None).sort_index().mul(100)
    share.rename(lambda rating: f"{'≤' * many}{getattr(rating, 'right', rating):.3g}").plot.bar(ax=ratings, title="Ratings", ylabel="% of rows", rot=0)
    for axis, who, table in ((of_users, "user", users), (of_items, "item", items)):
        counts = np.sort(np.bincount(rows[f"{who}_id"])[1:])[::-1]
        axis.loglog(np.arange(1, len(counts) + 1), counts)
        axis.set(title=f"Ratings per {who}: median {np.median(counts):g}, most {counts[0]:,}", xlabel=f"{who}s, most rated first", ylabel="ratings")
        new = (table["train_count"] == 0).to_numpy()[rows[f"{who}_id"]]
        shares[f"new {who}s"] = 100 * np.bincount(split[new], minlength=len(SPLITS)) / np.bincount(split, minlength=len(SPLITS)).clip(1)
    if split.any():  # not all rows are training rows
        pd.DataFrame(shares, SPLITS)[1:].plot.bar(ax=cold, rot=0, title="Rows of users and items without a training row", xlabel="split", ylabel="% of rows")
    for axis in (ratings, cold):
        axis.margins(y=0.12)
        axis.set_ylim(0, max(axis.get_ylim()[1], 1))  # not below 0 where all bars are 0
        for bars in axis.containers:
            axis.bar_label(bars, fmt="%.1f")
    if rows[TIMESTAMP].isna().any():
        for axis in (activity, likes):
            axis.set_axis_off()
        activity.text(1.1, 0.5, "no timestamps, so nothing over time", ha="center", va="center")  # in the middle of both
    else:
        day = (rows[TIMESTAMP].to_numpy() // DAY_S).astype(np.int32)
        quarter = pd.to_datetime(np.arange(day.min(), day.max() + 1), unit="D").to_period("Q")  # of every day
        counts = [np.bincount(day[of] - day.min(), minlength=len(quarter)) for of in (*(split == code for code in range(len(SPLITS))), rows["label"] == 1)]
        by_quarter = pd.DataFrame(dict(zip((*SPLITS, "liked"), counts)), quarter).groupby(level=0).sum()
        of_splits, number = by_quarter[[*SPLITS]], by_quarter[[*SPLITS]].sum(axis=1)
        of_splits.plot.area(ax=activity, title="Activity over time", xlabel="quarter", ylabel="rows per quarter", lw=0)
        liked = (by_quarter["liked"] / number).where(number >= 30).mul(100)
        liked.plot(ax=likes, title="Likes over time (quarters with 30 rows or more)", xlabel="quarter", ylabel="% of rows liked", ylim=(0, 100))
        likes.tick_params(axis="x", which="both", labelsize=9)
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    args, started = parse_args(argv), time.perf_counter()
    name = obtain(args)
    columns, ids, rejected = read_ratings(args)
    rows, ids = clean(args, columns, ids)
    attributes = read_attributes(args, ids)
    rejected = pd.concat([rejected, pd.DataFrame(attributes.rejected, columns=rejected.columns)])
    moment, tables, vocabularies = build(args, rows, ids, attributes)
    times, train = rows[TIMESTAMP], rows["split"] == 0
    index = {  # what the later stages and a reader need to know about the data set; write_index adds the files
        "name": name,
        **{f"{who}s": len(ids[who]) - 1 for who in (USER, ITEM)},
        "rows": {split: int((rows["split"] == code).sum()) for code, split in enumerate(SPLITS)},
        "positive_rate": float(rows["label"].mean()),
        "rating_range": [float(rows.loc[train, RATING].min()), float(rows.loc[train, RATING].max())],  # predictions are clipped to it
        **{key: getattr(args, key) for key in ("positive_threshold", "split", "features", "seed", "min_core")},
        "last_training_timestamp": None if times.isna().any() else int(times[train].max()),
        "rejected": {str(reason): int(count) for reason, count in rejected["reason"].value_counts().items()},
        "arguments": {key: [str(v) for v in value] if isinstance(value, list) else str(value) for key, value in vars(args).items()},
    }
    writers = {  # in this order: when all rows are encoded, tables and vocabularies hold the state at the end of training
        REVIEWS: lambda path: write_reviews(path, encoded(args.features, rows, moment, tables, vocabularies), [*index["rows"].values()]),
        USERS: lambda path: tables[USER].to_parquet(path, compression="zstd", index=False),
        ITEMS: lambda path: tables[ITEM].to_parquet(path, compression="zstd", index=False),
        VOCABULARIES: lambda path: path.write_bytes(pickle.dumps(convert(vocabularies, np.ndarray, np.ndarray.tolist), protocol=4)),
        REJECTED: lambda path: rejected.groupby("reason", sort=False).head(REJECTED_SHOWN).astype({"file": str}).to_json(path, orient="records", lines=True),
        EXPLORATION: lambda path: plot_exploration(path, name, rows, *tables.values()),
        INDEX: lambda path: write_index(path, index | {"seconds": round(time.perf_counter() - started, 2)}),  # last: it names the others
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
