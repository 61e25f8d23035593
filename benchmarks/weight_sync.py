"""Seconds to bring a policy's weights to the host in bfloat16 as Hugging Face tensors: what each step of RL does for vLLM.

    python benchmarks/weight_sync.py [--hidden 1024 --layers 28 ... ] [--devices 2] [--rounds 3]

Random float32 weights, by default of Qwen3-0.6B's shapes, split over the devices. Contestants take turns in every round;
medians: `devices` casts and transposes on the devices (`hf_tensors`), `host` does both in numpy after the transfer, as the
trainer did until November 2026; `folder` is the whole snapshot on disk (`export_decoder`). The last line is one JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dcore_jax.mesh import make_mesh, prepare_devices
from dcore_jax.models import Decoder, model_config_from_hf
from dcore_jax.weights import export_decoder, hf_tensors, new_decoder, parameters
from dcore_jax.weights.names import parameter_values
from heading import heading


def main() -> None:
    args = parse()
    prepare_devices(str(args.devices))
    device = jax.devices()[0]
    print(heading(["jax", "jaxlib", "flax"], None if device.platform == "cpu" else device.device_kind))
    decoder = new_decoder(model_config_from_hf(fields(args)), mesh=make_mesh(str(args.devices)))
    check(decoder)
    ways: dict[str, Callable[[], None]] = {
        "host": lambda: drain(host_tensors(decoder)),
        "devices": lambda: drain(hf_tensors(decoder, dtype=jnp.bfloat16)),
        "folder": lambda: snapshot(decoder),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds + 1):  # the first compiles
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(found[1:]) for name, found in seconds.items()}
    size = 2 * decoder.config.num_parameters / 1e9
    print(
        f"{decoder.config.num_parameters:,} parameters on {args.devices} devices, {size:.2f} GB in bfloat16\n"
    )
    print("| way | seconds | GB/s |\n|---|--:|--:|")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} | {size / median:.2f} |")
    print(json.dumps({**medians, "host_over_devices": medians["host"] / medians["devices"]}))


def host_tensors(decoder: Decoder) -> Iterator[tuple[str, np.ndarray]]:
    """float32 to the host, transposed and cast there."""
    values = parameter_values(decoder)
    for row in parameters(decoder.config):
        value = values[row.path]
        for layer in range(decoder.config.num_layers) if row.stacked else (None,):
            whole = np.empty(value.shape if layer is None else value.shape[1:], value.dtype)
            for shard in value.addressable_shards:
                if shard.replica_id == 0:
                    index = shard.index if layer is None else shard.index[1:]
                    whole[index] = np.asarray(shard.data if layer is None else shard.data[layer])
            oriented = np.ascontiguousarray(whole.T) if row.transposed else whole
            name = row.tensor if layer is None else row.tensor.format(layer=layer)
            yield name, oriented.astype(jnp.bfloat16)


def check(decoder: Decoder) -> None:
    """Raises AssertionError unless both ways give the same bits."""
    ours = dict(hf_tensors(decoder, dtype=jnp.bfloat16))
    for name, tensor in host_tensors(decoder):
        assert tensor.tobytes() == ours[name].tobytes(), name


def drain(tensors: Iterator[tuple[str, np.ndarray]]) -> None:
    for _ in tensors:
        pass


def snapshot(decoder: Decoder) -> None:
    with tempfile.TemporaryDirectory() as folder:
        export_decoder(decoder, Path(folder) / "hf", dtype="bfloat16", max_shard_bytes=10**9)


def fields(args: argparse.Namespace) -> dict[str, object]:
    return {
        "model_type": "qwen3",
        "vocab_size": args.vocab,
        "hidden_size": args.hidden,
        "intermediate_size": args.intermediate,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {"vocab": 151936, "hidden": 1024, "intermediate": 3072, "layers": 28, "heads": 16, "kv-heads": 8}
    for name, value in {**sizes, "devices": 2, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args()


if __name__ == "__main__":
    main()
