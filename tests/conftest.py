"""Eight virtual CPU devices, run-time shape checks, and small real checkpoints made by transformers."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "NPROC", "64"
)  # see mesh.prepare_devices: threads for 8 virtual devices that wait for one another
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Most of the suite's time is compilation: programs that run once need no optimised machine code, and every program is kept for
# the next run. As variables, so that the processes and notebooks that tests start do the same.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax

jax.config.update("jax_num_cpu_devices", 8)

from jaxtyping import install_import_hook

install_import_hook("dcore_jax", "beartype.beartype")

import pytest

try:
    import torch

    torch.set_num_threads(1)
except ImportError:  # an environment of `make aot`, whose tests need none
    torch = None

# name -> (transformers config class, fields): odd shapes on purpose.
_TINY = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def _checkpoint(kind: str, heads: int, kv_heads: int, rope: dict, **fields) -> tuple[str, dict]:
    return kind, {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rope_parameters": rope,
        **fields,
    }


def _theta(value: float) -> dict:
    return {"rope_type": "default", "rope_theta": value}


CHECKPOINTS = {
    "qwen3": _checkpoint("Qwen3", 4, 1, _theta(5e6), head_dim=20),
    "qwen3_tied": _checkpoint("Qwen3", 4, 4, _theta(1e6), head_dim=32, tie_word_embeddings=True),
    "qwen3_bias": _checkpoint("Qwen3", 4, 2, _theta(1e4), head_dim=16, attention_bias=True),
    "qwen2": _checkpoint("Qwen2", 4, 2, _theta(1e6)),
    "llama": _checkpoint("Llama", 4, 2, _LLAMA3),
    "llama_bias_tied": _checkpoint(
        "Llama", 4, 1, _theta(1e4), head_dim=24, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
}


def torch_model(name: str, **changes):
    """A random transformers model in float32; biases and norm scales are random too, so that nothing hides behind 0 or 1."""
    import transformers

    kind, fields = CHECKPOINTS[name]
    config = getattr(transformers, f"{kind}Config")(
        **{**_TINY, "initializer_range": 0.1, **fields, **changes}
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or parameter_name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


# For commands that tests start: torch is not found, as after `pip install dcore-jax`, and the seconds of its import are saved
# (transformers imports it where it is there).
CORE_INSTALL = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(
        filter(None, [str(Path(__file__).parent / "core_install"), os.environ.get("PYTHONPATH")])
    ),
}

# A file stays on one worker; started last, one of these would run alone while the other worker has nothing left to do.
SLOWEST_FILES = (
    "test_sft_run.py", "test_rl_run.py", "test_notebooks.py", "test_sft_step.py", "test_weights.py", "test_rl_notebook.py",
    "test_algorithms.py", "test_checkpoint.py", "test_rl_step.py", "test_algorithm_options.py", "test_cli.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """The slowest files first (`make test` keeps this order with --no-loadscope-reorder)."""
    rank = {name: index for index, name in enumerate(SLOWEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Folders of small random checkpoints, by the names of CHECKPOINTS; made when first asked for."""

    class Folders(dict):
        def __missing__(self, name):
            folder = tmp_path_factory.mktemp("checkpoints") / name
            torch_model(name).save_pretrained(folder)
            self[name] = folder
            return folder

    return Folders()


@pytest.fixture(scope="session")
def real_data():
    """The folder of real records beside the repository; tests that need it skip where it is absent."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder of real records beside the repository")
    return folder
