"""What training recipes share: stop signals, announced compilation, progress in a file, gradients that are not finite."""

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from conftest import torch_model
from dcore_jax import UserError, progress
from dcore_jax.atomic import atomic_folder, atomic_path, write_text_atomic
from dcore_jax.checkpoint import Checkpoints
from dcore_jax.errors import check_choice, first_line
from dcore_jax.mesh import make_mesh
from dcore_jax.training import (
    ComputeConfig,
    OptimizerConfig,
    TrainSetup,
    TrainState,
    apply_gradient,
    compilation,
    make_optimizer,
)
from dcore_jax.training.compilation import Program
from dcore_jax.training.preemption import preemption_signal
from dcore_jax.training.state import state_from_trees, state_to_trees


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
        "    end = time.monotonic() + 300\n"
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
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 130
    assert time.monotonic() - started < 20
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


RL_RATE = 1e-6
SETTINGS = OptimizerConfig(learning_rate=RL_RATE, schedule="constant", warmup=0.0, weight_decay=0.01)


def setup_of(folder, param_dtype, mesh="8", **optimizer):
    return TrainSetup(
        folder,
        make_mesh(mesh),
        compute=ComputeConfig(dtype="float32", param_dtype=param_dtype, remat="none"),
        optimizer=replace(SETTINGS, **optimizer),
        updates=100,
        seed=0,
    )


def train_steps(setup, state, count, first=0):
    """RL-sized updates on random gradients of the parameters' own dtype, the same in every run."""

    @jax.jit
    def step(state, key):
        leaves, tree = jax.tree.flatten(state.params)
        keys = jax.random.split(key, len(leaves))
        drawn = [jax.random.normal(k, x.shape, jnp.bfloat16).astype(x.dtype) for k, x in zip(keys, leaves)]
        return apply_gradient(
            state, jnp.float32(1), jax.tree.unflatten(tree, drawn), setup.optimizer, ema_decay=setup.ema_decay
        ).state

    for i in range(first, first + count):
        state = step(state, jax.random.PRNGKey(i))
    return state


@pytest.fixture(scope="module")
def bf16_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bf16") / "model"
    model = torch_model("qwen3", vocab_size=128, head_dim=16, num_key_value_heads=2)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_bfloat16_parameters_move_at_rl_s_learning_rate_as_float32_ones_do(bf16_folder):
    exact, half = (setup_of(bf16_folder, dtype) for dtype in ("float32", "bfloat16"))
    before = half.initial_state(half.load_params())
    start = jax.tree.map(np.asarray, before.optimizer.masters)
    ours = train_steps(half, before, 30)
    theirs = train_steps(exact, exact.initial_state(exact.load_params()), 30)
    moved = total = 0
    masters = ours.optimizer.masters
    for master, first, param, wanted in zip(
        *map(jax.tree.leaves, (masters, start, ours.params, theirs.params))
    ):
        assert (master.dtype, param.dtype) == (jnp.float32, jnp.bfloat16)
        np.testing.assert_array_equal(param, master.astype(jnp.bfloat16))
        np.testing.assert_allclose(master, wanted, rtol=1e-6, atol=1e-9)  # the float32 run's
        moved, total = moved + np.count_nonzero(np.asarray(master) != first), total + master.size
    assert moved > 0.999 * total > 1000
    # Without masters each update rounds to nothing in nearly every parameter.
    plain = make_optimizer(SETTINGS, half.schedule)
    params = half.load_params()
    state = TrainState(params, plain.init(params), None, jnp.zeros((), jnp.int32), jax.random.PRNGKey(0))
    stuck = train_steps(SimpleNamespace(optimizer=plain, ema_decay=0.0), state, 30).params
    unmoved = sum(
        int(jnp.sum(a == b)) for a, b in zip(jax.tree.leaves(stuck), jax.tree.leaves(half.load_params()))
    )
    assert unmoved > 0.95 * total


def test_masters_lie_where_their_parameters_lie_and_resume_bit_for_bit(bf16_folder, tmp_path):
    setup = setup_of(bf16_folder, "bfloat16", ema_decay=0.999)
    state = train_steps(setup, setup.initial_state(setup.load_params()), 3)
    for master, param, average in zip(
        *map(jax.tree.leaves, (state.optimizer.masters, state.params, state.ema))
    ):
        assert master.sharding.is_equivalent_to(param.sharding, param.ndim)
        assert average.dtype == jnp.float32
    kernel = state.optimizer.masters["layers"]["mlp"]["up"]["kernel"].get_value()
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size
    with closing(Checkpoints(tmp_path)) as saved:
        saved.save(3, state_to_trees(state), {})
    whole = train_steps(setup, state, 3, first=3)
    restored, _ = Checkpoints(tmp_path).restore(3, state_to_trees(setup.abstract_state))
    resumed = train_steps(setup, state_from_trees(restored), 3, first=3)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert any(np.any(np.asarray(a) != np.asarray(b, np.float32)) for a, b in zip(
        jax.tree.leaves(whole.ema), jax.tree.leaves(whole.params)
    ))  # fmt: skip


def test_an_offloaded_state_lies_in_host_memory_and_trains_to_the_same_bits(bf16_folder, tmp_path):
    on_host, here = (setup_of(bf16_folder, "float32", offload=offload) for offload in (True, False))

    def trained(setup, state):
        step = setup.compile_step(lambda state, _: (train_steps(setup, state, 1), ()), "a step")
        return step(state, jnp.zeros(()))[0]

    ours, theirs = (trained(s, s.initial_state(s.load_params())) for s in (on_host, here))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(ours.optimizer) if x.ndim}
    assert kinds == {"pinned_host"}
    assert {x.sharding.memory_kind for x in jax.tree.leaves(ours.params)} == {"device"}
    with closing(Checkpoints(tmp_path)) as saved:
        saved.save(1, state_to_trees(ours), {})
    restored, _ = Checkpoints(tmp_path).restore(1, state_to_trees(on_host.abstract_state))
    jax.tree.map(np.testing.assert_array_equal, state_from_trees(restored), ours)


def test_a_bfloat16_first_moment_takes_two_bytes_and_moves_the_parameters_nearly_as_before(bf16_folder):
    half, exact = (setup_of(bf16_folder, "float32", moments=name) for name in ("bfloat16", "float32"))
    start = exact.load_params()
    ours, theirs = (train_steps(s, s.initial_state(s.load_params()), 10) for s in (half, exact))
    sizes = [sum(x.nbytes for x in jax.tree.leaves(s.optimizer)) for s in (ours, theirs)]
    parameters = sum(x.size for x in jax.tree.leaves(start))
    assert sizes[1] - sizes[0] == 2 * parameters
    moves = [
        jnp.concatenate([(a - b).ravel() for a, b in zip(*map(jax.tree.leaves, (s.params, start)))])
        for s in (ours, theirs)
    ]
    assert jnp.linalg.norm(moves[0] - moves[1]) < 0.01 * jnp.linalg.norm(moves[1])


def test_float16_compute_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"compute.dtype=float16 .* no loss scaling; use bfloat16$"):
        ComputeConfig(dtype="float16")
