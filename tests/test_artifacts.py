"""Killed runs, full disks, damaged and hostile files, bad flags: the old set, the new set, or one clear line."""

import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import amazon_preprocessing as stage1
import wide_deep_model as stage2
from readers import InputError
from tests.conftest import PLOT_EXPLORATION, preprocess, random_log, write_log, write_metadata

ROOT = Path(stage1.__file__).parent
TINY = ["--hidden", "8", "--embedding-dim", "2", "--batch-size", "512", "--epochs", "2", "--device", "cpu"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a log, a data set and a trained model."""
    folder = tmp_path_factory.mktemp("made")
    preprocess(folder, random_log(700, 50, 40), "--split", "random", "--seed", "1", "--metadata", str(write_metadata(folder / "meta.json", 40)))
    stage2.main(stage2_flags(folder, "--seed", "1"))
    return folder


def stage1_flags(folder: Path, *flags: str) -> list[str]:
    return ["--dataset", "amazon-reviews", "--input", str(folder / "log.json"), "--output-dir", str(folder / "processed_data"), *flags]


def stage2_flags(folder: Path, *flags: str) -> list[str]:
    return ["--data-dir", str(folder / "processed_data"), "--checkpoint", str(folder / "best.pt"), *TINY, *flags]


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "copy"))


# ----------------------------------------------------------------------------------------------------------------- kill -9

DRIVER = r'''
"""Run a stage again and again in children of this process, the n-th killed at its n-th write, flush or rename."""
import os, shutil, signal, sys
from pathlib import Path
stage, made, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
import pyarrow.parquet as pq
import amazon_preprocessing as module
module.plot_exploration = lambda path, *_: path.write_bytes(b"x" * 1000)
if stage == "wide_deep_model":
    import torch, wide_deep_model as module
shutil.copytree(made, work / "warm")  # one run before all: what libraries import when they are first used
stdout = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
module.main([flag.replace("FOLDER", str(work / "warm")) for flag in sys.argv[5:]])
sys.stdout.flush()
os.dup2(stdout, 1)
shutil.rmtree(work / "warm")
moment = 0

def step(target, deadly):
    global moment
    moment += 1
    if moment == deadly:
        if target is not None and os.path.isfile(target):
            os.truncate(target, os.path.getsize(target) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

def wrap(owner, name, deadly, target=lambda *a, **k: None, before=False):
    real = getattr(owner, name)
    def wrapped(*a, **k):
        if before:
            step(None, deadly)
        result = real(*a, **k)
        step(target(*a, **k), deadly)
        return result
    setattr(owner, name, wrapped)

for deadly in range(1, 200, int(sys.argv[4])):
    folder = work / f"{deadly:03d}"
    shutil.copytree(made, folder)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        wrap(os, "replace", deadly, before=True)
        wrap(os, "fsync", deadly)
        for name in ("write_bytes", "write_text"):
            wrap(Path, name, deadly, lambda path, *_: path)
        wrap(pq.ParquetWriter, "write_table", deadly)
        if stage == "wide_deep_model":
            wrap(torch, "save", deadly, lambda _, path: path if isinstance(path, (str, Path)) else None)
        module.main([flag.replace("FOLDER", str(folder)) for flag in sys.argv[5:]])
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        print(deadly - 1, os.WEXITSTATUS(status))
        break
'''


def killed_at_moments(stage: str, made: Path, work: Path, every: int, flags: list[str]) -> list[Path]:
    """Folders of runs killed at every (second ...) of their moments, and last of one that came to its end."""
    flags = [flag.replace(str(made), "FOLDER") for flag in flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRIVER, stage, str(made), str(work), str(every), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    moments, status = map(int, done.stdout.split())
    assert status == 0 and moments > 16
    return sorted(work.iterdir())


def test_killing_stage_1_leaves_the_old_set_the_new_set_or_a_refusal(made, tmp_path):
    folders = killed_at_moments("amazon_preprocessing", made, tmp_path, 1, stage1_flags(made, "--split", "random", "--seed", "2"))
    old, new = (stage1.load_dataset(folder / "processed_data") for folder in (made, folders[-1]))
    assert old.index["fingerprint"] != new.index["fingerprint"]
    whole = [contents(folder / "processed_data") for folder in (made, folders[-1])]
    outcomes = []
    for folder in folders[:-1]:
        for name, data in contents(folder / "processed_data").items():
            volatile = name == stage1.INDEX  # it says how many seconds the run took, and where it wrote
            assert name.startswith(".") or (volatile and json.loads(data)) or data in (whole[0][name], whole[1][name])
        try:
            found = stage1.load_dataset(folder / "processed_data")
        except InputError as error:
            assert f"python amazon_preprocessing.py --output-dir {folder / 'processed_data'}" in str(error)
            with pytest.raises(InputError, match=r"python amazon_preprocessing\.py"):
                stage2.main(stage2_flags(folder))
            outcomes.append("refused")
        else:
            match = [name for name, ds in (("old", old), ("new", new)) if ds.index["fingerprint"] == found.index["fingerprint"]]
            assert found.reviews.equals({"old": old, "new": new}[match[0]].reviews)
            outcomes += match
    assert sorted(outcomes, key=("old", "refused", "new").index) == outcomes  # in this order, nothing in between
    assert {"old", "refused"} <= set(outcomes)
    stage1.main(stage1_flags(folders[3], "--split", "random", "--seed", "2"))  # what a killed run left is no obstacle
    assert not list(folders[3].rglob("*.tmp"))


@pytest.fixture
def one_thread():
    """As the killed runs had: sums over another number of threads may differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_killing_stage_2_leaves_the_old_or_the_new_model_and_resumes(made, tmp_path, one_thread):
    folders = killed_at_moments("wide_deep_model", made, tmp_path, 3, stage2_flags(made, "--seed", "2"))
    rows = stage1.load_dataset(made / "processed_data").reviews
    expected = {name: stage2.load_model(folder / "best.pt", "cpu").score_rows(rows) for name,
        folder in (("old", made), ("new", folders[-1]))}
    resumed = 0
    for folder in folders[:-1]:
        model = stage2.load_model(folder / "best.pt", "cpu")
        assert model.config["seed"] in (1, 2)
        if model.config["seed"] == 1:
            np.testing.assert_array_equal(model.score_rows(rows), expected["old"])
        json.loads((folder / stage2.HISTORY).read_text())
        try:
            stage2.main(stage2_flags(folder, "--seed", "2", "--resume"))
        except InputError as error:  # the last state is still the old run's
            assert "--seed was 1 and is 2" in str(error)
        else:
            resumed += 1
            np.testing.assert_array_equal(stage2.load_model(folder / "best.pt", "cpu").score_rows(rows), expected["new"])
    assert 2 <= resumed <= len(folders) - 3


# ---------------------------------------------------------------------------------------------------------------- full disk


def fails_in_one_line(capsys, main, flags: list[str]) -> str:
    """Run a stage as its script does; its one line on standard error."""
    capsys.readouterr()
    assert stage1.run_script(lambda: main(flags)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.endswith("\n") and "error: " in error and "Traceback" not in error
    return error


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("owner", "name"), [(pq.ParquetWriter, "write_table"), (Path, "write_bytes"), (Path, "write_text"), (os, "fsync"),
    (os, "replace")])
def test_a_full_disk_in_stage_1(copy, monkeypatch, capsys, owner, name):
    before = contents(copy / "processed_data")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        assert "No space left" in fails_in_one_line(capsys, stage1.main, stage1_flags(copy, "--seed", "2"))
    assert contents(copy / "processed_data") == before


@pytest.mark.parametrize(("owner", "name"), [(torch, "save"), (Path, "write_text"), (os, "fsync"), (os, "replace")])
def test_a_full_disk_in_stage_2(copy, monkeypatch, capsys, owner, name):
    before = contents(copy)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        assert "No space left" in fails_in_one_line(capsys, stage2.main, stage2_flags(copy, "--seed", "2"))
    after = contents(copy)
    assert after.keys() == before.keys() and len(stage2.load_model(copy / "best.pt", "cpu").items) > 1
    if (owner, name) != (Path, "write_text"):  # the history comes after the best checkpoint, which is whole by then
        assert after == before


@pytest.mark.parametrize("memory", ["", "m.stage1.MEMORY = 1; "])  # or rows are encoded into files first
def test_a_write_that_the_system_cuts_off_is_one_line_too(copy, memory):
    """Not an injected exception: the system itself refuses to let a file grow, inside the library that writes it."""
    limited = (f"import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); import wide_deep_model as m; {memory}"
               "resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048)); sys.exit(m.run_script(m.main))")
    before = contents(copy)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", limited, *stage2_flags(copy, "--seed", "2")], capture_output=True,
        text=True,
                          env=environment, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "error: " in done.stderr, done.stderr
    assert contents(copy) == before


# ------------------------------------------------------------------------------------------------- damaged and hostile files


def rewrite_index(folder: Path) -> None:
    """Make dataset.json name the files as they are now, as somebody who wants them to be read would."""
    index = json.loads((folder / stage1.INDEX).read_text())
    for name in index["files"]:
        data = (folder / name).read_bytes()
        index["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / stage1.INDEX).write_text(json.dumps(index))


def refused(folder: Path) -> str:
    """Both stages refuse the data set with the line to run."""
    with pytest.raises(InputError, match=r"python amazon_preprocessing\.py --output-dir") as error:
        stage1.load_dataset(folder / "processed_data")
    assert "\n" not in str(error.value) and len(str(error.value)) < 1_000
    return str(error.value)


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile_pickles(marker: Path) -> dict[str, bytes]:
    """Pickles that create the marker when opened by pickle.loads."""
    touch = f"open({str(marker)!r}, 'w').close()"
    whole = {"eval": Call(eval, touch), "exec": Call(exec, touch), "system": Call(os.system, f"touch {marker}"),
        "open": Call(open, str(marker), "w"),
             "subprocess": Call(subprocess.call, ["touch", str(marker)]), "nested": {"category": ["a", {"x": [Call(exec, touch)]}]}}
    found = {f"{name}-{protocol}": pickle.dumps(value, protocol=protocol) for name, value in whole.items() for protocol in (0, 2, 4)}
    text = touch.encode()
    found["inst"] = b"(S" + repr(touch).encode() + b"\nibuiltins\nexec\n."  # INST names its class without a GLOBAL
    found["obj"] = b"(cbuiltins\nexec\nS" + repr(touch).encode() + b"\no."
    found["stack-global"] = b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c" + bytes([len(text)]) + text + b"\x85R."
    text = f"touch {marker}".encode()
    found["stack-global-system"] = b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(text)]) + text + b"\x85R."
    return found


