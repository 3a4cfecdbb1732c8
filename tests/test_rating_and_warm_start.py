"""FTRL against its published rule, a warm start against the tables it came from, and the rating objective against arithmetic."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import amazon_preprocessing as stage1
import model_evaluation as stage3
import wide_deep_model as stage2
from readers import InputError
from tests.conftest import preprocess, random_log, write_metadata
from tests.test_training import QUICK, load, run


def ftrl_of_the_paper(gradients: list[np.ndarray], alpha: float, l1: float, start: float) -> list[np.ndarray]:
    """McMahan et al. 2013, algorithm 1, coordinate by coordinate, with beta = 0, lambda2 = 0 and n = start in the beginning."""
    size = len(gradients[0])
    z, n, weights, found = [0.0] * size, [start] * size, [0.0] * size, []
    for gradient in gradients:
        for i, g in enumerate(gradient):
            if g == 0:
                continue
            sigma = (math.sqrt(n[i] + g * g) - math.sqrt(n[i])) / alpha
            z[i] += g - sigma * weights[i]
            n[i] += g * g
            weights[i] = 0.0 if abs(z[i]) <= l1 else -(z[i] - math.copysign(l1, z[i])) / (math.sqrt(n[i]) / alpha)
        found.append(np.array(weights))
    return found


@pytest.mark.parametrize("l1", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("sparse", [True, False])
def test_ftrl_is_the_published_rule(l1, sparse):
    rng = np.random.default_rng(5)
    gradients = [np.where(rng.random(8) < 0.6, rng.normal(0, 1, 8), 0.0) for _ in range(40)]
    table = torch.nn.Parameter(torch.zeros(8, 1, dtype=torch.float64))
    optimizer = stage2.RowOptimizer([table], table=sparse, lr=0.2, l1=l1, start=0.05)
    zeros = 0
    for gradient, expected in zip(gradients, ftrl_of_the_paper(gradients, 0.2, l1, 0.05)):
        dense = torch.from_numpy(gradient)[:, None]
        table.grad = dense.to_sparse(1) if sparse else dense
        optimizer.step()
        np.testing.assert_allclose(table.detach()[:, 0].numpy(), expected, rtol=1e-9, atol=1e-12)
        zeros += int((table == 0).sum())
    assert (zeros > 20) == (l1 > 0)


@pytest.mark.parametrize("l1", [0.0, 1e-9])
def test_ftrl_without_l1_is_adagrad_also_from_other_weights_than_0(l1):
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(12, 1, generator=generator)
    tables = [torch.nn.Parameter(first.clone()) for _ in range(2)]
    ftrl = stage2.RowOptimizer([tables[0]], lr=0.1, start=0.02, l1=l1)
    adagrad = torch.optim.Adagrad([tables[1]], lr=0.1, eps=0.0, initial_accumulator_value=0.02)
    if l1:
        torch.testing.assert_close(ftrl.rows[:, 24:], (-first * math.sqrt(0.02) / 0.1).T)
    for _ in range(30):
        gradient = torch.randn(12, 1, generator=generator)
        for table, optimizer in zip(tables, (ftrl, adagrad)):
            table.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(*tables, rtol=1e-4, atol=1e-5)


def test_l1_empties_the_wide_part(shops, tmp_path):
    share = []
    for l1 in ("0", "0.5", "4"):
        path = run(tmp_path / l1, shops[1][0], "--wide-optimizer", "ftrl", "--wide-l1", l1, "--epochs", "2", "--component", "wide")
        share.append(float((load(path)["state_dict"]["wide.weight"] != 0).float().mean()))
        assert np.isfinite(stage2.load_model(path, "cpu").score_catalogue(np.array([1]))[0, 1:]).all()
    assert share[0] > share[1] > share[2] > 0


# -------------------------------------------------------------------------------------------------------------- warm start


@pytest.fixture(scope="module")
def shops(tmp_path_factory):
    """A log and its continuation, with further users, items and categories: [(data folder, data set)] * 2."""
    log, found = random_log(2000, 90, 70).sort_values("timestamp", ignore_index=True), []
    log["user"], log["item"] = log["user"] + 100 * (log.index > 1300) * (log["user"] % 4 == 0), log["item"] + 100 * (log.index > 1300) * (log["item"] % 5 == 0)
    for rows in (1200, 2000):
        folder = tmp_path_factory.mktemp(f"rows{rows}")
        meta = write_metadata(folder / "meta.json", 60 if rows == 1200 else 180)
        ds = preprocess(folder, log[:rows], "--metadata", str(meta), "--min-core", "1")
        found.append((folder / "processed_data", ds))
    assert len(found[1][1].users) > len(found[0][1].users) and len(found[1][1].items) > len(found[0][1].items)
    return found


@pytest.fixture(scope="module")
def earlier(shops, tmp_path_factory):
    return run(tmp_path_factory.mktemp("earlier"), shops[0][0], "--epochs", "3")


def test_a_warm_start_keeps_what_was_learned_of_every_old_id_value_and_cross(shops, earlier):
    _, ds = shops[1]
    args = stage2.parse_args(["--data-dir", str(shops[1][0]), "--warm-start", str(earlier), *QUICK])
    config = stage2.Run(args, ds).config | {"component": "wide-deep", "refit": False}
    features = stage2.fit_inputs(ds, ds.rows("train"), config)
    training, old = stage2.Training(args, config, features, 0.8), stage2.load_model(earlier, "cpu")
    train_rows = ds.reviews[ds.reviews["split"] == "train"]
    stage2.warm_start(training.model, features, config, train_rows, ds.reviews.drop(train_rows.index))
    new_table, old_table = training.model.embedding.weight, old.model.embedding.weight
    kept = added = 0
    for field, name in enumerate(features.categorical):
        offsets = [int(m.deep_offsets[field]) for m in (training.model, old.model)]
        before = {raw: code for code, raw in list(enumerate(old.features.values(name)))[::-1]}
        for code, raw in enumerate(features.values(name)):
            found, expected = new_table[offsets[0] + code], old_table[offsets[1] + before.get(raw, 0)]
            assert torch.equal(found, expected), (name, raw)
            kept, added = kept + (raw in before), added + (raw not in before)
    assert kept > 100 and added > 20
    raws = [{who: f.tables[who][who].to_numpy() for who in ("user", "item")} for f in (features, old.features)]
    code_of = {who: {raw: code for code, raw in enumerate(raws[1][who])} for who in ("user", "item")}
    wide, column = stage2.encode_rows(features, train_rows, "cpu", "like").tensors[0].numpy(), features.wide.index("cross_user_period")
    spec, checked = old.features.vocabularies["crosses"]["cross_user_period"], 0
    for row, ids in zip(train_rows.itertuples(), wide):
        user = code_of["user"].get(raws[0]["user"][row.user_id], 0)
        period = old.features.values("period").tolist().index(features.values("period")[row.period])
        old_id = int(stage1.cross_ids(np.array([user if old.users["train_count"][user] else 0]), np.array([period]), spec)[0])
        new_id = ids[column] + int(training.model.wide_offsets[column])
        assert training.model.wide.weight[new_id] == old.model.wide.weight[old_id + int(old.model.wide_offsets[column])]
        checked += old_id > 0
    assert checked > 300
    for name in ("bias", "linear", "mlp.0.weight", "mlp.3.bias"):
        assert torch.equal(training.model.state_dict()[name], old.model.state_dict()[name])


def test_training_goes_on_from_the_weights_of_a_warm_start(shops, earlier, tmp_path, capsys):
    """With next to no learning rate they stay what they are; Adagrad's shift of 0 would have made them 0."""
    run(tmp_path, shops[1][0], "--warm-start", str(earlier), "--epochs", "1", "--accept-worse", "--wide-lr", "1e-9", "--deep-lr", "1e-9")
    start, after, *_ = re.findall(r"validation auc ([0-9.]+)", capsys.readouterr().out)
    assert start == after and float(start) > 0.51


