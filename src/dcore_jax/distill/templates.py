"""Jinja templates of prompts and composed thoughts: this package's files, overridden one by one by a user's folder.

They are rendered in a sandbox. The folder name `nano` stands for the short wording that the nano model is trained on.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.exceptions import TemplateNotFound
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dcore_jax.calls import CallFormat
from dcore_jax.errors import UserError, first_line
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
    "compose_mixed",
    "compose_irrelevant",
    "compose_report",
)


class Templates:
    """The templates of a run.

    Args:
      folder: a user's folder, `nano`, or empty for the package's own templates.
      call_format: the format in which the model writes calls.

    Raises:
      UserError: a folder that does not exist, a template that cannot be read; names the file.
    """

    def __init__(self, folder: str = "", call_format: CallFormat = "python"):
        overrides = {"": [], NANO: [NANO_PROMPTS]}.get(folder, [Path(folder)])
        for path in overrides:
            if not path.is_dir():
                raise UserError(
                    f"{folder}: no such folder of prompts; give a folder of .j2 files, or `{NANO}`"
                )
        self._folders = [*overrides, _PACKAGE]
        # Values are inserted as they are: text of a model or a data set is never parsed as a template.
        self._environment = ImmutableSandboxedEnvironment(
            loader=ChoiceLoader([FileSystemLoader(path) for path in self._folders]),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
        )
        self._environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
        self._templates = {name: self._load(name) for name in _NAMES}
        # Nano's decompose.j2 does not list the tools; the chat template does.
        self.asks_with_tools = folder == NANO
        # A system template lists the tools in its text; without one they are passed to the chat template as `tools=`.
        by_format = f"system_{call_format}"
        self.writes_tools = folder != NANO and self._path(f"{by_format}.j2") is not None
        if self.writes_tools:
            self._templates["system"] = self._load(by_format)

    def render(self, name: str, **values: Any) -> str:
        """The template's text with these values, stripped. Raises UserError, naming the file, where rendering fails."""
        try:
            return self._templates[name].render(**values).strip()
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise UserError(
                f"{self._templates[name].filename}: cannot be rendered: {first_line(error)}"
            ) from None

    def examples(self, family: str, count: int) -> list[dict[str, Any]]:
        """The first `count` worked examples of `examples_<family>.json`.

        Args:
          family: agent (several turns) or single.

        Raises:
          UserError: a file that does not hold examples.
        """
        if not count:
            return []
        path = self._path(f"examples_{family}.json")
        assert path is not None  # the package has both
        try:
            examples = json.loads(path.read_text(encoding="utf-8"))
            required = {"query", "calls", "subtasks"}
            if not isinstance(examples, list) or not all(required <= set(example) for example in examples):
                raise ValueError("not a list of objects with query, calls and subtasks")
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: worked examples cannot be read: {error}") from None
        return [{"tools": [], "reasoning": "", **example} for example in examples[:count]]

    def digest(self) -> str:
        """SHA-256 of every file that may be used, so that a resumed run can tell that one was changed."""
        by_name = {path.name: path for folder in reversed(self._folders) for path in folder.iterdir()}
        total = hashlib.sha256()
        for name, path in sorted(by_name.items()):
            if path.suffix in (".j2", ".json"):
                total.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
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
