"""Checkouts of two benchmarks, made up here, as small as what the product asks of the real ones: tau-bench and ACEBench."""

from pathlib import Path

_ENVIRONMENT = """
from tau_bench.envs.user import LLMUserSimulationEnv
from types import SimpleNamespace as Bag

def load_data():
    return {"balance": 0}

def task(actions, outputs):
    return Bag(actions=[Action(**a) for a in actions], outputs=outputs, instruction="pay", user_id="u")

from tau_bench.types import Action

TASKS = [
    task([{"name": "pay", "kwargs": {"amount": 2}}, {"name": "pay", "kwargs": {"amount": 3}}], ["five"]),
    task([{"name": "transfer", "kwargs": {}}], []),
    task([{"name": "look", "kwargs": {}}], []),
]

class Env:
    wiki = "Pay what is asked for."
    tools_info = [
        {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object", "properties": {}}}}
        for name in ("pay", "look", "transfer")
    ]

    def __init__(self, number):
        self.tasks, self.task, self.user, self.data = TASKS, TASKS[number], LLMUserSimulationEnv(), load_data()
        self.said = []

    def reset(self, task_index):
        self.data, self.said = load_data(), []
        return Bag(observation=self.user.say("start"))

    def step(self, action):
        done = False
        if action.name == "respond":
            self.said.append(action.kwargs["content"])
            seen = self.user.say(action.kwargs["content"])
            done = "###STOP###" in seen
        elif action.name == "pay":
            self.data["balance"] += action.kwargs["amount"]
            seen = str(self.data["balance"])
        else:
            seen, done = f"did {action.name}", action.name == "transfer"
        result = self.calculate_reward() if done else None
        return Bag(observation=seen, done=done, reward=result.reward if result else 0, info=Bag(reward_info=result))

    def calculate_reward(self):
        wanted = sum(a.kwargs["amount"] for a in self.task.actions if a.name == "pay")
        outputs = {word: any(word in text for text in self.said) for word in self.task.outputs}
        return Bag(reward=float(self.data["balance"] == wanted and all(outputs.values())), info=Bag(outputs=outputs))
"""
_TAU_BENCH = {
    "__init__.py": "",
    "types.py": """
RESPOND_ACTION_NAME = "respond"

class Action:
    def __init__(self, name, kwargs):
        self.name, self.kwargs = name, kwargs
""",
    "envs/__init__.py": """
def get_env(name, strategy, model, split, user_provider, task_index):
    from tau_bench.envs.airline.env import Env
    return Env(task_index)
""",
    "envs/user.py": """
from litellm import completion

class LLMUserSimulationEnv:
    def __init__(self):
        self.say("start")

    def say(self, text):
        messages = [{"role": "user", "content": text}]
        return completion(model="user", custom_llm_provider="openai", messages=messages).choices[0].message.content
""",
    "envs/airline/__init__.py": "",
    "envs/airline/env.py": _ENVIRONMENT,
    "envs/retail/__init__.py": "",
    "envs/retail/env.py": "def load_data():\n    return {}\n",
}
_QUESTION = (
    '{"id": "CATEGORY_N", "question": "user: QUESTION", "function": [{"name": "pay"}], "time": "now"}\n'
)
_ACEBENCH = {
    "category.py": 'ACE_DATA_CATEGORY = {"normal": ["normal_pay"], "special": ["special_irrelevant"], "agent": ["agent_a"]}\n',
    "model_eval/__init__.py": "",
    "model_eval/evaluation_helper.py": """
import pandas as pd
from openpyxl import Workbook
from openpyxl.styles import Alignment

def convert_result_to_excel(*_):
    return pd.DataFrame()

generate_result_csv = update_result_table_with_score_file = convert_result_to_excel
""",
    "model_inference/prompt_en.py": "\n".join(
        [
            f'SYSTEM_PROMPT_FOR_{kind}_DATA_EN = "{kind} {{time}} {{function}}"'
            for kind in ("NORMAL", "SPECIAL")
        ]
        + ['USER_PROMPT_EN = "history: {question}"', ""]
    ),
    "data_all/data_en/data_normal_pay.json": "".join(
        _QUESTION.replace("CATEGORY", "normal_pay").replace("_N", f"_{i}").replace("QUESTION", f"pay {i}")
        for i in range(3)
    ),
    "data_all/data_en/possible_answer/data_normal_pay.json": "".join(
        f'{{"id": "normal_pay_{i}", "ground_truth": {{"pay": {{"amount": {i}}}}}}}\n' for i in range(3)
    ),
    "data_all/data_en/data_special_irrelevant.json": _QUESTION.replace("CATEGORY_N", "special_irrelevant_0"),
    "data_all/data_en/possible_answer/data_special_irrelevant.json": '{"id": "special_irrelevant_0", "ground_truth": ""}\n',
    "eval_main.py": """
import argparse, json, os
from model_eval.evaluation_helper import *

parser = argparse.ArgumentParser()
for name in ("model", "category", "language"):
    parser.add_argument("--" + name)
given = parser.parse_args()
convert_result_to_excel()
read = lambda path: [json.loads(line) for line in open(path)]
data = f"./data_all/data_{given.language}/"
results = read(f"./result_all/result_{given.language}/{given.model}/data_{given.category}_result.json")
answers = read(f"{data}possible_answer/data_{given.category}.json")
assert len(results) == len(answers)
wrong = []
for result, answer in zip(results, answers):
    truth = answer["ground_truth"]
    wanted = f"[pay(amount={truth['pay']['amount']})]" if truth else "the limitations of the function"
    if wanted not in result["result"]:
        wrong.append({"id": answer["id"], "valid": False, "error": [f"wanted {wanted}"], "error_type": "value"})
right = len(results) - len(wrong)
head = {"accuracy": right / len(results), "correct_count": right, "total_count": len(results)}
folder = f"./score_all/score_{given.language}/{given.model}"
os.makedirs(folder, exist_ok=True)
with open(f"{folder}/data_{given.category}_score.json", "w") as file:
    file.write("\\n".join(json.dumps(row) for row in [head, *wrong]))
""",
}


def tau_bench_checkout(folder: Path) -> Path:
    """Three tasks of one domain: two payments and a word, a call that ends the conversation, a look."""
    return _written(folder, {f"tau_bench/{name}": text for name, text in _TAU_BENCH.items()})


def acebench_checkout(folder: Path) -> Path:
    """Three questions that want a call, and one that wants none."""
    return _written(folder, _ACEBENCH)


def _written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
