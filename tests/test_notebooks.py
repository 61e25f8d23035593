"""The notebooks run from top to bottom, on a machine with nothing but this project."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture
def run(tmp_path):
    def run(path):
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
        ).execute()
        return "\n".join(
            output.get("text", "") or output.get("data", {}).get("text/plain", "")
            for cell in notebook.cells
            if cell.cell_type == "code"
            for output in cell.outputs
        )

    return run


def test_notebooks_are_committed_without_outputs():
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs"), path.name


def test_the_quickstart_teaches_a_model_to_call_a_tool(run):
    text = run(next(path for path in NOTEBOOKS if path.stem == "quickstart"))
    assert "\nsolved\n" in text
    assert "'model.safetensors'" in text
    assert text.splitlines()[-1] == "0.0"  # the export's logits are the trained model's