@pytest.mark.parametrize("kind", hostile_pickles(Path("/nowhere")))
def test_a_hostile_vocabulary_runs_nothing(copy, tmp_path, kind):
    marker = tmp_path / "m"
    data = hostile_pickles(marker)[kind]
    (copy / "processed_data" / stage1.VOCABULARIES).write_bytes(data)
    rewrite_index(copy / "processed_data")
    refused(copy)
    assert not marker.exists()
    pickle.loads(data)  # the attack itself works where nothing guards
    assert marker.exists()


@pytest.mark.parametrize("data", [
    b"", b"garbage", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", b"Pid\n.", b"\x80\x04K\x01Q.", b"\x80\x02\x82\xf0.",
    b"\x80\x04\x97.",
    b"\x80\x04" + b"(" * 10_000, b"\x80\x04N.", pickle.dumps([1, 2]), pickle.dumps({}), b"\x80\x04]\x94h\x00a.",
    b"\x80\x04" + b"]" * 50_000 + b"a" * 49_999 + b".", np.random.default_rng(0).bytes(5_000),
], ids=lambda data: data[:6].hex() or "empty")
def test_a_damaged_vocabulary(copy, data):
    """Also persistent ids, extension codes, out-of-band buffers, lists that hold themselves, and very deep ones."""
    (copy / "processed_data" / stage1.VOCABULARIES).write_bytes(data)
    rewrite_index(copy / "processed_data")
    refused(copy)


