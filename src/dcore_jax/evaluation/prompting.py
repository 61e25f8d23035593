"""How a benchmark's model is asked, the same for every benchmark: with or without a thought, decomposed or not.

Decomposed prompting at inference is the comparison of D-CORE's Figure 3d: the untrained model is told to do what
self-distillation teaches. The no-think mode of Figure 11 is the chat template's own switch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Ours in words; the structure is that of the method: subtasks first, then each in turn, then the calls.
DECOMPOSE = (
    "Before you call any tool, split the request into subtasks. In your thoughts, first list them by number: each subtask is "
    "one call, and says what it needs from the others. Then take them in order: name the tool, find each argument in the "
    "conversation or in an earlier result, and go on to the next. Call together what does not depend on one another; wait for a "
    "result where a later subtask needs it. If no tool fits or a value is missing, say so instead of calling."
)


@dataclass(frozen=True)
class PromptingConfig:
    """How the model is asked."""

    no_think: bool = False
    """No-think mode: the chat template is told enable_thinking=false, as Qwen3's has it."""
    decompose: bool = False
    """Decomposed prompting: the system turn asks for a list of subtasks first."""

    def template_options(self, given: Sequence[str] = ()) -> tuple[str, ...]:
        """The variables of the chat template, with those that were given."""
        return (*given, "enable_thinking=false") if self.no_think else tuple(given)

    def messages(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The opening messages, with the instruction at the end of the system turn, or as one where there is none."""
        messages = [dict(message) for message in messages]
        if not self.decompose:
            return messages
        if messages and messages[0]["role"] == "system":
            messages[0]["content"] = f"{messages[0]['content'].rstrip()}\n\n{DECOMPOSE}"
            return messages
        return [{"role": "system", "content": DECOMPOSE}, *messages]
