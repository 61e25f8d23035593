"""Metrics: one JSON object a step, trackers on request, FLOPs that count what is useful."""

import json
import sys

import pytest

from dcore_jax import UserError
from dcore_jax.mesh import parse_mesh
from dcore_jax.metrics import MetricLog, peak_flops, read_metrics, training_flops
from dcore_jax.models import model_config_from_hf
from dcore_jax.plots import moving_average, plot_loss


def rows(count):
    return [
        {"step": i + 1, "loss": 2.0 / (i + 1), "learning_rate": 1e-3, "gradient_norm": 1.0}
        for i in range(count)
    ]


def test_a_resumed_log_drops_the_steps_that_run_again_and_a_half_written_line(tmp_path):
    log = MetricLog(tmp_path)
    for row in rows(5):
        log.write(row)
    log.close()
    with log.path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert [row["step"] for row in read_metrics(log.path)] == [1, 2, 3, 4, 5]
    again = MetricLog(tmp_path, last_step=3)
    again.write({"step": 4, "loss": float("nan")})
    again.close()
    assert read_metrics(log.path) == [*rows(3), {"step": 4, "loss": "nan"}]
    assert all(json.loads(line) for line in log.path.read_text().splitlines())


def test_tensorboard_gets_every_number(tmp_path):
    log = MetricLog(tmp_path, ("tensorboard",))
    log.write(rows(1)[0])
    log.close()
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_tracker_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not there
    with pytest.raises(UserError, match="tracker wandb needs the package wandb: pip install wandb"):
        MetricLog(tmp_path, ("wandb",))


def test_training_flops_are_six_per_weight_and_token_where_everything_counts():
    fields = {
        "model_type": "qwen3", "vocab_size": 100, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "rope_theta": 1e6,
    }  # fmt: skip
    config = model_config_from_hf(fields)
    per_layer = 16 * (16 + 8 + 8 + 16) + 3 * 16 * 32  # q, k, v, o and the MLP, by hand
    assert config.num_matmul_parameters == 2 * per_layer + 100 * 16
    # One row of 10 tokens: 55 keys are seen; scores and values are 2 matmuls of 2 * 16 operations each,
    # times 3 with the backward pass.
    assert training_flops(config, 10, 9, 55) == 6 * (2 * per_layer * 10 + 1600 * 9) + 2 * 2 * 2 * 3 * 16 * 55


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("TPU v5 lite", 197.0),
        ("TPU v5", 459.0),
        ("TPU v6 lite", 918.0),
    ],
)
def test_the_longest_matching_device_name_gives_the_peak(kind, tflops):
    assert peak_flops(kind) == tflops * 1e12
    assert peak_flops("cpu") is None


def test_the_curve_is_a_png_and_the_average_is_a_mean_of_the_past(tmp_path):
    log = MetricLog(tmp_path)
    for row in rows(30):
        log.write(row)
    log.close()
    assert plot_loss(log.path, tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert moving_average([1.0, 3.0, 5.0, 7.0, 9.0, 11.0]) == [1.0, 2.0, 3.0, 4.0, 5.0, 7.0]


def test_a_mesh_is_read_by_the_names_of_its_axes():
    assert parse_mesh("8") == {"data": 1, "fsdp": 8, "tensor": 1}
    assert parse_mesh("data=2, tensor=4") == {"data": 2, "fsdp": 1, "tensor": 4}
