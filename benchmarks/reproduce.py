"""Every published system, run under its own protocol by the three scripts: one table of published figures and ours.

    pip install -r benchmarks/requirements.txt
    python benchmarks/reproduce.py --data ../shared/data                   # all rows, under two hours on 2 cores
    python benchmarks/reproduce.py --data ../shared/data --rows 2c 4       # these rows only; 2 stands for 2a to 2d
    python benchmarks/reproduce.py --data ../shared/data --rows 3 --commands   # the lines to type for these rows; nothing runs
    python benchmarks/reproduce.py --data ../shared/data --quick           # one seed or fold, 3 epochs: does it all run?

Run number n is seed n of all three scripts, or fold n where folds are published. Of several settings (variants) a run takes the
one with the best validation metric; baselines are tuned on validation rows too, and train on them as well where the model does
(--refit). Lists leave out the items of training and validation rows, for every model. No choice of ours looks at test rows;
"best tuned baseline" is the best one on the test rows, which favours the baselines. Intervals are 95 %: over runs by the
t-distribution; of one run, or of runs that do not differ, by the bootstrap over users. Ours minus the best baseline is taken
run by run, so that what makes one split harder than another cancels out.
Seconds: all runs of the line with evaluation, without the baselines of scikit-surprise; training is the mean of a run. Each row runs on one
thread, and --jobs rows at a time.
"""

import argparse
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import published
from scipy.stats import t

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from wide_deep_model import quality  # noqa: E402

# ------------------------------------------------------------------------------------- our settings, one list per experiment
MEANS = " ".join(f"{who}_{name}" for who in ("user", "item") for name in ("review_count", "avg_rating", "avg_residual"))
SIMILAR = "user_similar_avg_residual"  # the wide part has it once, the deep part with its number of ratings
WITH_MEANS = f"--wide user_id item_id {MEANS} --deep user_id item_id {MEANS}"
WITH_SIMILAR = f"--wide user_id item_id {MEANS} {SIMILAR} --deep user_id item_id {MEANS} {SIMILAR} user_similar_review_count"
BEST_SMALL = [f"--objective rating --dropout 0.5 --average 0.99 --patience 8 --epochs 60 {more}" for more in (
    f"--wide-lr 0.01 {WITH_MEANS}", f"--wide-lr 0.01 {WITH_SIMILAR}", f"--wide-lr 0.03 --deep-lr 3e-4 {WITH_MEANS}")]  # 2a, 2b
BEST_ML100K = ["--objective rating --dropout 0.5 --epochs 60 --patience 3 --refit"]  # 2c
BEST_ML1M = ["--objective rating --dropout 0.3 --deep-lr 3e-3 --epochs 40"]  # 2d
BEST_CTR = ["--dropout 0.3 --deep-lr 3e-3 --epochs 40"]  # 3
BEST_LIKES = BEST_CTR  # 7
BEST_ANIME = ["--objective rating --dropout 0.3 --batch-size 1024 --average 0.995 --epochs 40 --patience 3 --refit"]  # 5
PAPER = [f"--wide-optimizer ftrl --wide-l1 {l1} --deep-optimizer adagrad --deep-lr 0.01 --hidden 1024 512 256 --ablations" for l1 in (0.1, 1, 10)]  # 6


# ------------------------------------------------------------------------------------------------------- the experiments
@dataclass(frozen=True)
class Experiment:
    row: str  # of the table of published systems
    system: str
    protocol: str
    metrics: dict[str, tuple[str, str]]  # name: (where in metrics.json, published figure)
    preprocessing: str = ""  # flags; {data} {work} {run} are filled in
    variants: tuple[str, ...] | list[str] = ()  # flags of training, one string per setting
    evaluation: str = ""
    runs: int = 3
    surprise: tuple[str, ...] = ()  # baselines of scikit-surprise, see GRIDS
    before: Callable[[Path, Path], None] | None = None  # (data, work): makes files first


