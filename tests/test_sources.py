"""Data as users name them: the grammar, weights and rows, folders, hub datasets through the real library, Arrow's nulls."""

import gzip
import json
import string
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax.data import Malformed, load_samples, read_records
from dcore_jax.data.sources import DataSource, SourceCount, parse_source, read_sources
from dcore_jax.distill.seeds import read_seeds
from dcore_jax.errors import UserError
from dcore_jax.rl.prompts import read_questions
from dcore_jax.sft.inputs import store_fingerprint
from qwen_tokenizer import byte_tokenizer

needs_datasets = pytest.mark.skipif(find_spec("datasets") is None, reason="needs the package datasets")
TOOL = {
    "type": "function",
    "function": {
        "name": "ls",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {"path": {"type": "string"}, "depth": {"type": "integer"}},
            "required": ["path"],
        },
    },
}


def chat(number, **fields):
    messages = [
        {"role": "user", "content": f"question {number}"},
        {"role": "assistant", "content": f"answer {number}"},
    ]
    return {"messages": messages, **fields}


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def origins(names, **options):
    return [row.origin for row in read_sources(names, **options)]


# --- the grammar ---


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("gone.jsonl", DataSource("file", "gone.jsonl")),
        ("gone.jsonl:weight=2", DataSource("file", "gone.jsonl", weight=2.0)),
        ("a/b/gone.parquet:rows=3,weight=.5", DataSource("file", "a/b/gone.parquet", weight=0.5, rows=3)),
        ("gone.json:draw=9,seed=0,names=masked", DataSource("file", "gone.json", draw=9, seed=0, names="masked")),
        ("me/tools", DataSource("hub dataset", "me/tools")),
        ("me/tools-7.5k:split=train+dev", DataSource("hub dataset", "me/tools-7.5k", split="train+dev")),
        (
            "hf://me/tools:split=train,revision=v2,config=xyz,weight=0.5,rows=2000",
            DataSource("hub dataset", "me/tools", "", "train", "xyz", "v2", 0.5, 2000),
        ),
        ("hf://me/tools@v2", DataSource("hub dataset", "me/tools", revision="v2")),
        ("hf://datasets/me/tools:config=a", DataSource("hub dataset", "me/tools", config="a")),
        ("hf://datasets/me/tools/d/t.jsonl", DataSource("hub file", "me/tools", "d/t.jsonl")),
        ("hf://datasets/me/tools@v2/t.json:rows=1", DataSource("hub file", "me/tools", "t.json", revision="v2", rows=1)),
        (
            "hf://datasets/me/tools/t.json:revision=refs/convert/parquet",
            DataSource("hub file", "me/tools", "t.json", revision="refs/convert/parquet"),
        ),
    ],
)  # fmt: skip
def test_a_name_reads_as_its_source(name, source):
    assert parse_source(name) == source
    assert parse_source(str(source)) == source


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("t.jsonl:colour=red", "unknown option 'colour=red'; the options are weight, rows"),
        ("t.jsonl:weight", "unknown option 'weight'"),
        ("t.jsonl:512", "unknown option '512'"),
        ("t.jsonl:split=train", "split is no option of a file"),
        ("t.jsonl:weight=2,weight=3", "weight is given twice"),
        ("t.jsonl:weight=0", "weight must be a number above 0"),
        ("t.jsonl:weight=nan", "weight must be a number above 0"),
        ("t.jsonl:weight=1e9", "up to 1000"),
        ("t.jsonl:draw=0", "draw must be a whole number above 0"),
        ("t.jsonl:draw=5,weight=2", "give one of them"),
        ("t.jsonl:seed=5", "seed is that of draw="),
        ("t.jsonl:names=hidden", "names can be masked and nothing else"),
        ("t.jsonl:rows=0", "rows must be a whole number above 0"),
        ("me/tools:split=train[:10]", "rows=100"),
        ("me/tools:config=", "config is empty"),
        ("hf://me/tools@v1:revision=v2", "revision is given twice"),
        ("hf://datasets/t.jsonl", "<owner>/<name>/<file>"),
        ("hf://me/tools/t.jsonl", "hf://datasets/<owner>/<name>/<file>"),
        ("t.csv", "cannot read this extension"),
        ("a/t.csv", "cannot read this extension"),
        ("gone/", "no such file or folder"),
        ("gone", "no such file or folder"),
        ("/gone/too", "no such file or folder"),
    ],
)
def test_a_wrong_name_is_one_line_that_names_it(name, reason):
    with pytest.raises(UserError) as error:
        list(read_sources(name))
    assert reason in str(error.value) and str(error.value).startswith(name.split(":")[0])
    assert "\n" not in str(error.value)


