"""Every reward by the name of its preset: a response scored against the calls it should have made."""

import math
from collections.abc import Mapping, Sequence

from dcore_jax.calls import CALL_FORMATS, JSON, Call, CallFormat, as_calls, parse_response
from dcore_jax.errors import UserError, check_choice
from dcore_jax.rewards.dcore import dcore_paper_reward, dcore_release_reward
from dcore_jax.rewards.rest import format_scale, rest_paper_reward, rest_release_reward
from dcore_jax.rewards.reward import Reward
from dcore_jax.rewards.toolrl import toolrl_reward

PRESETS = ("dcore_paper", "dcore_release", "toolrl", "toolrl_any_space", "rest_paper", "rest_release")


def tool_reward(
    text: str | bytes,
    reference: Sequence[Call | Mapping[str, JSON]],
    *,
    preset: str = "dcore_release",
    call_format: CallFormat = "python",
    progress: float | int = 0.0,
    expects_reply: bool | None = None,
    beta_accuracy: float | int = 1.0,
    beta_format: float | int = 1.0,
) -> Reward:
    """Scores an assistant turn against the calls it should have made.

    Args:
      text: the whole turn, opening `<think>` included and end-of-turn token not.
      reference: `Call`s or `{"name", "arguments"}`, in order; empty: no call is expected.
      preset: dcore_paper | dcore_release | toolrl | toolrl_any_space | rest_paper | rest_release; the module of each paper has
        its equations, docs/rewards.md a table of them.
      call_format: python | tags | qwen, the format the turn is written in.
      progress: nu, the share of the training that is done, in [0, 1]; only the rest presets use it.
      expects_reply: whether the reference turn also replies to the user; None: it does if it makes no call. Only the
        format rules of toolrl and rest use it.
      beta_accuracy, beta_format: the weights of rest_paper's two parts; the paper gives none.

    Returns:
      `Reward(total, parts, error)`, total being the sum of the parts, for any `text`.

    Raises:
      UserError: an unknown preset or format, a reference that is not a list of calls, progress outside [0, 1].
    """
    _check(preset, progress)
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    calls = as_calls(reference)
    parsed = parse_response(text, call_format)
    if preset == "dcore_paper":
        return dcore_paper_reward(text, parsed, calls)
    if preset == "dcore_release":
        return dcore_release_reward(text, parsed, calls)
    if preset in ("toolrl", "toolrl_any_space"):
        return toolrl_reward(
            text,
            parsed,
            calls,
            call_format=call_format,
            expects_reply=expects_reply,
            any_space=preset == "toolrl_any_space",
        )
    if preset == "rest_paper":
        return rest_paper_reward(
            text,
            parsed,
            calls,
            call_format=call_format,
            progress=float(progress),
            beta_accuracy=float(beta_accuracy),
            beta_format=float(beta_format),
            expects_reply=expects_reply,
        )
    return rest_release_reward(
        text, parsed, calls, call_format=call_format, progress=float(progress), expects_reply=expects_reply
    )


def reward_range(
    preset: str,
    *,
    expects_calls: bool = True,
    progress: float | int = 0.0,
    beta_accuracy: float | int = 1.0,
    beta_format: float | int = 1.0,
) -> tuple[float, float]:
    """The lowest and the highest total that `tool_reward` gives with these settings.

    Raises:
      UserError: an unknown preset, progress outside [0, 1].
    """
    _check(preset, progress)
    low, high = format_scale(float(progress))
    ranges: dict[str, tuple[float, float]] = {
        "dcore_paper": (0.0, 4.0),
        "dcore_release": (-3.0, 4.0),
        "toolrl": (-3.0, 4.0) if expects_calls else (0.0, 1.0),
        "toolrl_any_space": (-3.0, 4.0) if expects_calls else (0.0, 1.0),
        "rest_paper": (0.0, (1 - progress) * (beta_accuracy + beta_format)),
        "rest_release": (low - 2 - progress, high + 2 + progress) if expects_calls else (low, high),
    }
    return ranges[preset]


def format_rule(preset: str, call_format: CallFormat) -> str:
    """What a preset's format part asks for in this notation, in words; ToolRL and ResT publish a rule for `tags` alone.

    Raises:
      UserError: an unknown preset or format.
    """
    check_choice("reward preset", preset, PRESETS)
    check_choice("call format", call_format, CALL_FORMATS)
    if preset.startswith("dcore"):
        return "D-CORE's: <think>, a blank line after </think>"
    if call_format != "tags":
        return f"ours for {call_format}: a thought, then what is expected and nothing else"
    return {
        "toolrl": "ToolRL's: one line break after </think>, each tag once",
        "toolrl_any_space": "ToolRL's with any white space after </think>, each tag once",
    }.get(preset, "ResT's: a thought, each tag once and in order")


def _check(preset: str, progress: float | int) -> None:
    check_choice("reward preset", preset, PRESETS)
    if not (math.isfinite(progress) and 0.0 <= progress <= 1.0):
        raise UserError(
            f"progress must lie in [0, 1], found {progress}; it is the share of the training done"
        )