def make_folds(data: Path, work: Path) -> None:
    """MovieLens-1M in five random folds: work/1.base, work/1.test, ..."""
    lines = (data / "ml-1m" / "ratings.dat").read_bytes().splitlines(keepends=True)
    fold = np.random.default_rng(0).permutation(len(lines)) % 5 + 1
    for n, part in itertools.product(range(1, 6), ("base", "test")):
        (work / f"{n}.{part}").write_bytes(b"".join(itertools.compress(lines, (fold == n) == (part == "test"))))


def amazon(features: str, figures: tuple[str, ...]) -> Experiment:
    metrics = {name: (f"models.wide_deep.{'.'.join(path)}", str(value or "-")) for name in figures for value, path in [published.FIGURES[name]]}
    source = f"--dataset amazon-reviews --input {{data}}/amazon/2014/reviews_Musical_Instruments_5.json.gz --split random --features {features}"
    return Experiment("1", f"Amazon classification, {features} features", "Musical Instruments 5-core, random 80/10/10; published: rows of the training set",
                      metrics, source, [" ".join(setting) for setting in published.SETTINGS], runs=5)  # fmt: skip


def small_amazon(name: str, metadata: str = "") -> Experiment:
    source = f"--dataset amazon-reviews --input {{data}}/amazon/2018/{name}.json.gz {metadata}"
    return Experiment("1", "Amazon classification, defaults", f"{name}, time split; tiny, no claim", {"AUC": (AUC, "-")}, source, [""], runs=1)


EXACT = "--precision float32"  # the same figures whether the CPU has bfloat16 or not
AUC, RMSE, MAE = (f"models.wide_deep.ratings.{metric}" for metric in ("auc", "rmse", "mae"))
ERRORS = {"RMSE": (RMSE, "1.2450"), "MAE": (MAE, "-")}
LISTS = {"P@5": ("models.wide_deep.catalogue.precision@5", "0.0074"), "R@5": ("models.wide_deep.catalogue.recall@5", "0.0134"),
         "MAP@5": ("models.wide_deep.catalogue.map@5", "0.0063")}  # fmt: skip
SLICES = {f"RMSE, {name.replace('_', ' ')}s": (f"slices.{name}.rmse", "-") for name in ("warm_user", "cold_user", "cold_item")}
REGRESSION = ["--objective rating --wide user_id item_id --deep user_id item_id --embedding-dim 64 --hidden 128 32 --wide-optimizer adam "
              "--wide-lr 2e-3 --deep-lr 2e-3 --batch-size 4096 --epochs 25"]  # fmt: skip
CTR = ["--wide user_id item_id --deep user_id item_id --embedding-dim 16 --hidden 16 16 --batch-norm --dropout 0.5 --deep-lr 1e-3 "
       "--weight-decay 1e-6 --batch-size 512 --epochs 100 --patience 10"]  # fmt: skip
NO_IDS = ["--wide item_genres user_gender user_age_band cross_user_gender_user_age_band --deep item_genres user_gender user_age user_occupation "
          f"--embedding-dim 8 --hidden 64 32 16 --deep-optimizer adagrad --deep-lr {lr} --wide-lr 0.1 --batch-size 4096 --epochs 10 --patience 10"
          for lr in (0.05, 0.1)]  # fmt: skip
ANIME = ["--objective rating --wide item_site_score item_site_members item_genres --deep user_id item_id --embedding-dim 32 --hidden 128 64 "
         "--batch-size 64 --epochs 20"]  # fmt: skip
RATED, FEW = "--relevant rated --k 5 10", "--ranking-users 200 --baselines popularity global_mean mean_bias"
ALL = ("user-kNN", "item-kNN", "SVD", "SVD++")


