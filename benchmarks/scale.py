"""How cost grows: preprocessing and training time against the number of rows, and training speed against users and items.

    python benchmarks/scale.py                               # up to 43.9 million ratings: half an hour, 10 GB of disk, docs/scale.png
    python benchmarks/scale.py --scales 0.06 0.6 --rows 100000 1000000

Preprocessing runs as a user runs it, on generated ratings-only files of --scales times Electronics 5-core (26 is the size of Electronics
2023), users and items in proportion. Training is one epoch of wide_deep_model.py's loop over generated encoded rows of user, item,
month, two crosses and two numbers in memory, embeddings of 32, layers 256-128-64, batches of 4,096. Ids follow long tails. The second
figure of training compares tables of 10 times as many users and items, in turns, on the same rows and the same batch. The third
compares rows that are encoded into files with the same rows in memory, an epoch each in turns, with the features of the default model.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import electronics_shape
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from speed import ROOT, run_script
from tqdm import tqdm

import amazon_preprocessing as stage1  # speed made it importable
import wide_deep_model as stage2

USERS, ITEMS, GROWTH, BATCH = 200_000, 60_000, 10, 4096
FLAGS = ["--device", "cpu", "--batch-size", str(BATCH), "--precision", "bfloat16" if BATCH >= stage2.BRIEF_BATCH else "float32"]  # as the script chooses


def preprocessing(scale: float, folder: Path) -> tuple[int, float, float]:
    """Rows, seconds and peak GB of stage 1."""
    flags = ["--output", str(folder), "--scale", str(scale), "--ratings-only"]
    subprocess.run([sys.executable, electronics_shape.__file__, *flags], check=True)  # of its own: what it took would count into the peak of stage 1
    path = folder / "ratings_Electronics_shape.csv"
    seconds, peak = run_script("amazon_preprocessing.py", "--dataset", "amazon-ratings", "--input", path, "--output-dir", folder / "data")
    path.unlink()
    return round(electronics_shape.REVIEWS * scale), seconds, peak


def make_training(rows: int, growth: int = 1) -> tuple[stage2.Training, stage2.Rows]:
    """A model on generated rows, with so many times the users and items."""
    rng, sizes = np.random.default_rng(0), {"month": 13}
    codes = {"month": rng.integers(1, 13, rows, np.int32)}
    for name, many in (("user", USERS * growth), ("item", ITEMS * growth)):
        codes[f"{name}_id"] = 1 + (many * rng.random(rows, np.float32) ** 2).astype(np.int32)  # half of the rows belong to a quarter of the ids
        codes[f"cross_{name}"] = codes[f"{name}_id"] * 4 + rng.integers(0, 4, rows, np.int32)
        sizes |= {f"{name}_id": many + 2, f"cross_{name}": 4 * many + 8}
    wide, deep = ["user_id", "item_id", "cross_user", "cross_item"], ["user_id", "item_id", "month"]
    features = SimpleNamespace(wide=wide, categorical=deep, wide_numeric=[], numeric=["a", "b"], size=sizes.get, vocabularies={"crosses": {}})
    parts = *(np.stack([codes[n] for n in names], axis=1) for names in (wide, deep)), rng.standard_normal((rows, 2), np.float32)
    tensors = stage2.Rows(*map(torch.from_numpy, (*parts, (rng.random(rows) < 0.8).astype(np.float32))))
    args = stage2.parse_args(FLAGS)
    return stage2.Training(args, vars(args) | {"component": "wide-deep"}, features, 0.8), tensors


def streaming(scale: float, turns: int) -> tuple[int, list[float]]:
    """Training rows, and in each turn the seconds of an epoch over rows in memory divided by those of one that reads them from files."""
    with tempfile.TemporaryDirectory(prefix="wide_deep_scale_") as folder:
        preprocessing(scale, Path(folder))
        stage1.MEMORY = 1
        ds = stage1.load_dataset(Path(folder) / "data")
        args = stage2.parse_args(FLAGS)
        config = vars(args) | stage2.choose_features(args, ds)
        features = stage2.fit_inputs(ds, ds.rows("train"), config)
        encode = partial(stage2.encode_rows, features, device="cpu", objective="like")
        streamed, training = stage2.StreamedRows(ds.blocks("train"), encode, Path(folder), "cpu"), stage2.Training(args, config, features, 0.8)
        in_memory = stage2.Rows(*map(torch.cat, zip(*(encode(block()).tensors for block in ds.blocks("train")))))
        epoch_seconds(training, in_memory)  # warm-up
        return len(in_memory), [epoch_seconds(training, in_memory) / epoch_seconds(training, streamed) for _ in range(turns)]


def epoch_seconds(training: stage2.Training, rows: stage2.Rows | stage2.StreamedRows) -> float:
    begin = time.perf_counter()
    with tqdm(unit=" rows", unit_scale=True, disable=None, leave=False) as bar:
        training.run_epoch(rows, bar)
    return time.perf_counter() - begin


def draw(prepared: list[tuple[int, float, float]], trained: list[tuple[int, float]], path: Path) -> None:
    matplotlib.use("agg")
    sns.set_theme(style="whitegrid", palette="colorblind")
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, points in (("preprocessing", [p[:2] for p in prepared]), ("training, one epoch", trained)):
        rows, seconds = zip(*points)
        line = axis.loglog(rows, seconds, "o-", label=f"{name}: {seconds[-1] / rows[-1] * 1e6:.1f} s per million rows at {rows[-1] / 1e6:.1f} M")[0]
        axis.loglog(rows, np.array(rows) * seconds[-1] / rows[-1], ":", color=line.get_color(), lw=1)
    axis.set(title="Cost against rows, 2 cores (dotted: proportional to rows)", xlabel="rows", ylabel="seconds")
    axis.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", type=float, nargs="*", default=[0.06, 0.6, 6, 25.99], help="of preprocessing (default: 0.06 0.6 6 25.99)")
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000, 40_000_000], help="of an epoch (default: 0.1 to 40 million)")
    parser.add_argument("--stream-scale", type=float, default=6, help="of the log whose rows are read from the file (default: 6)")
    parser.add_argument("--turns", type=int, default=5, help="of the tables of both sizes, and of rows in memory and in the file (default: 5)")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "scale.png", metavar="FILE")
    args = parser.parse_args()
    prepared, trained = [], []
    for scale in args.scales:  # first, because a child's peak memory counts what this process holds
        with tempfile.TemporaryDirectory(prefix="wide_deep_scale_") as folder:
            prepared.append(preprocessing(scale, Path(folder)))
        print("preprocessing {:,} rows: {:.1f} s, peak {:.2f} GB".format(*prepared[-1]), flush=True)
    both = [make_training(1_000_000, growth) for growth in (1, GROWTH)]
    turns = [[epoch_seconds(*one) for one in both] for _ in range(args.turns + 1)][1:]
    ratios = [small / large for small, large in turns]
    print(f"training with {GROWTH} times the users and items: {statistics.median(ratios):.2f} times the rows/s ({min(ratios):.2f} to {max(ratios):.2f})")
    del both
    if args.stream_scale:
        rows, ratios = streaming(args.stream_scale, args.turns)
        print(f"training that reads {rows:,} rows from the file: {statistics.median(ratios):.2f} times the rows/s of rows in memory "
              f"({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
    for rows in args.rows:
        training, tensors = make_training(rows)
        epoch_seconds(training, make_training(100_000)[1])  # warm-up
        trained.append((rows, epoch_seconds(training, tensors)))
        print(f"training {rows:,} rows: {trained[-1][1]:.1f} s an epoch, {rows / trained[-1][1]:,.0f} rows/s", flush=True)
    if prepared and trained:
        draw(prepared, trained, args.plot)


if __name__ == "__main__":
    sys.exit(main())
