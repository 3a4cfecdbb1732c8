"""Stage 2: encoded rows in, a trained Wide & Deep model out.

    python wide_deep_model.py                                      # processed_data/ -> best_wide_deep_model.pt
    python wide_deep_model.py --ablations --refit --epochs 30      # also wide only and deep only; final model on all rows

Reads   processed_data/ as stage 1 wrote it (verified against dataset.json).
Writes  best_wide_deep_model.pt (self-contained: model, vocabularies, tables, histories), and beside it
        last_wide_deep_model.pt (for --resume), training_history.json, and with --ablations <name>.wide.pt, <name>.deep.pt.

    logit(u, i, c) = b + sum_f wide[f] + MLP([embeddings of u, i, c | numeric features])     (Cheng et al. 2016, section 3)

In Python: load_model("best_wide_deep_model.pt").recommend("A2IBPI20UZIR0U", n=10)
"""

import io
import json
import math
import platform
import resource
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import amazon_preprocessing as stage1
from amazon_preprocessing import CONTEXT, DAY_S, ITEM, OWN_TEXT, PAIR_STATE, USER, Dataset, InputError, Parser, fraction, load_dataset, replace_file, run_script

# ----------------------------------------------------------------------------------------------------------------------
NOT_BY_DEFAULT = ("cross_user_item", "period")  # wide: a pair occurs once, so its weight can only memorise noise; deep: the month tells it
ID_DROPOUT = 0.05  # share of training rows whose user (and, apart, item) is hidden, so that row 0 is trained for unseen ids
EMBEDDING_STD = 0.005
# Adagrad from 0 and Adam with a tiny eps move a weight by the full learning rate at its first gradient, however small: an
# id seen five times learns its noise. These two, in units of one row's gradient in a batch, make early steps proportional.
ADAGRAD_START = 10.0
ROW_ADAM_EPS = 10.0
SCORE_BLOCK = 65_536  # rows scored at a time
CATALOGUE_BLOCK = 2_048  # candidates scored at a time on a CPU, so that activations stay in its cache
SHORTLIST = 512  # items of a large catalogue that are scored in full when only the best are asked for, after a first pass over all
FORMAT = 2  # of the checkpoint
LAST, HISTORY = "last_wide_deep_model.pt", "training_history.json"
# ----------------------------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--data-dir", type=Path, default=Path("processed_data"), metavar="DIR")
    add("--checkpoint", type=Path, default=Path("best_wide_deep_model.pt"), metavar="FILE")
    add("--objective", choices=("like", "rating"), default="like", help="like: P(rating >= threshold), log loss; rating: squared error")
    add("--component", choices=("wide-deep", "wide", "deep"), default="wide-deep", help="which parts to train")
    add("--ablations", action="store_true", help="train wide only and deep only as well, each into a checkpoint of its own")
    add("--wide", nargs="+", metavar="FEATURE", help="fields, crosses and numeric features of the linear part; ids and all crosses but "
        "cross_user_item when left out; a name that does not exist gets the list of those that do")
    add("--deep", nargs="+", metavar="FEATURE", help="fields and numeric features of the network; all of them when left out")
    add("--embedding-dim", type=int, default=32, metavar="D")
    add("--hidden", type=int, nargs="+", default=[256, 128, 64], metavar="UNITS")
    add("--activation", choices=("relu", "gelu", "silu"), default="relu")
    add("--batch-norm", action="store_true")
    add("--dropout", type=fraction, default=0.0)
    add("--wide-optimizer", choices=("adagrad", "ftrl", "adam"), default="adagrad")
    add("--wide-lr", type=float, default=0.01)
    add("--wide-l1", type=float, default=0.0, help="ftrl: a weight stays 0 until the gradients of its rows add up to this many likes")
    add("--deep-optimizer", choices=("adam", "adagrad"), default="adam")
    add("--deep-lr", type=float, default=1e-3)
    add("--weight-decay", type=float, default=0.0, help="L2, added to the gradients; of a table, to the rows that a batch touches")
    add("--batch-size", type=int, default=0, help="0: the power of two nearest a hundredth of the training rows, within 256..4096")
    add("--epochs", type=int, default=30, help="at most; early stopping usually ends sooner")
    add("--patience", type=int, default=2, help="epochs without a better validation metric before stopping")
    add("--refit", action="store_true", help="train once more on training and validation rows for the chosen number of epochs")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: bfloat16 on CUDA, float32 on CPU")
    add("--resume", action="store_true", help="go on from last_wide_deep_model.pt beside the checkpoint")
    add("--warm-start", metavar="CHECKPOINT", help="begin with what an earlier model learned; it is only replaced by one that validates better")
    add("--accept-worse", action="store_true", help="with --warm-start: write the best epoch even if the earlier model validates better")
    add("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    for name in ("embedding_dim", "epochs", "patience", "wide_lr", "deep_lr"):
        if not 0 < getattr(args, name) < math.inf:  # NaN too
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    if min(args.hidden) < 1 or not (0 <= args.weight_decay < math.inf and 0 <= args.wide_l1 < math.inf) or args.batch_size < 0:
        parser.error("--hidden takes positive sizes, --weight-decay, --wide-l1 and --batch-size numbers >= 0")
    if args.wide_l1 and args.wide_optimizer != "ftrl":
        parser.error("--wide-l1 needs --wide-optimizer ftrl")
    if args.checkpoint.name in (LAST, HISTORY):
        parser.error(f"--checkpoint {args.checkpoint.name} is the name of another file of this script")
    args.device = choose_device(args.device)
    if args.precision == "auto":
        args.precision = "bfloat16" if args.device == "cuda" else "float32"
    return args


def choose_device(name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this torch sees no GPU; use --device cpu or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


# ------------------------------------------------------------------------------------------------------------- features
class Features:
    """Turns rows into the model's inputs: the tables, vocabularies and names of the features, nothing learned.

    One object serves training, evaluation and a candidate scored years later, so they cannot disagree.
    """

    def __init__(self, tables: dict[str, pd.DataFrame], vocabularies: dict, config: dict) -> None:
        self.tables, self.vocabularies = tables, vocabularies
        self.wide, self.categorical, self.wide_numeric, self.numeric = (config[n] for n in ("wide", "categorical", "wide_numeric", "numeric"))
        self.columns = [n for n in self.wide_numeric if n not in self.numeric]  # the numeric columns: the wide part's come first, the deep
        self.columns += [n for n in self.wide_numeric if n in self.numeric] + [n for n in self.numeric if n not in self.wide_numeric]  # part's last

    def size(self, name: str) -> int:
        """Number of codes of a field or cross, code 0 included."""
        if name in self.vocabularies["crosses"]:
            return self.vocabularies["crosses"][name]["size"]
        return len(self.values(name))

    def encode(self, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """rows -> wide ids int32 [n, W], categorical codes int32 [n, C], numeric columns float32 [n, N], each around 0."""
        codes = stage1.field_codes(rows, self.tables, self.vocabularies)
        wide = [self.wide_ids(name, codes) for name in self.wide]
        deep = [codes[name] for name in self.categorical]
        wide, deep = (np.stack(columns, axis=1).astype(np.int32) if columns else np.empty((len(rows), 0), np.int32) for columns in (wide, deep))
        return wide, deep, self.encode_numeric(self.columns, rows)

    def values(self, name: str) -> np.ndarray:
        """What the codes of a field stand for, UNKNOWN where an id has no training rows."""
        if name in ("user_id", "item_id"):
            table = self.tables[name[:4]]
            return table[name[:4]].where(table["train_count"] > 0, stage1.UNKNOWN).to_numpy()
        return np.array(self.vocabularies.get(name, range(stage1.RATING_BUCKETS + 1)), object)

    def encode_numeric(self, names: list[str], rows: pd.DataFrame) -> np.ndarray:
        specs = self.vocabularies["numeric"]
        columns = [stage1.normalise(stage1.numeric_values(name, rows, self.tables, specs[name]), specs[name]) for name in names]
        return np.stack(columns, axis=1) if columns else np.empty((len(rows), 0), np.float32)

    def wide_ids(self, name: str, codes: dict[str, np.ndarray]) -> np.ndarray:
        if not (spec := self.vocabularies["crosses"].get(name)):
            return codes[name]
        return stage1.cross_ids(codes[spec["left"]], codes[spec["right"]], spec)

    def at_moment(self, user_ids: np.ndarray, item_ids: np.ndarray, timestamp_s: float | None) -> pd.DataFrame:
        """Rows (user, item) as they would look at a moment, from the state at the end of training. ids broadcast."""
        user_ids, item_ids = np.broadcast_arrays(user_ids, item_ids)
        now = np.nan if timestamp_s is None else float(timestamp_s)
        rows = {"user_id": user_ids, "item_id": item_ids}
        for who, ids in ((USER, user_ids), (ITEM, item_ids)):
            state = (*stage1.STATE, "last_timestamp", "first_timestamp")
            rows |= {f"{who}_{name}": self.tables[who][f"{who}_{name}"].to_numpy()[ids] for name in state}
            rows[f"{who}_days_since_last"] = (now - rows[f"{who}_last_timestamp"]) / DAY_S
        rows["item_age_days"] = (now - rows["item_first_timestamp"]) / DAY_S
        category, trained = self.tables[ITEM]["category"].to_numpy()[item_ids], self.tables[USER]["train_count"].to_numpy()[user_ids] > 0
        rows |= stage1.pair_state(np.where(trained, user_ids, 0), category, self.vocabularies)
        rows |= {name: np.full(len(user_ids), np.nan) for name in OWN_TEXT}  # the row's own text
        moment = stage1.encode_moments(np.array([now]), self.vocabularies)
        return pd.DataFrame(rows | {name: np.repeat(moment[name], len(user_ids)) for name in CONTEXT})

    def owners(self, name: str) -> set[str]:
        """Whose feature it is: of {"user", "item", "moment"}; a cross has two owners."""
        if spec := self.vocabularies["crosses"].get(name):
            return self.owners(spec["left"]) | self.owners(spec["right"])
        if name in PAIR_STATE:
            return {USER, ITEM}
        if name in CONTEXT or name in OWN_TEXT:
            return {"moment"}
        return {USER} if name.startswith("user_") else {ITEM}


# ---------------------------------------------------------------------------------------------------------------- model
class WideDeep(nn.Module):
    """Wide & Deep of Cheng et al. 2016: one logit, the sum of a linear model over crosses and an MLP over embeddings.

    Both tables hold the codes of all their fields one after the other (`offsets`), so a batch is one lookup and one
    sparse gradient: the cost of a step does not depend on the number of users.
    """

    def __init__(self, wide_sizes: list[int], deep_sizes: list[int], wide_numeric: int, numeric: int, embedding_dim: int, hidden: list[int],
                 activation: str = "relu", batch_norm: bool = False, dropout: float = 0.0, component: str = "wide-deep") -> None:
        super().__init__()
        self.component, self.embedding_dim, self.wide_numeric, self.numeric = component, embedding_dim, wide_numeric, numeric
        self.register_buffer("wide_offsets", torch.tensor([0, *wide_sizes[:-1]]).cumsum(0), persistent=False)
        self.register_buffer("deep_offsets", torch.tensor([0, *deep_sizes[:-1]]).cumsum(0), persistent=False)
        self.bias = nn.Parameter(torch.zeros(1))
        if component != "deep":
            self.wide = nn.Embedding(sum(wide_sizes), 1, sparse=True)  # summing the active weights *is* the linear layer
            nn.init.zeros_(self.wide.weight)
            self.linear = nn.Parameter(torch.zeros(wide_numeric, 1))
        if component != "wide":
            self.embedding = nn.Embedding(sum(deep_sizes), embedding_dim, sparse=True)
            nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
            widths, layers = [len(deep_sizes) * embedding_dim + numeric, *hidden], []
            for inputs, outputs in zip(widths, hidden):
                layers += [nn.Linear(inputs, outputs), *([nn.BatchNorm1d(outputs)] if batch_norm else [])]
                layers += [{"relu": nn.ReLU(inplace=True), "gelu": nn.GELU(), "silu": nn.SiLU(inplace=True)}[activation], nn.Dropout(dropout)]
            self.mlp = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, wide: Tensor, deep: Tensor, numeric: Tensor) -> Tensor:
        """ids [n, W], [n, C] and values [n, N] -> logit [n]. The wide part reads the first numeric columns, the deep part the last."""
        logit = self.bias
        if self.component != "deep":
            logit = logit + self.wide(wide + self.wide_offsets).sum((1, 2))  # of [n, W, 1]
            if self.wide_numeric:
                logit = logit + (numeric[:, : self.wide_numeric] @ self.linear).squeeze(1)
        if self.component != "wide":
            embeddings = self.embedding(deep + self.deep_offsets)  # [n, C, D]
            logit = logit + self.mlp(torch.cat([embeddings.flatten(1), numeric[:, numeric.shape[1] - self.numeric :]], 1)).squeeze(1)
        return logit


def build_model(config: dict, features: Features) -> WideDeep:
    sizes = ([features.size(name) for name in names] for names in (features.wide, features.categorical))
    return WideDeep(*sizes, len(features.wide_numeric), len(features.numeric), config["embedding_dim"], config["hidden"], config["activation"],
                    config["batch_norm"], config["dropout"], config["component"])


class RowOptimizer(torch.optim.Optimizer):
    """Touches only the rows of a table that have a gradient: the arithmetic of torch's sparse optimizers without their temporary
    sparse tensors, which took a third of a step. "statistics" are tables of its size with their start values."""

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for table in group["params"]:
                gradient, state = (table.grad if table.grad.is_sparse else table.grad.to_sparse(1)).coalesce(), self.state[table]
                if not state:
                    state.update(self.begin(table, group), step=0)
                state["step"] += 1
                rows, wholes = gradient.indices()[0], [state[name] for name in group["statistics"]]
                parts = [whole.index_select(0, rows) for whole in wholes]
                values, weights = gradient.values(), table.index_select(0, rows) if "l1" in group or group["weight_decay"] else None
                if group["weight_decay"]:
                    values = values.add(weights, alpha=group["weight_decay"])
                table.index_add_(0, rows, self.change(values, weights, *parts, state["step"], group))
                for whole, part in zip(wholes, parts):
                    whole.index_copy_(0, rows, part)


    def begin(self, table: Tensor, group: dict) -> dict[str, Tensor]:
        return {name: torch.full_like(table, start) for name, start in group["statistics"].items()}


class RowAdagrad(RowOptimizer):
    def change(self, gradient: Tensor, weights: Tensor | None, total: Tensor, step: int, group: dict) -> Tensor:
        """Duchi et al. 2011."""
        return gradient.div(total.addcmul_(gradient, gradient).sqrt().add_(group["eps"])).mul_(-group["lr"])


class RowAdam(RowOptimizer):
    def change(self, gradient: Tensor, weights: Tensor | None, mean: Tensor, square: Tensor, step: int, group: dict) -> Tensor:
        """Kingma and Ba 2015; a row's moments stand still while it has no gradient. eps is added before the bias correction."""
        beta1, beta2 = group["betas"]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        rate = group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        return mean.div(square.sqrt().add_(group["eps"])).mul_(-rate)


class RowFTRL(RowOptimizer):
    def begin(self, table: Tensor, group: dict) -> dict[str, Tensor]:
        """Weights that are not 0, of a warm start, begin with the sum of gradients that would have led to them."""
        state = super().begin(table, group)
        return state | {"shift": -table * state["sum"].sqrt() / group["lr"] - table.sign() * group["l1"]}

    def change(self, gradient: Tensor, weights: Tensor, shift: Tensor, total: Tensor, step: int, group: dict) -> Tensor:
        """FTRL-Proximal, McMahan et al. 2013, algorithm 1; the start value of the sum stands for its beta. Without L1 it is Adagrad."""
        before, after = total.sqrt(), total.addcmul_(gradient, gradient).sqrt()
        shift.add_(gradient).sub_((after - before) * weights / group["lr"])
        return F.softshrink(shift, group["l1"]).mul_(-group["lr"]) / after - weights


def make_optimizers(model: WideDeep, args: Namespace) -> list[torch.optim.Optimizer]:
    """Adagrad or FTRL for the wide weights, Adam for the deep part; tables get the forms that touch only a batch's rows."""
    def optimizer(name: str, lr: float, parameters: list[nn.Parameter], of_rows: bool) -> torch.optim.Optimizer:
        start, settings = ADAGRAD_START / args.batch_size**2, {"lr": lr, "weight_decay": args.weight_decay}
        if name == "ftrl":
            return RowFTRL(parameters, settings | {"l1": args.wide_l1 / args.batch_size, "statistics": {"shift": 0.0, "sum": start}})
        if name == "adagrad" and of_rows:
            return RowAdagrad(parameters, settings | {"eps": 1e-10, "statistics": {"sum": start}})
        if name == "adagrad":
            return torch.optim.Adagrad(parameters, **settings, initial_accumulator_value=start)
        if of_rows:
            moments = {"betas": (0.9, 0.999), "statistics": {"exp_avg": 0.0, "exp_avg_sq": 0.0}}
            return RowAdam(parameters, settings | moments | {"eps": ROW_ADAM_EPS / args.batch_size})
        return torch.optim.Adam(parameters, **settings, fused=True)

    wide, deep = (args.wide_optimizer, args.wide_lr), (args.deep_optimizer, args.deep_lr)
    found = [] if model.component == "deep" else [optimizer(*wide, [model.wide.weight], True)]
    if model.component != "deep" and model.wide_numeric:
        found.append(optimizer(*wide, [model.linear], False))
    if model.component == "wide":
        return [*found, optimizer(args.wide_optimizer.replace("ftrl", "adagrad"), args.wide_lr, [model.bias], False)]  # the bias is not shrunk
    return [*found, optimizer(*deep, [model.embedding.weight], True), optimizer(*deep, [model.bias, *model.mlp.parameters()], False)]


# ------------------------------------------------------------------------------------------------------------- training
class Rows:
    """Encoded rows as contiguous tensors on the device: wide, deep, numeric, target (the label, or the rating)."""

    def __init__(self, features: Features, frame: pd.DataFrame, device: str, objective: str) -> None:
        arrays = (*features.encode(frame), frame["rating" if objective == "rating" else "label"].to_numpy(np.float32))
        self.tensors = [torch.tensor(a, device=device) for a in arrays]  # a copy: pandas may hand out read-only memory

    def __len__(self) -> int:
        return len(self.tensors[0])

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[list[Tensor]]:
        """Slices of `size` rows; with an order, of a copy shuffled block by block so that memory stays bounded."""
        for start in range(0, len(self), size * 64):
            end = min(start + size * 64, len(self))
            block = [t[start:end] if order is None else t[order[start:end]] for t in self.tensors]
            for at in range(0, end - start, size):
                yield [t[at : at + size] for t in block]


class Training:
    """One model on its way: all that --resume must restore to give the very same weights."""

    def __init__(self, args: Namespace, config: dict, features: Features, mean: float) -> None:
        """mean: of the training rows' targets. The bias starts there; else the weights of ids learn it in its stead."""
        torch.manual_seed(args.seed)  # the only source of randomness: initial weights, shuffles, dropout
        self.args, self.model = args, build_model(config, features).to(args.device)
        nn.init.constant_(self.model.bias, mean if args.objective == "rating" else torch.tensor(mean).logit(eps=1e-3).item())
        self.loss = F.mse_loss if args.objective == "rating" else F.binary_cross_entropy_with_logits
        self.optimizers = make_optimizers(self.model, args)
        self.history, self.start = [], {}  # start: how the model of a warm start validates
        parts = {n: (spec["left"], spec["right"]) for n, spec in features.vocabularies["crosses"].items()}
        holds = [[[i in parts.get(n, (n,)) for n in names] for i in ("user_id", "item_id")] for names in (features.wide, features.categorical)]
        self.holds = [torch.tensor(h, dtype=torch.bool, device=args.device)[:, None] for h in holds]  # [2, 1, fields]: made of the user, the item

    def epochs_without_gain(self) -> int:
        return len(self.history) - best_epoch(self.history)["epoch"] if self.history else 0

    def accepted(self) -> bool:
        """Whether the best epoch may be written: with --warm-start only one that validates better than the earlier model."""
        return not self.start or self.args.accept_worse or quality(best_epoch(self.history)) > quality(self.start)

    def state_dict(self) -> dict:
        cuda = torch.cuda.get_rng_state() if self.args.device == "cuda" else None
        return {"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers], "rng": torch.get_rng_state(),
                "cuda_rng": cuda, "history": self.history, "start": self.start}

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])
        self.history, self.start = state["history"], state["start"]

    def hide_ids(self, wide: Tensor, deep: Tensor) -> tuple[Tensor, Tensor]:
        """Make the user, and independently the item, of some rows unknown in every feature that contains it."""
        hidden = torch.rand(2, len(deep), 1, device=deep.device) < ID_DROPOUT
        return tuple(ids.masked_fill((hidden & holds).any(0), 0) for ids, holds in zip((wide, deep), self.holds))

    def run_epoch(self, rows: Rows, bar: tqdm) -> float:
        """One pass over the shuffled rows; the mean training loss. A loss that is no number raises FloatingPointError."""
        self.model.train()
        total, steps = torch.zeros((), device=self.args.device), 0
        for wide, deep, numeric, target in rows.batches(self.args.batch_size, torch.randperm(len(rows)).to(self.args.device)):
            if len(target) == 1 and self.args.batch_norm:  # a left-over row has no variance
                continue
            wide, deep = self.hide_ids(wide, deep)
            with torch.autocast(self.args.device, torch.bfloat16, enabled=self.args.precision == "bfloat16"):
                logit = self.model(wide, deep, numeric)
            loss = self.loss(logit.float(), target)
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
            total, steps = total + loss.detach() * len(target), steps + 1
            bar.update(len(target))
            if steps % 100 == 0:  # rarely: reading the loss makes the CPU wait for the GPU
                bar.set_postfix(loss=f"{finite(total) / (steps * self.args.batch_size):.4f}")
        return finite(total) / len(rows)


