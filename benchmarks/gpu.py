"""Training on a GPU: seconds of an epoch of the default model, and whether it learns what the CPU learns in float32.

    python benchmarks/gpu.py --data electronics/data                              # the generated Electronics, 1,350,150 training rows
    python benchmarks/gpu.py --data electronics/data --device cpu --rows 200000   # does the script run? nothing to report

Rows are on the device before the clock starts, and it stops when the device is done. Each epoch starts where the one before ended; the first
pays for the start of CUDA and is not counted. All three models begin with the same weights and see the rows of the first epoch in the same
order; which ids are hidden is drawn on the device, so that a GPU hides others, and later epochs have another order. The AUC is that of the
test rows after all epochs. The GPU is expected to be within 0.002 of the CPU, the bar of this project for trainings that differ in rounding,
order and hidden ids only. "waits" counts how often the CPU
waited for the GPU in the last epoch, as torch's own warning tells: once in a hundred steps, for the progress bar, and at the end.
"""

import argparse
import os
import statistics
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import wide_deep_model as stage2  # noqa: E402
from amazon_preprocessing import load_dataset  # noqa: E402

SILENT = SimpleNamespace(update=lambda rows: None, set_postfix=lambda **shown: None)
TOLERANCE = 0.002


def train(folder: Path, device: str, precision: str, epochs: int, limit: int) -> tuple[list[float], float, float, int]:
    """Seconds of every epoch, test AUC after the last, peak GB of the device, and waits of the last epoch."""
    ds = load_dataset(folder)
    args = stage2.parse_args(["--device", device, "--precision", precision, "--batch-size", "4096"])
    known = ds.rows("train").iloc[:limit]
    config = vars(args) | stage2.choose_features(args, ds) | {"component": "wide-deep"}
    inputs = stage2.fit_inputs(ds, known, config)
    rows, test = (stage2.encode_rows(inputs, part, device, "like") for part in (known, ds.rows("test")))
    training, seconds = stage2.Training(args, config, inputs, float(known["label"].mean())), []
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for number in range(epochs):
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("warn" if number == epochs - 1 else "default")
        begin = time.perf_counter()
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            training.run_epoch(rows, SILENT)
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    auc = stage2.validate(training.kept, test, {"objective": "like"})["validation_auc"]
    return seconds, auc, torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0, sum("synchron" in str(w.message) for w in waits)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="written by amazon_preprocessing.py")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--epochs", type=int, default=5, help="at least 3 (default: 5)")
    parser.add_argument("--rows", type=int, default=1_351_000, help="training rows, at most (default: 1351000)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py: error: this torch sees no GPU, so there is nothing to measure", file=sys.stderr)
        return 2
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if args.device == 'cuda' else f'CPU, {os.cpu_count()} cores'}")
    aucs = {}
    for device, precision in ((args.device, "bfloat16"), (args.device, "float32"), ("cpu", "float32")):
        seconds, auc, memory, waits = train(args.data, device, precision, max(args.epochs, 3), args.rows)
        counted, aucs[device, precision] = seconds[1:-1], auc  # the last looks for waits, which takes time
        print(f"{device} {precision}: epoch {statistics.median(counted):.3f} s ({min(counted):.3f} to {max(counted):.3f}), first {seconds[0]:.2f} s, "
              f"test AUC {auc:.4f}, peak {memory:.2f} GB of the device, {waits} waits", flush=True)
    furthest = max(abs(auc - aucs["cpu", "float32"]) for auc in aucs.values())
    print(f"furthest from the CPU in float32: {furthest:.4f} (tolerance {TOLERANCE})")
    return int(furthest > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
