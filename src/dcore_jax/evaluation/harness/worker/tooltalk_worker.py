"""ToolTalk (Microsoft, MIT; PyPI nvidia-tooltalk) behind the protocol of pipe.py.

A part of a task is one turn of the assistant, played after the reference's own history, as ToolTalk plays it. Two free texts
(a mail's body, an event's name) are compared by the embeddings of DistilBERT where its folder is given as the first argument;
without it they must be equal, and `undecided` counts the comparisons that were not.
"""

import ast
import copy
import json
import sys
import types
from pathlib import Path

import pipe

DISTILBERT = sys.argv[1] if len(sys.argv) > 1 else ""
if not DISTILBERT:  # the package imports both for the comparison of texts alone
    for name, members in (("torch", ()), ("transformers", ("DistilBertModel", "DistilBertTokenizer"))):
        sys.modules[name] = types.ModuleType(name)
        for member in members:
            setattr(sys.modules[name], member, None)

import tooltalk.apis  # noqa: E402
from tooltalk.apis import ALL_APIS, APIS_BY_NAME, SUITES_BY_NAME  # noqa: E402
from tooltalk.evaluation.tool_executor import ToolExecutor  # noqa: E402

ROOT = Path(tooltalk.__file__).parent
FOLDERS = {"easy": ROOT / "data" / "easy", "hard": ROOT / "data" / "tooltalk"}
undecided = 0


def equal_texts(prediction, reference):
    """1 for equal texts, else 0 and counted: whether they mean the same is for DistilBERT to say."""
    global undecided
    if prediction == reference:
        return 1.0
    undecided += 1
    return 0.0


for found in [module for name, module in sys.modules.items() if name.startswith("tooltalk.apis")]:
    if hasattr(found, "semantic_str_compare"):
        if not DISTILBERT:
            setattr(found, "semantic_str_compare", equal_texts)  # noqa: B010
        elif hasattr(found, "HFVectorizer"):
            setattr(found, "_vectorize_text", found.HFVectorizer(DISTILBERT))  # noqa: B010


def system_text():
    """The text of the system turn, as the package's own client for OpenAI's API has it; read, since it imports that client."""
    source = (ROOT / "evaluation" / "evaluate_openai.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "system_prompt":
            return ast.literal_eval(node.value)
    raise ValueError("evaluate_openai.py has no system_prompt")


class ToolTalk:
    """See pipe.py."""

    def __init__(self):
        self._tasks, self._sessions, self._apis = {}, {}, "all"
        self._system = system_text()

    def tasks(self, sets, apis, count=None):
        self._apis, listed = apis, []
        for category in sets:
            for path in sorted(FOLDERS[category].glob("*.json"))[:count]:
                task = json.loads(path.read_text(encoding="utf-8"))
                self._tasks[task["name"]] = task
                parts = [str(i) for i, turn in enumerate(task["conversation"]) if turn["role"] == "assistant"]
                listed.append({"id": task["name"], "category": category, "parts": parts})
        return listed

    def open(self, session, task, part, trial):
        conversation = self._tasks[task]
        before = conversation["conversation"][: int(part)]
        executor = ToolExecutor(init_database_dir=str(ROOT / "data" / "databases"))
        history = [api for turn in before for api in turn.get("apis", ())]
        executor.init_conversation_state(
            conversation["metadata"], copy.deepcopy(history), conversation.get("user") or {}
        )
        self._sessions[session] = (executor, [])
        metadata = conversation["metadata"]
        words = {name: metadata.get(name) for name in ("location", "timestamp", "username")}
        messages = [{"role": "system", "content": self._system.format(**words)}]
        for number, turn in enumerate(before):
            for i, api in enumerate(turn.get("apis", ())):
                messages += self._called(api, f"call{number}_{i}")
            messages.append({"role": turn["role"], "content": turn["text"]})
        docs = [{"type": "function", "function": api.to_openai_doc()} for api in self._offered(conversation)]
        return {"messages": messages, "tools": docs}

    def call(self, session, name, arguments, text):
        executor, predictions = self._sessions[session]
        request, response = executor.execute_tool(name, dict(arguments))
        predictions.append({"role": "api", "request": request, **response})
        return {"content": json.dumps(response), "done": False}

    def reply(self, session, text, error):
        self._sessions[session][1].append({"role": "assistant", "text": text})
        return {"messages": None}

    def close(self, session):
        _, predictions = self._sessions.pop(session, (None, None))
        return predictions

    def score(self, task, trajectories):
        before, conversation = undecided, copy.deepcopy(self._tasks[task])
        for part, predictions in trajectories.items():
            conversation["conversation"][int(part)]["predictions"] = copy.deepcopy(predictions)
        executor = ToolExecutor(init_database_dir=str(ROOT / "data" / "databases"))
        metrics = executor.evaluate_predictions(conversation)["metrics"]
        names = ("predictions", "ground_truths", "matches", "actions", "valid_actions", "bad_actions")
        missed = metrics["ground_truths"] - metrics["matches"]
        why = f"{missed} of {metrics['ground_truths']} calls missed, {metrics['bad_actions']} wrong actions"
        return {
            "reward": float(metrics["success"]),
            "reason": "" if metrics["success"] else why,
            "numbers": {**{name: metrics[name] for name in names}, "undecided": undecided - before},
        }

    def reference(self, task, part):
        turn = self._tasks[task]["conversation"][int(part)]
        turns = [{"calls": [self._call(api)], "text": ""} for api in turn.get("apis", ())]
        return [*turns, {"calls": [], "text": turn["text"]}]

    def _offered(self, conversation):
        if self._apis == "exact":
            return [APIS_BY_NAME[name] for name in conversation["apis_used"]]
        if self._apis == "suite":
            return [api for name in conversation["suites_used"] for api in SUITES_BY_NAME[name].apis]
        return ALL_APIS

    def _call(self, api):
        return {"name": api["request"]["api_name"], "arguments": api["request"]["parameters"]}

    def _called(self, api, number):
        made = {"id": number, "type": "function", "function": self._call(api)}
        content = json.dumps({"response": api["response"], "exception": api["exception"]})
        name = api["request"]["api_name"]
        return [
            {"role": "assistant", "content": "", "tool_calls": [made]},
            {"role": "tool", "tool_call_id": number, "name": name, "content": content},
        ]


if __name__ == "__main__":
    pipe.serve(ToolTalk(), threads=1)  # databases and counters are shared
