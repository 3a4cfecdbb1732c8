"""Nothing from the future, nothing from the label: each test would fail on a leak, and the leaky features prove it."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import amazon_preprocessing as stage1
from tests.conftest import preprocess, random_log, train, write_log, write_metadata

OUTCOME = ["rating", "label"]  # what a test row may differ in
FITTED_ON_ALL_TRAINING = ["cross_rating_buckets"]  # bucket edges are quantiles of the training rows, later ones included


def prepared(folder, log: pd.DataFrame, *flags: str) -> stage1.Dataset:
    folder.mkdir(exist_ok=True)
    return preprocess(folder, log, *flags)


def raw_pairs(ds: stage1.Dataset, split: str) -> set[tuple[str, str]]:
    rows = ds.reviews[ds.reviews["split"] == split]
    return set(zip(ds.users["user"].to_numpy()[rows["user_id"]], ds.items["item"].to_numpy()[rows["item_id"]]))


def lines_of(ds: stage1.Dataset, log: pd.DataFrame, split: str) -> np.ndarray:
    """Mask over the log: the lines that became rows of a split."""
    pairs = raw_pairs(ds, split)
    return np.array([(f"U{row.user:05d}", f"B{row.item:09d}") in pairs for row in log.itertuples()])


def differing_columns(one: stage1.Dataset, other: stage1.Dataset, rows: np.ndarray | slice = slice(None)) -> set[str]:
    """Columns of the rows, tables and vocabularies in which two data sets with the same rows in the same order differ."""
    tables, found = [("", one.reviews[rows], other.reviews[rows])], set()
    if isinstance(rows, slice):
        tables += [("users.", one.users, other.users), ("items.", one.items, other.items)]
        words = [stage1.convert(ds.vocabularies, np.ndarray, np.ndarray.tolist) for ds in (one, other)]
        found |= {"vocabularies"} if repr(words[0]) != repr(words[1]) else set()
    for prefix, a, b in tables:
        assert a.shape == b.shape and a.columns.equals(b.columns)
        found |= {prefix + name for name in a if not a[name].equals(b[name])}
    return found


@pytest.mark.parametrize(("split", "held", "features"), [
    *((split, held, "honest") for split in ("time", "random", "leave-one-out") for held in ("test", "validation")),
    *((split, "test", "as-published") for split in ("time", "random")),
])
def test_other_held_out_ratings_change_no_feature_of_any_row(tmp_path, held, split, features):
    """Permuted and turned round (5 for 1), so that their mean and quantiles change too."""
    log, flags = random_log(1200, 60, 50), ["--split", split, "--features", features]
    before = prepared(tmp_path / "before", log, *flags)
    lines = np.flatnonzero(lines_of(before, log, held))
    log.loc[lines, "rating"] = 6 - np.random.default_rng(0).permutation(log.loc[lines, "rating"])
    after = prepared(tmp_path / "after", log, *flags)
    changed = differing_columns(before, after)
    assert set(OUTCOME) <= changed  # the permutation did something
    if features == "honest":
        assert changed == set(OUTCOME)
    else:
        assert {"user_avg_rating", "item_avg_rating"} <= changed


@pytest.mark.parametrize("features", ["honest", "as-published"])
@pytest.mark.parametrize("split", ["time", "random"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_what_happens_at_a_moment_or_later_changes_nothing_until_then(tmp_path, share, split, features):
    """Other ratings and other texts from moment t on: a row at t must not notice, so neither itself nor its equals in time leak."""
    log, flags = random_log(1200, 60, 50), ["--split", split, "--features", features]
    log["timestamp"] -= log["timestamp"] % (5 * 86_400)  # many rows share a moment
    t = int(log["timestamp"].quantile(share, interpolation="lower"))
    assert (log["timestamp"] == t).sum() > 3
    before = prepared(tmp_path / "before", log, *flags)
    later = log["timestamp"] >= t
    log["rating"], log["words"] = log["rating"].where(~later, 6 - log["rating"]), log["words"].where(~later, 41 - log["words"])
    after = prepared(tmp_path / "after", log, *flags)
    changed = differing_columns(before, after, (before.reviews["timestamp"] <= t).to_numpy()) - set(FITTED_ON_ALL_TRAINING)
    state = {f"{who}_{name}" for who in ("user", "item") for name in ("avg_rating", "avg_review_length", "avg_word_count", "avg_residual")}
    if features == "honest":
        assert changed == set(OUTCOME)
        assert state <= differing_columns(before, after)  # rows after t do notice
    else:
        assert changed > {"user_avg_rating", "item_avg_rating", "review_length", "word_count"}


def test_scales_and_vocabularies_are_those_of_the_training_rows(tmp_path):
    """Under a time split counts, ages and years of later rows lie outside: fitted on all rows, each of these would differ."""
    log = random_log(1200, 60, 50)
    ds = prepared(tmp_path, log.assign(timestamp=log["timestamp"] + 150 * 86_400))
    train_rows = ds.reviews[ds.reviews["split"] == "train"]
    years = set(pd.to_datetime(train_rows["timestamp"], unit="s").dt.year)
    assert set(ds.vocabularies["year"][1:]) == years < set(pd.to_datetime(ds.reviews["timestamp"], unit="s").dt.year)
    for name, spec in ds.vocabularies["numeric"].items():
        if spec["prior"] is None and name in train_rows:
            values = stage1.numeric_values(name, train_rows, ds.tables, spec)
            values = values[~np.isnan(values)]
            if spec["knots"]:
                assert (spec["knots"][0], spec["knots"][-1]) == (values.min(), values.max())
            else:
                np.testing.assert_allclose([spec["mean"], spec["deviation"]], [values.mean(), max(values.std(), 0.1)])


def test_scales_of_averages_and_edges_of_buckets_are_those_of_the_training_rows(tmp_path):
    """Averages are damped as if five observations of the training mean came first; of residuals, of zero."""
    log, metadata = random_log(1200, 60, 50), write_metadata(tmp_path / "meta.json", 50)
    ds = prepared(tmp_path, log, "--metadata", str(metadata))
    train_rows, lines = ds.reviews[ds.reviews["split"] == "train"], log[lines_of(ds, log, "train")]
    prior = {"rating": lines["rating"].mean(), "residual": 0.0, "word_count": lines["words"].mean(), "review_length": 5 * lines["words"].mean() - 1}
    names = [name for name in ds.vocabularies["numeric"] if "_avg_" in name or name == "user_category_review_count"]
    assert len(names) == 10
    for name in names:
        who, _, what = name.partition("_avg_")
        values = train_rows[name].to_numpy(float)
        if what:
            count = np.where(np.isnan(values), 0, train_rows[f"{who}_review_count"])
            values = (np.nan_to_num(values) * count + 5 * prior[what]) / (count + 5)
        else:
            values = np.log(1 + values)
        spec = ds.vocabularies["numeric"][name]
        np.testing.assert_allclose([spec["mean"], spec["deviation"]], [values.mean(), values.std()], atol=1e-9)
        if what == "rating":
            np.testing.assert_allclose(ds.vocabularies["bucket_edges"][name], np.unique(np.quantile(values, np.linspace(0.1, 0.9, 9))), rtol=1e-9)


def test_crosses_know_the_pairs_of_training_rows_only(tmp_path):
    metadata = write_metadata(tmp_path / "meta.json", 50)
    ds = prepared(tmp_path, random_log(1200, 60, 50), "--metadata", str(metadata), "--split", "random")
    codes, train_rows = stage1.field_codes(ds.reviews, ds.tables, ds.vocabularies), ds.reviews["split"] == "train"
    new = 0
    for name, fields in stage1.CROSSES.items():
        pairs = list(zip(*(codes[field] for field in fields)))
        known = {pair for pair, trained in zip(pairs, train_rows) if trained and 0 not in pair}
        assert ds.vocabularies["crosses"][name]["size"] == len(known) + 1
        assert (ds.reviews[name] > 0).tolist() == [pair in known for pair in pairs]
        new += sum(0 not in pair and pair not in known for pair in pairs)
    assert new > 100


def test_held_out_texts_reach_nothing(tmp_path):
    log = random_log(1200, 60, 50)
    before = prepared(tmp_path / "before", log)
    held = lines_of(before, log, "validation") | lines_of(before, log, "test")
    log["words"] = log["words"].where(~held, 41 - log["words"])
    assert differing_columns(before, prepared(tmp_path / "after", log)) == set()


def test_the_last_texts_of_users_and_items_reach_no_row(tmp_path):
    """The last review of both its user and its item comes before nobody: its words may end up in the tables at most."""
    log = random_log(1200, 60, 50)
    before = prepared(tmp_path / "before", log, "--split", "random")
    last_of = [log["timestamp"] == log.groupby(who)["timestamp"].transform("max") for who in ("user", "item")]
    both, either = last_of[0] & last_of[1], last_of[0] | last_of[1]
    assert both.sum() >= 3 and (both & lines_of(before, log, "train")).any()
    words, rows = log["words"], np.ones(len(before.reviews), bool)
    log["words"] = words.where(~both, 41 - words)
    after = prepared(tmp_path / "after", log, "--split", "random")
    assert differing_columns(before, after, rows) == set()
    assert {"users.user_avg_word_count", "items.item_avg_word_count"} <= differing_columns(before, after)
    log["words"] = words.where(~either, 41 - words)  # last of one of the two only: the other side sees it, as it may
    assert differing_columns(before, prepared(tmp_path / "third", log, "--split", "random"), rows) <= {
        f"{who}_{name}" for who in ("user", "item") for name in ("avg_review_length", "avg_word_count")}


def test_as_published_averages_contain_the_row_itself(tmp_path):
    log = random_log(1200, 60, 50)
    honest, leaky = (prepared(tmp_path / name, log, "--features", name) for name in ("honest", "as-published"))
    assert not set(stage1.OWN_TEXT) & (set(honest.reviews) | set(honest.vocabularies["numeric"]))
    assert set(stage1.OWN_TEXT) <= set(leaky.reviews) & set(leaky.vocabularies["numeric"])
    for who in ("user", "item"):
        over_all = leaky.reviews.groupby(f"{who}_id")["rating"].transform("mean")
        np.testing.assert_allclose(leaky.reviews[f"{who}_avg_rating"], over_all, rtol=1e-6)
        assert np.abs(honest.reviews[f"{who}_avg_rating"] - over_all).mean() > 0.05


def auc_of_shuffled_ratings(folder, seed: int, *flags: str) -> tuple[float, float]:
    """Test AUC of a model on a log whose ratings say nothing, and half the width of its 99.9 % interval around 0.5."""
    log = random_log(4500, 200, 120, seed=seed)
    log["rating"] = np.random.default_rng(1000 + seed).permutation(log["rating"])
    ds = prepared(folder, log, "--test-fraction", "0.3", "--seed", str(seed), *flags)
    model = train(folder, "--epochs", "6", "--deep-lr", "0.005", "--seed", str(seed))
    test = ds.reviews[ds.reviews["split"] == "test"]
    positive = int(test["label"].sum())
    negative = len(test) - positive
    half = 3.29 * np.sqrt((positive + negative + 1) / (12 * positive * negative))
    return roc_auc_score(test["label"], model.score_rows(test)), half


@pytest.mark.parametrize("split", ["time", "random"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_shuffled_labels_leave_nothing_to_learn(tmp_path, seed, split):
    auc, half = auc_of_shuffled_ratings(tmp_path, seed, "--split", split)
    assert half < 0.06 and abs(auc - 0.5) < half


@pytest.mark.parametrize("split", ["time", "random"])
def test_shuffled_labels_expose_the_leaky_features(tmp_path, split):
    auc, half = auc_of_shuffled_ratings(tmp_path, 1, "--split", split, "--features", "as-published")
    assert auc > 0.5 + half


# ------------------------------------------------------------------------------------- logs without times, ratings as targets


def prepared_without_times(folder, log, *flags: str):
    folder.mkdir(exist_ok=True)
    log[["user", "item", "rating"]].to_csv(folder / "log.csv", index=False)
    stage1.main(["--input", str(folder / "log.csv"), "--columns", "user=user,item=item,rating=rating", "--split", "random",
                 "--output-dir", str(folder / "processed_data"), *flags])
    return stage1.load_dataset(folder / "processed_data")


def test_without_times_held_out_ratings_change_no_feature_of_any_row(tmp_path):
    log = random_log(1200, 60, 50)
    before = prepared_without_times(tmp_path / "before", log)
    raw = list(zip(log["user"].astype(str), log["item"].astype(str)))
    held = np.array([pair in raw_pairs(before, "validation") | raw_pairs(before, "test") for pair in raw])
    assert 200 < held.sum() < 300
    log["rating"] = log["rating"].where(~held, 6 - log["rating"])
    after = prepared_without_times(tmp_path / "after", log)
    assert differing_columns(before, after) <= {"rating", "label"}
    assert before.index["rating_range"] == after.index["rating_range"]


def test_without_times_a_training_row_does_not_know_its_own_rating(tmp_path):
    """The rating of one training row moves features of other rows, never its own."""
    log = random_log(1200, 60, 50)
    before = prepared_without_times(tmp_path / "before", log)
    raw = list(zip(log["user"].astype(str), log["item"].astype(str)))
    moved = 0
    for line in np.flatnonzero([pair in raw_pairs(before, "train") for pair in raw])[[3, 400, 801]]:
        other = log.assign(rating=log["rating"].where(log.index != line, 6 - log["rating"]))
        after = prepared_without_times(tmp_path / "after", other)
        names = [name for name in before.vocabularies["numeric"] if name in before.reviews]
        user, item = before.users["user"].tolist().index(raw[line][0]), before.items["item"].tolist().index(raw[line][1])
        own = ((before.reviews["user_id"] == user) & (before.reviews["item_id"] == item)).to_numpy()
        differs = ~np.isclose(before.reviews[names], after.reviews[names], rtol=1e-6, equal_nan=True).all(axis=1)
        assert own.sum() == 1 and not differs[own].any()
        moved += differs.sum()
    assert moved > 10


@pytest.mark.parametrize("timed", [True, False])
def test_shuffled_ratings_cannot_be_predicted_better_than_by_their_mean(tmp_path, timed):
    log = random_log(4500, 200, 120, seed=3)
    log["rating"] = np.random.default_rng(7).permutation(log["rating"])
    ds = prepared(tmp_path, log, "--split", "random", "--test-fraction", "0.3") if timed else prepared_without_times(tmp_path, log, "--test-fraction", "0.3")
    model = train(tmp_path, "--epochs", "6", "--deep-lr", "0.005", "--objective", "rating")
    test, mean = ds.reviews[ds.reviews["split"] == "test"], ds.reviews.loc[ds.reviews["split"] == "train", "rating"].mean()
    gain = (test["rating"] - mean) ** 2 - (np.clip(model.score_rows(test), 1, 5) - test["rating"]) ** 2
    assert gain.mean() < 3.29 * gain.std() / np.sqrt(len(test))  # not above 0 beyond its 99.9 % interval
    if not timed:
        leak = ds.reviews.loc[ds.reviews["split"] == "train"]
        assert abs(np.corrcoef(leak["rating"], leak["user_avg_residual"].fillna(0))[0, 1]) < 0.08


@pytest.mark.parametrize("features", ["honest", "as-published"])
def test_a_refit_sees_what_stage_one_writes_when_validation_rows_are_training_rows(tmp_path, features):
    log, metadata = random_log(seed=5), write_metadata(tmp_path / "meta.json", 80)
    flags = ["--min-core", "0", "--metadata", str(metadata), "--features", features]
    ds = prepared(tmp_path / "a", log, *flags)
    given = lines_of(ds, log, "test")
    tests = write_log(tmp_path / "test.json", log[given])
    expected = prepared(tmp_path / "b", log[~given], *flags, "--test-input", str(tests), "--validation-fraction", "0")
    before, refit = repr(ds.vocabularies), stage1.with_validation(ds)
    assert repr(ds.vocabularies) == before and refit.index["last_training_timestamp"] == expected.index["last_training_timestamp"]
    keys, texts = ["user_id", "item_id"], r"avg_review_length|avg_word_count"
    told = [f"{who}_{name}" for who in ("user", "item") for name in stage1.STATE] + [*stage1.PAIR_STATE, *stage1.RECENCY]
    told = [name for name in told if features == "as-published" or not pd.Series(name).str.contains(texts)[0]]
    mine, theirs = (part.reviews.sort_values(keys, ignore_index=True) for part in (refit, expected))
    pd.testing.assert_frame_equal(mine[[*keys, *told]], theirs[[*keys, *told]])
    for table, other in ((refit.users, expected.users), (refit.items, expected.items)):
        names = [name for name in table if name in told or name.endswith(("train_count", "timestamp"))]
        assert len(names) >= 6
        pd.testing.assert_frame_equal(table[names], other[names])
    changed = ["user_category_avg_residual"] if features == "as-published" else ["user_avg_rating", "item_review_count", "user_days_since_last"]
    for name in changed:  # as-published averages hold all rows in any case
        assert not ds.reviews[name].equals(refit.reviews[name])


def test_a_refit_without_times_counts_validation_rows(tmp_path):
    ds = prepared_without_times(tmp_path, random_log(seed=6))
    refit, known = stage1.with_validation(ds), ds.reviews["split"] != "test"
    for who, table in refit.tables.items():
        ratings = ds.reviews[known].groupby(f"{who}_id")["rating"].agg(["size", "mean"])
        np.testing.assert_array_equal(table["train_count"][ratings.index], ratings["size"])
        np.testing.assert_allclose(table[f"{who}_avg_rating"][ratings.index], ratings["mean"])
        tests = refit.reviews[~known]
        np.testing.assert_array_equal(tests[f"{who}_review_count"], table["train_count"].to_numpy()[tests[f"{who}_id"]])
        assert (refit.reviews.loc[known].groupby(f"{who}_id")[f"{who}_review_count"].max() < table["train_count"][ratings.index]).all()
