"""A made-up log of reviews in the genuine 2014 Amazon format, with known structure planted in it.

Writes demo_reviews.json.gz (JSON lines, grouped by item), demo_metadata.json.gz (2018 format) and demo_planted.json (what was
planted, for tests). The constants below are what real logs are known for; noise dominates, as it does in real ratings.
"""

import gzip
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

USERS, ITEMS, PAIRS = 18_000, 4_600, 400
START, END = 2000.0, 2014.56  # the period of the 2014 release, in years
SHARES = (0.06, 0.05, 0.08, 0.21, 0.60)  # of 1..5 stars in Electronics: ratings are skewed upwards
GROWTH, ITEM_GROWTH = 0.55, 0.12  # per year: volume nearly doubles, new products come more slowly
ACTIVITY = (4.6, 1.0, 1.05)  # reviews per user: a floor plus a lognormal, so the median is below the mean
WINDOW_YEARS = (1.6, 0.8)  # lognormal span of a user's activity: a third of a time split's test rows are of new users
POPULARITY = 1.25  # sigma of log popularity: a long tail of items
RISE_YEARS, DECAY_YEARS = 0.25, 2.5  # an item sells some months after its release, then fades
DIMENSIONS = 8  # of taste; categories and brands are clusters in it
BRAND_SPREAD, ITEM_SPREAD, PAIR_SPREAD = 0.4, 0.4, 0.3  # around the category, the brand, the device
TASTE_CHOICE = 2.2  # people buy what suits them: log odds of buying per unit of taste match
# Standard deviations in the utility of a rating, where noise has 1. Taste is such that somebody who knew every item's place but
# had to infer the user's from the history would gain 0.02 of AUC over a damped user + item mean: it can be found, but not read off.
TASTE, GENEROSITY, QUALITY = 0.7, 0.55, 0.5
AGEING = 0.04  # quality lost per year: newer products set the standard
CRITICAL = (0.25, 0.12)  # share of users who grow critical, and by how much a year
INFLATION = 0.02  # per year: the mean rating of the site drifts up
ACCESSORY, MATCHING, DELAY_DAYS = 0.4, 0.8, 12.0  # a device leads to an accessory, mostly its own, soon after
FIT, MISFIT = 0.5, 0.8  # "fits perfectly" and "does not fit": the latter is complained about more
WORDS, VERBOSITY, COMPLAINT = 3.9, 0.6, 0.08  # log words of a review, spread over users, more for each star below five
REREVIEWS, BROKEN = 0.008, 0.001  # as real files have them

CATEGORIES = {  # name: what its products are called; the first six hold devices that have accessories
    "Cell Phones": ("Phone", "Smartphone"),
    "Camera & Photo": ("Camera", "Camcorder"),
    "Computers & Tablets": ("Tablet", "Notebook"),
    "eBook Readers": ("Reader", "E-Reader"),
    "GPS & Navigation": ("Navigator", "Trail GPS"),
    "Portable Audio": ("Music Player", "Radio"),
    "Headphones": ("Headphones", "Earbuds"),
    "Home Audio": ("Speaker", "Receiver"),
    "Television & Video": ("Television", "Projector"),
    "Storage": ("Flash Drive", "Hard Drive"),
    "Networking": ("Router", "Switch"),
    "Cables & Power": ("Cable", "Charger"),
}
DEVICE_KINDS = 6
ACCESSORIES = ("Case", "Charger", "Screen Protector", "Dock", "Battery", "Sleeve")
BRANDS_PER_CATEGORY = 5
TONES = (  # negative, mixed, positive: who says it depends on the rating, loosely
    "it stopped working after a week|very disappointed with the {0}|the {0} is cheap and flimsy|i had to return it|a waste of money"
    "|it does not fit at all|support never answered|the {0} failed twice|would not buy this again|not as described",
    "it is okay for the price|the {0} could be better|it does the job|the {0} is average|took a while to set up|i expected a bit more"
    "|instructions were hard to follow|some days it is slow|the {0} is a little loud|good enough for travel",
    "works great and looks good|i love the {0}|the {0} is excellent|easy to set up|highly recommended|fits perfectly|great value"
    "|the {0} exceeded my expectations|bought a second one for my wife|it arrived early and works as described",
)
ASPECTS = ("screen", "battery", "sound", "build quality", "size", "button", "cable", "picture", "software", "design", "price", "case")