def finite(total: Tensor) -> float:
    if math.isfinite(value := float(total)):
        return value
    raise FloatingPointError


@torch.inference_mode()
def logits(model: WideDeep, rows: Rows) -> np.ndarray:
    model.eval()
    found = [model(*inputs).float().cpu() for *inputs, _ in rows.batches(SCORE_BLOCK)]
    return torch.cat(found or [torch.empty(0)]).numpy()


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """P(a like scores above a dislike), ties half (Mann-Whitney U); NaN scores come last, NaN where a class is missing."""
    likes, ranks = label == 1, pd.Series(score).rank(na_option="top").to_numpy()
    n, dislikes = likes.sum(), (~likes).sum()
    return float((ranks[likes].sum() / n - (n + 1) / 2) / dislikes) if n and dislikes else math.nan


def validate(model: WideDeep, rows: Rows, config: dict) -> dict[str, float]:
    """like: log loss and AUC (absent where the rows have one class only). rating: mean squared error of clipped ratings, its root."""
    target, logit = rows.tensors[-1].cpu().numpy(), logits(model, rows).astype(np.float64)
    if not np.isfinite(logit).all():
        raise FloatingPointError
    if config["objective"] == "rating":
        error = float(np.mean((np.clip(logit, *config["rating_range"]) - target) ** 2))
        return {"validation_loss": error, "validation_rmse": math.sqrt(error)}
    metrics = {"validation_loss": float(np.mean(np.logaddexp(0, logit) - target * logit)), "validation_auc": auc(target, logit)}
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def peak_memory_mb(device: str) -> float:
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2**20, 1)