_WORD = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=8).filter(
    lambda word: word[0] not in "_-"
)


@st.composite
def _sources(draw):
    kind = draw(st.sampled_from(["file", "hub file", "hub dataset"]))
    options = {
        "weight": draw(st.floats(0.0, 1000.0, exclude_min=True, allow_subnormal=False)),
        "rows": draw(st.none() | st.integers(1, 10**9)),
    }
    if kind == "file":
        return DataSource(kind, f"no_such/{draw(_WORD)}.jsonl", **options)
    options["revision"] = draw(st.none() | _WORD | st.just("refs/convert/parquet"))
    path = f"{draw(_WORD)}/{draw(_WORD)}"
    if kind == "hub file":
        return DataSource(kind, path, f"{draw(_WORD)}.parquet", **options)
    split = draw(st.none() | st.lists(_WORD, min_size=1, max_size=3).map("+".join))
    return DataSource(kind, path, split=split, config=draw(st.none() | _WORD), **options)


@given(_sources())
@settings(max_examples=200, deadline=None)
def test_the_name_of_a_source_reads_as_that_source(source):
    assert parse_source(str(source)) == source


@given(
    st.text(max_size=30)
    | st.lists(_WORD | st.sampled_from([":", "/", "hf://", "=", ",", "@", ".jsonl"])).map("".join)
)
@settings(max_examples=300, deadline=None)
def test_every_text_is_a_source_or_a_one_line_error(text):
    try:
        source = parse_source(text)
    except UserError:
        return
    assert source.name in text or source.kind == "hub dataset" or source.revision


def test_a_file_whose_name_holds_a_colon_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("a:weight=2.jsonl"), chat(1))
    write(Path("me/a:b.jsonl"), chat(1))
    assert origins("a:weight=2.jsonl") == ["a:weight=2.jsonl:1"]
    assert origins("me/a:b.jsonl:weight=2") == ["me/a:b.jsonl:1"] * 2


def test_what_exists_here_comes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("me/tools/t.jsonl"), chat(1))
    assert parse_source("me/tools:weight=2") == DataSource("folder", "me/tools", weight=2.0)
    assert parse_source("hf://me/tools").kind == "hub dataset"


def test_every_name_is_read_before_the_first_row(tmp_path):
    path = write(tmp_path / "t.jsonl", chat(1))
    for wrong in ("t.csv", str(tmp_path / "gone.jsonl"), f"{path}:colour=red"):
        with pytest.raises(UserError):
            next(read_sources([path, wrong]))


def test_the_revision_option_reaches_the_hub(tmp_path, monkeypatch):
    file = write(tmp_path / "t.jsonl", chat(1))
    asked = []

    def download(repo, name, **given):
        asked.append((repo, name, given["revision"]))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert (
        origins("hf://datasets/me/tools/t.jsonl:revision=v2,weight=2")
        == ["hf://datasets/me/tools@v2/t.jsonl:1"] * 2
    )
    origins("hf://datasets/me/tools/t.jsonl:revision=refs/convert/parquet")
    assert asked == [("me/tools", "t.jsonl", "v2"), ("me/tools", "t.jsonl", "refs/convert/parquet")]


