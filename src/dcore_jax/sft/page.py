"""`report.html` of an SFT run, made from what its folder holds."""

import json
from pathlib import Path
from typing import Any

from dcore_jax.config import read_yaml
from dcore_jax.metrics import read_metrics
from dcore_jax.player.evaluation_page import add_evaluations
from dcore_jax.report import SMOOTHED, Curve, Page, flat_settings, run_facts
from dcore_jax.training.run_folder import run_record

_CURVES = (
    Curve("loss", "Training loss", "nats per token", log="yes"),
    Curve("learning_rate", "Learning rate", "learning rate", smoothed=False, log="no"),
    Curve("gradient_norm", "Gradient norm before clipping", "norm"),
    Curve("tokens_per_second", "Speed", "tokens/s", log="no"),
    Curve("packing_fill", "Filled part of the packed rows", "share of tokens"),
)
_MFU = Curve("mfu", "Model FLOP utilisation", "share of peak")  # known of a few devices only


def write_page(output: Path, hardware: str = "") -> Path:
    """Writes the page of a run that has done a step.

    Args:
      hardware: what it ran on, for the header.
    """
    rows, record = read_metrics(output / "metrics.jsonl"), run_record(output)
    config, data = read_yaml(output / "config.yaml"), _json(output / "data.json")
    seconds = sum(float(row["seconds"]) for row in rows)
    first, last = float(rows[0]["loss"]), float(rows[-1]["loss"])
    facts = run_facts(
        record.model,
        began=record.began,
        seconds=seconds,
        further={
            "data": ", ".join(config.get("data") or ()) or "the tool world's lessons",
            "hardware": hardware,
            "steps": f"{rows[-1]['step']:,}",
            "run folder": str(output),
        },
    )
    lead = f"Loss {first:.3f} to {last:.3f} nats per token in {rows[-1]['step']:,} steps."
    page = Page("dcore_jax · supervised fine-tuning", f"SFT of {record.model}", facts, lead)
    curves = (*_CURVES, _MFU) if _MFU.key in rows[-1] else _CURVES
    page.section("Curves").curves(rows, curves).text(SMOOTHED, note=True)
    add_evaluations(page, output)
    shown = page.section("Data")
    numbers = [(key.replace("_", " "), value) for key, value in data.items() if isinstance(value, int)]
    if numbers:
        shown.table(["what was read", "number"], numbers)
    for key, value in data.items():
        if key.startswith("rejected") and value:
            counts = sorted(value.items(), key=lambda item: -item[1] if isinstance(item[1], int) else 0)
            shown.table([f"left out: {key.replace('_', ' ')}", "number"], counts)
    page.section("Settings").settings(flat_settings(config), summary="every value that applied")
    return page.write(output / "report.html")


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
