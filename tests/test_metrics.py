"""Metrics against independent libraries where input has no ties, and against brute force where it has them."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

import model_evaluation as me

SCORES = st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.0, -1.0, math.nan, math.inf, -math.inf])
quick = settings(max_examples=150, deadline=None)


# ---- lists


def brute_list(scores, relevant, k, exclude):
    """The k best candidates: falling score, NaN last, among equals irrelevant ones first, then lower codes."""
    candidates = [i for i in range(len(scores)) if not exclude[i]]
    return sorted(candidates, key=lambda i: (math.isnan(scores[i]), 0 if math.isnan(scores[i]) else -scores[i], relevant[i], i))[:k]


@st.composite
def ranking(draw):
    items, users = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    grid = lambda element: np.array(draw(st.lists(st.lists(element, min_size=items, max_size=items), min_size=users, max_size=users)))  # noqa: E731
    return grid(SCORES).astype(np.float32), grid(st.booleans()), draw(st.integers(1, 12)), grid(st.booleans())


@quick
@given(ranking())
def test_lists_agree_with_brute_force_on_ties_nan_and_too_few_candidates(case):
    scores, relevant, k, exclude = case
    lists, hits = me.top_k_lists(scores, relevant, k, exclude)
    for u in range(len(scores)):
        expected = brute_list(scores[u].tolist(), relevant[u], k, exclude[u])
        assert lists[u].tolist() == expected + [-1] * (k - len(expected))
        assert hits[u].tolist() == [bool(relevant[u, i]) for i in expected] + [False] * (k - len(expected))


def test_input_is_left_alone_and_a_model_of_equal_or_nan_scores_gets_nothing():
    relevant = np.zeros((2, 1000), bool)
    relevant[:, :5] = True
    for value in (0.0, np.nan, -np.inf):
        scores = np.full((2, 1000), value, np.float32)
        scores.flags.writeable = False
        lists, hits = me.top_k_lists(scores, relevant, 10, np.zeros_like(relevant))
        assert not hits.any() and (lists == np.arange(5, 15)).all()


@quick
@given(st.lists(st.tuples(st.integers(0, 3), SCORES, st.integers(0, 1)), min_size=1, max_size=15), st.integers(1, 6))
def test_lists_over_own_rows_agree_with_brute_force(rows, k):
    user, score, label = (np.array(column) for column in zip(*rows))
    item = np.arange(len(rows))[::-1].copy()
    lists = me.own_row_lists(user, item, label, score, k, 4)
    for u in range(4):
        own = [i for i in range(len(rows)) if user[i] == u]
        own.sort(key=lambda i: (math.isnan(score[i]), 0 if math.isnan(score[i]) else -score[i], label[i], item[i]))
        assert lists[u].tolist() == own[:k] + [-1] * (k - len(own[:k]))


def test_list_metrics_agree_with_ranx(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling ranx takes a minute, running it as it stands takes a second
    from ranx import Qrels, Run, evaluate

    rng = np.random.default_rng(3)
    users, items, k = 60, 80, 10
    scores, relevant = rng.permuted(np.tile(np.arange(items, dtype=np.float32), (users, 1)), axis=1), rng.random((users, items)) < 0.15
    relevant[:, 0] = True
    n_relevant = relevant.sum(axis=1)
    _, hits = me.top_k_lists(scores, relevant, k, np.zeros_like(relevant))
    ours = me.list_metrics(hits, n_relevant)
    names = [f"u{u:03d}" for u in range(users)]
    qrels = Qrels({name: {f"i{i}": 1 for i in np.flatnonzero(relevant[u])} for u, name in enumerate(names)})
    run = Run({name: {f"i{i}": float(scores[u, i]) for i in range(items)} for u, name in enumerate(names)})
    evaluate(qrels, run, [f"{name}@{k}" for name in ours])
    for name, values in ours.items():
        expected = np.array([run.scores[f"{name}@{k}"][user] for user in names])
        if name == "map":  # ranx divides by all relevant items, here by those that fit in the list
            expected = expected * n_relevant / np.minimum(n_relevant, k)
        np.testing.assert_allclose(values, expected, atol=1e-9, rtol=0, err_msg=name)


@quick
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(0, 6))
def test_list_metrics_agree_with_their_definitions(hits, more):
    k, n = len(hits), sum(hits) + more
    ours = {name: value[0] for name, value in me.list_metrics(np.array([hits]), np.array([n])).items()}
    if n == 0:
        assert set(ours.values()) == {0}
        return
    ranks = [r for r, hit in enumerate(hits, 1) if hit]
    ideal = sum(1 / math.log2(r + 1) for r in range(1, min(k, n) + 1))
    expected = {"precision": len(ranks) / k, "recall": len(ranks) / n, "hit_rate": int(bool(ranks)), "mrr": 1 / ranks[0] if ranks else 0,
                "ndcg": sum(1 / math.log2(r + 1) for r in ranks) / ideal, "map": sum((j + 1) / r for j, r in enumerate(ranks)) / min(k, n)}
    assert ours == pytest.approx(expected, abs=1e-12)


def test_coverage_gini_and_novelty_known_answers():
    lists = np.array([[1, 2, -1], [1, 3, 4]])
    assert me.coverage_at_k(lists, 8) == 0.5
    assert me.gini_at_k(np.array([[1, 2], [3, 4]]), 4) == pytest.approx(0)
    assert me.gini_at_k(np.array([[4], [4]]), 4) == pytest.approx(0.75)  # (n - 1) / n: one item gets everything
    exposure = [0, 0, 0, 0, 1, 1, 1, 2]
    mean_difference = sum(abs(a - b) for a in exposure for b in exposure) / (2 * 8 * sum(exposure))
    assert me.gini_at_k(lists, 8) == pytest.approx(mean_difference)
    information = np.array([0.0, 1, 2, 3, 4])
    assert me.novelty_at_k(lists, information).tolist() == [1.5, pytest.approx(8 / 3)]


def test_diversity_is_one_minus_the_mean_cosine_of_raters():
    rng = np.random.default_rng(0)
    raters = (rng.random((30, 9)) < 0.3).astype(np.float32)
    raters[:, [0, 8]] = 0  # the unknown item and one never rated
    lists = np.array([[1, 2, 3, 8], [4, 5, -1, -1], [6, -1, -1, -1], [7, 8, 1, 2]])
    ours = me.diversity_at_k(lists, csr_matrix(raters))
    norm = np.maximum(np.linalg.norm(raters, axis=0), 1e-9)
    cosine = raters.T @ raters / norm / norm[:, None]
    for u, row in enumerate(lists):
        for k in range(1, 5):
            part = [i for i in row[:k] if i >= 0]
            pairs = [cosine[a, b] for i, a in enumerate(part) for b in part[i + 1:]]
            assert ours[u, k - 1] == pytest.approx(1 - np.mean(pairs), abs=1e-6) if pairs else np.isnan(ours[u, k - 1])


def test_diversity_of_long_lists_ends_where_pairs_are_too_many(monkeypatch):
    lists, raters = np.array([[1, 2, 3, 4]]), csr_matrix(np.ones((3, 5), np.float32))
    whole = me.diversity_at_k(lists, raters)
    monkeypatch.setattr(me, "DIVERSITY_K", 3)
    np.testing.assert_array_equal(me.diversity_at_k(lists, raters), np.where(np.arange(4) < 3, whole, np.nan))


@pytest.mark.parametrize(("last", "users"), [(1, 1), (0, 2)])
def test_one_user_alone_has_a_mean_and_no_interval(last, users):
    rows = me.TestRows(pd.DataFrame({"user_id": [1, 1, 2, 2], "item_id": [1, 2, 1, 2], "label": [1, 0, 1, last], "rating": 1.0}), [1, 5])
    result = me.Result("order", np.array([0.9, 0.1, 0.6, 0.5]))
    me.ratings_protocol(result, rows)
    assert [means(np.ones((1, 2)))["ratings.gauc"].tolist() for means in result.means] == [[1.0]]
    for replicates in (1, 7):
        drawn = me.bootstrap({"model": result}, rows, replicates, np.random.default_rng(0))["model"]
        assert "ratings.auc" in drawn and ("ratings.gauc" in drawn) == (users == 2)


# ---- scored rows


@pytest.mark.parametrize("distinct", [10**9, 7])
def test_areas_agree_with_sklearn_with_and_without_weights_and_ties(distinct):
    rng = np.random.default_rng(1)
    label, score = (rng.random(500) < 0.7).astype(np.int8), rng.integers(distinct, size=500) / 7
    weight = rng.integers(0, 4, 500).astype(float)
    expected = [metric(label, score) for metric in (roc_auc_score, average_precision_score)]
    np.testing.assert_allclose(me.areas(me.curve(label, score)), expected, atol=1e-9)
    expected = [metric(label, score, sample_weight=weight) for metric in (roc_auc_score, average_precision_score)]
    np.testing.assert_allclose(me.areas(me.curve(label, score, weight)), expected, atol=1e-9)
    assert me.auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-9)


def brute_auc(label, score):
    better = lambda a, b: not math.isnan(a) and (math.isnan(b) or a > b)  # noqa: E731
    pairs = [(p, n) for p, y in zip(score, label) if y for n, z in zip(score, label) if not z]
    won = sum(1 if better(p, n) else 0 if better(n, p) else 0.5 for p, n in pairs)
    return won / len(pairs) if pairs else math.nan


ROWS = st.lists(st.tuples(st.integers(0, 3), SCORES, st.integers(0, 1)), min_size=1, max_size=20)


@quick
@given(ROWS)
def test_auc_and_user_auc_agree_with_brute_force(rows):
    user, score, label = (np.array(column) for column in zip(*rows))
    assert me.auc(label, score) == pytest.approx(brute_auc(label, score), nan_ok=True)
    value, count = me.user_auc(user, label, score, 4)
    expected = [brute_auc(label[user == u], score[user == u]) for u in range(4)]
    assert value.tolist() == pytest.approx(expected, nan_ok=True) and count.tolist() == np.bincount(user, minlength=4).tolist()
    known = [(a, n) for a, n in zip(expected, count) if not math.isnan(a)]
    mean = sum(a * n for a, n in known) / sum(n for _, n in known) if known else math.nan
    assert me.gauc(user, label, score, 4) == pytest.approx(mean, nan_ok=True)


def test_one_class_gives_nothing():
    assert np.isnan(me.areas(me.curve(np.ones(3, int), np.arange(3.0)))).all()
    assert np.isnan(me.areas(me.curve(np.zeros(3, int), np.arange(3.0)))).all()


def test_log_loss_agrees_with_sklearn_and_survives_large_logits():
    rng = np.random.default_rng(2)
    label, logit = rng.integers(2, size=300), rng.normal(0, 3, 300)
    assert me.log_losses(label, logit).mean() == pytest.approx(log_loss(label, 1 / (1 + np.exp(-logit))), abs=1e-9)
    assert me.log_losses(np.array([1, 0]), np.array([1e4, 1e4], np.float32)).tolist() == [0, 1e4]


def test_calibration_error_known_answers():
    label = np.array([1, 1, 1, 0] * 25)
    assert me.ece(label, np.full(100, 0.75)) == pytest.approx(0)
    assert me.ece(label, np.full(100, 0.95)) == pytest.approx(0.2)
    assert me.ece(np.array([0, 1]), np.array([0.0, 1.0])) == 0
    rng = np.random.default_rng(5)
    probability = rng.random(400)
    label = rng.integers(2, size=400)
    bins = np.minimum((probability * 15).astype(int), 14)
    expected = sum(abs((label - probability)[bins == b].sum()) for b in range(15)) / 400
    assert me.ece(label, probability) == pytest.approx(expected)
