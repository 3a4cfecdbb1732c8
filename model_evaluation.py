"""Stage 3: measure the model against baselines, and draw one page of results.

    python model_evaluation.py

Reads   processed_data/ (stage 1), best_wide_deep_model.pt and, where they exist, its ablations .wide.pt and .deep.pt (stage 2).
Writes  metrics.json and results.png, each replaced in one step.

Four protocols, never mixed; a metric that a protocol or an objective cannot give is absent, never 0:
  ratings: every test row is scored.  catalogue: for a user, rank every kept item outside its training and validation rows;
  relevant = the test items it liked.  held_out: rank only the user's own test rows.  global_list: one list over all test rows.
Baselines are fitted on training rows and choose their knobs on validation rows; no choice of any kind looks at the test rows.
"""

import contextlib
import json
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, ItemItemRecommender
from matplotlib.figure import Figure
from scipy.sparse import csr_matrix
from scipy.special import expit
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from amazon_preprocessing import Dataset, InputError, Parser, load_dataset, rank_within, replace_files, run_script, with_validation
from wide_deep_model import HISTORY, auc, histories, interactions, load_model

BASELINES = ("popularity", "global_mean", "mean_bias", "item_knn", "als", "wide_only", "deep_only")
DAMPING_GRID = [(user, item) for user in (1, 4, 16, 64) for item in (1, 4, 16, 64)]  # mean_bias: rows at the mean added to each user, item
KNN_GRID = [("cosine", 50), ("cosine", 200), ("bm25", 50), ("bm25", 200)]  # similarity, neighbours kept per item
RATING_KNN_GRID = [(n, damping, prior) for n in (20, 60) for damping in (3, 10, 30) for prior in (0.1, 0.5, 2)]  # of the norm, of the weighted mean
ALS_GRID = [(3, 10), (10, 30), (10, 100), (40, 100)]  # confidence of a like, L2 regularisation
HISTORIES = {"likes": np.inf, "graded": 1.0, "rated": 0.0}  # what item_knn and als are fitted on, chosen likewise: the grade of a rating below a like
ALS_FACTORS, ALS_TRIAL_STEPS, ALS_STEPS = 64, 4, 12  # trial steps while choosing; the chosen point gets all steps
CHOICE_USERS = 500  # validation users on whom item_knn and als choose by catalogue NDCG@10
BLOCK_USERS = 100  # users whose scores of the whole catalogue are held at once
BOOTSTRAP_THRESHOLDS = 10_000  # beyond as many distinct scores, neighbours are one for the intervals: moves an AUC by far less than 1e-5
DIVERSITY_WORK, DIVERSITY_K = 2e8, 100  # products of co-rating counts that it may cost (Electronics needs 2e7); of longer lists it is absent
DENSE_ITEMS = 8_000  # similarities of as many items are looked up in a dense table, twenty times faster and at most 256 MB
HEAD_SHARE, LATENCY_CALLS, CALIBRATION_BINS = 0.8, 100, 15  # head items: the fewest that together hold this share of the training rows


def parse_args(argv: list[str] | None = None) -> Namespace:
    add = (parser := Parser(__doc__)).add_argument
    add("--data-dir", type=Path, default=Path("processed_data"), metavar="DIR", help="written by amazon_preprocessing.py")
    add("--checkpoint", type=Path, default=Path("best_wide_deep_model.pt"), metavar="FILE", help="written by wide_deep_model.py")
    add("--metrics", type=Path, default=Path("metrics.json"), metavar="FILE", help="every figure")
    add("--plot", type=Path, default=Path("results.png"), metavar="FILE", help="one page of results")
    add("--k", type=int, nargs="+", default=[5, 10, 20], help="list lengths")
    add("--baselines", nargs="*", choices=BASELINES, default=BASELINES, metavar="NAME", help="models measured beside it")
    add("--ranking-users", type=int, default=2000, metavar="N", help="users ranked over the whole catalogue, 0 = all")
    add("--relevant", choices=("liked", "rated"), default="liked", help="test items that count as relevant in the catalogue protocol")
    add("--keep-seen", action="store_true", help="let catalogue lists hold items of the user's training and validation rows")
    add("--bootstrap", type=int, default=1000, metavar="N", help="replicates behind the 95 %% intervals, 0 = none")
    add("--compare", type=Path, metavar="METRICS_JSON", help="figures of the same data with the other --features, drawn beside these")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where the model scores")
    add("--seed", type=int, default=42, help="draws the ranked users, the bootstrap and the start of als")
    args = parser.parse_args(argv)
    args.k = sorted(set(args.k))
    if args.k[0] < 1 or min(args.ranking_users, args.bootstrap, args.seed) < 0:
        parser.error("--k takes whole numbers from 1 on; --ranking-users, --bootstrap and --seed from 0 on")
    files = {"--metrics": args.metrics, "--plot": args.plot, "--checkpoint": args.checkpoint}
    for flag, path in files.items():
        if not path.absolute().parent.is_dir() or path.is_dir() or len({file.resolve() for file in files.values()}) < len(files):
            raise InputError(f"{flag} {path}: not a file of its own in an existing folder; create the folder or name another file")
    return args


# ---------------------------------------------------------------------------------------------- metrics of scored rows
def places(score: np.ndarray) -> np.ndarray:
    """Place of each score: 0 is the highest, equal scores share a place, NaN is last, below -inf."""
    return np.unique(-score, return_inverse=True)[1]


def curve(label: np.ndarray, score: np.ndarray, weight: np.ndarray | float = 1.0) -> np.ndarray:
    """[2, thresholds] weight of the likes, weight of the dislikes, scored at or above each distinct score, from the highest down."""
    place = places(score)
    return np.cumsum([np.bincount(place, weights=weight * (label == wanted)) for wanted in (1, 0)], axis=1)


def areas(above: np.ndarray) -> np.ndarray:
    """[2, ...] area under ROC and average precision of curves [2, thresholds, ...]; NaN where a class is missing.
    AUC = P(a like scores above a dislike), ties half (Mann-Whitney U); average precision = sum of recall gained x precision."""
    likes, dislikes = above = np.where((above[:, -1] > 0).all(axis=0), above, np.nan)
    new_likes, new_dislikes = np.diff(above, axis=1, prepend=0)
    precision = likes / np.maximum(likes + dislikes, np.finfo(float).tiny)
    won = (new_dislikes * (likes - new_likes / 2)).sum(axis=0)
    return np.stack([won / (likes[-1] * dislikes[-1]), (new_likes * precision).sum(axis=0) / likes[-1]])


def user_auc(user: np.ndarray, label: np.ndarray, score: np.ndarray, n_users: int) -> tuple[np.ndarray, np.ndarray]:
    """([users] AUC among the user's own rows, NaN if it has one class only; [users] rows). user: [rows] in 0..n_users-1."""
    rank = pd.Series(score).groupby(user).rank(na_option="top").to_numpy()  # equal scores share their mean rank, NaN is below -inf
    likes, dislikes = (np.bincount(user, weights=label == wanted, minlength=n_users) for wanted in (1, 0))
    won, pairs = np.bincount(user, weights=rank * (label == 1), minlength=n_users) - likes * (likes + 1) / 2, likes * dislikes  # Mann-Whitney U
    return np.where(pairs > 0, won / np.maximum(pairs, 1), np.nan), likes + dislikes


