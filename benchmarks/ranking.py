"""Which of all items next: Wide & Deep lists against the strongest linear and matrix-factorisation models, on six data sets.

    python benchmarks/ranking.py --data ../shared/data                                     # some hours on 2 cores
    python benchmarks/ranking.py --data ../shared/data --only MovieLens-1M --seeds 1

Per-user split, 70 % training, 10 % validation, 20 % test rows of every user, a new one for every seed. Every model, ours and each
baseline, is tuned on the validation rows, then fitted once more on training and validation rows (--refit), then ranks the whole
catalogue for every user with a liked test row. A baseline tries all settings of its list in GRIDS, each with three histories: likes
alone, as published; every rating alike; a rating below a like as part of one. Ours chooses among the latter two, six
penalties, four powers of popularity, and how long and how much its network counts. Nothing is chosen by hand for one data set.

Our lists divide scores by a power of an item's popularity; published EASE does not. EASE with such a division, tuned over fewer penalties,
is shown beside the baselines to tell how much of the difference comes from it, and is not one of them.

Coverage against quality: where our coverage is below EASE's, it is shown a second time with the scores divided by the highest power of
popularity that leaves NDCG at EASE's or above. That power is read on the test rows, so it shows a trade-off and is no result of tuning.

Figures are means over seeds. Differences are paired: a user's mean over seeds under our model minus that under the other, with 95 %
limits from a bootstrap over users. Tail: share of the places in lists for items outside the 20 % that are liked most.
Wide only and deep only are our own parts, each trained alone.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender
from scipy.sparse import csr_matrix

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import model_evaluation as stage3  # noqa: E402
from amazon_preprocessing import Dataset, load_dataset  # noqa: E402
from wide_deep_model import histories, interactions, load_model  # noqa: E402

SETS = {
    "MovieLens-1M": "--dataset movielens --input {data}/ml-1m --drop-rating 1 2 3 --min-core 10",
    "MovieLens-100K": "--dataset movielens --input {data}/ml-100k",
    "Musical Instruments": "--dataset amazon-reviews --input {data}/amazon/2014/reviews_Musical_Instruments_5.json.gz",
    "Electronics dense": "--dataset csv --input {data}/amazon/ratings/Electronics_dense.csv --columns user=user_id,item=prod_id,rating=rating",
    "Digital Music": "--dataset csv --input {data}/amazon/ratings/Digital_Music_20plus.txt --columns user=0,item=1,rating=2,timestamp=3",
    "Anime": "--dataset anime --input {data}/anime --positive-threshold 8",
}  # fmt: skip
SPLIT = "--split per-user --test-fraction 0.2 --validation-fraction 0.1"
K, TAIL, REPLICATES = 10, 0.8, 2000
LIKES, RATED, GRADED = np.inf, 0.0, 1.0  # what a baseline's history is made of: a grade of `histories`
DISCOUNTED, WIDER = "EASE, discounted", "ours at EASE's NDCG"
OURS, BASELINES = ("Wide & Deep", "wide only", "deep only"), ("popularity", "recent popularity", "user-kNN", "item-kNN", "iALS", "EASE")
SHOWN = (*OURS, *BASELINES, DISCOUNTED)
NEIGHBOURS = list(itertools.product(("cosine", "bm25"), (20, 50, 100, 200, 400)))
GRIDS = {
    "popularity": [()],
    "recent popularity": [(share,) for share in (0.02, 0.05, 0.1, 0.2, 0.5)],  # of the training rows, the latest
    "user-kNN": NEIGHBOURS,
    "item-kNN": NEIGHBOURS,
    "iALS": list(itertools.product((0.01, 0.03, 0.1, 0.3, 1.0), (0.001, 0.004, 0.016))),  # weight of what is not liked, L2 per like
    "EASE": [(10 * 2**power,) for power in range(10)],
    DISCOUNTED: list(itertools.product((20, 80, 320), (0.1, 0.2, 0.3))),
}
IALS_SIZE, IALS_TRIAL = (128, 12), (64, 5)  # factors and sweeps: of the final fit, of a trial
Scores = Callable[[np.ndarray], np.ndarray]  # encoded users -> [users, items + 1]


# ------------------------------------------------------------------------------------------------------------ baselines
def popularity(history: csr_matrix, rows: pd.DataFrame) -> Scores:
    return stage3.popularity(history).score_catalogue


def recent_popularity(history: csr_matrix, rows: pd.DataFrame, share: float) -> Scores:
    latest = rows.nlargest(round(len(rows) * share), "timestamp", keep="all")
    return stage3.popularity(interactions(latest, history.shape, latest["interest"])).score_catalogue


def neighbours(kind: str, k: int) -> CosineRecommender | BM25Recommender:
    return {"cosine": CosineRecommender, "bm25": BM25Recommender}[kind](K=k + 1)  # + 1: it finds itself


def item_knn(history: csr_matrix, rows: pd.DataFrame, kind: str, k: int) -> Scores:
    similarity = stage3.similarities(neighbours(kind, k), history)
    return lambda users: (history[users] @ similarity).toarray()


def user_knn(history: csr_matrix, rows: pd.DataFrame, kind: str, k: int) -> Scores:
    similarity = stage3.similarities(neighbours(kind, k), history.T.tocsr()).T.tocsr()
    return lambda users: (similarity[users] @ history).toarray()


def ease(history: csr_matrix, rows: pd.DataFrame, penalty: float, power: float = 0.0) -> Scores:
    """Steck 2019, equation 8; scores divided by a power of the sum of an item's interests."""
    gram = (history.T @ history).toarray().astype(np.float64) + penalty * np.eye(history.shape[1])
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(torch.from_numpy(gram))).numpy()
    weights = (-inverse / np.diag(inverse)).astype(np.float32)
    np.fill_diagonal(weights, 0)
    weights /= np.maximum(np.asarray(history.sum(axis=0)).ravel(), 1) ** power
    return lambda users: history[users] @ weights


