"""Stage 3 end to end on a small planted data set and a model whose scores are known; protocols, baselines, bootstrap, choices."""

import json
import struct
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score

import model_evaluation as me
from amazon_preprocessing import SPLITS, Dataset, InputError


def planted(n_users=300, n_items=120, n_rows=6000, seed=0):
    """A Dataset with long-tailed items and latent taste, some users and items without training rows; and its true logits."""
    rng = np.random.default_rng(seed)
    user_factor, item_factor = rng.normal(0, 0.8, (n_users + 1, 6)), rng.normal(0, 0.8, (n_items + 1, 6))
    item_bias = rng.normal(0.6, 0.9, n_items + 1)
    weight = 1 / np.arange(1, n_items + 1) ** 0.8
    pairs = np.unique(np.stack([rng.integers(1, n_users + 1, n_rows), rng.choice(n_items, n_rows, p=weight / weight.sum()) + 1]), axis=1)
    user, item = rng.permutation(pairs, axis=1).astype(np.int32)
    split = np.array(SPLITS)[np.searchsorted([0.7, 0.8], np.arange(len(user)) / len(user), side="right")]
    cold = (split == "train") & ((user <= 5) | (item <= 3))
    user, item, split = user[~cold], item[~cold], split[~cold]
    logit = item_bias[item] + (user_factor[user] * item_factor[item]).sum(axis=1)
    rating = np.clip(np.round(3.5 + 0.6 * logit + rng.normal(0, 0.8, len(user))), 1, 5).astype(np.float32)
    reviews = pd.DataFrame({"user_id": user, "item_id": item, "rating": rating, "label": (rating >= 4).astype(np.int8)})
    reviews["split"] = pd.Categorical(split, categories=SPLITS)
    tables = [pd.DataFrame({who: [f"{who}{i}" for i in range(n + 1)], "train_count": np.bincount(code[split == "train"], minlength=n + 1)})
              for who, n, code in (("user", n_users, user), ("item", n_items, item))]
    index = {"name": "planted", "users": n_users, "items": n_items, "rows": {s: int((split == s).sum()) for s in SPLITS},
             "fingerprint": "f", "positive_rate": float(reviews["label"].mean()), "positive_threshold": 4.0, "split": "random", "features": "honest",
             "rating_range": [float(reviews["rating"].min()), float(reviews["rating"].max())]}
    return Dataset(None, index, reviews, *tables, {}), (user_factor, item_factor, item_bias)


def relabelled(ds, **columns):
    """The same data set with other columns in its reviews."""
    return Dataset(None, ds.index, ds.reviews.assign(**columns), ds.users, ds.items, {})


class KnownModel:
    """Scores that are the planted truth times `skill`, under the interface of wide_deep_model.load_model."""

    def __init__(self, truth, skill=1.0, objective="like"):
        self.truth, self.skill, self.fingerprint = truth, skill, "f"
        self.config = {"objective": objective, "seed": 1}
        self.history = [{"epoch": e, "train_loss": 0.6 / e, "validation_loss": 0.6 / e + 0.02, "validation_auc": 0.7} for e in (1, 2, 3)]

    def score_rows(self, frame):
        (u, i, b), user, item = self.truth, frame["user_id"].to_numpy(), frame["item_id"].to_numpy()
        return (self.skill * (b[item] + (u[user] * i[item]).sum(axis=1))).astype(np.float32)

    def score_catalogue(self, users):
        u, i, b = self.truth
        score = (self.skill * (b + u[users] @ i.T)).astype(np.float32)
        score[:, 0] = -np.inf
        return score

    def recommend(self, user, n=10):
        assert isinstance(user, str)
        return pd.DataFrame({"item": range(n), "score": 4.0, "wide": [1.0] * (n - 1) + [2.0], "deep": [3.0] * (n - 1) + [2.0]})


@pytest.fixture(scope="module")
def data():
    return planted()


@pytest.fixture
def run(tmp_path, tmp_path_factory, monkeypatch, data):
    """Run the script on the planted data; returns (metrics, path of the picture)."""

    def call(*flags, ds=data[0], models=None, picture=False, draw=lambda *_: me.Figure()):
        if not picture:
            monkeypatch.setattr(me, "draw", draw)
        models = models or {"best.pt": KnownModel(data[1])}
        monkeypatch.setattr(me, "load_dataset", lambda folder: ds)
        monkeypatch.setattr(me, "load_model", lambda path, device="auto": models[path.name])
        folder = tmp_path_factory.mktemp("models")
        for name in models:
            (folder / name).touch()
        out = [tmp_path / "metrics.json", tmp_path / "results.png"]
        me.main(["--checkpoint", str(folder / "best.pt"), "--metrics", str(out[0]), "--plot", str(out[1]), *map(str, flags)])
        return json.loads(out[0].read_text()), out[1]

    return call