# --- weights and rows ---


def test_a_whole_weight_takes_every_row_so_often(tmp_path):
    path = write(tmp_path / "t.jsonl", *map(chat, range(3)))
    assert origins(f"{path}:weight=2") == [f"{path}:{n}" for n in (1, 1, 2, 2, 3, 3)]


def test_a_share_is_seeded_and_the_same_every_time(tmp_path):
    path = write(tmp_path / "t.jsonl", *map(chat, range(1000)))
    half = origins(f"{path}:weight=0.5", seed=3)
    assert half == origins(f"{path}:weight=0.5", seed=3) != origins(f"{path}:weight=0.5", seed=4)
    assert 440 < len(half) < 560 and len(set(half)) == len(half)
    assert half == sorted(half, key=lambda origin: int(origin.rpartition(":")[2]))
    assert set(half) < set(origins(f"{path}:weight=0.8", seed=3))
    more = origins(f"{path}:weight=1.5", seed=3)
    assert len(more) == 1000 + len(half) and {row for row in more if more.count(row) == 2} == set(half)
    assert origins(f"{path}:weight=0.5,rows=100", seed=3) == [
        row for row in half if int(row.rpartition(":")[2]) <= 100
    ]


def test_rows_stops_before_the_rest_is_read(tmp_path):
    path = write(tmp_path / "t.jsonl", *map(chat, range(3)))
    with path.open("a") as file:
        file.write("no JSON\n")
    counts: dict[str, SourceCount] = {}
    rows = list(read_sources(f"{path}:rows=2", counts=counts))
    assert len(rows) == 2 and not any(isinstance(row.row, Malformed) for row in rows)
    assert counts[f"{path}:rows=2"] == SourceCount(f"{path}:rows=2", 1.0, 2, 2, 0)


def test_reading_is_row_by_row(tmp_path):
    path = write(tmp_path / "t.jsonl", *map(chat, range(5)))
    counts: dict[str, SourceCount] = {}
    rows = read_sources(path, counts=counts)
    next(rows)
    assert counts[str(path)].rows == 1


def test_sft_shows_what_each_source_gave(tmp_path):
    tokenizer = byte_tokenizer()
    many, few = (
        write(tmp_path / "many.jsonl", *map(chat, range(40))),
        write(tmp_path / "few.jsonl", chat(1), {"x": 1}),
    )
    names = [f"{many}:weight=0.5", f"{few}:weight=3"]
    store, report = load_samples(names, tokenizer, max_length=200, progress=False, seed=1)
    first, second = report.sources
    assert first.rows == 40 and 10 < first.taken == first.kept < 30
    assert second == SourceCount(names[1], 3.0, rows=2, taken=6, kept=3)
    assert f"source    {few}:weight=3: 2 rows (weight 3: 6 taken), 3 kept" in str(report)
    assert "source" not in str(load_samples(few, tokenizer, max_length=200, progress=False)[1])
    # The same rows at every start of a run, and others are told apart.
    again, _ = load_samples(names, tokenizer, max_length=200, progress=False, seed=1)
    other, _ = load_samples(names, tokenizer, max_length=200, progress=False, seed=2)
    assert store_fingerprint(store) == store_fingerprint(again) != store_fingerprint(other)


def test_rl_and_seeds_take_the_same_names(tmp_path):
    rows = [
        {"query": f"list {n}", "tools": [TOOL], "reference": [{"name": "ls", "arguments": {"path": str(n)}}]}
        for n in range(9)
    ]
    path = write(tmp_path / "t.jsonl", *rows)
    counts: dict[str, SourceCount] = {}
    questions, _ = read_questions([f"{path}:weight=2,rows=2"], "python", counts=counts)
    assert [question.origin for question in questions] == [f"{path}:1", f"{path}:1", f"{path}:2", f"{path}:2"]
    assert questions[0].source == f"{path}:weight=2,rows=2" and counts[questions[0].source].taken == 4
    seeds, _ = read_seeds([f"{path}:rows=2", f"jsonl:{tmp_path}:rows=4"])
    assert [seed.origin for seed in seeds] == [f"{path}:{n}" for n in (1, 2, 3, 4)]
    half, _ = read_seeds([f"{path}:weight=0.5"], seed=1)
    assert [seed.origin for seed in half] == origins(f"{path}:weight=0.5", seed=1)
    with pytest.raises(UserError, match="weight is at most 1"):
        read_seeds([f"{path}:weight=2"])


