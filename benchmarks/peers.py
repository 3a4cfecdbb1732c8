"""This project against its peers on the same work: preprocessing, training epochs, scoring, one process after another in one run.

    python benchmarks/electronics_shape.py --output electronics
    python amazon_preprocessing.py --dataset amazon-reviews --input electronics/reviews_Electronics_shape_5.json.gz \
        --metadata electronics/meta_Electronics_shape.json.gz --output-dir electronics/data
    python benchmarks/peers.py --data electronics/data             # the first run installs the peers into benchmarks/.peers

Every system gets the same random training rows and the same test rows with raw values: user, item, month, category, period, two
averages. Each turns them into ids of user, item and month, two crosses (user x category, item x period) and two standardised numbers, and
trains a wide part on user, item and both crosses, and a deep part on embeddings of user, item and month and on the numbers, 32
dimensions each, layers 256-128-64, batches of 4,096. All else is what a system does by default. A cross that a system does not make
by itself is made for it by joining texts. Plain is what public implementations do: a DataLoader over single rows, dense
gradients, one Adam; in a process with our settings (`tune_cpu`), which serve it too. It trains 10 steps an epoch, no whole one, so it has no
AUC. This project trains in both precisions, where the CPU multiplies bfloat16: there it takes it by itself for batches of 4,096.

Each turn runs every system in a process of its own, but for this project: it prepares and trains in two, one after the other, as it is
made of scripts, and what the first writes and the second reads counts as preprocessing. "In one process" tells what that saves. Figures
are medians over turns, ratios are taken within a turn. Peak memory is that of the process (of two the larger one), with its libraries.
What is measured is the encoder and the training loop on the features above; the scripts themselves make more features, fit lists and
check what they read, which takes them longer and more memory: speed.py and scale.py measure those.
"""

import argparse
import importlib
import importlib.machinery
import json
import os
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / ".peers"  # their virtual environment: they need an older numpy
PACKAGES = ("torch==2.13.0", "deepctr-torch==0.3.0", "pytorch-widedeep==1.7.0", "pyarrow==26.0.1")
OURS, BRIEF, DEEPCTR, WIDEDEEP, PLAIN = "this project, float32", "this project, bfloat16", "DeepCTR-Torch", "pytorch-widedeep", "plain loop"
WHOLE = "this project in one process, float32"
IDS, CROSSES, NUMBERS = ["user", "item", "month"], {"user_category": ("user", "category"), "item_period": ("item", "period")}, ["user_mean", "item_mean"]
HIDDEN, DIMENSION, BATCH = (256, 128, 64), 32, 4096
# ----------------------------------------------------------------------------------------------------------------------


def raw_rows(data: Path, n_train: int, n_test: int, folder: Path) -> None:
    """folder/train.parquet and test.parquet: random rows of a prepared data set with raw values and their label."""
    from amazon_preprocessing import load_dataset

    ds, rng = load_dataset(data), np.random.default_rng(0)
    words = ds.vocabularies
    for split, n in (("train", n_train), ("test", n_test)):
        rows = ds.reviews[(ds.reviews["split"] == "train") == (split == "train")]
        rows = rows.iloc[rng.permutation(len(rows))[:n]]
        items = ds.items.iloc[rows["item_id"]]
        frame = {"user": ds.users["user"].to_numpy()[rows["user_id"]], "item": items["item"].to_numpy()}
        frame |= {name: np.array(words[name], dtype=str)[rows[name]] for name in ("month", "period")}
        frame["category"] = np.array(words["category"], dtype=str)[items["category"]]
        frame |= {f"{who}_mean": rows[f"{who}_avg_rating"].astype(float).fillna(ds.reviews["rating"].mean()).to_numpy() for who in ("user", "item")}
        pd.DataFrame(frame | {"label": rows["label"].to_numpy()}).to_parquet(folder / f"{split}.parquet")