def test_metrics_json_holds_what_design_promises(run, data):
    metrics, picture = run("--bootstrap", 60, picture=True)
    assert set(metrics) == {"dataset", "protocol", "models", "intervals", "differences", "slices", "latency_ms", "lists_memory", "seconds"}
    counted = {"users", "items", "train_rows", "validation_rows", "test_rows"}
    assert {"name", "positive_rate", "fingerprint"} | counted <= set(metrics["dataset"])
    assert {"split", "objective", "features", "k", "ranking_users", "seed"} <= set(metrics["protocol"])
    assert {"p50", "p95", "p99", "catalogue_items", "threads"} == set(metrics["latency_ms"])
    assert metrics["lists_memory"] == pytest.approx(11 / 40)  # ten items, one of them half memory, the others a quarter
    assert list(metrics["models"]) == ["wide_deep", "popularity", "mean_bias", "item_knn", "als"]
    catalogue = {"precision", "recall", "hit_rate", "ndcg", "map", "mrr", "coverage", "gini", "novelty", "diversity"}
    for name, model in metrics["models"].items():
        assert {f"{metric}@{k}" for metric in catalogue for k in (5, 10, 20)} == set(model["catalogue"])
        assert {f"{metric}@{k}" for metric in ("precision", "ndcg", "coverage") for k in (5, 10, 20)} <= set(model["held_out"])
        assert {f"{metric}@{k}" for metric in ("precision", "ndcg") for k in (5, 10, 20)} <= set(model["global_list"])
        only = {"wide_deep": {"logloss", "ece"}, "mean_bias": {"rmse", "mae"}}.get(name, set())
        assert set(model["ratings"]) == {"auc", "gauc", "pr_auc", "gauc_users", "gauc_users_left_out"} | only
        for full, (low, high) in metrics["intervals"][name].items():
            protocol, metric = full.split(".")
            assert low <= high and low - 0.1 <= model[protocol][metric] <= high + 0.1
    bounded = {"ratings.auc", "ratings.gauc", "ratings.pr_auc", "ratings.logloss", "catalogue.ndcg@10", "catalogue.novelty@5"}
    assert bounded <= set(metrics["intervals"]["wide_deep"])
    assert set(metrics["differences"]["als"]["ratings.auc"]) == {"difference", "interval", "percent"}
    assert set(metrics["slices"]) == {"cold_user", "warm_user", "cold_item", "head_items", "tail_items"}
    rows = {name: part["rows"] for name, part in metrics["slices"].items()}
    assert rows["cold_user"] + rows["warm_user"] == metrics["dataset"]["test_rows"]
    assert rows["cold_item"] + rows["head_items"] + rows["tail_items"] == metrics["dataset"]["test_rows"]
    assert min(rows.values()) > 0
    content = picture.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">I", content[16:20])[0] >= 1600
    assert not list(picture.parent.glob(".*"))