# --- folders and compressed files ---


def test_a_folder_is_all_its_data_files_by_name(tmp_path):
    write(tmp_path / "d/b.jsonl", chat(1))
    write(tmp_path / "d/sub/c.json", chat(2))
    write(tmp_path / "d/.cache/x.jsonl", chat(3))
    (tmp_path / "d/a.jsonl.gz").write_bytes(gzip.compress(json.dumps(chat(4)).encode()))
    (tmp_path / "d/README.md").write_text("# notes\n")
    records, rejections = read_records(tmp_path / "d")
    assert [record.origin for record in records] == [
        f"{tmp_path}/d/{n}:1" for n in ("a.jsonl.gz", "b.jsonl", "sub/c.json")
    ]
    assert [record.category for record in records] == ["a", "b", "c"] and not rejections.total


def test_a_folder_of_several_splits_is_not_mixed(tmp_path):
    write(tmp_path / "train.jsonl", chat(1))
    write(tmp_path / "data/test-00000-of-00001.jsonl", chat(2))
    with pytest.raises(UserError, match=r"several splits .*:split=train$"):
        read_records(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no data file in this folder"):
        read_records(tmp_path / "empty")


def test_a_broken_gz_file_is_named(tmp_path):
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(json.dumps(chat(1)).encode())[:-9])
    with pytest.raises(UserError, match=r"t\.jsonl\.gz: cannot read: "):
        read_records(tmp_path / "t.jsonl.gz")
    (tmp_path / "t.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"t\.jsonl\.gz: cannot read: "):
        read_records(tmp_path / "t.jsonl.gz")


# --- datasets, through the real library ---

CARD = """---
configs:
- config_name: {config}
  data_files:
  - split: train
    path: train.jsonl
  - split: test
    path: held/*.jsonl
---
"""


def dataset(folder, config="default"):
    write(folder / "train.jsonl", *map(chat, range(5)))
    write(folder / "held/part.jsonl", *map(chat, range(5, 8)))
    (folder / "README.md").write_text(CARD.format(config=config))
    return folder


@needs_datasets
def test_a_dataset_folder_is_read_by_its_card(tmp_path):
    folder = dataset(tmp_path / "tools")
    assert origins(folder) == [f"{folder}:train:{n}" for n in range(1, 6)]
    assert origins(f"{folder}:split=test,rows=2") == [f"{folder}:test:1", f"{folder}:test:2"]
    records, _ = read_records(f"{folder}:split=train+test")
    assert [record.messages[0]["content"] for record in records] == [f"question {n}" for n in range(8)]
    assert {record.category for record in records} == {"tools"}
    # A row of a dataset is the row of a file.
    plain, _ = read_records(folder / "train.jsonl")
    assert [record.messages for record in records[:5]] == [record.messages for record in plain]


@needs_datasets
def test_a_parquet_dataset_without_a_card_is_read_by_split(tmp_path):
    for split, numbers in (("train", range(3)), ("test", range(3, 5))):
        pq.write_table(
            pa.Table.from_pylist(list(map(chat, numbers))), tmp_path / f"{split}-00000-of-00001.parquet"
        )
    records, _ = read_records(f"{tmp_path}:split=test")
    assert [record.messages[0]["content"] for record in records] == ["question 3", "question 4"]
    assert records[0].origin == f"{tmp_path}:test:1"


@needs_datasets
def test_a_wrong_split_or_config_is_answered_with_those_there_are(tmp_path):
    folder = dataset(tmp_path / "tools", config="main")
    with pytest.raises(UserError, match=r"no split dev; its splits are train, test$"):
        read_records(f"{folder}:split=dev")
    with pytest.raises(UserError, match=r"cannot open the dataset: .*'other'.*main"):
        read_records(f"{folder}:config=other")
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_text(text.replace("split: train", "split: dev"))
    with pytest.raises(UserError, match=r"no split train; choose one of dev, test, as split=dev$"):
        read_records(folder)
    (folder / "README.md").write_text(
        text.replace("\n---\n", "\n- config_name: b\n  data_files: train.jsonl\n---\n")
    )
    with pytest.raises(UserError, match=r"several configs; choose one of main, b, as config=main$"):
        read_records(folder)
    assert len(read_records(f"{folder}:config=b")[0]) == 5


@needs_datasets
def test_a_saved_dataset_is_read(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list([chat(1), chat(2)])
    rows.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"dev": rows}).save_to_disk(tmp_path / "splits")
    assert len(origins(tmp_path / "saved")) == 2
    assert origins(tmp_path / "splits") == [f"{tmp_path}/splits:dev:{n}" for n in (1, 2)]


