"""A generated Amazon log with the shape of Electronics 5-core 2014, for benchmarks of scale.

    python benchmarks/electronics_shape.py --output /tmp/electronics              # 1.5 GB of JSON lines, 0.5 GB as gzip
    python benchmarks/electronics_shape.py --output /tmp/small --scale 0.01
    python benchmarks/electronics_shape.py --output /tmp/large --scale 26 --ratings-only    # 43.9 million ratings, 1.7 GB of CSV

Writes  FOLDER/reviews_Electronics_shape_5.json.gz   one JSON object per line, fields and order of the 2014 release
        FOLDER/meta_Electronics_shape.json.gz        one Python literal per line, as in 2014: title, brand, categories, price
    or  FOLDER/ratings_Electronics_shape.csv         user,item,rating,timestamp, as the ratings-only files of 2014

At --scale 1 the file has exactly the published counts: 1,689,188 reviews, 192,403 users, 63,001 items, no user-item pair
twice, every user and item at least 5 times: its 5-core is itself. Long tails, rating shares, text lengths and growth
over time resemble the original; who rates what, and how, follows latent taste, so a model has something to learn.
Nobody wrote these texts and nobody bought these products: figures of quality on this file mean nothing.
"""

import argparse
import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from tqdm import tqdm

# ----------------------------------------------------------------------------------------------------------------------
REVIEWS, USERS, ITEMS, CORE = 1_689_188, 192_403, 63_001, 5
USER_TAIL, ITEM_TAIL = 1.15, 1.5  # sigma of a lognormal: medians near 7 and 12, means 8.8 and 26.8
MOST_PER_USER, MOST_PER_ITEM = 430, 4_900
RATING_SHARES = (0.06, 0.05, 0.08, 0.21, 0.60)  # of 1 to 5 stars
FIRST_DAY, LAST_DAY = date(1999, 6, 13), date(2014, 7, 23)
GROWTH = 6.0  # reviews per day grow by exp(GROWTH) over the whole time: half of them in the last two years
CATEGORIES, BRANDS, TASTE_DIMENSIONS = 100, 700, 4
FAVOURITE_SHARE = 0.5  # of a user's reviews in a favourite category
POOL_WORDS, WORDS_MEDIAN, WORDS_TAIL = 1_500_000, 83, 0.9  # texts are slices of one pool; about 130 words on average
LINES_PER_WRITE = 20_000
SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnprstv" for vowel in "aeio"]
ENDINGS = ["", "", "", "n", "r", "s", "l", "ck", "ng", "st"]
MARKS = ['\\"ok\\"', "caf\\u00e9", "5\\/5", "end.\\n\\nAlso,", "A\\tB", "&amp;", "<br />"]  # already escaped for JSON
# ----------------------------------------------------------------------------------------------------------------------


@dataclass
class Log:
    """Arrays [reviews], sorted by item and time as the original is."""

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    day: np.ndarray  # since 1970-01-01


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--scale", type=float, default=1.0, help="share of reviews, users and items (default: 1)")
    parser.add_argument("--ratings-only", action="store_true", help="no texts and no metadata")
    parser.add_argument("--seed", type=int, default=42, help="(default: 42)")
    args = parser.parse_args(argv)
    if not 0.001 <= args.scale <= 30:
        parser.error("--scale must lie between 0.001 and 30")
    return args


# ------------------------------------------------------------------------------------------------------ who rates what


def draw_degrees(count: int, total: int, tail: float, most: int, rng: np.random.Generator) -> np.ndarray:
    """`count` long-tailed numbers >= CORE that sum to `total`, the largest near `most`."""
    weight = rng.lognormal(0, tail, count)
    extra = total - CORE * count
    for _ in range(20):  # cutting the largest raises the others
        weight = np.minimum(weight / weight.sum(), 0.98 * (most - CORE) / extra)
    return CORE + rng.multinomial(extra, weight / weight.sum())