def test_figures_are_those_of_sklearn_and_of_a_plain_loop(run, data):
    ds, truth = data
    metrics, _ = run("--bootstrap", 0, "--baselines", "popularity", "--k", 3, 7, "--ranking-users", 0)
    assert metrics["intervals"] == {"wide_deep": {}, "popularity": {}} and metrics["protocol"]["ranked_users"] > 200
    test = ds.reviews[ds.reviews["split"] == "test"]
    logit = KnownModel(truth).score_rows(test)
    ours = metrics["models"]["wide_deep"]
    assert ours["ratings"]["auc"] == pytest.approx(roc_auc_score(test["label"], logit))
    assert ours["ratings"]["pr_auc"] == pytest.approx(average_precision_score(test["label"], logit))
    seen = ds.reviews[ds.reviews["split"] != "test"].groupby("user_id")["item_id"].agg(set)
    precision, recall, listed, held_out = [], [], set(), []
    for user, rows in test.groupby("user_id"):
        best = [i for i in np.argsort(-expit(logit[np.flatnonzero(test["user_id"] == user)]), kind="stable")][:3]
        if rows["label"].any():
            held_out.append(rows["label"].to_numpy()[best].sum() / 3)
            liked = set(rows["item_id"][rows["label"] == 1])
            scores = KnownModel(truth).score_catalogue(np.array([user]))[0]
            top = [i for i in np.argsort(-scores, kind="stable") if i > 0 and i not in seen.get(user, set())][:3]
            precision.append(len(liked & set(top)) / 3)
            recall.append(len(liked & set(top)) / len(liked))
            listed |= set(top)
    assert ours["catalogue"]["precision@3"] == pytest.approx(np.mean(precision))
    assert ours["catalogue"]["recall@3"] == pytest.approx(np.mean(recall))
    assert ours["catalogue"]["coverage@3"] == pytest.approx(len(listed) / 120)
    assert ours["held_out"]["precision@3"] == pytest.approx(np.mean(held_out))
    best = test["label"].to_numpy()[np.argsort(-logit)[:7]]
    assert ours["global_list"]["precision@7"] == pytest.approx(best.mean())


def test_flags_of_the_catalogue_protocol_change_only_what_they_say(run, data):
    common = ("--bootstrap", 0, "--baselines", "popularity", "--k", 5)
    plain, kept, rated, again = run(*common)[0], run(*common, "--keep-seen")[0], run(*common, "--relevant", "rated")[0], run(*common)[0]
    assert plain["models"] == again["models"]
    for other in (kept, rated):
        assert other["models"]["popularity"]["catalogue"] != plain["models"]["popularity"]["catalogue"]
        assert other["models"]["wide_deep"]["held_out"] == plain["models"]["wide_deep"]["held_out"]
    assert kept["models"]["popularity"]["held_out"] == plain["models"]["popularity"]["held_out"]
    assert rated["models"]["popularity"]["held_out"] != plain["models"]["popularity"]["held_out"]  # it counts ratings then, not likes
    assert kept["models"]["popularity"]["catalogue"]["coverage@5"] < plain["models"]["popularity"]["catalogue"]["coverage@5"]


def test_choices_do_not_depend_on_test_labels(run, data):
    ds, _ = data
    test = ds.reviews["split"] == "test"
    label = np.where(test, 1 - ds.reviews["label"], ds.reviews["label"]).astype(np.int8)
    other = relabelled(ds, label=label, rating=np.where(test, 6 - ds.reviews["rating"], ds.reviews["rating"]).astype(np.float32))
    scorers = [me.fit_baselines(list(me.BASELINES), d, KnownModel(data[1]), "liked", np.random.default_rng(0)) for d in (ds, other)]
    users = np.arange(1, 40)
    for name in ("popularity", "mean_bias", "item_knn", "als"):
        assert scorers[0][name].knobs == scorers[1][name].knobs
        np.testing.assert_array_equal(scorers[0][name].score_catalogue(users), scorers[1][name].score_catalogue(users))


def test_choices_do_depend_on_validation_labels(data):
    ds, truth = data
    rows = np.flatnonzero(ds.reviews["split"] == "validation")
    order = np.arange(len(ds.reviews))
    order[rows] = np.random.default_rng(0).permutation(rows)
    other = relabelled(ds, label=ds.reviews["label"].to_numpy()[order], rating=ds.reviews["rating"].to_numpy()[order])
    fitted = [me.fit_baselines(list(me.BASELINES), d, KnownModel(truth), "liked", np.random.default_rng(0)) for d in (ds, other)]
    assert [s.knobs for s in fitted[0].values()] != [s.knobs for s in fitted[1].values()]


def test_popularity_and_mean_bias_known_answers():
    train = pd.DataFrame({"user_id": [1, 1, 2, 2], "item_id": [1, 2, 1, 3], "rating": [5.0, 1.0, 5.0, 5.0], "label": [1, 0, 1, 1]})
    asked = pd.DataFrame({"user_id": [1, 3], "item_id": [1, 4]})
    likes = me.popularity(me.interactions(train[train["label"] == 1], (4, 5)))
    assert likes.score_rows(asked).tolist() == [2, 0]
    assert likes.score_catalogue(np.array([1, 3])).tolist() == [[0, 2, 0, 1, 0]] * 2
    bias = me.mean_bias(train, (4, 5), (2, 1))
    of_user, of_item = np.zeros(4), np.zeros(5)
    for _ in range(5):
        for i in range(5):
            rows = train[train["item_id"] == i]
            of_item[i] = sum(r.rating - 4 - of_user[r.user_id] for r in rows.itertuples()) / (len(rows) + 1)
        for u in range(4):
            rows = train[train["user_id"] == u]
            of_user[u] = sum(r.rating - 4 - of_item[r.item_id] for r in rows.itertuples()) / (len(rows) + 2)
    np.testing.assert_allclose(bias.score_rows(asked), [4 + of_user[1] + of_item[1], 4], atol=1e-12)  # cold user and item: the mean
    np.testing.assert_allclose(bias.score_catalogue(np.array([2])), [4 + of_user[2] + of_item], atol=1e-6)


