"""Stage 2 against brute force: the formula, the optimizers, resuming, and the two ways to score."""

import ctypes
import io
import json
import math
import os
import subprocess
import sys
import warnings
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

import amazon_preprocessing as stage1
import model_evaluation as stage3
import wide_deep_model as stage2
from readers import InputError
from tests.conftest import preprocess, random_log, train, write_metadata

QUICK = ["--hidden", "16", "8", "--embedding-dim", "4", "--batch-size", "512", "--device", "cpu"]


def run(folder: Path, data: Path, *flags: str) -> Path:
    """Stage 2 on a data folder; the checkpoint's path."""
    folder.mkdir(exist_ok=True)
    stage2.main(["--data-dir", str(data), "--checkpoint", str(folder / "best.pt"), *QUICK, *flags])
    return folder / "best.pt"


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def same_weights(one: Path, other: Path) -> bool:
    a, b = load(one)["state_dict"], load(other)["state_dict"]
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


WIDE = ("user_id", "item_id", *stage1.CROSSES)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A data set with categories, brands, prices, and users and items that appear only after training."""
    folder = tmp_path_factory.mktemp("shop")
    log = random_log(1500, users=70, items=60)
    late = log["timestamp"] > log["timestamp"].quantile(0.95)
    log["user"] = log["user"].where(~late | (log["user"] % 9 > 0), log["user"] + 100)
    log["item"] = log["item"].where(~late | (log["item"] % 9 > 0), log["item"] + 60)
    meta = write_metadata(folder / "meta.json", 120)
    ds = preprocess(folder, log, "--metadata", str(meta), "--min-core", "1")
    assert len(ds.vocabularies["category"]) > 3
    for table in (ds.users, ds.items):
        assert (table["train_count"][1:] == 0).any()
    return folder / "processed_data", ds


# ----------------------------------------------------------------------------------------------------------- the formula


def reference_logit(state: dict, wide, deep, wide_numeric, numeric, wide_sizes, deep_sizes, activation: str) -> float:
    """The formula of the docstring for one row, feature by feature, in NumPy; missing parts of `state` are left out."""
    state = {name: value.double().numpy() for name, value in state.items()}
    logit = state["bias"][0]
    if "wide.weight" in state:
        for field, code in enumerate(wide):
            logit += state["wide.weight"][sum(wide_sizes[:field]) + code, 0]
        logit += sum(weight * value for (weight,), value in zip(state["linear"], wide_numeric, strict=True))
    if "embedding.weight" not in state:
        return logit
    x = []
    for field, code in enumerate(deep):
        x.extend(state["embedding.weight"][sum(deep_sizes[:field]) + code])
    x = np.array([*x, *numeric])
    linear = sorted({int(n.split(".")[1]) for n in state if n.startswith("mlp") and state[n].ndim == 2})
    act = {"relu": lambda v: max(v, 0.0), "silu": lambda v: v / (1 + math.exp(-v)),
           "gelu": lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2}[activation]
    for layer in linear:
        x = np.array([sum(w * v for w, v in zip(row, x)) + b for row, b in zip(state[f"mlp.{layer}.weight"], state[f"mlp.{layer}.bias"])])
        norm = f"mlp.{layer + 1}."
        if norm + "running_mean" in state:
            mean, var, weight, bias = (state[norm + part] for part in ("running_mean", "running_var", "weight", "bias"))
            x = (x - mean) / np.sqrt(var + 1e-5) * weight + bias
        if layer != linear[-1]:
            x = np.array([act(v) for v in x])
    return logit + x[0]


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.dtype.is_floating_point:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
            if name.endswith("running_var"):
                tensor.copy_(tensor.abs() + 0.1)


def make_model(wide_sizes: list[int], deep_sizes: list[int], wide_numeric: int, numeric: int, **config) -> stage2.WideDeep:
    """A model of features that are but their sizes."""
    features = Namespace(wide=wide_sizes, categorical=deep_sizes, wide_numeric=[""] * wide_numeric, numeric=[""] * numeric, size=int)
    return stage2.WideDeep(features, {"embedding_dim": 4, "hidden": [6, 5], "batch_norm": False, "dropout": 0.0, **config})


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("component", ["wide-deep", "wide", "deep"])
def test_forward_is_the_formula(component, activation, batch_norm):
    wide_sizes, deep_sizes, rng = [5, 9, 3], [5, 7], np.random.default_rng(1)
    model = make_model(wide_sizes, deep_sizes, 2, 3, activation=activation, batch_norm=batch_norm, dropout=0.5, component=component).eval()
    randomise(model)
    wide, deep = (np.stack([rng.integers(0, size, 20) for size in sizes], 1) for sizes in (wide_sizes, deep_sizes))
    wide[0], wide[1], deep[0], deep[1] = 0, np.array(wide_sizes) - 1, 0, np.array(deep_sizes) - 1  # the ends of every table
    values = rng.normal(size=(20, 4)).astype(np.float32)  # one for the wide part, one for both, two for the deep part
    found = model(torch.from_numpy(wide), torch.from_numpy(deep), torch.from_numpy(values))
    rows = zip(wide, deep, values, found.tolist())
    for w, d, v, logit in rows:
        expected = reference_logit(model.state_dict(), w, d, v[:2], v[1:], wide_sizes, deep_sizes, activation)
        np.testing.assert_allclose(logit, expected, rtol=2e-5, atol=2e-6)


# --------------------------------------------------------------------------------------------------------- the optimizers


def one_step(model, optimizers, wide, deep, numeric, label):
    logit = model(wide, deep, numeric)
    model.zero_grad()
    torch.nn.functional.binary_cross_entropy_with_logits(logit, label).backward()
    for optimizer in optimizers:
        optimizer.step()


def test_gradients_of_the_tables_are_dense_where_they_are_asked_to_be():
    """As the plain loop of the benchmarks asks; the same numbers either way."""
    models = [make_model([50, 40], [50, 30], 1, 2, activation="relu", component="wide-deep") for _ in range(2)]
    for model, sparse in zip(models, (True, False)):
        randomise(model)
        for table in (model.wide, model.embedding):
            table.sparse = sparse
        one_step(model, [], *batch(0, 15))
    for name in ("wide", "embedding"):
        found, expected = (model.get_submodule(name).weight.grad for model in models)
        assert found.is_sparse and not expected.is_sparse and expected.any()
        torch.testing.assert_close(found.to_dense(), expected)


def small_model(component="wide-deep", wide_optimizer="adagrad", deep_optimizer="adam", decay=0.0):
    model = make_model([50, 40], [50, 30], 1, 2, activation="silu", component=component)
    randomise(model)
    args = stage2.parse_args(["--wide-optimizer", wide_optimizer, "--deep-optimizer", deep_optimizer, "--wide-lr", "0.05",
                              "--deep-lr", "0.002", "--batch-size", "8", "--weight-decay", str(decay), "--device", "cpu"])
    return model, stage2.make_optimizers(model, args)


def batch(low: int, high: int):
    generator = torch.Generator().manual_seed(low)
    wide, deep = (torch.randint(low, high, (8, 2), generator=generator) for _ in range(2))
    return wide, deep, torch.randn(8, 2, generator=generator), torch.rand(8, generator=generator).round()


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("wide_optimizer", "deep_optimizer"), [("adagrad", "adam"), ("adam", "adagrad")])
def test_a_step_changes_the_rows_of_its_batch_and_no_other(wide_optimizer, deep_optimizer, decay):
    """Two steps on disjoint ids: momentum or decay that reached the whole table would move the first batch's rows again."""
    model, optimizers = small_model("wide-deep", wide_optimizer, deep_optimizer, decay)
    for low, high in ((0, 15), (15, 30)):
        inputs = batch(low, high)
        before = [table.weight.detach().clone() for table in (model.wide, model.embedding)]
        one_step(model, optimizers, *inputs)
        for table, old, ids in zip((model.wide, model.embedding), before, inputs):
            assert table.weight.grad.is_sparse
            changed = set(torch.nonzero((table.weight != old).any(1)).flatten().tolist())
            assert changed == set((ids + torch.tensor([0, 50])).flatten().tolist())


