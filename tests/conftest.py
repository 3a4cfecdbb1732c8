"""Small logs in the genuine file format, and one trained pipeline that the tests share."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import amazon_preprocessing
import wide_deep_model

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"  # research data sets, kept beside the project, never in it
PLOT_EXPLORATION = amazon_preprocessing.plot_exploration  # the real one: 1-2 s a call
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no research data sets at {DATA}")


def random_log(rows: int = 3000, users: int = 150, items: int = 80, seed: int = 0) -> pd.DataFrame:
    """A log with user and item effects, long-tailed, with repeated moments; pairs are unique."""
    rng = np.random.default_rng(seed)
    user = (users * rng.random(4 * rows) ** 1.5).astype(int)
    item = (items * rng.random(4 * rows) ** 1.5).astype(int)
    log = pd.DataFrame({"user": user, "item": item}).drop_duplicates(ignore_index=True).iloc[:rows]
    taste, quality = rng.normal(0, 1, users), rng.normal(0, 1, items)
    liking = 3.9 + taste[log["user"]] + quality[log["item"]] + rng.normal(0, 0.8, len(log))
    log["rating"] = np.clip(np.round(liking), 1, 5)
    log["timestamp"] = 1_300_000_000 + 86_400 * rng.integers(0, 900, len(log))
    log["words"] = rng.integers(1, 40, len(log))
    return log


def write_log(path: Path, log: pd.DataFrame) -> Path:
    """The log as Amazon 2014 JSON lines, gzip where the name says so."""
    lines = [
        json.dumps({"reviewerID": f"U{row.user:05d}", "asin": f"B{row.item:09d}", "overall": float(row.rating),
                    "unixReviewTime": int(row.timestamp), "reviewText": " ".join(["word"] * int(row.words)), "summary": "s"})
        for row in log.itertuples()
    ]
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_metadata(path: Path, items: int) -> Path:
    """Titles, and five categories and three brands of very unequal size; some items are missing."""
    lines = [
        {"asin": f"B{item:09d}", "title": f"Thing {item}", "categories": [["Shop", f"Shelf {int((item % 7) ** 0.5 * 2)}"]],
         "brand": f"Brand {item % 9 % 4}", "price": 1.0 + item}
        for item in range(items) if item % 10
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def preprocess(folder: Path, log: pd.DataFrame, *flags: str) -> amazon_preprocessing.Dataset:
    """Stage 1 on a log, as a user would run it; the verified artifacts."""
    path = write_log(folder / "log.json", log)
    amazon_preprocessing.main(["--dataset", "amazon-reviews", "--input", str(path), "--output-dir", str(folder / "processed_data"), *flags])
    return amazon_preprocessing.load_dataset(folder / "processed_data")


def train(folder: Path, *flags: str) -> wide_deep_model.Recommender:
    """Stage 2 on the artifacts in a folder, small and quick; the loaded model."""
    checkpoint = folder / "best_wide_deep_model.pt"
    quick = ["--hidden", "32", "16", "--embedding-dim", "8", "--batch-size", "256", "--epochs", "4", "--device", "cpu"]
    wide_deep_model.main(["--data-dir", str(folder / "processed_data"), "--checkpoint", str(checkpoint), *quick, *flags])
    return wide_deep_model.load_model(checkpoint, device="cpu")


@pytest.fixture(scope="session", autouse=True)
def quick_plot() -> Iterator[None]:
    """Replace stage 1's slow picture; one test of test_artifacts.py draws the real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(amazon_preprocessing, "plot_exploration", lambda path, *_: path.write_bytes(b"not drawn in tests"))
        yield


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, amazon_preprocessing.Dataset, wide_deep_model.Recommender]:
    """A folder in which stages 1 and 2 have run, with the ablations."""
    folder = tmp_path_factory.mktemp("pipeline")
    return folder, preprocess(folder, random_log()), train(folder, "--ablations")