def ials(history: csr_matrix, rows: pd.DataFrame, alpha: float, penalty: float, factors: int = IALS_SIZE[0], sweeps: int = IALS_SIZE[1]) -> Scores:
    """Rendle et al. 2022, "Revisiting the performance of iALS"."""
    rng = np.random.default_rng(0)
    user, item = (rng.normal(0, 0.1 / factors**0.5, (n, factors)).astype(np.float32) for n in history.shape)
    transposed = history.T.tocsr()
    for _ in range(sweeps):
        user = ials_step(history, item, alpha, penalty)
        item = ials_step(transposed, user, alpha, penalty)
    return lambda users: user[users] @ item.T


def ials_step(history: csr_matrix, other: np.ndarray, alpha: float, penalty: float) -> np.ndarray:
    """Vectors of the rows given those of the columns: least squares with the interest as weight on 1 - score of what was rated,
    alpha on the score of every pair, and an L2 penalty that grows with the number of rated (their nu = 1)."""
    width, found = other.shape[1], np.zeros((history.shape[0], other.shape[1]), np.float32)
    gram = alpha * other.T @ other
    for begin in range(0, len(found), 256):
        block = history[begin : begin + 256]
        left, right = np.empty((block.shape[0], width, width), np.float32), (block @ other)[..., None]
        for n, (first, last) in enumerate(itertools.pairwise(block.indptr)):
            rated = other[block.indices[first:last]]
            np.matmul(rated.T * block.data[first:last], rated, out=left[n])
        left += gram
        left[:, range(width), range(width)] += penalty * (np.diff(block.indptr)[:, None] + alpha * len(other))
        found[begin : begin + 256] = torch.cholesky_solve(torch.from_numpy(right), torch.linalg.cholesky(torch.from_numpy(left)))[..., 0]
    return found


