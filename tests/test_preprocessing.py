"""Stage 1 against brute force, known counts of real files, and invariants."""

import json
import weakref
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes

import amazon_preprocessing as stage1
from readers import InputError
from tests.conftest import DATA, PLOT_EXPLORATION, needs_data, preprocess, random_log, write_log, write_metadata

pairs = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=120)


@given(pairs, st.integers(1, 4))
def test_k_core_is_the_largest_set_with_k_each(rows, k):
    user, item = np.array(rows).T
    kept = list(rows)
    while True:  # brute force: remove one offending row at a time
        bad = [r for r in kept if sum(u == r[0] for u, _ in kept) < k or sum(i == r[1] for _, i in kept) < k]
        if not bad:
            break
        kept.remove(bad[0])
    assert sorted(kept) == sorted(r for r, keep in zip(rows, stage1.k_core(user, item, k)) if keep)


def test_one_core_pass_is_not_a_fixed_point():
    user, item = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 1])
    assert stage1.k_core(user, item, 2, passes=1).sum() == 4
    chain = np.arange(6)  # user n rates items n and n + 1: every pass peels both ends
    user, item = np.repeat(chain, 2), np.repeat(chain, 2) + np.tile([0, 1], 6)
    assert stage1.k_core(user, item, 2, passes=1).sum() == 10
    assert stage1.k_core(user, item, 2).sum() == 0


history = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans(), st.sampled_from([1.0, 2.0, 5.0, np.nan])), min_size=1, max_size=40)


def remember(key: np.ndarray, moment: np.ndarray, counted: np.ndarray, value: np.ndarray, size: int, blocks: list[np.ndarray]) -> tuple[dict, dict]:
    """What each row knows when the rows come in these blocks, and the state in the end."""
    past, found = stage1.History(size, True), {}
    for block in blocks:
        known = past.see(key[block], moment[block].astype(float), counted[block])
        for name, values in (known | {"avg_x": past.average("x", value[block])}).items():
            found.setdefault(name, np.empty(len(key)))[block] = values
    return found, past.state()


def by_moment(moment: np.ndarray, at: int) -> list[np.ndarray]:
    """Blocks of rows before a moment and from it on, each in any order; without empty ones."""
    return [block for block in (np.flatnonzero(moment < at), np.flatnonzero(moment >= at)) if len(block)]


@given(history, st.integers(0, 6))
def test_rows_know_strictly_earlier_counted_rows_only(rows, at):
    key, moment, counted, value = (np.array(column) for column in zip(*rows))
    found, _ = remember(key, moment, counted, value, 4, by_moment(moment, at))
    for n in range(len(rows)):
        before = [r for r in range(len(rows)) if key[r] == key[n] and moment[r] < moment[n] and counted[r]]
        known = [value[r] for r in before if not np.isnan(value[r])]
        assert found["review_count"][n] == len(before)
        np.testing.assert_allclose(found["avg_x"][n], np.mean(known) if known else np.nan)
        np.testing.assert_equal(found["last"][n], max((moment[r] for r in before), default=np.nan))
        np.testing.assert_equal(found["first"][n], min((moment[r] for r in before), default=np.nan))


@given(history, st.integers(0, 6))
def test_the_state_at_the_end_is_the_group_statistics_of_the_counted_rows(rows, at):
    key, moment, counted, value = (np.array(column) for column in zip(*rows))
    _, found = remember(key, moment, counted, value, 5, by_moment(moment, at))
    for k in range(5):
        here = counted & (key == k)
        assert found["review_count"][k] == here.sum()
        np.testing.assert_allclose(found["avg_x"][k], np.nan if np.isnan(value[here]).all() else np.nanmean(value[here]))
        np.testing.assert_equal(found["last_timestamp"][k], max(moment[here], default=np.nan))
        np.testing.assert_equal(found["first_timestamp"][k], min(moment[here], default=np.nan))


def test_averages_of_short_values_do_not_depend_on_how_many_came_before():
    """Running totals over all keys exceed what float32 can tell apart."""
    key, value = np.repeat(np.arange(1000), 50), np.random.default_rng(0).uniform(0, 5000, 50_000).astype(np.float32)
    _, found = remember(key, np.arange(50_000), np.ones(50_000, bool), value, 1000, [np.arange(50_000)])
    np.testing.assert_allclose(found["avg_x"], value.reshape(1000, 50).mean(axis=1, dtype=float), rtol=1e-9)


