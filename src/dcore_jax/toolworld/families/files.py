"""Files in folders: find the newest, read, write, move.

State: `{"folders": {folder: [file, ...]}, "texts": {file: text}}`; the last file of a folder is its newest.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from dcore_jax.calls import JSON
from dcore_jax.toolworld.families.foreign import FOREIGN, FOREIGN_VALUES
from dcore_jax.toolworld.family import (
    Output,
    Plan,
    Policy,
    Step,
    ToolFamily,
    draw_distinct,
    ids,
    pick,
    register,
)
from dcore_jax.toolworld.tool import Tool, ToolError, object_schema

_FOLDERS, _FILES, _TEXTS = ids("abcdefgh"), ids("ijklmnop"), ids("qrstuvwx")


def _find_file(state: dict[str, Any], folder: str) -> JSON:
    files = state["folders"].get(folder)
    if not files:
        raise ToolError(f"no folder {folder}" if files is None else f"folder {folder} is empty")
    return {"file": files[-1]}


def _read_file(state: dict[str, Any], file: str) -> JSON:
    return {"text": state["texts"][_known(state, file)]}


def _write_file(state: dict[str, Any], file: str, text: str) -> JSON:
    state["texts"][_known(state, file)] = text
    return {"state": "written"}


def _move_file(state: dict[str, Any], file: str, folder: str) -> JSON:
    _known(state, file)
    if folder not in state["folders"]:
        raise ToolError(f"no folder {folder}")
    for files in state["folders"].values():
        if file in files:
            files.remove(file)
    state["folders"][folder].append(file)
    return {"state": "moved"}


def _known(state: dict[str, Any], file: str) -> str:
    if file not in state["texts"]:
        raise ToolError(f"no file {file}")
    return file


def _initial_state(rng: Random, wanted: Mapping[str, Sequence[JSON]]) -> JSON:
    asked_folders, asked_files = list(wanted.get("folder", ())), list(wanted.get("file", ()))
    folders = asked_folders + draw_distinct(rng, _FOLDERS, 2, asked_folders)
    newest = draw_distinct(rng, _FILES, len(folders), asked_files)
    inside: dict[str, list[str]] = {folder: [] for folder in folders}
    # A file that the request names is never a newest one: what `find_file` answers is not in the request.
    for file in asked_files:
        inside[pick(rng, folders)].append(file)
    for folder, file in zip(folders, newest, strict=True):
        inside[folder].append(file)
    files = asked_files + newest
    texts = draw_distinct(rng, _TEXTS, len(files), wanted.get("text", ()))
    return {"folders": inside, "texts": dict(zip(files, texts, strict=True))}


_FIND = Step("find_file", {"folder": "folder"}, "find the newest file in folder {folder}")

FAMILY = register(
    ToolFamily(
        name="files",
        tools=(
            Tool(
                "find_file",
                "Name the newest file of a folder.",
                object_schema(folder="string"),
                _find_file,
                "latest_doc",
            ),
            Tool(
                "read_file", "Give the text of a file.", object_schema(file="string"), _read_file, "show_doc"
            ),
            Tool(
                "write_file",
                "Replace the text of a file.",
                object_schema(file="string", text="string"),
                _write_file,
                "fill_doc",
            ),
            Tool(
                "move_file",
                "Put a file into another folder.",
                object_schema(file="string", folder="string"),
                _move_file,
                "transfer_doc",
            ),
        ),
        plans=(
            Plan(
                (
                    "find the newest file in folder {folder}",
                    "which file is newest in folder {folder}",
                    "name the file that came last to folder {folder}",
                ),
                (_FIND,),
                "the newest file is {0[file]}",
            ),
            Plan(
                ("read file {file}", "what is in file {file}", "tell me the text of file {file}"),
                (Step("read_file", {"file": "file"}, "read file {file}"),),
                "the text is {0[text]}",
            ),
            Plan(
                (
                    "write {text} to file {file}",
                    "set the text of file {file} to {text}",
                    "file {file} should have the text {text}",
                ),
                (Step("write_file", {"file": "file", "text": "text"}, "write {text} to file {file}"),),
                "file {file} is written",
            ),
            Plan(
                (
                    "move file {file} to folder {folder}",
                    "put file {file} into folder {folder}",
                    "folder {folder} should hold file {file}",
                ),
                (
                    Step(
                        "move_file",
                        {"file": "file", "folder": "folder"},
                        "move file {file} to folder {folder}",
                    ),
                ),
                "file {file} is moved",
            ),
            Plan(
                (
                    "read the newest file in folder {folder}",
                    "what is in the newest file in folder {folder}",
                    "tell me the text of the file that came last to folder {folder}",
                ),
                (_FIND, Step("read_file", {"file": Output(0, "file")}, "read the file of step {0}")),
                "the text is {1[text]}",
            ),
            Plan(
                (
                    "move the newest file in folder {folder} to folder {folder2}",
                    "put the newest file in folder {folder} into folder {folder2}",
                    "from folder {folder} folder {folder2} should hold the newest file",
                ),
                (
                    _FIND,
                    Step(
                        "move_file",
                        {"file": Output(0, "file"), "folder": "folder2"},
                        "move the file of step {0} to folder {folder2}",
                    ),
                ),
                "file {0[file]} is moved",
            ),
            Plan(
                (
                    "write {text} to the newest file in folder {folder}",
                    "set the text of the newest file in folder {folder} to {text}",
                    "the newest file in folder {folder} should have the text {text}",
                ),
                (
                    _FIND,
                    Step(
                        "write_file",
                        {"file": Output(0, "file"), "text": "text"},
                        "write {text} to the file of step {0}",
                    ),
                ),
                "file {0[file]} is written",
            ),
            Plan(
                (
                    "copy the text of file {file} to file {file2}",
                    "take the text of file {file} into file {file2}",
                    "as in file {file} should be the text of file {file2}",
                ),
                (
                    Step("read_file", {"file": "file"}, "read file {file}"),
                    Step(
                        "write_file",
                        {"file": "file2", "text": Output(0, "text")},
                        "write the text of step {0} to file {file2}",
                    ),
                ),
                "file {file2} is written",
            ),
            Plan(
                (
                    "copy the text of the newest file in folder {folder} to file {file}",
                    "take the text of the newest file in folder {folder} into file {file}",
                    "as in the newest file in folder {folder} should be the text of file {file}",
                ),
                (
                    _FIND,
                    Step("read_file", {"file": Output(0, "file")}, "read the file of step {0}"),
                    Step(
                        "write_file",
                        {"file": "file", "text": Output(1, "text")},
                        "write the text of step {1} to file {file}",
                    ),
                ),
                "file {file} is written",
            ),
            Plan(
                (
                    "read the newest file in folder {folder} and move it to folder {folder2}",
                    "what is in the newest file in folder {folder}, and put it into folder {folder2}",
                    "tell me the text of the newest file in folder {folder} and let folder {folder2} hold it",
                ),
                (
                    _FIND,
                    Step("read_file", {"file": Output(0, "file")}, "read the file of step {0}"),
                    Step(
                        "move_file",
                        {"file": Output(0, "file"), "folder": "folder2"},
                        "move the file of step {0} to folder {folder2}",
                    ),
                ),
                "the text is {1[text]}. file {0[file]} is moved",
            ),
            Plan(
                (
                    "copy the text of the newest file in folder {folder} to the newest file in folder {folder2}",
                    "take the text of the newest file in folder {folder} into the newest file in folder {folder2}",
                    "as in the newest file in folder {folder} should be the newest file in folder {folder2}",
                ),
                (
                    _FIND,
                    Step("read_file", {"file": Output(0, "file")}, "read the file of step {0}"),
                    Step("find_file", {"folder": "folder2"}, "find the newest file in folder {folder2}"),
                    Step(
                        "write_file",
                        {"file": Output(2, "file"), "text": Output(1, "text")},
                        "write the text of step {1} to the file of step {2}",
                    ),
                ),
                "file {2[file]} is written",
            ),
        ),
        foreign=FOREIGN,
        values={**FOREIGN_VALUES, "folder": _FOLDERS, "file": _FILES, "text": _TEXTS},
        initial_state=_initial_state,
        policies=(
            Policy("move_file", "file", "never move file {file}"),
            Policy("write_file", "file", "never write to file {file}"),
        ),
    )
)
