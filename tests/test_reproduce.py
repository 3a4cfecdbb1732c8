"""benchmarks/reproduce.py: the printed command lines are real ones, and the table's figures are those of the reports."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

import amazon_preprocessing as stage1
import model_evaluation as me
import wide_deep_model as stage2

BENCHMARKS = Path(stage1.__file__).parent / "benchmarks"


@pytest.fixture(scope="module")
def reproduce():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("reproduce", BENCHMARKS / "reproduce.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["reproduce"] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_every_published_system_is_three_lines_that_the_scripts_accept(reproduce):
    parsers = {"amazon_preprocessing.py": stage1, "wide_deep_model.py": stage2, "model_evaluation.py": me}
    for e in reproduce.experiments():
        lines = [line.removeprefix("# or: ").split() for line in reproduce.commands(e, Path("data")).splitlines() if "python " in line]
        assert [line[1] for line in lines] == ["amazon_preprocessing.py", *["wide_deep_model.py"] * len(e.variants), "model_evaluation.py"]
        for _, script, *flags in lines:
            parsers[script].parse_args(flags)
    assert {e.row[0] for e in reproduce.experiments()} == set("1234567")


def report(rmse: float, baseline: float, surprise: float) -> dict:
    return {
        "models": {"wide_deep": {"ratings": {"rmse": rmse}}, "mean_bias": {"ratings": {"rmse": baseline}}},
        "intervals": {"wide_deep": {"ratings.rmse": [0.5, 1.5]}},
        "surprise": {"SVD": {"ratings.rmse": surprise}},
    }


def test_intervals_over_runs_are_those_of_a_t_test(reproduce):
    ours, baseline = np.array([0.80, 0.83, 0.79]), np.array([0.82, 0.86, 0.80])
    reports = [report(a, b, 0.9) for a, b in zip(ours, baseline)]
    low, high = ttest_1samp(ours, 0).confidence_interval()
    assert reproduce.figure(reports, reproduce.RMSE) == f"{ours.mean():.4f} [{low:.4f}, {high:.4f}]"
    low, high = ttest_1samp(ours - baseline, 0).confidence_interval()
    assert reproduce.best_baseline(reports, reproduce.RMSE) == f"user + item mean {baseline.mean():.4f} (ours -0.0200 [{low:+.4f}, {high:+.4f}])"


def test_runs_that_do_not_differ_have_the_interval_of_one_and_shares_end_at_one(reproduce):
    same = [report(0.8, 0.9, 0.7)] * 3
    same[0] = same[0] | {"differences": {"mean_bias": {"ratings.rmse": {"interval": [-0.3, 0.1]}}}, "surprise": {}}
    assert reproduce.figure(same, reproduce.RMSE) == "0.8000 [0.5000, 1.5000]"
    assert reproduce.best_baseline(same, reproduce.RMSE) == "user + item mean 0.9000 (ours -0.1000 [-0.3000, +0.1000])"
    shares = [{"models": {"wide_deep": {"ratings": {"auc": value}}}} for value in (1.0, 0.9)]
    assert reproduce.figure(shares, reproduce.AUC) == "0.9500 [0.3147, 1.0000]"


def test_one_run_has_the_interval_of_its_report_and_the_best_baseline_is_found_among_all(reproduce):
    assert reproduce.figure([report(0.8, 0.9, 0.7)], reproduce.RMSE) == "0.8000 [0.5000, 1.5000]"
    assert reproduce.best_baseline([report(0.8, 0.9, 0.7)], reproduce.RMSE) == "SVD 0.7000"
    assert reproduce.figure([report(0.8, 0.9, 0.7)], "models.wide_deep.catalogue.precision@5") == "-"
