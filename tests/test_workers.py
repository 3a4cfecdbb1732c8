"""Training by several processes of torchrun: the weights of one process, one checkpoint, and what is left when a process dies."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import wide_deep_model as stage2
from readers import InputError
from tests.conftest import preprocess, random_log

ROOT = Path(stage2.__file__).parent
FLAGS = ["--embedding-dim", "8", "--hidden", "16", "--device", "cpu", "--seed", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """An even number of training rows, so that none is left out by two workers."""
    ds = preprocess(tmp_path_factory.mktemp("workers"), random_log(3003, 150, 80), "--split", "random", "--min-core", "0")
    assert ds.index["rows"]["train"] % 240 == 2
    return ds.folder


def start(folder: Path, data: Path, *flags: str, changes: str = "") -> subprocess.Popen:
    """wide_deep_model.py in two processes, with changes of its constants."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "script.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport wide_deep_model as stage2\n{changes}\n"
                      "if __name__ == '__main__':\n    sys.exit(stage2.run_script(stage2.main))\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), *stage2_flags(folder, data, *flags)]
    return subprocess.Popen(command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stage2_flags(folder: Path, data: Path, *flags: str) -> list[str]:
    return ["--data-dir", str(data), "--checkpoint", str(folder / "best.pt"), *FLAGS, *flags]


def finished(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Warning: " not in err, err
    return out


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("flags", [["--component", "wide-deep"], ["--component", "wide", "--wide-optimizer", "ftrl", "--wide-l1", "0.5"],
                                   ["--objective", "rating", "--deep-optimizer", "adagrad", "--wide", "user_id", "item_age_days"]], ids=str)
def test_two_workers_end_with_the_weights_of_one_process(data, tmp_path, flags, capsys):
    """Steps are those of one process: the same rows in a batch (the last has one of each worker), the same ids hidden, and the gradient of the whole."""
    flags = [*flags, "--batch-size", "240", "--epochs", "3", "--patience", "3", "--deep-lr", "0.003", "--wide-lr", "0.03"]
    two = start(tmp_path / "two", data, *flags)
    stage2.main(stage2_flags(tmp_path / "one", data, *flags))
    lines = [len(finished(two).splitlines()), len(capsys.readouterr().out.splitlines())]
    assert lines[0] == lines[1]  # the first worker alone talks
    found, expected = (weights(tmp_path / name / stage2.LAST) for name in ("two", "one"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-4, atol=1e-5)
        assert value.numel() == 0 or value.abs().max() > 0


def test_a_killed_worker_ends_the_run_which_resumes_to_the_very_same_weights(data, tmp_path):
    flags = ["--batch-size", "64", "--patience", "1000", "--dropout", "0.2", "--batch-norm"]
    process = start(tmp_path / "killed", data, *flags, "--epochs", "1000")
    try:
        while "epoch 2" not in process.stdout.readline():
            assert process.poll() is None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [int(pid) for pid in children if b"script.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0 and "SIGKILL" in err
    told = [line for line in err.splitlines() if line.startswith("script.py: error: worker 0 of 2 failed or lost another")]
    assert all("go on from the last epoch with --resume" in line for line in told)  # none where torchrun was quicker to stop it
    assert stage2.load_model(tmp_path / "killed" / "best.pt", "cpu").recommend(n=3)["item"].is_unique
    epochs = ["--epochs", str(torch.load(tmp_path / "killed" / stage2.LAST, weights_only=True)["epoch"] + 2)]
    log = "def validate(*rest):\n    found = real(*rest)\n    print(found, file=open(f'rank{stage2.RANK}', 'a'))\n    return found"
    whole = start(tmp_path / "whole", data, *flags, *epochs, changes=f"real = stage2.validate\n{log}\nstage2.validate = validate")
    finished(start(tmp_path / "killed", data, *flags, "--resume", *epochs))
    finished(whole)
    resumed = weights(tmp_path / "killed" / stage2.LAST)
    for name, value in weights(tmp_path / "whole" / stage2.LAST).items():
        assert torch.equal(resumed[name], value), name
    first, second = ((tmp_path / "whole" / f"rank{rank}").read_text() for rank in (0, 1))
    assert first == second and first.count("validation_auc") == int(epochs[1])  # so that both stop in the same epoch


def test_a_lost_worker_is_told_in_one_line(data, tmp_path, monkeypatch):
    """What the others do when a collective operation fails, without the race against the signal of torchrun."""
    def lost(run):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(stage2, "WORKERS", 2)
    monkeypatch.setattr(stage2.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(stage2.Run, "execute", lost)
    with pytest.raises(InputError, match="worker 0 of 2 failed or lost another: Connection closed by peer; go on from the last epoch with --resume"):
        stage2.main(stage2_flags(tmp_path, data))


def test_a_world_size_without_a_rank_is_not_from_torchrun():
    code, folder = "import wide_deep_model as m; print(m.RANK, m.WORKERS)", Path(stage2.__file__).parent
    for given, expected in (({"WORLD_SIZE": "2"}, "0 1"), ({"WORLD_SIZE": "2", "RANK": "1"}, "1 2")):
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | given, cwd=folder, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_more_workers_than_gpus_are_told_in_one_line(data, tmp_path, monkeypatch):
    def no_such_gpu(number):
        raise RuntimeError(f"CUDA error: invalid device ordinal {number}")

    monkeypatch.setattr(stage2, "WORKERS", 2)
    monkeypatch.setattr(stage2, "choose_device", str)
    monkeypatch.setattr(stage2.torch.cuda, "set_device", no_such_gpu)
    monkeypatch.setenv("LOCAL_RANK", "7")
    with pytest.raises(InputError, match=r"worker 0 of 2 failed.*invalid device ordinal 7"):
        stage2.main(stage2_flags(tmp_path, data, "--device", "cuda"))


def test_a_wrong_flag_ends_all_workers(data, tmp_path):
    process = start(tmp_path, data, "--deep-lr", "-1")
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and "script.py: error: --deep-lr must be above 0" in err and not (tmp_path / "best.pt").exists()


def test_batches_smaller_than_the_number_of_workers_are_refused(data, tmp_path, monkeypatch):
    for flags, workers in ((["--batch-size", "2"], 3), (["--batch-size", "3", "--batch-norm"], 2), (["--batch-size", "1", "--batch-norm"], 1)):
        monkeypatch.setattr(stage2, "WORKERS", workers)
        with pytest.raises(InputError, match=f"--batch-size {flags[1]} is too small for {workers} processes"):
            stage2.Run(stage2.parse_args(stage2_flags(tmp_path, data, *flags)), stage2.load_dataset(data))