def experiments() -> list[Experiment]:
    figures = ("AUC", "global list precision@10", "global list NDCG@10", "held-out coverage@10", "held-out precision@10", "catalogue NDCG@10")
    found = [amazon(features, figures) for features in ("honest", "as-published")] + [
        small_amazon("All_Beauty_5"), small_amazon("Gift_Cards_5", "--metadata {data}/amazon/2018/meta_Gift_Cards.json.gz")]  # fmt: skip
    core = "--min-core 20 --core-passes 1 --positive-threshold 1"  # lists are of what is rated, so every rating counts as a like
    dense = f"--dataset csv --input {{data}}/amazon/ratings/Electronics_dense.csv --columns user=user_id,item=prod_id,rating=rating --split random {core}"
    music = f"--dataset csv --input {{data}}/amazon/ratings/Digital_Music_20plus.txt --columns user=0,item=1,rating=2,timestamp=3 --split time {core}"
    for row, protocol, flags, seeds, slices in (  # a split of Electronics dense has 2,000 test rows, so that one says little
        ("2a", "Electronics dense, 20 ratings or more, random 80/10/10; published: another cut, time split", dense, 10, {}),
        ("2b", "Digital Music, 20 ratings or more, time 80/10/10; published: Electronics", music, 3, SLICES),
    ):
        for name, variants, runs in (("ours", BEST_SMALL, seeds), ("published architecture", REGRESSION, 1)):
            found.append(Experiment(row, f"Rating regression, {name}", protocol, ERRORS | slices | LISTS, flags, variants, RATED, runs, surprise=ALL))
    folds = "--dataset movielens --split random --min-core 0"
    found.append(Experiment("2c", "Rating regression, ours", "MovieLens-100K, folds u1 to u5", {"RMSE": (RMSE, "0.922 (SVD++); target 0.919")},
                            folds + " --input {data}/ml-100k/u{run}.base --test-input {data}/ml-100k/u{run}.test", BEST_ML100K,
                            "--ranking-users 200 --baselines global_mean mean_bias item_knn", 5, surprise=ALL))  # fmt: skip
    found.append(Experiment("2d", "Rating regression, ours", "MovieLens-1M, 5 random folds; SVD++ itself is too slow here",
                            {"RMSE": (RMSE, "0.862 (SVD++)")}, folds + " --input {work}/{run}.base --test-input {work}/{run}.test --metadata {data}/ml-1m",
                            BEST_ML1M, f"{FEW} item_knn", 5, surprise=("SVD",), before=make_folds))  # fmt: skip
    ctr = "--dataset movielens --input {data}/ml-1m --split random --min-core 0"
    protocol = "MovieLens-1M, like = rating > 3, random 80/10/10"
    found.append(Experiment("3", "CTR, published architecture", protocol, {"AUC": (AUC, "0.7991")}, ctr, CTR, FEW, 1))
    found.append(Experiment("3", "CTR, ours", protocol, {"AUC": (AUC, "0.7991; target 0.815")}, ctr, BEST_CTR, FEW))
    found.append(Experiment("4", "CTR without ids, published architecture", "MovieLens-1M, like = rating > 3, random 63/7/30", {"AUC": (AUC, "0.640, 821 s")},
                            ctr + " --test-fraction 0.3 --validation-fraction 0.07 --cross user_gender:user_age_band", NO_IDS, FEW))  # fmt: skip
    anime = "--dataset anime --input {data}/anime --split random --test-fraction 0.2 --validation-fraction 0.1 --min-core 0"
    errors = {"RMSE": (RMSE, "1.9889 (claimed 1.70)"), "MAE": (MAE, "-")}
    found.append(Experiment("5", "Anime ratings, published architecture", "MyAnimeList sample, random 70/10/20, site scores as published", errors,
                            anime + " --features as-published", ANIME, FEW, 1))  # fmt: skip
    found.append(Experiment("5", "Anime ratings, ours", "MyAnimeList sample, random 70/10/20", errors, anime, BEST_ANIME, f"{FEW} item_knn", surprise=("SVD",)))
    found.append(Experiment("7", "Likes against dislikes, ours", "MovieLens-1M, 4 and 5 against 1 and 2, threes dropped, random 80/10/10",
                            {"AUC": (AUC, "0.8964 (best of the DCN-V2 paper)")}, ctr + " --drop-rating 3", BEST_LIKES, FEW))  # fmt: skip
    parts = {"wide only": ("wide_only", "0.726"), "deep only": ("deep_only", "0.722"), "both": ("wide_deep", "0.728")}
    metrics = {f"AUC, {name}": (f"models.{model}.ratings.auc", figure) for name, (model, figure) in parts.items()}
    found.append(Experiment("6", "The paper: FTRL, AdaGrad, 1024-512-256", "demo, time 80/10/10; published: app store", metrics, "", PAPER, "", 1))
    return found