def gauc(user: np.ndarray, label: np.ndarray, score: np.ndarray, n_users: int) -> float:
    """Mean of the users' AUCs weighted by their rows (Zhu et al. 2017, arXiv 1703.02091); one-class users are left out."""
    value, rows = user_auc(user, label, score, n_users)
    weight = np.where(np.isnan(value), 0, rows)
    return float(np.dot(np.nan_to_num(value), weight) / weight.sum()) if weight.any() else np.nan


def log_losses(label: np.ndarray, logit: np.ndarray) -> np.ndarray:
    """[rows] -log P(label) where P(like) = sigmoid(logit), exact for large logits."""
    return np.logaddexp(0, np.where(label == 1, -1.0, 1.0) * logit)


def reliability(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """[3, bins] rows, mean probability, share of likes in equally wide bins of the probability; 0 where a bin is empty."""
    which = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    rows, *sums = (np.bincount(which, weights=v, minlength=CALIBRATION_BINS) for v in (np.ones(len(label)), probability, label))
    return np.stack([rows, *(total / np.maximum(rows, 1) for total in sums)])


def ece(label: np.ndarray, probability: np.ndarray) -> float:
    """Expected calibration error over 15 equally wide bins (Guo et al. 2017, arXiv 1706.04599)."""
    rows, predicted, observed = reliability(label, probability)
    return float(np.dot(rows, np.abs(predicted - observed)) / rows.sum())


# ---------------------------------------------------------------------------------------------------- metrics of lists
def top_k_lists(scores: np.ndarray, relevant: np.ndarray, k: int, exclude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The k best columns of each row, ties broken against the model, and which of them are relevant.
    scores [users, items]; relevant, exclude: bool of that shape. Among equal scores irrelevant items come first, then lower codes;
    NaN comes last, below -inf. Returns lists [users, k] of columns, -1 where candidates run out, and hits [users, k] bool."""
    key = np.negative(scores, dtype=np.result_type(scores, np.float32))
    np.copyto(key, np.nan, where=exclude)  # partition puts NaN last
    last = min(k, scores.shape[1]) - 1
    threshold = np.partition(key, last, axis=1)[:, last, None]
    better, tied = key < threshold, key == threshold
    short = np.isnan(threshold[:, 0])  # fewer than k candidates with a score: those without one follow
    better[short], tied[short] = ~np.isnan(key[short]), np.isnan(scores[short]) & ~exclude[short]
    many = np.flatnonzero(np.count_nonzero(tied, axis=1) > k)  # of many equal scores, the first k irrelevant ones suffice
    irrelevant = tied[many] & ~relevant[many]
    tied[many] &= ~irrelevant | (np.cumsum(irrelevant, axis=1, dtype=np.int32) <= k)
    row, column = np.nonzero(better | tied)
    hit = relevant[row, column]
    rank = rank_within(row, (column, hit, key[row, column]))
    lists, hits = np.full((len(scores), k), -1), np.zeros((len(scores), k), bool)
    keep = rank < k
    lists[row[keep], rank[keep]], hits[row[keep], rank[keep]] = column[keep], hit[keep]
    return lists, hits


def own_row_lists(user: np.ndarray, item: np.ndarray, label: np.ndarray, score: np.ndarray, k: int, n_users: int) -> np.ndarray:
    """[users, k] row numbers of each user's k best rows, -1 where it has fewer; ties and NaN as in top_k_lists."""
    rank = rank_within(user, (item, label, places(score)))
    rows, lists = np.flatnonzero(rank < k), np.full((n_users, k), -1)
    lists[user[rows], rank[rows]] = rows
    return lists


def list_metrics(hits: np.ndarray, n_relevant: np.ndarray) -> dict[str, np.ndarray]:
    """hits [users, K] bool, n_relevant [users] -> {metric: [users]}, 0 for users without relevant items (to be left out of averages).
    precision: hits / K, also where a list is shorter; recall: hits / relevant; hit_rate: any hit; ndcg: sum of 1 / log2(rank + 1)
    over hits, divided by that of min(K, relevant) hits on top (Jarvelin and Kekalainen 2002); map: sum of the precision at each
    hit's rank / min(K, relevant); mrr: 1 / rank of the first hit."""
    rank = np.arange(1, hits.shape[1] + 1)
    discount, possible = 1 / np.log2(rank + 1), np.clip(n_relevant, 1, len(rank))
    return {"precision": hits.mean(axis=1), "recall": hits.sum(axis=1) / np.maximum(n_relevant, 1), "hit_rate": hits.max(axis=1) * 1.0,
            "ndcg": hits @ discount / np.cumsum(discount)[possible - 1],
            "map": (np.cumsum(hits, axis=1) / rank * hits).sum(axis=1) / possible, "mrr": (hits / rank).max(axis=1)}


def coverage_at_k(lists: np.ndarray, n_items: int) -> float:
    """Distinct items in the lists / items that could be there."""
    return len(np.unique(lists[lists >= 0])) / n_items


def gini_at_k(lists: np.ndarray, n_items: int) -> float:
    """Gini coefficient of how often each kept item is listed: 0 = all alike, towards 1 = a few items get every place."""
    exposure = np.sort(np.bincount(lists[lists >= 0], minlength=n_items + 1)[1:])
    return float(np.dot(2 * np.arange(1, n_items + 1) - n_items - 1, exposure) / (n_items * max(exposure.sum(), 1)))


def novelty_at_k(lists: np.ndarray, information: np.ndarray) -> np.ndarray:
    """[users] mean self-information in bits of the listed items: -log2(share of training users who rated the item)."""
    return np.where(lists >= 0, information[lists], 0).sum(axis=1) / np.maximum((lists >= 0).sum(axis=1), 1)


def diversity_at_k(lists: np.ndarray, raters: csr_matrix) -> np.ndarray:
    """[lists, K] intra-list diversity of the first 1, 2, ... K items: 1 - mean cosine of the sets of raters of each pair.
    Defined alike for every model and data set, with or without categories. Items never rated have cosine 0; a list of one item
    has no pair and gives NaN. raters: [users, items + 1], 1.0 where the user has a training row."""
    distinct, inside = np.unique(lists, return_inverse=True)
    column = raters[:, np.maximum(distinct, 0)]  # the unknown item, which nobody rated, where lists are padded
    column.data = column.data / np.sqrt(np.bincount(column.indices, minlength=len(distinct)))[column.indices]
    cosine, inside = csr_matrix(column.T @ column).sorted_indices(), inside.reshape(lists.shape)
    cosine = cosine.toarray() if len(distinct) <= DENSE_ITEMS else cosine
    new = np.zeros(lists.shape)  # sum of an item's cosines with the items before it
    new[:, DIVERSITY_K:] = np.nan  # it takes a step for every pair of places
    for earlier, later in combinations(range(min(lists.shape[1], DIVERSITY_K)), 2):
        new[:, later] += np.asarray(cosine[inside[:, earlier], inside[:, later]]).ravel()
    listed = np.cumsum(lists >= 0, axis=1)
    pairs = listed * (listed - 1) / 2
    return np.where(pairs > 0, 1 - np.cumsum(new, axis=1) / np.maximum(pairs, 1), np.nan)


class Catalogue:
    """Rank every kept item not seen, for n_users users (0 = all) of those with a relevant one. relevant, seen: [users + 1, items + 1]."""
    def __init__(self, relevant: csr_matrix, seen: csr_matrix, n_users: int, rng: np.random.Generator) -> None:
        users = np.flatnonzero(np.diff(relevant.indptr))
        self.users = np.sort(rng.choice(users, n_users, replace=False)) if 0 < n_users < len(users) else users  # codes
        self.n_relevant, self.relevant, self.seen = np.diff(relevant.indptr)[self.users], relevant, seen

    def rank(self, score_catalogue: Callable[[np.ndarray], np.ndarray], k: int, title: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(lists, hits) [ranked users, k], a block of users at a time."""
        lists, hits = np.full((len(self.users), k), -1), np.zeros((len(self.users), k), bool)
        for begin in tqdm(range(0, len(self.users), BLOCK_USERS), desc=title, disable=None if title else True, leave=False):
            block, users = slice(begin, begin + BLOCK_USERS), self.users[begin : begin + BLOCK_USERS]
            exclude = self.seen[users].toarray() > 0
            exclude[:, 0] = True  # the unknown item
            lists[block], hits[block] = top_k_lists(score_catalogue(users), self.relevant[users].toarray() > 0, k, exclude)
        return lists, hits


def user_means(values: dict[str, np.ndarray], weight: np.ndarray, users: np.ndarray | slice = slice(None)) -> Callable[[np.ndarray], dict]:
    """Metrics that are weighted means over users, sum(weight x value) / sum(weight), as they are or under resampling:
    counts [replicates, test users], how often each is taken -> {metric: [replicates]}, NaN where nobody counts.
    values: {metric: [n]}; weight: [n], 0 = left out; users: the positions of these n among the test users."""
    weight = np.asarray(weight, float)
    weighted = np.where(weight[:, None] > 0, np.stack(list(values.values()), axis=1), 0) * weight[:, None]

    def under(counts: np.ndarray) -> dict[str, np.ndarray]:
        total, taken = (counts[:, users] @ part.astype(counts.dtype) for part in (weighted, weight))
        mean = np.where(taken > 0, total.T / np.maximum(taken, 1e-9), np.nan)
        return {name: np.sqrt(m) if name.endswith("rmse") else m for name, m in zip(values, mean)}

    under.users = np.count_nonzero(weight)
    return under


# ----------------------------------------------------------------------------------------------------------- baselines
@dataclass(frozen=True)
class Scorer:
    kind: str  # "logit": sigmoid(score) is P(like); "rating": on the rating scale; "order": only the order says something
    score_rows: Callable[[pd.DataFrame], np.ndarray]
    score_catalogue: Callable[[np.ndarray], np.ndarray] | None  # user codes -> [users, items + 1]; ablations have lists of their own with the ranking objective
    knobs: dict = field(default_factory=dict)


def popularity(likes: csr_matrix) -> Scorer:
    """Number of likes among the training rows."""
    count = np.asarray(likes.sum(axis=0)).ravel()
    return Scorer("order", lambda frame: count[frame["item_id"].to_numpy()], lambda users: np.tile(count, (len(users), 1)))


def mean_bias(rows: pd.DataFrame, shape: tuple[int, int], damping: tuple[float, float]) -> Scorer:
    """rating = mean + user offset + item offset, each offset shrunk by `damping` rows at 0, solved alternately."""
    user, item, rating = (rows[c].to_numpy() for c in ("user_id", "item_id", "rating"))
    mean = float(np.mean(rating, dtype=float))
    of_user, n_user, n_item = np.zeros(shape[0]), np.bincount(user, minlength=shape[0]), np.bincount(item, minlength=shape[1])
    for _ in range(5):
        of_item = np.bincount(item, weights=rating - mean - of_user[user], minlength=shape[1]) / (n_item + damping[1])
        of_user = np.bincount(user, weights=rating - mean - of_item[item], minlength=shape[0]) / (n_user + damping[0])
    return Scorer("rating", lambda frame: mean + of_user[frame["user_id"].to_numpy()] + of_item[frame["item_id"].to_numpy()],
                  lambda users: (mean + of_user[users, None] + of_item).astype(np.float32), {"damping": list(damping)})


def similarities(model: ItemItemRecommender, history: csr_matrix) -> csr_matrix:
    """[items + 1, items + 1] each item's similarities to its neighbours, without itself."""
    model.fit(history, show_progress=False)
    similarity = csr_matrix(model.similarity, dtype=np.float32)
    similarity.data[similarity.indices == np.repeat(np.arange(history.shape[1]), np.diff(similarity.indptr))] = 0
    return similarity


def history_sums(history: csr_matrix, similarity: csr_matrix, knobs: dict) -> Scorer:
    """Sum over the user's history of value x similarity to the item."""
    to_item = csr_matrix(similarity.T)

    def score_rows(frame: pd.DataFrame) -> np.ndarray:
        blocks = (frame[["user_id", "item_id"]].to_numpy()[begin:begin + 20_000].T for begin in range(0, len(frame), 20_000))
        return np.concatenate([np.asarray(history[user].multiply(to_item[item]).sum(axis=1), np.float32).ravel() for user, item in blocks])

    return Scorer("order", score_rows, lambda users: (history[users] @ similarity).toarray(), knobs)


def item_knn(history: csr_matrix, knobs: tuple[str, int], name: str = "") -> Scorer:
    """Sum of an item's similarities to the items of the user's history (Sarwar et al. 2001)."""
    model = {"cosine": CosineRecommender, "bm25": BM25Recommender}[knobs[0]](K=knobs[1] + 1)  # + 1: it finds itself
    return history_sums(history, similarities(model, history), {"similarity": knobs[0], "neighbours": knobs[1], "history": name})


def rating_knn(rows: pd.DataFrame, shape: tuple[int, int], base: Scorer, knobs: tuple[int, float, float]) -> Scorer:
    """`base` plus the mean of the user's deviations from it on the item's neighbours, weighted by cosines of deviations (Koren 2010,
    section 2.2). A cosine's norms and the mean are damped, so that few common users or neighbours count little."""
    neighbours, damping, prior = knobs
    rated, deviation = interactions(rows, shape), interactions(rows, shape, rows["rating"] - base.score_rows(rows))
    norm, scaled = np.sqrt(np.asarray(deviation.power(2).sum(axis=0)).ravel() + damping), deviation.astype(np.float64)
    scaled.data /= norm[scaled.indices]
    similarity = similarities(ItemItemRecommender(K=neighbours + 1), scaled).maximum(0)
    total, weight = (history_sums(history, similarity, {}) for history in (deviation, rated))
    return Scorer("rating", lambda frame: base.score_rows(frame) + total.score_rows(frame) / (weight.score_rows(frame) + prior),
                  lambda users: base.score_catalogue(users) + total.score_catalogue(users) / (weight.score_catalogue(users) + prior),
                  {"neighbours": neighbours, "damping": damping, "prior": prior})


def als(history: csr_matrix, knobs: tuple[float, float], name: str = "", seed: int = 0) -> Scorer:
    """Factors of implicit feedback by alternating least squares (Hu, Koren and Volinsky 2008); without a name a trial of fewer steps."""
    settings = {"factors": ALS_FACTORS, "alpha": knobs[0], "regularization": knobs[1], "iterations": ALS_STEPS if name else ALS_TRIAL_STEPS}
    model = AlternatingLeastSquares(**settings, random_state=seed)
    model.fit(history, show_progress=False)
    user, item = model.user_factors, model.item_factors
    return Scorer("order", lambda frame: np.einsum("rf,rf->r", user[frame["user_id"].to_numpy()], item[frame["item_id"].to_numpy()]),
                  lambda users: user[users] @ item.T, settings | {"history": name})


def fit_baselines(names: list[str], ds: Dataset, model, relevant: str, rng: np.random.Generator) -> dict[str, Scorer]:
    """Fit on training rows and choose on validation rows; if the model was refitted on both, refit the choice on both as well.
    relevant: "rated" counts every rating as a like, as the catalogue protocol does then."""
    shape, split, of_ratings = (len(ds.users), len(ds.items)), ds.reviews["split"].to_numpy(), model.config["objective"] == "rating"
    rows = ds.reviews[["user_id", "item_id", "rating", "label"]]
    train, validation = rows[split == "train"], rows[split == "validation"]
    final = rows[split != "test"] if model.config.get("refit") else train
    new = interactions(validation[(validation["label"].to_numpy() == 1) | (relevant == "rated")], shape)
    task, seed = Catalogue(new, interactions(train, shape), CHOICE_USERS, rng), int(rng.integers(2**31))
    counted, history_of = {"rated": 0.0} if relevant == "rated" or train.label.all() else HISTORIES, partial(histories, shape=shape, index=ds.index, constant=0)

    def quality(scorer: Scorer) -> float:
        if scorer.kind == "order":
            return float(list_metrics(task.rank(scorer.score_catalogue, 10)[1], task.n_relevant)["ndcg"].mean()) if len(task.users) else 0.0
        if of_ratings or validation["label"].nunique() < 2:
            return -float(np.sum((scorer.score_rows(validation) - validation["rating"].to_numpy()) ** 2))
        return auc(validation["label"].to_numpy(), scorer.score_rows(validation))

    def best(grid: list[tuple], make: Callable[[tuple], Scorer]) -> tuple:  # the first of equals
        return grid[int(np.argmax([quality(make(knobs)) for knobs in grid]))]

    def tuned(grid: list[tuple], make: Callable) -> Scorer:
        name, *knobs = best([(name, *knobs) for name in counted for knobs in grid], lambda p: make(history_of(train, counted[p[0]]), p[1:]))
        return make(history_of(final, counted[name]), knobs, name)

    damping = best(DAMPING_GRID, lambda knobs: mean_bias(train, shape, knobs))
    mean, (trial, bias) = float(final["rating"].mean()), (mean_bias(part, shape, damping) for part in (train, final))
    fit = {"popularity": lambda: popularity(history_of(final, counted.get("likes", 0.0))),
           "global_mean": lambda: Scorer("rating", lambda frame: np.full(len(frame), mean), lambda users: np.full((len(users), shape[1]), mean, np.float32)),
           "mean_bias": lambda: bias,
           "item_knn": lambda: (rating_knn(final, shape, bias, best(RATING_KNN_GRID, lambda knobs: rating_knn(train, shape, trial, knobs)))
                                if of_ratings else tuned(KNN_GRID, item_knn)),
           "als": lambda: tuned(ALS_GRID, partial(als, seed=seed))}
    names = [name for name in fit if name in names and (of_ratings or name != "global_mean")]  # which orders nothing
    with threadpool_limits(1, "blas"), warnings.catch_warnings():  # implicit runs threads of its own; those of BLAS would collide with them
        warnings.filterwarnings("ignore", module="implicit")  # it remarks on its own conversions, and on logs without a like
        return {name: fit[name]() for name in tqdm(names, desc="baselines", disable=None, leave=False)}


# ---------------------------------------------------------------------------------------------------- the four protocols
class TestRows:
    def __init__(self, frame: pd.DataFrame, rating_range: list[float]) -> None:
        self.users, self.user = np.unique(frame["user_id"].to_numpy(), return_inverse=True)  # codes; position of each row's user
        self.item, self.label, self.rating = (frame[c].to_numpy() for c in ("item_id", "label", "rating"))
        self.n_users, self.rating_range = len(self.users), rating_range
        self.n_liked = np.bincount(self.user, weights=self.label).astype(int)

    def error(self, score: np.ndarray, part: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Predicted minus true rating, the prediction clipped to the range of the training ratings."""
        return np.clip(np.asarray(score, float), *self.rating_range) - self.rating[part]


@dataclass
class Result:
    """What one model's scores gave. Metrics are named "protocol.metric"."""
    kind: str
    score: np.ndarray  # [test rows]
    lists: np.ndarray | None = None  # [ranked users, K] item codes; None for a model without lists
    hits: np.ndarray | None = None
    means: list[Callable[[np.ndarray], dict]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


def ratings_protocol(result: Result, rows: TestRows) -> None:
    score = np.asarray(result.score, float)
    value, count = user_auc(rows.user, rows.label, score, rows.n_users)
    result.means.append(user_means({"ratings.gauc": value}, np.where(np.isnan(value), 0, count)))
    result.metrics |= dict(zip(("ratings.auc", "ratings.pr_auc"), areas(curve(rows.label, score)).tolist()))
    result.metrics |= {"ratings.gauc_users": int(np.isfinite(value).sum()), "ratings.gauc_users_left_out": int(np.isnan(value).sum())}
    if result.kind == "order" or not np.isfinite(score).all():
        return
    if result.kind == "logit":
        losses = {"logloss": log_losses(rows.label, score)}
        result.metrics["ratings.ece"] = ece(rows.label, expit(score))
    else:
        losses = {"rmse": rows.error(score) ** 2, "mae": np.abs(rows.error(score))}
    result.means.append(user_means({f"ratings.{name}": np.bincount(rows.user, weights=loss) / count for name, loss in losses.items()}, count))


def list_means(protocol: str, hits: np.ndarray, n_relevant: np.ndarray, ks: list[int]) -> dict[str, np.ndarray]:
    return {f"{protocol}.{name}@{k}": value for k in ks for name, value in list_metrics(hits[:, :k], n_relevant).items()}


def list_protocols(result: Result, rows: TestRows, ks: list[int]) -> None:
    """held_out and global_list."""
    lists = own_row_lists(rows.user, rows.item, rows.label, result.score, ks[-1], rows.n_users)
    hits, items = (rows.label[lists] == 1) & (lists >= 0), np.where(lists >= 0, rows.item[lists], -1)
    result.means.append(user_means(list_means("held_out", hits, rows.n_liked, ks), rows.n_liked > 0))
    result.metrics |= {f"held_out.coverage@{k}": coverage_at_k(items[:, :k], len(np.unique(rows.item))) for k in ks}
    best = own_row_lists(np.zeros(len(rows.item), int), rows.item, rows.label, result.score, ks[-1], 1)
    values = list_means("global_list", (rows.label[best] == 1) & (best >= 0), rows.n_liked.sum(keepdims=True), ks)
    if rows.label.any():
        result.metrics |= {name: float(v[0]) for name, v in values.items() if "hit_rate" not in name and "mrr" not in name}


def catalogue_protocol(results: dict, catalogue: Catalogue, rows: TestRows, train: csr_matrix, ks: list[int], rng: np.random.Generator) -> None:
    """All models, {name: Result}, at once: diversity needs one table of similarities. train: [users + 1, items + 1] the training rows."""
    history, results = np.diff(train.indptr), {name: result for name, result in results.items() if result.lists is not None}
    share = np.maximum(np.bincount(train.indices, minlength=train.shape[1]), 1) / np.count_nonzero(history)  # never rated: as if once
    order = rng.permutation(len(history))  # beyond the budget the similarity is that of a random sample of users
    sample = order[np.cumsum(history[order].astype(float) ** 2) <= DIVERSITY_WORK]
    diversity = np.split(diversity_at_k(np.concatenate([r.lists for r in results.values()]), train[np.sort(sample)]), len(results))
    for result, of_lists in zip(results.values(), diversity):
        values = list_means("catalogue", result.hits, catalogue.n_relevant, ks)
        for k in ks:
            lists, diverse, n_items = result.lists[:, :k], of_lists[:, k - 1], train.shape[1] - 1  # diverse: NaN of a list of one item, which has no pairs
            values |= {f"catalogue.novelty@{k}": novelty_at_k(lists, -np.log2(share))}
            result.means.append(user_means({f"catalogue.diversity@{k}": diverse}, np.isfinite(diverse), np.searchsorted(rows.users, catalogue.users)))
            result.metrics |= {f"catalogue.coverage@{k}": coverage_at_k(lists, n_items), f"catalogue.gini@{k}": gini_at_k(lists, n_items)}
        result.means.append(user_means(values, np.ones(len(catalogue.users)), np.searchsorted(rows.users, catalogue.users)))


# ------------------------------------------------------------------------------------------ intervals, slices, latency
def bootstrap(results: dict[str, Result], rows: TestRows, replicates: int, rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """{model: {metric: [replicates]}}: users are drawn with replacement, every model sees the same draws, so differences are paired.
    Likes and dislikes lie as [thresholds, users], by falling score, so that the curves of a block are one product with its user counts."""
    block, n, drawn, classes = int(np.clip(1e7 / rows.n_users, 1, 100)), rows.n_users, {name: {} for name in results}, {}
    for name, place in ((name, places(result.score)) for name, result in results.items()):
        above = np.cumsum(np.bincount(place))
        group = place if len(above) <= BOOTSTRAP_THRESHOLDS else (above[place] - 1) * BOOTSTRAP_THRESHOLDS // len(place)
        classes[name] = [csr_matrix(((rows.label == wanted).astype(np.float32), (group, rows.user))) for wanted in (1, 0)]
    for begin in tqdm(range(0, replicates, block), desc="bootstrap", disable=None, leave=False):
        counts = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(min(block, replicates - begin))]).astype(np.float32)
        by_user = np.ascontiguousarray(counts.T)
        for name, result in results.items():
            above = np.cumsum([part @ by_user for part in classes[name]], axis=1, dtype=float)
            values = dict(zip(("ratings.auc", "ratings.pr_auc"), areas(above)))
            for means in (means for means in result.means if means.users > 1):  # one alone tells nothing of an interval
                values |= means(counts)
            for metric, value in values.items():
                drawn[name].setdefault(metric, []).append(value)
    return {name: {metric: np.concatenate(parts) for metric, parts in metrics.items()} for name, metrics in drawn.items()}


def interval(replicates: np.ndarray) -> list[float]:
    """95 % percentile interval; replicates in which the metric does not exist are left out, [] if it exists in none."""
    known = replicates[np.isfinite(replicates)]
    return np.quantile(known, [0.025, 0.975]).tolist() if len(known) else []


def differences(ours: Result, theirs: Result, ours_drawn: dict, theirs_drawn: dict) -> dict[str, dict]:
    """{metric: wide_deep minus a baseline, the paired interval, percent of the baseline's value}."""
    out = {m: {"difference": ours.metrics[m] - theirs.metrics[m]} for m in ours.metrics if m in theirs.metrics}
    for m, entry in out.items():
        if m in ours_drawn and m in theirs_drawn and (limits := interval(ours_drawn[m] - theirs_drawn[m])):
            entry["interval"] = limits
        if theirs.metrics[m]:
            entry["percent"] = 100 * entry["difference"] / abs(theirs.metrics[m])
    return out


def slice_metrics(result: Result, rows: TestRows, user_count: np.ndarray, item_count: np.ndarray) -> dict[str, dict]:
    """Ratings metrics of wide_deep on parts of the test rows. Head, tail and cold items divide the rows among themselves."""
    order = np.argsort(-item_count, kind="stable")
    in_head = np.isin(rows.item, order[:np.searchsorted(np.cumsum(item_count[order]), HEAD_SHARE * item_count.sum()) + 1])
    known_user, known_item, out = user_count[rows.users[rows.user]] > 0, item_count[rows.item] > 0, {}
    items = {"cold_item": ~known_item, "head_items": in_head & known_item, "tail_items": ~in_head & known_item}
    for name, part in ({"cold_user": ~known_user, "warm_user": known_user} | items).items():
        user, label, score = rows.user[part], rows.label[part], result.score[part]
        out[name] = {"rows": len(label), "users": len(np.unique(user)), "items": len(np.unique(rows.item[part]))}
        if len(label):
            values = {"positive_rate": float(label.mean()), "auc": auc(label, score), "gauc": gauc(user, label, score, rows.n_users)}
            values |= {"logloss": float(log_losses(label, score).mean())} if "ratings.logloss" in result.metrics else {}
            values |= {"rmse": float(np.sqrt(np.mean(rows.error(score, part) ** 2)))} if "ratings.rmse" in result.metrics else {}
            out[name] |= {metric: value for metric, value in values.items() if np.isfinite(value)}
    return out


def errors_by_rating(result: Result, rows: TestRows) -> dict[str, dict]:
    """{true rating: rows, rmse, mean error of wide_deep}; models of ratings shrink towards the mean, which shows at both ends."""
    error = rows.error(result.score)
    table = pd.DataFrame({"rows": 1, "rmse": error**2, "bias": error}).groupby(rows.rating).agg({"rows": "size", "rmse": "mean", "bias": "mean"})
    return table.assign(rmse=np.sqrt(table["rmse"])).rename(index=lambda rating: np.format_float_positional(rating, trim="-")).to_dict("index")


def try_recommend(model, ds: Dataset, rng: np.random.Generator) -> tuple[dict[str, float], float]:
    """Milliseconds of one model.recommend(raw user, 10) for random users with training rows, after warm-up; and how much of the
    scores of what it recommends is memory, the wide part: the rest is generalisation."""
    clock, lists, known = [time.perf_counter()], [], np.flatnonzero(ds.users["train_count"].to_numpy() > 0)
    for user in ds.users["user"].to_numpy()[rng.choice(known, LATENCY_CALLS + 5)]:
        lists.append(model.recommend(user, n=10))
        clock.append(time.perf_counter())
    p50, p95, p99 = np.percentile(1000 * np.diff(clock)[5:], [50, 95, 99]).tolist()
    wide, score = pd.concat(lists)[["wide", "score"]].sum()
    return dict(p50=p50, p95=p95, p99=p99, catalogue_items=len(ds.items) - 1, threads=torch.get_num_threads()), float(wide / score) if score else 1.0


# ----------------------------------------------------------------------------------------------------- report and table
def read_comparison(path: Path, index: dict) -> dict:
    """Features and AUCs of another run on the same test rows, with other features."""
    try:
        other = json.loads(path.read_text(encoding="utf-8"))
        found = {name: float(model["ratings"]["auc"]) for name, model in other["models"].items() if "auc" in model["ratings"]}
        features, data, _ = other["protocol"]["features"], other["dataset"], found["wide_deep"]
        of = data["name"], other["protocol"]["split"], data["test_rows"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--compare {path}: not a metrics.json of this script ({type(error).__name__}: {error})") from None
    if of != (index["name"], index["split"], index["rows"]["test"]) or features == index["features"]:
        raise InputError(f"--compare {path}: {', '.join(map(str, of))} rows, {features} features; it takes these test rows with other --features")
    return {"features": str(features), "auc": found}


def ranked(report: dict, protocol: str, metric: str) -> dict[str, float]:
    """{model: value} of the models that have the metric, the best last."""
    values = {name: model[protocol][metric] for name, model in report["models"].items() if metric in model.get(protocol, {})}
    return dict(sorted(values.items(), key=lambda pair: pair[1], reverse=metric == "rmse"))


def print_table(report: dict) -> None:
    data, p, k, t = report["dataset"], report["protocol"], report["protocol"]["main_k"], report["latency_ms"]
    columns = {"RMSE": "ratings.rmse", "MAE": "ratings.mae"} if p["objective"] == "rating" else {}
    columns |= {"AUC": "ratings.auc", "gAUC": "ratings.gauc", "log loss": "ratings.logloss", f"catalogue NDCG@{k}": f"catalogue.ndcg@{k}",
               f"held-out P@{k}": f"held_out.precision@{k}", f"global P@{k}": f"global_list.precision@{k}"}
    print(f"\n{data['name']}: {data['test_rows']:,} test rows, split {p['split']}, features {p['features']}, objective {p['objective']}; "
          f"catalogue: {data['items']:,} items for {p['ranked_users']:,} users; [95 % intervals]")
    if "warning" in p:
        print(f"\033[31m{p['warning']}\033[0m" if sys.stdout.isatty() else p["warning"])
    models = pd.DataFrame("-", index=list(report["models"]), columns=list(columns))
    for title, metric in columns.items():
        for name, value in ranked(report, *metric.split(".")).items():
            limits = report["intervals"][name].get(metric)
            models.loc[name, title] = f"{value:.4f}" + (" [{:.4f}, {:.4f}]".format(*limits) if limits else "")
    print(f"\n{models.to_string()}\nbase rate of likes in the test rows, what chance gives in a global list: {data['test_positive_rate']:.4f}\n")
    gaps = {f"wide_deep - {name}: {title}": entries[columns[title]] for name, entries in report["differences"].items()
            for title in ("RMSE", "AUC", f"catalogue NDCG@{k}") if columns.get(title) in entries}
    for rows, number in filter(lambda part: part[0], ((gaps, "{:+.4f}"), (report["slices"], "{:.4f}"))):  # no gaps without baselines
        table = pd.DataFrame.from_dict(rows, orient="index")
        print(table.to_string(na_rep="-", float_format=number.format, formatters={"interval": "[{0[0]:+.4f}, {0[1]:+.4f}]".format}) + "\n")
    print(f"recommend: p50 {t['p50']:.1f}, p95 {t['p95']:.1f}, p99 {t['p99']:.1f} ms over {t['catalogue_items']:,} items on {t['threads']} threads; "
          f"the wide part makes {report['lists_memory']:.0%} of the scores in lists; evaluation {report['seconds']['total']:.1f} s")


# ---------------------------------------------------------------------------------------------------------- results.png
STYLE = {"font.size": 10.5, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
         "axes.titleweight": "bold", "axes.titlesize": 13, "axes.titlepad": 10, "legend.frameon": False, "legend.labelcolor": "linecolor"}
BLUE, ORANGE, GREEN, PINK, GREY, PALE, INK, RED = "#0072B2", "#D98200", "#009E73", "#B5638F", "#8A8A8A", "#D5D5D5", "#222222", "#C00000"
LINES = {"train_loss": GREY, "validation_loss": BLUE, "rmse": BLUE, "bias": ORANGE, "precision": ORANGE, "ndcg": BLUE, "recall": GREEN, "hit_rate": PINK}
LABELS = {"ndcg": "NDCG", "rmse": "RMSE", "bias": "mean error"}
TITLES = {"wide_deep": "Wide & Deep", "wide_only": "wide only", "deep_only": "deep only", "item_knn": "item-kNN", "als": "ALS",
          "mean_bias": "user + item mean", "global_mean": "global mean", "popularity": "popularity"}


def draw_dots(ax, runs: list[dict[str, float]], limits: dict[str, list[float]], **labels) -> None:
    """{row: value} of one run, from the bottom up, or of two runs, in blue and red; baselines alone in grey. limits: {row: interval}."""
    for values, run_colour, above in zip(runs, (BLUE, RED), (7, -18)):
        for y, (name, value) in enumerate(values.items()):
            colour = GREY if name in BASELINES and len(runs) == 1 else run_colour
            ax.plot(value, y, "o", color=colour, ms=8)
            ax.plot(limits.get(name, [value, value]), [y, y], color=colour, lw=3)
            if np.isfinite(value):  # a slice may lack the metric
                ax.annotate(f"{value:.3f}", (value, y), (0, above), textcoords="offset points", ha="center", color=colour)
    ax.set_yticks(range(len(runs[0])), [TITLES.get(name, name) for name in runs[0]])
    ax.set(xmargin=0.14, ylim=(-0.7, len(runs[0])), **labels)


def draw_comparison(ax, report: dict, other: dict) -> None:
    """AUC of this run and the other one, honest features first."""
    runs = [(report["protocol"]["features"], ranked(report, "ratings", "auc")), (other["features"], other["auc"])]
    runs.sort(key=lambda run: run[0] != "honest")
    names = [name for name in runs[0][1] if name in runs[1][1]]
    draw_dots(ax, [{name: values[name] for name in names} for _, values in runs], {}, title="Leakage: honest, as published", xlabel="AUC on the test rows")
    for x, (features, _), colour in zip((0.0, 0.4), runs, (BLUE, RED)):
        ax.text(x, 0.98, f"● {features}", color=colour, va="top", transform=ax.transAxes)


def draw_roc(ax, report: dict, results: dict[str, Result], rows: TestRows) -> None:
    """wide_deep and the best other model in colour."""
    values = ranked(report, "ratings", "auc")
    best = [name for name in values if name != "wide_deep"][-1:]
    for name, value in values.items():
        y, x = (np.append(0, above / above[-1]) for above in curve(rows.label, results[name].score))
        thin = np.unique(np.linspace(0, len(x) - 1, 1000).astype(int))
        colour, width = (BLUE, 2.6) if name == "wide_deep" else (ORANGE, 1.8) if name in best else (PALE, 1.2)
        ax.plot(x[thin], y[thin], color=colour, lw=width, zorder=width, label=None if colour == PALE else f"{TITLES[name]} {value:.3f}")
    ax.plot([0, 1], [0, 1], ":", color=INK, lw=1, label="chance (grey: others)")
    ax.legend(loc="lower right", handlelength=1)
    ax.set(title="ROC on the test rows", xlabel="dislikes above threshold", ylabel="likes above threshold", xlim=(0, 1), ylim=(0, 1.01))


def draw_calibration(ax, result: Result, rows: TestRows) -> None:
    if result.kind == "logit":
        low, span, predicted, true = 0, 1, expit(np.asarray(result.score, float)), rows.label
        ax.set(title=f"Calibration, ECE {result.metrics['ratings.ece']:.3f}", xlabel="predicted P(like); grey: number of rows", ylabel="share liked")
    else:
        low, span, predicted, true = rows.rating_range[0], np.ptp(rows.rating_range) or 1, *np.clip([result.score, rows.rating], *rows.rating_range)
        ax.set(title="Calibration", xlabel="predicted rating; grey: number of rows", ylabel="mean rating")
    count, *lines = reliability((true - low) / span, (predicted - low) / span)
    mean, observed = (low + span * line for line in lines)
    full, width = count >= max(5, 0.002 * count.sum()), span / len(count)
    ax.bar(low + width * np.arange(len(count)), span * 0.25 * count / count.max(), 0.92 * width, bottom=low, align="edge", color=PALE)
    ax.plot(mean[full], observed[full], "o-", color=BLUE, lw=2.2, clip_on=False)
    ax.plot([low, low + span], [low, low + span], ":", color=INK, lw=1)
    ax.set(xlim=(low, low + span), ylim=(low, low + span))


def draw_lines(ax, table: pd.DataFrame, style: str = "o-", **labels) -> None:
    """The columns over the index, with a legend of the solid lines in the order of their ends."""
    for name in table.iloc[-1].sort_values(ascending=False).index:
        ax.plot(table[name], style, color=LINES[name], lw=2, ms=4, label=LABELS.get(name, name.replace("_", " ")) if style == "o-" else None)
    ax.set(ymargin=0.2, **labels)
    ax.legend(ncols=2, handlelength=1)


def draw_over_k(ax, report: dict) -> None:
    """wide_deep and, dotted, the best other model at the main K."""
    ks, values = report["protocol"]["k"], ranked(report, "catalogue", f"ndcg@{report['protocol']['main_k']}")
    best = [name for name in values if name != "wide_deep"][-1:]
    for name, style in zip(["wide_deep", *best] if values else [], ("o-", "o:")):
        of_model = report["models"][name]["catalogue"]
        draw_lines(ax, pd.DataFrame({m: [of_model[f"{m}@{k}"] for k in ks] for m in ("precision", "ndcg", "recall", "hit_rate")}, index=ks), style)
    dotted = "".join(f"; dotted: {TITLES[name]}" for name in best)
    ax.set(title="Catalogue metrics over K", xlabel=f"list length K{dotted}", ylabel="mean over users", xticks=ks)


def draw_learning(ax, history: list[dict]) -> None:
    table = pd.DataFrame(history).set_index("epoch")
    draw_lines(ax, table.filter(["train_loss", "validation_loss"]), title="Learning curves", xlabel="epoch", ylabel="loss")
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    for metric, best in (("validation_rmse", "min"), ("validation_auc", "max")):
        if metric in table:
            ax.axvline(table[metric].agg(f"idx{best}"), color=INK, lw=1, ls=":")
            ax.set_xlabel(f"epoch; dotted: best validation {metric[11:].upper()}, {table[metric].agg(best):.3f}")


def draw_tail(ax, results: dict[str, Result], item_count: np.ndarray, k: int) -> None:
    """Share of the places in the lists by popularity of the item, and how much of the catalogue is listed at all."""
    n, group = len(item_count) - 1, np.zeros(len(item_count), int)
    group[1 + np.argsort(-item_count[1:], kind="stable")] = np.searchsorted([0.01, 0.1, 0.5], (np.arange(n) + 0.5) / n)
    listed = {name: results[name].lists[:, :k] for name in reversed(results) if results[name].lists is not None}
    counts = {"every item alike": np.bincount(group[1:], minlength=4), "training rows": np.bincount(group, weights=item_count, minlength=4)}
    counts |= {name: np.bincount(group[lists[lists >= 0]], minlength=4) for name, lists in listed.items()}
    share = pd.DataFrame({name: part / max(part.sum(), 1) for name, part in counts.items()}, index=["top 1 %", "1-10 %", "10-50 %", "rest"])
    for part, left, colour in zip(share.index, (share.cumsum() - share).to_numpy(), ("#08306B", "#3B7EBB", "#9CC7E3", "#F0C77A")):
        ax.barh(range(len(counts)), share.loc[part], left=left, color=colour, height=0.72, label=part)
    ax.set_yticks(range(len(counts)), [TITLES.get(name, name) for name in counts])
    for y, text in enumerate([*(f"{coverage_at_k(lists, n):.1%}" for lists in listed.values()), "coverage"], start=2):
        ax.text(1.02, y, text, va="center", fontsize=9)
    ax.legend(loc="upper left", ncols=4, labelcolor=INK, fontsize=8, handlelength=0.8, handletextpad=0.3, columnspacing=0.6, borderpad=0)
    ax.set(title="Popularity of what is listed", xlabel=f"share of the places in the top-{k} lists", xlim=(0, 1), ylim=(-0.6, len(counts) + 0.2))


def draw(report: dict, results: dict, rows: TestRows, history: list[dict], item_count: np.ndarray, other: dict | None) -> Figure:
    data, p, k, metric = report["dataset"], report["protocol"], report["protocol"]["main_k"], "rmse" if "errors" in report else "auc"
    figure = Figure(figsize=(17.5, 10.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.16, h_pad=0.16, rect=(0, 0, 1, 0.885 if "warning" in p else 0.915))
    axes = figure.subplots(2, 4).ravel()
    tasks = {"ratings.rmse": "Predicting ratings", "ratings.auc": "Telling likes from dislikes", f"catalogue.ndcg@{k}": "Choosing from the catalogue"}
    for ax, full, more in ((axes[0], f"ratings.{metric}", ""), (axes[1], f"catalogue.ndcg@{k}", f"; scores: {report['lists_memory']:.0%} wide")):
        limits = {model: of_model[full] for model, of_model in report["intervals"].items() if full in of_model}
        draw_dots(ax, [ranked(report, *full.split("."))], limits, title=tasks[full], xlabel=f"{full.split('.')[1].upper()} with 95 % interval{more}")
    if metric == "rmse":
        errors = pd.DataFrame(report["errors"]).T[["rmse", "bias"]].rename(index=float)
        draw_lines(axes[2], errors, title="Error by true rating", xlabel="true rating", ylabel="predicted - true")
        axes[2].axhline(0, color=INK, lw=1, ls=":")
    else:
        draw_roc(axes[2], report, results, rows)
    draw_calibration(axes[3], results["wide_deep"], rows)
    if other:
        draw_comparison(axes[4], report, other)
    else:
        slices = {f"{name.replace('_', ' ')}\n{part['rows']:,} rows": part.get(metric, np.nan) for name, part in reversed(report["slices"].items())}
        draw_dots(axes[4], [slices], {}, title="Wide & Deep by slice", xlabel="AUC (none where one class is missing)" if metric == "auc" else "RMSE")
    draw_tail(axes[5], results, item_count, k)
    draw_learning(axes[6], history)
    draw_over_k(axes[7], report)
    for label in (label for ax in axes for label in ax.get_yticklabels() if label.get_text() == TITLES["wide_deep"]):
        label.set(color=BLUE, weight="bold")
    text = (f"split {p['split']} · features {p['features']} · objective {p['objective']} · catalogue: every kept item ranked for "
            f"{p['ranked_users']:,} users, relevant = {p['relevant']} test items · {data['test_positive_rate']:.0%} of the test rows liked")
    title = f"{data['name']}: {data['users']:,} users, {data['items']:,} items, {data['test_rows']:,} test rows"
    figure.text(0.01, 0.968, title, fontsize=20, weight="bold", va="center")
    figure.text(0.01, 0.932, text, fontsize=12.5, va="center")
    figure.text(0.01, 0.9, p.get("warning", ""), color=RED, fontsize=15, weight="bold", va="center")
    return figure


# ----------------------------------------------------------------------------------------------------------------- main
@contextlib.contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[part] = round(time.perf_counter() - begin, 3)


def load_models(args: Namespace, ds: Dataset) -> dict[str, object]:
    """wide_deep, and those ablations that are asked for and lie beside it, all trained on this data set."""
    paths, models = {"wide_deep": args.checkpoint} | {f"{part}_only": args.checkpoint.with_suffix(f".{part}.pt") for part in ("wide", "deep")}, {}
    for name in (name for name in paths if name == "wide_deep" or (name in args.baselines and paths[name].exists())):
        models[name] = load_model(paths[name], device=args.device)
        other = [n for n, v in models["wide_deep"].config.items() if n not in ("component", "epochs", "patience") and models[name].config.get(n) != v]
        if (stale := models[name].fingerprint != ds.index["fingerprint"]) or other:
            why = f"on other data than {args.data_dir}" if stale else f"with another {other[0]} than {args.checkpoint}"
            again = f"python wide_deep_model.py --data-dir {args.data_dir} --checkpoint {args.checkpoint}{' --ablations' * (name != 'wide_deep')}"
            raise InputError(f"{paths[name]} was trained {why}; run: {again}")
    return models


def evaluate(args: Namespace, ds: Dataset, scorers: dict, rng: np.random.Generator, seconds: dict) -> tuple[dict, TestRows, int]:
    """{model: Result} with all point estimates; the test rows; how many users were ranked."""
    shape, split, results = (len(ds.users), len(ds.items)), ds.reviews["split"].to_numpy(), {}
    pairs, test = ds.reviews[["user_id", "item_id", "rating"]], ds.rows("test")
    rows = TestRows(test, ds.index["rating_range"])
    relevant = interactions(test if args.relevant == "rated" else test[test["label"].to_numpy() == 1], shape)
    seen = interactions(pairs[(split != "test") & (not args.keep_seen)], shape)
    catalogue = Catalogue(relevant, seen, args.ranking_users, rng)
    for name, s in scorers.items():
        with timed(seconds, f"score_rows.{name}"):
            score = s.score_rows(test)
        with timed(seconds, f"catalogue.{name}"):
            results[name] = Result(s.kind, score, *(catalogue.rank(s.score_catalogue, args.k[-1], name) if s.score_catalogue else ()))
    with timed(seconds, "metrics"):
        if len(catalogue.users):
            catalogue_protocol(results, catalogue, rows, interactions(pairs[split == "train"], shape), args.k, rng)
        for result in results.values():
            ratings_protocol(result, rows)
            list_protocols(result, rows, args.k)
            for means in result.means:
                result.metrics |= {name: float(value[0]) for name, value in means(np.ones((1, rows.n_users))).items()}
            result.metrics = {name: value for name, value in result.metrics.items() if np.isfinite(value)}
    return results, rows, len(catalogue.users)


def describe(args: Namespace, index: dict, model, scorers: dict[str, Scorer], rows: TestRows, ranked: int) -> dict:
    """The "dataset" and "protocol" parts of metrics.json."""
    data = {name: index[name] for name in ("name", "users", "items", "positive_rate", "fingerprint")}
    data |= {f"{part}_rows": count for part, count in index["rows"].items()} | {"test_positive_rate": float(rows.label.mean())}
    protocol = {"split": index["split"], "features": index["features"], "objective": model.config["objective"], "ranked_users": ranked}
    protocol |= {name: getattr(args, name) for name in ("k", "ranking_users", "relevant", "keep_seen", "bootstrap", "seed")}
    protocol |= {"main_k": 10 if 10 in args.k else args.k[len(args.k) // 2], "baselines": {name: s.knobs for name, s in scorers.items() if s.knobs}}
    protocol |= {"warning": "Features as published: they contain what is to be predicted"} if index["features"] == "as-published" else {}
    return {"dataset": data, "protocol": protocol}


def main(argv: list[str] | None = None) -> None:
    args, seconds, begin = parse_args(argv), {}, time.perf_counter()
    with timed(seconds, "load"):
        ds = load_dataset(args.data_dir)
        other = read_comparison(args.compare, ds.index) if args.compare else None
        models = load_models(args, ds)
    if not ds.index["rows"]["test"]:
        raise InputError(f"{args.data_dir} has no test rows; run amazon_preprocessing.py with a larger --test-fraction")
    model, draws = models["wide_deep"], np.random.default_rng(args.seed).spawn(4)
    ds, history = with_validation(ds) if model.config.get("refit") else ds, model.history
    with timed(seconds, "baselines"):
        fitted = fit_baselines(args.baselines, ds, model, args.relevant, draws[0])
    kind, own_lists = "rating" if model.config["objective"] == "rating" else "logit", model.config["objective"] == "ranking"
    fitted |= {name: Scorer(kind, m.score_rows, m.score_catalogue if name == "wide_deep" or own_lists else None) for name, m in models.items()}
    scorers = {name: fitted[name] for name in ("wide_deep", *BASELINES) if name in fitted}
    results, rows, ranked = evaluate(args, ds, scorers, draws[1], seconds)
    with timed(seconds, "bootstrap"):
        drawn = bootstrap(results, rows, args.bootstrap, draws[2])
    report = describe(args, ds.index, model, scorers, rows, ranked) | {"models": {name: {} for name in results}}
    for name, full, value in ((name, full, value) for name, result in results.items() for full, value in result.metrics.items()):
        report["models"][name].setdefault(full.split(".")[0], {})[full.split(".")[1]] = value
    report["intervals"] = {name: {m: limits for m, v in metrics.items() if (limits := interval(v))} for name, metrics in drawn.items()}
    ours = results["wide_deep"]
    report["differences"] = {name: differences(ours, results[name], drawn["wide_deep"], drawn[name]) for name in list(results)[1:]}
    user_count, item_count = (table["train_count"].to_numpy() for table in (ds.users, ds.items))
    report["slices"] = slice_metrics(ours, rows, user_count, item_count)
    report |= {"errors": errors_by_rating(ours, rows)} if ours.kind == "rating" else {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # the epochs after the best, which the checkpoint does not know
        told = json.loads(args.checkpoint.with_name(HISTORY).read_text(encoding="utf-8"))["epochs"]
        history = told if told[: len(history)] == history else history
    with timed(seconds, "latency"):
        report["latency_ms"], report["lists_memory"] = try_recommend(model, ds, draws[3])
    with timed(seconds, "plot"), matplotlib.rc_context(STYLE):
        figure = draw(report, results, rows, history, item_count, other)
        replace_files({args.plot: lambda path: figure.savefig(path, format="png", dpi=115)})
    report["seconds"] = seconds | {"total": round(time.perf_counter() - begin, 3)}
    replace_files({args.metrics: lambda path: path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")})
    print_table(report)
    print(f"wrote {args.metrics} and {args.plot}")


if __name__ == "__main__":
    sys.exit(run_script(main))