codes = st.tuples(st.integers(0, 9), st.integers(0, 9))


@given(st.lists(codes, min_size=1, max_size=60), st.lists(codes, max_size=20))
def test_exact_cross_ids_are_a_dictionary_of_the_training_pairs(train, other):
    left, right = np.array(train).T
    spec = stage1.fit_cross([(left, right)], right_size=10)
    ids = {pair: n + 1 for n, pair in enumerate(sorted({p for p in train if 0 not in p}))}
    a, b = np.array(train + other).T
    assert stage1.cross_ids(a, b, spec).tolist() == [ids.get(pair, 0) for pair in train + other]
    assert spec["size"] == len(ids) + 1


def test_hashed_cross_ids_are_stable_spread_and_do_not_depend_on_company(monkeypatch):
    monkeypatch.setattr(stage1, "EXACT_PAIRS", 10)
    left, right = (c.ravel() + 1 for c in np.meshgrid(np.arange(100), np.arange(100)))
    spec = stage1.fit_cross([(left, right)], right_size=101)
    ids = stage1.cross_ids(left, right, spec)
    assert spec["kind"] == "hash" and ids.min() >= 1 and ids.max() < spec["size"]
    expected = 10_000 * (1 - 10_000 / spec["size"] / 2)  # distinct buckets of a uniform hash, to second order
    assert abs(len(np.unique(ids)) - expected) < 150
    assert [int(i) for i in stage1.cross_ids(left[:3], right[:3], spec)] == ids[:3].tolist()
    z = 7 * 101 + 9  # splitmix64's finaliser in Python integers
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> shift)) * factor % 2**64
    assert stage1.cross_ids(np.array([7]), np.array([9]), spec)[0] == (z ^ (z >> 31)) % (spec["size"] - 1) + 1
    assert stage1.cross_ids(np.array([0, 5]), np.array([5, 0]), spec).tolist() == [0, 0]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=200))  # as wide as the columns: no two values are 1e-310 apart
def test_quantile_normalisation_is_monotone_and_uniform(values):
    frame = pd.DataFrame({"item_age_days": values})
    spec = stage1.fit_numeric("item_age_days", frame, {}, {})
    level = stage1.normalise(np.sort(values), spec)
    assert (np.diff(level) >= 0).all() and level.min() >= -1 and level.max() <= 1
    assert stage1.normalise(np.array([np.nan]), spec) == 0


def test_quantile_normalisation_of_distinct_values_is_the_rank():
    values = np.random.default_rng(0).permutation(1001).astype(float)
    spec = stage1.fit_numeric("item_age_days", pd.DataFrame({"item_age_days": values}), {}, {})
    np.testing.assert_allclose(stage1.normalise(values, spec), 2 * values / 1000 - 1, atol=1e-6)


