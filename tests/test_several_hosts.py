"""Runs of several hosts, as real processes: each host a network namespace of this machine with its own address.

A host is killed, or the wire to it is cut; the other ends by itself. The last checkpoint goes on in one process, on another mesh.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from conftest import CORE_INSTALL
from dcore_jax.config import write_config
from dcore_jax.metrics import read_metrics
from dcore_jax.nano import NanoConfig
from dcore_jax.processes import HEARTBEAT_TIMEOUT
from dcore_jax.sft import PackingConfig, SFTConfig
from dcore_jax.training import CheckpointConfig, ComputeConfig, OptimizerConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # seconds; two cores are shared by all processes

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_sft.py"
STEPS = 24
CONFIG = SFTConfig(
    model="nano",
    data=("toolworld:80,subtasks=1-2",),
    steps=STEPS,
    rows=8,
    packing=PackingConfig(length=384),
    optimizer=OptimizerConfig(learning_rate=3e-3),
    compute=ComputeConfig(dtype="float32", remat="none"),
    checkpoint=CheckpointConfig(every=4),
    nano=NanoConfig(hidden=64, layers=1),
)
ENVIRONMENT = {**CORE_INSTALL, "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu"}
for name in ("NPROC", "XLA_FLAGS"):  # as a user's shell has it
    ENVIRONMENT.pop(name, None)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Host:
    """A network namespace with an address on a bridge that it shares with the others."""

    def __init__(self, name: str, address: str):
        self.name, self.address = name, address

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *words]

    def cut(self) -> None:
        """Pulls the plug: nothing is closed, nothing arrives."""
        ip("-n", self.name, "link", "set", "wire", "down")


@pytest.fixture
def hosts():
    """Two hosts of this machine that see each other and nothing else."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need iproute2 and root")
    tag = f"dcore{os.getpid() % 10000}"
    with ExitStack() as undo:

        def made(remove: list[str], *words: str) -> None:
            try:
                ip(*words)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
            undo.callback(subprocess.run, ["ip", *remove], capture_output=True)

        found = [Host(f"{tag}{index}", f"10.77.0.{index + 1}") for index in range(2)]
        for host in found:
            made(["netns", "del", host.name], "netns", "add", host.name)
            # What `ip netns exec` shows as /etc/hosts: the CPU's collectives listen where this machine's name leads.
            names = Path("/etc/netns") / host.name
            names.mkdir(parents=True)
            undo.callback(shutil.rmtree, names)
            (names / "hosts").write_text(f"127.0.0.1 localhost\n{host.address} {socket.gethostname()}\n")
        a, b = found
        ip("link", "add", "wire", "netns", a.name, "type", "veth", "peer", "name", "wire", "netns", b.name)
        for host in found:
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "wire")
            for device in ("lo", "wire"):
                ip("-n", host.name, "link", "set", device, "up")
        yield found


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "sft.yaml"
    write_config(CONFIG, path)
    return path


def start(hosts, config, output, mesh, *, torchrun=False):
    """One process on each host, in `output`, which all of them share."""
    processes, count = [], str(len(hosts))
    for index, host in enumerate(hosts):
        if torchrun:
            own = {
                "MASTER_ADDR": hosts[0].address,
                "MASTER_PORT": "29500",
                "WORLD_SIZE": count,
                "RANK": str(index),
            }
        else:
            own = {
                "DCORE_COORDINATOR": f"{hosts[0].address}:29500",
                "DCORE_PROCESSES": count,
                "DCORE_PROCESS_ID": str(index),
            }
        command = host.command(
            sys.executable, str(SCRIPT), "--config", str(config), "--output", str(output), "--mesh", mesh
        )  # fmt: skip
        log = (output.parent / f"{output.name}-{index}.log").open("w")
        processes.append(
            subprocess.Popen(
                command,
                env={**ENVIRONMENT, **own},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )  # `ip netns exec` becomes the process itself
    return processes


def text_of(output, index):
    return (output.parent / f"{output.name}-{index}.log").read_text()


def checkpoints(output):
    return sorted(int(path.name) for path in (output / "checkpoints").glob("[0-9]*") if path.name.isdecimal())


def wait_for_checkpoint(output, processes):
    while not checkpoints(output):
        for index, process in enumerate(processes):
            assert process.poll() is None, text_of(output, index)
        time.sleep(0.1)


def losses(output):
    rows = read_metrics(output / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return [row["loss"] for row in rows]


def seconds_until_it_ends(process, most):
    start = time.monotonic()
    try:
        process.wait(timeout=most)
    finally:
        if process.poll() is None:
            process.kill()
    return time.monotonic() - start


@pytest.fixture(scope="module")
def whole(config_file, tmp_path_factory):
    """The run of one process that nobody disturbs."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    command = [
        sys.executable,
        str(SCRIPT),
        "--config",
        str(config_file),
        "--output",
        str(output),
        "--mesh",
        "1",
    ]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    return losses(output)


@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_host_ends_the_other_and_one_process_goes_on_from_their_checkpoint(
    victim, hosts, config_file, whole, tmp_path
):
    output = tmp_path / "two"
    processes = start(hosts, config_file, output, "2", torchrun=victim == 0)
    try:
        wait_for_checkpoint(output, processes)
        processes[victim].send_signal(signal.SIGKILL)
        other = 1 - victim
        assert seconds_until_it_ends(processes[other], 2 * HEARTBEAT_TIMEOUT) < HEARTBEAT_TIMEOUT
    finally:
        for process in processes:
            process.kill()
    text = text_of(output, other)
    assert processes[other].returncode not in (0, None)
    errors = [line for line in text.splitlines() if line.startswith("error:")]
    if victim == 1 or errors:
        assert processes[other].returncode == 1 and len(errors) == 1 and "Traceback" not in text
        assert f"process {other} of 2 has lost another one" in errors[0]
    else:  # the coordinator was in the one that died: JAX's service may end the other before Python can say anything
        assert "Terminating process because the JAX distributed service detected fatal errors" in text
    # Two processes of one device each wrote it; one process of four devices goes on, with a mesh of another shape.
    assert 0 < checkpoints(output)[-1] < STEPS
    command = [
        sys.executable,
        str(SCRIPT),
        "--config",
        str(config_file),
        "--output",
        str(output),
        "--mesh",
        "data=2,fsdp=2",
    ]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    np.testing.assert_allclose(losses(output), whole, atol=1e-4)


def test_a_host_behind_a_cut_wire_is_given_up(hosts, config_file, tmp_path):
    output = tmp_path / "cut"
    processes = start(hosts, config_file, output, "2")
    try:
        wait_for_checkpoint(output, processes)
        hosts[1].cut()
        cut = time.monotonic()
        for process in processes:
            seconds_until_it_ends(process, 3 * HEARTBEAT_TIMEOUT)
            assert time.monotonic() - cut < 3 * HEARTBEAT_TIMEOUT
    finally:
        for process in processes:
            process.kill()
    for index, process in enumerate(processes):
        text = text_of(output, index)
        errors = [line for line in text.splitlines() if line.startswith("error:")]
        if errors:
            assert process.returncode == 1 and len(errors) == 1 and "has lost another one" in errors[0]
        else:  # JAX's service, which notices the silence too, has ended it before Python could say anything
            assert process.returncode not in (0, None)
            assert "Terminating process because the JAX distributed service detected fatal errors" in text