def warm_start(model: WideDeep, features: Features, config: dict, rows: pd.DataFrame) -> None:
    """Begin with what an earlier model learned (Cheng et al. 2016, section 3.3): the vectors and weights of ids and values, the
    weights of crosses that occur in rows, and the network. What it did not know begins as its unknown id or cross."""
    path = Path(config["warm_start"])
    old = load_model(path, "cpu")
    for name in ("objective", "component", "wide", "categorical", "wide_numeric", "numeric", "embedding_dim", "hidden", "activation", "batch_norm"):
        if old.config[name] != config[name]:
            raise InputError(f"--warm-start {path}: {name} of that model is {old.config[name]}, not {config[name]}; train with the same, or anew")
    codes, position = stage1.field_codes(rows, features.tables, features.vocabularies), {}
    for name in codes:  # the old code of every new code, 0 where there is none
        known = pd.Series(range(old.features.size(name)), old.features.values(name))
        position[name] = known[~known.index.duplicated()].reindex(features.values(name), fill_value=0).to_numpy()
    old_codes, state = {name: position[name][values] for name, values in codes.items()}, old.model.state_dict()
    for part, names in (("wide", features.wide), ("embedding", features.categorical)):
        tables = [state.get(f"{part}.weight"), model.state_dict().get(f"{part}.weight")]
        for at, name in enumerate(names if tables[0] is not None else []):
            ids = np.arange(features.size(name)), position.get(name)
            if name not in codes:
                ids = features.wide_ids(name, codes), old.features.wide_ids(name, old_codes)
            new, before = (torch.from_numpy(i.astype(np.int64)) + int(sum(f.size(n) for n in names[:at])) for i, f in zip(ids, (features, old.features)))
            tables[1][new.to(tables[1].device)] = tables[0][before].to(tables[1].device)
        state |= {f"{part}.weight": tables[1]} if tables[0] is not None else {}
    model.load_state_dict(state)