def largest_allocation(function) -> int:
    """Bytes that the hungriest kind of operator takes in all its calls while the function runs, copies inside of an operator counted."""
    function()  # the first time allocates what stays
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    return max(of.self_cpu_memory_usage for of in profile.key_averages())


def test_no_operator_of_a_step_takes_memory_like_a_table():
    model = make_model([40_000, 50], [40_000, 50], 1, 2, activation="relu", component="wide-deep")
    optimizers = stage2.make_optimizers(model, stage2.parse_args(["--batch-size", "8", "--device", "cpu"]))
    assert largest_allocation(lambda: one_step(model, optimizers, *batch(0, 15))) < model.wide.weight.nbytes / 4


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("width", [1, 2, 3, 4])  # whose rows are read as numbers of 4, 8 or 16 bytes
@pytest.mark.parametrize("kind", ["adagrad", "adam"])
def test_row_optimizers_do_the_arithmetic_of_torchs_sparse_ones(kind, width):
    """Many steps on rows that come back, repeat within a batch and stay away, against torch.optim.Adagrad and SparseAdam."""
    generator, tables = torch.Generator().manual_seed(3), [torch.nn.Embedding(12, width, sparse=True) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    if kind == "adagrad":
        ours = stage2.RowOptimizer([tables[0].weight], table=True, lr=0.1, start=0.02)
        theirs = torch.optim.Adagrad([tables[1].weight], lr=0.1, initial_accumulator_value=0.02)
    else:
        ours = stage2.RowOptimizer([tables[0].weight], table=True, lr=0.1, eps=0.01)
        theirs = torch.optim.SparseAdam([tables[1].weight], lr=0.1, eps=0.01)
    for _ in range(50):
        ids, target = torch.randint(0, 12, (5,), generator=generator), torch.randn(5, width, generator=generator)
        for table, optimizer in zip(tables, (ours, theirs)):
            table.zero_grad()
            (table(ids) - target).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(tables[0].weight, tables[1].weight, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("settings", [{"l1": 0.05, "start": 0.02}, {"start": 0.02}, {"eps": 0.01}])
def test_the_way_that_never_waits_for_a_gpu_leads_to_the_same_weights(settings):
    """What is done on CUDA, done here: every place of an id is updated, each alike."""

    class OnGpu(torch.Tensor):
        is_cuda = property(lambda self: True)

    generator, first = torch.Generator().manual_seed(3), torch.randn(40, 3, generator=torch.Generator().manual_seed(2))
    tables = [torch.nn.Parameter(first.clone()) for _ in range(2)]
    optimizers = [stage2.RowOptimizer([table], table=True, lr=0.1, weight_decay=0.01, **settings) for table in tables]
    optimizers[1].rows = optimizers[1].rows.as_subclass(OnGpu)
    assert optimizers[1].rows.is_cuda and not optimizers[0].rows.is_cuda
    for _ in range(30):
        ids, values = torch.randint(0, 20, (1, 25), generator=generator), torch.randn(25, 3, generator=generator)
        for table, optimizer in zip(tables, optimizers):
            table.grad = torch.sparse_coo_tensor(ids, values, table.shape)
            optimizer.step()
    torch.testing.assert_close(*tables, rtol=1e-5, atol=1e-6)
    assert torch.equal(tables[1][20:].data, first[20:]) and not torch.equal(tables[0][:20].data, first[:20])


@pytest.mark.parametrize("kind", ["adagrad", "adam"])
def test_weight_decay_is_torchs_where_every_row_is_touched(kind):
    generator = torch.Generator().manual_seed(4)
    tables = [torch.nn.Embedding(12, 3, sparse=True), torch.nn.Embedding(12, 3)]
    tables[1].load_state_dict(tables[0].state_dict())
    settings = {"lr": 0.1, "weight_decay": 0.3}
    if kind == "adagrad":
        ours = stage2.RowOptimizer([tables[0].weight], table=True, start=0.02, **settings)
        theirs = torch.optim.Adagrad([tables[1].weight], **settings, initial_accumulator_value=0.02)
    else:
        ours, theirs = stage2.RowOptimizer([tables[0].weight], table=True, eps=1e-9, **settings), torch.optim.Adam([tables[1].weight], **settings, eps=1e-9)
    for _ in range(30):
        ids, target = torch.randperm(12, generator=generator), torch.randn(12, 3, generator=generator)
        for table, optimizer in zip(tables, (ours, theirs)):
            table.zero_grad()
            (table(ids) - target).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(tables[0].weight, tables[1].weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["adagrad", "adam"])
def test_what_is_no_table_does_the_arithmetic_of_torchs_optimizers(kind):
    """A matrix, a vector and a number, with weight decay, many steps."""
    generator = torch.Generator().manual_seed(5)
    first = [torch.randn(shape, generator=generator) for shape in ((3, 4), (5,), ())]
    ours, theirs = ([torch.nn.Parameter(values.clone()) for values in first] for _ in range(2))
    settings = {"lr": 0.1, "weight_decay": 0.3}
    if kind == "adagrad":
        adagrad = torch.optim.Adagrad(theirs, **settings, initial_accumulator_value=0.02)
        optimizers = stage2.RowOptimizer(ours, start=0.02, **settings), adagrad
    else:
        optimizers = stage2.RowOptimizer(ours, eps=1e-9, **settings), torch.optim.Adam(theirs, **settings, eps=1e-9)
    for _ in range(30):
        for one, other in zip(ours, theirs):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, values in zip(ours, theirs, first):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(one, values)


def test_training_does_not_load_torchs_compiler(shop, tmp_path):
    """Whatever builds a torch.optim.Optimizer does: 70 MB and a second."""
    code = "import sys, wide_deep_model as s; s.main(sys.argv[1:]); print('compiler:', 'torch._dynamo' in sys.modules)"
    flags = ["--data-dir", str(shop[0]), "--checkpoint", str(tmp_path / "best.pt"), "--epochs", "1", "--objective", "ranking", *QUICK]
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, cwd=Path(stage2.__file__).parent, check=True)
    assert done.stdout.splitlines()[-1] == "compiler: False"


def test_a_checkpoint_holds_weights_without_what_lies_beside_them(shop, tmp_path):
    """In training they are views of rows that hold their statistics too."""
    for weight in load(run(tmp_path, shop[0], "--epochs", "1"))["state_dict"].values():
        assert weight.untyped_storage().nbytes() == weight.nbytes


@pytest.mark.parametrize("component", ["wide-deep", "wide", "deep"])
@pytest.mark.parametrize(("wide_optimizer", "deep_optimizer"), [("adagrad", "adam"), ("adam", "adagrad")])
def test_every_parameter_gets_its_optimizer_once(component, wide_optimizer, deep_optimizer):
    model, optimizers = small_model(component, wide_optimizer, deep_optimizer)
    inputs = batch(0, 15)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    one_step(model, optimizers, *inputs)
    for name, parameter in model.named_parameters():
        [found] = [optimizer for optimizer in optimizers if any(p is parameter for p in optimizer.parameters)]
        is_wide = name in ("wide.weight", "linear") or (component == "wide" and name == "bias")
        kind, lr = (wide_optimizer, 0.05) if is_wide else (deep_optimizer, 0.002)
        assert found.lr == lr and ("adagrad" if found.start else "adam") == kind
        gradient = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        if kind == "adagrad":  # the first step of the paper's formulas
            step = gradient / (found.start + gradient**2).sqrt()
        else:  # as SparseAdam, eps is added before the bias correction
            step = gradient / (gradient.abs() + found.eps / math.sqrt(1 - 0.999))
        torch.testing.assert_close(before[name] - parameter.detach(), lr * step, rtol=2e-3, atol=1e-7)


def test_l1_shrinks_the_wide_weights_and_not_the_bias():
    model = make_model([50, 40], [50, 30], 1, 2, activation="silu", component="wide")
    args = stage2.parse_args(["--wide-optimizer", "ftrl", "--wide-l1", "1e6", "--batch-size", "8", "--device", "cpu"])
    one_step(model, stage2.make_optimizers(model, args), *batch(0, 15))
    assert not model.wide.weight.any() and not model.linear.any() and model.bias.any()


def test_hidden_ids_are_hidden_in_every_feature_that_holds_them(shop, monkeypatch):
    data, ds = shop
    args = stage2.parse_args(["--data-dir", str(data), "--wide", *WIDE, *QUICK])
    command = stage2.Run(args, ds)
    config = command.config | {"component": "wide-deep"}
    features = stage2.fit_inputs(ds, ds.rows("train"), config)
    training = stage2.Training(args, config, features, 0.8)
    ones = torch.ones(40_000, len(features.wide), dtype=torch.int32), torch.ones(40_000, len(features.categorical), dtype=torch.int32)
    wide, deep = training.hide_ids(*ones, 40_000)
    hidden = {name: deep[:, features.categorical.index(name)] == 0 for name in ("user_id", "item_id")}
    for who in hidden:
        assert abs(float(hidden[who].float().mean()) - stage2.ID_DROPOUT) < 5 * math.sqrt(stage2.ID_DROPOUT / 40_000)
    both, expected = float((hidden["user_id"] & hidden["item_id"]).float().mean()), stage2.ID_DROPOUT**2
    assert abs(both - expected) < 5 * math.sqrt(expected / 40_000)  # independently
    for names, ids in ((features.wide, wide), (features.categorical, deep)):
        for column, name in enumerate(names):
            parts = {name, *stage1.CROSSES.get(name, ())}
            expected = torch.zeros(40_000, dtype=torch.bool)
            for who, mask in hidden.items():
                expected |= mask if who in parts else False
            assert torch.equal(ids[:, column] == 0, expected), name


# --------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_kept_weights_are_the_running_mean(shop, batch_norm):
    data, ds = shop
    args = stage2.parse_args(["--data-dir", str(data), "--average", "0.8", *QUICK, "--batch-size", "128", *["--batch-norm"] * batch_norm])
    config = stage2.Run(args, ds).config | {"component": "wide-deep"}
    features = stage2.fit_inputs(ds, ds.rows("train"), config)
    training, after = stage2.Training(args, config, features, 0.8), []
    bar = Namespace(update=lambda rows: after.append([p.detach().clone() for p in training.model.parameters()]), set_postfix=print)
    training.run_epoch(stage2.encode_rows(features, ds.reviews[ds.reviews["split"] == "train"], "cpu", "like"), bar)
    assert len(after) > 3
    expected = after[0]
    for weights in after[1:]:
        expected = [0.8 * mean + 0.2 * weight for mean, weight in zip(expected, weights)]
    for found, mean in zip(training.kept.parameters(), expected):
        torch.testing.assert_close(found.detach(), mean, rtol=1e-5, atol=1e-7)
    assert not torch.equal(found, after[-1][-1])
    assert all(torch.equal(a, b) for a, b in zip(training.kept.buffers(), training.model.buffers()))  # batch norm's own running means


def test_the_training_loss_is_the_mean_over_rows(shop, monkeypatch):
    """With steps too small to move a weight and no hidden ids: the log loss of all rows at the first weights, though the last batch is smaller."""
    monkeypatch.setattr(stage2, "ID_DROPOUT", 0.0)
    data, ds = shop
    args = stage2.parse_args(["--data-dir", str(data), *QUICK, "--batch-size", "128", "--wide-lr", "1e-30", "--deep-lr", "1e-30"])
    config = stage2.Run(args, ds).config | {"component": "wide-deep"}
    features = stage2.fit_inputs(ds, ds.rows("train"), config)
    training, rows = stage2.Training(args, config, features, 0.7), stage2.encode_rows(features, ds.rows("train"), "cpu", "like")
    randomise(training.model)
    assert len(rows) > 256 and len(rows) % 128 not in (0, 64)
    logit, label = stage2.logits(training.model, rows).astype(float), rows.tensors[-1].numpy()
    found = training.run_epoch(rows, Namespace(update=lambda rows: None, set_postfix=print))
    assert found == pytest.approx(log_loss(label, 1 / (1 + np.exp(-logit))), rel=1e-5)


def test_seeds_are_used(shop, tmp_path):
    data, _ = shop
    flags = ["--epochs", "2", "--dropout", "0.2", "--seed"]
    paths = [run(tmp_path / name, data, *flags, seed) for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))]
    assert same_weights(paths[0], paths[1]) and not same_weights(paths[0], paths[2])


