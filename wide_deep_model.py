"""Stage 2: encoded rows in, a trained Wide & Deep model out.

    python wide_deep_model.py                                      # processed_data/ -> best_wide_deep_model.pt
    torchrun --nproc-per-node=2 wide_deep_model.py                 # each process on its share of every batch

Reads   processed_data/ as stage 1 wrote it (verified against dataset.json).
Writes  best_wide_deep_model.pt (self-contained), last_wide_deep_model.pt (for --resume), training_history.json; --ablations: <name>.wide.pt, .deep.pt
    logit(u, i, c) = b + sum_f wide[f] + MLP([embeddings of u, i, c | numeric features])     (Cheng et al. 2016, section 3)
    list score(u, i) = sum of interest[u, j] pair[j, i] over what u rated (wide: fit_pairs) + scale n softmax(taste(history of u) . items)[i] (deep: fit_taste)
"""

import ctypes
import io
import json
import math
import os
import resource
import sys
import tempfile
import time
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, partial
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "32000")  # before torch: a core that waits a while sleeps: others may use it, and it is woken near the first
import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix, diags, identity, issparse
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from tqdm import tqdm

import amazon_preprocessing as stage1
from amazon_preprocessing import CONTEXT, ITEM, PAIR_STATE, USER, Dataset, Features, InputError, Parser, fraction, load_dataset, run_script

SIMILAR = ("user_similar_review_count", "user_similar_avg_residual")  # of a user among items similar to the item
NOT_BY_DEFAULT = ("cross_user_item", "period")  # wide: a pair occurs once, so its weight can only memorise noise; deep: the month tells it
ID_DROPOUT, EMBEDDING_STD = 0.05, 0.005  # share of rows whose user (and, apart, item) is hidden, so that row 0 is trained; of first vectors
ADAGRAD_START = ROW_ADAM_EPS = 10.0  # in row gradients: from 0, a weight's first step is the full rate, however small its gradient, and a rare id learns noise
SCORE_BLOCK, USER_BLOCK, STREAM, GATHERED = 4096, 256, 8, 2**15  # at a time: rows scored; users of lists; streamed blocks shuffled together; rows of batches
PENALTIES = [(penalty, per_like) for per_like in (0.3, 3.0) for penalty in (100.0, 300.0, 1000.0)]  # of pairs, and more per like; tried on validation users
GRADES, POWERS = (1.0, 0.0), (0.0, 0.1, 0.2, 0.3)  # tried likewise: of ratings below a like; of popularity, that divide pairs (RP3beta, Paudel et al. 2017)
USER_POWER, RIDGE_ITEMS, NEIGHBOURS = -0.3, 8_000, 100  # a user of n ratings weighs n ** USER_POWER; a larger catalogue gets pairs of similar items only
COSINE_DAMPING, COSINE_UNIT = 30.0, 0.1  # of the squared norms; as similar as this, a rating counts as one
TASTE, SAMPLED, SCALES = (600, 200), 1_000, (1.0, 0.5, 0.25)  # of lists' network: units; items that stand for all others; beside pairs, times the learned scale
HIDDEN_SHARE, FOLDS, TASTE_DECAY = 0.5, 5, 1e-3  # of a history, to be found again; of users, so that pairs are fitted on others; L2 of the network
ROUNDS, ROUND_STEPS, LIST_PATIENCE, CHOICE_USERS = 60, 100, 8, 6_000  # at most; steps of one, at least; rounds without better lists; validation users, at most
CPU = getattr(torch.cpu, "get_capabilities", dict)()  # which instructions it has
BRIEF_BATCH = 4096 if CPU.get("avx512_bf16") or CPU.get("amx_bf16") else math.inf  # from which bfloat16 is worth its conversions
RANK, WORKERS = (int(os.environ[name]) if "RANK" in os.environ else alone for name, alone in (("RANK", 0), ("WORLD_SIZE", 1)))  # of torchrun
Pairs = np.ndarray | csr_matrix  # [items + 1, items + 1] float32, from an item of the history to a candidate
FORMAT, LAST, HISTORY = 8, "last_wide_deep_model.pt", "training_history.json"