class Run:
    """The phases of one command: the model; with --refit once more on all its rows; with --ablations its parts alone."""

    def __init__(self, args: Namespace, ds: Dataset) -> None:
        self.args, self.ds, self.last = args, ds, args.checkpoint.parent / LAST
        args.batch_size = args.batch_size or 2 ** int(np.clip(round(math.log2(ds.index["rows"]["train"] / 100)), 8, 12))
        self.config = {name: value for name, value in vars(args).items() if name not in ("data_dir", "checkpoint", "resume", "ablations")}
        self.config |= choose_features(args, ds) | {"checkpoint": args.checkpoint.name, "rating_range": ds.index["rating_range"]}
        self.finished, self.histories, self.resumed = [], {}, None
        if args.resume:
            self.load_last()

    def load_last(self) -> None:
        saved = read_checkpoint(self.last, "start without --resume")
        kinds = {"training": dict, "run": dict, "phase": str, "finished": list, "histories": dict, "fingerprint": str}
        whole = all(isinstance(saved.get(name), kind) for name, kind in kinds.items()) and bool(saved["run"])
        whole = whole and {*saved["histories"]} == {*saved["finished"], saved["phase"]}
        if not whole or saved["histories"][saved["phase"]] != saved["training"].get("history"):
            raise InputError(f"--resume: {self.last} is not the state of a training; start without --resume")
        if saved["fingerprint"] != self.ds.index["fingerprint"]:
            raise InputError(f"--resume: {self.last} was not trained on {self.ds.folder} as it is now; start without --resume")
        for name, value in self.config.items():
            before = saved["run"].get(name)
            if before != value and (name not in ("epochs", "patience") or saved["finished"]):
                raise InputError(f"--resume: --{name.replace('_', '-')} was {before} and is {value}; only --epochs and --patience may change, "
                                 "and only while the first model trains")
        self.finished, self.histories, self.resumed = saved["finished"], saved["histories"], saved

    def phases(self) -> Iterator[tuple[str, str, bool, Path]]:
        """(name, component, refit, checkpoint) in the order in which they run."""
        paths = {self.args.component: self.args.checkpoint}
        if self.args.ablations:
            paths |= {part: ablation_path(self.args.checkpoint, part) for part in ("wide", "deep")}
        for component, path in paths.items():
            yield component, component, False, path
            if self.args.refit:
                yield f"{component} refit", component, True, path

    def execute(self) -> None:
        for phase in self.phases():
            if phase[0] not in self.finished:
                self.train(*phase)

    def train(self, name: str, component: str, refit: bool, path: Path) -> None:
        """Train one model: with early stopping on the validation rows, or (refit) for the epochs that this chose."""
        args, config = self.args, self.config | {"component": component, "refit": refit}
        features = make_features(self.ds, config)
        served = self_contained(self.ds, features, config)
        split = self.ds.reviews["split"]
        parts = (split.isin(["train", "validation"] if refit else ["train"]), split == "validation")
        train, validation = (Rows(features, self.ds.reviews[part], args.device, args.objective) for part in parts)
        training = Training(args, config, features, float(train.tensors[-1].mean()))
        if self.resumed and self.resumed["phase"] == name:
            try:
                training.load_state_dict(self.resumed["training"])
            except Exception as error:  # whatever a damaged file holds
                raise InputError(f"--resume: {self.last} does not fit ({type(error).__name__}); start without --resume") from None
        elif args.warm_start and component == args.component:
            warm_start(training.model, features, config, self.ds.reviews[parts[0]])
            training.start = validate(training.model, validation, config)
            print(f"{name} starts from {args.warm_start}: " + describe({"epoch": 0} | training.start))
        epochs = best_epoch(self.histories[component])["epoch"] if refit else args.epochs
        while len(training.history) < epochs and (refit or training.epochs_without_gain() < args.patience):
            training.history.append(self.epoch(name, training, train, None if refit else validation, epochs))
            self.histories[name] = training.history
            checkpoint = served | {"state_dict": training.model.state_dict(), **training.history[-1], "history": self.histories[component]}
            if len(training.history) == epochs if refit else training.epochs_without_gain() == 0 and training.accepted():
                replace_file(path, partial(save, checkpoint))
            self.save_last(name, checkpoint, training)
        if not refit and not training.accepted():
            raise InputError(f"no epoch validates better than {args.warm_start}, so {path} is not written; --accept-worse writes the best epoch")
        self.finished.append(name)  # of the phases before the one in the last checkpoint, whose state says itself how far it is
        print(f"{name}: {describe(training.history[-1] if refit else best_epoch(training.history))} -> {path}")

    def epoch(self, name: str, training: Training, train: Rows, validation: Rows | None, epochs: int) -> dict:
        """Train and validate once: the epoch's line of training_history.json."""
        number, started = len(training.history) + 1, time.perf_counter()
        with tqdm(total=len(train), desc=f"{name} epoch {number}/{epochs}", unit=" rows", unit_scale=True, disable=None, leave=False) as bar:
            try:
                loss = training.run_epoch(train, bar)
                seconds = time.perf_counter() - started
                metrics = validate(training.model, validation, self.config) if validation else {}
            except FloatingPointError:
                raise InputError(f"the loss of {name} became NaN in epoch {number}; the last good checkpoint is kept; lower --deep-lr or --wide-lr") from None
        record = {"epoch": number, "train_loss": loss} | metrics
        record |= {"seconds": round(seconds, 3), "rows_per_s": round(len(train) / seconds), "peak_memory_mb": peak_memory_mb(self.args.device)}
        print(f"{name} {describe(record)}, {record['rows_per_s']:,} rows/s", flush=True)
        return record

    def save_last(self, name: str, checkpoint: dict, training: Training) -> None:
        history = {"epochs": self.histories.get(self.args.component, []), "phases": self.histories}
        replace_file(self.last.with_name(HISTORY), lambda to: to.write_text(json.dumps(history, indent=1) + "\n"))
        run = {"run": self.config, "phase": name, "finished": self.finished, "histories": self.histories, "training": training.state_dict()}
        replace_file(self.last, partial(save, checkpoint | run))


