"""`dcore bench`: its counts of work, its shares of a device's peaks, and a run of it."""

import pytest

from dcore_jax import UserError, aot
from dcore_jax.cli import main
from dcore_jax.cli.bench import run
from dcore_jax.plan import bench
from dcore_jax.plan.bench import BenchSize, Measured, attention_work, bench_table, head_work
from dcore_jax.plan.roofline import Rates
from dcore_jax.plan.work import Work

TINY = ["--tokens", "32", "--width", "16", "--vocab", "256", "--repeats", "1"]


def test_work_counts_three_products_with_the_vocabulary_and_twelve_flops_a_key():
    size = BenchSize(tokens=4, width=8, vocab=16, heads=4, head_dim=2, dtype="bfloat16")
    assert head_work(size) == Work(6 * 4 * 8 * 16, 6 * 4 * 8 * 16, 2 * 2 * (4 * 8 + 8 * 16))
    keys = 1 + 2 + 3 + 4
    assert attention_work(size).flops == 12 * 4 * 2 * keys
    assert attention_work(size).traffic == 2 * 2 * (4 * 2) * (
        4 + 1 + 1 + 4
    )  # q, k, v, output and their gradients


def test_shares_are_those_of_the_peaks_and_the_limit_is_the_slower_of_the_two():
    rates = Rates(flops=100.0, bandwidth=10.0, interconnect=1.0)
    bound_by_arithmetic = Measured("head", "blocked", 4.0, 0, Work(200.0, 200.0, 10.0))
    assert bound_by_arithmetic.shares(rates) == (0.5, 0.25, 0.5)
    bound_by_memory = Measured("head", "blocked", 4.0, 0, Work(100.0, 100.0, 30.0))
    assert bound_by_memory.shares(rates) == (0.25, 0.75, 0.75)


def test_a_table_has_shares_where_the_devices_peaks_are_known():
    device = aot.device_of("h100")
    work = Work(device.peak_flops / 2, device.peak_flops / 2, device.bandwidth / 4)
    found = [
        Measured("head", "blocked", 1.0, 2**20, work),
        Measured("head", "pallas", float("nan"), 0, work, "too large"),
    ]
    assert "| 50% | 25% | 50% |" in bench_table(found, device)
    assert "MFU" not in bench_table(found, None) and "refused: too large" in bench_table(found, None)


def test_a_cpu_gets_times_and_no_share(capsys, monkeypatch):
    main(["bench", *TINY])
    text = capsys.readouterr().out
    rows = [line for line in text.splitlines() if line.startswith(("| cross", "| logprobs", "| attention"))]
    assert len(rows) == 5 and "a CPU has no stated peak" in text and "MFU |" not in text
    monkeypatch.setattr(bench, "device_at_hand", lambda: aot.device_of("h200"))
    main(["bench", *TINY])
    assert "of the limit |" in capsys.readouterr().out


def test_a_size_that_is_none_is_one_line():
    with pytest.raises(UserError, match=r"tokens=0 must be at least 1"):
        run(["--tokens", "0"])
    with pytest.raises(UserError, match=r"dtype=int8 must be float32 or bfloat16"):
        run(["--dtype", "int8"])