def test_it_learns_what_user_and_item_say(pipeline):
    """Half of the labels' variance is the user's and the item's: the truth ranks with AUC 0.94, the means with about 0.92."""
    _, ds, model = pipeline
    rows = ds.reviews
    train_rows, held = rows[rows["split"] == "train"], rows[rows["split"] != "train"]
    mean = train_rows["label"].mean()
    effect = {who: train_rows.groupby(who)["label"].agg(lambda x: (x.sum() + 5 * mean) / (len(x) + 5)) for who in ("user_id", "item_id")}
    baseline = sum(held[who].map(effect[who]).fillna(mean) for who in effect)
    found = roc_auc_score(held["label"], model.score_rows(held))
    assert found > 0.85 and found > roc_auc_score(held["label"], baseline) - 0.03


def test_the_best_epoch_is_kept_and_its_metrics_are_those_of_its_weights(pipeline):
    folder, ds, model = pipeline
    history = model.history
    assert model.epoch == max(history, key=lambda e: e["validation_auc"])["epoch"]
    rows = ds.reviews[ds.reviews["split"] == "validation"]
    logit, label = model.score_rows(rows).astype(float), rows["label"].to_numpy()
    np.testing.assert_allclose(history[model.epoch - 1]["validation_auc"], roc_auc_score(label, logit), atol=1e-9)
    p = 1 / (1 + np.exp(-logit))
    np.testing.assert_allclose(history[model.epoch - 1]["validation_loss"], -np.mean(np.log(np.where(label == 1, p, 1 - p))), rtol=1e-6)
    assert json.loads((folder / stage2.HISTORY).read_text())["epochs"] == history


