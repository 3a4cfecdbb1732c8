"""Attributes of users and items from reader to served model, and the rating objective through evaluation, against plain loops."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

import amazon_preprocessing as stage1
import model_evaluation as me
import wide_deep_model as stage2
from readers import InputError
from tests.conftest import DATA, needs_data, random_log
from tests.test_training import run

GENRES = ("Action", "Comedy", "Drama", "War")


@pytest.fixture(scope="module")
def movies(tmp_path_factory):
    """A folder in the layout of MovieLens-1M: genres of several values, one of them on an item without training rows; a user unknown to users.dat."""
    folder, rng = tmp_path_factory.mktemp("movies"), np.random.default_rng(2)
    log = random_log(2500, users=60, items=50)
    lines = [f"{r.user + 1}::{r.item + 1}::{r.rating:g}::{r.timestamp}" for r in log.itertuples()]
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n", encoding="latin-1")
    users = [f"{u + 1}::{'FM'[u % 2]}::{[1, 18, 25, 35, 45, 50, 56][u % 7]}::{u % 21}::0" for u in range(1, 60)]
    (folder / "users.dat").write_text("\n".join(users) + "\n", encoding="latin-1")
    genres = ["|".join(g for g, on in zip(GENRES, rng.random(4) < 0.5) if on) or "Drama" for _ in range(50)]
    (folder / "movies.dat").write_text("\n".join(f"{i + 1}::Film {i} ({1960 + i})::{g}" for i, g in enumerate(genres)) + "\n", encoding="latin-1")
    flags = ["--dataset", "movielens", "--input", str(folder), "--output-dir", str(folder / "processed_data"), "--split", "random", "--min-core", "1"]
    stage1.main([*flags, "--cross", "user_gender:user_age_band", "category:user_gender"])
    return folder, flags, stage1.load_dataset(folder / "processed_data"), genres


def test_every_attribute_stands_in_the_row_of_its_id(movies):
    _, _, ds, genres = movies
    assert (ds.vocabularies["user_gender"], ds.index["name"]) == (["<unknown>", "F", "M"], movies[0].name)
    for row in ds.items.iloc[1:].itertuples(index=False):
        listed = genres[int(row.item) - 1].split("|")
        assert {g for g in GENRES if ds.items.loc[ds.items["item"] == row.item, f"item_genres={g}"].item()} == set(listed)
        assert ds.vocabularies["category"][row.category] == listed[0] and row.title == f"Film {int(row.item) - 1} ({1959 + int(row.item)})"
    assert ds.items["item_genres=<unknown>"].tolist() == [1] + [0] * (len(ds.items) - 1)
    for row in ds.users.iloc[1:].itertuples(index=False):
        assert ds.vocabularies["user_gender"][row.user_gender] == ("<unknown>" if row.user == "1" else "FM"[(int(row.user) - 1) % 2])


def test_chosen_crosses_are_the_pairs_of_their_fields(movies):
    _, _, ds, _ = movies
    for name, left, right in (("cross_user_gender_user_age_band", "user_gender", "user_age_band"), ("cross_category_user_gender", "user_gender", "category")):
        spec = ds.vocabularies["crosses"][name]
        assert (spec["left"], spec["right"]) == (left, right)  # serving goes from the user to the items
        tables = {"user_gender": ds.users, "user_age_band": ds.users, "category": ds.items}
        codes = [tables[f][f].to_numpy()[ds.reviews["user_id" if tables[f] is ds.users else "item_id"]] for f in (left, right)]
        pairs = set(zip(*codes, ds.reviews[name]))
        assert len(pairs) == len({p[:2] for p in pairs}) and all((i == 0) == (0 in (a, b)) for a, b, i in pairs if i or 0 in (a, b))


@pytest.mark.parametrize(("flags", "objective"), [
    (["--wide", "item_genres", "user_gender", "cross_category_user_gender", "--deep", "item_genres", "user_gender", "user_age", "user_occupation"], "like"),
    (["--wide", "item_genres", "user_id", "item_release_year", "user_avg_rating", "--deep", "user_id", "item_id", "item_genres"], "rating"),
    ([], "like"),
])
def test_rows_and_raw_ids_agree_whatever_features_are_chosen(movies, tmp_path, flags, objective):
    folder, _, ds, _ = movies
    model = stage2.load_model(run(tmp_path, folder / "processed_data", "--epochs", "1", "--objective", objective, *flags), "cpu")
    generator = np.random.default_rng(0)
    for weight in model.model.parameters():
        weight.data += torch.from_numpy(0.3 * generator.standard_normal(weight.shape)).float()
    users, items = np.repeat([0, 1, 5, 20], len(ds.items)), np.tile(np.arange(len(ds.items)), 4)
    together = model.score_rows(model.features.at_moment(users, items, model.moment)).reshape(4, -1)
    for user, expected in zip((0, 1, 5, 20), together):
        answer = model.predict([ds.users["user"][user]] * (len(expected) - 1), ds.items["item"].tolist()[1:])
        expected = np.clip(expected, *model.config["rating_range"]) if objective == "rating" else 1 / (1 + np.exp(-expected))
        np.testing.assert_allclose(answer, expected[1:], rtol=1e-4, atol=1e-4)
        assert answer.std() > 0.01
    if flags:
        chosen = model.features.wide_numeric if objective == "rating" else model.features.numeric
        assert {f"item_genres={g}" for g in GENRES} < set(chosen) and "user_age" not in model.features.wide


def test_a_feature_that_does_not_exist_is_named_with_those_that_do(movies, tmp_path):
    for part, name in (("--wide", "user_category_avg_residual"), ("--deep", "cross_user_item"), ("--wide", "genre")):
        with pytest.raises(InputError, match=rf"{part} {name}: not one of .*item_genres.*"):
            run(tmp_path, movies[0] / "processed_data", part, name)
    with pytest.raises(InputError, match=r"--cross user_gender:genre: genre is not a field .*user_gender"):
        stage1.main([*movies[1][:4], "--output-dir", str(tmp_path / "d"), "--split", "random", "--min-core", "1", "--cross", "user_gender:genre"])


def test_numbers_that_are_missing_come_from_the_regression_on_trained_ids():
    rng = np.random.default_rng(0)
    popularity = rng.normal(0, 1, 60)
    numbers = pd.DataFrame({"noise": rng.normal(0, 1, 60), "popularity": popularity, "rank": 3 * popularity + 1})
    numbers.loc[50:, "rank"] = np.nan
    trained = np.arange(60) < 40
    numbers.loc[40:49, "rank"] = 1e6  # of ids without training rows: must not move the line
    found = stage1.impute(numbers, trained)
    np.testing.assert_allclose(found.loc[50:, "rank"], 3 * popularity[50:] + 1)
    pd.testing.assert_frame_equal(found[:50], numbers[:50])
    alone = pd.DataFrame({"price": [1.0, np.nan, 3.0]})
    pd.testing.assert_frame_equal(stage1.impute(alone, np.ones(3, bool)), alone)


def test_attribute_vocabularies_know_only_ids_with_training_rows():
    table = pd.DataFrame({"item": ["<unknown>", "a", "b", "c"], "train_count": [0, 2, 1, 0]})
    known = pd.DataFrame({"genres": [["X"], ["X", "Y"], ["Z"]], "type": ["t", None, "new"], "size": [1.0, np.nan, 9.0]}, index=["a", "b", "c"])
    words = {"categories": {"item": []}, "attributes": {}, "groups": {}}
    found = stage1.add_attributes("item", table, known, words)
    assert words["groups"] == {"item_genres": ["item_genres=X", "item_genres=Y", "item_genres=<unknown>"]}
    assert words["item_type"] == ["<unknown>", "t"] and found["item_type"].tolist() == [0, 1, 0, 0]
    assert found["item_genres=X"].tolist() == [0, 1, 1, 0] and found["item_genres=<unknown>"].tolist() == [1, 0, 0, 0]


def test_site_wide_figures_are_for_as_published_only_and_times_are_not_invented(tmp_path):
    log = random_log(900, 40, 30)
    (tmp_path / "anime_ratings.dat").write_text("User_ID\tAnime_ID\tFeedback\n" + "".join(f"{r.user}\t{r.item}\t{2 * r.rating:g}\n" for r in log.itertuples()))
    (tmp_path / "anime_info.dat").write_text("anime_ids\tname\tgenre\ttype\tepisodes\trating\tmembers\n"
                                             + "".join(f"{i}\tShow {i}\tAction, Drama\tTV\t{i + 1}\t7.5\t{100 + i}\n" for i in range(30)))
    flags = ["--dataset", "anime", "--input", str(tmp_path), "--min-core", "1"]
    for features in ("honest", "as-published"):
        stage1.main([*flags, "--split", "random", "--features", features, "--output-dir", str(tmp_path / features)])
        ds = stage1.load_dataset(tmp_path / features)
        assert ("item_site_members" in ds.items) == ("item_site_score" in ds.vocabularies["numeric"]) == (features == "as-published")
        assert "item_episodes" in ds.vocabularies["numeric"] and ds.index["rating_range"] == [2, 10]
    with pytest.raises(InputError, match=r"--split time needs timestamps .*random, per-user, stratified, leave-one-out"):
        stage1.main([*flags, "--output-dir", str(tmp_path / "x")])
    with pytest.raises(InputError, match=r"--metadata .*says nothing about the users and items"):
        (tmp_path / "empty").mkdir()
        stage1.main([*flags, "--split", "random", "--metadata", str(tmp_path / "empty"), "--output-dir", str(tmp_path / "x")])


# ------------------------------------------------------------------------------------------------ evaluation of ratings


def test_rating_knn_is_the_weighted_mean_of_deviations():
    log = random_log(700, 40, 25).assign(user_id=lambda f: f["user"] + 1, item_id=lambda f: f["item"] + 1)
    shape, damping, prior = (41, 26), 5.0, 0.5
    base = me.mean_bias(log, shape, (4, 4))
    scorer = me.rating_knn(log, shape, base, (1000, damping, prior))
    deviation = np.zeros(shape)
    deviation[log["user_id"], log["item_id"]] = log["rating"] - base.score_rows(log)
    rated = np.zeros(shape, bool)
    rated[log["user_id"], log["item_id"]] = True
    norm = np.sqrt((deviation**2).sum(0) + damping)
    similarity = np.maximum(deviation.T @ deviation / np.outer(norm, norm), 0)
    np.fill_diagonal(similarity, 0)
    catalogue = scorer.score_catalogue(np.arange(1, 41))
    for user, item in ((1, 1), (3, 20), (17, 5), (40, 25)):
        near = [j for j in range(26) if rated[user, j] and j != item]
        total, weight = sum(similarity[item, j] * deviation[user, j] for j in near), sum(similarity[item, j] for j in near)
        row = pd.DataFrame({"user_id": [user], "item_id": [item]})
        expected = base.score_rows(row)[0] + total / (weight + prior)
        assert scorer.score_rows(row)[0] == pytest.approx(expected, abs=1e-5) and catalogue[user - 1, item] == pytest.approx(expected, abs=1e-5)


def test_the_report_on_ratings_is_arithmetic(movies, tmp_path):
    data = movies[0] / "processed_data"
    path = run(tmp_path, data, "--epochs", "2", "--objective", "rating")
    files = ["--metrics", str(tmp_path / "m.json"), "--plot", str(tmp_path / "r.png")]
    me.main(["--data-dir", str(data), "--checkpoint", str(path), *files, "--bootstrap", "50", "--device", "cpu", "--relevant", "rated"])
    report, ds = json.loads((tmp_path / "m.json").read_text()), movies[2]
    test, train_rows = (ds.reviews[ds.reviews["split"] == part] for part in ("test", "train"))
    score = np.clip(stage2.load_model(path, "cpu").score_rows(test).astype(float), 1, 5)
    error = score - test["rating"].to_numpy()
    ours = report["models"]["wide_deep"]["ratings"]
    assert ours["rmse"] == pytest.approx(math.sqrt(np.mean(error**2)), abs=1e-6) and ours["mae"] == pytest.approx(np.mean(np.abs(error)), abs=1e-6)
    low, high = report["intervals"]["wide_deep"]["ratings.rmse"]
    assert low < ours["rmse"] < high and "logloss" not in ours
    mean = train_rows["rating"].mean()
    assert report["models"]["global_mean"]["ratings"]["rmse"] == pytest.approx(math.sqrt(np.mean((mean - test["rating"]) ** 2)), abs=1e-6)
    assert report["models"]["mean_bias"]["ratings"]["rmse"] < report["models"]["global_mean"]["ratings"]["rmse"]
    for rating, entry in report["errors"].items():
        part = error[test["rating"].to_numpy() == float(rating)]
        assert entry["rows"] == len(part) and entry["bias"] == pytest.approx(part.mean(), abs=1e-6)
        assert entry["rmse"] == pytest.approx(math.sqrt(np.mean(part**2)), abs=1e-6)
    assert sum(entry["rows"] for entry in report["errors"].values()) == len(test)


@needs_data
@pytest.mark.parametrize(("dataset", "folder", "rows", "attributes"), [
    ("movielens", "ml-100k", 100_000, {"user_gender", "user_age", "user_occupation", "item_release_year", "item_genres=Film-Noir", "category"}),
    ("anime", "anime", 419_943, {"item_type", "item_episodes", "item_genres=Sci-Fi", "category"}),
])
def test_real_data_sets_keep_every_row_and_get_their_attributes(tmp_path, dataset, folder, rows, attributes):
    stage1.main(["--dataset", dataset, "--input", str(DATA / folder), "--split", "random", "--min-core", "0", "--output-dir", str(tmp_path)])
    ds = stage1.load_dataset(tmp_path)
    assert len(ds.reviews) == rows and attributes <= {*ds.users, *ds.items}