def best_epoch(history: list[dict]) -> dict:
    return max(history, key=quality)


def quality(record: dict) -> float:
    """What early stopping maximises: validation AUC; minus the validation loss for ratings, or where one class is missing."""
    return record.get("validation_auc", -record["validation_loss"])


def describe(record: dict) -> str:
    return f"epoch {record['epoch']}: " + ", ".join(
        f"{name.replace('_', ' ')} {record[name]:.4f}" for name in ("train_loss", "validation_loss", "validation_auc", "validation_rmse") if name in record)


# ---------------------------------------------------------------------------------------------------------- checkpoint
def choose_features(args: Namespace, ds: Dataset) -> dict[str, list[str]]:
    """--wide and --deep as names of coded fields and of numeric columns; a field with several values stands for all its columns."""
    words = ds.vocabularies
    fields = ["user_id", "item_id", *words["categories"][ITEM], *words["categories"][USER], *CONTEXT]
    crosses, numeric, groups = [*words["crosses"]], [*words["numeric"]], words["groups"]
    known = {"wide": [*fields, *crosses, *groups, *(n for n in numeric if n not in PAIR_STATE)], "deep": [*fields, *groups, *numeric]}
    chosen = {"wide": args.wide or ["user_id", "item_id", *crosses], "deep": args.deep or [*fields, *numeric]}
    for part, names in chosen.items():
        if unknown := [name for name in names if name not in known[part]]:
            raise InputError(f"--{part} {unknown[0]}: not one of {', '.join(n for n in known[part] if '=' not in n)}")
        names = [n for n in names if getattr(args, part) or n not in NOT_BY_DEFAULT]
        chosen[part] = list(dict.fromkeys(column for name in names for column in groups.get(name, [name])))
    coded, numbers = ([[n for n in names if (n in numeric) == number] for names in chosen.values()] for number in (False, True))
    return {"wide": coded[0], "wide_numeric": numbers[0], "categorical": coded[1], "numeric": numbers[1]}