def test_early_stopping_waits_for_patience_epochs(shop, tmp_path, monkeypatch):
    data, _ = shop
    quality = iter([0.5, 0.6, 0.55, 0.6, 0.58, 0.9])  # an equal value is no gain
    monkeypatch.setattr(stage2, "validate", lambda *_: {"validation_loss": 1.0, "validation_auc": next(quality)})
    saved = load(run(tmp_path / "a", data, "--epochs", "20", "--patience", "3"))
    assert saved["epoch"] == 2 and next(quality) == 0.9
    assert [e["epoch"] for e in load(tmp_path / "a" / stage2.LAST)["histories"]["wide-deep"]] == [1, 2, 3, 4, 5]


def test_refit_trains_on_validation_rows_for_the_chosen_epochs(shop, tmp_path, monkeypatch):
    data, ds = shop
    lengths, real = [], stage2.Training.run_epoch
    monkeypatch.setattr(stage2.Training, "run_epoch", lambda self, rows, bar: lengths.append(len(rows)) or real(self, rows, bar))
    plain, refit = load(run(tmp_path / "plain", data, "--epochs", "3")), load(run(tmp_path / "refit", data, "--epochs", "3", "--refit"))
    rows, split = ds.reviews, ds.reviews["split"]
    n_train, n_both = (split == "train").sum(), (split != "test").sum()
    assert lengths == [n_train] * 6 + [n_both] * plain["epoch"] and refit["epoch"] == plain["epoch"]
    for saved, mask in ((plain, split == "train"), (refit, split != "test")):
        for table, key in (("users", "user_id"), ("items", "item_id")):
            known = pd.read_parquet(io.BytesIO(saved[table]))["train_count"]
            np.testing.assert_array_equal(known, np.bincount(rows.loc[mask, key], minlength=len(known)))


@pytest.mark.parametrize("flags", [["--deep-lr", "1e30"], ["--deep-lr", "1e30", "--batch-size", "100000"]])
def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(shop, tmp_path, flags):
    """With one batch an epoch, the loss is still finite where the weights are not: validation must notice."""
    data, _ = shop
    path = run(tmp_path / "a", data, "--epochs", "1")
    before = path.read_bytes()
    with pytest.raises(InputError, match="NaN in epoch"):
        run(tmp_path / "a", data, "--epochs", "4", *flags)
    assert path.read_bytes() == before and np.isfinite(stage2.load_model(path, "cpu").predict(["U00001"], ["B000000001"])).all()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_last_batch_of_one_row_trains_with_batch_norm(shop, tmp_path):
    data, ds = shop
    run(tmp_path / "a", data, "--epochs", "1", "--batch-norm", "--batch-size", str(ds.index["rows"]["train"] - 1))


def test_a_batch_larger_than_the_rows_is_that_of_all_rows(shop, tmp_path):
    """Rates, the start of Adagrad and L1 are in rows of a batch: of those that there are."""
    data, ds = shop
    flags = ["--epochs", "2", "--wide-optimizer", "ftrl", "--wide-l1", "2", "--wide-lr", "0.1"]
    assert same_weights(*(run(tmp_path / str(size), data, *flags, "--batch-size", str(size)) for size in (ds.index["rows"]["train"], 10**6)))


def test_float32_products_stay_exact_with_the_settings_of_a_training():
    stage2.parse_args([])  # sets them
    left, right = torch.randn(4096, 256), torch.randn(256, 128)  # large enough for every path that torch has
    expected = left.double() @ right.double()
    for product in (left @ right, torch.addmm(torch.zeros(128), left, right), (right.T @ left.T).T):
        assert float((product - expected).abs().max()) < 1e-5 * float(expected.abs().max())  # bfloat16: 4e-3


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no mallopt")
def test_memory_that_a_step_frees_serves_the_next():
    """In processes of their own: other tests leave holes in the memory. By itself the C library gives all back once or twice, then adapts to one size."""
    code = """if True:
        import resource, sys, torch, wide_deep_model
        wide_deep_model.parse_args([]) if "tuned" in sys.argv else None
        for _ in range(2):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            [torch.ones(4096, 256) for _ in range(64)]  # 4 MB, 1,024 pages each
            print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"""
    folder, pages = Path(stage2.__file__).parent, []
    for flags in (["tuned"], []):
        done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, cwd=folder, check=True)
        pages.append(int(done.stdout.split()[-1]))
    assert pages[0] < max(pages[1] / 2, 1_000)  # few, both, where the system hands out large pages


@pytest.mark.parametrize(("batch", "from_batch", "chosen"), [(64, 64, "bfloat16"), (63, 64, "float32"), (64, math.inf, "float32")])
def test_bfloat16_is_taken_for_large_batches_where_the_cpu_has_it(shop, tmp_path, monkeypatch, batch, from_batch, chosen):
    monkeypatch.setattr(stage2, "BRIEF_BATCH", from_batch)
    flags = ["--epochs", "1", "--batch-size", str(batch)]
    of_auto = run(tmp_path / "auto", shop[0], *flags)
    assert load(of_auto)["config"]["precision"] == chosen
    assert same_weights(of_auto, run(tmp_path / "told", shop[0], *flags, "--precision", chosen))
    assert not same_weights(of_auto, run(tmp_path / "other", shop[0], *flags, "--precision", {"bfloat16": "float32", "float32": "bfloat16"}[chosen]))


