"""pass^k, intervals and paired comparisons against scipy, enumeration and closed forms."""

import itertools
import json

import numpy as np
import pytest
from scipy import stats

from dcore_jax import cli
from dcore_jax.errors import UserError
from dcore_jax.evaluation.compare import compare
from dcore_jax.evaluation.statistics import bootstrap_interval, mcnemar_exact, paired_difference, pass_hat_k
from dcore_jax.evaluation.summary import Evaluation, Item, write_evaluation


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pass_hat_k_is_the_share_of_k_subsets_that_all_succeed(k):
    outcomes = [(1, 1, 0, 1), (0, 0, 0, 0), (1, 1, 1, 1), (1, 0, 0, 1)]
    by_hand = [
        np.mean([all(subset) for subset in itertools.combinations(outcome, k)]) for outcome in outcomes
    ]
    found = pass_hat_k([sum(outcome) for outcome in outcomes], [4] * 4, k)
    assert found == pytest.approx(np.mean(by_hand))


def test_pass_hat_k_refuses_what_it_cannot_estimate():
    with pytest.raises(UserError, match=r"pass\^3 needs 3 trials of every item; there are 2"):
        pass_hat_k([1, 2], [4, 2], 3)
    with pytest.raises(UserError):
        pass_hat_k([], [], 1)


@pytest.mark.parametrize("values", [[1.0] * 60 + [0.0] * 40, list(np.linspace(-1, 2, 150) ** 2)])
def test_the_interval_is_scipys_percentile_bootstrap(values):
    """The first goes through counts of distinct values, the second through resampled items."""
    ours = bootstrap_interval(np.array(values), resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_the_interval_of_shares_is_the_binomials():
    low, high = bootstrap_interval(np.array([1.0] * 300 + [0.0] * 700), resamples=50_000)
    assert low == pytest.approx(stats.binom.ppf(0.025, 1000, 0.3) / 1000, abs=0.0011)
    assert high == pytest.approx(stats.binom.ppf(0.975, 1000, 0.3) / 1000, abs=0.0011)
    assert bootstrap_interval(np.ones(5)) == (1.0, 1.0)
    assert all(np.isnan(bootstrap_interval(np.array([], float))))


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (5, 5), (10, 2), (0, 7), (300, 340), (1200, 900)])
def test_mcnemar_is_the_two_sided_binomial_test(won, lost):
    expected = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert mcnemar_exact(won, lost) == pytest.approx(expected, rel=1e-9)


def test_a_paired_difference_is_narrower_than_an_unpaired_one():
    random = np.random.default_rng(0)
    a = (random.random(500) < 0.5).astype(float)
    b = a.copy()
    b[:30] = 1 - b[:30]
    found = paired_difference(a, b)
    assert found.difference == pytest.approx(b.mean() - a.mean())
    assert (found.won, found.lost) == (int((1 - a[:30]).sum()), int(a[:30].sum()))
    # The bootstrap of 0/1 differences has nearly the normal interval of their mean.
    half = 1.96 * (b - a).std() / np.sqrt(500)
    assert found.interval.high - found.interval.low == pytest.approx(2 * half, rel=0.1)
    assert half < 0.5 * 1.96 * np.sqrt(a.var() / 500 + b.var() / 500)


def evaluation(model, rewards, **items):
    rows = [
        Item(f"q{i}", "live" if i < 3 else "multi", float(r), reason=f"{model} fails")
        for i, r in enumerate(rewards)
    ]
    return Evaluation("bench", model, (*rows, *items.get("more", ())))


def test_two_evaluations_are_compared_on_the_items_that_both_have(tmp_path, capsys):
    a = evaluation("A", [1, 0, 0, 0, 1], more=[Item("own", "live", 1.0)])
    b = evaluation("B", [1, 1, 1, 0, 0])
    for name, one in (("a", a), ("b", b)):
        write_evaluation(tmp_path / name, one, seconds=1.0)
    folders = [str(tmp_path / name) for name in ("a", "b", "out")]
    cli.main(["eval", "compare", *folders[:2], "--output", folders[2]])
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (found["won"], found["lost"], found["only_a"], found["only_b"]) == (["q1", "q2"], ["q4"], 1, 0)
    row = found["categories"]["live"]
    assert (row["a"], row["b"], row["won"], row["lost"]) == (pytest.approx(1 / 3), 1.0, 2, 0)
    assert found["all"]["difference"] == pytest.approx(0.2) and found["all"]["p_value"] == pytest.approx(1.0)
    low, high = found["all"]["interval"]
    assert low < 0.2 < high
    said = capsys.readouterr().out
    assert "won 2, lost 1" in said and "1 items are only in a" in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert "A fails" in page and "B fails" in page


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(UserError, match="one benchmark"):
        compare(evaluation("A", [1]), Evaluation("other", "B", ()))
    with pytest.raises(UserError, match="share no item"):
        compare(evaluation("A", [1]), Evaluation("bench", "B", (Item("x", "live", 1.0),)))
    with pytest.raises(SystemExit):
        cli.main(["eval", "compare", str(tmp_path)])


def test_the_summary_has_intervals_over_items_not_trials(tmp_path):
    rows = [Item(f"q{i}", "live", float(i % 2), trial=trial) for i in range(50) for trial in range(4)]
    write_evaluation(tmp_path, Evaluation("bench", "A", tuple(rows)), seconds=1.0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    low, high = summary["intervals"]["live"]
    # 50 items, not 200 answers: half width 1.96 * 0.5 / sqrt(50) = 0.139
    assert (high - low) / 2 == pytest.approx(0.139, abs=0.015)
    assert set(summary["categories"]["live"]) == {"correct", "total", "accuracy"}
    assert summary["intervals"]["all"] == [low, high]