# ---------------------------------------------------------------------------------------------------------- the systems
# Each: (train, test) -> prepared; prepared -> model with fit() for one more epoch and predict() of the test rows. With `trains`, in a process of its own.
class Ours:
    needs, trains, precision = ("amazon_preprocessing",), ("wide_deep_model",), "float32"

    def __init__(self, train: pd.DataFrame, test: pd.DataFrame) -> None:
        from amazon_preprocessing import UNKNOWN, cross_ids, encode, fit_cross, normalise

        words = {name: [UNKNOWN, *train[name].unique()] for name in {*IDS, "category", "period"}}
        parts = [{name: encode(rows[name], values) for name, values in words.items()} for rows in (train, test)]
        specs = {name: fit_cross([[parts[0][side] for side in sides]], len(words[sides[1]])) for name, sides in CROSSES.items()}
        sizes = {name: len(values) for name, values in words.items()} | {name: spec["size"] for name, spec in specs.items()}
        self.tensors = []
        for rows, codes in zip((train, test), parts):
            codes |= {name: cross_ids(*(codes[side] for side in sides), specs[name]) for name, sides in CROSSES.items()}
            numbers = [normalise(rows[n].to_numpy(), {"knots": [], "mean": train[n].mean(), "deviation": train[n].std()}) for n in NUMBERS]
            wide, deep = (np.stack([codes[name] for name in names], axis=1) for names in (["user", "item", *CROSSES], IDS))
            self.tensors.append((wide, deep, np.stack(numbers, axis=1), rows["label"].to_numpy(np.float32)))
        self.features = SimpleNamespace(wide=["user", "item", *CROSSES], categorical=IDS, wide_numeric=[], numeric=NUMBERS, size=sizes.get,
                                        vocabularies={"crosses": {n: {"left": sides[0], "right": sides[1]} for n, sides in CROSSES.items()}})
        self.n_test, self.mean, self.training = len(test), float(train["label"].mean()), None

    def fit(self) -> int:
        import torch
        from tqdm import tqdm

        import wide_deep_model as stage2

        if not self.training:
            args = stage2.parse_args(["--batch-size", str(BATCH), "--device", "cpu", "--precision", self.precision])
            self.training = stage2.Training(args, vars(args) | {"component": "wide-deep"}, self.features, self.mean)
            self.rows = [stage2.Rows(*map(torch.from_numpy, tensors)) for tensors in self.tensors]
        with tqdm(disable=True) as bar:
            self.training.run_epoch(self.rows[0], bar)
        return len(self.rows[0])

    def predict(self) -> np.ndarray:
        from wide_deep_model import logits

        return logits(self.training.model, self.rows[1])


class Brief(Ours):
    precision = "bfloat16"


class Whole(Ours):
    needs, trains = ("amazon_preprocessing", "wide_deep_model"), None


class Plain(Ours):
    def fit(self) -> int:
        import torch
        from speed import plain_steps

        import wide_deep_model as stage2

        if not self.training:
            torch.manual_seed(0)
            args = stage2.parse_args([])
            self.training = stage2.WideDeep(self.features, vars(args) | {"component": "wide-deep"})
            rows = SimpleNamespace(tensors=[torch.from_numpy(t) for t in self.tensors[0]])
            self.steps = plain_steps(self.training, rows, BATCH, args.deep_lr)
            next(self.steps)
        return sum(next(self.steps) for _ in range(PLAIN_STEPS))

    predict = None


