"""The baselines and the paired differences of benchmarks/ranking.py."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import cosine_similarity

from amazon_preprocessing import Dataset
from tests.test_evaluation import KnownModel, planted


@pytest.fixture(scope="module")
def ranking():
    spec = importlib.util.spec_from_file_location("ranking", Path(__file__).resolve().parents[1] / "benchmarks" / "ranking.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def likes() -> csr_matrix:
    rng = np.random.default_rng(0)
    dense = (rng.random((40, 13)) < 0.3) * rng.choice([1, 0.5, 0.25], (40, 13))
    dense[0] = dense[:, 0] = 0
    return csr_matrix(dense.astype(np.float32))


def test_ease_is_the_ridge_regression_of_each_item_on_the_others(ranking, likes):
    x, scores = likes.toarray(), ranking.ease(likes, None, 5.0)(np.arange(40))
    for item in range(1, 13):
        others = np.delete(np.arange(13), item)
        np.testing.assert_allclose(scores[:, item], Ridge(alpha=5.0, fit_intercept=False).fit(x[:, others], x[:, item]).predict(x[:, others]), atol=1e-4)


def test_a_step_of_ials_is_least_squares(ranking, likes):
    alpha, penalty, x, item = 0.3, 0.02, likes.toarray(), np.random.default_rng(2).standard_normal((13, 4)).astype(np.float32)
    for likes_of_user, found in zip(x, ranking.ials_step(likes, item, alpha, penalty)):
        l2, weight = penalty * ((likes_of_user > 0).sum() + alpha * 13), np.sqrt(likes_of_user)
        left = np.vstack([weight[:, None] * item, alpha**0.5 * item, l2**0.5 * np.eye(4)])
        np.testing.assert_allclose(found, np.linalg.lstsq(left, np.r_[weight, np.zeros(17)], rcond=None)[0], atol=1e-5)


def test_histories_of_baselines_are_of_known_rows_alone(ranking):
    """Of each grade by hand; other ratings of the rows that are asked for, or come later, change nothing in them."""
    ds, _ = planted()
    reviews = ds.reviews.assign(timestamp=pd.Timestamp("2020-01-01"))
    unknown = reviews["split"] != "train"
    turned = reviews.assign(rating=reviews["rating"].where(~unknown, 6 - reviews["rating"]), label=reviews["label"].where(~unknown, 1 - reviews["label"]))
    found, other = (ranking.prepare(Dataset(None, ds.index, rows, ds.users, ds.items, {}), ["train"], "validation")[0] for rows in (reviews, turned))
    train = reviews[~unknown]
    for grade, low in ((ranking.LIKES, 0.0), (ranking.GRADED, np.maximum((train["rating"] - 1) / 3, 0.01)), (ranking.RATED, 1.0)):
        dense = np.zeros(found[grade][0].shape, np.float32)
        dense[train["user_id"], train["item_id"]] = np.where(train["label"] == 1, 1, low)
        np.testing.assert_allclose(found[grade][0].toarray(), dense, rtol=1e-6)
        assert (found[grade][0] != other[grade][0]).nnz == 0 and len(found[grade][1]) == np.count_nonzero(dense)


def test_lists_are_widened_as_far_as_their_quality_allows(ranking):
    ds, truth = planted()
    task = ranking.prepare(Dataset(None, ds.index, ds.reviews.assign(timestamp=0), ds.users, ds.items, {}), ["train"], "test")[1]
    popularity = np.maximum(ds.items["train_count"].to_numpy(), 1)
    plain = lambda users: np.exp(KnownModel(truth).score_catalogue(users))  # noqa: E731
    quality = [ranking.ndcg(task, lambda users, n=n: plain(users) / popularity ** (n / 20))[0].mean() for n in range(21)]
    least = np.sort(quality)[7]
    chosen = max(n for n in range(21) if quality[n] >= least)
    assert ranking.ndcg(task, ranking.as_good_as(task, plain, popularity, least))[0].mean() == quality[chosen]
    assert ranking.as_good_as(task, plain, popularity, 1.1) is plain and len(set(quality)) > 10


def test_recent_popularity_counts_the_latest_interests(ranking):
    """Half of six rows are three; the third latest moment has two, which both count."""
    rows = pd.DataFrame({"user_id": [1, 2, 3, 1, 2, 3], "item_id": [1, 1, 1, 2, 2, 3], "timestamp": [1, 2, 3, 3, 4, 5], "interest": [1, 1, 1, 0.5, 1, 0.25]})
    history = csr_matrix((rows["interest"], (rows["user_id"], rows["item_id"])), (4, 4))
    found = ranking.recent_popularity(history, rows, 0.5)(np.array([2]))
    np.testing.assert_allclose(found, [[0, 1, 1.5, 0.25]])


def test_ials_finds_two_tastes(ranking):
    x = np.kron(np.eye(2), np.ones((20, 6))) * (np.random.default_rng(3).random((40, 12)) < 0.6)
    scores = ranking.ials(csr_matrix(x.astype(np.float32)), None, 0.1, 0.01)(np.arange(40))
    assert scores[:20, :6].min() > scores[:20, 6:].max() and scores[20:, 6:].min() > scores[20:, :6].max()


def test_neighbours_are_summed(ranking, likes):
    x = likes.toarray()
    similar = cosine_similarity(x)
    np.fill_diagonal(similar, 0)
    np.testing.assert_allclose(ranking.user_knn(likes, None, "cosine", 40)(np.arange(40)), similar @ x, atol=1e-5)
    similar = cosine_similarity(x.T)
    np.fill_diagonal(similar, 0)
    np.testing.assert_allclose(ranking.item_knn(likes, None, "cosine", 13)(np.arange(40)), x @ similar, atol=1e-5)


def test_differences_are_those_of_a_users_mean_over_seeds(ranking):
    rng = np.random.default_rng(1)
    theirs = rng.random((3, 400))
    theirs[:, 0], theirs[0, 5] = np.nan, np.nan
    runs = [{ranking.OURS[0]: {"ndcg": of * 1.1}, "EASE": {"ndcg": of}} for of in theirs]
    assert ranking.difference(runs, "EASE") == "+10.0% [+10.0%, +10.0%]"
    runs = [{ranking.OURS[0]: {"ndcg": of}, "EASE": {"ndcg": rng.permutation(of)}} for of in theirs]
    low, high = (float(part.strip(" %]")) for part in ranking.difference(runs, "EASE").split("[")[1].split(","))
    assert low < 0 < high and 1 < high - low < 30
