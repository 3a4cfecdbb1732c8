"""The baselines and the paired differences of benchmarks/ranking.py."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import cosine_similarity


@pytest.fixture(scope="module")
def ranking():
    spec = importlib.util.spec_from_file_location("ranking", Path(__file__).resolve().parents[1] / "benchmarks" / "ranking.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def likes() -> csr_matrix:
    dense = np.random.default_rng(0).random((40, 13)) < 0.3
    dense[0] = dense[:, 0] = False
    return csr_matrix(dense.astype(np.float32))


def test_ease_is_the_ridge_regression_of_each_item_on_the_others(ranking, likes):
    x, scores = likes.toarray(), ranking.ease(likes, None, 5.0)(np.arange(40))
    for item in range(1, 13):
        others = np.delete(np.arange(13), item)
        np.testing.assert_allclose(scores[:, item], Ridge(alpha=5.0, fit_intercept=False).fit(x[:, others], x[:, item]).predict(x[:, others]), atol=1e-4)


def test_a_step_of_ials_is_least_squares(ranking, likes):
    alpha, penalty, x, item = 0.3, 0.02, likes.toarray(), np.random.default_rng(2).standard_normal((13, 4)).astype(np.float32)
    for likes_of_user, found in zip(x, ranking.ials_step(likes, item, alpha, penalty)):
        l2 = penalty * (likes_of_user.sum() + alpha * 13)
        left = np.vstack([likes_of_user[:, None] * item, alpha**0.5 * item, l2**0.5 * np.eye(4)])
        np.testing.assert_allclose(found, np.linalg.lstsq(left, np.r_[likes_of_user, np.zeros(17)], rcond=None)[0], atol=1e-5)


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