def test_item_knn_and_als_find_the_checkerboard():
    """Even users like even items, odd users odd ones; each lacks one item of its colour."""
    pairs = [(u, i) for u in range(1, 25) for i in range(1, 13) if u % 2 == i % 2 and i != (u % 12 or 12)]
    likes = me.interactions(pd.DataFrame(pairs, columns=["user_id", "item_id"]), (26, 14))
    missing = pd.DataFrame({"user_id": np.arange(1, 25), "item_id": [u % 12 or 12 for u in range(1, 25)]})
    wrong = missing.assign(item_id=missing["item_id"] % 12 + 1)
    with me.threadpool_limits(1, "blas"):
        for scorer in (me.item_knn(likes, ("cosine", 5)), me.item_knn(likes, ("bm25", 5)), me.als(likes, (1, 0.1), "likes", seed=7)):
            assert (scorer.score_rows(missing) > 2 * scorer.score_rows(wrong)).all()
            scores = scorer.score_catalogue(np.arange(26))
            assert scores.shape == (26, 14)
            np.testing.assert_allclose(scores[missing["user_id"], missing["item_id"]], scorer.score_rows(missing), rtol=1e-4)
            assert (scores[25] == 0).all() and (scores[:, 13] == 0).all()  # cold user, cold item


@pytest.mark.parametrize("name", ["item_knn", "als"])
def test_item_knn_and_als_choose_what_a_history_is_made_of(data, name):
    """By hand: every history with every point on validation users, and the best of these."""
    ds, truth = data
    rows, shape = ds.reviews[ds.reviews["split"] == "train"], (len(ds.users), len(ds.items))
    interest = {"likes": rows["label"], "graded": np.where(rows["label"] == 1, 1, np.maximum((rows["rating"] - 1) / 3, 0.01)), "rated": 1.0}
    asked = ds.reviews[(ds.reviews["split"] == "validation") & (ds.reviews["label"] == 1)]
    rng, found, users = np.random.default_rng(0), {}, np.arange(1, 40)
    task, seed = me.Catalogue(me.interactions(asked, shape), me.interactions(rows, shape), me.CHOICE_USERS, rng), int(rng.integers(2**31))
    make, grid = (me.item_knn, me.KNN_GRID) if name == "item_knn" else (partial(me.als, seed=seed), me.ALS_GRID)
    with me.threadpool_limits(1, "blas"):
        for kind, values in interest.items():
            history = me.interactions(rows, shape, values)
            history.eliminate_zeros()
            for knobs in grid:
                quality = me.list_metrics(task.rank(make(history, knobs).score_catalogue, 10)[1], task.n_relevant)["ndcg"].mean()
                found[kind, knobs] = quality, history
        kind, knobs = max(found, key=lambda point: found[point][0])
        best = make(found[kind, knobs][1], knobs, kind)
    chosen = me.fit_baselines([name], ds, KnownModel(truth), "liked", np.random.default_rng(0))[name]
    assert len({q for q, _ in found.values()}) > 6 and chosen.knobs == best.knobs
    np.testing.assert_allclose(chosen.score_catalogue(users)[:, 1:], best.score_catalogue(users)[:, 1:], rtol=1e-4, atol=1e-5)
    rated = me.fit_baselines([name], ds, KnownModel(truth), "rated", np.random.default_rng(0))
    assert rated[name].knobs["history"] == "rated"


