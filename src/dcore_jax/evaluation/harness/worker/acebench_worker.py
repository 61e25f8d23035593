"""Runs the `eval_main.py` of an ACEBench checkout in the current folder, without the tables that it draws with pandas.

Arguments: the checkout, then those of eval_main.py.
"""

import runpy
import sys
import types
from pathlib import Path

checkout = Path(sys.argv[1])
sys.path.insert(0, str(checkout))
# Its tables need pandas and openpyxl; its scores do not.
for name, members in (("pandas", ()), ("openpyxl", ("Workbook",)), ("openpyxl.styles", ("Alignment",))):
    sys.modules[name] = types.ModuleType(name)
    for member in members:
        setattr(sys.modules[name], member, None)

import model_eval.evaluation_helper as tables  # noqa: E402

for drawn in ("convert_result_to_excel", "generate_result_csv", "update_result_table_with_score_file"):
    setattr(tables, drawn, lambda *_: None)
sys.argv = [str(checkout / "eval_main.py"), *sys.argv[2:]]
runpy.run_path(sys.argv[0], run_name="__main__")
