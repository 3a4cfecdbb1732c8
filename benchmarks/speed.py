"""Four figures of speed: preprocessing, training against a plain loop, evaluation, one recommendation.

    python benchmarks/electronics_shape.py --output /tmp/electronics
    python benchmarks/speed.py --reviews /tmp/electronics/reviews_Electronics_shape_5.json.gz \
                               --metadata /tmp/electronics/meta_Electronics_shape.json.gz

Reads   the files named by --reviews and --metadata.
Writes  what the three scripts write, into --work (a temporary folder when left out), and the figures to standard output.

The three scripts run as a user runs them, each a process of its own. Training is then timed in this process, on the same
rows and the same network, in turns: one pass of wide_deep_model.py over --rows random training rows against --steps steps,
after warm-up, of a `DataLoader` over a `Dataset` whose `__getitem__` builds the tensors, dense embedding gradients and one Adam.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import wide_deep_model as stage2  # noqa: E402
from amazon_preprocessing import load_dataset  # noqa: E402

# ----------------------------------------------------------------------------------------------------------------------
WARM_UP_STEPS = 5  # of the plain loop: Adam's state is allocated, the sampler's permutation drawn
LIMITS = {"preprocessing_s": 90, "preprocessing_gb": 4, "training_ratio": 5, "evaluation_s": 180, "recommend_p50_ms": 40}
# ----------------------------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=Path, required=True, metavar="FILE", help="Amazon reviews as JSON lines")
    parser.add_argument("--metadata", type=Path, metavar="FILE", help="Amazon product metadata")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep what the scripts write here (default: a temporary folder)")
    parser.add_argument("--epochs", type=int, default=1, help="of the model that is evaluated (default: 1)")
    parser.add_argument("--rows", type=int, default=300_000, help="training rows of a turn of ours (default: 300000)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of ours and the plain loop (default: 5)")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of the plain loop per turn (default: 20)")
    return parser.parse_args(argv)


# ---------------------------------------------------------------------------------------------------- the three scripts


def run_script(name: str, *flags: object) -> tuple[float, float]:
    """Wall seconds and peak resident GB of one script, run as a process of its own.

    The kernel counts the starting process into a child's peak, so this must come before anything large is loaded here.
    """
    print(f"$ python {name} {' '.join(map(str, flags))}", flush=True)
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, ROOT / name, *map(str, flags)])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{name} ended with exit code {process.returncode}")
    return time.perf_counter() - begin, usage.ru_maxrss / 2**20


def run_pipeline(args: argparse.Namespace, work: Path) -> dict[str, float]:
    """Run all three scripts at their defaults; seconds, memory and latency."""
    data, checkpoint, metrics = work / "data", work / "best_wide_deep_model.pt", work / "metrics.json"
    metadata = ["--metadata", args.metadata] if args.metadata else []
    figures = {}
    source = ["--dataset", "amazon-reviews", "--input", args.reviews, *metadata]
    figures["preprocessing_s"], figures["preprocessing_gb"] = run_script("amazon_preprocessing.py", *source, "--output-dir", data)
    common = ["--data-dir", data, "--checkpoint", checkpoint]
    figures["training_s"], figures["training_gb"] = run_script("wide_deep_model.py", *common, "--epochs", args.epochs)
    report = ["--metrics", metrics, "--plot", work / "results.png", "--ranking-users", 2000]
    epochs = json.loads((work / "training_history.json").read_text())["epochs"]
    figures["epoch_rows_per_s"] = statistics.median(epoch["rows_per_s"] for epoch in epochs)
    figures["evaluation_s"], figures["evaluation_gb"] = run_script("model_evaluation.py", *common, *report)
    latency = json.loads(metrics.read_text())["latency_ms"]
    return figures | {f"recommend_{p}_ms": latency[p] for p in ("p50", "p95", "p99")}


# ------------------------------------------------------------------------------------------------------------ training


class PlainDataset(Dataset):
    """One row at a time, each field turned into a tensor of its own, as public implementations of the model do it."""

    def __init__(self, wide: np.ndarray, deep: np.ndarray, numeric: np.ndarray, label: np.ndarray) -> None:
        self.wide, self.deep, self.numeric, self.label = wide, deep, numeric, label

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, ...]:
        return (
            torch.tensor(self.wide[row], dtype=torch.long),
            torch.tensor(self.deep[row], dtype=torch.long),
            torch.tensor(self.numeric[row], dtype=torch.float32),
            torch.tensor(self.label[row], dtype=torch.float32),
        )


def plain_steps(model: nn.Module, rows: stage2.Rows, batch_size: int, learning_rate: float) -> Iterator[int]:
    """Train the model the plain way; each step yields its number of rows. Goes on for ever."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = False
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    loader = DataLoader(PlainDataset(*(t.numpy() for t in rows.tensors)), batch_size, shuffle=True, num_workers=0)
    while True:
        for wide, deep, numeric, label in loader:
            optimizer.zero_grad()
            logit = model(wide, deep, numeric)
            F.binary_cross_entropy_with_logits(logit, label).backward()
            optimizer.step()
            yield len(label)


