"""LoRA and nf4 against the packages that others train them with: peft and bitsandbytes, from PyPI (`make test-network`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from conftest import torch_model
from dcore_jax.lora import LoraConfig, export_adapter
from dcore_jax.models.adapters import dequantized
from oracles import logits_by_peft, nf4_by_bitsandbytes
from test_lora import TOKENS, numpy_state, setup_of, with_random_b

pytestmark = [pytest.mark.network, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "model"
    widths = {"vocab_size": 128, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2}
    torch_model("qwen3", head_dim=32, num_key_value_heads=2, **widths).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "targets", [("q_proj", "k_proj", "v_proj", "o_proj"), None], ids=["attention", "all"]
)
def test_peft_loads_an_exported_adapter_and_computes_what_we_do(folder, targets, tmp_path):
    lora = LoraConfig(rank=4, alpha=12.0, **({} if targets is None else {"targets": targets}))
    setup = setup_of(folder, lora)
    adapters = with_random_b(setup.load_params())
    ours = jax.jit(lambda m: m(TOKENS))(nnx.merge(setup.graph, adapters, setup.load_frozen()))
    export_adapter(setup.model_config, adapters, lora, tmp_path / "adapter", base=str(folder))
    theirs = logits_by_peft(folder, tmp_path / "adapter", TOKENS.tolist())
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_every_rounded_matrix_equals_bitsandbytes(folder):
    frozen = numpy_state(setup_of(folder, LoraConfig(rank=4, quantize="nf4")).load_frozen())
    tensors = load_file(folder / "model.safetensors")
    names, ours = [], []
    for path, codes in frozen.items():
        if path[-1] == "codes":
            absmax = frozen[*path[:-1], "absmax"]
            kernels = np.asarray(dequantized(jnp.asarray(codes), jnp.asarray(absmax)))
            part = {"attention": "self_attn", "mlp": "mlp"}[path[1]]
            names += [f"model.layers.{i}.{part}.{path[2]}_proj.weight" for i in range(len(kernels))]
            ours += [kernel.T for kernel in kernels]
    theirs = nf4_by_bitsandbytes([tensors[name] for name in names])
    for name, a, b in zip(names, ours, theirs, strict=True):
        np.testing.assert_allclose(a.ravel(), b, rtol=1e-6, atol=1e-9, err_msg=name)