def test_a_warm_start_has_not_seen_what_is_held_out(shops, earlier, tmp_path):
    """The same log, split another way: rows that the earlier model was trained on would validate and test it."""
    ds = shops[0][1]
    log = ds.reviews[["rating", "timestamp"]].assign(user=ds.users["user"].to_numpy()[ds.reviews["user_id"]])
    log["item"] = ds.items["item"].to_numpy()[ds.reviews["item_id"]]
    log.to_csv(tmp_path / "log.csv", index=False)
    columns = "user=user,item=item,rating=rating,timestamp=timestamp"
    stage1.main(["--input", str(tmp_path / "log.csv"), "--columns", columns, "--min-core", "1", "--split", "random", "--output-dir", str(tmp_path / "d")])
    other = stage1.load_dataset(tmp_path / "d")
    pairs = [set(zip(d.users["user"].to_numpy()[r["user_id"]], d.items["item"].to_numpy()[r["item_id"]])) for d, r in (
        (ds, ds.reviews[ds.reviews["split"] == "train"]), (other, other.reviews[other.reviews["split"] != "train"]))]
    train, config = other.reviews[other.reviews["split"] == "train"], stage2.load_model(earlier, "cpu").config | {"warm_start": str(earlier)}
    with pytest.raises(InputError, match=f": {len(pairs[0] & pairs[1])} rows that are held out here were training rows of that model"):
        stage2.warm_start(None, SimpleNamespace(tables=other.tables), config, train, other.reviews.drop(train.index))


@pytest.mark.parametrize("flags", [["--seed", "-1"], ["--seed", "9" * 20], ["--batch-size", "9" * 20], ["--wide-lr", "inf"], ["--checkpoint", "."]])
def test_seeds_sizes_and_names_that_cannot_be(flags):
    with pytest.raises(InputError, match=flags[0]):
        stage2.parse_args(flags)


def test_what_is_no_checkpoint_is_neither_replaced_nor_begun_with(tmp_path):
    (csv := tmp_path / "ratings.csv").write_text("user,item,rating\n")
    with pytest.raises(InputError, match=r"ratings\.csv: not a file to replace"):
        stage2.parse_args(["--checkpoint", str(csv)])
    for path in (csv, tmp_path, tmp_path / "missing.pt"):
        with pytest.raises(InputError, match=r"--warm-start .* missing, or not a checkpoint"):
            stage2.parse_args(["--warm-start", str(path)])
    stage2.parse_args(["--checkpoint", str(tmp_path / "missing.pt")])


