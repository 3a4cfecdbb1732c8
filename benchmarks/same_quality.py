"""Test AUC of the same training with rows in memory, with rows encoded block by block into files, and by two processes.

    python benchmarks/same_quality.py --dataset movielens --input DIR/ml-1m --min-core 0
    python benchmarks/same_quality.py --dataset amazon-reviews --input electronics/reviews_Electronics_shape_5.json.gz --seeds 1

All flags but --seeds and --epochs are those of amazon_preprocessing.py. Blocks have 16,384 rows, so that the eight that are shuffled
together are few of all. Intervals are 95 %, by the bootstrap over users, of the first seed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from speed import ROOT

import amazon_preprocessing as stage1  # speed made it importable
import wide_deep_model as stage2

BLOCK, REPLICATES = 16_384, 200
STREAMED = "import sys, amazon_preprocessing as stage1, wide_deep_model as stage2; stage1.MEMORY = 1; sys.exit(stage1.run_script(stage2.main))"
WAYS = {
    "in memory": [sys.executable, "wide_deep_model.py"],
    "from the file": [sys.executable, "-c", STREAMED],
    "two processes": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "wide_deep_model.py"],
}


def interval(user: np.ndarray, label: np.ndarray, score: np.ndarray) -> list[float]:
    """95 % interval of the AUC, users drawn with replacement."""
    rng, rows = np.random.default_rng(0), np.split(np.argsort(user, kind="stable"), np.cumsum(np.unique(user, return_counts=True)[1])[:-1])
    drawn = (np.concatenate([rows[n] for n in rng.integers(0, len(rows), len(rows))]) for _ in range(REPLICATES))
    return np.quantile([stage2.auc(label[chosen], score[chosen]) for chosen in drawn], [0.025, 0.975]).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="of training (default: 1 2)")
    parser.add_argument("--epochs", default="4", help="at most (default: 4)")
    args, flags = parser.parse_known_args()
    stage1.BLOCK = BLOCK
    with tempfile.TemporaryDirectory(prefix="wide_deep_quality_") as folder:
        data = Path(folder) / "data"
        stage1.main([*flags, "--output-dir", str(data)])
        test = stage1.load_dataset(data).rows("test")
        for seed in args.seeds:
            for way, command in WAYS.items():
                checkpoint = Path(folder) / "best.pt"
                flags = ["--data-dir", data, "--checkpoint", checkpoint, "--epochs", args.epochs, "--seed", seed, "--device", "cpu"]
                subprocess.run([*command, *map(str, flags)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
                rows = [test[name].to_numpy() for name in ("user_id", "label")]
                score = stage2.load_model(checkpoint, "cpu").score_rows(test)
                told = " [{:.4f}, {:.4f}]".format(*interval(*rows, score)) if seed == args.seeds[0] else ""  # it takes a while
                print(f"seed {seed}, {way}: test AUC {stage2.auc(rows[1], score):.4f}{told}", flush=True)


if __name__ == "__main__":
    main()