def change(path: tuple, value) -> None:
    """A damage: set (or with KeyError remove) one entry of the vocabularies."""
    def damage(words: dict) -> None:
        *way, last = path
        for key in way:
            words = words[key]
        if value is KeyError:
            del words[last]
        else:
            words[last] = value(words[last]) if callable(value) else value
    return damage


WRONG_WORDS = {
    **{f"no {name}": change((name,), KeyError) for name in (*stage1.CONTEXT, "category", "brand", "numeric", "crosses", "bucket_edges")},
    **{f"{name} is a dict": change((name,), {}) for name in ("year", "brand", "crosses", "bucket_edges", "numeric")},
    "year is a word": change(("year",), "abcdefghijk"), "month is a number": change(("month",), 3),
    "year holds lists": change(("year",), lambda y: [[v] for v in y]),
    "no user average": change(("numeric", "user_avg_rating"), KeyError), "a feature is a list": change(("numeric", "item_age_days"), []),
    "an unknown feature": change(("numeric", "nonsense"), {"prior": None, "knots": [], "levels": [], "mean": 0.0, "deviation": 1.0}),
    "knots fall": change(("numeric", "item_age_days", "knots"), lambda k: k[::-1]),
    "knots are words": change(("numeric", "item_age_days", "knots"), list("abc")),
    "knots are few": change(("numeric", "item_age_days", "knots"), lambda k: k[:-1]),
    "no levels": change(("numeric", "item_age_days", "levels"), KeyError),
    "knots hold NaN": change(("numeric", "item_age_days", "knots"), lambda k: [float("nan"), *k[1:]]),
    "levels are words": change(("numeric", "item_age_days", "levels"), lambda k: ["x"] * len(k)),
    "the prior is a word": change(("numeric", "user_avg_rating", "prior"), "4"),
    "no mean": change(("numeric", "user_avg_rating", "mean"), KeyError),
    "the deviation is 0": change(("numeric", "user_avg_rating", "deviation"), 0.0),
    "no prior": change(("numeric", "user_avg_rating", "prior"), KeyError),
    "edges are words": change(("bucket_edges", "user_avg_rating"), list("abc")),
    "edges are many": change(("bucket_edges", "user_avg_rating"), lambda e: e * 20),
    "cross too small": change(("crosses", "cross_user_period", "size"), 3),
    "cross too large": change(("crosses", "cross_user_period", "size"), 10**6),
    "cross size is huge": change(("crosses", "cross_user_period"), lambda c: c | {"kind": "hash", "size": 10**15}),
    "cross unsorted": change(("crosses", "cross_user_period", "keys"), lambda k: k[::-1]),
    "cross of words": change(("crosses", "cross_user_period", "keys"), list("ab")),
    "cross kind": change(("crosses", "cross_user_period", "kind"), "other"),
    "cross of nothing": change(("crosses", "cross_user_period", "left"), "nothing"),
    "no cross": change(("crosses", "cross_user_item"), KeyError),
    "cross without state": change(("crosses", "cross_user_category", "state"), KeyError),
    "no right size": change(("crosses", "cross_user_period", "right_size"), KeyError),
    "right size": change(("crosses", "cross_user_period", "right_size"), "5"),
    "short state": change(("crosses", "cross_user_category", "state", "user_category_avg_residual"), lambda s: s[:-1]),
    "state of words": change(("crosses", "cross_user_category", "state", "user_category_avg_residual"), lambda s: ["x"] * len(s)),
}