# --------------------------------------------------------------------------------------------------------------- resuming


def interrupt(monkeypatch, owner: type, method: str, call: int) -> None:
    """Raise KeyboardInterrupt in place of the given call of a method, counted from 1."""
    real, calls = getattr(owner, method), []

    def wrapped(*args):
        calls.append(0)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(owner, method, wrapped)


OTHERWISE = ["--batch-norm", "--average", "0.9", "--dropout", "0.3", "--weight-decay", "0.01", "--wide-optimizer", "adam", "--deep-optimizer", "adagrad"]


@pytest.mark.parametrize("flags", [[], OTHERWISE])
def test_more_epochs_after_resuming_give_the_weights_of_one_run(shop, tmp_path, flags):
    data, _ = shop
    flags = ["--patience", "9", *flags]
    whole = run(tmp_path / "whole", data, "--epochs", "5", *flags)
    parts = run(tmp_path / "parts", data, "--epochs", "2", *flags)
    assert not same_weights(tmp_path / "whole" / stage2.LAST, tmp_path / "parts" / stage2.LAST)
    run(tmp_path / "parts", data, "--epochs", "5", "--resume", *flags)
    assert same_weights(whole, parts) and same_weights(tmp_path / "whole" / stage2.LAST, tmp_path / "parts" / stage2.LAST)
    assert load(whole)["epoch"] == load(parts)["epoch"]


PHASES = ["--epochs", "2", "--refit", "--ablations", "--dropout", "0.2"]


@pytest.fixture(scope="module")
def whole_run(shop, tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"), shop[0], *PHASES)


@pytest.mark.parametrize(("owner", "method", "call"), [
    *((stage2.Training, "run_epoch", n) for n in (1, 2, 3, 6)), *((stage2, "save", n) for n in (2, 3, 4, 6)),
    *((stage2.Run, "train", n) for n in (2, 5)),
])
def test_an_interrupted_run_resumes_to_the_same_weights_in_every_phase(shop, whole_run, tmp_path, monkeypatch, owner, method, call):
    data, _ = shop
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, owner, method, call)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", data, *PHASES)
    if not (tmp_path / "parts" / stage2.LAST).exists():
        with pytest.raises(InputError, match="start without --resume"):
            run(tmp_path / "parts", data, *PHASES, "--resume")
        return
    trained, real = [], stage2.Training.run_epoch
    monkeypatch.setattr(stage2.Training, "run_epoch", lambda self, *rest: trained.append(0) or real(self, *rest))
    parts = run(tmp_path / "parts", data, *PHASES, "--resume")
    assert 0 < len(trained) < sum(len(h) for h in load(whole_run.parent / stage2.LAST)["histories"].values())
    for suffix in (".pt", ".wide.pt", ".deep.pt"):
        assert same_weights(whole_run.with_suffix(suffix), parts.with_suffix(suffix)), suffix
        assert load(whole_run.with_suffix(suffix))["epoch"] == load(parts.with_suffix(suffix))["epoch"]
    assert list(load(parts.parent / stage2.LAST)["histories"]) == list(load(whole_run.parent / stage2.LAST)["histories"])


def test_resuming_a_finished_run_changes_nothing(shop, tmp_path):
    data, _ = shop
    path = run(tmp_path / "a", data, "--epochs", "2")
    before = path.read_bytes()
    for flags in (["--epochs", "2"], ["--epochs", "1"], ["--epochs", "2", "--patience", "1"]):
        run(tmp_path / "a", data, "--resume", *flags)
        assert path.read_bytes() == before


def test_epochs_cannot_change_once_a_later_phase_began(shop, tmp_path):
    """The first model's training state is gone: an honest refusal instead of weights that no single run gives."""
    data, _ = shop
    path = run(tmp_path / "a", data, "--epochs", "2", "--ablations")
    before = path.read_bytes()
    with pytest.raises(InputError, match="--epochs"):
        run(tmp_path / "a", data, "--epochs", "3", "--ablations", "--resume")
    assert path.read_bytes() == before


@pytest.mark.parametrize(("flag", "values"), [
    ("--seed", ["7"]), ("--hidden", ["32"]), ("--embedding-dim", ["5"]), ("--deep-lr", ["0.5"]), ("--wide-lr", ["0.5"]),
    ("--dropout", ["0.5"]), ("--wide", ["user_id"]), ("--deep", ["user_id"]), ("--batch-norm", []), ("--refit", []),
    ("--component", ["deep"]), ("--activation", ["gelu"]), ("--batch-size", ["64"]),
    ("--weight-decay", ["0.1"]), ("--wide-optimizer", ["adam"]),
    ("--deep-optimizer", ["adagrad"]), ("--precision", ["bfloat16"]),
])
def test_resuming_with_another_flag_is_refused_by_its_name(shop, whole_run, tmp_path, flag, values):
    data, _ = shop
    (tmp_path / stage2.LAST).write_bytes((whole_run.parent / stage2.LAST).read_bytes())
    flags = [f for f in PHASES if f != "--refit"] if flag == "--refit" else [*PHASES, flag, *values]
    with pytest.raises(InputError, match=f"{flag} was"):
        run(tmp_path, data, *flags, "--resume")
    assert {p.name for p in tmp_path.iterdir()} == {stage2.LAST}


def test_resuming_on_other_data_is_refused(shop, whole_run, tmp_path):
    other = preprocess(tmp_path, random_log(800, seed=5))
    (tmp_path / stage2.LAST).write_bytes((whole_run.parent / stage2.LAST).read_bytes())
    with pytest.raises(InputError, match=r"not trained on .*start without --resume"):
        run(tmp_path, other.folder, *PHASES, "--resume")


# ------------------------------------------------------------------------------------------------------------- checkpoint


def test_a_checkpoint_of_the_script_works_elsewhere(pipeline, tmp_path, monkeypatch):
    """Run as `python wide_deep_model.py`, so that a class of __main__ in the file would not open here."""
    folder, ds, _ = pipeline
    script = Path(stage2.__file__)
    command = [sys.executable, str(script), "--data-dir", str(folder / "processed_data"), *QUICK, "--epochs", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""}, timeout=120)
    assert done.returncode == 0, done.stderr
    saved = load(tmp_path / "best_wide_deep_model.pt")  # weights_only: no class, no function
    assert load(tmp_path / stage2.LAST)["epoch"] == saved["epoch"] == 1
    here = stage2.load_model(tmp_path / "best_wide_deep_model.pt", "cpu")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "best_wide_deep_model.pt").rename(tmp_path / "elsewhere" / "renamed.pt")
    monkeypatch.chdir(tmp_path / "elsewhere")
    there = stage2.load_model("renamed.pt", "cpu")
    users, items = ["U00001", "U00002", "nobody"], ["B000000001", "nothing", "B000000003"]
    np.testing.assert_array_equal(here.predict(users, items), there.predict(users, items))
    np.testing.assert_array_equal(here.score_rows(ds.reviews), there.score_rows(ds.reviews))
    assert here.recommend("U00001").equals(there.recommend("U00001"))


