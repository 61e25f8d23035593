"""transformers + torch as a contestant of benchmarks/sft.py: the same steps, written as its users write them."""

from typing import Any

import numpy as np
import torch
import transformers

from contestant import serve


def setup(spec: dict[str, Any]):
    cuda = torch.cuda.is_available()
    if not cuda:
        torch.set_num_threads(spec["threads"])
    device = torch.device("cuda" if cuda else "cpu")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    model.to(device).train()
    if spec["remat"] != "none":
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec["learning_rate"], weight_decay=0.0, fused=True)
    batches = np.load(spec["batches"])
    half = spec["dtype"] != "float32"

    def run(i: int) -> tuple[float, int]:
        at = f"{i % spec['steps']}/"
        # Full rows come without a mask.
        tokens, mask, labels = (
            torch.from_numpy(batches[at + name]).to(device) if at + name in batches else None
            for name in ("tokens", "attention_mask", "labels")
        )
        value, loss_tokens = 0.0, (labels[:, 1:] != -100).sum()
        for start in range(0, len(tokens), spec["rows_at_a_time"]):
            part = slice(start, start + spec["rows_at_a_time"])
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
                loss = model(
                    input_ids=tokens[part],
                    attention_mask=None if mask is None else mask[part],
                    labels=labels[part],
                    num_items_in_batch=loss_tokens,
                    use_cache=False,
                ).loss
            loss.backward()
            value += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        return value, torch.cuda.max_memory_allocated() if cuda else 0

    return run


if __name__ == "__main__":
    serve(setup)