MAKERS = dict(zip((*BASELINES, DISCOUNTED), (popularity, recent_popularity, user_knn, item_knn, ials, ease, ease)))


# -------------------------------------------------------------------------------------------------------------- one run
def prepare(ds: Dataset, known: list[str], asked: str) -> tuple[dict[float, tuple[csr_matrix, pd.DataFrame]], stage3.Catalogue]:
    """By grade the known splits as histories and as rows, and the task: the likes of the asked split among items not in the known ones."""
    shape, rows = (len(ds.users), len(ds.items)), ds.reviews[["user_id", "item_id", "rating", "timestamp", "label", "split"]]
    of_known, relevant = rows[rows["split"].isin(known)], rows[(rows["label"] == 1) & (rows["split"] == asked)]
    task = stage3.Catalogue(interactions(relevant, shape), interactions(of_known, shape), 0, np.random.default_rng(0))
    found = {}
    for grade in (LIKES, RATED, GRADED) if (of_known["label"] == 0).any() else (LIKES,):  # else they are the same
        history = histories(of_known, grade, shape, ds.index, constant=0.0)
        interest = history[of_known["user_id"], of_known["item_id"]].A1
        found[grade] = history, of_known.assign(interest=interest)[interest > 0]
    return found, task


def ndcg(task: stage3.Catalogue, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """NDCG@10 [users] and lists [users, 10]."""
    lists, hits = task.rank(scores, K)
    return stage3.list_metrics(hits, task.n_relevant)["ndcg"], lists


def as_good_as(task: stage3.Catalogue, scores: Scores, popularity: np.ndarray, least: float) -> Scores:
    """The scores divided by the highest power of popularity, 1 at most, with which NDCG@10 is not below `least`; as they are where none is."""
    for power in np.arange(20, 0, -1) / 20:
        divided = partial(lambda users, power: scores(users) / popularity**power, power=power)
        if ndcg(task, divided)[0].mean() >= least:
            return divided
    return scores


def run(name: str, seed: int, data: Path) -> dict:
    """All models on one split: {"model": {"ndcg": [users + 1], NaN where not asked, "coverage", "tail"}}, with seconds and settings."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        def script(stage: str, flags: str) -> None:
            subprocess.run([sys.executable, ROOT / stage, *flags.split(), "--seed", str(seed)], cwd=folder, check=True, stdout=subprocess.DEVNULL)

        script("amazon_preprocessing.py", f"{SETS[name].format(data=data)} {SPLIT}")
        begin = time.perf_counter()
        script("wide_deep_model.py", "--objective ranking --refit --ablations --epochs 1")  # one epoch: only the lists are looked at
        seconds, path = time.perf_counter() - begin, Path(folder) / "best_wide_deep_model.pt"
        ds = load_dataset(Path(folder) / "processed_data")
        paths = (path, *(path.with_suffix(f".{part}.pt") for part in ("wide", "deep")))
        scorers = {model: load_model(path, "cpu").score_catalogue for model, path in zip(OURS, paths)}
    (histories, asked), (final, task) = prepare(ds, ["train"], "validation"), prepare(ds, ["train", "validation"], "test")
    settings = {}
    for model in (*BASELINES, DISCOUNTED):
        if model == "recent popularity" and ds.reviews["timestamp"].isna().any():
            continue
        trial = IALS_TRIAL if model == "iALS" else ()
        tried = [*itertools.product(histories, GRIDS[model])]
        quality = [ndcg(asked, MAKERS[model](*histories[grade], *setting, *trial))[0].mean() for grade, setting in tried]
        settings[model] = grade, setting = tried[int(np.argmax(quality))]
        scorers[model] = MAKERS[model](*final[grade], *setting)
    likes, found = final[LIKES][0], {}
    count = np.bincount(likes.indices, minlength=likes.shape[1])[1:]
    tail = np.append(False, np.argsort(np.argsort(-count, kind="stable")) >= (1 - TAIL) * len(count))
    scorers[WIDER] = as_good_as(task, scorers[OURS[0]], np.append(1, count.clip(1)), ndcg(task, scorers["EASE"])[0].mean())
    for model, scores in scorers.items():
        of_users, (per_user, lists) = np.full(likes.shape[0], np.nan), ndcg(task, scores)
        of_users[task.users] = per_user
        found[model] = {"ndcg": of_users, "coverage": stage3.coverage_at_k(lists, len(count)), "tail": float(tail[lists].mean())}
    told = ", ".join(f"{model} {np.nanmean(of['ndcg']):.4f}" for model, of in found.items())
    print(f"{name}, seed {seed}: {told}; {settings}; ours trained in {seconds:.0f} s", file=sys.stderr, flush=True)
    return found


# ------------------------------------------------------------------------------------------------------------ the tables
def difference(runs: list[dict], other: str) -> str:
    """Ours minus the other model in % of it, with 95 % limits over users."""
    both = np.array([[found[model]["ndcg"] for found in runs] for model in (OURS[0], other)])  # [2, seeds, users]
    ours, theirs = np.nanmean(both[:, :, ~np.isnan(both[0]).all(axis=0)], axis=1)
    drawn = np.random.default_rng(0).integers(0, len(ours), (REPLICATES, len(ours)))
    low, high = np.quantile(ours[drawn].mean(axis=1) / theirs[drawn].mean(axis=1) - 1, [0.025, 0.975])
    return f"{ours.mean() / theirs.mean() - 1:+.1%} [{low:+.1%}, {high:+.1%}]"


def lines(name: str, runs: list[dict]) -> tuple[str, str]:
    """The data set's line in both tables."""
    mean = {model: np.mean([np.nanmean(found[model]["ndcg"]) for found in runs]) for model in runs[0]}
    best = max((model for model in mean if model in BASELINES), key=mean.get)
    shown = [f"**{mean[m]:.4f}**" if mean[m] == max(mean.values()) else f"{mean[m]:.4f}" for m in mean]
    shown = dict(zip(mean, shown)) | {m: "-" for m in SHOWN if m not in mean}
    others = [f"{best} {difference(runs, best)}", *(difference(runs, m) for m in ("EASE", "iALS", DISCOUNTED, *OURS[1:]))]
    of = {(m, what): np.mean([found[m][what] for found in runs]) for m in (OURS[0], WIDER, "EASE") for what in ("coverage", "tail")}
    below = of[OURS[0], "coverage"] < of["EASE", "coverage"]
    pairs = [f"{of[OURS[0], what]:.3f}{f' ({of[WIDER, what]:.3f})' if below else ''} / {of['EASE', what]:.3f}" for what in ("coverage", "tail")]
    return (f"| {name} | " + " | ".join(shown[m] for m in SHOWN) + " |", f"| {name} | " + " | ".join([*others, *pairs]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the data sets")
    parser.add_argument("--only", nargs="+", choices=SETS, default=[*SETS], metavar="NAME", help=f"of {', '.join(SETS)}")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="splits of each data set (default: 3)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time, each on one thread (default: 2)")
    args = parser.parse_args()
    with ProcessPoolExecutor(args.jobs) as pool:
        runs = {name: [pool.submit(run, name, seed, args.data.resolve()) for seed in range(1, args.seeds + 1)] for name in args.only}
        tables = list(zip(*(lines(name, [future.result() for future in futures]) for name, futures in runs.items())))
    print(f"NDCG@{K}\n\n| | " + " | ".join(SHOWN) + " |\n" + "|---" * (1 + len(SHOWN)) + "|")
    print("\n".join(tables[0]))
    header = f"| | best baseline | EASE | iALS | {DISCOUNTED} | wide only | deep only | coverage@{K}: ours (at EASE's NDCG) / EASE | tail: likewise |"
    print(f"\nWide & Deep against\n\n{header}\n" + "|---" * 9 + "|")
    print("\n".join(tables[1]))


if __name__ == "__main__":
    main()