@needs_datasets
def test_a_dataset_is_streamed_from_the_hub(tmp_path, monkeypatch):
    import datasets

    folder, asked = dataset(tmp_path / "tools"), []
    load = datasets.load_dataset

    def from_folder(path, *names, **options):
        asked.append((path, *names, options.pop("revision"), options["streaming"]))
        return load(str(folder), **options)

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    names = ["me/tools:rows=1", "hf://me/tools:config=big,revision=v2,split=test,rows=1"]
    assert origins(names) == ["me/tools:train:1", "me/tools:test:1"]
    assert asked == [("me/tools", None, None, True), ("me/tools", "big", "v2", True)]


@needs_datasets
def test_a_dataset_that_cannot_be_opened_is_one_line(monkeypatch):
    import datasets

    def refuse(*_, **__):
        raise FileNotFoundError("Dataset 'me/tools' doesn't exist on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        UserError, match=r"^me/tools: cannot open the dataset: Dataset 'me/tools' doesn't exist on the Hub$"
    ):
        read_records("me/tools")


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("dcore_jax.data.hub_datasets.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^me/tools:split=train: .*pip install 'dcore-jax\[hub\]'$"):
        read_records("me/tools:split=train")


# --- nulls that Arrow filled in ---


def calling(name, arguments):
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def from_parquet(tmp_path, *rows):
    pq.write_table(pa.Table.from_pylist(list(rows)), tmp_path / "t.parquet")
    return read_records(tmp_path / "t.parquet")


def tool(name, required=(), **properties):
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": "does", "parameters": parameters}}


USER = {"role": "user", "content": "go"}
CHOICE = {"type": "string", "enum": ["b", None]}


def test_fields_that_other_rows_have_are_absent_from_messages_and_tools(tmp_path):
    rows = [
        {"messages": [USER, calling("ls", {"path": "a"})], "tools": [tool("ls", ["path"], path={"type": "string"})]},
        {"messages": [USER, calling("cat", {"file": "b"})], "tools": [tool("cat", ["file"], file=CHOICE)]},
        {"messages": [USER, {"role": "assistant", "content": "done"}], "tools": [tool("ls", ["path"], path={"type": "string"})]},
    ]  # fmt: skip
    records, rejections = from_parquet(tmp_path, *rows)
    assert not rejections.total
    assert [list(record.messages) for record in records] == [row["messages"] for row in rows]
    assert [list(record.tools) for record in records] == [row["tools"] for row in rows]