class DeepCTR:
    """As in its documentation: LabelEncoder for every sparse field, MinMaxScaler for dense ones, WDL, compile("adam", ...), fit."""

    needs, trains = ("deepctr_torch.models", "sklearn.preprocessing"), None

    def __init__(self, train: pd.DataFrame, test: pd.DataFrame) -> None:
        from deepctr_torch.inputs import DenseFeat, SparseFeat, get_feature_names
        from sklearn.preprocessing import LabelEncoder, MinMaxScaler

        both = pd.concat([train, test], ignore_index=True)  # LabelEncoder knows no unseen values
        for name, sides in CROSSES.items():
            both[name] = both[sides[0]] + "_" + both[sides[1]]
        for name in (*IDS, *CROSSES):
            both[name] = LabelEncoder().fit_transform(both[name])
        both[NUMBERS] = MinMaxScaler().fit_transform(both[NUMBERS])
        fields = {name: SparseFeat(name, int(both[name].max()) + 1, embedding_dim=DIMENSION) for name in (*IDS, *CROSSES)}
        dense = [DenseFeat(name, 1) for name in NUMBERS]
        self.wide, self.deep = [fields[n] for n in ("user", "item", *CROSSES)], [*(fields[n] for n in IDS), *dense]
        names = get_feature_names(self.wide + self.deep)
        self.inputs = [{name: part[name].to_numpy() for name in names} for part in (both[: len(train)], both[len(train) :])]
        self.n_test, self.label, self.model = len(test), train["label"].to_numpy(np.float32), None

    def fit(self) -> int:
        from deepctr_torch.models import WDL

        if not self.model:
            self.model = WDL(self.wide, self.deep, dnn_hidden_units=HIDDEN, task="binary", device="cpu")
            self.model.compile("adam", "binary_crossentropy")
        self.model.fit(self.inputs[0], self.label, batch_size=BATCH, epochs=1, verbose=0)
        return len(self.label)

    def predict(self) -> np.ndarray:
        return self.model.predict(self.inputs[1], BATCH).ravel()


class NoImages:
    """pytorch-widedeep imports torchvision for pictures, which are not used here; its wheel does not fit every build of torch."""

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> MagicMock:
        return MagicMock(__path__=[], __spec__=spec)

    def exec_module(self, module: MagicMock) -> None:
        pass


class WideDeepPeer:
    """As in its documentation: WidePreprocessor, TabPreprocessor, Wide and TabMlp, Trainer(objective="binary")."""

    needs, trains = ("pytorch_widedeep",), None

    def __init__(self, train: pd.DataFrame, test: pd.DataFrame) -> None:
        from pytorch_widedeep.preprocessing import TabPreprocessor, WidePreprocessor

        self.wide = WidePreprocessor(wide_cols=["user", "item"], crossed_cols=[*CROSSES.values()])
        self.tab = TabPreprocessor(cat_embed_cols=[(name, DIMENSION) for name in IDS], continuous_cols=NUMBERS, cols_to_scale=NUMBERS)
        made = [(self.wide.fit_transform(train), self.tab.fit_transform(train)), (self.wide.transform(test), self.tab.transform(test))]
        self.n_test, self.inputs, self.label, self.trainer = len(test), made, train["label"].to_numpy(), None

    def fit(self) -> int:
        from pytorch_widedeep import Trainer
        from pytorch_widedeep.models import TabMlp, Wide, WideDeep

        if not self.trainer:
            wide = Wide(input_dim=int(self.inputs[0][0].max()) + 1, pred_dim=1)
            deep = TabMlp(column_idx=self.tab.column_idx, cat_embed_input=self.tab.cat_embed_input, continuous_cols=NUMBERS, mlp_hidden_dims=[*HIDDEN])
            self.trainer = Trainer(WideDeep(wide=wide, deeptabular=deep), objective="binary", verbose=0)
        self.trainer.fit(X_wide=self.inputs[0][0], X_tab=self.inputs[0][1], target=self.label, n_epochs=1, batch_size=BATCH)
        return len(self.label)

    def predict(self) -> np.ndarray:
        return self.trainer.predict_proba(X_wide=self.inputs[1][0], X_tab=self.inputs[1][1], batch_size=BATCH)[:, 1]


PLAIN_STEPS, PREPARED = 10, "prepared.pkl"
SYSTEMS = {OURS: Ours, BRIEF: Brief, WHOLE: Whole, DEEPCTR: DeepCTR, WIDEDEEP: WideDeepPeer, PLAIN: Plain}