def test_item_knn_is_the_sum_of_similarities():
    rng = np.random.default_rng(0)
    dense = (rng.random((40, 8)) < 0.4).astype(np.float32)
    scorer = me.item_knn(me.csr_matrix(dense), ("cosine", 8))
    unit = dense / np.maximum(np.linalg.norm(dense, axis=0), 1e-9)
    cosine = unit.T @ unit
    np.fill_diagonal(cosine, 0)
    np.testing.assert_allclose(scorer.score_catalogue(np.arange(40)), dense @ cosine, atol=1e-5)


def test_bootstrap_is_resampling_whole_users(data, monkeypatch):
    """Against a plain loop that repeats the rows of every drawn user, with the very same draws."""
    ds, truth = data
    test = ds.reviews[ds.reviews["split"] == "test"]
    rows = me.TestRows(test, [1.0, 5.0])
    score = np.round(KnownModel(truth).score_rows(test), 1)  # with ties
    result = me.Result("logit", score, np.empty((0, 7), int), np.empty((0, 7), bool))
    me.ratings_protocol(result, rows)
    me.list_protocols(result, rows, [3])
    drawn = me.bootstrap({"a": result, "b": result}, rows, 25, np.random.default_rng(9))
    for metric, values in drawn["a"].items():
        np.testing.assert_array_equal(values, drawn["b"][metric])  # shared draws: the paired difference of equal models is 0
    rng = np.random.default_rng(9)
    rows_of = [np.flatnonzero(rows.user == u) for u in range(rows.n_users)]
    for replicate in range(25):
        users = rng.integers(rows.n_users, size=rows.n_users)
        taken = np.concatenate([rows_of[u] for u in users])
        copy = np.repeat(np.arange(len(users)), [len(rows_of[u]) for u in users])  # a user drawn twice counts as two users
        label, logit = rows.label[taken], score[taken].astype(float)
        lists = me.own_row_lists(copy, rows.item[taken], label, logit, 3, len(users))
        liked = np.bincount(copy, weights=label).astype(int)
        means = me.list_metrics((label[lists] == 1) & (lists >= 0), liked)
        expected = {"ratings.auc": roc_auc_score(label, logit), "ratings.pr_auc": average_precision_score(label, logit),
                    "ratings.gauc": me.gauc(copy, label, logit, len(users)), "ratings.logloss": me.log_losses(label, logit).mean(),
                    "held_out.ndcg@3": means["ndcg"][liked > 0].mean(), "held_out.recall@3": means["recall"][liked > 0].mean()}
        for metric, value in expected.items():
            assert drawn["a"][metric][replicate] == pytest.approx(value, abs=2e-6), metric
    exact = drawn["a"]["ratings.auc"]
    monkeypatch.setattr(me, "BOOTSTRAP_THRESHOLDS", 60)
    coarse = me.bootstrap({"a": result}, rows, 25, np.random.default_rng(9))["a"]["ratings.auc"]
    np.testing.assert_allclose(coarse, exact, atol=2e-3)
    assert (coarse != exact).any()


def test_rmse_of_replicates_and_intervals_cover(data):
    ds, _ = data
    test = ds.reviews[ds.reviews["split"] == "test"]
    rows = me.TestRows(test, [1.0, 5.0])
    result = me.Result("rating", np.full(len(test), 9.0), np.empty((0, 5), int), np.empty((0, 5), bool))  # clipped to 5
    me.ratings_protocol(result, rows)
    drawn = me.bootstrap({"a": result}, rows, 400, np.random.default_rng(0))["a"]
    low, high = me.interval(drawn["ratings.rmse"])
    assert low < np.sqrt(np.mean((5 - rows.rating) ** 2)) < high
    assert "ratings.logloss" not in drawn and "ratings.ece" not in result.metrics
    assert drawn["ratings.auc"].tolist() == [0.5] * 400


def test_one_class_of_test_labels_gives_no_auc_and_a_nan_model_no_hits(run, data):
    ds, truth = data
    liked = relabelled(ds, label=np.where(ds.reviews["split"] == "test", 1, ds.reviews["label"]).astype(np.int8))
    metrics, _ = run("--bootstrap", 20, "--baselines", "popularity", ds=liked)
    assert set(metrics["models"]["wide_deep"]["ratings"]) == {"logloss", "ece", "gauc_users", "gauc_users_left_out"}
    assert metrics["models"]["wide_deep"]["ratings"]["gauc_users"] == 0 and "ratings.auc" not in metrics["intervals"]["wide_deep"]
    broken = KnownModel(truth, skill=np.nan)
    metrics, _ = run("--bootstrap", 20, "--baselines", "popularity", models={"best.pt": broken})
    ours = metrics["models"]["wide_deep"]
    assert ours["ratings"]["auc"] == 0.5 and "logloss" not in ours["ratings"] and ours["catalogue"]["hit_rate@20"] < 0.2


