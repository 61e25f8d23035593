"""The notebook of the second stage runs, and shows what it says."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "da_grpo.ipynb"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    return "\n".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))


def test_the_notebook_scores_samples_and_shows_which_gradient_vanishes(text):
    assert " 4.00 " in text
    assert "trainer and engine agree: True" in text
    norms = dict(re.findall(r"(\w+) +gradient norm ([0-9.]+)", text))
    assert float(norms["grpo"]) == 0.0
    assert float(norms["da_grpo"]) > 1e-4