@pytest.mark.parametrize("parse_args", [stage2.parse_args, stage3.parse_args])
def test_a_checkpoint_that_is_a_folder_is_refused_before_any_work(tmp_path, parse_args):
    for folder in (tmp_path, "."):
        with pytest.raises(InputError, match=f"--checkpoint {folder}: "):
            parse_args(["--checkpoint", str(folder)])


def test_a_round_of_lists_of_few_users_has_about_a_hundred_steps(monkeypatch):
    """Three users are in folds of their own, each a step of every pass."""
    steps, original, rows = [], stage2.list_loss, np.arange(4)
    monkeypatch.setattr(stage2, "list_loss", lambda *parts: steps.append(1) or original(*parts))
    dense = np.ones((4, 6), np.float32)
    dense[0, 1:] = 0
    history, args = stage2.csr_matrix(dense), SimpleNamespace(seed=1, device="cpu")
    stage2.fit_taste(history, np.zeros((6, 6), np.float32), None, history[rows] - history[rows], (1, 1.0), args)
    assert 50 <= len(steps) <= 2 * stage2.ROUND_STEPS


def test_a_refit_begins_with_the_same_warm_start(earlier):
    with pytest.raises(InputError, match="name another --checkpoint"):
        stage2.parse_args(["--warm-start", str(earlier), "--checkpoint", str(earlier.parent / "." / earlier.name), "--refit"])


def test_a_warm_start_that_only_gets_worse_writes_nothing_unless_told_to(shops, earlier, tmp_path):
    destroy = ["--warm-start", str(earlier), "--deep-lr", "3", "--wide-lr", "30", "--epochs", "1"]
    with pytest.raises(InputError, match=r"no epoch validates better than .*best\.pt.*--accept-worse"):
        run(tmp_path / "no", shops[1][0], *destroy)
    assert not (tmp_path / "no" / "best.pt").exists()
    assert stage2.load_model(run(tmp_path / "yes", shops[1][0], *destroy, "--accept-worse"), "cpu").epoch == 1


def test_a_warm_start_begins_ahead_of_a_cold_one(shops, earlier, tmp_path, capsys):
    run(tmp_path / "warm", shops[1][0], "--warm-start", str(earlier), "--epochs", "1", "--accept-worse")
    assert "starts from" in capsys.readouterr().out
    run(tmp_path / "cold", shops[1][0], "--epochs", "1")
    loss = [json.loads((tmp_path / name / "training_history.json").read_text())["epochs"][0]["train_loss"] for name in ("warm", "cold")]
    assert loss[0] < loss[1]


@pytest.mark.parametrize(("flags", "message"), [
    (["--embedding-dim", "5"], "embedding_dim of that model is 4, not 5"), (["--wide", "user_id"], "wide of that model"),
    (["--component", "deep"], "component of that model is wide-deep, not deep"), (["--objective", "rating"], "objective of that model is like"),
])
def test_a_warm_start_needs_the_same_model(shops, earlier, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path, shops[1][0], "--warm-start", str(earlier), *flags)


# ------------------------------------------------------------------------------------------------------ rating objective


def test_rating_objective_learns_ratings_and_predicts_inside_their_range(shops, tmp_path):
    data, ds = shops[1]
    path = run(tmp_path, data, "--objective", "rating", "--epochs", "8", "--deep-lr", "0.01")
    model, history = stage2.load_model(path, "cpu"), json.loads((path.parent / "training_history.json").read_text())["epochs"]
    rows = ds.reviews[ds.reviews["split"] == "validation"]
    score = np.clip(model.score_rows(rows).astype(float), 1, 5)
    rmse = math.sqrt(np.mean((score - rows["rating"]) ** 2))
    best = min(history, key=lambda h: h["validation_rmse"])
    assert rmse == pytest.approx(best["validation_rmse"], abs=1e-5) and model.epoch == best["epoch"]
    mean = ds.reviews.loc[ds.reviews["split"] == "train", "rating"].mean()
    assert rmse < 0.9 * math.sqrt(np.mean((mean - rows["rating"]) ** 2))
    users, items = ds.users["user"].to_numpy()[rows["user_id"]], ds.items["item"].to_numpy()[rows["item_id"]]
    predicted = model.predict([*users, "nobody"], [*items, "nothing"])
    assert predicted.min() >= 1 and predicted.max() <= 5 and len(np.unique(predicted)) > 50
    assert abs(predicted[-1] - mean) < 0.5


def test_rating_flags_that_contradict_each_other(tmp_path):
    with pytest.raises(InputError, match="--wide-l1 needs --wide-optimizer ftrl"):
        stage2.parse_args(["--wide-l1", "1"])
    with pytest.raises(InputError, match=r"absent\.pt is missing"):
        stage2.load_model(Path(tmp_path / "absent.pt"))