def make_features(ds: Dataset, config: dict) -> Features:
    tables = ds.tables
    if config["refit"]:  # validation rows are training rows now: their ids are no longer new
        known = ds.reviews[ds.reviews["split"] != "test"]
        tables = {who: t.assign(train_count=np.bincount(known[f"{who}_id"], minlength=len(t))) for who, t in tables.items()}
    return Features(tables, ds.vocabularies, config)


def self_contained(ds: Dataset, features: Features, config: dict) -> dict:
    """All of the checkpoint but the weights: tensors and builtins only, so torch.load(weights_only=True) opens it."""
    known = ds.reviews[ds.reviews["split"] != "test"].sort_values(["user_id", "item_id"])
    offsets = np.r_[0, np.cumsum(np.bincount(known["user_id"], minlength=len(ds.users)))]
    return {
        "format": FORMAT,
        "config": config,
        "vocabularies": stage1.convert(ds.vocabularies, np.ndarray, torch.from_numpy),
        **{f"{who}s": {name: pack(table[name]) for name in table} for who, table in features.tables.items()},
        "seen": {"offsets": torch.from_numpy(offsets), "items": torch.from_numpy(known["item_id"].to_numpy(copy=True))},
        "last_training_timestamp": ds.index["last_training_timestamp"],
        "dataset": {name: ds.index[name] for name in ("name", "positive_threshold", "rating_range", "split", "features")},
        "fingerprint": ds.index["fingerprint"],
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__, "pandas": pd.__version__, "python": platform.python_version()},
    }


def pack(column: pd.Series) -> Tensor | str:
    """A table column as a tensor, or, where it holds text, as one JSON text: pickling many small strings takes seconds."""
    if column.dtype.kind in "if":
        return torch.from_numpy(column.to_numpy(copy=True))
    return json.dumps([None if pd.isna(value) else str(value) for value in column])


def unpack(columns: dict[str, Tensor | str]) -> pd.DataFrame:
    return pd.DataFrame({name: json.loads(column) if isinstance(column, str) else column.numpy() for name, column in columns.items()})


def save(saved: dict, path: Path) -> None:
    buffer = io.BytesIO()  # torch.save on a full disk raises a RuntimeError about its own container
    torch.save(saved, buffer)
    path.write_bytes(buffer.getbuffer())