def test_refitted_models_meet_refitted_baselines(data):
    ds, truth = data
    model = KnownModel(truth)
    model.config["refit"] = True
    likes = me.fit_baselines(["popularity"], ds, model, "liked", np.random.default_rng(0))["popularity"].score_catalogue(np.array([1]))[0]
    rows = ds.reviews[(ds.reviews["split"] != "test") & (ds.reviews["label"] == 1)]
    assert likes.sum() == len(rows)


def test_ranking_has_probabilities_and_lists_of_its_parts_and_rating_has_errors(run, data):
    found = {}
    for objective in ("like", "ranking", "rating"):
        models = {name: KnownModel(data[1], objective=objective) for name in ("best.pt", "best.wide.pt")}
        found[objective] = run("--bootstrap", 20, "--baselines", "popularity", "wide_only", models=models)[0]["models"]
    for objective in ("like", "ranking"):
        assert {"logloss", "ece"} <= set(found[objective]["wide_deep"]["ratings"]) and not {"rmse", "mae"} & set(found[objective]["wide_deep"]["ratings"])
    assert {"rmse", "mae"} <= set(found["rating"]["wide_deep"]["ratings"]) and not {"logloss", "ece"} & set(found["rating"]["wide_deep"]["ratings"])
    assert [objective for objective in found if "catalogue" in found[objective]["wide_only"]] == ["ranking"]


def test_ablations_compare_and_the_warning(run, data, tmp_path, capsys):
    ds, truth = data
    models = {"best.pt": KnownModel(truth), "best.wide.pt": KnownModel(truth, 0.3), "best.deep.pt": KnownModel(truth, -1)}
    first, _ = run("--bootstrap", 20, models=models, picture=True)
    assert list(first["models"])[-2:] == ["wide_only", "deep_only"]
    assert first["differences"]["wide_only"]["ratings.auc"]["difference"] == pytest.approx(0)
    assert first["differences"]["deep_only"]["ratings.auc"]["interval"][0] > 0
    other = tmp_path / "other.json"
    other.write_text(json.dumps(first))
    leaky = Dataset(None, {**ds.index, "features": "as-published"}, ds.reviews, ds.users, ds.items, {})
    capsys.readouterr()
    second, picture = run("--bootstrap", 0, "--compare", other, ds=leaky, picture=True)
    assert "contain what is to be predicted" in second["protocol"]["warning"] and second["protocol"]["warning"] in capsys.readouterr().out
    assert picture.stat().st_size > 10_000
    with pytest.raises(InputError, match=r"--compare .*honest features; it takes these test rows with other --features"):
        run("--bootstrap", 0, "--compare", other)
    other_split = Dataset(None, {**leaky.index, "split": "per-user"}, ds.reviews, ds.users, ds.items, {})
    with pytest.raises(InputError, match=r"--compare .*with other --features"):
        run("--bootstrap", 0, "--compare", other, ds=other_split)


