"""The page that every run writes: well-formed, one file that loads nothing, every figure with a title, every text escaped."""

import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from dcore_jax import UserError
from dcore_jax.plots_rl import plot_dynamics, plot_reward_parts
from dcore_jax.report import (
    Count,
    Curve,
    Page,
    Series,
    Turn,
    code_commit,
    density_chart,
    flat_settings,
    line_chart,
    run_facts,
    turns_of,
)
from dcore_jax.report.chart import HEIGHT, WIDTH
from dcore_jax.report.facts import command_line, duration
from dcore_jax.rl.page import write_page as write_rl_page
from dcore_jax.sft.page import write_page as write_sft_page

EVIL = "<script>alert('x')</script><img src=\"http://evil.example/x.png\" onerror=y>"
VOID = {"meta", "br"}


class Read(HTMLParser):
    """A page's tags and text; fails where a tag is not closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.figures = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "figure":
            self.figures.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text.append(data)
        if "figcaption" in self.open:
            self.figures[-1] += data

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def assert_sound(html):
    """Well-formed, loads nothing, fits a phone, follows dark mode, every figure has a title."""
    read = Read(html)
    tags = {tag for tag, _ in read.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    names = {name for _, attributes in read.tags for name in attributes}
    assert not {name for name in names if name in ("src", "href", "srcset") or name.startswith("on")}
    assert "url(" not in html and "@import" not in html and "default-src 'none'" in html
    assert 'name="viewport"' in html and "prefers-color-scheme: dark" in html
    assert read.figures and all(title.strip() for title in read.figures)
    charts = [attributes for tag, attributes in read.tags if tag == "svg" and attributes["class"] == "chart"]
    assert all(chart["aria-label"] for chart in charts) and html.count("</title>") > len(charts)
    return read


def whole_page(text):
    page = Page(
        text, text, run_facts(text, began="2026-11-26T10:00:00", seconds=75.0, further={text: text}), text
    )
    page.section(text).text(text).table([text, "n"], [[text, 3], [None, None]]).settings(
        [(text, text)], summary=text
    )
    chart = line_chart(
        text, [Series(text, [1, 2], [1.0, 2.0]), Series("b", [1], [2.0])], x=text, y=text, note=text
    )
    page.section("b").figures(chart).bars(text, [(text, 1.0, text)], note=text)
    page.section("c").stages({text: {text: Count(1, 4), "after": Count(3, 4)}}, of=text)
    turns = [Turn("thought", text), Turn("call", text, text), Turn("response", text)]
    page.section("d").trajectory(text, turns, note=text)
    page.section("e").compare(
        text,
        text,
        turns,
        (),
        names=(text, text),
        verdicts=(text, ""),
        right=(False, None),
        reference=text,
        note=text,
    )
    return page.html()


def test_a_page_is_one_well_formed_file_that_loads_nothing_and_names_every_figure():
    read = assert_sound(whole_page("plain words"))
    assert "25.0 %" in read.words and "1 of 4" in read.words and "1 min 15 s" in read.words
    assert "2026-11-26 10:00" in read.words and "nothing was written" in read.words


def test_a_text_is_escaped_wherever_it_stands():
    html = whole_page(EVIL)
    read = assert_sound(html)
    assert "<script" not in html and "<img" not in html and "alert(" in read.words
    assert "src=http" not in html.replace("&quot;", '"').replace('src="http', "")


def test_a_page_is_written_as_a_whole_or_the_error_is_one_line(tmp_path):
    page = Page("k", "half \ud83d of a pair, 噘 카 é")
    assert "half ? of a pair, 噘 카 é" in page.write(tmp_path / "a" / "report.html").read_text(
        encoding="utf-8"
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"report\.html: the report cannot be written"):
        page.write(tmp_path / "file" / "report.html")


def places(svg):
    """Every point of a drawing's lines."""
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", svg)]


def test_values_lie_where_the_axis_says():
    svg = line_chart("t", [Series("s", [0, 10], [0.0, 4.0])], y="y").svg
    (x0, y0), (x1, y1) = places(svg)
    ticks = dict(re.findall(r'y="([\d.]+)" text-anchor="end">([\d.]+)<', svg))
    at = {float(value): float(place) - 4 for place, value in ticks.items()}
    assert at[0.0] == y0 and at[4.0] == y1 and y0 > y1 and x0 < x1
    half = line_chart("t", [Series("s", [0, 5, 10], [0.0, 2.0, 4.0])], y="y").svg
    assert places(half)[1] == ((x0 + x1) / 2, (y0 + y1) / 2)