def read_checkpoint(path: Path, remedy: str) -> dict:
    """Open a checkpoint without running any code of it. Raises InputError that ends with the remedy."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["format"] != FORMAT:
            raise ValueError(f"format {saved['format']}, this version reads {FORMAT}")
        return saved
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {remedy}") from None
    except Exception as error:  # whatever a damaged or hostile file provokes inside the unpickler
        raise InputError(f"{path} is not a usable checkpoint ({type(error).__name__}); {remedy}") from None


def load_model(path: str | Path = "best_wide_deep_model.pt", device: str = "auto") -> "Recommender":
    """The trained model, ready to predict and recommend by raw id, from the checkpoint alone.

    Raises InputError where the file is missing, damaged or not a checkpoint of this project.
    """
    path, device, remedy = Path(path), choose_device(device), "train it: python wide_deep_model.py"
    saved = read_checkpoint(path, remedy)
    try:
        return Recommender(saved, device)
    except Exception as error:  # a file that opens but whose parts do not fit together
        raise InputError(f"{path} does not hold a whole model ({type(error).__name__}: {str(error)[:200]}); {remedy}") from None


def ablation_path(best: Path, part: str) -> Path:
    """Where --ablations puts the model that has this part only."""
    return best.with_suffix(f".{part}.pt")


# ------------------------------------------------------------------------------------------------------------- serving
class Recommender:
    """A trained model with all it needs to answer by raw id.

    `config`, `history` (training_history.json's epochs), `fingerprint` and `dataset` say where it came from; `users`
    and `items` are the tables of stage 1. Catalogue scores are those of the state and the last day of training.
    """

    def __init__(self, saved: dict, device: str) -> None:
        self.config, self.history, self.fingerprint, self.dataset = saved["config"], saved["history"], saved["fingerprint"], saved["dataset"]
        self.epoch, self.versions, self.moment, self.device = saved["epoch"], saved["versions"], saved["last_training_timestamp"], device
        self.users, self.items = unpack(saved["users"]), unpack(saved["items"])
        vocabularies = stage1.convert(saved["vocabularies"], Tensor, Tensor.numpy)
        self.features = Features({USER: self.users, ITEM: self.items}, vocabularies, self.config)
        self.model = build_model(self.config, self.features)
        self.model.load_state_dict(saved["state_dict"])
        self.model.to(device).eval()
        self.seen_offsets, self.seen_items = saved["seen"]["offsets"].numpy(), saved["seen"]["items"].numpy()
        self.check_codes()
        self.user_index, self.item_index = pd.Index(self.users["user"]), pd.Index(self.items["item"])
        self.prepare_catalogue()

    def check_codes(self) -> None:
        """Refuse a damaged file whose codes would be looked up in a neighbour's rows, or only fail when they are used."""
        for who, table in self.features.tables.items():
            for name in self.features.vocabularies["categories"][who]:
                if not table[name].between(0, self.features.size(name) - 1).all():
                    raise ValueError(f"{name} codes out of range")
        offsets, items = self.seen_offsets, self.seen_items
        if len(offsets) != len(self.users) + 1 or offsets[0] != 0 or offsets[-1] != len(items) or (np.diff(offsets) < 0).any():
            raise ValueError("seen items do not belong to the users")
        if ((items < 1) | (items >= len(self.items))).any() or "title" not in self.items:
            raise ValueError("items do not fit")
        if not all(bool(weight.isfinite().all()) for weight in self.model.state_dict().values()):
            raise ValueError("weights are not finite")

    @property
    def item_embeddings(self) -> np.ndarray:
        """Embeddings of the items [n_items + 1, embedding_dim] by encoded id, row 0 unknown; empty for a wide-only model."""
        if "item_id" not in self.config["categorical"] or self.config["component"] == "wide":
            return np.empty((len(self.items), 0), np.float32)
        start = int(self.model.deep_offsets[self.config["categorical"].index("item_id")])
        return self.model.embedding.weight[start : start + len(self.items)].detach().cpu().numpy()

    def score_rows(self, frame: pd.DataFrame) -> np.ndarray:
        """Logits float32 [rows] of rows with their own point-in-time features, as in processed_reviews.parquet."""
        return logits(self.model, Rows(self.features, frame.assign(label=0), self.device, "like"))

    def predict(self, users: list[str], items: list[str]) -> np.ndarray:
        """P(like), or the rating, float32 [n] of pairs of raw ids in the state at the end of training; unseen ids are allowed."""
        user_ids, item_ids = encode_ids(self.user_index, users), encode_ids(self.item_index, items)
        if len(user_ids) != len(item_ids):
            raise ValueError(f"users and items must be equally long, not {len(user_ids)} and {len(item_ids)}")
        logit = self.score_rows(self.features.at_moment(user_ids, item_ids, self.moment))
        return np.clip(logit, *self.config["rating_range"]) if self.config["objective"] == "rating" else 1 / (1 + np.exp(-logit))

    @torch.inference_mode()
    def recommend(self, user: str, n: int = 10, keep_seen: bool = False, diversify: float = 0.0) -> pd.DataFrame:
        """The n best items for a raw user id: rank, item, title, score (a logit), and its wide and deep parts.

        Items of the user's history are left out unless `keep_seen`; fewer rows come back where the catalogue ends. With `diversify`
        the best are chosen one by one, and each chosen item lowers the score of all others of its category by that much.
        An unseen user gets what the model would show to anybody: items that are liked by many.
        """
        code = encode_ids(self.user_index, [user])
        seen = self.seen_items[self.seen_offsets[code[0]] : self.seen_offsets[code[0] + 1]]
        barred = torch.tensor([0] if keep_seen else [0, *seen.tolist()], device=self.device)
        wide = self.wide_part(code)[0]
        candidates = 10 * n if diversify else n
        deep = self.deep_part(self.first_of_users(code)[0], wide, barred, candidates)
        found = best(wide + deep, barred, candidates)
        ids = found.indices[found.values > -math.inf]
        if diversify:
            category, score, chosen = self.category[ids], (wide + deep)[ids], []
            while len(chosen) < min(n, len(ids)):
                chosen.append(int(score.argmax()))
                score[category == category[chosen[-1]]] -= diversify
                score[chosen[-1]] = -math.inf
            ids = ids[chosen]
        columns = {name: part[ids].cpu().numpy() for name, part in (("score", wide + deep), ("wide", wide), ("deep", deep))}
        names = {name: self.items[name].iloc[ids.cpu().numpy()].to_numpy() for name in ("item", "title")}
        return pd.DataFrame({"rank": np.arange(1, len(ids) + 1), **names, **columns})

    @torch.inference_mode()
    def score_catalogue(self, user_ids: np.ndarray, top: int = 0) -> np.ndarray:
        """Logits float32 [users, n_items + 1] of every item for encoded users; the unknown item, column 0, is -inf.

        With `top`, only those that can be among a user's `top` best outside its history need be exact, the others may be
        estimates below them: over a large catalogue a fraction of the work.
        """
        user_ids, unknown = np.asarray(user_ids), torch.tensor([0], device=self.device)
        scores, of_users = self.wide_part(user_ids), self.first_of_users(user_ids)
        seen = self.seen_offsets[user_ids + 1] - self.seen_offsets[user_ids]

        @torch.inference_mode()
        def add_deep(row: int) -> None:
            scores[row] += self.deep_part(of_users[row], scores[row], unknown, top and top + int(seen[row]))

        # A user per thread: within operations this small, threads would spend their time waiting for each other.
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(threads if self.device == "cpu" else 1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            [*pool.map(add_deep, range(len(user_ids)))]
        torch.set_num_threads(threads)
        scores[:, 0] = -math.inf
        return scores.cpu().numpy()

    # The catalogue pass. Each feature belongs to the user, the item, the moment, or to a pair (user and item's category).
    # What is the item's and the moment's is done once, here. The first layer of the MLP is linear, so per user one vector
    # per category completes it, for blocks of items whose activations stay in the cache.

    @torch.inference_mode()
    def prepare_catalogue(self) -> None:
        features, owners = self.features, self.features.owners
        user_rows = features.at_moment(np.arange(len(self.users)), np.zeros(len(self.users), int), self.moment)
        item_rows = features.at_moment(np.zeros(len(self.items), int), np.arange(len(self.items)), self.moment)
        self.user_codes, codes = (stage1.field_codes(rows, features.tables, features.vocabularies) for rows in (user_rows, item_rows))
        self.item_wide, self.user_wide = self.model.bias.repeat(len(self.items)), self.model.bias.new_zeros(len(self.users))
        self.values = {}  # of a field of the item in a cross with the user: distinct codes, and which of them each item has
        for name in features.wide if self.config["component"] != "deep" else []:
            if USER not in owners(name):
                self.item_wide += self.wide_weights(name, features.wide_ids(name, codes))
            elif ITEM in owners(name):
                values, which = np.unique(codes[features.vocabularies["crosses"][name]["right"]], return_inverse=True)
                self.values[name] = values, torch.from_numpy(which).to(self.device)
        for at, name in enumerate(features.columns[: len(features.wide_numeric)] if self.config["component"] != "deep" else []):
            of, rows = (self.user_wide, user_rows) if USER in owners(name) else (self.item_wide, item_rows)
            of += self.model.linear[at] * torch.from_numpy(features.encode_numeric([name], rows)[:, 0]).to(self.device)
        self.category = torch.from_numpy(codes["category"]).to(self.device).long()
        self.shortcut = self.later_layers = None
        if self.config["component"] != "wide":
            self.later_layers = self.model.mlp[1:]
            deep = len(features.columns) - len(features.numeric)
            self.user_inputs, item_inputs = ([torch.from_numpy(a).to(self.device) for a in (codes, numeric[:, deep:])]
                                             for _, codes, numeric in map(features.encode, (user_rows, item_rows)))
            self.first_item = self.first_layer(*item_inputs, of_user=False) + self.model.mlp[0].bias
            if len(self.items) > 4 * SHORTLIST:
                self.fit_shortcut()

    def fit_shortcut(self) -> None:
        """A linear layer in place of all after the first activation, by ridge regression on evenly spread users and items.
        Its error is at most 1.5 times the worst one of that sample in every model looked at; twice is taken for certain."""
        activate, size = self.model.mlp[1 : 2 + self.config["batch_norm"]], self.first_item.shape[1]
        users, items = (np.linspace(0, len(table) - 1, n).astype(int) for table, n in ((self.users, 64), (self.items, 512)))
        first = (self.first_item[items] + self.first_of_users(users)[:, self.category[items]]).flatten(0, 1)
        y = self.later_layers(first.clone()).squeeze(1)
        x = F.pad(activate(first), (0, 1), value=1.0)
        gram = x.T @ x
        weight = torch.linalg.solve(gram + 1e-5 * gram.diagonal().mean() * torch.eye(size + 1, device=self.device), x.T @ y)
        self.shortcut_error = 2 * (y - x @ weight).max()
        self.shortcut = lambda first: F.linear(activate(first), weight[None, :-1], weight[-1:])

    def wide_weights(self, name: str, ids: np.ndarray) -> Tensor:
        offset = int(self.model.wide_offsets[self.features.wide.index(name)])
        return self.model.wide.weight[:, 0][torch.from_numpy(ids.astype(np.int64) + offset).to(self.device)]

    def first_layer(self, deep: Tensor, numeric: Tensor, of_user: bool) -> Tensor:
        """The part of the MLP's first layer [n, hidden[0]] that comes from the user's features, or from the item's and moment's."""
        names, owners = (self.features.categorical, self.features.numeric), self.features.owners
        side = [torch.tensor([owners(n) == {USER} if of_user else USER not in owners(n) for n in group], device=self.device) for group in names]
        embeddings = self.model.embedding(deep + self.model.deep_offsets) * side[0][:, None]
        return torch.cat([embeddings.flatten(1), numeric * side[1]], 1) @ self.model.mlp[0].weight.T

    def wide_part(self, user_ids: np.ndarray) -> Tensor:
        """Wide part of the logits, bias included, [users, n_items + 1] on the device. Weights of a cross of user and item are
        looked up once per value of its item's field (a category, a bucket), then spread over the items that have it."""
        wide, codes = self.item_wide + self.user_wide[user_ids, None], {name: values[user_ids] for name, values in self.user_codes.items()}
        for name in self.features.wide if self.config["component"] != "deep" else []:
            if name in self.values:
                (values, which), spec = self.values[name], self.features.vocabularies["crosses"][name]
                wide += self.wide_weights(name, stage1.cross_ids(codes[spec["left"]][:, None], values[None], spec))[:, which]
            elif USER in self.features.owners(name):
                wide += self.wide_weights(name, self.features.wide_ids(name, codes))[:, None]
        return wide

    def deep_part(self, of_user: Tensor, wide: Tensor, barred: Tensor, top: int) -> Tensor:
        """Deep part of a user's logits [n_items + 1], of whose first layer and whose wide part are given.

        With a shortcut, all get its estimates and the SHORTLIST best of them their exact values. That is enough if none of the
        `top` best outside `barred` could come from elsewhere, even at the shortcut's worst error; else all are computed.
        """
        if self.shortcut and top:
            deep = self.after_first_layer(of_user, self.shortcut)
            guess = best(wide + deep, barred, SHORTLIST)
            at = guess.indices
            deep[at] = self.later_layers(self.first_item[at] + of_user[self.category[at]]).squeeze(1)
            if best(wide + deep, barred, top).values[-1] >= guess.values[-1] + self.shortcut_error:
                return deep
        return self.after_first_layer(of_user, self.later_layers) if self.later_layers else torch.zeros_like(wide)

    def after_first_layer(self, of_user: Tensor, layers: Callable[[Tensor], Tensor]) -> Tensor:
        """What `layers` make of the first one's output for every item [n_items + 1], a block of items at a time."""
        size = CATALOGUE_BLOCK if self.device == "cpu" else len(self.items)
        blocks = zip(self.first_item.split(size), self.category.split(size))
        return torch.cat([layers(of_user.index_select(0, category).add_(first)).squeeze(1) for first, category in blocks])

    def first_of_users(self, user_ids: np.ndarray) -> Tensor:
        """The user's part of the first layer [users, categories, hidden[0]]; what the user did in a category differs among them."""
        if not self.later_layers:
            return self.item_wide.new_empty(len(user_ids), 0, 0)
        users, categories = np.broadcast_arrays(self.user_codes["user_id"][user_ids][:, None], np.arange(len(self.features.vocabularies["category"])))
        state = pd.DataFrame(stage1.pair_state(users.ravel(), categories.ravel(), self.features.vocabularies))
        names = {n: name for n, name in enumerate(self.features.numeric) if name in PAIR_STATE}
        values = torch.from_numpy(self.features.encode_numeric(list(names.values()), state)).to(self.device)
        weight = self.model.mlp[0].weight.T[len(self.features.categorical) * self.model.embedding_dim :][list(names)]
        of_users = self.first_layer(*(inputs[user_ids] for inputs in self.user_inputs), of_user=True)
        return of_users[:, None] + (values @ weight).view(*users.shape, -1)


def best(score: Tensor, barred: Tensor, n: int) -> torch.return_types.topk:
    """The n best of the scores, those of `barred` positions being -inf."""
    return torch.topk(score.index_fill_(0, barred, -math.inf), min(n, len(score)))


def encode_ids(index: pd.Index, raw: list[str]) -> np.ndarray:
    """Encoded ids of raw ids, 0 for those never seen."""
    return np.maximum(index.get_indexer(pd.Index([str(r) for r in raw])), 0)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    ds = load_dataset(args.data_dir)
    for split in ("train", "validation"):
        if not ds.index["rows"][split]:
            raise InputError(f"{args.data_dir} has no {split} rows; early stopping needs them: preprocess with a --validation-fraction above 0")
    args.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    Run(args, ds).execute()


if __name__ == "__main__":
    sys.exit(run_script(main))
