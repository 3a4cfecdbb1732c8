"""What a user's ratings of similar items were: the cross history item x candidate of single rows."""

import numpy as np
import pandas as pd
import pytest

import amazon_preprocessing as stage1
import wide_deep_model as stage2
from tests.conftest import preprocess, random_log

DEFAULT = ["--device", "cpu"]


def fitted(ds: stage1.Dataset, known: pd.DataFrame, *flags: str) -> stage2.Inputs:
    return stage2.fit_inputs(ds, known, stage2.choose_features(stage2.parse_args([*DEFAULT, *flags]), ds))


def columns(inputs: stage2.Inputs, rows: pd.DataFrame) -> np.ndarray:
    return np.stack([inputs.similar(rows)[name] for name in stage2.SIMILAR], axis=1)


def brute_force(ds: stage1.Dataset, known: pd.DataFrame, row: pd.Series, is_known: bool) -> tuple[float, float]:
    """The definition, for one row, with nothing shared between rows."""
    user, item, damping = int(row["user_id"]), int(row["item_id"]), stage1.DAMPING
    trained, average = ds.items["train_count"].to_numpy(), np.nan_to_num(ds.items["item_avg_residual"].to_numpy())
    residual = np.full((len(ds.users), len(ds.items)), np.nan)
    expected = known["rating"].mean() + (average * trained / (trained + damping))[known["item_id"]]
    residual[known["user_id"], known["item_id"]] = known["rating"] - expected
    deviation = np.nan_to_num(residual - (np.nansum(residual, 1) / ((~np.isnan(residual)).sum(1) + damping))[:, None])
    if is_known:
        deviation = deviation[np.arange(len(deviation)) % stage2.FOLDS != user % stage2.FOLDS]
    norm = np.sqrt((deviation**2).sum(0) + stage2.COSINE_DAMPING)
    cosine = deviation.T @ deviation[:, item] / norm / norm[item]
    nearest = [j for j in np.argsort(-cosine)[: stage2.NEIGHBOURS + 1] if j != item]  # itself is one of them
    own = residual[user].copy()
    own[item] = np.nan
    rated = [j for j in nearest if cosine[j] > 0 and not np.isnan(own[j])]
    weights = cosine[rated] / stage2.COSINE_UNIT
    offset = np.nansum(own) / ((~np.isnan(own)).sum() + damping)
    return weights.sum(), (weights @ own[rated] / weights.sum() - offset if rated else 0.0)


@pytest.mark.parametrize("neighbours", [4, 100])
def test_it_is_the_damped_item_knn_without_the_own_rating_and_fold(tmp_path, monkeypatch, neighbours):
    monkeypatch.setattr(stage2, "NEIGHBOURS", neighbours)
    monkeypatch.setattr(stage2, "SCORE_BLOCK", 37)
    ds = preprocess(tmp_path, random_log(900, 50, 30))
    known = ds.rows("train")
    inputs = fitted(ds, known)
    for name in stage1.SPLITS:
        rows = ds.rows(name).sample(60, random_state=0)
        expected = [brute_force(ds, known, row, name == "train") for _, row in rows.iterrows()]
        np.testing.assert_allclose(columns(inputs, rows), expected, rtol=1e-4, atol=1e-4)
        assert np.count_nonzero(np.array(expected)[:, 0]) > 10


def test_a_training_row_does_not_know_its_own_rating(tmp_path):
    """Two ratings of one fold of users change places: nothing changes for these two rows, all else of these users does."""
    ds = preprocess(tmp_path, random_log(900, 50, 30))
    known = ds.rows("train")
    of_fold = known.index[known["user_id"] % stage2.FOLDS == 1]
    one = of_fold[0]
    other = next(row for row in of_fold if known.loc[row, "rating"] != known.loc[one, "rating"] and known.loc[row, "user_id"] != known.loc[one, "user_id"])
    before = columns(fitted(ds, known), known)
    swapped = known.copy()
    swapped.loc[[one, other], "rating"] = known.loc[[other, one], "rating"].to_numpy()
    after = columns(fitted(ds, swapped), swapped)
    changed = (np.abs(before - after) > 1e-6).any(axis=1)
    assert not changed[[one, other]].any()
    assert changed[known["user_id"].isin(known.loc[[one, other], "user_id"])].mean() > 0.5


def test_noise_says_nothing_of_training_rows_and_similarities_of_all_users_would(tmp_path):
    log = random_log(4000, 200, 60)
    log["rating"] = np.random.default_rng(1).integers(1, 6, len(log))
    ds = preprocess(tmp_path, log)
    known = ds.rows("train")
    inputs = fitted(ds, known)
    honest = columns(inputs, known)[:, 1]
    inputs.similarities = inputs.similarities[:1] * 2  # what a training row would see if its own user counted
    inputs.similarities += inputs.similarities[:1] * (stage2.FOLDS - 1)
    leaky = columns(inputs, known)[:, 1]
    deviation = known["rating"] - known["rating"].mean()
    assert abs(np.corrcoef(honest, deviation)[0, 1]) < 4 / np.sqrt(len(known)) < 0.1 < np.corrcoef(leaky, deviation)[0, 1]


def test_it_finds_whose_items_go_together_in_rows_never_seen(tmp_path):
    """Items of two kinds; every user likes one and not the other, so that no average of a user or an item says anything."""
    log = random_log(3000, 150, 80)
    sign = np.where((log["user"] // 2 + log["item"]) % 2, 1, -1)
    log["rating"] = np.clip(np.round(3 + 1.4 * sign + np.random.default_rng(0).normal(0, 0.8, len(log))), 1, 5)
    ds = preprocess(tmp_path, log, "--split", "random")
    test = ds.rows("test")
    found = columns(fitted(ds, ds.rows("train")), test)[:, 1]
    assert np.corrcoef(found, test["rating"])[0, 1] > 0.6
    assert abs(test["user_avg_rating"].corr(test["rating"])) < 0.3


def test_it_is_fitted_for_those_who_name_it_and_served_as_it_was_validated(tmp_path, monkeypatch):
    ds = preprocess(tmp_path, random_log())
    known, rows = ds.rows("train"), ds.rows("validation")
    assert not fitted(ds, known, "--wide", "user_id", "--deep", "item_id").similarities
    assert len(fitted(ds, known, "--wide", "user_id", "--deep", "item_id", stage2.SIMILAR[0]).similarities) == 1 + stage2.FOLDS
    validated = []
    monkeypatch.setattr(stage2, "validate", lambda model, rows, config: validated.append(stage2.logits(model, rows)) or {"validation_loss": 1 / len(validated)})
    quick = ["--hidden", "16", "--embedding-dim", "4", "--epochs", "2", *DEFAULT]
    stage2.main(["--data-dir", str(ds.folder), "--checkpoint", str(tmp_path / "best.pt"), *quick])
    model = stage2.load_model(tmp_path / "best.pt", "cpu")
    np.testing.assert_allclose(model.score_rows(rows), validated[-1], rtol=1e-5, atol=1e-5)
    assert columns(model.features, rows)[:, 0].max() > 1
    explained = model.explain(ds.users["user"][1], ds.items["item"][1])
    assert stage2.SIMILAR[1] in explained.loc[explained["of"] == "wide", "feature"].tolist()