def test_a_logarithmic_axis_gives_equal_ratios_equal_heights_and_is_used_where_it_helps():
    wide = [10.0**-i for i in range(5)]
    svg = line_chart("t", [Series("s", range(5), wide)], y="loss").svg
    heights = [y for _, y in places(svg)]
    steps = [b - a for a, b in pairwise(heights)]
    assert max(steps) - min(steps) < 0.2 and "loss, logarithmic" in svg
    assert (
        "logarithmic" not in line_chart("t", [Series("s", range(5), [1.0, 2.0, 3.0, 2.0, 1.0])], y="loss").svg
    )
    assert (
        "logarithmic"
        not in line_chart("t", [Series("s", range(5), [0.0, *wide[1:]])], y="loss", log="yes").svg
    )


@pytest.mark.parametrize(
    "values",
    [[], [0.0], [3.0], [math.nan], [1.0, math.nan, math.inf, 2.0], [1e-9, 1e9], [-5.0, -5.0], [0.1] * 3000],
)
@pytest.mark.parametrize("style", ["line", "smoothed", "points"])
def test_every_series_stays_inside_the_drawing(values, style):
    svg = line_chart("t", [Series("s", range(len(values)), values, style)], y="y").svg
    Read(svg)
    assert "nan" not in svg and "inf" not in svg and len(svg) < 40_000
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places(svg))


def test_of_many_points_the_extremes_stay():
    values = [0.0] * 5000
    values[3210] = 9.0
    heights = [y for _, y in places(line_chart("t", [Series("s", range(5000), values)], y="y").svg)]
    assert len(heights) < 400 and heights.count(min(heights)) == 1


def test_a_distribution_holds_shares_that_add_up():
    svg = density_chart("t", {"a": [0.0, 0.0, 1.0, 2.0]}, x="x", y="share", bins=2).svg
    heights = [y for _, y in places(svg)]
    assert heights == [heights[0]] * 4  # half of the values in each of the two bins


def test_a_metric_that_is_zero_or_absent_is_named_and_not_drawn():
    rows = [{"step": i, "a": 0.0, "b": float(i)} for i in range(1, 4)]
    page = Page("k", "t")
    page.section("s").curves(
        rows, [Curve("a", "Dead", "y"), Curve("b", "Alive", "y"), Curve("c", "Absent", "y")]
    )
    read = assert_sound(page.html())
    assert read.figures == ["Alive"] and "not drawn: Dead; Absent." in read.words


def test_a_turn_is_told_apart_into_thought_calls_and_words():
    assert turns_of("<think>\nfirst\n</think>\n\n[f(x=1)]") == (
        Turn("thought", "first"),
        Turn("call", "[f(x=1)]"),
    )
    assert turns_of("All done.") == (Turn("answer", "All done."),)
    assert turns_of("<think>\nnever closed") == (Turn("thought", "never closed", "thought, cut off"),)
    assert [turn.kind for turn in turns_of("[f(x=]")] == ["error"]
    tagged = 'Look:\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert [turn.kind for turn in turns_of(tagged)] == ["answer", "call"]
    assert turns_of("") == ()


def test_the_header_says_the_commit_of_these_sources_and_no_command_of_a_test():
    assert re.fullmatch(r"([0-9a-f]{12}( \+ changes)?)?", code_commit())
    facts = run_facts("m", seconds=3.0)
    assert "command" not in facts and facts["model"] == "m" and "dcore_jax" in facts["version"]
    assert duration(7200) == "2.00 h" and duration(4.25) == "4.2 s"


