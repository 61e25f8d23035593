"""Questions that are answered in one turn, by any agent: the texts as they were said, kept as they come."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dcore_jax.calls import Call, ParsedResponse
from dcore_jax.errors import UserError
from dcore_jax.evaluation.harness.agent_config import AgentConfig
from dcore_jax.evaluation.harness.agents import play_sessions
from dcore_jax.player import Opening, Session, Turn

ANSWERS = "answers.jsonl"


class Prompt(NamedTuple):
    """A question, and the turn of a perfect model for the scripted agents."""

    id: str
    messages: Sequence[Mapping[str, Any]]
    reference: str = ""


class SingleTurn(Session):
    """Ends after the model's first turn. Calls are not run: the text is scored."""

    instant = True

    def __init__(self, prompt: Prompt, messages: Sequence[dict[str, Any]]):
        self.id, self._messages, self.text = prompt.id, messages, ""

    def open(self) -> Opening:
        """See Session.open."""
        return Opening(self._messages)

    def parse(self, text: str) -> ParsedResponse:
        """See Session.parse: keeps the text, whatever it holds."""
        self.text = text
        return ParsedResponse(None, (), text)

    def call(self, call: Call) -> str:
        """See Session.call."""
        return ""

    @property
    def done(self) -> bool:
        """See Session.done."""
        return True

    def reply(self, turn: Turn) -> None:
        """See Session.reply."""
        return None


def answer_prompts(
    prompts: Sequence[Prompt], agent: AgentConfig, output: str | Path
) -> tuple[dict[str, str], list[str]]:
    """The text of each answer by the question's id, and a line for each question that has none.

    `answers.jsonl` in the output folder keeps every answer as it comes; the same command started again asks for the others.

    Raises:
      UserError: no model, or the folder holds the answers of another run.
    """
    path = Path(output) / ANSWERS
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = [
        agent.label,
        agent.temperature,
        agent.top_p,
        agent.seed,
        agent.max_tokens,
        str(agent.prompting),
    ]
    answers = _earlier(path, settings)
    todo = [prompt for prompt in prompts if prompt.id not in answers]
    sessions = [SingleTurn(p, agent.prompting.messages([dict(m) for m in p.messages])) for p in todo]
    left_out = []
    with path.open("a", encoding="utf-8") as file:

        def keep(session: Session, error: str | None) -> None:
            assert isinstance(session, SingleTurn)
            if error is not None:
                left_out.append(f"question {session.id}: {error}")
                return
            answers[session.id] = session.text
            file.write(json.dumps({"id": session.id, "prediction": session.text}) + "\n")
            file.flush()

        if sessions:
            references = {prompt.id: [{"text": prompt.reference}] for prompt in todo}
            play_sessions(agent, sessions, references, Path(output), keep)
    return answers, left_out


def _earlier(path: Path, settings: Sequence[Any]) -> dict[str, str]:
    """The answers that an earlier start of the same command has kept."""
    header = {"settings": list(settings)}
    lines = path.read_bytes().splitlines() if path.exists() else []
    if not lines:
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return {}
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # cut when the run was: asked again
            continue
    if not rows or rows[0] != header:
        raise UserError(f"{path} holds the answers of another run; choose another --output, or remove it")
    if not path.read_bytes().endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
    return {row["id"]: row["prediction"] for row in rows[1:]}
