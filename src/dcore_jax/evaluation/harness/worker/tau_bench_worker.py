"""tau-bench (Sierra Research, MIT) from a checkout on the path, behind the protocol of pipe.py.

tau-bench asks its simulated user through litellm, at import already. A module with one function stands in for it here, so that
nothing needs to be installed for that: an OpenAI-compatible server, or the turns of a script.
"""

import functools
import importlib
import json
import pickle
import sys
import threading
import types
import urllib.request
from typing import Any

import pipe

STOP = "###STOP###"
user = threading.local()  # whose turn is asked for, in this thread


class _Answer(dict):
    """What tau-bench reads of a completion."""

    def __init__(self, content):
        message = types.SimpleNamespace(
            content=content, model_dump=lambda: {"role": "assistant", "content": content}
        )
        self.choices = [types.SimpleNamespace(message=message)]
        self._hidden_params = {"response_cost": 0.0}


def completion(model, messages, custom_llm_provider=None, **sampling):
    settings = user.settings
    if settings["kind"] != "server":
        return _Answer(settings["turns"].pop(0) if settings["turns"] else STOP)
    body = {"model": settings["model"], "messages": messages, "temperature": settings["temperature"]}
    key = settings.get("key") or "none"
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    address = settings["url"].rstrip("/") + "/chat/completions"
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as answer:
        return _Answer(json.load(answer)["choices"][0]["message"]["content"] or "")


sys.modules["litellm"] = types.ModuleType("litellm")
sys.modules["litellm"].completion = completion  # type: ignore[attr-defined]

from tau_bench.envs import get_env  # noqa: E402
from tau_bench.types import RESPOND_ACTION_NAME, Action  # noqa: E402


def keep_data():
    """Each domain's data are read once; a conversation gets a copy of its own."""
    for domain in ("airline", "retail"):
        module: Any = importlib.import_module(f"tau_bench.envs.{domain}.env")
        module.load_data = functools.partial(pickle.loads, pickle.dumps(module.load_data()))


class TauBench:
    """See pipe.py."""

    def __init__(self):
        keep_data()
        self._sessions, self._lists, self._lock = {}, {}, threading.Lock()

    def tasks(self, domains, split, count=None):
        listed = []
        for domain in domains:
            user.settings = {"kind": "script", "turns": []}
            self._lists[domain] = (split, self._environment(domain, split, 0).tasks)
            for number in range(len(self._lists[domain][1]))[:count]:
                listed.append({"id": f"{domain}/{number}", "category": domain, "parts": ["0"]})
        return listed

    def open(self, session, task, part, trial, user_settings, max_steps):
        domain, number = self._named(task)
        settings = dict(user_settings)
        if settings["kind"] == "script":
            settings["turns"] = list(settings["turns"].get(task, settings["turns"].get("*", [])))
        elif settings["kind"] != "server":
            settings["turns"] = ["Hello."]
        # An environment asks its user twice before the first turn: when it is made, and when it is reset.
        user.settings = {"kind": "script", "turns": ["Hello."]}
        environment = self._environment(domain, self._lists[domain][0], number)
        user.settings = settings
        first = environment.reset(task_index=number).observation
        self._sessions[session] = {
            "environment": environment,
            "user": settings,
            "actions": [],
            "left": max_steps,
        }
        self._sessions[session] |= {"reward": 0.0, "done": False}
        messages = [{"role": "system", "content": environment.wiki}, {"role": "user", "content": first}]
        return {"messages": messages, "tools": environment.tools_info}

    def call(self, session, name, arguments, text):
        answer = self._step(session, Action(name=name, kwargs=arguments))
        return {"content": answer.observation, "done": self._ended(session)}

    def reply(self, session, text, error):
        answer = self._step(session, Action(name=RESPOND_ACTION_NAME, kwargs={"content": text}))
        ended = self._ended(session)
        return {"messages": None if ended else [{"role": "user", "content": answer.observation}]}

    def close(self, session):
        found = self._sessions.pop(session, None)
        if found is None:
            return None
        return {"actions": found["actions"], "ended": found["done"], "reward": found["reward"]}

    def score(self, task, trajectories):
        domain, number = self._named(task)
        trajectory = trajectories["0"]
        actions = [Action(**action) for action in trajectory["actions"]]
        user.settings = {"kind": "script", "turns": ["Hello.", "Hello."] + ["Go on."] * len(actions)}
        environment = self._environment(domain, self._lists[domain][0], number)
        environment.reset(task_index=number)
        answer = None
        for action in actions:
            answer = environment.step(action)
        if answer is not None and answer.done:  # a tool that ends the conversation
            result = answer.info.reward_info
        elif trajectory["ended"]:
            result = environment.calculate_reward()
        else:
            return {"reward": 0.0, "reason": "the conversation did not end"}
        facts = getattr(result.info, "outputs", None)
        missed = [fact for fact, said in (facts or {}).items() if not said]
        why = f"not said: {', '.join(missed)}" if missed else "another end state than the reference's"
        return {"reward": result.reward, "reason": "" if result.reward >= 1 else why}

    def reference(self, task, part):
        domain, number = self._named(task)
        found = self._lists[domain][1][number]
        calls = [action for action in found.actions if action.name != RESPOND_ACTION_NAME]
        said = "\n".join(found.outputs) or "All is done."
        turns = [{"calls": [{"name": call.name, "arguments": call.kwargs}], "text": ""} for call in calls]
        ends = ("transfer_to_human_agents",)
        position = next((i for i, call in enumerate(calls) if call.name in ends), len(turns))
        # What ends the conversation comes after what must be said.
        return [*turns[:position], {"calls": [], "text": said}, *turns[position:]]

    def _environment(self, domain, split, number):
        with self._lock:  # its user is asked while it is made
            return get_env(domain, "llm", "user", split, user_provider="openai", task_index=number)

    def _named(self, task):
        domain, _, number = task.partition("/")
        return domain, int(number)

    def _step(self, session, action):
        found = self._sessions[session]
        user.settings = found["user"]
        found["actions"].append({"name": action.name, "kwargs": action.kwargs})
        found["left"] -= 1
        answer = found["environment"].step(action)
        if answer.done:
            found["done"], found["reward"] = True, answer.reward
        return answer

    def _ended(self, session):
        found = self._sessions[session]
        return found["done"] or found["left"] <= 0


if __name__ == "__main__":
    pipe.serve(TauBench())