# ---------------------------------------------------------------------------------------------------------- measurement
def measure(system: str, folder: Path, epochs: int) -> dict:
    """In a process of its own: seconds of preprocessing, rows/s of every epoch and of scoring, peak MB; the scores go to folder/scores.npy.
    Of a system that trains in a second process, preprocessing alone, or the rest where the first has left what it prepared."""
    sys.meta_path.insert(0, NoImages())
    kind, prepared = SYSTEMS[system], folder / PREPARED
    second = prepared.exists()
    for module in kind.trains if second else kind.needs:
        importlib.import_module(module)
    rows = None if second else [pd.read_parquet(folder / f"{split}.parquet") for split in ("train", "test")]
    before, begin = peak_mb(), time.perf_counter()
    if second:
        with open(prepared, "rb") as file:
            model = pickle.load(file)
    else:
        model = kind(*rows)
        if kind.trains:
            epochs = 0
            with open(prepared, "wb") as file:
                pickle.dump(model, file, protocol=5)
    found, scores = {"preprocessing_s": time.perf_counter() - begin, "train_rows_per_s": [], "score_rows_per_s": []}, []
    for _ in range(epochs):
        begin = time.perf_counter()
        trained = model.fit()
        found["train_rows_per_s"].append(trained / (time.perf_counter() - begin))
        if model.predict:
            begin = time.perf_counter()
            scores.append(model.predict())
            found["score_rows_per_s"].append(model.n_test / (time.perf_counter() - begin))
    np.save(folder / "scores.npy", scores)
    return found | {"peak_mb": peak_mb(), "work_mb": peak_mb() - before}


