"""What training recipes share: stop signals, announced compilation, progress in a file, gradients that are not finite."""

import io
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dcore_jax import UserError, progress
from dcore_jax.atomic import atomic_folder, atomic_path, write_text_atomic
from dcore_jax.errors import check_choice, first_line
from dcore_jax.training import TrainState, apply_gradient, compilation
from dcore_jax.training.compilation import Program
from dcore_jax.training.preemption import preemption_signal


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_the_first_signal_asks_for_a_stop_and_the_handlers_come_back_after(number, name, capsys):
    before = signal.getsignal(number)
    with preemption_signal() as stop_requested:
        assert not stop_requested(1)
        os.kill(os.getpid(), number)
        wait_for(lambda: stop_requested(1))
        assert stop_requested.name == name
    assert signal.getsignal(number) is before
    assert f"{name}: saving after the current step" in capsys.readouterr().err


def test_a_second_signal_ends_a_process_that_is_busy_in_native_code():
    """Python's own handlers would wait for the call to end, as they would for a compilation of minutes."""
    program = (
        "import ctypes\n"
        "from dcore_jax.training.preemption import preemption_signal\n"
        "with preemption_signal():\n"
        "    print('ready', flush=True)\n"
        "    import time\n"
        "    end = time.monotonic() + 30\n"
        "    while time.monotonic() < end:\n"
        "        ctypes.CDLL(None).usleep(900_000)\n"
        "        ctypes.CDLL(None).pause\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    started = time.monotonic()
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - started < 10
    assert b"stopped at once" in errors and b"Traceback" not in errors


def test_a_long_compilation_says_so_once_per_shape_and_a_short_one_says_nothing(capsys, monkeypatch):
    class Slow:
        """Stands in for a jitted function whose compilation takes long."""

        def lower(self, *args):
            return self

        def compile(self):
            time.sleep(0.3)
            return lambda x: x + 1

    monkeypatch.setattr(compilation, "_QUIET_SECONDS", 0.1)
    monkeypatch.setattr(compilation, "_REPEAT_SECONDS", 0.1)
    program = Program(Slow(), "the training step")
    assert program(np.ones(2)).tolist() == [2.0, 2.0]
    text = capsys.readouterr().out
    assert text.startswith("compiling the training step ...\nstill compiling the training step (0 s)")
    assert "compiled the training step in 0 s" in text
    program(np.zeros(2))
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(compilation, "_QUIET_SECONDS", 5.0)
    program(np.zeros(3))
    assert capsys.readouterr().out == ""


def test_a_program_computes_what_the_jitted_function_does_and_donates():
    jitted = jax.jit(lambda x, y: x * y, donate_argnums=0)
    program = Program(jitted, "a product")
    for length in (3, 3, 5):
        x = jnp.arange(float(length))
        expected = jitted(jnp.array(x), np.float32(2))
        np.testing.assert_array_equal(program(x, np.float32(2)), expected)
        assert x.is_deleted()
    assert len(program._compiled) == 2


def test_in_a_file_progress_is_short_lines_at_each_tenth(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    bar = progress.progress_bar(100, unit="step", initial=20)
    for i in range(80):
        bar.set_postfix({"loss": f"{i:.1f}"})
        bar.update()
    bar.close()
    lines = written.getvalue().splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("step 30/100, ") and lines[0].endswith("step/s, loss=9.0")
    assert all("\r" not in line and len(line) < 80 for line in lines)


def test_on_a_terminal_progress_is_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    written = Terminal()
    monkeypatch.setattr(sys, "stderr", written)
    bar = progress.progress_bar(4, unit="step")
    bar.update(4)
    bar.close()
    assert "100%" in written.getvalue() and "\r" in written.getvalue()


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counter(bad):
    params = {"w": jnp.ones(3)}
    optimizer = optax.adam(0.1)
    state = TrainState(
        params, optimizer.init(params), params, jnp.zeros((), jnp.int32), jax.random.PRNGKey(0)
    )
    loss = jnp.float32(jnp.nan if bad == "loss" else 1.0)
    gradient = {"w": jnp.array([1.0, jnp.inf if bad == "gradient" else 1.0, 1.0])}
    applied = apply_gradient(state, loss, gradient, optimizer, ema_decay=0.5)
    assert not applied.finite
    for new, old in zip(jax.tree.leaves(applied.state[:3]), jax.tree.leaves(state[:3]), strict=True):
        np.testing.assert_array_equal(new, old)
    assert int(applied.state.step) == 1
    good = apply_gradient(state, jnp.float32(1), {"w": jnp.ones(3)}, optimizer, ema_decay=0.5)
    assert good.finite and float(good.gradient_norm) == pytest.approx(3**0.5)
    np.testing.assert_allclose(good.state.ema["w"], (1 + np.asarray(good.state.params["w"])) / 2, rtol=1e-6)


def test_a_file_and_a_folder_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")

    def fail():
        with atomic_path(path) as unfinished:
            unfinished.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    for fails in (True, False):
        try:
            with atomic_folder(tmp_path / "b") as unfinished:
                (unfinished / "x").write_text("1")
                assert not (tmp_path / "b").exists()
                if fails:
                    raise RuntimeError
        except RuntimeError:
            assert not (tmp_path / "b").exists()
    assert (tmp_path / "b" / "x").read_text() == "1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "b"]


def test_messages_share_their_phrases():
    with pytest.raises(UserError, match="engine 'x' is unknown; choose one of a, b"):
        check_choice("engine", "x", ["a", "b"])
    check_choice("engine", "a", ["a", "b"])
    assert first_line(ValueError("\n  one \ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
    assert issubclass(UserError, ValueError)
