"""One picture of what was measured, drawn from the tables in docs/results/: nothing runs, and no figure is typed in here.

python benchmarks/results_picture.py [--output docs/images/results.png]
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

RESULTS = Path(__file__).parents[1] / "docs" / "results"
COLORS = {"ours": "#3f51b5", "torch": "#90a4ae", "tunix": "#e09f3e", "before": "#b0bec5", "after": "#3f51b5"}
CASES = ("vocabulary 8,192", "vocabulary 151,936", "real records")  # of the table of SFT steps, in its order
Row = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=RESULTS.parent / "images" / "results.png")
    output = parser.parse_args().output
    figure, axes = plt.subplot_mosaic(
        [["speed", "memory"], ["tasks", "tasks"]], figsize=(8.8, 5.2), layout="constrained"
    )
    speed, memory, tasks = axes["speed"], axes["memory"], axes["tasks"]
    steps = by_case(table(RESULTS / "sft.md", "peak memory"))
    names = [case.replace(" ", "\n", 1) for case in CASES]
    ratios = [
        {name: number(row["ours is faster by"]) for name, row in case.items() if name != "ours"}
        for case in steps
    ]
    bars(speed, names, ratios, ("torch", "tunix"), "{:.2f} x")
    speed.axhline(1, color="black", linewidth=0.8, zorder=0)
    speed.set_title("SFT: speed, relative to torch and tunix", loc="left", fontsize=11)
    sizes = [{name: number(row["peak memory"]) for name, row in case.items()} for case in steps]
    bars(memory, names, sizes, ("ours", "torch", "tunix"), "{:.1f}")
    memory.set_title("SFT: peak memory [GiB]", loc="left", fontsize=11)

    solved = table(RESULTS / "distill.md", "base")
    groups = ["\n".join([*row[""].split(", "), f"({row['tasks']})"]) for row in solved]
    shares = [
        {"before": number(row["base"]), "after": number(row["after SFT on its own corpus"])} for row in solved
    ]
    bars(tasks, groups, shares, ("before", "after"), "{:.0f}")
    tasks.set_title(
        "Held-out tasks solved [%], before and after self-distillation (nano model)", loc="left", fontsize=11
    )
    figure.savefig(output, dpi=110)
    print(output)


def table(page: Path, column: str) -> list[Row]:
    """The rows of the page's first table with a column of that name, emphasis removed."""
    rows: list[list[str]] = []
    for line in [*page.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip(" *") for cell in line.strip("|").split("|")])
        elif rows:
            names, _, *cells = rows
            if column in names:
                return [dict(zip(names, row)) for row in cells]
            rows = []
    raise SystemExit(f"{page}: no table has a column {column!r}")


def by_case(rows: list[Row]) -> list[dict[str, Row]]:
    """The table of SFT steps, case by case: a contestant's name (`ours, packed` is `ours`) -> its row."""
    cases: list[dict[str, Row]] = []
    for row in rows:
        if row["case"]:
            cases.append({})
        cases[-1][row[""].split(",")[0]] = row
    return cases


def number(cell: str) -> float:
    """The number in `1.62 x`, `2.41 GiB` or `71 %`."""
    return float(cell.split()[0])


def bars(
    axes: Axes, groups: list[str], values: list[dict[str, float]], names: tuple[str, ...], text: str
) -> None:
    """A bar of each name in each group that has it, with its value above."""
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        here = [(j + (i - (len(names) - 1) / 2) * width, v[name]) for j, v in enumerate(values) if name in v]
        drawn = axes.bar(*zip(*here), width, label=name, color=COLORS[name])
        axes.bar_label(drawn, [text.format(value) for _, value in here], fontsize=9)
    axes.set_xticks(range(len(groups)), groups, fontsize=8.5)
    axes.margins(y=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left" if len(names) == 3 else "upper right")


if __name__ == "__main__":
    main()
