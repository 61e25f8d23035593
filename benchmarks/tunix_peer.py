"""google-tunix as a contestant of benchmarks/sft.py: its PeftTrainer's own compiled step, all parameters trained.

Runs in an environment of its own (docs/results/sft.md), where this project is not installed.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen3 import model as qwen3
from tunix.models.qwen3 import params as qwen3_params
from tunix.sft import peft_trainer
from tunix.sft import utils as sft_utils

from contestant import serve


def setup(spec: dict[str, Any]):
    fields = json.loads((Path(spec["model"]) / "config.json").read_text())
    theta = fields.get("rope_theta") or fields["rope_parameters"]["rope_theta"]
    config = qwen3.ModelConfig(
        num_layers=fields["num_hidden_layers"],
        vocab_size=fields["vocab_size"],
        embed_dim=fields["hidden_size"],
        hidden_dim=fields["intermediate_size"],
        num_heads=fields["num_attention_heads"],
        head_dim=fields["head_dim"],
        num_kv_heads=fields["num_key_value_heads"],
        rope_theta=int(theta),
        norm_eps=fields["rms_norm_eps"],
        use_tied_embedding=fields["tie_word_embeddings"],
    )
    kinds = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=kinds, devices=jax.devices()[:1])
    batches = np.load(spec["batches"])
    device = jax.devices()[0]
    with mesh:
        dtype = getattr(jnp, spec["dtype"])
        model = qwen3_params.create_model_from_safe_tensors(spec["model"], config, mesh, dtype=dtype)
        optimizer = optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(spec["learning_rate"], weight_decay=0.0)
        )
        settings = peft_trainer.TrainingConfig(eval_every_n_steps=10**9, max_steps=10**9)
        trainer = peft_trainer.PeftTrainer(model, optimizer, settings)

        def model_input(batch):
            mask = batch.input_mask.astype(bool)
            return {
                "input_tokens": batch.input_tokens,
                "input_mask": mask,
                "positions": sft_utils.build_positions_from_mask(mask),
                "attention_mask": sft_utils.make_causal_attn_mask(mask),
            }

        trainer = trainer.with_gen_model_input_fn(model_input)
        train_step, _ = trainer.jit_train_and_eval_step()

    def run(i: int) -> tuple[float, int]:
        tokens = batches[f"{i % spec['steps']}/tokens"].astype(np.int32)
        batch = peft_trainer.TrainingInput(input_tokens=tokens, input_mask=np.ones_like(tokens))
        with mesh:
            loss, *_ = train_step(trainer._prepare_inputs(batch))
            jax.block_until_ready(nnx.state(trainer.model))
        return float(loss), (device.memory_stats() or {}).get("peak_bytes_in_use", 0)

    return run


if __name__ == "__main__":
    serve(setup)