def parse_args(argv: list[str] | None = None) -> Namespace:
    add = (parser := Parser(__doc__)).add_argument
    add("--data-dir", type=Path, default=Path("processed_data"), metavar="DIR")
    add("--checkpoint", type=Path, default=Path("best_wide_deep_model.pt"), metavar="FILE")
    add("--objective", choices=("like", "rating", "ranking"), default="like", help="rating: squared error; ranking: like, and a network for lists")
    add("--component", choices=("wide-deep", "wide", "deep"), default="wide-deep", help="which parts to train")
    add("--ablations", action="store_true", help="train wide only and deep only as well, each into a checkpoint of its own")
    add("--wide", nargs="+", metavar="FEATURE", help="features of the linear part; ids and crosses when left out; a name that does not exist lists all")
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
    add("--average", type=fraction, default=0.0, help="keep a running mean of the weights, each step moved to them by 1 - this: a pass over the tables")
    add("--batch-size", type=int, default=0, help="0: the power of two nearest a hundredth of the training rows, within 256..4096")
    add("--epochs", type=int, default=30, help="at most; early stopping usually ends sooner")
    add("--patience", type=int, default=2, help="epochs without a better validation metric before stopping")
    add("--refit", action="store_true", help="train once more on training and validation rows for the chosen number of epochs")
    add("--device", type=choose_device, choices=("auto", "cpu", "cuda"), default="auto")
    add("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: bfloat16 on CUDA and, for batches of 4096, on CPUs that have it")
    add("--resume", action="store_true", help="go on from last_wide_deep_model.pt beside the checkpoint")
    add("--warm-start", metavar="CHECKPOINT", help="begin with what an earlier model learned; it is only replaced by one that validates better")
    add("--accept-worse", action="store_true", help="with --warm-start: write the best epoch even if the earlier model validates better")
    add("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    for name in ("embedding_dim", "hidden", "epochs", "patience", "wide_lr", "deep_lr", "weight_decay", "wide_l1", "batch_size", "seed"):
        least, may_be_0 = np.min(getattr(args, name)), name in ("weight_decay", "wide_l1", "batch_size", "seed")
        if not (0 < least < (math.inf if isinstance(least, float) else 2**63) or (may_be_0 and least == 0)):  # NaN too
            parser.error(f"--{name.replace('_', '-')} must be {'at least' if may_be_0 else 'above'} 0, and not too large")
    start, foreign = args.warm_start and Path(args.warm_start), args.checkpoint.exists() and not zipfile.is_zipfile(args.checkpoint)
    for wrong, message in ((args.wide_l1 and args.wide_optimizer != "ftrl", "--wide-l1 needs --wide-optimizer ftrl"),
                           (start and not zipfile.is_zipfile(start), f"--warm-start {start}: missing, or not a checkpoint"),
                           (start and args.refit and start.resolve() == args.checkpoint.resolve(), "--refit rereads --warm-start: name another --checkpoint"),
                           (foreign or args.checkpoint.name in (LAST, HISTORY), f"--checkpoint {args.checkpoint}: not a file to replace; name another")):
        if wrong:
            parser.error(message)
    tune_cpu()
    return args


def tune_cpu() -> None:
    """Keep freed memory for the next step, as the system clears every page that it hands out. Let oneDNN multiply float32, on AMD twice as fast as MKL."""
    for parameter, value in ((-3, 1 << 25), (-1, 1 << 30)):  # of glibc: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        getattr(ctypes.CDLL(None), "mallopt", max)(parameter, value)
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if CPU.get("avx512_f") and not CPU.get("amx_bf16") else "ieee"  # rounds with AMX alone


def choose_device(name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this torch sees no GPU; use --device cpu or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


# ---------------------------------------------------------------------------------------------------------------- model
class WideDeep(nn.Module):
    """Wide & Deep of Cheng et al. 2016: one logit, the sum of a linear model over crosses and an MLP over embeddings. Both tables hold the codes
    of all their fields one after the other (`offsets`): a batch is one lookup and one sparse gradient, whose cost does not depend on the users."""
    def __init__(self, features: Features, config: dict) -> None:
        super().__init__()
        self.component, self.wide_numeric, self.numeric = config["component"], len(features.wide_numeric), len(features.numeric)
        wide_sizes, deep_sizes = ([features.size(name) for name in names] for names in (features.wide, features.categorical))
        self.wide_offsets, self.deep_offsets = (nn.Buffer(torch.tensor([0, *s[:-1]]).cumsum(0), persistent=False) for s in (wide_sizes, deep_sizes))
        self.bias = nn.Parameter(torch.zeros(1))
        if self.component != "deep":
            self.wide, self.linear = nn.Embedding(sum(wide_sizes), 1, sparse=True), nn.Parameter(torch.zeros(self.wide_numeric, 1), self.wide_numeric > 0)
            nn.init.zeros_(self.wide.weight)  # summing the active weights *is* the linear layer
        if self.component != "wide":
            self.embedding = nn.Embedding(sum(deep_sizes), config["embedding_dim"], sparse=True)
            nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
            widths, layers = [len(deep_sizes) * config["embedding_dim"] + self.numeric, *config["hidden"]], []
            activation = {"relu": nn.ReLU(inplace=True), "gelu": nn.GELU(), "silu": nn.SiLU(inplace=True)}[config["activation"]]
            for inputs, outputs in zip(widths, config["hidden"]):
                layers += [nn.Linear(inputs, outputs), *([nn.BatchNorm1d(outputs)] if config["batch_norm"] else []), activation, nn.Dropout(config["dropout"])]
            self.mlp = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, wide: Tensor, deep: Tensor, numeric: Tensor) -> Tensor:
        """ids [n, W], [n, C] and values [n, N] (first columns: of the wide part, last: of the deep) -> logit [n]."""
        logit = self.bias.expand(len(deep))
        if self.component != "deep":
            logit = logit + self.wide.weight.squeeze(1).gather(0, (wide + self.wide_offsets).flatten(), sparse_grad=self.wide.sparse).view(wide.shape).sum(1)
            if self.wide_numeric:
                logit = logit + (numeric[:, : self.wide_numeric] @ self.linear).squeeze(1)
        if self.component != "wide":
            kind = torch.get_autocast_dtype(deep.device.type) if torch.is_autocast_enabled(deep.device.type) else torch.float32
            embeddings, numeric = self.embedding(deep + self.deep_offsets).flatten(1), numeric[:, numeric.shape[1] - self.numeric :]  # [n, C D], [n, N]
            logit = logit + self.mlp(torch.cat([embeddings.to(kind), numeric.to(kind)], 1)).squeeze(1)  # cast before, not after: half the bytes copied
        return logit


class RowOptimizer:
    """Adam, with a "start" Adagrad, with l1 FTRL: of a table's rows that have a gradient, or of all parameters as one row. torch's own load a compiler (70 MB).
    In `rows` weights, of which the parameters become views, lie beside a sum of squares, that and a shift (FTRL), or means of square and gradient."""
    def __init__(self, parameters: Iterable, lr: float, table=False, weight_decay: float = 0.0, eps: float = 1e-8, start: float = 0.0, l1: float = 0.0) -> None:
        self.parameters, self.lr, self.table, self.decay, self.eps, self.start, self.l1, self.steps = [*parameters], lr, table, weight_decay, eps, start, l1, 0
        old, self.parts = self.parameters[0].data if table else nn.utils.parameters_to_vector(self.parameters).data[None], 2 if start and not l1 else 3
        self.rows = old.new_full((len(old), self.parts * old.shape[1]), start)
        weights = self.rows.chunk(self.parts, 1)[0].copy_(old)
        if l1:  # weights that are not 0 begin with the sum of gradients that would have led to them
            self.rows.chunk(self.parts, 1)[2].copy_(old).mul_(-(start**0.5) / lr).sub_(old.sign(), alpha=l1)
        for parameter, part in zip(self.parameters, [weights] if table else weights[0].split([p.numel() for p in self.parameters])):
            parameter.data = part.view(parameter.shape)
        self.places = torch.empty(len(old), dtype=torch.int32, device=old.device)  # to work in
        widest = next(kind for kind in (torch.complex128, torch.float64, torch.float32) if 4 * self.rows.stride(0) % kind.itemsize == 0)
        self.words = self.rows.view(widest).squeeze(1)  # the same memory: few large numbers are read and written sooner than many small ones

    def step(self, beta1: float = 0.9, beta2: float = 0.999) -> None:
        self.steps += 1
        rows, gradient = self.rows, self.parameters[0].grad if self.table else torch.cat([p.grad.flatten() for p in self.parameters])
        if self.table:
            ids, gradient = gradient._indices()[0], gradient._values().view(-1, rows.shape[1] // self.parts)
            order = torch.arange(len(ids), dtype=torch.int32, device=rows.device)
            place = self.places.scatter_(0, ids, order).gather(0, ids)  # one of an id's places, where its gradients are summed: sooner than sorting
            if rows.is_cuda:  # in a fixed order, and for every place of an id: no shape depends on the data, so that the CPU never waits
                gradient = torch.zeros_like(gradient).index_put_((place.long(),), gradient, accumulate=True)[place.long()]
            else:  # in numpy, which finds sooner than nonzero
                once, again = (torch.from_numpy(np.flatnonzero(found)) for found in (place.numpy() == order.numpy(), place.numpy() != order.numpy()))
                added = gradient.index_add(0, place.index_select(0, again).long(), gradient.index_select(0, again))
                ids, gradient = ids.index_select(0, once), added.index_select(0, once)
            rows = self.words.index_select(0, ids).view(rows.dtype).view(-1, rows.shape[1])
        weights, squares, *other = rows.chunk(self.parts, 1)
        gradient = gradient.add(weights, alpha=self.decay) if self.decay else gradient
        if self.l1:  # FTRL-Proximal, McMahan et al. 2013, algorithm 1; squares start at its beta squared
            before, after = squares.sqrt(), squares.addcmul_(gradient, gradient).sqrt()
            shift = other[0].add_(gradient).sub_((after - before) * weights / self.lr)
            weights.copy_(F.softshrink(shift, self.l1).mul_(-self.lr).div_(after))
        elif self.start:  # Duchi et al. 2011
            weights.addcdiv_(gradient, squares.addcmul_(gradient, gradient).sqrt(), value=-self.lr)
        else:  # Kingma and Ba 2015; a row's moments stand still while it has no gradient. eps is added before the bias correction
            mean, square = other[0].lerp_(gradient, 1 - beta1), squares.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            root = square.clone(memory_format=torch.contiguous_format).sqrt_().add_(self.eps)  # sooner than of numbers that lie apart
            weights.addcdiv_(mean, root, value=-self.lr * math.sqrt(1 - beta2**self.steps) / (1 - beta1**self.steps))
        if self.table:
            self.words.index_copy_(0, ids, rows.view(self.words.dtype).view(len(ids), *self.words.shape[1:]))


def make_optimizers(model: WideDeep, args: Namespace) -> list[RowOptimizer]:
    """Adagrad or FTRL for the wide weights, Adam for the deep part; L1 does not shrink the bias."""
    start, of_rows = ADAGRAD_START / args.batch_size**2, {"eps": ROW_ADAM_EPS / args.batch_size}
    rules = {"adam": {}, "adagrad": {"start": start, "l1": 0.0}, "ftrl": {"start": start, "l1": args.wide_l1 / args.batch_size}}
    wide, deep = (rules[vars(args)[f"{part}_optimizer"]] | {"lr": vars(args)[f"{part}_lr"], "weight_decay": args.weight_decay} for part in ("wide", "deep"))
    parts = [([model.bias, *(model.mlp.parameters() if model.component != "wide" else [])], wide | {"l1": 0.0} if model.component == "wide" else deep)]
    parts += [([model.wide.weight], wide | of_rows | {"table": True})] if model.component != "deep" else []
    parts += [([model.linear], wide | of_rows)] if model.component != "deep" and model.wide_numeric else []
    parts += [([model.embedding.weight], deep | of_rows | {"table": True})] if model.component != "wide" else []
    return [RowOptimizer(parameters, **rule) for parameters, rule in parts]


# ------------------------------------------------------------------------------------------------------------- training
class Rows(torch.utils.data.TensorDataset):
    """Encoded rows as contiguous tensors on the device: wide, deep, numeric, target (the label, or the rating)."""
    def shuffled(self, size: int, rank: int, workers: int) -> Iterator[tuple[int, list[Tensor]]]:
        """Batches of `size` rows in random order: (rows of the batch, the part of one worker). What workers cannot share equally is left out."""
        for rows in torch.randperm(len(self), dtype=torch.int32).to(self.tensors[0].device).split(max(GATHERED // size, 1) * size):
            batches = rows.split(size)
            own = torch.cat([batch[: len(batch) // workers * workers][rank::workers] for batch in batches])
            yield from zip(map(len, batches), zip(*(tensor.index_select(0, own).split(size // workers) for tensor in self.tensors)))


class Inputs(Features):
    """The features of stage 1, and of the cross history item x candidate (Cheng et al. 2016, section 2) SIMILAR: how a user's ratings of similar items deviated
    from what was expected (item-kNN: Koren 2010). A known row's own rating is not in its history nor its user's average, nor its user in its similarities."""
    similarities: Sequence[csr_matrix] = ()  # [items + 1, items + 1] of all users; to train, also of all but each fold; none where SIMILAR is not named

    def similar(self, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        """SIMILAR of rows with user_id and item_id: how many similar items the user rated, by similarity, and their mean deviation, or 0."""
        users, items, found = rows["user_id"].to_numpy(), rows["item_id"].to_numpy(), np.zeros((4, len(rows)))
        own = self.residual[users, items].A1 if len(self.similarities) > 1 and len(rows) else np.zeros(len(rows))
        for (f, _), part in rows.groupby([np.where(own != 0, 1 + users % FOLDS, 0), np.arange(len(rows)) // SCORE_BLOCK]).indices.items():
            history, weights = self.residual[users[part]], self.similarities[f][items[part]]
            found[:, part] = [values.sum(axis=1).A1 for values in (history != 0, history, weights.multiply(history != 0), weights.multiply(history))]
        count, total, similar_count, similar_total = found
        of_user = (total - own) / (count - (own != 0) + stage1.DAMPING)
        return dict(zip(SIMILAR, (similar_count, similar_total / np.maximum(similar_count, 1e-9) - of_user * (similar_count > 0))))


def fit_inputs(ds: Dataset, known: pd.DataFrame, config: dict) -> Inputs:
    """The features that a configuration names, SIMILAR fitted on the known rows."""
    inputs = Inputs(ds.tables, ds.vocabularies | {"numeric": dict(ds.vocabularies["numeric"])}, config)
    if {*SIMILAR} & {*inputs.columns}:
        of_item, ids = stage1.damped(ds.items["item_avg_residual"].to_numpy(), ds.items["train_count"].to_numpy(), 0.0), known["user_id"].to_numpy()
        residual = known["rating"].to_numpy() - known["rating"].mean() - of_item[known["item_id"]]
        of_user = np.bincount(ids, residual) / (np.bincount(ids) + stage1.DAMPING)
        inputs.residual, deviation = (interactions(known, (len(ds.users), len(ds.items)), values) for values in (residual, residual - of_user[ids]))
        inputs.similarities = [similar_items(deviation), *(similar_items(deviation[np.arange(len(ds.users)) % FOLDS != f]) for f in range(FOLDS))]
        columns = pd.DataFrame(inputs.similar(known.iloc[:: len(known) // 200_000 + 1]))
        inputs.vocabularies["numeric"] |= {n: stage1.fit_numeric(n, columns, {}, {"residual": 0.0}) for n in SIMILAR}
    return inputs


def similar_items(deviation: csr_matrix) -> csr_matrix:
    """Cosines of the users' deviations from items, of each item the NEIGHBOURS highest above 0, in COSINE_UNIT; damped: few common users count little."""
    scaled = deviation @ diags(1 / np.sqrt(deviation.power(2).sum(axis=0).A1 + COSINE_DAMPING), dtype=np.float32)
    cosine = csr_matrix(scaled.T @ scaled / COSINE_UNIT, dtype=np.float32)
    for row in (r for r in np.split(cosine.data, cosine.indptr[1:-1]) if len(r) > NEIGHBOURS):  # views: what is set to 0 in them is left out below
        row[np.argpartition(-row, NEIGHBOURS)[NEIGHBOURS + 1 :]] = 0  # beside the item itself, which the difference leaves out
    return (cosine - diags(cosine.diagonal())).maximum(0)


def encode_rows(features: Inputs, rows: pd.DataFrame, device: str, objective: str) -> Rows:
    encoded = features.encode(rows.assign(**features.similar(rows)) if features.similarities else rows)  # copied below: pandas may lend it read-only
    return Rows(*(torch.tensor(part, device=device) for part in (*encoded, rows["rating" if objective == "rating" else "label"].to_numpy(np.float32))))


class StreamedRows:
    """Rows that do not fit into memory: a worker's equal share, encoded once, a block a nameless file in `folder`; shuffled STREAM random blocks at a time."""
    def __init__(self, blocks: list[Callable[[], pd.DataFrame]], encode: Callable[[pd.DataFrame], Rows], folder: Path, device: str) -> None:
        print(f"the training rows do not fit into memory: they are encoded into files in {folder}", flush=True)
        self.files, self.device = [tempfile.TemporaryFile(dir=folder) for _ in blocks], device  # noqa: SIM115 (open until the end)
        for file, block in tqdm(zip(self.files, blocks), desc="encoding", unit=" blocks", total=len(blocks), disable=RANK > 0 or None, leave=False):
            share = len(rows := block()) // WORKERS
            np.savez(file, *(part.cpu().numpy() for part in encode(rows[RANK * share :][:share]).tensors))

    def shuffled(self, size: int, rank: int, workers: int) -> Iterator[tuple[int, list[Tensor]]]:
        for chosen in torch.randperm(len(self.files)).split(STREAM):
            blocks = zip(*(np.load(self.files[n].seek(0) or self.files[n]).values() for n in chosen))
            own = Rows(*(torch.from_numpy(np.concatenate(part)).to(self.device) for part in blocks)).shuffled(size // workers, 0, 1)
            yield from ((rows * workers, part) for rows, part in own)


class Training:
    """One model on its way: all that --resume must restore. Its bias starts at the targets' mean; else the weights of ids would learn it."""
    def __init__(self, args: Namespace, config: dict, features: Features, mean: float) -> None:
        torch.manual_seed(args.seed)  # the only source of randomness: initial weights, shuffles, dropout
        self.args, self.model = args, WideDeep(features, config).to(args.device)
        nn.init.constant_(self.model.bias, mean if args.objective == "rating" else torch.tensor(mean).logit(eps=1e-3).item())
        self.mean = args.average and torch.optim.swa_utils.AveragedModel(self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(args.average))
        self.kept, self.optimizers = self.mean.module if self.mean else self.model, make_optimizers(self.model, args)  # kept: validated and saved
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, ["wide.weight", "embedding.weight"])
        self.forward = self.model if WORKERS == 1 else nn.parallel.DistributedDataParallel(self.model, gradient_as_bucket_view=True)  # not in place
        self.parts, self.start = nn.ModuleList([self.model, *([self.mean] if self.mean else [])]), {}  # how the model of a warm start validates
        crosses, hidden = features.vocabularies["crosses"], ((), ("user_id",), ("item_id",), ("user_id", "item_id"))
        made_of = [[(crosses[n]["left"], crosses[n]["right"]) if n in crosses else (n,) for n in of] for of in (features.wide, features.categorical)]
        self.stay = [torch.tensor([[{*ids}.isdisjoint(made) for made in of] for ids in hidden]).int().to(args.device) for of in made_of]  # [hidden, fields]

    def state_dict(self) -> dict:
        state = {"rng": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state()] if self.args.device == "cuda" else [], "start": self.start}
        return state | {"parts": self.parts.state_dict(), "optimizers": [(o.steps, o.rows) for o in self.optimizers]}

    def load_state_dict(self, state: dict) -> None:
        self.parts.load_state_dict(state["parts"])
        for optimizer, (steps, rows) in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.steps, optimizer.rows[:] = steps, rows
        for restore, rng in zip((torch.set_rng_state, torch.cuda.set_rng_state), [state["rng"], *state["cuda"]]):
            restore(rng)
        self.start = state["start"]

    def hide_ids(self, wide: Tensor, deep: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Make the user, and independently the item, of some rows unknown in every feature that contains it: of this worker's rows of a batch of that size."""
        user, item = torch.rand(2, size, device=deep.device)[:, RANK::WORKERS][:, : len(deep)] < ID_DROPOUT
        return tuple(ids * stay.index_select(0, hidden) for hidden in [user + 2 * item] for ids, stay in zip((wide, deep), self.stay))

    def run_epoch(self, rows: Rows, bar: tqdm) -> float:
        """One pass over the rows in a new order; the mean loss of those that this worker had."""
        self.model.train()
        total, trained = torch.zeros((), device=self.args.device), 0
        batches = (b for b in rows.shuffled(self.args.batch_size, RANK, WORKERS) if len(b[1][-1]) > self.args.batch_norm)  # a left-over row has no variance
        for step, (size, (wide, deep, numeric, target)) in enumerate(batches, 1):
            with torch.autocast(self.args.device, torch.bfloat16, enabled=self.args.precision == "bfloat16"):
                logit = self.forward(*self.hide_ids(wide, deep, size), numeric)
            loss = (F.mse_loss if self.args.objective == "rating" else F.binary_cross_entropy_with_logits)(logit.float(), target)
            loss.backward()
            for table in [o.parameters[0] for o in self.optimizers if WORKERS > 1 and o.table]:  # their mean: backends do not reduce sparse tensors well
                ids, values = ([torch.empty_like(part) for _ in range(WORKERS)] for part in (table.grad._indices(), table.grad._values()))
                distributed.all_gather(ids, table.grad._indices())
                distributed.all_gather(values, table.grad._values() / WORKERS)
                table.grad = torch.sparse_coo_tensor(torch.cat(ids, 1), torch.cat(values), table.shape, check_invariants=False)
            for optimizer in self.optimizers:
                optimizer.step()
            self.model.zero_grad()
            if self.mean:
                self.mean.update_parameters(self.model)
            total, trained = total.add_(loss.detach(), alpha=len(target)), trained + len(target)
            bar.update(size)
            if step % 100 == 0:  # rarely: reading the loss makes the CPU wait for the GPU
                bar.set_postfix(loss=f"{float(total) / trained:.4f}")
        for buffer in self.kept.buffers() if WORKERS > 1 else ():  # running means of batch norm are those of a worker's own rows
            distributed.broadcast(buffer, 0)
        return float(total) / trained


@torch.inference_mode()
def logits(model: WideDeep, rows: Rows) -> np.ndarray:
    model.eval()
    found = torch.empty(len(rows))  # at once: a block's small result would lie among its large buffers, and the next would find no room where they were
    for part, *inputs, _ in zip(*(tensor.split(SCORE_BLOCK) for tensor in (found, *rows.tensors))):
        part.copy_(model(*inputs))
    return found.numpy()


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """P(a like scores above a dislike), ties half (Mann-Whitney U); NaN scores come last, NaN where a class is missing."""
    ranks, n = pd.Series(score).rank(na_option="top").to_numpy(), np.count_nonzero(label == 1)
    return float((ranks[label == 1].sum() / n - (n + 1) / 2) / (len(label) - n)) if 0 < n < len(label) else math.nan


def validate(model: WideDeep, rows: Rows, config: dict) -> dict[str, float]:
    """like: log loss and AUC (absent where the rows have one class only). rating: mean squared error of clipped ratings, its root."""
    target, logit = rows.tensors[-1].cpu().numpy(), logits(model, rows).astype(np.float64)
    if config["objective"] == "rating":
        error = float(np.mean((np.clip(logit, *config["rating_range"]) - target) ** 2)) if np.isfinite(logit).all() else math.nan  # clipped, infinity hides
        return {"validation_loss": error, "validation_rmse": math.sqrt(error)}
    loss = float(np.mean(np.logaddexp(0, logit) - target * logit))
    return {"validation_loss": loss} | ({} if math.isnan(area := auc(target, logit)) else {"validation_auc": area})


def warm_start(model: WideDeep, features: Features, config: dict, rows: pd.DataFrame, held: pd.DataFrame) -> None:
    """Begin with all weights of an earlier model (Cheng et al. 2016, section 3.3), of crosses those in rows; what is new begins as its unknown id or cross."""
    path, old = config["warm_start"], load_model(config["warm_start"], "cpu")
    same = ("objective", "component", "wide", "categorical", "wide_numeric", "numeric", "embedding_dim", "hidden", "activation", "batch_norm")
    for name in (name for name in same if old.config[name] != config[name]):
        raise InputError(f"--warm-start {path}: {name} of that model is {old.config[name]}, not {config[name]}; train with the same, or anew")
    user, item = (ids[held[f"{who}_id"]] for who, ids in zip((USER, ITEM), old.encode(features.tables[USER][USER], features.tables[ITEM][ITEM])))
    if found := np.count_nonzero(old.likes[user, item].A1 * item):  # item 0 is everybody's
        raise InputError(f"--warm-start {path}: {found:,} rows that are held out here were training rows of that model; use one that has not seen them")
    codes = stage1.field_codes(rows, features.tables, features.vocabularies)
    known = {name: pd.Series(range(old.features.size(name)), old.features.values(name)).groupby(level=0, sort=False).first() for name in codes}
    position = {name: old_code.reindex(features.values(name), fill_value=0).to_numpy(copy=True) for name, old_code in known.items()}
    old_codes, state = {name: position[name][values] for name, values in codes.items()}, old.model.state_dict()
    parts = {"wide.weight": features.wide, "embedding.weight": features.categorical}
    for part in parts.keys() & state.keys():
        fields, old_fields = (m.state_dict()[part].cpu().split([*map(of.size, parts[part])]) for m, of in ((model, features), (old.model, old.features)))
        for name, field, old_field in zip(parts[part], fields, old_fields):  # of a cross, the values are those of rows
            new, before = (slice(None), position[name]) if name in codes else (features.wide_ids(name, codes), old.features.wide_ids(name, old_codes))
            field[new] = old_field[before]
        state[part] = torch.cat(fields)
    model.load_state_dict(state)


# ---------------------------------------------------------------------------------------------------------------- lists
def interactions(rows: pd.DataFrame, shape: tuple[int, int], values: np.ndarray | float = 1.0) -> csr_matrix:
    """[users + 1, items + 1] float32, the value where there is a row (a pair has one row at most)."""
    return csr_matrix((np.broadcast_to(np.float32(values), len(rows)), (rows["user_id"].to_numpy(), rows["item_id"].to_numpy())), shape=shape)


def histories(rows: pd.DataFrame, grade: float, shape: tuple[int, int], index: dict, constant: float = 1.0) -> csr_matrix:
    """What ratings say of a user's interest in an item, [users + 1, items + 1] in [0, 1]: a like 1, others (way from lowest of training to a like) ** grade,
    0.01 ** grade at least, so that all that is rated is there (of grade inf likes alone). Item 0, the unknown, is a constant for everybody."""
    lowest, like = index["rating_range"][0], index["positive_threshold"]
    interest = np.where(rows["label"] == 1, 1.0, ((rows["rating"] - lowest) / max(like - lowest, 1e-9)).clip(0.01, 1)) ** grade
    return interactions(rows, shape, interest) + csr_matrix((np.full(shape[0], np.float32(constant)), np.zeros(shape[0], int), range(shape[0] + 1)), shape)


def fit_pairs(history: csr_matrix, penalty: float, per_like: float, power: float = 0.0) -> Pairs:
    """Weights [from item, to item] of the cross history item x candidate (Cheng et al. 2016, section 2): ridge regression of every item on the others (EASE,
    Steck 2019), or of over RIDGE_ITEMS on the most similar, held back by likes (EDLAE, Steck 2020), long histories counting less; divided by
    (likes / mean likes) ** power, likes being a sum of interests. From an item to itself it is -1 before that."""
    rated, likes = np.diff(history.indptr) - 1, history.sum(axis=0).A1
    weight = np.maximum(rated, 1.0) ** USER_POWER * (rated > 0)
    gram = csr_matrix(history.T @ history.multiply(weight[:, None] * np.count_nonzero(rated) / (weight.sum() or 1)), dtype=np.float32)
    held_back, divisor = gram.diagonal() * per_like + penalty, (likes.clip(1) * len(likes) / likes.sum()) ** power
    if len(held_back) <= RIDGE_ITEMS:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(torch.from_numpy(gram.toarray() + np.diag(held_back).astype(np.float32))))
        return (-inverse / inverse.diagonal() / torch.from_numpy(divisor)).contiguous().numpy()  # by rows, as the product with histories reads it
    norm, weights = np.sqrt(np.maximum(gram.diagonal(), 1)), np.zeros_like(gram.data)  # weights: at the places of gram, to an item in its row
    rows = zip(*(np.split(part, gram.indptr[1:-1]) for part in (gram.indices, gram.data, weights)))  # views
    for item, (others, products, found) in enumerate(tqdm(rows, desc="pairs of items", total=len(norm), disable=None, leave=False)):
        nearest = np.argsort(np.where(others == item, np.inf, -products / norm[others]), kind="stable")[: min(NEIGHBOURS, len(others) - 1)]
        among = gram[others[nearest]][:, others[nearest]].toarray() + np.diag(held_back[others[nearest]])
        found[nearest] = np.linalg.solve(among, products[nearest])
    return csr_matrix((csr_matrix((weights, gram.indices, gram.indptr), gram.shape).T - identity(len(norm), np.float32)) @ diags(1 / divisor))


class Taste(nn.Module):
    """The deep part of a list's score: an MLP over the pooled embeddings of a history gives a taste, whose product with the items' vectors is
    the logit of what is liked next. Like the sum of undivided pairs, it is an expected interest: probability x sum of the history x scale."""
    def __init__(self, popularity: np.ndarray) -> None:
        super().__init__()
        self.liked, self.item = (nn.Embedding(len(popularity), units, sparse=True) for units in (TASTE[0], TASTE[1] + 1))  # the last is a bias
        self.hidden, self.scale = nn.Linear(*TASTE), nn.Parameter(torch.tensor(0.3))
        nn.init.normal_(self.liked.weight, std=0.5 * len(popularity) ** -0.5)
        nn.init.normal_(self.item.weight, std=0.01).data[:, -1] = torch.from_numpy(popularity).log1p()

    def logits(self, history: csr_matrix, items: np.ndarray | None = None) -> Tensor:
        """Histories [n, all items], each with the constant of column 0, and ids [m] -> [n, m]; without ids of all items but the unknown one."""
        rated, tensor, found = np.diff(history.indptr), partial(torch.as_tensor, device=self.scale.device), np.unique(history.indices, return_inverse=True)
        known, ids, offsets, weights = map(tensor, (*found, history.indptr[:-1], history.data * np.repeat(rated**-0.5, rated).astype(np.float32)))
        pooled = F.embedding_bag(ids, self.liked(known), offsets, mode="sum", per_sample_weights=weights)  # a table in RowOptimizer it would copy whole
        vectors = self.item.weight[1:] if items is None else self.item(tensor(items))
        return F.linear(self.hidden(pooled.tanh()).tanh(), vectors[:, :-1], vectors[:, -1])

    def forward(self, history: csr_matrix) -> Tensor:
        """Histories -> scores [n, all items]; the unknown item, column 0, has 0."""
        return F.pad(self.scale * self.scale.new_tensor(history.sum(axis=1)) * self.logits(history).softmax(1), (1, 0))


def list_loss(taste: Taste, history: csr_matrix, visible: csr_matrix, pairs: Pairs, weight: np.ndarray, sample: np.ndarray) -> Tensor:
    """Given the visible parts of histories: the network's log loss for what was liked (softmax over the catalogue: Mult-DAE, Liang et al. 2018), plus
    the squared error of its sum with the pairs for what is not visible (liked 1, less liked less, else 0). A sample of the items stands for those not liked."""
    items = np.union1d(sample, history.indices)[1:]  # without the constant
    target, others = history[:, items].toarray(), np.isin(items, sample) * ((history.shape[1] - 1) / len(sample))
    logits, likes = taste.logits(visible, items), target.sum(axis=1, keepdims=True) + 1
    wide = visible @ pairs[:, items] if issparse(pairs) else (visible @ pairs)[:, items]  # columns of a csc_matrix: a twentieth of the whole product
    parts = likes, target, np.where(target > 0, 1, others), visible[:, items].toarray() == 0, wide.toarray() if issparse(wide) else wide, weight[:, None]
    likes, target, stands_for, hidden, wide, weights = (torch.from_numpy(part.astype(np.float32)).to(logits.device) for part in parts)
    log_chance = logits - (logits + stands_for.log()).logsumexp(1, keepdim=True)
    return (weights * (stands_for * hidden * (wide + taste.scale * likes * log_chance.exp() - target) ** 2 - target * log_chance)).sum()


def fit_taste(history: csr_matrix, pairs: Pairs, knobs: tuple | None, held: csr_matrix, chosen: tuple | None, args: Namespace) -> tuple[Taste, tuple]:
    """Train the deep part of lists to find what is hidden of histories, with pairs (knobs None: alone) that other folds of users fitted: they do not know it.
    Returns it and (rounds, scale): `chosen`, or the best for validation users (0: none), scaled as a whole history sums more pairs than a part."""
    torch.manual_seed(args.seed)
    rng, rated, fold, items = np.random.default_rng(args.seed), np.diff(history.indptr) - 1, np.arange(history.shape[0]) % FOLDS, history.shape[1]
    others = [p.tocsc() if issparse(p) else p for p in (fit_pairs(history[fold != f], *knobs[:2]) if knobs else pairs for f in range(FOLDS))]  # undivided
    users, weight = np.flatnonzero(rated), np.maximum(rated, 1) ** USER_POWER
    size = 2 ** int(np.clip(round(math.log2(len(users) / 50)), 5, 7))  # users of a step
    taste, passes = Taste(history.sum(axis=0).A1).to(args.device), math.ceil(ROUND_STEPS * size / max(len(users), size * FOLDS))  # a pass has a step a fold
    mean = torch.optim.swa_utils.AveragedModel(taste, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.96))  # updated every tenth step: 0.996 a step
    parts = ([taste.liked.weight], True), ([taste.item.weight], True), ([*taste.hidden.parameters(), taste.scale], False)
    optimizers = [RowOptimizer(parameters, 1e-3, table, TASTE_DECAY) for parameters, table in parts]
    rounds, best_taste, setting, best_quality = [0.0], mean.module, chosen or (0, 0.0), list_quality(history, pairs, held)[0]  # of lists without it
    while len(rounds) <= (chosen[0] if chosen else min(ROUNDS, int(np.argmax(rounds)) + LIST_PATIENCE)):
        number, begin = len(rounds), time.perf_counter()
        orders = [(f, rng.permutation(users[fold[users] == f])) for f in range(FOLDS) for _ in range(passes)]
        batches = [(f, part) for f, order in orders if len(order) for part in np.array_split(order, math.ceil(len(order) / size))]
        rng.shuffle(batches)
        for step, (f, part) in enumerate(tqdm(batches, desc=f"lists, round {number}", disable=None, leave=False)):
            visible, sample = history[part], 1 + rng.choice(items - 1, items - 1 if items <= RIDGE_ITEMS else SAMPLED, replace=False)
            visible.data[(rng.random(visible.nnz) < HIDDEN_SHARE) & (visible.indices > 0)] = 0
            visible.eliminate_zeros()
            list_loss(taste, history[part], visible, others[f], weight[part] / weight[users].mean() / len(part), sample).backward()
            for optimizer in optimizers:
                optimizer.step()
            taste.zero_grad()
            if step % 10 == 0:
                mean.update_parameters(taste)
        speed = f"{rated[users].sum() * passes / (time.perf_counter() - begin):,.0f} ratings/s"
        quality = list_quality(history, pairs, held, mean.module, SCALES)
        print(f"lists, round {number}: {speed}" + ("" if chosen else f", validation NDCG@10 {quality.max():.4f}"), flush=True)
        rounds.append(quality.max())  # patience looks at these alone: in some logs it takes many rounds until lists are better than without it
        if quality.max() > best_quality:
            best_quality, best_taste, setting = quality.max(), deepcopy(mean.module), (number, SCALES[quality.argmax()])
    best_taste.scale.data *= setting[1]
    return best_taste, setting


@torch.inference_mode()
def list_parts(history: csr_matrix, pairs: Pairs, taste: Taste | None) -> tuple[np.ndarray, np.ndarray]:
    """Wide and deep part of the scores, float32 [histories, items + 1]; the unknown item, column 0, is -inf."""
    wide = (history @ pairs).toarray() if issparse(pairs) else history @ pairs
    wide[:, 0] = -math.inf
    return wide, taste(history).cpu().numpy() if taste else np.zeros_like(wide)


def list_quality(history: csr_matrix, pairs: Pairs, held: csr_matrix, taste: Taste | None = None, scales=(1.0,), powers=(0.0,)) -> np.ndarray:
    """Mean NDCG@10 [scales of the network x powers] of the validation users' likes among all items outside their history."""
    users, gains, by_rank = np.flatnonzero(np.diff(held.indptr) > 1), [], 1 / np.log2(np.arange(2, 12))
    users, popularity = users[:: len(users) // CHOICE_USERS + 1], torch.from_numpy(history.sum(axis=0).A1).clamp(min=1)
    for part in np.split(users, range(USER_BLOCK, len(users), USER_BLOCK)):
        wide, deep = (torch.from_numpy(scores) for scores in list_parts(history[part], pairs, taste))
        wide[history[part].nonzero()] = -math.inf
        lists = [(wide.add(deep, alpha=scale) / popularity**power).topk(min(10, wide.shape[1])) for scale in scales for power in powers]
        relevant, likes = torch.from_numpy(held[part].toarray()), np.diff(held.indptr)[part] - 1
        hits = np.stack([relevant.gather(1, items) * (score > -math.inf) for score, items in lists])
        gains.append(hits @ by_rank[: hits.shape[2]] / by_rank.cumsum()[np.minimum(likes, 10) - 1])
    return np.concatenate(gains, axis=1).mean(axis=1) if len(users) else np.zeros(len(scales) * len(powers))


class Run:
    """The phases of one command: the model; with --refit once more on all its rows; with --ablations its parts alone."""
    def __init__(self, args: Namespace, ds: Dataset) -> None:
        self.args, self.ds, self.last = args, ds, args.checkpoint.parent / LAST
        args.batch_size = min(args.batch_size or 2 ** int(np.clip(round(math.log2(ds.index["rows"]["train"] / 100)), 8, 12)), ds.index["rows"]["train"])
        if args.batch_size < WORKERS * (1 + args.batch_norm):
            raise InputError(f"--batch-size {args.batch_size} is too small for {WORKERS} processes, or with --batch-norm for one, or training rows are too few")
        args.precision = args.precision.replace("auto", "bfloat16" if args.device == "cuda" or args.batch_size >= BRIEF_BATCH else "float32")
        self.config = {name: value for name, value in vars(args).items() if name not in ("data_dir", "checkpoint", "resume", "ablations")}
        self.config |= choose_features(args, ds) | {"checkpoint": args.checkpoint.name, "rating_range": ds.index["rating_range"]}
        if ds.streamed and (args.warm_start or args.refit):
            raise InputError(f"--warm-start and --refit need all rows of {ds.folder} in memory, and they do not fit")
        self.histories, self.features, self.choice, self.fit_lists = {}, {}, None, cache(self.fit_lists)  # by phase; by whether refitted; of lists
        if args.resume:
            with opened(self.last, "start without --resume") as saved:
                self.histories, old = saved["histories"], saved["run"]
                stage1.require(len([*self.histories.values()][-1]) == saved["epoch"] and isinstance(old, dict), "not the state of a training")
                stage1.require(saved["fingerprint"] == ds.index["fingerprint"], f"not trained on {ds.folder} as it is now")
            for name, value in self.config.items():
                if old.get(name) != value and (name not in ("epochs", "patience") or len(self.histories) > 1):
                    raise InputError(f"--{name.replace('_', '-')} was {old.get(name)} and is {value}; --resume may change epochs, patience of the first model")

    def execute(self) -> None:
        components = dict.fromkeys([self.args.component, *("wide", "deep")[: 2 * self.args.ablations]])
        phases = [(component, refit) for component in components for refit in (False, True)[: 1 + self.args.refit]]
        for component, refit in phases[max(len(self.histories) - 1, 0) :]:  # the last that began is where to go on, those before it are finished
            self.train(component, refit)

    def train(self, component: str, refit: bool) -> None:
        """Train one model: with early stopping on the validation rows, or (refit) for the epochs that this chose."""
        def describe(record: dict) -> str:
            return ", ".join(f"{n.replace('_', ' ')} {v:.4f}" for n, v in record.items() if n.startswith(("train_", "validation_")))
        args, config, ds = self.args, self.config | {"component": component, "refit": refit}, stage1.with_validation(self.ds) if refit else self.ds
        name, path = component + " refit" * refit, args.checkpoint if component == args.component else args.checkpoint.with_suffix(f".{component}.pt")
        known = ds.reviews[ds.reviews["split"].isin(["train", "validation"][: 1 + refit])]
        features = self.features[refit] = self.features.get(refit) or fit_inputs(ds, known, config)
        served = {  # all of the checkpoint but the weights: tensors and builtins only, so torch.load(weights_only=True) opens it
            "format": FORMAT, "config": config, "fingerprint": ds.index["fingerprint"], "last_training_timestamp": ds.index["last_training_timestamp"],
            "vocabularies": stage1.convert(features.vocabularies, np.ndarray, torch.from_numpy),
            **{f"{who}s": table.to_parquet(index=False) for who, table in features.tables.items()},
            "lists": {} if RANK else self.fit_lists(component if args.objective == "ranking" else "wide", refit),
            "similar": [pack_matrix(part) for part in (features.residual, features.similarities[0])] if features.similarities else [],
            "seen": pack_matrix(interactions(ds.reviews[ds.reviews["split"] != "test"], (len(ds.users), len(ds.items)))),
            "dataset": {name: ds.index[name] for name in ("name", "positive_threshold", "rating_range", "split", "features")},
            "versions": {"torch": str(torch.__version__), "numpy": np.__version__, "pandas": pd.__version__, "python": sys.version.split()[0]},
        }
        encode = partial(encode_rows, features, device=args.device, objective=args.objective)
        train, validation = StreamedRows(ds.blocks("train"), encode, path.parent, args.device) if ds.streamed else encode(known), encode(ds.rows("validation"))
        training = Training(args, config, features, float(known["rating" if args.objective == "rating" else "label"].mean()))
        if name in self.histories:
            with opened(self.last, "start without --resume") as saved:
                training.load_state_dict(saved["training"])
        elif args.warm_start and component == args.component:
            warm_start(training.model, features, config, known, ds.reviews.drop(known.index))
            training.optimizers, training.start = make_optimizers(training.model, args), validate(training.model, validation, config)
            print(f"{name} starts from {args.warm_start}: " + describe(training.start))
        goal = quality(training.start) if training.start and not args.accept_worse else -math.inf
        history, epochs = self.histories.setdefault(name, []), max(self.histories[component], key=quality)["epoch"] if refit else args.epochs
        while len(history) < epochs and (refit or not history or len(history) - max(history, key=quality)["epoch"] < args.patience):
            number, started = len(history) + 1, time.perf_counter()
            with tqdm(total=len(known), desc=f"{name} epoch {number}/{epochs}", unit=" rows", unit_scale=True, disable=RANK > 0 or None, leave=False) as bar:
                loss = training.run_epoch(train, bar)
            seconds, metrics = time.perf_counter() - started, {} if refit else validate(training.kept, validation, config)
            if not math.isfinite(loss + metrics.get("validation_loss", 0)):
                raise InputError(f"the loss of {name} became NaN in epoch {number}; the last good checkpoint is kept; lower --deep-lr or --wide-lr")
            memory = torch.cuda.max_memory_allocated() if args.device == "cuda" else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            speed = {"seconds": round(seconds, 3), "rows_per_s": round(len(known) / seconds), "peak_memory_mb": round(memory / 2**20, 1)}
            history.append({"epoch": number, "train_loss": loss, **metrics, **speed})
            print(f"{name} epoch {number}: {describe(history[-1])}, {speed['rows_per_s']:,} rows/s", flush=True)
            if not RANK:
                checkpoint = served | {"state_dict": training.kept.state_dict(), **history[-1], "history": self.histories[component]}
                if len(history) == epochs if refit else max(history, key=quality) is history[-1] and quality(history[-1]) > goal:
                    save(path, checkpoint)
                told = json.dumps({"epochs": self.histories[args.component], "phases": self.histories}, indent=1) + "\n"
                stage1.replace_files({self.last.with_name(HISTORY): lambda to, told=told: to.write_text(told)})
                save(self.last, checkpoint | {"run": self.config, "histories": self.histories, "training": training.state_dict(), "lists": {}})  # fitted again
        final = history[-1] if refit else max(history, key=quality)
        if not (RANK or path.exists()) or not (refit or quality(final) > goal):
            raise InputError(f"no epoch validates better than {args.warm_start}: see --accept-worse" if training.start else f"{path} is gone: train it anew")
        print(f"{name}: epoch {final['epoch']}: {describe(final)} -> {path}")

    def fit_lists(self, component: str, refit: bool) -> dict:
        """What lists are made of: histories; pairs; with --objective ranking the network too (deep: alone). Validation users choose."""
        chosen = self.fit_lists(component, False)["chosen"] if refit else None
        begin, rows, shape = time.perf_counter(), self.ds.reviews, (len(self.ds.users), len(self.ds.items))
        history_of = partial(histories, shape=shape, index=self.ds.index)
        train, held = rows[rows["split"] == "train"], history_of(rows[(rows["split"] == "validation") & (rows["label"] == 1)], 0)
        if not self.choice:
            found = [(0, (GRADES[not train["label"].any()], *PENALTIES[1], 0.0))]  # over a large catalogue it takes too long to try others
            for grade, knobs in [(grade, p) for grade in GRADES[: 1 + (train["label"] == 0).any()] for p in PENALTIES if shape[1] <= RIDGE_ITEMS]:
                history = history_of(train, grade)
                found += zip(list_quality(history, fit_pairs(history, *knobs), held, powers=POWERS), ((grade, *knobs, power) for power in POWERS))
            self.choice = max(found, key=lambda one: one[0])[1]
        knobs, history = self.choice[1:] if component != "deep" else None, history_of(rows[rows["split"] != "test"] if refit else train, self.choice[0])
        pairs, taste = fit_pairs(history, *knobs) if knobs else csr_matrix(shape[1:] * 2, dtype=np.float32), None
        if component != "wide" and history.nnz > shape[0] and (chosen or (1, 1))[1]:  # somebody rated something, and the network has a say
            taste, chosen = fit_taste(history, pairs, knobs, held - held if refit else held, chosen, self.args)  # who is asked is not in the history
        told = ("refit" if refit else f"validation NDCG@10 {list_quality(history, pairs, held, taste)[0]:.4f}") + f", {time.perf_counter() - begin:.1f} s"
        print(f"{component} lists: grade, penalty, per like, power {self.choice}, network (rounds, scale) {chosen}, {told}", flush=True)
        network = taste.cpu().state_dict() if taste and chosen[1] else {}
        return {"grade": self.choice[0], "likes": pack_matrix(history), "pairs": pack_matrix(pairs), "taste": network, "chosen": chosen}


def quality(record: dict) -> float:
    """What early stopping maximises: validation AUC; minus the validation loss for ratings, or where one class is missing."""
    return record.get("validation_auc", -record["validation_loss"])


# ---------------------------------------------------------------------------------------------- checkpoint and serving
def choose_features(args: Namespace, ds: Dataset) -> dict[str, list[str]]:
    """--wide and --deep as names of coded fields and of numeric columns; a field with several values stands for all its columns."""
    crosses, numeric, categories, groups = (ds.vocabularies[name] for name in ("crosses", "numeric", "categories", "groups"))
    fields, numeric = ["user_id", "item_id", *categories[ITEM], *categories[USER], *CONTEXT], [*numeric, *SIMILAR]
    known = {"wide": [*fields, *crosses, *groups, *(n for n in numeric if n not in PAIR_STATE)], "deep": [*fields, *groups, *numeric]}
    default = {"wide": ["user_id", "item_id", *crosses, SIMILAR[1]], "deep": [*fields, *numeric]}
    chosen = {part: getattr(args, part) or [n for n in names if n not in NOT_BY_DEFAULT] for part, names in default.items()}
    for part, names in chosen.items():
        if unknown := [name for name in names if name not in known[part]]:
            raise InputError(f"--{part} {unknown[0]}: not one of {', '.join(n for n in known[part] if '=' not in n)}")
        chosen[part] = list(dict.fromkeys(column for name in names for column in groups.get(name, [name])))
    coded, numbers = ([[n for n in names if (n in numeric) == number] for names in chosen.values()] for number in (False, True))
    return {"wide": coded[0], "wide_numeric": numbers[0], "categorical": coded[1], "numeric": numbers[1]}


def pack_matrix(matrix: np.ndarray | csr_matrix) -> dict[str, Tensor]:
    parts = {"offsets": matrix.indptr, "items": matrix.indices, "values": matrix.data} if issparse(matrix) else {"values": matrix}
    return {name: torch.from_numpy(part) for name, part in parts.items()}


def unpack_matrix(saved: dict[str, Tensor], shape: tuple[int, int]) -> np.ndarray | csr_matrix:
    """What pack_matrix packed; ValueError where it is damaged, because a product of matrices does not look at the codes again."""
    values = saved["values"].numpy()
    stage1.require(values.dtype == np.float32 and np.isfinite(values).all(), "values are not finite")
    matrix = csr_matrix((values, saved["items"].numpy(), saved["offsets"].numpy()), shape) if "offsets" in saved else values
    stage1.require(matrix.shape == shape and (matrix is values or matrix.check_format() is None), "a matrix does not fit its ids")
    return matrix


def save(path: Path, saved: dict) -> None:
    buffer = io.BytesIO()  # torch.save on a full disk raises a RuntimeError about its own container
    torch.save(stage1.convert(saved, Tensor, lambda t: t.clone() if t.nbytes < t.untyped_storage().nbytes() else t), buffer)  # a view is saved whole
    stage1.replace_files({path: lambda to: to.write_bytes(buffer.getbuffer())})


@contextmanager
def opened(path: Path, remedy: str) -> Iterator[dict]:
    """A checkpoint's content, without running any code of it; InputError with the remedy where it is missing, damaged, hostile, or proves so in the `with`."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        stage1.require(saved["format"] == FORMAT and not zipfile.ZipFile(path).testzip(), f"damaged, or format {saved['format']} and not {FORMAT}")
        yield saved
    except Exception as error:  # the unpickler's own text goes on to recommend that its checks be switched off
        reason = type(error).__name__ + ("" if type(error).__name__ == "UnpicklingError" else f": {str(error)[:200]}")
        raise InputError(f"{path} is {'missing' if isinstance(error, FileNotFoundError) else f'not a usable checkpoint ({reason})'}; {remedy}") from None


def load_model(path: str | Path = "best_wide_deep_model.pt", device: str = "auto") -> "Recommender":
    """The trained model, ready to predict and recommend by raw id, from the checkpoint alone; InputError where that is not possible."""
    device = choose_device(device)
    with opened(path, "train it: python wide_deep_model.py") as saved:
        return Recommender(saved, device)


class Recommender:
    """A trained model that answers by raw id. `config`, `history` (its epochs), `fingerprint`, `dataset`: its origin; `users`, `items`: stage 1's tables."""
    def __init__(self, saved: dict, device: str) -> None:
        self.config, self.history, self.epoch, self.fingerprint = saved["config"], saved["history"], saved["epoch"], saved["fingerprint"]
        self.dataset, self.versions, self.moment, self.device = saved["dataset"], saved["versions"], saved["last_training_timestamp"], device
        self.users, self.items = (pd.read_parquet(io.BytesIO(saved[table])) for table in ("users", "items"))
        tables, by_user, by_item = {USER: self.users, ITEM: self.items}, (len(self.users), len(self.items)), (len(self.items), len(self.items))
        self.features = Inputs(tables, stage1.convert(saved["vocabularies"], Tensor, Tensor.numpy), self.config)
        self.features.residual, *self.features.similarities = [*map(unpack_matrix, saved["similar"], (by_user, by_item))] or [None]
        self.model = WideDeep(self.features, self.config).to(device).eval()
        self.grade, self.taste = GRADES[GRADES.index(saved["lists"]["grade"])], Taste(np.zeros(len(self.items))) if saved["lists"]["taste"] else None
        for network, weights in ((self.model, saved["state_dict"]), *([(self.taste, saved["lists"]["taste"])] if self.taste else [])):
            network.load_state_dict(weights)
            stage1.require(all(weight.isfinite().all() for weight in weights.values()), "weights are not finite")
        for who, table in tables.items():  # a wrong code would find a neighbour's row
            stage1.require_codes(table, {name: self.features.size(name) for name in self.features.vocabularies["categories"][who]})
        self.seen, self.likes, self.pairs = map(unpack_matrix, (saved["seen"], saved["lists"]["likes"], saved["lists"]["pairs"]), (by_user, by_user, by_item))
        self.user_index, self.item_index = (pd.Index(ids.where(ids.index > 0)) for ids in (self.users["user"], self.items["item"]))  # row 0 is no raw id
        self.predict([""], [""]), self.recommend(""), self.recommend(history={self.items["item"].iloc[-1]: 0})  # damage that only shows in use shows here

    @property
    def item_embeddings(self) -> np.ndarray:
        """Embeddings of the items [n_items + 1, embedding_dim] by encoded id, row 0 unknown; empty for a wide-only model."""
        if "item_id" not in self.config["categorical"] or self.config["component"] == "wide":
            return np.empty((len(self.items), 0), np.float32)
        first = self.model.deep_offsets[self.config["categorical"].index("item_id")]
        return self.model.embedding.weight[first : first + len(self.items)].detach().cpu().numpy()

    def encode(self, users: list[str], items: list[str]) -> list[np.ndarray]:
        """Encoded ids of raw ids, 0 for those never seen."""
        return [np.maximum(ids.get_indexer(pd.Index([str(r) for r in raw])), 0) for ids, raw in ((self.user_index, users), (self.item_index, items))]

    def score_rows(self, frame: pd.DataFrame) -> np.ndarray:
        """Logits float32 [rows] of rows with their own point-in-time features, as in processed_reviews.parquet."""
        rows = frame.drop(columns=[*self.features.vocabularies["crosses"]], errors="ignore").assign(label=0)  # a refitted model has its own crosses
        return logits(self.model, encode_rows(self.features, rows, self.device, "like"))

    def predict(self, users: list[str], items: list[str]) -> np.ndarray:
        """P(like), or the rating, float32 [n] of pairs of raw ids in the state at the end of training; unseen ids are allowed. ValueError: not equally many."""
        logit = self.score_rows(self.features.at_moment(*self.encode(*([raw] if isinstance(raw, str) else raw for raw in (users, items))), self.moment))
        return np.clip(logit, *self.config["rating_range"]) if self.config["objective"] == "rating" else np.exp(-np.logaddexp(0, -logit))

    def recommend(self, user: str = "", n: int = 10, keep_seen: bool = False, history: Sequence[str] | dict[str, float] | None = None) -> pd.DataFrame:
        """The n best items (fewer where the catalogue ends) for a raw user id, seen or not, or for `history`, raw ids of liked items or ratings by raw id:
        rank, item, title, score and its parts. Those of the history only with `keep_seen`."""
        row, seen = (of_users[self.encode([user], [])[0]] for of_users in (self.likes, self.seen))
        if history is not None:
            rated = hasattr(history, "keys") and getattr(history, "dtype", None) not in ("str", object)  # a Series of texts is raw ids
            ratings = dict(history) if rated else dict.fromkeys([history] if isinstance(history, str) else history, math.inf)
            rows = pd.DataFrame({"user_id": 0, "item_id": self.encode([], ratings)[1], "rating": pd.Series(ratings.values(), dtype=float)})
            rows = rows.assign(label=rows["rating"] >= self.dataset["positive_threshold"]).query("item_id > 0 and rating == rating").drop_duplicates("item_id")
            row = seen = histories(rows, self.grade, (1, len(self.items)), self.dataset)
        wide, deep = (part[0] for part in list_parts(row, self.pairs, self.taste))
        score = wide + deep
        score[[] if keep_seen else seen.indices] = -math.inf
        ids = torch.from_numpy(score).topk(min(n, np.count_nonzero(score > -math.inf))).indices.tolist()
        names = {name: self.items[name].iloc[ids].to_numpy() for name in ("item", "title")}
        return pd.DataFrame({"rank": np.arange(1, len(ids) + 1), **names, "score": (wide + deep)[ids], "wide": wide[ids], "deep": deep[ids]})

    @torch.inference_mode()
    def explain(self, user: str, item: str) -> pd.DataFrame:
        """Why an item is in a user's list, and what the model makes of the pair: of, feature, contribution. "list": each item of the history,
        what holds for anybody, and the network, summing to the list's score; "wide" and "deep": the logit, the wide part by feature."""
        user_id, item_id = self.encode([user], [item])
        *inputs, _ = encode_rows(self.features, self.features.at_moment(user_id, item_id, self.moment).assign(label=0), self.device, "like").tensors
        named = {i: next(filter(pd.notna, self.items.loc[i, ["title", "item"]])) if i else "anybody" for i in self.likes[user_id].indices}
        found = [("list", named[i], v * self.pairs[i, item_id[0]]) for (_, i), v in self.likes[user_id].todok().items() if item_id[0]]
        found += [("list", "network", self.taste(self.likes[user_id])[0, item_id].item())] if self.taste else []
        wide = {"bias": self.model.bias.item()}
        if self.config["component"] != "deep":
            weights = self.model.wide(inputs[0] + self.model.wide_offsets)[0, :, 0], inputs[2][0, : self.model.wide_numeric] * self.model.linear[:, 0]
            wide |= zip(self.features.wide + self.features.wide_numeric, torch.cat(weights).tolist())
        found += [*(("wide", *named) for named in wide.items()), ("deep", "network", self.model(*inputs).item() - sum(wide.values()))]
        return pd.DataFrame(found, columns=["of", "feature", "contribution"]).sort_values("contribution", key=abs, ascending=False, ignore_index=True)

    def recommend_all(self, path: str | Path, n: int = 10) -> None:
        """Write the n best items of every user, but for those of their history, as parquet: user, rank, item, score."""
        found, users = [], np.arange(1, len(self.users))
        for part in tqdm(np.array_split(users, len(users) // USER_BLOCK + 1), desc="lists of all users", unit=" blocks", disable=None, leave=False):
            score = self.score_catalogue(part)
            score[self.seen[part].nonzero()] = -math.inf
            scores, items = (array.numpy() for array in torch.from_numpy(score).topk(min(n, score.shape[1])))
            row, rank = np.nonzero(scores > -math.inf)
            user, item = self.users["user"].array[part[row]], self.items["item"].array[items[row, rank]]
            found.append(pd.DataFrame({"user": user, "rank": rank + 1, "item": item, "score": scores[row, rank]}))
        stage1.replace_files({Path(path): lambda to: pd.concat(found).to_parquet(to, index=False)})

    def score_catalogue(self, user_ids: np.ndarray) -> np.ndarray:
        """Scores float32 [users, n_items + 1] of every item for encoded users, by which lists are ranked; the unknown item, column 0, is -inf."""
        return np.add(*list_parts(self.likes[user_ids], self.pairs, self.taste))


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    ds = load_dataset(args.data_dir)
    if empty := [split for split in ("train", "validation") if not ds.index["rows"][split]]:
        raise InputError(f"{args.data_dir} has no {empty[0]} rows; early stopping needs them: preprocess with a --validation-fraction above 0")
    args.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if WORKERS == 1:
        return Run(args, ds).execute()
    sys.stdout = None if RANK else sys.stdout  # the first process alone fits lists, writes and talks
    try:
        if args.device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", RANK)))
        distributed.init_process_group("nccl" if args.device == "cuda" else "gloo", timeout=pd.Timedelta(hours=6))  # the others wait for the lists
        Run(args, ds).execute()
    except RuntimeError as error:
        raise InputError(f"worker {RANK} of {WORKERS} failed or lost another: {str(error)[:150]}; go on from the last epoch with --resume") from None
    distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(run_script(main))