@pytest.mark.parametrize("damage", WRONG_WORDS)
def test_vocabularies_that_do_not_fit(copy, damage):
    path = copy / "processed_data" / stage1.VOCABULARIES
    words = pickle.loads(path.read_bytes())
    WRONG_WORDS[damage](words)
    path.write_bytes(pickle.dumps(words))
    rewrite_index(copy / "processed_data")
    refused(copy)


def column(name: str, function) -> object:
    return lambda frame: frame.assign(**{name: function(frame[name])})


WRONG_TABLES = {
    **{f"{file} without {name}": (file, lambda frame, name=name: frame.drop(columns=name)) for file, names in (
        (stage1.REVIEWS, ("user_id", "item_id", "rating", "label", "timestamp", "split", "year", "cross_user_item", "user_avg_rating",
            "item_age_days")),
        (stage1.USERS, ("user", "train_count", "user_avg_rating", "user_review_count", "user_last_timestamp")),
        (stage1.ITEMS, ("item", "title", "item_price", "category", "brand", "train_count", "item_avg_residual", "item_first_timestamp")),
    ) for name in names},
    **{f"{file} shorter": (file, lambda frame: frame.iloc[:-1]) for file in (stage1.REVIEWS, stage1.USERS, stage1.ITEMS)},
    **{f"{file} empty": (file, lambda frame: frame.iloc[:0]) for file in (stage1.REVIEWS, stage1.USERS, stage1.ITEMS)},
    **{f"{name} too large": (stage1.REVIEWS, column(name, lambda c: c.astype(int) + 10_000)) for name in ("user_id", "item_id", "year",
        "cross_user_item")},
    "label too large": (stage1.REVIEWS, column("label", lambda c: c + 2)),
    **{f"{name} below 0": (stage1.REVIEWS, column(name, lambda c: c.astype(int) - 10_000)) for name in ("user_id", "item_id", "period",
        "cross_rating_buckets")},
    **{f"{name} of words": (stage1.REVIEWS, column(name, lambda c: c.astype(str))) for name in ("user_id", "rating", "user_avg_rating",
        "timestamp", "month")},
    "codes are fractions": (stage1.REVIEWS, column("item_id", lambda c: c + 0.5)),
    "NaN rating": (stage1.REVIEWS, column("rating", lambda c: c * np.nan)),
    "infinite feature": (stage1.REVIEWS, column("user_avg_rating", lambda c: c * np.inf)),
    "unknown split": (stage1.REVIEWS, column("split", lambda c: c.astype(str).replace("test", "tset"))),
    "mixed splits": (stage1.REVIEWS, lambda frame: frame.sample(frac=1, random_state=0)),
    "category too large": (stage1.ITEMS, column("category", lambda c: c + 50)),
    "price of words": (stage1.ITEMS, column("item_price", lambda c: "cheap")),
    "other counts": (stage1.USERS, column("train_count", lambda c: c + 1)),
    "state of words": (stage1.USERS, column("user_avg_rating", lambda c: c.astype(str))),
    "times of words": (stage1.USERS, column("user_last_timestamp", lambda c: c.astype(str))),
}