def matrix_rates() -> dict[str, float]:
    """GFLOP/s of this machine in products of the size of the network's second layer: what a training step could reach at best."""
    import torch

    from wide_deep_model import tune_cpu

    found = {}
    for name, kind in (("float32 as torch comes", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        if name == "float32":
            tune_cpu()
        left, right = torch.randn(BATCH, HIDDEN[0]).to(kind), torch.randn(*HIDDEN[:2]).to(kind)
        seconds = []
        for _ in range(200):
            begin = time.perf_counter()
            left @ right
            seconds.append(time.perf_counter() - begin)
        found[name] = 2e-9 * BATCH * HIDDEN[0] * HIDDEN[1] / statistics.median(seconds)
    return found


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def interpreter(system: str) -> Path:
    """The Python of a system; that of the peers is made and filled where it is not there yet."""
    if issubclass(SYSTEMS[system], Ours):
        return Path(sys.executable)
    python = PEERS / "bin" / "python"
    if not (PEERS / "complete").exists():
        print(f"installing {', '.join(PACKAGES)} into {PEERS}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", PEERS], check=True)
        for packages in (PACKAGES[:1], PACKAGES):  # torch alone first, so that nothing replaces it
            subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        (PEERS / "complete").touch()
    return python


def report(turns: list[dict[str, dict]], label: np.ndarray, systems: Iterable[str]) -> None:
    from wide_deep_model import auc  # only now: a child's peak memory counts what this process holds

    def median(system: str, value: str) -> float:
        return statistics.median(float(np.median(turn[system][value])) for turn in turns)

    def ratio(ours: str, system: str, value: str) -> str:
        """Times as fast as a system, or times the memory that it takes."""
        each = [float(np.median(turn[ours][value]) / np.median(turn[system][value])) for turn in turns]
        each = [1 / e for e in each] if value == "preprocessing_s" else each
        return f"{statistics.median(each):.2g} ({min(each):.2g} to {max(each):.2g})"

    print("| | preprocessing | training, rows/s | scoring, rows/s | peak memory, MB | of it beyond libraries and raw rows | test AUC after epochs 1, 2, ... |")
    print("|---" * 7 + "|")
    for system in systems:
        speed = f"{median(system, 'preprocessing_s'):.2f} s | {median(system, 'train_rows_per_s'):,.0f} | "
        speed += f"{median(system, 'score_rows_per_s'):,.0f}" if turns[0][system]["scores"].size else "-"
        quality = ", ".join(f"{np.median([auc(label, score) for score in epoch]):.4f}" for epoch in zip(*(turn[system]["scores"] for turn in turns)))
        print(f"| {system} | {speed} | {median(system, 'peak_mb'):,.0f} | {median(system, 'work_mb'):,.0f} | {quality or '-'} |")
    print("\n| times as fast, or as much memory | preprocessing | training, float32 | bfloat16 | scoring | peak memory, float32 | bfloat16 |")
    print("|---" * 7 + "|")
    for system in systems:
        if system not in (OURS, BRIEF, WHOLE):
            of = [ratio(OURS, system, "preprocessing_s")]
            of += [ratio(ours, system, "train_rows_per_s") if ours in systems else "-" for ours in (OURS, BRIEF)]
            of += [ratio(OURS, system, "score_rows_per_s") if turns[0][system]["scores"].size else "-"]
            of += [ratio(ours, system, "peak_mb") if ours in systems and turns[0][system]["scores"].size else "-" for ours in (OURS, BRIEF)]
            print(f"| {system} | " + " | ".join(of) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="a data set that amazon_preprocessing.py prepared")
    parser.add_argument("--rows", type=int, default=400_000, metavar="N", help="training rows (default: 400000)")
    parser.add_argument("--test-rows", type=int, default=100_000, metavar="N", help="(default: 100000)")
    parser.add_argument("--epochs", type=int, default=3, metavar="N", help="(default: 3)")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="of all systems (default: 3)")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=[*SYSTEMS], metavar="NAME", help=f"beside ours: of {', '.join(SYSTEMS)}")
    parser.add_argument("--step", nargs=2, metavar=("SYSTEM", "FOLDER"), help=argparse.SUPPRESS)  # what a process of its own does
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if args.step:
        system, folder = args.step[0], Path(args.step[1])
        if system in SYSTEMS:
            told = measure(system, folder, args.epochs)
        else:
            told = matrix_rates() if system == "rates" else raw_rows(args.data, args.rows, args.test_rows, folder)
        print(json.dumps(told))
        return
    systems = dict.fromkeys([OURS, BRIEF, WHOLE, *args.systems])
    pythons = {system: interpreter(system) for system in systems}
    with tempfile.TemporaryDirectory() as folder:
        def step(python: Path, name: str) -> dict:
            """In a process of its own: a child's peak memory counts what its parent held when it started it."""
            flags = ["--data", args.data, "--rows", args.rows, "--test-rows", args.test_rows, "--epochs", args.epochs]
            command = [python, __file__, "--step", name, folder, *map(str, flags)]
            quiet = os.environ | {"PYTHONWARNINGS": "ignore", "PYTHONDONTWRITEBYTECODE": ""}  # ours is compiled once, as what is installed
            return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=quiet).stdout.splitlines()[-1])

        step(Path(sys.executable), "rows")
        rates = step(Path(sys.executable), "rates")
        if rates["bfloat16"] < rates["float32"]:  # of a CPU without bfloat16, which would take minutes
            del systems[BRIEF], pythons[BRIEF]
        turns = []
        for turn in range(args.turns):
            turns.append({})
            for system, python in pythons.items():
                turns[-1][system] = step(python, system)
                if SYSTEMS[system].trains:
                    first, second = turns[-1][system], step(python, system)
                    (Path(folder) / PREPARED).unlink()
                    both = {"preprocessing_s": first["preprocessing_s"] + second["preprocessing_s"]}
                    turns[-1][system] = second | both | {name: max(first[name], second[name]) for name in ("peak_mb", "work_mb")}
                print(f"turn {turn + 1}, {system}: {turns[-1][system]}", file=sys.stderr, flush=True)
                turns[-1][system]["scores"] = np.load(Path(folder) / "scores.npy")
        label = pd.read_parquet(Path(folder) / "test.parquet")["label"].to_numpy()
    report(turns, label, systems)
    print("\nmatrix products: " + ", ".join(f"{kind} {rate:,.0f} GFLOP/s" for kind, rate in rates.items()))


if __name__ == "__main__":
    main()
