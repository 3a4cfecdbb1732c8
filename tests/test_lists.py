"""The pairs and the network behind the lists: closed form, loss, choices on validation users, what each may know, what is served."""

import itertools
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.special import log_softmax, softmax

import amazon_preprocessing as stage1
import model_evaluation as stage3
import wide_deep_model as stage2
from tests.test_training import largest_allocation, load, preprocess, random_log, run

RNG = np.random.default_rng(3)


def histories(users: int, items: int, share: float = 0.2, seed: int = 0, interests: tuple = (1.0, 0.25, 0.5)) -> csr_matrix:
    rng = np.random.default_rng(seed)
    dense = (rng.random((users, items + 1)) < share) * rng.choice(interests, (users, items + 1))
    dense[: users // 9, 1:] = 0  # some rated nothing
    dense[:, 0] = 1
    return csr_matrix(dense.astype(np.float32))


def liked(*of, **more) -> csr_matrix:
    return histories(*of, **more, interests=(1.0,))


def scores(history: csr_matrix, pairs: stage2.Pairs, taste: stage2.Taste | None = None) -> np.ndarray:
    return np.add(*stage2.list_parts(history, pairs, taste))


def one_by_one(history: csr_matrix, penalty: float, per_like: float) -> np.ndarray:
    """Each item's weighted ridge regression on the others, by a solver of least squares with the penalty as further rows."""
    x = history.toarray().astype(float)
    rated = (x[:, 1:] > 0).sum(axis=1)
    weight = np.where(rated > 0, np.maximum(rated, 1) ** stage2.USER_POWER, 0)
    weight *= (rated > 0).sum() / weight.sum()
    held_back = per_like * (weight @ x**2) + penalty
    pairs = -np.eye(x.shape[1])
    for item in range(x.shape[1]):
        others = np.delete(np.arange(x.shape[1]), item)
        rows = np.vstack([np.sqrt(weight)[:, None] * x[:, others], np.diag(np.sqrt(held_back[others]))])
        pairs[others, item] = np.linalg.lstsq(rows, np.append(np.sqrt(weight) * x[:, item], np.zeros(len(others))), rcond=None)[0]
    return pairs


@pytest.mark.parametrize("per_like", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("penalty", [1.0, 100.0])
def test_pairs_are_the_ridge_regression_of_each_item_on_the_others(penalty, per_like):
    history = histories(80, 14)
    found = stage2.fit_pairs(history, penalty, per_like)
    np.testing.assert_allclose(found[:, 1:], one_by_one(history, penalty, per_like)[:, 1:], atol=1e-5)
    assert found.dtype == np.float32 and np.abs(found[:, 1:] + np.eye(15)[:, 1:]).max() > 0.001


def test_over_a_large_catalogue_nothing_is_tried(shop, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stage2, "RIDGE_ITEMS", 5)
    model = stage2.load_model(run(tmp_path, shop[0] / "processed_data", "--epochs", "1"), "cpu")
    assert "power (1.0, 300.0, 0.3, 0.0)" in capsys.readouterr().out
    np.testing.assert_allclose(model.pairs.toarray(), stage2.fit_pairs(model.likes, 300.0, 0.3).toarray(), atol=1e-6)


@pytest.mark.parametrize("neighbours", [4, 100])
def test_a_large_catalogue_is_regressed_on_the_most_similar_items(monkeypatch, neighbours):
    history = histories(200, 20)
    whole = stage2.fit_pairs(history, 10.0, 0.3)
    monkeypatch.setattr(stage2, "RIDGE_ITEMS", 5)
    monkeypatch.setattr(stage2, "NEIGHBOURS", neighbours)
    found = stage2.fit_pairs(history, 10.0, 0.3)
    assert isinstance(found, csr_matrix) and found.dtype == np.float32
    if neighbours >= 20:
        np.testing.assert_allclose(found.toarray()[:, 1:], whole[:, 1:], atol=1e-5)
    assert (np.diff(found.tocsc().indptr) <= neighbours + 1).all() and (found.diagonal() == -1).all()
    np.testing.assert_allclose(scores(history, found)[:, 1:], (history @ found.toarray())[:, 1:], atol=1e-5)


@pytest.mark.parametrize("network", [False, True])
def test_list_quality_is_the_catalogue_ndcg_of_stage_3(network):
    """Which is tested against an independent library. What lies in the history cannot be found, and counts as missed."""
    history, held = histories(60, 30, 0.1), liked(60, 30, 0.1, seed=1)
    pairs, taste = RNG.standard_normal((31, 31)).astype(np.float32), small_taste(31) if network else None
    relevant, seen = held.toarray() > 0, history.toarray() > 0
    relevant[:, 0] = False
    scales, powers, expected = (5.0, 0.5) if network else (1.0,), (0.0, 0.2, 0.5), []
    for scale in scales:
        for power in powers:
            score = history.toarray() @ pairs + (scale * taste(history).detach().numpy() if network else 0)
            _, hits = stage3.top_k_lists(score / np.maximum(history.toarray().sum(axis=0), 1) ** power, relevant, 10, seen)
            expected.append(stage3.list_metrics(hits, relevant.sum(axis=1))["ndcg"][relevant.any(axis=1)].mean())
    np.testing.assert_allclose(stage2.list_quality(history, pairs, held, taste, scales, powers), expected, atol=1e-6)
    assert len({*np.round(expected, 6)}) == len(expected)  # each of them makes other lists
    assert stage2.list_quality(history, pairs, histories(60, 30, 0.0), taste, scales, powers).tolist() == [0.0] * len(expected)


@pytest.mark.parametrize("ridge_items", [8000, 1])
def test_a_power_of_its_likes_divides_an_items_pairs(monkeypatch, ridge_items):
    monkeypatch.setattr(stage2, "RIDGE_ITEMS", ridge_items)
    history = histories(80, 14)
    whole, divided = (scores(history, stage2.fit_pairs(history, 10.0, 0.3, power)) for power in (0.0, 0.3))
    likes = history.toarray().sum(axis=0)
    likes /= likes.mean()  # so that scores stay as large as they are
    np.testing.assert_allclose(divided[:, 1:], whole[:, 1:] / likes[1:] ** 0.3, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    return folder, preprocess(folder, random_log(1500, seed=5))


def interest(row: pd.Series, grade: float) -> float:
    """By hand, of ratings 1 to 5 that are likes from 4 on."""
    return 1.0 if row["rating"] >= 4 else {1: 0.01, 2: 1 / 3, 3: 2 / 3}[row["rating"]] ** grade


def by_grade(ds: stage1.Dataset, splits: list[str], grade: float) -> csr_matrix:
    dense = np.zeros((len(ds.users), len(ds.items)), np.float32)
    dense[:, 0] = 1
    for _, row in ds.reviews[ds.reviews["split"].isin(splits)].iterrows():
        dense[row["user_id"], row["item_id"]] = interest(row, grade)
    return csr_matrix(dense)


KNOBS = [(grade, *penalty, power) for grade in stage2.GRADES for penalty in stage2.PENALTIES for power in stage2.POWERS]


def test_histories_are_the_training_ratings_and_with_refit_those_of_validation(shop, tmp_path):
    (folder, ds), chosen = shop, []
    for name, flags, splits in (("a", [], ["train"]), ("b", ["--refit"], ["train", "validation"])):
        model = stage2.load_model(run(tmp_path / name, folder / "processed_data", "--epochs", "1", *flags), "cpu")
        same, expected = [], {grade: by_grade(ds, splits, grade) for grade in stage2.GRADES}
        for grade, *knobs in KNOBS:  # histories of some grade, and the pairs are those of these histories, of some knobs
            history = expected[grade]
            same.append(abs(history - model.likes).max() < 1e-6 and np.allclose(model.pairs, stage2.fit_pairs(history, *knobs), atol=1e-6))
        assert sum(same) == 1
        chosen.append(same.index(True))
    assert chosen[0] == chosen[1]  # chosen on training and validation rows before both are joined


@pytest.mark.parametrize("lowest, like, rating, expected", [
    (1, 4, [5, 4, 3, 2, 1, 0], [1, 1, 2 / 3, 1 / 3, 0.01, 0.01]),  # 0: a row of a later split
    (-10, 0, [3, 0, -5, -10], [1, 1, 0.5, 0.01]), (1, 1, [1, 1], [1, 1]), (3, 1, [3, 2], [1, 1])])
def test_an_interest_is_the_way_from_the_lowest_rating_to_a_like(lowest, like, rating, expected):
    rows = pd.DataFrame({"user_id": 2, "item_id": range(1, len(rating) + 1), "rating": rating, "label": [int(r >= like) for r in rating]})
    index, shape = {"rating_range": [lowest, 5], "positive_threshold": like}, (3, len(rating) + 1)
    for grade, interest in ((1.0, expected), (2.0, np.square(expected)), (0.0, np.ones(len(rating))), (np.inf, rows["label"])):
        found = stage2.histories(rows, grade, shape, index)
        assert found.dtype == np.float32 and (found.indptr[-1] == 3 + len(rating) or grade == np.inf)  # all that is rated is there
        np.testing.assert_allclose(found.toarray(), [[1, *[0] * len(rating)]] * 2 + [[1, *interest]], rtol=1e-6)


def test_the_knobs_are_the_best_ones_on_validation_users_and_test_rows_change_nothing(shop, tmp_path, capsys):
    folder, ds = shop
    path = run(tmp_path / "a", folder / "processed_data", "--epochs", "1")
    told = capsys.readouterr().out
    asked = ds.reviews["split"].eq("validation") & ds.reviews["label"].eq(1)
    held = by_grade(stage1.Dataset(ds.folder, ds.index, ds.reviews[asked], ds.users, ds.items, ds.vocabularies), ["validation"], 0.0)
    train = {grade: by_grade(ds, ["train"], grade) for grade in stage2.GRADES}
    quality = {(grade, *one): stage2.list_quality(train[grade], stage2.fit_pairs(train[grade], *one), held).item() for grade, *one in KNOBS}
    best = max(quality, key=quality.get)
    assert len(set(quality.values())) > 24 and f"power {best}" in told and f"validation NDCG@10 {quality[best]:.4f}" in told
    test = ds.reviews["split"] == "test"
    turned = ds.reviews.assign(label=ds.reviews["label"].where(~test, 1 - ds.reviews["label"]), rating=ds.reviews["rating"].where(~test, 3))
    shuffled = stage1.Dataset(ds.folder, ds.index, turned, ds.users, ds.items, ds.vocabularies)
    args = stage2.parse_args(["--checkpoint", str(tmp_path / "x.pt")])
    again = stage2.Run(args, shuffled).fit_lists("wide", False)
    saved = torch.load(path, weights_only=True)["lists"]
    assert saved["chosen"] is None and not saved["taste"]
    assert all(torch.equal(saved[name][part], again[name][part]) for name in ("likes", "pairs") for part in saved[name])


def test_a_history_at_call_time_is_worth_as_much_as_a_users_own(shop, tmp_path):
    folder, ds = shop
    model = stage2.load_model(run(tmp_path, folder / "processed_data", "--epochs", "1"), "cpu")
    user, items = int(np.diff(model.likes.indptr).argmax()), model.items["item"].to_numpy()
    rows = ds.reviews[(ds.reviews["user_id"] == user) & (ds.reviews["split"] == "train")]
    ratings = dict(zip(items[rows["item_id"]], rows["rating"]))
    assert model.grade > 0 and min(ratings.values()) < 4 < max(ratings.values())
    own, given = model.recommend(model.users["user"][user], n=1000, keep_seen=True), model.recommend(history=ratings, n=1000, keep_seen=True)
    pd.testing.assert_frame_equal(own, given)
    assert not {*ratings} & {*model.recommend(history=ratings, n=1000)["item"]}
    for same in (ratings | {"unheard of": 5.0}, pd.Series(ratings), ratings | {items[(rows["item_id"].max()) % 80 + 1]: np.nan} | ratings):
        assert given.equals(model.recommend(history=same, n=1000, keep_seen=True))
    assert model.recommend(history=items[3]).equals(model.recommend(history=[items[3]])) and len(model.recommend(history=[items[3], items[3]], n=5)) == 5
    liked = [*ratings]  # without ratings all are likes
    assert model.recommend(history=liked).equals(model.recommend(history=dict.fromkeys(liked, 5))) and not model.recommend(history=liked).equals(
        model.recommend(history=ratings))
    assert model.recommend(history=[], n=5).equals(model.recommend("nobody", n=5)) and model.recommend(history=["unheard of"], n=5).equals(model.recommend(n=5))


def test_lists_of_all_users_are_those_of_each(shop, tmp_path, monkeypatch):
    """One by one and block by block; a small catalogue ends before 40 items."""
    folder, ds = shop
    model = stage2.load_model(run(tmp_path, folder / "processed_data", "--epochs", "1"), "cpu")
    monkeypatch.setattr(stage2, "USER_BLOCK", 50)
    for n in (3, len(ds.items)):
        model.recommend_all(tmp_path / "lists.parquet", n)
        found = dict(iter(pd.read_parquet(tmp_path / "lists.parquet").groupby("user", sort=False)))
        assert [*found] == ds.users["user"][1:].tolist()
        for user in [*found][::17]:
            expected = model.recommend(user, n)
            assert found[user]["item"].tolist() == expected["item"].tolist() and found[user]["rank"].tolist() == expected["rank"].tolist()
            np.testing.assert_allclose(found[user]["score"], expected["score"], atol=1e-6)


def test_lists_find_what_goes_together():
    """Items 2k - 1 and 2k are liked by the same users: who liked one gets the other first, whatever else is popular."""
    rng = np.random.default_rng(0)
    dense = np.repeat(rng.random((400, 10)) < 0.15, 2, axis=1) & (rng.random((400, 20)) < 0.9)
    dense |= (np.arange(20) == 0) & (rng.random((400, 20)) < 0.6)
    pairs = stage2.fit_pairs(csr_matrix(np.c_[np.ones(400), dense].astype(np.float32)), 10.0, 0.3)
    for item in range(3, 21):
        row = csr_matrix(([1.0, 1.0], [0, item], [0, 2]), (1, 21), dtype=np.float32)
        score = scores(row, pairs)[0]
        score[1] = -np.inf  # the one that most like
        assert score.argmax() == (item - 1 ^ 1) + 1


def test_raw_ids_may_look_like_anything_and_name_what_has_no_title(tmp_path):
    """Like our word for the unknown, or like numbers, which a Series of raw ids is not taken for."""
    log = random_log(600, 30, 20)
    log["item"] = log["item"].map(lambda item: "<unknown>" if item == 3 else str(item))
    log.to_csv(tmp_path / "log.csv", index=False)
    columns = "user=user,item=item,rating=rating,timestamp=timestamp"
    stage1.main(["--input", str(tmp_path / "log.csv"), "--columns", columns, "--min-core", "1", "--output-dir", str(tmp_path / "d")])
    model = stage2.load_model(run(tmp_path, tmp_path / "d", "--epochs", "1"), "cpu")
    ids = [*model.items["item"][1:]]
    assert "<unknown>" in ids and [model.encode([], [item])[1][0] for item in ids] == [*range(1, len(ids) + 1)]
    assert model.recommend(history=pd.Series(["4", "5"])).equals(model.recommend(history=["4", "5"]))
    user = model.users["user"][int(np.diff(model.likes.indptr).argmax())]
    found = model.explain(user, "4").query("of == 'list'")["feature"]
    assert {*found} - {"anybody"} <= {*ids} and found.is_unique and len(found) > 5


@pytest.mark.parametrize("component", ["wide-deep", "wide", "deep"])
def test_explanations_add_up_to_the_scores(shop, tmp_path, component):
    folder, ds = shop
    model = stage2.load_model(run(tmp_path, folder / "processed_data", "--epochs", "2", "--component", component,
                                  *([] if component == "deep" else ["--wide", "user_id", "item_id", "cross_user_category", "item_avg_rating"])), "cpu")
    user, item = ds.users["user"][int(np.diff(model.likes.indptr).argmax())], ds.items["item"][5]
    found = model.explain(user, item)
    total = found.groupby("of")["contribution"].sum()
    like = total.drop("list", errors="ignore").sum()
    np.testing.assert_allclose(1 / (1 + np.exp(-like)), model.predict([user], [item])[0], rtol=1e-5)
    assert (abs(total["deep"]) < 1e-6) == (component == "wide")  # the network has what the features of the wide part leave
    assert {"item_id", "item_avg_rating", "bias"} <= {*found["feature"]} or component == "deep"
    np.testing.assert_allclose(total["list"], model.score_catalogue(np.array([model.user_index.get_loc(user)]))[0, 5], atol=1e-5)
    assert (found["of"] == "list").sum() == np.diff(model.likes.indptr).max() and "anybody" in set(found["feature"])
    assert found["contribution"].abs().is_monotonic_decreasing and len(model.explain("nobody", "nothing"))
    assert not model.explain(user, "nothing").query("of == 'list'")["contribution"].any()  # an item that no list can hold
    np.testing.assert_array_equal(model.predict(user, item), model.predict([user], [item]))


@pytest.mark.parametrize("large", [False, True])
def test_a_log_without_likes_is_listed_too(monkeypatch, large):
    if large:
        monkeypatch.setattr(stage2, "RIDGE_ITEMS", 1)
    nobody = histories(20, 6, share=0.0)
    found = scores(nobody, stage2.fit_pairs(nobody, 10.0, 0.3))
    assert np.isfinite(found[:, 1:]).all() and (found[:, 0] == -np.inf).all()


# --------------------------------------------------------------------------------------------------- the network beside the pairs
def small_taste(items: int, seed: int = 0) -> stage2.Taste:
    torch.manual_seed(seed)
    taste = stage2.Taste(np.arange(items))
    torch.nn.init.normal_(taste.item.weight, std=0.3)
    return taste


def by_hand(taste: stage2.Taste, history: np.ndarray) -> np.ndarray:
    """Logits of the same network from its weights, in numpy, one history after the other."""
    weights = {name: value.detach().numpy().astype(float) for name, value in taste.state_dict().items()}
    rows = []
    for row in history:
        pooled = np.tanh(row @ weights["liked.weight"] / np.sqrt((row > 0).sum()))
        vector = np.tanh(weights["hidden.weight"] @ pooled + weights["hidden.bias"])
        rows.append(weights["item.weight"][:, :-1] @ vector + weights["item.weight"][:, -1])
    return np.array(rows)


def test_the_network_scores_pooled_histories():
    """scale x interests x probability: the scores of a history add up to the scale times its interests, the constant one of them."""
    history, taste = histories(30, 12), small_taste(13)
    logits = by_hand(taste, history.toarray())
    with torch.no_grad():
        np.testing.assert_allclose(taste.logits(history, np.array([7, 2])), logits[:, [7, 2]], atol=1e-5)
        taste.scale.fill_(0.7)
        found = taste(history).numpy()
    likes = history.toarray().sum(axis=1)
    np.testing.assert_allclose(found[:, 1:], 0.7 * likes[:, None] * softmax(logits[:, 1:], axis=1), rtol=1e-4)
    assert (found[:, 0] == 0).all() and found.shape == (30, 13)
    np.testing.assert_allclose(found.sum(axis=1), 0.7 * likes, rtol=1e-5)


def test_a_step_of_the_network_takes_no_memory_like_its_tables():
    """Rows of a table that is trained lie apart, and an operator that wants them together copies all of them."""
    history, taste = histories(20, 30), small_taste(3_000)
    history.resize(20, 3_000)
    optimizers = [stage2.RowOptimizer([table.weight], 1e-3, table=True) for table in (taste.liked, taste.item)]

    def step():
        taste.logits(history, np.arange(1, 40)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        taste.zero_grad()

    assert largest_allocation(step) < taste.item.weight.nbytes / 4


def test_an_untrained_network_knows_what_is_popular():
    popularity = np.array([50, 3, 40, 0, 12, 7])
    with torch.no_grad():
        found = stage2.Taste(popularity)(histories(20, 5)).numpy()[:, 1:]
    assert (found.argsort(axis=1) == popularity[1:].argsort()).all()


def visible_part(history: csr_matrix) -> csr_matrix:
    part = history.copy()
    part.data[(np.arange(part.nnz) % 2 == 0) & (part.indices > 0)] = 0
    part.eliminate_zeros()
    return part


def test_the_loss_is_that_of_the_network_alone_and_of_its_sum_with_the_pairs():
    """Log loss of all that was liked, squared error of the sum outside the visible part; the constant is neither liked nor listed."""
    history, taste, weight = histories(9, 12), small_taste(13), np.linspace(1, 2, 9)
    visible, pairs = visible_part(history), RNG.standard_normal((13, 13)).astype(np.float32)
    wide, log_chance = visible.toarray() @ pairs, log_softmax(by_hand(taste, visible.toarray())[:, 1:], axis=1)
    expected = 0.0
    for user, item in itertools.product(range(9), range(1, 13)):
        liked, chance = history[user, item], log_chance[user, item - 1]
        error = wide[user, item] + taste.scale.item() * history[user].sum() * np.exp(chance) - liked
        expected += weight[user] * ((not visible[user, item]) * error**2 - liked * chance)
    found = stage2.list_loss(taste, history, visible, pairs, weight, np.arange(1, 13))
    assert 0 < visible.nnz < history.nnz and found.item() == pytest.approx(expected, rel=1e-4)
    assert stage2.list_loss(taste, history, visible, csr_matrix(pairs), weight, np.arange(1, 13)).item() == pytest.approx(expected, rel=1e-4)


def test_a_sample_of_the_items_stands_for_all_not_liked():
    """Of six items two are drawn: an item not liked counts three times if drawn, else not at all, in the softmax as in the squared error."""
    history, taste, weight = histories(9, 6), small_taste(7), np.linspace(1, 2, 9)
    visible, pairs = visible_part(history), RNG.standard_normal((7, 7)).astype(np.float32)
    logits, wide, liked = by_hand(taste, visible.toarray())[:, 1:], (visible.toarray() @ pairs)[:, 1:], history.toarray()[:, 1:]
    counted = []
    for sample in itertools.combinations(range(1, 7), 2):
        stands_for = np.where(liked > 0, 1, 3 * np.isin(np.arange(1, 7), sample))
        log_chance = logits - np.log((stands_for * np.exp(logits)).sum(axis=1, keepdims=True))
        error = wide + taste.scale.item() * (liked.sum(axis=1, keepdims=True) + 1) * np.exp(log_chance) - liked
        expected = (weight[:, None] * (stands_for * (visible.toarray()[:, 1:] == 0) * error**2 - liked * log_chance)).sum()
        assert stage2.list_loss(taste, history, visible, pairs, weight, np.array(sample)).item() == pytest.approx(expected, rel=1e-4)
        counted.append(stands_for)
    np.testing.assert_allclose(np.mean(counted, axis=0), 1)


def taste_args(**changes) -> stage2.Namespace:
    return stage2.Namespace(**({"seed": 1, "device": "cpu"} | changes))


def test_nobody_is_trained_with_pairs_that_know_their_likes(monkeypatch):
    history, known, seen, shares, knobs = histories(60, 10), {}, set(), [], []
    fit, loss, network, popularity = stage2.fit_pairs, stage2.list_loss, stage2.Taste, []

    def fit_and_remember(part, *of):
        knobs.append(of)
        pairs = fit(part, *of)
        known[id(pairs)] = pairs, {row.tobytes() for row in part.toarray()}
        return pairs

    def check(taste, part, visible, pairs, *rest):
        rows = {row.tobytes() for row in part.toarray() if row.sum() > 1}
        assert rows and not rows & known[id(pairs)][1]
        assert (visible.toarray() <= part.toarray()).all() and (visible.toarray()[:, 0] == 1).all()
        seen.update(rows)
        shares.append((visible.nnz - visible.shape[0]) / (part.nnz - part.shape[0]))
        return loss(taste, part, visible, pairs, *rest)

    distinct = {row.tobytes() for row in history.toarray() if row.sum() > 1}
    _, first = np.unique(history.toarray(), axis=0, return_index=True)  # equal histories of two users would look like a leak
    history = csr_matrix(np.r_[history.toarray()[np.sort(first)]])
    monkeypatch.setattr(stage2, "fit_pairs", fit_and_remember)
    monkeypatch.setattr(stage2, "list_loss", check)
    monkeypatch.setattr(stage2, "Taste", lambda items: popularity.append(items) or network(items))
    monkeypatch.setattr(stage2, "ROUND_STEPS", 4)
    stage2.fit_taste(history, fit(history, 10.0, 0.3), (10.0, 0.3, 0.3), history, (1, 1.0), taste_args())
    assert knobs == [(10.0, 0.3)] * stage2.FOLDS  # not divided: what the network adds to is an expected like
    np.testing.assert_allclose(popularity, [history.toarray().sum(axis=0)], rtol=1e-6)
    assert seen == distinct and abs(1 - np.mean(shares) - stage2.HIDDEN_SHARE) < 0.1


def test_the_network_learns_what_pairs_cannot_say(monkeypatch):
    """Who likes exactly one of items 1 and 2 likes item 4, who likes both or none likes item 3: no sum over pairs tells it. A sample of
    the items is all that it learns from."""
    for name, value in {"HIDDEN_SHARE": 0.3, "TASTE": (64, 32), "TASTE_DECAY": 0.0, "RIDGE_ITEMS": 5, "SAMPLED": 4}.items():
        monkeypatch.setattr(stage2, name, value)
    rng = np.random.default_rng(0)

    def log(users: int, told: bool) -> csr_matrix:
        one, two = rng.random((2, users)) < 0.5
        dense = np.c_[np.ones(users), one, two, (one == two) & told, (one != two) & told, rng.random((users, 3)) < 0.3]
        return csr_matrix(dense.astype(np.float32))

    history, asked = log(3000, True), log(400, False)
    pairs = stage2.fit_pairs(history, 10.0, 0.3)
    one, two = asked.toarray()[:, 1:3].T > 0
    expected = np.where(one == two, 3, 4)
    both = stage2.fit_taste(history, pairs, (10.0, 0.3, 0.0), csr_matrix(history.shape, dtype=np.float32), (12, 1.0), taste_args())[0]
    of_pairs, of_both = (scores(asked, pairs, taste)[:, 3:5].argmax(axis=1) + 3 == expected for taste in (None, both))
    assert of_pairs.mean() < 0.6 and of_both.mean() > 0.8


def test_rounds_and_scale_are_those_of_the_best_validation_lists(monkeypatch):
    history, held, told = histories(60, 12), liked(60, 12, 0.1, seed=1), iter([[0.1, 0.3, 0.2], [0.2, 0.2, 0.4], [0.4, 0.1, 0.1], *[[0.0] * 3] * 12])
    monkeypatch.setattr(stage2, "ROUND_STEPS", 4)
    pairs, alone, states, quality = stage2.fit_pairs(history, 10.0, 0.3, 0.2), [0.25], [], stage2.list_quality

    def measured(history, pairs, held, taste=None, scales=(1.0,)):
        if held.nnz == 0:
            return quality(history, pairs, held, taste, scales)
        if taste is None:
            return np.array(alone)
        assert len(quality(history, pairs, held, taste, scales)) == len(scales) == 3
        states.append(deepcopy(taste.state_dict()))
        return np.array(next(told))

    def fitted(chosen=None, asked=held):
        return stage2.fit_taste(history, pairs, (10.0, 0.3, 0.2), asked, chosen, taste_args())

    monkeypatch.setattr(stage2, "list_quality", measured)
    taste, chosen = fitted()
    assert chosen == (2, 0.25) and len(states) == 2 + stage2.LIST_PATIENCE  # an equal value is no gain
    assert taste.scale.item() == pytest.approx(0.25 * states[1]["scale"].item())
    torch.testing.assert_close(taste.item.weight.data, states[1]["item.weight"])
    again, kept = fitted(chosen, held - held)  # a refit, where there is nobody to ask
    assert kept == chosen and len(states) == 2 + stage2.LIST_PATIENCE
    torch.testing.assert_close(again.state_dict(), taste.state_dict())
    told, alone = iter([[0.1, 0.3, 0.2], *[[0.0] * 3] * 12]), [0.3]
    taste, chosen = fitted()
    assert chosen[1] == 0 and taste.scale.item() == 0  # lists are as good without it
    told = iter([*([0.02 * n, 0.0, 0.0] for n in range(1, 17)), *[[0.0] * 3] * 12])
    assert fitted()[1] == (16, 1.0)  # better than without it only from then on


def test_the_ranking_objective_saves_and_serves_both_parts(shop, tmp_path, monkeypatch):
    folder, ds = shop
    for name in ("ROUND_STEPS", "ROUNDS"):
        monkeypatch.setattr(stage2, name, 4)
    quality = stage2.list_quality  # on so small a log no network is sure to be better
    monkeypatch.setattr(stage2, "list_quality", lambda *of, **more: quality(*of, **more) + (len(of) > 3 and of[3] is not None))
    flags, models, paths = ["--epochs", "1", "--objective", "ranking", "--ablations"], {}, {}
    for name, more in (("plain", []), ("refit", ["--refit"])):
        path = run(tmp_path / name, folder / "processed_data", *flags, *more)
        paths |= {(name, part): path if part == "both" else path.with_suffix(f".{part}.pt") for part in ("both", "wide", "deep")}
    for (name, part), path in paths.items():
        model = models[name, part] = stage2.load_model(path, "cpu")
        assert bool(load(path)["lists"]["chosen"]) == (part != "wide")
        assert (model.taste is None) == (part == "wide") and (abs(model.pairs).sum() == 0) == (part == "deep")
        user = ds.users["user"][int(np.diff(model.likes.indptr).argmax())]
        code, listed = model.user_index.get_loc(user), model.recommend(user, n=8)
        np.testing.assert_allclose(listed["wide"] + listed["deep"], listed["score"], atol=1e-6)
        np.testing.assert_allclose(model.score_catalogue(np.array([code]))[0][model.item_index.get_indexer(listed["item"])], listed["score"], atol=1e-6)
        assert listed["deep"].any() == (model.taste is not None) and listed["wide"].any() == (part != "deep")
        found = model.explain(user, listed["item"][0])
        assert found[found["of"] == "list"]["contribution"].sum() == pytest.approx(listed["score"][0], abs=1e-5)
    assert models["refit", "both"].likes.nnz > models["plain", "both"].likes.nnz