def compare_training(args: argparse.Namespace, data: Path) -> dict[str, list[float]]:
    """rows/s of the default model and of the plain loop, in turns, after a warm-up of both."""
    ds, options = load_dataset(data), stage2.parse_args(["--device", "cpu"])
    run = stage2.Run(options, ds)
    config = run.config | {"refit": False}
    features = stage2.fit_inputs(ds, ds.rows("train"), config)
    train = ds.reviews[ds.reviews["split"] == "train"]
    rows = stage2.encode_rows(features, train.sample(min(args.rows, len(train)), random_state=options.seed), "cpu", "like")
    training = stage2.Training(options, config, features, ds.index["positive_rate"])
    plain = plain_steps(stage2.WideDeep(features, config), rows, options.batch_size, options.deep_lr)
    for _ in range(WARM_UP_STEPS):
        next(plain)
    speeds = {"ours": [], "plain": []}
    with tqdm(total=(1 + args.repeats) * len(rows), desc="training in turns", unit=" rows", unit_scale=True, disable=None) as bar:
        training.run_epoch(rows, bar)
        for _ in range(args.repeats):
            begin = time.perf_counter()
            training.run_epoch(rows, bar)
            speeds["ours"].append(len(rows) / (time.perf_counter() - begin))
            begin = time.perf_counter()
            trained = sum(next(plain) for _ in range(args.steps))
            speeds["plain"].append(trained / (time.perf_counter() - begin))
    return speeds


# -------------------------------------------------------------------------------------------------------------- report


def report(args: argparse.Namespace, f: dict[str, float], speeds: dict[str, list[float]]) -> None:
    ours, plain = (statistics.median(speeds[name]) for name in ("ours", "plain"))
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["plain"])]
    f["training_ratio"] = statistics.median(ratios)

    def verdict(name: str) -> str:
        met = f[name] >= LIMITS[name] if name == "training_ratio" else f[name] <= LIMITS[name]
        return f"{'at least' if name == 'training_ratio' else 'at most'} {LIMITS[name]}: {'met' if met else 'MISSED'}"

    print(f"\n{args.reviews.name}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, torch {torch.__version__}")
    print(
        f"1. preprocessing  {f['preprocessing_s']:.1f} s ({verdict('preprocessing_s')}), "
        f"peak {f['preprocessing_gb']:.2f} GB ({verdict('preprocessing_gb')})"
    )
    print(f"2. training       {ours:,.0f} rows/s, plain loop {plain:,.0f}, ratio {f['training_ratio']:.1f} ({verdict('training_ratio')})")
    print(
        f"                  medians of {args.repeats} turns, ratios {min(ratios):.1f} to {max(ratios):.1f}; "
        f"ours: up to {args.rows:,} rows per turn; plain: {args.steps} steps per turn, not an epoch"
    )
    print(
        f"3. evaluation     {f['evaluation_s']:.1f} s with 2,000 ranked users and every baseline ({verdict('evaluation_s')}), "
        f"peak {f['evaluation_gb']:.2f} GB"
    )
    print(
        f"4. recommend      p50 {f['recommend_p50_ms']:.1f} ms ({verdict('recommend_p50_ms')}), p95 {f['recommend_p95_ms']:.1f}, "
        f"p99 {f['recommend_p99_ms']:.1f}"
    )
    print(
        f"   besides: wide_deep_model.py --epochs {args.epochs} took {f['training_s']:.1f} s, "
        f"{f['epoch_rows_per_s']:,.0f} rows/s in whole epochs, peak {f['training_gb']:.2f} GB"
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="wide_deep_speed_") as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        figures = run_pipeline(args, work)
        report(args, figures, compare_training(args, work / "data"))


if __name__ == "__main__":
    main()