def draw_pairs(n_users: int, total: int, item_category: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """user [total] and item [total], no pair twice, about half of a user's rows in two favourite categories."""
    n_items = len(item_category)
    user = np.repeat(np.arange(n_users), draw_degrees(n_users, total, USER_TAIL, min(MOST_PER_USER, n_items // 4), rng))
    item = np.repeat(np.arange(n_items), draw_degrees(n_items, total, ITEM_TAIL, min(MOST_PER_ITEM, n_users // 8), rng))
    stub_category = item_category[item]
    favourites = rng.choice(stub_category, (n_users, 2))
    wish = np.where(rng.random(total) < FAVOURITE_SHARE, favourites[user, rng.integers(0, 2, total)], rng.choice(stub_category, total))
    by_wish = np.lexsort((rng.random(total), wish))
    by_category = np.lexsort((rng.random(total), stub_category))
    user, item = user[by_wish], item[by_category]
    return user, separate(user, item, n_items, rng)


def separate(user: np.ndarray, item: np.ndarray, n_items: int, rng: np.random.Generator) -> np.ndarray:
    """`item` with values exchanged between rows until no (user, item) occurs twice; every count stays as it is."""
    item = item.copy()
    for _ in range(1_000):
        pair = user.astype(np.int64) * n_items + item
        order = np.argsort(pair, kind="stable")
        repeated = order[1:][pair[order][1:] == pair[order][:-1]]
        if not len(repeated):
            return item
        rows = np.unique(np.concatenate([repeated, rng.integers(0, len(item), len(repeated))]))
        item[rows] = item[rng.permutation(rows)]
    raise RuntimeError("repeated pairs remain; try another --seed")


def draw_log(scale: float, item_category: np.ndarray, rng: np.random.Generator) -> Log:
    n_users, n_items, total = round(USERS * scale), len(item_category), round(REVIEWS * scale)
    user, item = draw_pairs(n_users, total, item_category, rng)
    taste = (rng.normal(size=(n_users, TASTE_DIMENSIONS))[user] * rng.normal(size=(n_items, TASTE_DIMENSIONS))[item]).sum(1)
    liking = 0.5 * rng.normal(size=n_users)[user] + 0.5 * rng.normal(size=n_items)[item] + 0.25 * taste + rng.normal(size=total)
    rating = 1 + np.searchsorted(np.cumsum(RATING_SHARES)[:-1], quantile_of(liking), side="right")
    moment = quantile_of(0.5 * rng.random(n_users)[user] + 0.35 * rng.random(n_items)[item] + 0.15 * rng.random(total))
    first, last = ((day - date(1970, 1, 1)).days for day in (FIRST_DAY, LAST_DAY))
    day = first + np.round((last - first) * np.log1p(moment * np.expm1(GROWTH)) / GROWTH).astype(np.int64)
    order = np.lexsort((user, day, item))
    return Log(user[order], item[order], rating[order], day[order])


def zipf(values: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """`size` numbers below `values`, number i in proportion to about 1 / (i + 1)."""
    return ((values + 1) ** rng.random(size)).astype(np.int64) - 1


def quantile_of(values: np.ndarray) -> np.ndarray:
    """Rank of each value as a number in [0, 1)."""
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks / len(values)


# ---------------------------------------------------------------------------------------------------------------- text


def make_words(count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` invented words, the first ones the shortest, as frequent words are."""
    syllables = np.sort(1 + rng.binomial(3, 0.6, count))
    return np.array(["".join(rng.choice(SYLLABLES, n)) + end for n, end in zip(syllables, rng.choice(ENDINGS, count))])


def make_pool(rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """One long text of words in Zipf frequencies, and where each word starts: a slice between two starts is a review."""
    vocabulary = make_words(8_000, rng)
    words = vocabulary[zipf(len(vocabulary), POOL_WORDS, rng)].astype(object)
    marked = rng.random(POOL_WORDS)
    words[marked < 0.06] += "."
    words[marked > 0.99] = rng.choice(MARKS, (marked > 0.99).sum())
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    return " ".join(words) + " ", starts


def draw_texts(rating: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """First word and end of each review's slice of the pool; unhappy people write a little more."""
    words = (WORDS_MEDIAN * np.exp(0.06 * (5 - rating)) * rng.lognormal(0, WORDS_TAIL, len(rating))).astype(np.int64)
    words = np.clip(words, 0, 6_000)  # some reviews of the original are empty, too
    first = rng.integers(0, POOL_WORDS - 6_000, len(rating))
    return first, first + words


def make_ids(count: int, prefix: str, width: int) -> np.ndarray:
    """`count` different ids of `width` characters whose order says nothing about their number."""
    digits = np.array(list("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    places = width - len(prefix)
    number = (np.arange(count) * 2_654_435_769_101 + 7_919) % 36**places  # the factor is coprime to 36: no id twice
    columns = [digits[number // 36**place % 36] for place in reversed(range(places))]
    return np.array([prefix + "".join(row) for row in zip(*columns)], dtype=object)


# ------------------------------------------------------------------------------------------------------------- writing


@contextmanager
def write_gzip(path: Path) -> Iterator[gzip.GzipFile]:
    """A gzip file that appears under its name only when complete; the same content gives the same bytes."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as file:
        yield file
    os.replace(part, path)


def write_reviews(path: Path, log: Log, users: np.ndarray, items: np.ndarray, rng: np.random.Generator) -> None:
    pool, starts = make_pool(rng)
    first, end = draw_texts(log.rating, rng)
    days = {day: datetime.fromtimestamp(day * 86_400, UTC).strftime("%m %d, %Y") for day in np.unique(log.day).tolist()}
    helpful = rng.poisson(1.5, len(log.rating))
    columns = (users[log.user], items[log.item], starts[first], starts[end], starts[first + 4], log.rating, log.day, helpful)
    with write_gzip(path) as file, tqdm(total=len(log.rating), desc=path.name, unit=" reviews", unit_scale=True, disable=None) as bar:
        for at in range(0, len(log.rating), LINES_PER_WRITE):
            block = [column[at : at + LINES_PER_WRITE].tolist() for column in columns]
            lines = [
                f'{{"reviewerID": "{user}", "asin": "{item}", "reviewerName": "Reader {user[-4:]}", "helpful": [{votes}, {votes + 1}], '
                f'"reviewText": "{pool[start : stop - 1]}", "overall": {rating}.0, "summary": "{pool[start : title - 1]}", '
                f'"unixReviewTime": {day * 86_400}, "reviewTime": "{days[day]}"}}\n'
                for user, item, start, stop, title, rating, day, votes in zip(*block)
            ]
            file.write("".join(lines).encode("ascii"))
            bar.update(len(lines))


def write_metadata(path: Path, items: np.ndarray, category: np.ndarray, rng: np.random.Generator) -> None:
    """Products as the 2014 release has them: Python literals, a brand for two of three, a price for three of four."""
    words = [word.capitalize() for word in make_words(BRANDS + 4_000, rng)]
    brands = rng.permutation([f"{word} {number}" if number % 3 else word for number, word in enumerate(words[:BRANDS])])
    brand = zipf(BRANDS, len(items), rng)
    price = np.round(rng.lognormal(3.3, 1.1, len(items)), 2)
    known = rng.random((len(items), 2)) < (0.67, 0.75)
    titles = rng.choice(words, (len(items), 5))
    with write_gzip(path) as file:
        for row, asin in enumerate(items):
            product = {"asin": asin, "title": " ".join(titles[row].tolist())}
            product |= {"categories": [["Electronics", f"Category {category[row]:02d}"]]}
            product |= {"brand": str(brands[brand[row]])} if known[row, 0] else {}
            product |= {"price": float(price[row])} if known[row, 1] else {}
            file.write(f"{product}\n".encode())


def write_ratings(path: Path, log: Log, users: np.ndarray, items: np.ndarray) -> None:
    columns = {"user": pa.array(users).take(pa.array(log.user)), "item": pa.array(items).take(pa.array(log.item))}
    table = pa.table(columns | {"rating": log.rating.astype(float), "timestamp": log.day * 86_400})
    part = path.with_name(path.name + ".part")
    pyarrow.csv.write_csv(table, part, pyarrow.csv.WriteOptions(include_header=False, quoting_style="none"))
    os.replace(part, path)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    rng = np.random.default_rng(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    items = make_ids(round(ITEMS * args.scale), "B00", 10)
    category = zipf(CATEGORIES, len(items), rng)  # a few large, many small
    log = draw_log(args.scale, category, rng)
    users = make_ids(log.user.max() + 1, "A1", 14)
    if args.ratings_only:
        write_ratings(args.output / "ratings_Electronics_shape.csv", log, users, items)
        return
    write_metadata(args.output / "meta_Electronics_shape.json.gz", items, category, rng)
    write_reviews(args.output / "reviews_Electronics_shape_5.json.gz", log, users, items, rng)
    per_user, per_item = np.bincount(log.user), np.bincount(log.item)
    print(
        f"{len(log.user):,} reviews, {len(users):,} users ({per_user.min()} to {per_user.max()} each), "
        f"{len(items):,} items ({per_item.min()} to {per_item.max()} each)"
    )


if __name__ == "__main__":
    main()