def test_the_command_is_written_as_it_would_be_typed(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/dcore", "sft", "--data", "a b.jsonl"])
    assert command_line() == "dcore sft --data 'a b.jsonl'"
    monkeypatch.setattr("sys.argv", ["scripts/train_rl.py", "--steps", "3"])
    assert command_line() == "python scripts/train_rl.py --steps 3"


def test_settings_are_rows_of_dotted_names():
    assert flat_settings({"a": 1, "b": {"c": [2], "d": {"e": None}}}) == [
        ("a", "1"),
        ("b.c", "[2]"),
        ("b.d.e", "None"),
    ]


# --- pages of runs, from folders as the recipes write them ---


def run_folder(folder, recipe, rows, **files):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text(
        json.dumps({"recipe": recipe, "model": EVIL, "began": "2026-11-26T10:00:00"})
    )
    (folder / "config.yaml").write_text("model: x\nsteps: 3\noptimizer: {learning_rate: 0.1}\n")
    for name, content in files.items():
        lines = content if isinstance(content, list) else [content]
        path = folder / (f"{name}.jsonl" if isinstance(content, list) else f"{name}.json")
        path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


def sft_folder(folder):
    rows = [
        {"step": i, "loss": 3.0 / i, "learning_rate": 1e-3, "gradient_norm": 0.0, "tokens_per_second": 9.0, "packing_fill": 0.9,
         "seconds": 1.0}
        for i in range(1, 30)
    ]  # fmt: skip
    return run_folder(folder, "sft", rows, data={"samples": 7, "tokens": 70, "rejected": {EVIL: 2}})


def rl_folder(folder, answers=True):
    rows = [
        {"step": i, "reward": i / 10, "reward_format": 1.0, f"reward_{EVIL}": 0.5, "reward_dead": 0.0, "correct": i / 20,
         "entropy": 0.1, "response_length": 9.0, "zero_variance_groups": 0.5, "truncated": 0.0, "unreadable_calls": 0.0,
         "reflections_per_thought": 0.0, "gradient_norm": 0.1, "learning_rate": 1e-4, "group_reward_std": [0.0, 0.5],
         "entropy_thinking": 0.2, "seconds": 2.0, "seconds_rollout": 1.0, "seconds_update": 1.0}
        for i in range(1, 13)
    ]  # fmt: skip
    answer = {"origin": "o", "category": "single 1", "query": EVIL, "reference": "[f(x=1)]", "reward": 1.0}
    before = {**answer, "step": 0, "response": "<think>\nhm\n</think>\n\nno.", "correct": False}
    after = {**answer, "step": 12, "response": "[f(x=1)]", "correct": True}
    greedy = [
        {"step": s, "prompts": 1, "reward": 1.0, "correct": c, "correct/single 1": c}
        for s, c in ((0, 0.0), (12, 1.0))
    ]
    tokens = [
        {"token": token, "id": 1, "entropy": 1.0, "count": 9} for token in ("噘", " 카", "\n", "", EVIL)
    ]
    files = {"evaluation": greedy, "evaluation_answers": [before, after]} if answers else {}
    return run_folder(
        folder, "rl", rows, token_entropy={"highest": tokens, "lowest": tokens}, data={"prompts": 5, "by_category": {"a": 5}},
        rollouts=[{**before, "step": 1}, {**after, "step": 3}], **files,
    )  # fmt: skip


def test_an_sft_runs_page_shows_its_curves_data_and_settings(tmp_path):
    read = assert_sound(write_sft_page(sft_folder(tmp_path / "run"), "1 x cpu").read_text(encoding="utf-8"))
    for wanted in (
        "Loss 3.000 to 0.103",
        "Training loss",
        "29.0 s",
        "1 x cpu",
        "optimizer.learning_rate",
        "left out",
    ):
        assert wanted in read.words, wanted
    assert "not drawn: Gradient norm before clipping." in read.words


@pytest.mark.parametrize("answers", [True, False])
def test_an_rl_runs_page_shows_the_same_prompt_before_and_after(tmp_path, answers):
    html = write_rl_page(rl_folder(tmp_path / "run", answers)).read_text(encoding="utf-8")
    read = assert_sound(html)
    for wanted in (
        "Reward by part",
        "噘",
        "␣카",
        "wrong, reward 1",
        "right, reward 1",
        "always 0: dead",
        "Time by phase",
    ):
        assert wanted in read.words, wanted
    pair = html[html.index('<div class="pair">') :]
    assert pair.index(">no.<") < pair.index("step 12" if answers else "step 3") < pair.index(">[f(x=1)]<")
    assert ("Exactly right, greedy" in read.words) == answers


def test_pictures_have_no_dead_panel_and_draw_names_of_every_script(tmp_path, recwarn, monkeypatch):
    rows = [
        {"step": i, "reward": 1.0, "entropy": 0.1, "response_length": 3.0, "zero_variance_groups": 0.0, "gradient_norm": 0.1,
         "reflections_per_thought": 0.0, "reward_報酬": 0.5, "reward_$": 0.0}
        for i in range(1, 4)
    ]  # fmt: skip
    for path in (plot_dynamics(rows, tmp_path / "a.png"), plot_reward_parts(rows, tmp_path / "b.png")):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert not recwarn.list

    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, out: drawn.append(figure))
    plot_dynamics(rows, tmp_path / "c.png")
    (figure,) = drawn
    panels = [axes for axes in figure.axes if axes.axison]
    assert all(axes.lines and axes.get_title(loc="left") for axes in panels) and len(panels) == 4
    assert "reflection words per thought" in figure.get_suptitle()