# ----------------------------------------------------------------------------------------------------------------- running
def script(name: str, folder: Path, flags: list[str], seed: int) -> float:
    """Run one of the three scripts in a folder; seconds it took."""
    begin, command = time.perf_counter(), [sys.executable, ROOT / name, *flags, "--seed", str(seed)]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def run_once(e: Experiment, data: Path, work: Path, run: int, quick: bool) -> tuple[dict, float, float]:
    """metrics.json of one run, with the baselines of scikit-surprise among its models; seconds in all and of training."""
    begin = time.perf_counter()
    flags = [flag.format(data=data, work=work, run=run) for flag in e.preprocessing.split()]
    folder = work / hashlib.sha256(f"{flags} {run}".encode()).hexdigest()[:12]  # experiments with the same rows share it
    if not folder.exists():
        folder.mkdir()
        script("amazon_preprocessing.py", folder, flags, run)
    validation, training = [], 0.0
    for number, variant in enumerate(e.variants[:1] if quick else e.variants):
        flags = ["--checkpoint", f"{number}.pt", *EXACT.split(), *variant.split(), *(["--epochs", "3"] if quick else [])]
        training += script("wide_deep_model.py", folder, flags, run)
        validation.append(max(map(quality, json.loads((folder / "training_history.json").read_text())["epochs"])))
    chosen = int(np.argmax(validation))
    replicates = "200" if quick else "1000" if run == 1 else "0"
    script("model_evaluation.py", folder, ["--checkpoint", f"{chosen}.pt", "--bootstrap", replicates, *e.evaluation.split()], run)
    metrics, seconds = json.loads((folder / "metrics.json").read_text()), time.perf_counter() - begin
    metrics["surprise"] = surprise_baselines(folder, e.surprise, "--refit" in e.variants[chosen].split(), run, quick) if e.surprise else {}
    tried = ", ".join(f"{v:.4f}" for v in validation)
    print(f"{e.row} {e.system}, run {run}: validation {tried} -> {e.variants[chosen]}; {seconds:.0f} s", file=sys.stderr, flush=True)
    return metrics, seconds, training


# --------------------------------------------------------------------------------------------- baselines of scikit-surprise
def settings(name: str, rows: int, quick: bool) -> list[dict]:
    """What is tried on the validation rows: less on large data, on more than 500,000 rows one setting."""
    if "kNN" in name:
        grid = [{"k": 40, "verbose": False, "sim_options": {"name": "pearson_baseline", "user_based": name == "user-kNN", "shrinkage": s}} for s in (20, 100)]
    elif name == "SVD++":
        grid = [{"n_factors": 20, "n_epochs": 20, "reg_all": reg, "cache_ratings": True} for reg in (0.02, 0.05)]
    else:
        factors, regularisations, epochs = ((20, 100), (0.05, 0.1), (20, 40, 80)) if rows < 200_000 else ((100,), (0.12, 0.08), (80, 40))
        grid = [{"n_factors": f, "reg_all": r, "n_epochs": n} for f, r, n in itertools.product(factors, regularisations, epochs)]
    return grid[-1:] if quick or rows > 500_000 else grid


