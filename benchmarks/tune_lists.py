"""Constants of the lists, tuned on validation rows with a fixed budget: random search, the present constants as the first trial.

    python benchmarks/tune_lists.py --data ../shared/data                # 8 trials on three data sets -> benchmarks/tune_lists.csv

One set of constants serves all data sets. A trial draws each constant at random from SPACE and fits pairs and network (--objective
ranking) on the training rows of every data set, split 1 of ranking.py; what counts is NDCG@10 of the validation users, as a ratio to
that of the first trial, in the mean over the data sets. Test rows are not read. The csv has every trial: what was tried and what it gave.
"""

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from ranking import ROOT, SETS, SPLIT

import wide_deep_model as stage2  # ranking made it importable
from amazon_preprocessing import load_dataset

SMALL = ("MovieLens-100K", "Digital Music", "Musical Instruments")
SPACE = {
    "USER_POWER": (-0.5, -0.3, 0.0),
    "TASTE": ((300, 100), (600, 200), (1000, 300)),
    "HIDDEN_SHARE": (0.3, 0.5, 0.7),
    "TASTE_DECAY": (0.0, 1e-3, 5e-3),
}


def preprocess(name: str, data: Path, folder: Path) -> Path:
    flags = f"{SETS[name].format(data=data)} {SPLIT} --seed 1 --output-dir".split()
    subprocess.run([sys.executable, ROOT / "amazon_preprocessing.py", *flags, folder / name], check=True, stdout=subprocess.DEVNULL)
    return folder / name


def trial(constants: dict, folder: Path) -> float:
    """Validation NDCG@10 of one data set with these constants."""
    torch.set_num_threads(1)
    for constant, value in constants.items():
        setattr(stage2, constant, value)
    args = stage2.parse_args(["--objective", "ranking", "--seed", "1", "--device", "cpu"])
    with contextlib.redirect_stdout(io.StringIO()) as told:
        stage2.Run(args, load_dataset(folder)).fit_lists("wide-deep", False)
    return float(re.findall(r"lists: .* validation NDCG@10 ([\d.]+)", told.getvalue())[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the data sets")
    parser.add_argument("--only", nargs="+", choices=SETS, default=SMALL, metavar="NAME", help=f"of {', '.join(SETS)}")
    parser.add_argument("--budget", type=int, default=8, metavar="N", help="trials (default: 8)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "tune_lists.csv", metavar="FILE")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    rng = np.random.default_rng(0)
    trials = [{name: getattr(stage2, name) for name in SPACE}]
    trials += [{name: values[rng.integers(len(values))] for name, values in SPACE.items()} for _ in range(args.budget - 1)]
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2) as pool:
        folders = [preprocess(name, args.data.resolve(), Path(folder)) for name in args.only]
        futures = [[pool.submit(trial, constants, path) for path in folders] for constants in trials]
        quality = np.array([[future.result() for future in of_trial] for of_trial in futures])  # [trials, data sets]
    table = pd.DataFrame([{name: str(value) for name, value in constants.items()} for constants in trials])
    table[list(args.only)], table["ratio"] = quality, (quality / quality[0]).mean(axis=1).round(4)
    table = table.sort_values("ratio", ascending=False, kind="stable")
    table.to_csv(args.output, index_label="trial")
    print(table.to_string())


if __name__ == "__main__":
    main()