def test_wide_ids_of_the_features_are_the_columns_of_stage_1(shop, tmp_path):
    data, ds = shop
    model = stage2.load_model(run(tmp_path, data, "--epochs", "1", "--wide", *WIDE), "cpu")
    wide, deep, *_ = (part.numpy() for part in stage2.encode_rows(model.features, ds.reviews, "cpu", "like").tensors)
    for column, name in enumerate(WIDE):
        if name in stage1.CROSSES:
            np.testing.assert_array_equal(wide[:, column], ds.reviews[name])
            assert len(np.unique(wide[:, column])) > 3
    for who, table in (("user", ds.users), ("item", ds.items)):
        ids, trained = ds.reviews[f"{who}_id"].to_numpy(), table["train_count"].to_numpy()
        for codes in (wide[:, WIDE.index(f"{who}_id")], deep[:, model.features.categorical.index(f"{who}_id")]):
            np.testing.assert_array_equal(codes, [i if trained[i] > 0 else 0 for i in ids])
            assert (codes == 0).any()


# ---------------------------------------------------------------------------------------------------------------- serving

SHAPES = {
    "wide-deep": [], "wide": ["--component", "wide"], "deep": ["--component", "deep"],
    "norm-gelu": ["--batch-norm", "--activation", "gelu"],
    "norm-deep-silu": ["--batch-norm", "--activation", "silu", "--component", "deep"], "all-wide": ["--wide", *WIDE],
    "ids": ["--deep", "user_id", "item_id", "--wide", "user_id", "cross_rating_buckets"],
    "numbers": ["--deep", "user_avg_rating", "item_age_days"],
    "linear": ["--wide", "item_id", "user_avg_rating", "item_price", "item_age_days", "--deep", "item_price", "user_id", "user_review_count"],
    "orders": ["--wide", "item_id", "user_avg_rating", "item_price", "item_age_days", "--deep", "item_age_days", "item_price", "user_category_avg_residual",
               "user_avg_rating", "user_id"],
    "pairs": ["--deep", "item_id", "user_category_avg_residual"], "one-layer": ["--hidden", "7"],
}


@pytest.fixture(scope="module")
def served(shop, tmp_path_factory):
    """Name of a shape -> a served model of it, with random weights: after an epoch they are too small to tell errors."""
    def make(name: str) -> stage2.Recommender:
        if name not in models:
            saved = load(run(tmp_path_factory.mktemp(name), shop[0], "--epochs", "1", *SHAPES[name]))
            randomise(Namespace(state_dict=lambda: saved["state_dict"]))
            models[name] = stage2.Recommender(saved, "cpu")
        return models[name]

    models = {}
    return make


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_scored_by_the_formula(served, shape, monkeypatch):
    """Of models of every shape, with weights large enough to tell errors, also for ids without training rows; in one block and in many, the last smaller."""
    model = served(shape)
    trained = model.users["train_count"].to_numpy()
    users = np.array([0, 1, 2, np.flatnonzero(trained[1:] == 0)[0] + 1, trained.argmax(), len(trained) - 1])
    rows = model.features.at_moment(np.repeat(users, len(model.items)), np.tile(np.arange(len(model.items)), len(users)), model.moment)
    *inputs, _ = stage2.encode_rows(model.features, rows.assign(label=0), "cpu", "like").tensors
    wide, deep, numeric = (part.numpy() for part in inputs)
    features, found = model.features, model.score_rows(rows)
    sizes = [[features.size(name) for name in names] for names in (features.wide, features.categorical)]
    for row in range(0, len(rows), 29):
        values = numeric[row, : len(features.wide_numeric)], numeric[row, numeric.shape[1] - len(features.numeric) :]
        logit = reference_logit(model.model.state_dict(), wide[row], deep[row], *values, *sizes, model.config["activation"])
        np.testing.assert_allclose(found[row], logit, rtol=1e-4, atol=1e-4)
    assert 64 < len(rows) < stage2.SCORE_BLOCK and len(rows) % 64
    monkeypatch.setattr(stage2, "SCORE_BLOCK", 64)
    np.testing.assert_allclose(model.score_rows(rows), found, rtol=1e-4, atol=1e-4)


def test_rows_at_the_last_moment_carry_the_tables_state(served, shop):
    """at_moment against the tables, cell by cell, and the pair's history against the training rows."""
    _, ds = shop
    model, train_rows = served("wide-deep"), ds.reviews[ds.reviews["split"] == "train"]
    assert model.moment == train_rows["timestamp"].max()
    rng = np.random.default_rng(0)
    users, items = rng.integers(1, len(ds.users), 60), rng.integers(1, len(ds.items), 60)
    for user, item, row in zip(users, items, model.features.at_moment(users, items, model.moment).itertuples()):
        for who, code in (("user", user), ("item", item)):
            mine = train_rows[train_rows[f"{who}_id"] == code]
            assert getattr(row, f"{who}_review_count") == len(mine)
            np.testing.assert_allclose(getattr(row, f"{who}_avg_rating"), mine["rating"].mean())
            np.testing.assert_allclose(getattr(row, f"{who}_days_since_last"), (model.moment - mine["timestamp"].max()) / 86_400)
        category = ds.items["category"].to_numpy()
        mine = train_rows[(train_rows["user_id"] == user) & (category[train_rows["item_id"]] == category[item])]
        assert row.user_category_review_count == (len(mine) if category[item] else 0)


@pytest.mark.parametrize("shape", ["all-wide", "deep"])
def test_recommend_is_the_top_of_the_catalogue(served, shop, shape):
    _, ds = shop
    model, kept = served(shape), ds.reviews[ds.reviews["split"] != "test"]
    user = int(kept["user_id"].mode()[0])
    raw, seen = ds.users["user"][user], set(ds.items["item"].to_numpy()[kept.loc[kept["user_id"] == user, "item_id"]])
    scores = dict(zip(ds.items["item"], model.score_catalogue(np.array([user]))[0]))
    for keep_seen in (False, True):
        expected = sorted((s for item, s in scores.items() if item != stage1.UNKNOWN and (keep_seen or item not in seen)), reverse=True)
        found = model.recommend(raw, n=10_000, keep_seen=keep_seen)
        assert found.columns.tolist() == ["rank", "item", "title", "score", "wide", "deep"]
        assert found["rank"].tolist() == list(range(1, len(expected) + 1)) and found["item"].is_unique
        np.testing.assert_allclose(found["score"], expected)
        np.testing.assert_allclose([scores[item] for item in found["item"]], found["score"])
        np.testing.assert_allclose(found["wide"] + found["deep"], found["score"], rtol=1e-5, atol=1e-6)
        assert found["wide"].std() > 0
        assert bool(seen & set(found["item"])) is keep_seen
        np.testing.assert_array_equal(model.recommend(raw, n=5, keep_seen=keep_seen)["score"], found["score"].head(5))
    titles = found.set_index("item")["title"]
    assert titles["B000000011"] == "Thing 11" and pd.isna(titles["B000000010"])


