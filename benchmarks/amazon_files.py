"""The three scripts at their defaults on Amazon files: one line of figures for each.

    python benchmarks/amazon_files.py reviews_Musical_Instruments_5.json.gz Gift_Cards_5.json.gz Magazine_Subscriptions_2018.csv

Files named *.csv are ratings, others reviews. Product metadata is used where it lies beside a file: meta_NAME.json.gz beside
NAME_5.json.gz. The intervals are those of metrics.json (95 %, user-level bootstrap); on files as small as these they are wide.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(path: Path, folder: str) -> dict:
    """metrics.json of the three scripts."""
    source = ["--dataset", "amazon-ratings" if path.suffix == ".csv" else "amazon-reviews", "--input", path]
    metadata = path.with_name("meta_" + path.name.replace("_5.json", ".json"))
    source += ["--metadata", metadata] if metadata.exists() else []
    for script, flags in (("amazon_preprocessing.py", source), ("wide_deep_model.py", ["--ablations"]), ("model_evaluation.py", [])):
        subprocess.run([sys.executable, ROOT / script, *map(str, flags)], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return json.loads((Path(folder) / "metrics.json").read_text())


def cell(value: float | None, limits: list[float] | None, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:{sign}.3f}" + (" [{:{s}.3f}, {:{s}.3f}]".format(*limits, s=sign) if limits else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    print("| file, time split | rows / users / items | test rows (disliked) | AUC | minus user + item mean | catalogue NDCG@10 |\n|---|---|---|---|---|---|")
    for path in args.files:
        with tempfile.TemporaryDirectory() as folder:
            m = run(path.resolve(), folder)
        data, ours, limits = m["dataset"], m["models"]["wide_deep"], m["intervals"]["wide_deep"]
        rows = sum(data[f"{part}_rows"] for part in ("train", "validation", "test"))
        disliked = round(data["test_rows"] * (1 - data["test_positive_rate"]))
        gain = m["differences"]["mean_bias"].get("ratings.auc", {})
        figures = [cell(ours["ratings"].get("auc"), limits.get("ratings.auc")), cell(gain.get("difference"), gain.get("interval"), "+")]
        figures.append(cell(ours.get("catalogue", {}).get("ndcg@10"), limits.get("catalogue.ndcg@10")))
        print(f"| {path.name} | {rows:,} / {data['users']:,} / {data['items']:,} | {data['test_rows']:,} ({disliked:,}) | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