def test_a_null_argument_is_absent_where_the_tool_does_not_have_or_require_it(tmp_path):
    listing = [tool("ls", ["path"], path={"type": "string"}, depth={"type": "integer"})]
    nested = [
        tool(
            "find",
            ["by"],
            by={"type": "object", "properties": {"name": {"type": "string"}, "size": {"type": "integer"}}},
        )
    ]
    rows = [
        {"messages": [USER, calling("ls", {"path": "a", "depth": 1})], "tools": json.dumps(listing)},
        {"messages": [USER, calling("ls", {"path": "b"})], "tools": json.dumps(listing)},
        {"messages": [USER, calling("find", {"by": {"name": "x"}})], "tools": json.dumps(nested)},
        {"messages": [USER, calling("find", {"by": {"size": 3}})], "tools": json.dumps(nested)},
    ]
    records, rejections = from_parquet(tmp_path, *rows)
    assert not rejections.total
    assert [list(record.messages) for record in records] == [row["messages"] for row in rows]


REASON = "nulls inside a Parquet struct of arguments: store arguments as a JSON string"


def test_a_null_argument_that_could_be_meant_rejects_the_row(tmp_path):
    required = json.dumps([tool("ls", ["path", "depth"], path={"type": "string"}, depth={"type": "integer"})])
    unlisted = json.dumps([tool("cat", [], file={"type": "string"})])
    open_ended = json.dumps(
        [{"name": "ls", "parameters": {"type": "object", "properties": {}, "additionalProperties": True}}]
    )
    other = {"messages": [USER, calling("ls", {"path": "a", "depth": 1})], "tools": required}
    for tools in (required, unlisted, open_ended, None):
        row = {"messages": [USER, calling("ls", {"path": "b"})], "tools": tools}
        records, rejections = from_parquet(tmp_path, other, row)
        assert len(records) == 1 and rejections.counts == {REASON: 1}


def test_calls_outside_of_messages_are_read_as_strictly(tmp_path):
    rows = [
        {"query": "a", "answers": [{"name": "ls", "arguments": {"path": "a"}}]},
        {"query": "b", "answers": [{"name": "mv", "arguments": {"to": "b"}}]},
    ]
    assert from_parquet(tmp_path, *rows)[1].counts == {REASON: 2}
    tools = json.dumps([tool("ls", path={"type": "string"}), tool("mv", to={"type": "string"})])
    records, _ = from_parquet(tmp_path, *[{**row, "tools": tools} for row in rows])
    calls = [record.messages[-1]["tool_calls"][0]["function"]["arguments"] for record in records]
    assert calls == [{"path": "a"}, {"to": "b"}]


def test_jsonl_rows_keep_their_nulls(tmp_path):
    row = {"messages": [USER, {**calling("ls", {"path": None}), "name": None}], "tools": [TOOL]}
    records, _ = read_records(write(tmp_path / "t.jsonl", row))
    turn = records[0].messages[1]
    assert turn["tool_calls"][0]["function"]["arguments"] == {"path": None} and turn["name"] is None


def test_empty_lists_of_calls_and_null_contents(tmp_path):
    turns = [
        USER,
        {"role": "assistant", "content": "hi", "tool_calls": []},
        USER,
        calling("ls", {"path": "a"}),
    ]
    records, _ = from_parquet(tmp_path, {"messages": turns, "tools": json.dumps([TOOL])})
    assert records[0].messages[1] == {"role": "assistant", "content": "hi"}
    assert records[0].messages[3] == calling("ls", {"path": "a"})


@needs_datasets
def test_rows_of_a_dataset_lose_filled_nulls_and_keep_stated_ones(tmp_path):
    import datasets

    rows = [
        {"messages": [USER, calling("ls", {"path": "a"})], "tools": json.dumps([TOOL])},
        {"messages": [USER, {"role": "assistant", "content": "hi"}], "tools": json.dumps([TOOL])},
    ]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    records, rejections = read_records(tmp_path / "saved")
    assert not rejections.total and [list(record.messages) for record in records] == [
        row["messages"] for row in rows
    ]
