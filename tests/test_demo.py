"""The demo log: reproducible, in the genuine format, and with the planted structure in it."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pytest

from readers import demo as demo_module
from readers.amazon import read_metadata, read_reviews
from readers.demo import ITEMS, PAIRS, SHARES, USERS, write_demo

FIELDS = ["reviewerID", "asin", "reviewerName", "helpful", "reviewText", "overall", "summary", "unixReviewTime", "reviewTime"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    reviews, metadata = write_demo(folder, 42)
    rows = pa.concat_tables(read_reviews(reviews)).to_pandas()
    good = rows.dropna(subset=["user", "item", "rating", "timestamp"])
    planted = json.loads((folder / "demo_planted.json").read_text())
    return {"reviews": reviews, "metadata": metadata, "rows": rows, "good": good[good.rating.between(1, 5)], "planted": planted}


def test_same_seed_same_bytes_another_seed_other_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module, "USERS", 500)
    names = ("demo_reviews.json.gz", "demo_metadata.json.gz", "demo_planted.json")

    def written(seed):
        write_demo(tmp_path, seed)
        return [(tmp_path / name).read_bytes() for name in names]

    first = written(42)
    assert written(42) == first
    assert all(old != new for old, new in zip(first, written(43)))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_lines_have_the_genuine_format(demo):
    complete = broken = 0
    for line in gzip.decompress(demo["reviews"].read_bytes()).decode().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            broken += 1
            continue
        complete += list(record) == FIELDS
        assert set(record) <= set(FIELDS)
    total = len(demo["rows"])
    assert 1 <= broken <= 0.001 * total
    assert 0.998 * total < complete < total
    assert record["reviewTime"].split(", ")[1] in map(str, range(2000, 2015))
    assert len(record["reviewerID"]) == 14 and len(record["asin"]) == 10


def test_rating_shares(demo):
    shares = demo["good"].rating.value_counts(normalize=True).sort_index()
    assert shares.to_numpy() == pytest.approx(SHARES, abs=0.015)


def test_density_and_tail_after_the_five_core(demo):
    rows = demo["good"].drop_duplicates(["user", "item"])
    size = None
    while size != len(rows):
        size, rows = len(rows), _one_pass(rows)
    per_user, per_item = rows.user.value_counts(), rows.item.value_counts()
    assert 8 < per_user.mean() < 10 and 6 <= per_user.median() <= 7
    assert 25 < per_item.mean() < 40 and per_item.median() < 0.65 * per_item.mean()
    assert per_item.nlargest(len(per_item) // 100).sum() > 0.07 * len(rows)
    assert len(per_user) > 0.5 * USERS and len(per_item) > 0.6 * ITEMS  # the rest stays below five


def _one_pass(rows):
    rows = rows[rows.groupby("user").item.transform("size") >= 5]
    return rows[rows.groupby("item").user.transform("size") >= 5]


def test_re_reviews_growth_and_a_time_split_with_new_users(demo):
    rows = demo["good"].sort_values("timestamp")
    assert 0.004 < rows.duplicated(["user", "item"]).mean() < 0.012
    years = rows.timestamp.astype("datetime64[s]").dt.year.value_counts()
    assert years[2013] > years[2010] > years[2005] > years[2001]
    known, test = rows[: int(0.9 * len(rows))], rows[int(0.9 * len(rows)) :]
    assert 0.15 < (~test.user.isin(known.user)).mean() < 0.5
    assert 0 < (~test.item.isin(known.item)).mean() < 0.1


def test_planted_pairs_are_bought_together_and_named(demo):
    pairs = demo["planted"]["pairs"]
    buyers = demo["good"].groupby("item").user.agg(set).to_dict()
    together = [len(buyers.get(device, set()) & buyers.get(accessory, set())) for device, accessory in pairs]
    shifted = [len(buyers.get(pairs[i - 1][0], set()) & buyers.get(accessory, set())) for i, (_, accessory) in enumerate(pairs)]
    assert len(pairs) == PAIRS and sum(together) > 20 * sum(shifted)
    products = read_metadata(demo["metadata"])[0].to_pandas().set_index("item")
    for device, accessory in pairs:
        brand = products.brand[device]
        assert products.brand[accessory] == brand
        assert products.title[accessory].endswith(" for " + products.title[device].removeprefix(brand + " "))


def test_matching_accessories_are_rated_higher(demo):
    device_of = {accessory: device for device, accessory in demo["planted"]["pairs"]}
    owned = set(zip(demo["good"].user, demo["good"].item))
    rows = demo["good"][demo["good"].item.isin(device_of)]
    fits = np.array([(user, device_of[item]) in owned for user, item in zip(rows.user, rows.item)])
    assert rows.rating[fits].mean() > rows.rating[~fits].mean() + 0.3


def test_planted_taste_and_text_length_show_in_the_log(demo):
    planted, rows = demo["planted"], demo["rows"]
    utility = np.array(planted["reviews"]["utility"])
    fine = rows.index.isin(demo["good"].index)
    assert 0.4 < np.corrcoef(utility[fine], rows.rating[fine])[0, 1] < 0.7  # noise dominates
    users = np.array([user["vector"] for user in planted["users"].values()])
    items = np.array([item["vector"] for item in planted["items"].values()])
    who, what = np.array(planted["reviews"]["user"]), np.array(planted["reviews"]["item"])
    chance = (users[who] * items[np.random.default_rng(0).permutation(what)]).sum(1).mean()
    assert (users[who] * items[what]).sum(1).mean() > chance + 0.15
    words = demo["good"].groupby("rating").word_count.mean()
    assert words[1] > 1.2 * words[5]


def test_metadata_covers_every_item(demo):
    table, rejected = read_metadata(demo["metadata"])
    assert table.num_rows == ITEMS and not rejected
    assert set(demo["rows"].item.dropna()) <= set(table["item"].to_pylist())
    assert table["category"].null_count == 0 and 0 < table["price"].null_count < 0.1 * ITEMS
