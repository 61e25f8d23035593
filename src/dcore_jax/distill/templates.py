"""The prompts and the composed thoughts: text files of this package, a user's folder before them, in a sandbox.

A folder of the user's overrides file by file. `nano` names the tool world's own wording, which its small model can learn.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.exceptions import TemplateNotFound
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dcore_jax.calls import CallFormat
from dcore_jax.errors import UserError
from dcore_jax.nano.config import NANO
from dcore_jax.nano.lessons import PROMPTS as NANO_PROMPTS

_PACKAGE = Path(__file__).with_name("prompts")
_NAMES = (
    "decompose",
    "reason",
    "irrelevant",
    "refusal",
    "compose_sequential",
    "compose_parallel",
    "compose_irrelevant",
    "compose_report",
)


class Templates:
    """The templates of a run.

    Args:
      folder: of the user's, `nano`, or empty for the package's own.
      call_format: the format that the model writes calls in.

    Raises:
      UserError: a folder that is not there, a template or a file of examples that cannot be read; names the file.
    """

    def __init__(self, folder: str = "", call_format: CallFormat = "python"):
        own = {"": [], NANO: [NANO_PROMPTS]}.get(folder, [Path(folder)])
        for path in own:
            if not path.is_dir():
                raise UserError(
                    f"{folder}: no such folder of prompts; give a folder of .j2 files, or `{NANO}`"
                )
        self._folders = [*own, _PACKAGE]
        # Values are put in as they are: what a model or a data set says is never read as a template.
        self._environment = ImmutableSandboxedEnvironment(
            loader=ChoiceLoader([FileSystemLoader(path) for path in self._folders]),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
        )
        self._environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
        self._templates = {name: self._load(name) for name in _NAMES}
        self.asks_with_tools = (
            folder == NANO
        )  # its decompose.j2 does not name the tools; the chat template does
        # With a system template the tools stand in its text; without one they go to the chat template as `tools=`.
        by_format = f"system_{call_format}"
        self.writes_tools = folder != NANO and self._path(f"{by_format}.j2") is not None
        if self.writes_tools:
            self._templates["system"] = self._load(by_format)

    def render(self, name: str, **values: Any) -> str:
        """The template's text with these values, stripped. Raises UserError naming the file where it fails."""
        try:
            return self._templates[name].render(**values).strip()
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise UserError(f"{self._templates[name].filename}: cannot be rendered: {error}") from None

    def examples(self, family: str, count: int) -> list[dict[str, Any]]:
        """The first `count` worked examples of `examples_<family>.json`: agent (several turns) or single."""
        if not count:
            return []
        path = self._path(f"examples_{family}.json")
        assert path is not None  # the package has both
        try:
            examples = json.loads(path.read_text(encoding="utf-8"))
            wanted = {"query", "calls", "subtasks"}
            if not isinstance(examples, list) or not all(wanted <= set(example) for example in examples):
                raise ValueError("not a list of objects with query, calls and subtasks")
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: worked examples cannot be read: {error}") from None
        return [{"tools": [], "reasoning": "", **example} for example in examples[:count]]

    def digest(self) -> str:
        """A hash of every file that may be used, so that a resumed run can tell that one was changed."""
        total = hashlib.sha256()
        for path in sorted(
            {path.name: path for folder in reversed(self._folders) for path in folder.iterdir()}.items()
        ):
            if path[1].suffix in (".j2", ".json"):
                total.update(path[0].encode() + b"\0" + path[1].read_bytes() + b"\0")
        return total.hexdigest()

    def _load(self, name: str) -> Any:
        try:
            return self._environment.get_template(f"{name}.j2")
        except TemplateSyntaxError as error:
            raise UserError(f"{error.filename}:{error.lineno}: not a template: {error.message}") from None
        except (TemplateNotFound, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name}.j2: cannot be read: {error}") from None

    def _path(self, name: str) -> Path | None:
        return next((folder / name for folder in self._folders if (folder / name).is_file()), None)