@given(st.lists(st.integers(631_152_000, 1_900_000_000), min_size=1, max_size=30))
def test_moments_agree_with_datetime(times):
    found = stage1.moment_values(np.array(times))
    when = [datetime.fromtimestamp(t, UTC) for t in times]
    assert found["year"].tolist() == [t.year for t in when]
    assert found["weekday"].tolist() == [t.weekday() for t in when]
    assert found["period"].tolist() == [(t.month + 2) // 3 for t in when]


def splits(split, log, test=0.2, validation=0.1, seed=0):
    rows = pd.DataFrame({"user_id": log["user"] + 1, "timestamp": log["timestamp"].astype(float), "label": (log["rating"] >= 4).astype(int), "given": -1})
    args = SimpleNamespace(split=split, test_fraction=test, validation_fraction=validation, test_input=None, validation_input=None)
    return rows, stage1.split_rows(args, rows, np.random.default_rng(seed))


def test_a_time_split_cuts_at_two_moments():
    rows, split = splits("time", random_log().sort_values("timestamp", ignore_index=True))  # as `clean` leaves them
    times = [rows.loc[split == code, "timestamp"] for code in range(3)]
    assert times[0].max() < times[1].min() and times[1].max() < times[2].min()
    assert abs((split == 2).mean() - 0.2) < 0.01 and abs((split == 1).mean() - 0.1) < 0.01


def test_a_row_at_the_moment_of_a_cut_falls_after_it():
    log = pd.DataFrame({"user": range(20), "timestamp": [*range(1, 14), 14, 14, 15, 16, 16, 17, 18], "rating": 5.0})
    assert splits("time", log)[1].tolist() == [0] * 13 + [1] * 3 + [2] * 4  # the cuts are the moments of rows 14 and 16


def test_a_per_user_split_takes_the_fractions_within_each_user():
    rows, split = splits("per-user", random_log())
    for _, mine in pd.Series(split).groupby(rows["user_id"]):
        assert abs((mine == 2).sum() - 0.2 * len(mine)) < 1 and (mine == 0).any()
    assert abs((split == 2).mean() - 0.2) < 0.02


def test_a_stratified_split_keeps_the_share_of_likes():
    rows, split = splits("stratified", random_log())
    for code in range(3):
        assert abs(rows.loc[split == code, "label"].mean() - rows["label"].mean()) < 1e-3


def test_leave_one_out_takes_each_users_last_rows():
    rows, split = splits("leave-one-out", random_log())
    for _, mine in rows.assign(split=split).groupby("user_id"):
        if len(mine) >= 3:
            assert (mine["split"] == 2).sum() == 1 and (mine["split"] == 1).sum() == 1
            last, before = (mine.loc[mine["split"] == code, "timestamp"].iloc[0] for code in (2, 1))
            assert mine["timestamp"].max() == last and mine.loc[mine["split"] == 0, "timestamp"].max() <= before <= last


def test_everybody_keeps_a_training_row():
    log = pd.DataFrame({"user": [0, 1, 1, 2, 2, 2], "timestamp": [1, 1, 2, 1, 2, 3], "rating": 5.0})
    assert splits("leave-one-out", log)[1].tolist() == [0, 0, 2, 0, 1, 2]
    log = pd.DataFrame({"user": np.repeat(np.arange(90), np.arange(90) % 3 + 1), "timestamp": 1, "rating": 5.0})
    rows, split = splits("per-user", log, test=0.6, validation=0.35)
    assert set(rows.loc[split == 0, "user_id"]) == set(range(1, 91)) and (split == 0).sum() < 100


@pytest.mark.parametrize("split", ["random", "per-user", "stratified"])
def test_a_seed_is_used(split):
    log = random_log()
    assert (splits(split, log, seed=1)[1] == splits(split, log, seed=1)[1]).all()
    assert (splits(split, log, seed=1)[1] != splits(split, log, seed=2)[1]).any()


def test_the_order_of_lines_changes_nothing(tmp_path):
    log = random_log()
    for name in "ab":
        (tmp_path / name).mkdir()
    one, other = preprocess(tmp_path / "a", log), preprocess(tmp_path / "b", log.sample(frac=1, random_state=1))
    assert one.index["fingerprint"] == other.index["fingerprint"]


def test_rows_know_what_brute_force_knows(pipeline):
    """The artifact's columns themselves, for a hundred rows of every split, from the written rows alone."""
    _, ds, _ = pipeline
    rows, train = ds.reviews, ds.reviews[ds.reviews["split"] == "train"]
    for row in rows.groupby("split", observed=True).sample(100, random_state=0).itertuples():
        for who in ("user", "item"):
            before = train[(train[f"{who}_id"] == getattr(row, f"{who}_id")) & (train["timestamp"] < row.timestamp)]
            assert getattr(row, f"{who}_review_count") == len(before)
            np.testing.assert_allclose(getattr(row, f"{who}_avg_rating"), before["rating"].mean() if len(before) else np.nan, rtol=1e-6)
            last = (row.timestamp - before["timestamp"].max()) / 86_400 if len(before) else np.nan
            np.testing.assert_allclose(getattr(row, f"{who}_days_since_last"), last)


def test_residuals_and_pairs_are_what_brute_force_knows(tmp_path):
    """From the written ratings alone; a row's expected rating is the other side's average so far, as if five ratings of the mean so far came first."""
    metadata = write_metadata(tmp_path / "meta.json", 40)
    ds = preprocess(tmp_path, random_log(500, 40, 40), "--metadata", str(metadata), "--split", "random", "--min-core", "0")
    rows, rating, when = ds.reviews, ds.reviews["rating"].to_numpy(), ds.reviews["timestamp"].to_numpy()
    train, category = (rows["split"] == "train").to_numpy(), ds.items["category"].to_numpy()[rows["item_id"]]
    before = [train & (when < moment) for moment in when]
    mine = {who: [rows[f"{who}_id"].to_numpy() == n for n in rows[f"{who}_id"]] for who in ("user", "item")}
    same = {**mine, "user_category": [user & (category == c) & (c > 0) for user, c in zip(mine["user"], category)]}
    residual = {}
    for who, other in (("user", "item"), ("item", "user")):
        mean = [rating[known].mean() if known.any() else np.nan for known in before]
        residual[who] = rating - [(rating[m & k].sum() + 5 * prior) / ((m & k).sum() + 5) for m, k, prior in zip(mine[other], before, mean)]
    residual["user_category"] = residual["user"]
    for name, masks in same.items():
        known = [m & k for m, k in zip(masks, before)]
        found = [residual[name][k & ~np.isnan(residual[name])] for k in known]
        np.testing.assert_array_equal(rows[f"{name}_review_count"], [k.sum() for k in known])
        np.testing.assert_allclose(rows[f"{name}_avg_residual"], [f.mean() if len(f) else np.nan for f in found], rtol=1e-5, atol=1e-6)
    assert rows["user_category_review_count"].max() > 3 and (category == 0).any()


@pytest.mark.parametrize("who", ["user", "item"])
def test_ids_without_training_rows_have_code_0(tmp_path, who):
    ds = preprocess(tmp_path, random_log(400, 150, 150), "--min-core", "0")
    ids = ds.reviews[f"{who}_id"]
    trained = ids.isin(ids[ds.reviews["split"] == "train"])
    assert 5 < (~trained).sum() < 100
    assert stage1.field_codes(ds.reviews, ds.tables, ds.vocabularies)[f"{who}_id"].tolist() == ids.where(trained, 0).tolist()


def test_the_column_that_fills_another_is_chosen_on_trained_ids():
    """Over all ids, the others' noise correlates with the rank better than the popularity does."""
    rng, trained = np.random.default_rng(0), np.arange(60) < 30
    popularity = rng.normal(0, 1, 60)
    rank = np.where(trained, 3 * popularity + 1, 1e6 * rng.random(60))
    numbers = pd.DataFrame({"noise": np.where(trained, rng.normal(0, 1, 60), rank), "popularity": popularity, "rank": rank})
    numbers.loc[50:, "rank"] = np.nan
    np.testing.assert_allclose(stage1.impute(numbers, trained).loc[50:, "rank"], 3 * popularity[50:] + 1)


def test_unusable_lines_are_told_with_their_line(tmp_path):
    log = random_log()
    path = write_log(tmp_path / "log.json", log)
    lines = path.read_text().splitlines()
    good = lines[10]
    spoiled = (('"reviewerID"', '"who"'), ('"overall": ', '"overall": 9'), ('"unixReviewTime": 1', '"unixReviewTime": -1'), ('"overall"', '"stars"'))
    broken = ["{not json", *(good.replace(*change) for change in spoiled)]
    path.write_text("\n".join(broken + lines) + "\n")
    stage1.main(["--dataset", "amazon-reviews", "--input", str(path), "--output-dir", str(tmp_path / "out")])
    rejected = pd.read_json(tmp_path / "out" / "rejected_rows.jsonl", lines=True).set_index("line")["reason"]
    assert rejected.index.tolist() == [1, 2, 3, 4, 5]
    for line, word in zip(range(2, 6), ("user", "outside", "timestamp", "rating")):
        assert word in rejected[line]


def test_the_latest_of_repeated_pairs_stays(tmp_path):
    log = random_log()
    again = log.iloc[:50].assign(timestamp=log["timestamp"].max() + 86_400, rating=1.0)
    ds = preprocess(tmp_path, pd.concat([again, log]))
    raw = ds.users["user"].to_numpy()[ds.reviews["user_id"]] + ds.items["item"].to_numpy()[ds.reviews["item_id"]]
    assert len(set(raw)) == len(raw)
    kept = ds.reviews["rating"].groupby(raw).first()
    for row in again.itertuples():
        assert kept.get(f"U{row.user:05d}B{row.item:09d}", 1.0) == 1.0
    assert any("duplicate" in reason for reason in ds.index["rejected"])


def test_rows_of_own_files_win_over_later_duplicates(tmp_path):
    log = random_log(1000, 50, 50)
    validation = log.sample(200, random_state=0).assign(timestamp=log["timestamp"].max() + 86_400, rating=2.0)
    test = log.sample(200, random_state=1).assign(rating=1.0)
    test.loc[test.index[:100], "timestamp"] = log["timestamp"].min() - 86_400  # before all others
    parts, expected = {"train": log, "validation": validation, "test": test}, {}
    for name, part in parts.items():
        write_log(tmp_path / f"{name}.json", part)
        expected |= {(f"U{r.user:05d}", f"B{r.item:09d}"): (name, r.rating) for r in part.itertuples()}
    assert 0 < sum(name == "validation" for name, _ in expected.values()) < 200  # some are in all three files
    train, *own = (str(tmp_path / f"{name}.json") for name in parts)
    stage1.main(["--dataset", "amazon-reviews", "--input", train, "--validation-input", own[0], "--test-input", own[1], "--min-core", "0",
                 "--output-dir", str(tmp_path / "out")])
    ds = stage1.load_dataset(tmp_path / "out")
    raw = zip(ds.users["user"].to_numpy()[ds.reviews["user_id"]], ds.items["item"].to_numpy()[ds.reviews["item_id"]])
    assert dict(zip(raw, zip(ds.reviews["split"].astype(str), ds.reviews["rating"]))) == expected


def test_a_log_without_times_says_which_splits_it_can_have(tmp_path):
    log = random_log()
    log.to_csv(tmp_path / "log.csv", index=False)
    flags = ["--input", str(tmp_path / "log.csv"), "--columns", "user=user,item=item,rating=rating", "--output-dir", str(tmp_path / "out")]
    with pytest.raises(InputError, match="random, per-user, stratified"):
        stage1.main(flags)
    stage1.main([*flags, "--split", "random"])
    ds = stage1.load_dataset(tmp_path / "out")
    rows = ds.reviews
    assert rows["timestamp"].isna().all() and (rows["year"] == 0).all()
    train = rows[rows["split"] == "train"]
    held = rows[rows["split"] != "train"]  # they see all training rows; training rows see part of them, in a random order
    np.testing.assert_array_equal(held["user_review_count"], ds.users["train_count"].to_numpy()[held["user_id"]])
    counts = train.groupby("user_id")["user_review_count"].apply(sorted)
    assert all(c == list(range(len(c))) for c in counts)


def test_times_that_cannot_be_read_are_not_taken_for_none(tmp_path):
    log = random_log().assign(time="10/11/2014")
    log.to_csv(tmp_path / "log.csv", index=False)
    columns = "user=user,item=item,rating=rating,timestamp=time"
    with pytest.raises(InputError, match=r"log.csv: no time of --columns can be read: .*ISO dates"):
        stage1.main(["--input", str(tmp_path / "log.csv"), "--columns", columns, "--split", "random", "--output-dir", str(tmp_path / "out")])


def test_own_test_rows_outside_of_the_core_are_told(tmp_path, capsys):
    log = random_log()
    test = log.iloc[:8].assign(user=range(90_000, 90_008))  # users of one row each
    paths = [str(write_log(tmp_path / f"{n}.json", part)) for n, part in (("base", log), ("test", pd.concat([test, log[-9:]])))]
    stage1.main(["--dataset", "amazon-reviews", "--input", paths[0], "--test-input", paths[1], "--min-core", "2", "--output-dir", str(tmp_path / "out")])
    assert "8 rows of --test-input are outside of the 2-core and left out" in capsys.readouterr().out
    assert stage1.load_dataset(tmp_path / "out").index["rows"]["test"] == 9


def test_own_test_rows_stay_test_rows(tmp_path):
    log = random_log()
    test = log.sample(300, random_state=0)
    paths = [write_log(tmp_path / f"{n}.json", part) for n, part in (("base", log.drop(test.index)), ("test", test))]
    stage1.main(["--dataset", "amazon-reviews", "--input", str(paths[0]), "--test-input", str(paths[1]), "--min-core", "1",
                 "--split", "random", "--output-dir", str(tmp_path / "out")])
    ds = stage1.load_dataset(tmp_path / "out")
    mine = ds.reviews[ds.reviews["split"] == "test"]
    found = set(zip(ds.users["user"].to_numpy()[mine["user_id"]], ds.items["item"].to_numpy()[mine["item_id"]]))
    assert found == {(f"U{r.user:05d}", f"B{r.item:09d}") for r in test.itertuples()}
    assert ds.index["rows"]["validation"] > 0


@needs_data
@pytest.mark.parametrize(("flags", "counts"), [
    (["--dataset", "amazon-reviews", "--input", "amazon/2014/reviews_Musical_Instruments_5.json.gz"], (10_261, 1_429, 900)),
    (["--dataset", "amazon-ratings", "--input", "amazon/ratings/Magazine_Subscriptions_2018.csv"], (2_027, 294, 132)),
])
def test_real_files_keep_the_known_numbers(tmp_path, flags, counts):
    flags = [str(DATA / f) if f.startswith("amazon/") else f for f in flags]
    stage1.main([*flags, "--output-dir", str(tmp_path)])
    ds = stage1.load_dataset(tmp_path)
    assert (len(ds.reviews), ds.index["users"], ds.index["items"]) == counts


@needs_data
def test_an_empty_core_is_an_error(tmp_path):
    path = DATA / "amazon/ratings/ratings_Electronics_first_rows_2014.csv"
    with pytest.raises(InputError, match="5-core is empty"):
        stage1.main(["--dataset", "amazon-ratings", "--input", str(path), "--output-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [[], ["--split", "random", "--features", "as-published"], ["--validation-fraction", "0"]], ids=str)
def test_rows_that_do_not_fit_into_memory_are_read_by_blocks(tmp_path, monkeypatch, flags):
    monkeypatch.setattr(stage1, "BLOCK", 100)
    whole = preprocess(tmp_path, random_log(1500, 60, 50), *flags)
    monkeypatch.setattr(stage1, "MEMORY", stage1.ROW_BYTES * len(whole.reviews))
    thin = stage1.load_dataset(whole.folder)
    assert thin.streamed and not whole.streamed and {*thin.reviews} == {*stage1.THIN}
    pd.testing.assert_frame_equal(thin.reviews, whole.reviews[[*thin.reviews]])
    for split, rows in whole.index["rows"].items():
        expected = whole.reviews[whole.reviews["split"] == split]
        for ds in (thin, whole):
            blocks = [block() for block in ds.blocks(split)]
            assert sum(map(len, blocks)) == rows and all(0 < len(block) <= 150 for block in blocks)  # about 100, rows of a moment together
            assert len(blocks) <= rows / 50 + 1  # none is much smaller, but for the last
            if rows:
                assert ds.rows(split).astype({"split": str}).equals(expected.reset_index(drop=True).astype({"split": str}))
    with pytest.raises(stage1.InputError, match="do not fit into the memory"):
        stage1.with_validation(thin)


@pytest.mark.parametrize("flags", [[], ["--split", "random", "--features", "as-published"], ["--split", "per-user", "--cross", "user_rating_bucket:category"]],
                         ids=str)  # fmt: skip
def test_no_feature_depends_on_the_size_of_the_blocks(tmp_path, monkeypatch, flags):
    log, found = random_log(2000, 80, 60), []
    log.loc[log.index[:100], "timestamp"] = 1_300_000_000  # more rows of one moment than a block has
    for size in (10**9, 37):
        monkeypatch.setattr(stage1, "BLOCK", size)
        (tmp_path / str(size)).mkdir()
        found.append(preprocess(tmp_path / str(size), log, "--metadata", str(write_metadata(tmp_path / "meta.json", 60)), *flags))
    whole, blocks = found
    assert pq.ParquetFile(blocks.folder / stage1.REVIEWS).num_row_groups > 40
    for of_whole, of_blocks in ((whole.reviews, blocks.reviews), *zip(whole.tables.values(), blocks.tables.values())):
        exact = [name for name in of_whole if "residual" not in name]  # a float is added up in another order
        pd.testing.assert_frame_equal(of_blocks[exact], of_whole[exact])
        pd.testing.assert_frame_equal(of_blocks, of_whole, rtol=1e-6, atol=1e-6)
    for name, spec in whole.vocabularies["crosses"].items():
        np.testing.assert_array_equal(blocks.vocabularies["crosses"][name]["keys"], spec["keys"])


def test_what_no_training_row_has_is_0_for_later_rows_too(tmp_path):
    """In training nobody has rated before; a network that never saw such a number must not meet it when it is served."""
    log = pd.DataFrame({"user": np.repeat(np.arange(40), 2), "item": np.arange(80) % 16, "rating": 5.0, "words": 3})
    log["timestamp"] = 1_300_000_000 + 86_400 * 400 * (np.arange(80) % 2) + log["user"]
    ds = preprocess(tmp_path, log, "--split", "leave-one-out", "--min-core", "0", "--validation-fraction", "0")
    rows, spec = ds.reviews, ds.vocabularies["numeric"]["user_days_since_last"]
    assert rows.loc[rows["split"] == "train", "user_days_since_last"].isna().all() and (rows["user_days_since_last"] == 400).any()
    values = stage1.numeric_values("user_days_since_last", rows, ds.tables, spec)
    assert (stage1.normalise(values, spec) == 0).all()


@pytest.mark.parametrize(("rows", "ratings", "bars"), [(3, 5, 3), (20, 5, 5), (40, 40, 10)])  # of many ratings ten ranges
def test_the_picture_of_a_small_log_is_drawn(tmp_path, monkeypatch, rows, ratings, bars):
    monkeypatch.setattr(stage1, "plot_exploration", PLOT_EXPLORATION)
    drawn, label = [], Axes.bar_label
    monkeypatch.setattr(Axes, "bar_label", lambda axis, container, **how: drawn.append(len(container)) or label(axis, container, **how))
    (tmp_path / "a$b_$.csv").write_text("".join(f"u{n % 4},i{n},{n % ratings + 1},{1_300_000_000 + 9_000_000 * n}\n" for n in range(rows)))
    flags = ["--input", str(tmp_path / "a$b_$.csv"), "--columns", "user=0,item=1,rating=2,timestamp=3", "--min-core", "0", "--output-dir", str(tmp_path)]
    stage1.main([*flags, "--test-fraction", "0.3", "--validation-fraction", "0.3"])
    assert (tmp_path / stage1.EXPLORATION).read_bytes().startswith(b"\x89PNG") and drawn[0] == bars


def test_a_split_of_no_rows_is_an_error_of_one_line(tmp_path):
    path = str(write_log(tmp_path / "log.json", random_log(300, 30, 30)))
    flags = ["--dataset", "amazon-reviews", "--input", path, "--test-input", path, "--min-core", "0", "--output-dir", str(tmp_path / "out")]
    with pytest.raises(InputError, match="leaves no train rows"):
        stage1.main([*flags, "--split", "per-user"])


@pytest.mark.parametrize("sample", [10**9, 500])
def test_crosses_with_buckets_know_the_pairs_of_training_rows_or_of_a_sample(tmp_path, monkeypatch, sample):
    monkeypatch.setattr(stage1, "SAMPLE", sample)
    ds = preprocess(tmp_path, random_log(2000, 120, 60), "--cross", "user_id:item_rating_bucket", "user_rating_bucket:month")
    codes, train_rows = stage1.field_codes(ds.reviews, ds.tables, ds.vocabularies), (ds.reviews["split"] == "train").to_numpy()
    for name in ("cross_user_id_item_rating_bucket", "cross_user_rating_bucket_month", "cross_rating_buckets"):
        spec = ds.vocabularies["crosses"][name]
        left, right = (codes[spec[side]].astype(np.int64) for side in ("left", "right"))
        of_training = np.unique((left * spec["right_size"] + right)[train_rows & (left > 0) & (right > 0)])
        assert np.isin(spec["keys"], of_training).all() and 0 < spec["size"] - 1 <= len(of_training)
        assert sample == 500 or len(of_training) == spec["size"] - 1


def test_a_cross_with_buckets_of_more_pairs_than_a_sample_shows_is_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(stage1, "SAMPLE", 500)
    monkeypatch.setattr(stage1, "EXACT_PAIRS", 600)
    ds = preprocess(tmp_path, random_log(2000, 120, 60), "--cross", "user_id:item_rating_bucket")
    spec, codes = ds.vocabularies["crosses"]["cross_user_id_item_rating_bucket"], stage1.field_codes(ds.reviews, ds.tables, ds.vocabularies)
    assert spec["kind"] == "hash" and ds.vocabularies["crosses"]["cross_rating_buckets"]["kind"] == "exact"
    assert ((ds.reviews["cross_user_id_item_rating_bucket"] > 0) == ((codes["user_id"] > 0) & (codes["item_rating_bucket"] > 0))).all()
    pairs = {*zip(codes["user_id"], codes["item_rating_bucket"])}
    assert spec["size"] > len(pairs)


def test_texts_of_dropped_rows_alone_make_no_column(tmp_path):
    log = random_log(600, 30, 30)
    path = write_log(tmp_path / "log.json", log)
    lines = [line.replace('"reviewText"', '"nothing"') for line in path.read_text().splitlines()]
    stranger = json.dumps({"reviewerID": "U-once", "asin": "B-once", "overall": 5.0, "unixReviewTime": 1_300_000_000, "reviewText": "good"})
    path.write_text("\n".join([*lines, stranger]) + "\n")
    stage1.main(["--dataset", "amazon-reviews", "--input", str(path), "--features", "as-published", "--output-dir", str(tmp_path / "out")])
    ds = stage1.load_dataset(tmp_path / "out")
    assert not {*stage1.OWN_TEXT} & {*ds.reviews} and not {*stage1.OWN_TEXT} & {*ds.vocabularies["numeric"]}


def test_blocks_are_given_up_when_they_are_written(tmp_path, monkeypatch):
    """Features of all rows are never held at once."""
    seen, alive, encoded = [], [], stage1.encoded

    def watched(*args):
        for block in encoded(*args):
            seen.append(weakref.ref(block))
            alive.append(sum(one() is not None for one in seen))
            yield block
            del block

    monkeypatch.setattr(stage1, "BLOCK", 100)
    monkeypatch.setattr(stage1, "encoded", watched)
    preprocess(tmp_path, random_log(2500, 80, 60), "--split", "random")
    assert len(seen) > 40 and max(alive) <= 3


def test_scales_of_a_sample_are_close_to_those_of_all_rows(tmp_path, monkeypatch):
    log, specs = random_log(3000, 100, 60), []
    for sample in (10**9, 1000):
        monkeypatch.setattr(stage1, "SAMPLE", sample)
        (tmp_path / str(sample)).mkdir()
        specs.append(preprocess(tmp_path / str(sample), log).vocabularies)
    (whole, edges), (sampled, few_edges) = ((words["numeric"], words["bucket_edges"]) for words in specs)
    assert whole != sampled
    for name, spec in whole.items():
        assert abs(sampled[name]["mean"] - spec["mean"]) < 0.1 * spec["deviation"] and sampled[name]["prior"] == spec["prior"]
        if spec["knots"]:
            grid = np.linspace(spec["knots"][0], spec["knots"][-1], 50)
            np.testing.assert_allclose(stage1.normalise(grid, sampled[name]), stage1.normalise(grid, spec), atol=0.15)
    for name in edges:
        np.testing.assert_allclose(few_edges[name], edges[name], atol=0.1)
    of_all, of_sample = (words["crosses"] for words in specs)  # those without buckets are of all rows
    for name in stage1.CROSSES.keys() - {"cross_rating_buckets"}:
        np.testing.assert_array_equal(of_sample[name]["keys"], of_all[name]["keys"])


def test_a_damaged_block_of_a_large_file_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(stage1, "BLOCK", 100)
    ds = preprocess(tmp_path, random_log(1500, 60, 50))
    rows = ds.reviews.copy()
    rows.loc[777, "cross_user_item"] = 10**6
    rows.to_parquet(ds.folder / stage1.REVIEWS, row_group_size=100, index=False)
    index = json.loads((ds.folder / stage1.INDEX).read_text())
    index["files"][stage1.REVIEWS] = stage1.describe_file(ds.folder / stage1.REVIEWS)
    (ds.folder / stage1.INDEX).write_text(json.dumps(index))
    monkeypatch.setattr(stage1, "MEMORY", 1)
    with pytest.raises(stage1.InputError, match="cross_user_item holds codes outside"):
        stage1.load_dataset(ds.folder)