@pytest.mark.parametrize("damage", WRONG_TABLES)
def test_tables_that_do_not_fit(copy, damage):
    name, function = WRONG_TABLES[damage]
    path = copy / "processed_data" / name
    function(pd.read_parquet(path)).to_parquet(path, index=False)
    rewrite_index(copy / "processed_data")
    refused(copy)


@pytest.mark.parametrize("rewritten", [True, False])
@pytest.mark.parametrize("name", [stage1.REVIEWS, stage1.USERS, stage1.ITEMS, stage1.VOCABULARIES])
def test_files_cut_off_flipped_or_gone(copy, name, rewritten):
    path = copy / "processed_data" / name
    data = path.read_bytes()
    damages = [data[: len(data) // 2], data[:-1], b"", np.random.default_rng(1).bytes(len(data))]
    if not rewritten:
        damages += [data[:50] + bytes([data[50] ^ 1]) + data[51:], data + b"x"]
    for damage in damages:
        path.write_bytes(damage)
        if rewritten:
            rewrite_index(copy / "processed_data")
        message = refused(copy)
        assert name in message and ("is not the file" in message) != rewritten
    path.unlink()
    assert "is missing" in refused(copy)


def test_a_parquet_of_another_kind(copy):
    pq.write_table(pa.table({"user_id": [[1], [2]], "x": [{"y": 1}, None]}), copy / "processed_data" / stage1.REVIEWS)
    rewrite_index(copy / "processed_data")
    refused(copy)


@pytest.mark.parametrize("data", [
    b"", b"{", b"[]", b"null", b"3", b"{}", b'{"files": []}', b'{"files": 3}', b'{"files": {}}', b'{"files": {"users.parquet": 3}}',
    b"\xff\xfe\x00",
    b"[" * 100_000, b'{"files": {"users.parquet": {"bytes": 1}}}', b'{"files": {"a\\u0000b": {"bytes": 1, "sha256": ""}}}',
], ids=lambda data: data[:30].decode(errors="replace") or "empty")
def test_a_damaged_index(copy, data):
    (copy / "processed_data" / stage1.INDEX).write_bytes(data)
    refused(copy)


@pytest.mark.parametrize("key", ["files", "rows", "fingerprint", "name", "split", "features", "positive_threshold", "rating_range",
    "last_training_timestamp"])
def test_an_index_without_a_key(copy, key):
    path = copy / "processed_data" / stage1.INDEX
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    refused(copy)


# ------------------------------------------------------------------------------------------------------------- checkpoints


def no_model(path: Path) -> None:
    with pytest.raises(InputError, match=r"train it: python wide_deep_model\.py"):
        stage2.load_model(path, "cpu")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["eval-2", "exec-2", "system-2", "nested-2", "open-2"])
def test_a_hostile_checkpoint_runs_nothing(tmp_path, kind, legacy):
    marker = tmp_path / "m"
    call = {"eval-2": Call(eval, f"open({str(marker)!r}, 'w').close()"), "exec-2": Call(exec, f"open({str(marker)!r}, 'w').close()"),
            "system-2": Call(os.system, f"touch {marker}"), "nested-2": {"users": [Call(exec, f"open({str(marker)!r}, 'w').close()")]},
            "open-2": Call(open, str(marker), "w")}[kind]
    # in torch's own containers, so that only weights_only stands between
    torch.save({"format": 1, "config": call}, tmp_path / "best.pt", _use_new_zipfile_serialization=not legacy)
    no_model(tmp_path / "best.pt")
    (tmp_path / "raw.pt").write_bytes(hostile_pickles(marker)[kind])
    no_model(tmp_path / "raw.pt")
    assert not marker.exists()
    torch.load(tmp_path / "best.pt", weights_only=False)
    assert marker.exists()


def test_a_checkpoint_cut_off_flipped_or_gone(copy):
    path = copy / "best.pt"
    data, whole = path.read_bytes(), stage2.load_model(path, "cpu").model.state_dict()
    rng = np.random.default_rng(0)
    for damage in (b"", data[:100], data[: len(data) // 2], data[:-1], data[:-30], rng.bytes(1000), b"PK\x03\x04" + rng.bytes(500),
            data[len(data) // 2 :]):
        path.write_bytes(damage)
        no_model(path)
    for place in rng.integers(len(data), size=30).tolist():  # a weight with another bit loads, and would go on as if nothing had happened
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:  # no place that matters: padding, or what a reader of the archive does not look at
            loaded = stage2.load_model(path, "cpu")
        except InputError:
            continue
        assert all(map(torch.equal, loaded.model.state_dict().values(), whole.values()))
    path.unlink()
    no_model(path)
    path.mkdir()
    no_model(path)


def change_table(name: str, function):
    """A damage of the users' or items' table of a checkpoint."""
    return change((name,), lambda table: function(pd.read_parquet(io.BytesIO(table))).to_parquet(index=False))


PARTS = ("format", "config", "vocabularies", "users", "items", "seen", "last_training_timestamp", "dataset", "fingerprint", "versions",
    "state_dict", "lists", "epoch", "history")
WRONG_MODELS = {
    **{f"no {name}": change((name,), KeyError) for name in PARTS},
    **{f"{name} is {kind}": change((name,), value) for name in ("config", "vocabularies", "users", "items", "seen", "state_dict")
       for kind, value in (("a number", 3), ("a list", []), ("a tensor", torch.ones(3)), ("empty", {}), ("nothing", None))},
    **{f"config without {name}": change(("config", name), KeyError) for name in ("wide", "categorical", "numeric", "embedding_dim",
        "hidden", "component")},
    **{f"no {name} of {table}": change_table(table, lambda t, name=name: t.drop(columns=name)) for table, names in (
        ("users", ("user", "train_count", "user_avg_rating")), ("items", ("item", "category", "title", "train_count"))) for name in names},
    "format": change(("format",), 99), "another dimension": change(("config", "embedding_dim"), 3),
    "more layers": change(("config", "hidden"), [8, 8]),
    "other features": change(("config", "numeric"), lambda n: n[:-1]),
    "an unknown feature": change(("config", "wide"), lambda w: [*w, "nonsense"]),
    "a bad activation": change(("config", "activation"), "system"), "short users": change_table("users", lambda t: t[:-1]),
    "no weights": change(("state_dict", "embedding.weight"), KeyError),
    "weights of another shape": change(("state_dict", "wide.weight"), lambda w: w[:-1]),
    "NaN weights": change(("state_dict", "wide.weight"), lambda w: w * float("nan")),
    "an offset too large": change(("seen", "offsets"), lambda o: o + 10**6),
    "category too large": change_table("items", lambda t: t.assign(category=t["category"] + 1)),
    "category below 0": change_table("items", lambda t: t.assign(category=t["category"] - 1)),
    "category is a word": change_table("items", lambda t: t.assign(category="x")), "half a table": change(("users",), lambda t: t[: len(t) // 2]),
    "seen items too large": change(("seen", "items"), lambda i: i + 10**6),
    "seen items below 0": change(("seen", "items"), lambda i: i - 10**6),
    "seen items are words": change(("seen", "items"), ["x"]), "offsets fall": change(("seen", "offsets"), lambda o: o.flip(0)),
    "few offsets": change(("seen", "offsets"), lambda o: o[:-2]), "moment is a word": change(("last_training_timestamp",), "now"),
    "the cross is larger": change(("vocabularies", "crosses", "cross_user_period", "size"), lambda n: n + 5),
    "the year is missing": change(("vocabularies", "year"), KeyError),
    "a pair is NaN": change(("lists", "pairs", "values"), lambda v: v * float("nan")),
    "pairs of fewer items": change(("lists", "pairs", "values"), lambda v: v[1:, 1:]),
    "likes too large": change(("lists", "likes", "items"), lambda i: i + 10**6), "likes below 0": change(("lists", "likes", "items"), lambda i: i - 9),
    "likes without offsets": change(("lists", "likes", "offsets"), KeyError), "few likes": change(("lists", "likes", "offsets"), lambda o: o[:-2]),
    "no likes": change(("lists", "likes"), KeyError), "an unknown grade": change(("lists", "grade"), lambda g: "x"),
    "the threshold is text": change(("dataset", "positive_threshold"), lambda t: "4"),
    "states are words": change_table("users", lambda t: t.assign(user_avg_rating="x")),
}


@pytest.mark.parametrize("damage", WRONG_MODELS)
def test_checkpoints_whose_parts_do_not_fit(made, tmp_path, damage):
    saved = torch.load(made / "best.pt", weights_only=True)
    WRONG_MODELS[damage](saved)
    torch.save(saved, tmp_path / "best.pt")
    no_model(tmp_path / "best.pt")


def test_text_in_place_of_the_threshold_is_not_run(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = torch.load(made / "best.pt", weights_only=True)
    saved["dataset"]["positive_threshold"] = "@pd.io.common.os.mkdir('run')"
    torch.save(saved, "best.pt")
    no_model(tmp_path / "best.pt")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", [("training",), ("run",), ("histories",), ("epoch",),
    ("training", "rng"), ("training", "parts"),
                                  ("fingerprint",), ("histories", "wide-deep")], ids=str)
def test_a_damaged_last_state_is_not_resumed(copy, path):
    saved = torch.load(copy / stage2.LAST, weights_only=True)
    before = (copy / "best.pt").read_bytes()
    for value in (KeyError, 3, []):
        broken = {**saved, "training": dict(saved["training"]), "histories": dict(saved["histories"])}
        change(path, value)(broken)
        torch.save(broken, copy / stage2.LAST)
        with pytest.raises(InputError, match="start without --resume"):
            stage2.main(stage2_flags(copy, "--seed", "1", "--resume"))
    (copy / stage2.LAST).unlink()
    with pytest.raises(InputError, match="is missing; start without --resume"):
        stage2.main(stage2_flags(copy, "--seed", "1", "--resume"))
    assert (copy / "best.pt").read_bytes() == before


def test_a_run_that_goes_on_without_its_best_epoch_says_so(copy):
    """The best epoch is in the checkpoint alone; what lies beside it for --resume is the last one."""
    (copy / "best.pt").unlink()
    with pytest.raises(InputError, match=r"best\.pt is gone"):
        stage2.main(stage2_flags(copy, "--seed", "1", "--resume"))
    assert not (copy / "best.pt").exists()


# -------------------------------------------------------------------------------------------------------- flags, exit codes


@pytest.mark.parametrize(("flags", "word"), [
    (["--nonsense"], "--nonsense"), (["--test-fraction", "1.5"], "--test-fraction"), (["--test-fraction", "nan"], "--test-fraction"),
    (["--validation-fraction", "-0.1"], "--validation-fraction"),
    (["--test-fraction", "0.5", "--validation-fraction", "0.5"], "--test-fraction"),
    (["--dataset", "csv"], "--input"), (["--dataset", "csv", "--input", "LOG"], "--columns"), (["--dataset", "nothing"], "--dataset"),
    (["--input", "LOG", "--min-core", "-1"], "--min-core"), (["--min-core", "many"], "--min-core"),
    (["--core-passes", "-1"], "--core-passes"),
    (["--input", "LOG", "--seed", "-1", "--split", "random"], "--seed"), (["--split", "sideways"], "--split"),
    (["--input", "nowhere.json"], "nowhere.json"),
    (["--input", "FOLDER"], "FOLDER"), (["--input", "LOG", "--output-dir", "LOG"], "LOG"),
    (["--input", "LOG", "--positive-threshold", "nan"], "--positive-threshold"),
    (["--input", "LOG", "--drop-rating", "1", "2", "3", "4", "5"], "core is empty"), (["--dataset", "demo", "--input", "LOG"], "--input"),
    (["--input", "LOG", "--download", "Electronics-2014"], "--download"), (["--columns", "user=a"], "--input"),
    (["--input", "EMPTY"], "EMPTY"),
])
def test_bad_flags_of_stage_1(made, tmp_path, monkeypatch, capsys, flags, word):
    (tmp_path / "empty.json").write_text("\n\n")
    names = {"LOG": str(made / "log.json"), "FOLDER": str(made), "EMPTY": str(tmp_path / "empty.json")}
    monkeypatch.chdir(tmp_path)
    assert names.get(word, word) in fails_in_one_line(capsys, stage1.main, [names.get(flag, flag) for flag in flags])
    assert [p.name for p in tmp_path.iterdir()] == ["empty.json"]


@pytest.mark.parametrize("flags", [
    ["--nonsense"], ["--epochs", "0"], ["--epochs", "-3"], ["--epochs", "many"], ["--hidden", "16", "-8"], ["--hidden", "0"],
    ["--embedding-dim", "0"],
    ["--dropout", "1.5"], ["--dropout", "-1"], ["--batch-size", "-1"], ["--patience", "0"], ["--wide-lr", "nan"], ["--deep-lr", "-1"],
    ["--deep-lr", "inf"],
    ["--weight-decay", "-1"], ["--weight-decay", "nan"], ["--wide", "nonsense"], ["--deep", "nonsense"], ["--objective", "fame"],
    ["--resume"],
    ["--activation", "system"], ["--checkpoint", "last_wide_deep_model.pt"],
], ids=" ".join)
def test_bad_flags_of_stage_2(made, tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(tmp_path)
    assert flags[0] in fails_in_one_line(capsys, stage2.main, ["--data-dir", str(made / "processed_data"), "--device", "cpu", *flags])
    assert not list(tmp_path.iterdir())


def test_a_file_name_that_is_no_utf8_is_refused(capsys):
    assert "rename it" in fails_in_one_line(capsys, stage1.main, ["--input", os.fsdecode(b"caf\xe9.csv")])


def test_data_without_validation_rows_says_so(tmp_path, capsys):
    preprocess(tmp_path, random_log(700, 50, 40), "--validation-fraction", "0")
    assert "--validation-fraction" in fails_in_one_line(capsys, stage2.main, stage2_flags(tmp_path))


def test_the_script_itself_exits_with_2_and_one_line(tmp_path):
    script = ROOT / "amazon_preprocessing.py"
    done = subprocess.run([sys.executable, str(script), "--test-fraction", "1.5"], cwd=tmp_path, capture_output=True, text=True,
        timeout=120)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("amazon_preprocessing.py: error: ") and "--test-fraction" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [[], ["--test-fraction", "0", "--validation-fraction", "0"]], ids=["three splits", "training rows only"])
def test_the_exploration_is_a_picture_of_1600_pixels(tmp_path, monkeypatch, flags):
    monkeypatch.setattr(stage1, "plot_exploration", PLOT_EXPLORATION)
    ds = preprocess(tmp_path, random_log(700, 50, 40), *flags)
    data = (ds.folder / stage1.EXPLORATION).read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and width >= 1600 and height >= 800
    assert ds.index["files"][stage1.EXPLORATION]["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_run_that_is_interrupted_says_what_is_left(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert stage1.run_script(interrupted) == 130 and "finished files are kept" in capsys.readouterr().err


def test_torch_without_memory_is_one_line_and_its_other_errors_are_not_hidden(capsys):
    assert "can't allocate memory" in fails_in_one_line(capsys, lambda _: torch.empty(1 << 60, dtype=torch.uint8), [])

    def out_of_memory(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")  # as torch says it

    assert "CUDA out of memory" in fails_in_one_line(capsys, out_of_memory, [])
    with pytest.raises(RuntimeError, match="size"):
        stage1.run_script(lambda: torch.zeros(2) @ torch.zeros(3))


def test_lines_of_an_empty_log(tmp_path):
    path = write_log(tmp_path / "log.json", random_log(50, 50, 40))
    with pytest.raises(InputError, match="5-core is empty"):
        stage1.main(stage1_flags(path.parent))
    assert not (tmp_path / "processed_data").exists()
