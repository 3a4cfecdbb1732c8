"""Did the model find the demo's planted pairs (a device and its accessory)? Run the README's first line before.

    python benchmarks/planted_pairs.py

For everybody who liked a device in training and has not reviewed its accessory: the score of that accessory, minus the mean
score of accessories dealt out at random among the same people, so that the effects of people and items cancel out. Once with
all accessories shuffled, once within their category, which only taste finer than the category can tell apart; each for the logit
of a like and for the score of lists.
"""

import json
import sys
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from amazon_preprocessing import load_dataset
from wide_deep_model import load_model

SHUFFLES, REPLICATES = 20, 1000


def main() -> None:
    folder, rng = Path("processed_data"), np.random.default_rng(0)
    model, ds = load_model("best_wide_deep_model.pt", device="cpu"), load_dataset(folder)
    item_id = {raw: code for code, raw in enumerate(ds.items["item"])}
    planted = [(item_id.get(a, 0), item_id.get(b, 0)) for a, b in json.loads((folder / "demo_planted.json").read_text())["pairs"]]
    accessory_of = dict((a, b) for a, b in planted if ds.items["train_count"][[a, b]].min() > 0)
    liked = ds.reviews[(ds.reviews["split"] == "train") & (ds.reviews["label"] == 1) & ds.reviews["item_id"].isin(accessory_of)]
    reviewed = set(zip(ds.reviews["user_id"], ds.reviews["item_id"]))
    pairs = np.array([(u, accessory_of[d]) for u, d in zip(liked["user_id"], liked["item_id"]) if (u, accessory_of[d]) not in reviewed])
    users, items = pairs.T

    def logit(dealt: np.ndarray) -> np.ndarray:
        return model.score_rows(model.features.at_moment(users, dealt, model.moment))

    def list_score(dealt: np.ndarray) -> np.ndarray:
        return np.asarray(model.likes[users].multiply(model.pairs.T[dealt]).sum(axis=1)).ravel()

    category = ds.items["category"].to_numpy()[items]
    by_category = np.argsort(category, kind="stable")
    for score, (name, groups) in product((logit, list_score), (("among all accessories", np.zeros(len(items), int)), ("within the category", category))):
        gains = []
        for _ in range(SHUFFLES):
            dealt = np.empty_like(items)
            dealt[by_category if groups is category else np.arange(len(items))] = items[np.lexsort((rng.random(len(items)), groups))]
            gains.append(score(items) - score(dealt))
        _, who = np.unique(users, return_inverse=True)
        sums, counts = np.bincount(who, np.mean(gains, axis=0)), np.bincount(who)
        drawn = [rng.integers(len(counts), size=len(counts)) for _ in range(REPLICATES)]
        low, high = np.quantile([sums[d].sum() / counts[d].sum() for d in drawn], [0.025, 0.975])
        print(f"{score.__name__}, shuffled {name}: own accessory {np.mean(gains):+.4f} [{low:+.4f}, {high:+.4f}] above, {len(users):,} user-accessory pairs")


if __name__ == "__main__":
    main()