def test_a_list_of_one_item_has_no_diversity_and_takes_none_from_others(run, monkeypatch):
    drawn, original = [], me.diversity_at_k

    def of_lists(lists, train):
        drawn.append(original(lists, train))
        drawn[0][0] = np.nan  # as of a user who has one candidate
        return drawn[0]

    monkeypatch.setattr(me, "diversity_at_k", of_lists)
    found = run("--bootstrap", 20, "--k", 5, "--baselines", "popularity")[0]
    of_model = drawn[0][: len(drawn[0]) // len(found["models"]), 4]
    assert found["models"]["wide_deep"]["catalogue"]["diversity@5"] == pytest.approx(np.nanmean(of_model))
    assert "catalogue.diversity@5" in found["intervals"]["wide_deep"]


def test_the_three_files_are_three():
    for files in (["--metrics", "a", "--plot", "a"], ["--checkpoint", "a", "--plot", "./a"], ["--metrics", "a", "--checkpoint", str(Path("a").resolve())]):
        with pytest.raises(InputError, match="not a file of its own"):
            me.parse_args(files)


def test_learning_curves_go_on_after_the_best_epoch(run, data, monkeypatch):
    """training_history.json is taken where it goes on from what the checkpoint knows, as another training's does not."""
    model, drawn = KnownModel(data[1]), []
    further = {"epoch": 4, "train_loss": 0.1, "validation_loss": 0.9, "validation_auc": 0.6}
    read_text = Path.read_text
    for told in ([*model.history, further], [{"epoch": 1}, further], None):
        text = "broken" if told is None else json.dumps({"epochs": told})
        monkeypatch.setattr(Path, "read_text", lambda path, *a, text=text, **k: text if path.name == me.HISTORY else read_text(path, *a, **k))
        run("--bootstrap", 0, "--baselines", models={"best.pt": model}, draw=lambda *parts: drawn.append(parts[3]) or me.Figure())
    assert drawn == [[*model.history, further], model.history, model.history]


def test_calibration_is_drawn_where_all_training_ratings_are_equal():
    axis, rating = me.Figure().subplots(), np.full(40, 5.0)
    rows = SimpleNamespace(rating_range=(5.0, 5.0), rating=rating)
    me.draw_calibration(axis, SimpleNamespace(kind="rating", score=np.linspace(4, 6, 40)), rows)
    assert axis.get_xlim() == (5, 6)


def test_ratings_that_agree_in_six_digits_have_errors_of_their_own():
    rating = np.array([1_000_000.0, 1_000_001.0, 1_000_001.0, 3.5])
    rows = SimpleNamespace(rating=rating, error=lambda score: score - rating)
    found = me.errors_by_rating(SimpleNamespace(score=rating + np.array([1, 2, 4, 0])), rows)
    assert {name: (told["rows"], told["bias"]) for name, told in found.items()} == {"1000000": (1, 1.0), "1000001": (2, 3.0), "3.5": (1, 0.0)}


@pytest.mark.parametrize(("flags", "says"), [
    (("--k", "0"), "--k"), (("--k", "x"), "x"), (("--baselines", "magic"), "magic"), (("--ranking-users", "-1"), "--ranking-users"),
    (("--metrics", "/no/such/folder/m.json"), "--metrics"), (("--compare", "absent.json"), "--compare"), (("--seed", "-3"), "--seed")])
def test_bad_flags_are_one_line(run, flags, says, tmp_path):
    with pytest.raises(InputError, match=says):
        run(*flags)
    assert not list(tmp_path.iterdir())


ELSEWHERE = {"models": {"wide_deep": {"ratings": {"auc": 0.5}}}, "dataset": {"name": "elsewhere", "test_rows": 9},
             "protocol": {"features": "honest", "split": "time"}}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"models": {}}', '{"models": {"wide_deep": {"ratings": {"auc": "x"}}}}', "\x00\xff",
                                  json.dumps(ELSEWHERE)])
def test_malformed_comparison_is_refused_before_any_work(run, tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="--compare"):
        run("--compare", path)
    assert [p.name for p in tmp_path.iterdir()] == ["other.json"]


def test_ablations_of_another_training_are_refused(run, data):
    models = {"best.pt": KnownModel(data[1], objective="rating"), "best.wide.pt": KnownModel(data[1])}
    with pytest.raises(InputError, match=r"best\.wide\.pt was trained with another objective than .*best\.pt; run: python wide_deep_model.py .*--ablations"):
        run(models=models)


@pytest.mark.parametrize("stale", ["best.pt", "best.deep.pt"])
def test_checkpoint_of_other_data_is_refused(run, data, stale):
    models = {"best.pt": KnownModel(data[1]), "best.deep.pt": KnownModel(data[1])}
    models[stale].fingerprint = "another"
    with pytest.raises(InputError, match=rf"{stale} was trained on other data .*run: python wide_deep_model"):
        run(models=models)


def test_help_prints_every_default(capsys):
    with pytest.raises(SystemExit):
        me.parse_args(["--help"])
    text = "".join(capsys.readouterr().out.split())
    for name, value in vars(me.parse_args([])).items():
        assert f"default:{''.join(str(value).split())})" in text, name


def test_the_table_without_baselines_or_intervals_has_no_empty_parts(run, capsys):
    for flags in (("--baselines", "--bootstrap", 20), ("--baselines", "popularity", "--bootstrap", 0)):
        run(*flags)
        printed = capsys.readouterr().out
        assert "wide_deep" in printed and "cold_user" in printed and "Empty" not in printed and "nan" not in printed.lower()
