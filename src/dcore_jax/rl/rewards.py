"""The rewards of a run, and the check that a resumed run is scored as it was."""

import json
from pathlib import Path

from dcore_jax.atomic import write_text_atomic
from dcore_jax.errors import UserError
from dcore_jax.rewards import RewardMix, open_rewards
from dcore_jax.rl.config import RLConfig

REWARDS = (
    "rewards.json"  # in the run's folder: weights, and SHA-256 of the files with the user's own functions
)


def rewards_of(config: RLConfig) -> RewardMix:
    """What `config` names; raises UserError for a file or function that is missing or cannot be executed."""
    betas = {"beta_accuracy": config.reward.beta_accuracy, "beta_format": config.reward.beta_format}
    return open_rewards(config.rewards, **betas)


def check_same_rewards(reward: RewardMix, output: Path) -> None:
    """Raises UserError where the file of a reward has changed since the run in this folder was last started."""
    if not (output / REWARDS).exists() or not (output / "config.yaml").exists():
        return
    started = json.loads((output / REWARDS).read_text(encoding="utf-8"))["sha256"]
    for name, sha256 in reward.files.items():
        if started.get(name, sha256) != sha256:
            raise UserError(
                f"{output}: the file of reward {name} is not the one that the run started with; restore it or give another "
                "--output"
            )


def record_rewards(reward: RewardMix, output: Path) -> None:
    """Writes `rewards.json`; call it with `record_run`."""
    fields = {"weights": reward.weights, "sha256": reward.files}
    write_text_atomic(output / REWARDS, json.dumps(fields, indent=2) + "\n")