@pytest.mark.parametrize("shape", ["wide-deep", "wide", "deep"])
def test_anybody_gets_an_answer(served, shape):
    model = served(shape)
    found = model.recommend("nobody has this id", n=7)
    assert len(found) == 7 and np.isfinite(found["score"]).all()
    assert found.equals(model.recommend("nor this one", n=7)) and model.recommend("U00001", n=0).empty


def test_predict_is_the_sigmoid_of_the_score(served, shop):
    _, ds = shop
    model = served("wide-deep")
    users, items = ds.users["user"].tolist()[1:20], ds.items["item"].tolist()[1:20]
    scores = model.score_rows(model.features.at_moment(np.arange(1, 20), np.arange(1, 20), model.moment)).astype(float)
    np.testing.assert_allclose(model.predict(users, items), [1 / (1 + math.exp(-s)) for s in scores], rtol=1e-5)
    strange = model.predict(["nobody", users[0], "nobody", users[0]], [items[0], "nothing", "nothing", items[0]])
    assert strange.shape == (4,) and ((strange > 0) & (strange < 1)).all() and len(set(strange)) == 4
    assert model.predict([], []).shape == (0,)
    with pytest.raises(ValueError, match="same length"):
        model.predict(["U00001"], [])


def test_item_embeddings_are_those_of_the_items(served):
    model = served("norm-gelu")
    found, table = model.item_embeddings, model.model.state_dict()["embedding.weight"].numpy()
    users = len(model.users)
    np.testing.assert_array_equal(found, table[users : users + len(model.items)])  # the items follow the users in the one table
    assert served("wide").item_embeddings.shape == (len(model.items), 0)


def test_a_feature_named_twice_counts_once(shop, tmp_path):
    one, two = (run(tmp_path / n, shop[0], "--epochs", "1", "--wide", *names) for n, names in (("a", ["user_id"]), ("b", ["user_id"] * 2)))
    assert same_weights(one, two)


@pytest.mark.parametrize("features", ["no times", "as-published"])
def test_other_kinds_of_data_train_and_serve(tmp_path, features):
    log = random_log(900)
    if features == "as-published":
        preprocess(tmp_path, log, "--features", "as-published")
    else:
        log.to_csv(tmp_path / "log.csv", index=False)
        stage1.main(["--input", str(tmp_path / "log.csv"), "--columns", "user=user,item=item,rating=rating", "--split", "random",
                     "--output-dir", str(tmp_path / "processed_data")])
    model = train(tmp_path, "--epochs", "1")
    rows = model.features.at_moment(np.arange(3)[:, None].repeat(len(model.items), 1).ravel(), np.tile(np.arange(len(model.items)), 3), model.moment)
    assert np.isfinite(model.score_rows(rows)).all() and np.isfinite(model.score_catalogue(np.arange(3))[:, 1:]).all()
    assert len(model.recommend("nobody", n=4)) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this torch sees no CUDA device")