def write_demo(folder: Path, seed: int) -> tuple[Path, Path]:
    """Write the three files into `folder`, the same bytes for the same seed; returns the paths of reviews and metadata."""
    rng = np.random.default_rng(seed)
    items, users = _items(rng), _users(rng)
    rows = _rate(rng, users, items, *_purchases(rng, users, items))
    users["id"], items["id"] = _names(rng, "A", 13, USERS), _names(rng, "B00", 7, ITEMS)
    items["brand_name"], items["title"] = _titles(rng, items)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "demo_reviews.json.gz", folder / "demo_metadata.json.gz"
    _write(paths[0], gzip.compress("".join(_review_lines(rng, users, items, rows)).encode(), 3, mtime=0))
    _write(paths[1], gzip.compress("".join(_metadata_lines(rng, items)).encode(), 6, mtime=0))
    _write(folder / "demo_planted.json", json.dumps(_planted(users, items, rows)).encode())
    return paths


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _moments(rng: np.random.Generator, size: int, growth: float) -> np.ndarray:
    """Years in START..END, exponentially more of them towards the end."""
    return START + np.log1p(rng.random(size) * np.expm1(growth * (END - START))) / growth


def _items(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Items 0..PAIRS-1 are devices, the next PAIRS are their accessories, in the same order."""
    devices, accessories = slice(0, PAIRS), slice(PAIRS, 2 * PAIRS)
    category = rng.integers(len(CATEGORIES), size=ITEMS)
    category[devices] = category[accessories] = rng.integers(DEVICE_KINDS, size=PAIRS)
    brand = category * BRANDS_PER_CATEGORY + rng.integers(BRANDS_PER_CATEGORY, size=ITEMS)
    brand[accessories] = brand[devices]
    centres = _unit(rng.normal(size=(len(CATEGORIES), DIMENSIONS)))
    brands = np.repeat(centres, BRANDS_PER_CATEGORY, axis=0)
    brands = brands + BRAND_SPREAD * _unit(rng.normal(size=brands.shape))
    vector = _unit(brands[brand] + ITEM_SPREAD * _unit(rng.normal(size=(ITEMS, DIMENSIONS))))
    vector[accessories] = _unit(vector[devices] + PAIR_SPREAD * _unit(rng.normal(size=(PAIRS, DIMENSIONS))))
    released = END - (END - _moments(rng, ITEMS, ITEM_GROWTH)) * 1.1  # the shelves were not empty at START
    released[accessories] = released[devices]
    popularity = POPULARITY * rng.normal(size=ITEMS)
    popularity[accessories] -= 1.0  # most of their sales follow a device
    return {
        "category": category,
        "brand": brand,
        "vector": vector,
        "released": released,
        "popularity": popularity,
        "quality": QUALITY * rng.normal(size=ITEMS),
    }


def _users(rng: np.random.Generator) -> dict[str, np.ndarray]:
    floor, mu, sigma = ACTIVITY
    start = _moments(rng, USERS, GROWTH)
    span = WINDOW_YEARS[0] * np.exp(WINDOW_YEARS[1] * rng.normal(size=USERS))
    end = np.minimum(start + span, END)
    reviews = np.minimum(floor + np.exp(mu + sigma * rng.normal(size=USERS)), 150)
    return {
        "reviews": np.round(reviews * (end - start) / span).astype(int),  # of a window that outlasts the log only a part is seen
        "start": start,
        "end": end,
        "vector": _unit(rng.normal(size=(USERS, DIMENSIONS))),
        "generosity": GENEROSITY * rng.normal(size=USERS),
        "critical": CRITICAL[1] * (rng.random(USERS) < CRITICAL[0]),
        "verbosity": VERBOSITY * rng.normal(size=USERS),
    }


def _sales(age: np.ndarray) -> np.ndarray:
    """An item's rate of sales by its age in years; 0 before its release."""
    sold = np.maximum(age, 0)
    return -np.expm1(-sold / RISE_YEARS) * np.exp(-sold / DECAY_YEARS)


def _purchases(rng: np.random.Generator, users: dict, items: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(user, item, year) of every purchase.

    A race draws choices without replacement in proportion to their weights: the k items with the smallest Exp(1) / weight.
    """
    months = np.arange(START, END + 1 / 6, 1 / 12)
    sold = _sales(months[:, None] - items["released"]).cumsum(0) * np.exp(items["popularity"])
    sold = sold.astype(np.float32)  # [months, ITEMS]
    opening, closing = (np.searchsorted(months, users[edge], "right") - 1 for edge in ("start", "end"))

    def choose(block: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        taste = users["vector"][block].astype(np.float32) @ items["vector"].T.astype(np.float32)
        weight = (sold[closing[block] + 1] - sold[opening[block]]) * np.exp(TASTE_CHOICE * taste)
        with np.errstate(divide="ignore", invalid="ignore"):
            race = noise / weight
        counts = users["reviews"][block]
        first = np.argpartition(race, counts.max(), axis=1)[:, : counts.max()]
        arrival = np.take_along_axis(race, first, 1)
        order = np.argsort(arrival, axis=1, kind="stable")
        first, arrival = np.take_along_axis(first, order, 1), np.take_along_axis(arrival, order, 1)
        taken = (np.arange(counts.max()) < counts[:, None]) & np.isfinite(arrival)
        return np.repeat(block, taken.sum(1)), first[taken]

    blocks = np.array_split(np.arange(USERS), 16)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the noise is drawn here, so that it does not depend on the threads
        chosen = [*pool.map(choose, blocks, (rng.standard_exponential((len(block), ITEMS), np.float32) for block in blocks))]
    user, item = (np.concatenate(part) for part in zip(*chosen))
    fine = items["released"][item] < users["end"][user]
    user, item = user[fine], item[fine]
    return _accessories(rng, user, item, _when(rng, users, items, user, item), items)


def _when(rng: np.random.Generator, users: dict, items: dict, user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """A moment in the user's window, by the item's sales then."""
    first, last = np.maximum(users["start"][user], items["released"][item]), users["end"][user]
    moments = first[:, None] + (last - first)[:, None] * rng.random((len(user), 8))
    weight = np.maximum(_sales(moments - items["released"][item][:, None]), 1e-9)
    return moments[np.arange(len(user)), np.argmin(rng.standard_exponential(moments.shape) / weight, axis=1)]


def _accessories(rng, user, item, year, items):
    """Add what buying a device leads to; a pair of user and item stays unique."""
    device = np.flatnonzero((item < PAIRS) & (rng.random(len(item)) < ACCESSORY))
    kin = np.array([rng.choice(np.flatnonzero(items["category"][:PAIRS] == kind)) for kind in items["category"][item[device]]])
    own = rng.random(len(device)) < MATCHING
    extra = PAIRS + np.where(own, item[device], kin)
    later = year[device] + rng.exponential(DELAY_DAYS, len(device)) / 365.25
    fine = (later < END) & (later > items["released"][extra])
    user = np.concatenate([user, user[device][fine]])
    item = np.concatenate([item, extra[fine]])
    year = np.concatenate([year, later[fine]])
    _, once = np.unique(user * ITEMS + item, return_index=True)
    return user[once], item[once], year[once]


def _fit(user: np.ndarray, item: np.ndarray, year: np.ndarray, items: dict) -> np.ndarray:
    """+FIT for an accessory of a device bought before, -MISFIT where only another device of that kind was, else 0."""
    bought = np.full((USERS, PAIRS), np.inf, np.float32)
    kinds = np.full((USERS, DEVICE_KINDS), np.inf, np.float32)
    device = item < PAIRS
    bought[user[device], item[device]] = year[device]
    np.minimum.at(kinds, (user[device], items["category"][item[device]]), year[device].astype(np.float32))
    accessory = (item >= PAIRS) & (item < 2 * PAIRS)
    fits, other = np.zeros(len(user), bool), np.zeros(len(user), bool)
    fits[accessory] = bought[user[accessory], item[accessory] - PAIRS] <= year[accessory]
    other[accessory] = kinds[user[accessory], items["category"][item[accessory]]] <= year[accessory]
    return np.where(fits, FIT, np.where(other, -MISFIT, 0.0))


def _rate(rng, users, items, user, item, year) -> dict[str, np.ndarray]:
    """Ratings: a utility and noise, cut where the shares come out; then some users review an item again."""
    match = np.einsum("rd,rd->r", users["vector"][user], items["vector"][item])
    utility = TASTE * (match - match.mean()) / match.std() + users["generosity"][user] + items["quality"][item]
    utility += _fit(user, item, year, items) + INFLATION * (year - START)
    utility -= AGEING * (year - items["released"][item]) + users["critical"][user] * (year - users["start"][user])
    noisy = utility + rng.normal(size=len(user))
    rating = 1 + np.searchsorted(np.quantile(noisy, np.cumsum(SHARES)[:-1]), noisy)
    again = np.flatnonzero(rng.random(len(user)) < REREVIEWS)
    changed = np.clip(rating[again] + rng.integers(-1, 2, len(again)), 1, 5)
    later = np.minimum(year[again] + rng.random(len(again)), END)
    rows = {
        "user": np.append(user, user[again]),
        "item": np.append(item, item[again]),
        "day": ((np.append(year, later) - 1970) * 365.25).astype(int),
        "rating": np.append(rating, changed),
        "utility": np.append(utility, utility[again]),
    }
    order = np.lexsort((rows["day"], rows["item"]))  # grouped by item, as the real files are
    return {name: column[order] for name, column in rows.items()}


def _names(rng: np.random.Generator, prefix: str, length: int, size: int) -> list[str]:
    letters = np.array(list("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    names = dict.fromkeys(prefix + "".join(row) for row in letters[rng.integers(36, size=(size + 50, length))])
    return list(names)[:size]


def _titles(rng: np.random.Generator, items: dict) -> tuple[list[str], list[str]]:
    """Brand and title of each item; an accessory names its device."""
    syllables = [a + b for a in "BDKLMNRTVZ" for b in ("a", "e", "i", "o", "u")]
    words = [a + b.lower() + c for a in syllables for b in syllables for c in ("n", "x", "r", "lon", "tec")]
    names = [words[pick] for pick in rng.permutation(len(words))[: len(CATEGORIES) * BRANDS_PER_CATEGORY + ITEMS]]
    letters, digits, kinds = rng.integers(26, size=ITEMS), rng.integers(1, 10, size=ITEMS), rng.integers(2, size=ITEMS)
    brands, titles, products = [], [], []
    for item, brand in enumerate(items["brand"].tolist()):
        kind = list(CATEGORIES.values())[items["category"][item]][kinds[item]]
        products.append(f"{names[-1 - item]} {chr(65 + letters[item])}{digits[item]} {kind}")
        brands.append(names[brand])
        of_device = PAIRS <= item < 2 * PAIRS
        what = f"{ACCESSORIES[item % len(ACCESSORIES)]} for {products[item - PAIRS]}" if of_device else products[item]
        titles.append(f"{names[brand]} {what}")
    return brands, titles


def _texts(rng, users, rows) -> list[str]:
    """Review texts: phrases whose tone leans with the rating, as many as rating and user's verbosity ask for."""
    phrases = [[phrase.format(aspect) for phrase in tone.split("|") for aspect in ASPECTS] for tone in TONES]
    pool = [phrase for tone in phrases for phrase in tone]
    edges = np.cumsum([0, *map(len, phrases)])
    mean = WORDS + COMPLAINT * (5 - rows["rating"]) + users["verbosity"][rows["user"]]
    counts = np.clip(np.exp(mean + 0.5 * rng.normal(size=len(mean))) / 5, 1, 120).astype(int)
    row = np.repeat(np.arange(len(counts)), counts)
    lean = rng.normal((rows["rating"][row] - 3.0) / 2.0, 1.0)
    tone = np.digitize(lean, (-0.4, 0.4))
    picks = (edges[tone] + rng.random(len(row)) * np.diff(edges)[tone]).astype(int).tolist()
    ends = np.cumsum(counts).tolist()
    return [". ".join([pool[pick] for pick in picks[a:b]]).capitalize() + "." for a, b in zip([0, *ends], ends)]


def _review_lines(rng, users, items, rows) -> list[str]:
    """JSON lines of the 2014 format, a few of them with the faults that real files have."""
    seconds = rows["day"] * 86400
    days, day = np.unique(rows["day"], return_inverse=True)
    dates = [f"{date:%m} {date.day}, {date.year}" for date in days.astype("datetime64[D]").tolist()]
    total = np.minimum(rng.geometric(0.4, len(seconds)) - 1, 60)
    helpful = np.stack([rng.binomial(total, 0.7), total], axis=1).tolist()
    texts = _texts(rng, users, rows)
    lines = []
    columns = (rows["user"].tolist(), rows["item"].tolist(), rows["rating"].tolist(), seconds.tolist())
    for user, item, rating, second, date, helped, text in zip(*columns, day.tolist(), helpful, texts):
        lines.append(  # no field needs escaping; json.dumps would take longer than everything else
            f'{{"reviewerID": "{users["id"][user]}", "asin": "{items["id"][item]}", "reviewerName": "Reader {user}", '
            f'"helpful": {helped}, "reviewText": "{text}", "overall": {rating:.1f}, "summary": "{text.split(".", 1)[0]}", '
            f'"unixReviewTime": {second}, "reviewTime": "{dates[date]}"}}\n'
        )
    for row in np.flatnonzero(rng.random(len(lines)) < BROKEN).tolist():
        lines[row] = _break(rng, lines[row])
    return lines


def _break(rng: np.random.Generator, line: str) -> str:
    record = json.loads(line)
    fault = rng.integers(4)
    if fault == 0:
        return line[: len(line) // 2] + "\n"
    if fault == 1:
        record["overall"] = 0.0
    else:
        del record["reviewerID" if fault == 2 else "reviewText"]
    return json.dumps(record) + "\n"


def _metadata_lines(rng, items) -> list[str]:
    lines = []
    for item, asin in enumerate(items["id"]):
        category = list(CATEGORIES)[items["category"][item]]
        price = np.exp(rng.normal(3.6, 0.9)) if rng.random() < 0.95 else None
        record = {
            "category": ["Electronics", category],
            "title": items["title"][item],
            "brand": items["brand_name"][item],
            "main_cat": "All Electronics",
            "price": f"${price:,.2f}" if price else "",
            "asin": asin,
        }
        lines.append(json.dumps(record) + "\n")
    return lines


def _planted(users: dict, items: dict, rows: dict) -> dict:
    """What a test may ask about: pairs, vectors, main effects, and the expected utility (without noise) of each review."""
    ids = items["id"]
    categories = list(CATEGORIES)
    return {
        "pairs": [[ids[device], ids[device + PAIRS]] for device in range(PAIRS)],
        "items": {
            asin: {
                "vector": items["vector"][item].round(4).tolist(),
                "quality": round(float(items["quality"][item]), 4),
                "category": categories[items["category"][item]],
                "brand": items["brand_name"][item],
            }
            for item, asin in enumerate(ids)
        },
        "users": {
            name: {
                "vector": users["vector"][user].round(4).tolist(),
                "generosity": round(float(users["generosity"][user]), 4),
                "critical": round(float(users["critical"][user]), 4),
            }
            for user, name in enumerate(users["id"])
        },
        "reviews": {  # one entry per line of the reviews file; user and item count the entries above
            "user": rows["user"].tolist(),
            "item": rows["item"].tolist(),
            "utility": rows["utility"].round(3).tolist(),
        },
    }