@functools.cache
def surprise_baselines(folder: Path, names: tuple[str, ...], refit: bool, seed: int, quick: bool) -> dict[str, dict[str, float]]:
    """{baseline: {where in metrics.json: value}} on the rows of processed_data, predictions clipped to the range of the training ratings."""
    from surprise import SVD, Dataset, KNNBaseline, Reader, SVDpp

    rows = pd.read_parquet(folder / "processed_data" / "processed_reviews.parquet", columns=["user_id", "item_id", "rating", "split"])
    train, validation, test = (rows[rows["split"] == part].drop(columns="split") for part in ("train", "validation", "test"))
    reader = Reader(rating_scale=(train["rating"].min(), train["rating"].max()))

    def errors(name: str, setting: dict, known: pd.DataFrame, asked: pd.DataFrame) -> np.ndarray:
        seeded = {} if "kNN" in name else {"random_state": seed}
        model = {"SVD": SVD, "SVD++": SVDpp}.get(name, KNNBaseline)(**setting, **seeded)
        model.fit(Dataset.load_from_df(known, reader).build_full_trainset())
        return np.array([model.predict(user, item).est for user, item in asked[["user_id", "item_id"]].itertuples(index=False)]) - asked["rating"].to_numpy()

    known_user, known_item = (test[who].isin(train[who].unique()).to_numpy() for who in ("user_id", "item_id"))
    parts, found = {"warm_user": known_user, "cold_user": ~known_user, "cold_item": ~known_item}, {}
    for name in names:
        grid = settings(name, len(train), quick)
        tried = [np.mean(errors(name, setting, train, validation) ** 2) for setting in grid] if len(grid) > 1 else [0]
        error = errors(name, grid[int(np.argmin(tried))], pd.concat([train, validation]) if refit else train, test)
        found[name] = {"ratings.rmse": float(np.sqrt(np.mean(error**2))), "ratings.mae": float(np.mean(np.abs(error)))}
        found[name] |= {f"{part}.rmse": float(np.sqrt(np.mean(error[mask] ** 2))) for part, mask in parts.items() if mask.any()}
    return found


# --------------------------------------------------------------------------------------------------------------- the table
def look_up(metrics: dict, path: str) -> float:
    """A figure of metrics.json; NaN where this run has none."""
    for part in path.split("."):
        metrics = metrics.get(part, {})
    return metrics if isinstance(metrics, (int, float)) else np.nan


