"""The worked examples of the documentation run, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Pages whose examples need more than to be executed: the test that runs each.
RUN_ELSEWHERE = {
    "algorithms.md": "test_algorithms.py",
    "data.md": "test_rendering.py",
    "distill.md": "test_distill_stages.py",
    "engines.md": "test_engine.py",
    "rewards.md": "test_rewards.py",
    "seeds.md": "test_distill_seeds.py",
    "toolworld.md": "test_toolworld.py",
    "vllm.md": "test_vllm_client.py",
}


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


def pages_with_examples():
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md") if python_blocks(page)]
    return sorted(set(pages) - set(RUN_ELSEWHERE))


@pytest.mark.parametrize("page", pages_with_examples())
def test_the_worked_example_runs(page, checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page, "folder": checkpoints["qwen3"]}  # pages call a model's folder `folder`
    blocks = python_blocks(DOCS / page)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize(("page", "test"), RUN_ELSEWHERE.items())
def test_pages_with_a_test_of_their_own_are_named_in_it(page, test):
    assert python_blocks(DOCS / page)
    text = (ROOT / "tests" / test).read_text()
    assert f'"{page}"' in text or f"docs/{page}" in text


def test_every_package_has_a_page_of_the_api_reference():
    packages = {init.parent.name for init in (ROOT / "src" / "dcore_jax").glob("*/__init__.py")} - {"cli"}
    assert packages
    for package in packages:
        page = DOCS / "reference" / f"{package}.md"
        assert f"::: dcore_jax.{package}\n" in page.read_text()


def test_every_link_between_pages_leads_somewhere():
    pages = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    assert len(pages) > 40
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