def test_cuda_agrees_with_cpu_and_trains_in_bfloat16(shop, tmp_path):
    data, ds = shop
    path = run(tmp_path, data, "--epochs", "3", "--device", "cuda")
    saved = load(path)
    assert saved["config"]["precision"] == "bfloat16"
    on_cpu, on_gpu = (stage2.load_model(path, device) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(on_gpu.score_rows(ds.reviews), on_cpu.score_rows(ds.reviews), atol=1e-4)
    np.testing.assert_allclose(on_gpu.score_catalogue(np.arange(9))[:, 1:], on_cpu.score_catalogue(np.arange(9))[:, 1:], atol=1e-4)
    rows = ds.reviews[ds.reviews["split"] == "validation"]
    assert roc_auc_score(rows["label"], on_gpu.score_rows(rows)) > 0.7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this torch sees no CUDA device")
def test_no_step_waits_for_the_gpu(shop):
    """An epoch of fewer than 100 steps reads the loss once, at its end; torch warns of every place where the CPU has to wait."""
    data, ds = shop
    args = stage2.parse_args(["--data-dir", str(data), *QUICK, "--batch-size", "64", "--device", "cuda", "--precision", "bfloat16"])
    config = vars(args) | stage2.choose_features(args, ds) | {"component": "wide-deep"}
    known = ds.rows("train").iloc[: 64 * 50]
    inputs = stage2.fit_inputs(ds, known, config)
    training, rows = stage2.Training(args, config, inputs, 0.8), stage2.encode_rows(inputs, known, "cuda", "like")
    bar = Namespace(update=lambda rows: None, set_postfix=print)
    training.run_epoch(rows, bar)  # the first makes the tables of statistics
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            training.run_epoch(rows, bar)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchron" in str(warning.message) for warning in caught) <= 3  # the order of the rows goes to the device, the loss comes back


# ------------------------------------------------------------------------------------------- more rows than memory


def blocks_of(ds: stage1.Dataset, features: stage1.Features):
    return stage2.StreamedRows(ds.blocks("train"), lambda rows: stage2.encode_rows(features, rows, "cpu", "like"), ds.folder, "cpu")


def in_order(batches) -> np.ndarray:
    """All rows of some batches as one matrix, sorted, so that only their order is lost."""
    rows = np.concatenate([np.concatenate([part.reshape(len(part), -1).numpy() for part in batch], axis=1) for batch in batches])
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("gathered", [50, 200, 2000])  # one batch at a time, three, all
@pytest.mark.parametrize("workers, rows, size", [(2, 996, 66), (2, 997, 66), (3, 997, 64), (6, 1000, 64)])
def test_workers_share_the_batches_of_one_process(shop, monkeypatch, workers, rows, size, gathered):
    """The same rows and hidden ids in three epochs, but for fewer rows of a batch than there are workers."""
    monkeypatch.setattr(stage2, "GATHERED", gathered)
    ds = shop[1]
    args = stage2.parse_args(["--data-dir", str(shop[0]), *QUICK])
    config = stage2.Run(args, ds).config | {"component": "wide-deep"}
    training = stage2.Training(args, config, stage2.fit_inputs(ds, ds.rows("train"), config), 0.8)
    number, wide, deep = torch.arange(rows), *(torch.ones(rows, len(config[part]), dtype=torch.int32) for part in ("wide", "categorical"))
    encoded = stage2.Rows(wide, deep, number)

    def epochs(rank: int, of: int) -> list[tuple[torch.Tensor, ...]]:
        monkeypatch.setattr(stage2, "RANK", rank)
        monkeypatch.setattr(stage2, "WORKERS", of)
        torch.manual_seed(0)
        return [(part[2], *training.hide_ids(*part[:2], of_batch)) for _ in range(3) for of_batch, part in encoded.shuffled(size, rank, of)]

    whole, shares = epochs(0, 1), [epochs(rank, workers) for rank in range(workers)]
    assert all(torch.cat([batch[0] for batch in whole[n : n + len(whole) // 3]]).sort().values.equal(number) for n in range(0, len(whole), len(whole) // 3))
    assert [len(batch[0]) for batch in whole] == 3 * [*[size] * (rows // size), rows % size]
    assert any((batch[2] == 0).any() for batch in whole)
    for expected, *parts in zip(whole, *shares, strict=True):
        for column in range(3):
            found = torch.stack([part[column] for part in parts], 1).flatten(0, 1)  # equally many each, a row of every worker in turn
            assert torch.equal(found, expected[column][: len(found)]) and len(expected[column]) - len(found) < workers


@pytest.mark.parametrize("workers, flags", [(1, []), (3, []), (1, ["--wide", "user_id", "--deep", "item_id", "user_avg_rating"])])
def test_streamed_rows_are_all_training_rows_once_an_epoch(tmp_path, monkeypatch, workers, flags):
    monkeypatch.setattr(stage1, "BLOCK", 100)
    ds = preprocess(tmp_path, random_log(1500, 60, 50))  # 1,200 training rows: about 12 blocks, of which 8 are shuffled together
    monkeypatch.setattr(stage1, "MEMORY", 1)
    thin = stage1.load_dataset(ds.folder)
    features = stage2.fit_inputs(ds, ds.rows("train"), stage2.choose_features(stage2.parse_args(flags), ds))
    expected = in_order([stage2.encode_rows(features, ds.reviews[ds.reviews["split"] == "train"], "cpu", "like").tensors])
    torch.manual_seed(0)
    epochs, of_worker = [], []
    monkeypatch.setattr(stage2, "WORKERS", workers)
    for rank in range(workers):
        monkeypatch.setattr(stage2, "RANK", rank)
        of_worker.append(blocks_of(thin, features))
    monkeypatch.setattr(stage2.Inputs, "encode", None)  # done by then, not in every epoch
    for _ in range(2):
        found, state = [], torch.get_rng_state()
        for rank in range(workers):
            torch.set_rng_state(state)  # the same for all
            batches = list(of_worker[rank].shuffled(90, rank, workers))
            assert all(size == len(batch[-1]) * workers for size, batch in batches)
            found.append([batch for _, batch in batches])
        assert len({tuple(len(batch[-1]) for batch in batches) for batches in found}) == 1  # all make the same steps
        epochs.append(np.concatenate([batch[2].numpy() for batches in found for batch in batches]))
        every = in_order([batch for batches in found for batch in batches])
        if workers == 1:
            np.testing.assert_array_equal(every, expected)
        else:  # 100 rows of a block are 33 of each worker
            assert len(every) == sum(len(block()) // workers * workers for block in thin.blocks("train"))
            assert {*map(tuple, every)} <= {*map(tuple, expected)} and len(np.unique(every, axis=0)) == len(every)
    assert not np.array_equal(*epochs)


def test_a_block_of_fewer_rows_than_workers_is_an_empty_share(shop, tmp_path, monkeypatch):
    ds = shop[1]
    features = stage2.fit_inputs(ds, ds.rows("train"), stage2.choose_features(stage2.parse_args([]), ds))
    monkeypatch.setattr(stage2, "WORKERS", 3)
    encode = lambda rows: stage2.encode_rows(features, rows, "cpu", "like")  # noqa: E731
    streamed = stage2.StreamedRows([lambda: ds.rows("train")[:2], lambda: ds.rows("train")[:30]], encode, tmp_path, "cpu")
    assert [(size, [len(part) for part in batch]) for size, batch in streamed.shuffled(60, 0, 3)] == [(30, [10] * 4)]


def test_streamed_blocks_come_in_random_order_and_shuffled_together(tmp_path):
    blocks = [lambda n=n: pd.DataFrame({"row": np.arange(100 * n, 100 * n + 100)}) for n in range(24)]
    streamed = stage2.StreamedRows(blocks, lambda frame: stage2.Rows(*[torch.from_numpy(frame["row"].to_numpy())] * 4), tmp_path, "cpu")
    torch.manual_seed(0)
    epochs = [torch.cat([batch[-1] for _, batch in streamed.shuffled(30, 0, 1)]) for _ in range(2)]
    groups = [[set((part // 100).tolist()) for part in rows.split(100 * stage2.STREAM)] for rows in epochs]
    for rows, of_epoch in zip(epochs, groups):
        assert rows.sort().values.tolist() == list(range(2400)) and [len(group) for group in of_epoch] == [stage2.STREAM] * 3
        neighbours = rows[1:] // 100 == rows[:-1] // 100
        assert neighbours.float().mean() < 0.25  # 1 in 8 by chance
    assert groups[0] != groups[1]
    assert not list(tmp_path.iterdir())  # the files have no names


def test_a_streamed_training_learns_as_much_and_is_evaluated_alike(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stage1, "BLOCK", 500)
    log = random_log(9000, 200, 120)
    data = preprocess(tmp_path, log).folder
    flags = ["--epochs", "6", "--patience", "6", "--batch-size", "64"]
    quality = {}
    for name in ("whole", "streamed"):
        if name == "streamed":
            monkeypatch.setattr(stage1, "MEMORY", 1)
        path = run(tmp_path / name, data, *flags)
        assert (f"rows do not fit into memory: they are encoded into files in {tmp_path / name}" in capsys.readouterr().out) == (name == "streamed")
        quality[name] = load(path)["validation_auc"]
        metrics = tmp_path / f"{name}.json"
        flags_of_stage_3 = ["--data-dir", str(data), "--checkpoint", str(tmp_path / "whole" / "best.pt"), "--metrics", str(metrics), "--device", "cpu"]
        stage3.main([*flags_of_stage_3, "--plot", str(tmp_path / "results.png"), "--bootstrap", "20"])
    assert quality["streamed"] > 0.65 and abs(quality["streamed"] - quality["whole"]) < 0.015
    whole, streamed = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "streamed"))
    assert whole["models"] == streamed["models"] and whole["intervals"] == streamed["intervals"]
    for flag in (["--refit"], ["--warm-start", str(tmp_path / "whole" / "best.pt")]):
        with pytest.raises(InputError, match="in memory, and they do not fit"):
            run(tmp_path / "refused", data, *flags, *flag)
