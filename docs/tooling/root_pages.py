"""mkdocs hook: CONTRIBUTING.md and CHANGELOG.md, which stand at the root of the repository, become pages of the site.

Links between them and the pages under docs/ are written as a code host wants them (`docs/sft.md`, `../CONTRIBUTING.md`) and
rewritten here, so that they lead to the same place in both.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
ROOT_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_TO_ROOT = re.compile(r"\]\((?:\.\./)+(" + "|".join(map(re.escape, ROOT_PAGES)) + r")")


def on_files(files: Any, config: Any) -> Any:
    for name, page in ROOT_PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        for other, target in ROOT_PAGES.items():
            text = text.replace(f"]({other}", f"]({target}")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    folder = posixpath.dirname(page.file.src_uri) or "."
    return _TO_ROOT.sub(lambda link: f"]({posixpath.relpath(ROOT_PAGES[link[1]], folder)}", markdown)