def over_runs(values: np.ndarray) -> list[float]:
    """95 % limits of the mean of two or more runs, by the t-distribution."""
    return list(values.mean() + np.array([-1, 1]) * t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def differ(values: np.ndarray) -> bool:
    """Whether runs tell of a spread: lists without a network are the same for all seeds of one split, and one run has none."""
    return np.ptp(values) > 1e-9


def figure(reports: list[dict], path: str) -> str:
    values = np.array([look_up(report, path) for report in reports])
    if np.isnan(values).all():
        return "-"
    model, _, metric = path.removeprefix("models.").partition(".")
    limits = over_runs(values) if differ(values) else reports[0].get("intervals", {}).get(model, {}).get(metric, [])
    return f"{values.mean():.4f}" + (" [{:.4f}, {:.4f}]".format(*np.clip(limits, 0, None if path.endswith(("rmse", "mae")) else 1)) if len(limits) else "")


TITLES = {"item_knn": "item-kNN of stage 3", "als": "ALS", "mean_bias": "user + item mean", "global_mean": "global mean"}


def best_baseline(reports: list[dict], path: str) -> str:
    """The best one by the mean over runs, and popularity where lists are measured; with several runs ours minus it, run by run."""
    metric, lower = path.split(".", 1)[1].removeprefix("wide_deep."), path.endswith(("rmse", "mae"))
    models = {TITLES.get(name, name): name for name in reports[0]["models"] if name not in ("wide_deep", "wide_only", "deep_only")}
    found = {title: np.array([look_up(report, f"models.{name}.{metric}") for report in reports]) for title, name in models.items()}
    found |= {name: np.array([report["surprise"][name].get(metric, np.nan) for report in reports]) for name in reports[0].get("surprise", {})}
    if not (found := {name: values for name, values in found.items() if np.isfinite(values).all()}) or "_only." in path:
        return "-"
    best = (min if lower else max)(found, key=lambda name: found[name].mean())
    shown = {name: f"{name} {found[name].mean():.4f}" for name in dict.fromkeys([best, *(["popularity"] if "catalogue" in path else [])])}
    if len(reports) > 1:
        difference = np.array([look_up(report, path) for report in reports]) - found[best]
        paired = reports[0].get("differences", {}).get(models.get(best), {}).get(metric, {}).get("interval", [])
        limits = over_runs(difference) if differ(difference) else paired
        shown[best] += f" (ours {difference.mean():+.4f}{' [{:+.4f}, {:+.4f}]'.format(*limits) if len(limits) else ''})"
    return ", ".join(shown.values())


HEADER = "| | system | data and protocol | metric | published | ours [95 %] | best tuned baseline | seconds |\n|---|---|---|---|---|---|---|---|"


def lines(e: Experiment, reports: list[dict], seconds: float, training: float) -> list[str]:
    """The experiment's lines of the table, one per metric."""
    runs = f"{len(reports)} {'folds' if '{run}' in e.preprocessing else 'seeds'}" if len(reports) > 1 else "one run"
    spent = f"{seconds:.0f}" + (f", training {training / len(reports):.0f}" if training else "")
    first, out = [e.row, e.system, f"{e.protocol}; {runs}"], []
    for name, (path, claim) in e.metrics.items():
        out.append(f"| {' | '.join([*first, name, claim, figure(reports, path), best_baseline(reports, path), spent])} |")
        first, spent = ["", "", ""], ""
    return out


def commands(e: Experiment, data: Path) -> str:
    """The experiment's three lines for a shell, of run 1; of several settings the first, the others as comments."""
    stages = [("amazon_preprocessing", e.preprocessing.format(data=data, work="folds", run=1)), *(("wide_deep_model", f"{EXACT} {v}") for v in e.variants)]
    shown = [f"python {name}.py {flags} --seed 1" for name, flags in [*stages, ("model_evaluation", e.evaluation)]]
    shown = [("# or: " if 1 < number <= len(e.variants) else "") + " ".join(line.split()) for number, line in enumerate(shown)]
    folds = ["# folds/ is written by make_folds of this script"] if e.before else []
    return "\n".join([f"# {e.row} {e.system}: {e.protocol}", *folds, *shown, ""])


def run_row(row: str, data: Path, quick: bool) -> tuple[list[str], bool]:
    """The experiments of a row, such as 2a, which share their prepared data: its lines of the table, and whether one failed."""
    os.environ["OMP_NUM_THREADS"] = "1"  # threads of several rows would wait for each other
    table, failed = [], False
    with tempfile.TemporaryDirectory() as work:
        for e in (e for e in experiments() if e.row == row):
            try:
                if e.before:
                    e.before(data, Path(work))
                reports, seconds, training = zip(*(run_once(e, data, Path(work), run, quick) for run in range(1, 1 + (1 if quick else e.runs))))
                table += lines(e, list(reports), sum(seconds), sum(training))
            except (subprocess.CalledProcessError, OSError) as error:  # the script's own line stands above; the other rows go on
                table.append(f"| {e.row} | {e.system} | {e.protocol} | - | - | failed: {type(error).__name__} | - | - |")
                failed = True
    return table, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the data sets")
    parser.add_argument("--rows", nargs="+", default=["1", "2", "3", "4", "5", "6", "7"], metavar="ROW", help="such as 1, 2 or 2c; all when left out")
    parser.add_argument("--quick", action="store_true", help="one seed or fold, 3 epochs, one setting")
    parser.add_argument("--commands", action="store_true", help="only print the command lines of the chosen rows")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="rows at a time, each on one thread (default: 2)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the table as markdown, complete after every row")
    args = parser.parse_args()
    chosen = [e for e in experiments() if any(e.row.startswith(row) for row in args.rows)]
    if unknown := [row for row in args.rows if not any(e.row.startswith(row) for e in experiments())]:
        parser.error(f"--rows {unknown[0]}: not one of {', '.join(sorted({e.row for e in experiments()}))}")
    if args.commands:
        print("\n".join(commands(e, args.data) for e in chosen), end="")
        return 0
    if any(e.surprise for e in chosen) and not importlib.util.find_spec("surprise"):
        print("the rating baselines need scikit-surprise: pip install -r benchmarks/requirements.txt", file=sys.stderr)
        return 2
    table, failed = HEADER.split("\n"), False
    print(HEADER, flush=True)
    rows = dict.fromkeys(e.row for e in chosen)
    with ProcessPoolExecutor(args.jobs) as pool:
        for new, wrong in pool.map(run_row, rows, itertools.repeat(args.data.resolve()), itertools.repeat(args.quick)):
            print("\n".join(new), flush=True)
            table, failed = table + new, failed or wrong
            if args.output:
                args.output.write_text("\n".join(table) + "\n", encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
