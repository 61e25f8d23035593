"""Pages on topics: find the best, open, count an author's works, set the rank, file under another topic; three tables."""

from typing import Any

from dcore_jax.calls import JSON
from dcore_jax.toolworld.families.foreign import FOREIGN, FOREIGN_VALUES
from dcore_jax.toolworld.family import Output, Plan, Policy, ToolFamily, ids, register, step
from dcore_jax.toolworld.tables import SMALL, Tables
from dcore_jax.toolworld.tool import Tool, object_schema

_VALUES = {"topic": ids("abcdefgh"), "page": ids("ijklmnop"), "author": ids("qrstuvwx"), "rank": SMALL}
_T = Tables("topic", "page", "author", "rank", _VALUES)


def _find_page(state: Any, topic: str) -> JSON:
    return {"page": _T.latest(state, topic)}


def _open_page(state: Any, page: str) -> JSON:
    return dict(_T.fields(state, page))


def _count_works(state: Any, author: str) -> JSON:
    return {"works": _T.number(state, author)}


def _set_rank(state: Any, page: str, rank: int) -> JSON:
    return _T.change(state, page, "rank", rank)


def _file_page(state: Any, page: str, topic: str) -> JSON:
    _T.add(state, topic, page)
    return {"state": "filed"}


_FIND = step("find_page", "find the best page on topic {topic}", topic="topic")
_OPEN = step("open_page", "open page {page}", page="page")
_OPEN_FOUND = step("open_page", "open the page of step {0}", page=Output(0, "page"))
_RANK_FOUND = step(
    "set_rank", "set the rank of the page of step {0} to {rank}", page=Output(0, "page"), rank="rank"
)
_FILE_FOUND = step(
    "file_page", "file the page of step {0} under topic {topic2}", page=Output(0, "page"), topic="topic2"
)
_SHOWN = "the author is {%d[author]} and the rank is {%d[rank]}"

FAMILY = register(
    ToolFamily(
        name="documents",
        tools=(
            Tool(
                "find_page",
                "Name the best page on a topic.",
                object_schema(topic="string"),
                _find_page,
                "top_sheet",
            ),
            Tool(
                "open_page",
                "Give the author and the rank of a page.",
                object_schema(page="string"),
                _open_page,
                "view_sheet",
            ),
            Tool(
                "count_works",
                "Give the number of works of an author.",
                object_schema(author="string"),
                _count_works,
                "work_total",
            ),
            Tool(
                "set_rank",
                "Change the rank of a page.",
                object_schema(page="string", rank="integer"),
                _set_rank,
                "grade_sheet",
            ),
            Tool(
                "file_page",
                "Put a page under another topic.",
                object_schema(page="string", topic="string"),
                _file_page,
                "shelve_sheet",
            ),
        ),
        plans=(
            Plan(
                (
                    "find the best page on topic {topic}",
                    "which page is best on topic {topic}",
                    "name the page that says most on topic {topic}",
                ),
                (_FIND,),
                "the best page is {0[page]}",
            ),
            Plan(
                ("open page {page}", "who wrote page {page}", "tell me about page {page}"),
                (_OPEN,),
                _SHOWN % (0, 0),
            ),
            Plan(
                (
                    "count the works of author {author}",
                    "how many works has author {author}",
                    "how much did author {author} write",
                ),
                (step("count_works", "count the works of author {author}", author="author"),),
                "the works are {0[works]}",
            ),
            Plan(
                (
                    "set the rank of page {page} to {rank}",
                    "let page {page} have rank {rank}",
                    "page {page} should be of rank {rank}",
                ),
                (step("set_rank", "set the rank of page {page} to {rank}", page="page", rank="rank"),),
                "page {page} is changed",
            ),
            Plan(
                (
                    "file page {page} under topic {topic}",
                    "put page {page} under topic {topic}",
                    "page {page} belongs to topic {topic}, file it there",
                ),
                (step("file_page", "file page {page} under topic {topic}", page="page", topic="topic"),),
                "page {page} is filed",
            ),
            Plan(
                (
                    "open the best page on topic {topic}",
                    "who wrote the best page on topic {topic}",
                    "tell me about the page that says most on topic {topic}",
                ),
                (_FIND, _OPEN_FOUND),
                _SHOWN % (1, 1),
            ),
            Plan(
                (
                    "set the rank of the best page on topic {topic} to {rank}",
                    "let the best page on topic {topic} have rank {rank}",
                    "the best page on topic {topic} should be of rank {rank}",
                ),
                (_FIND, _RANK_FOUND),
                "page {0[page]} is changed",
            ),
            Plan(
                (
                    "file the best page on topic {topic} under topic {topic2}",
                    "put the best page on topic {topic} under topic {topic2}",
                    "the best page on topic {topic} belongs to topic {topic2}, file it there",
                ),
                (_FIND, _FILE_FOUND),
                "page {0[page]} is filed",
            ),
            Plan(
                (
                    "count the works of the author of page {page}",
                    "how many works has the author of page {page}",
                    "how much did the author of page {page} write",
                ),
                (
                    _OPEN,
                    step(
                        "count_works", "count the works of the author of step {0}", author=Output(0, "author")
                    ),
                ),
                "the works are {1[works]}",
            ),
            Plan(
                (
                    "count the works of the author of the best page on topic {topic}",
                    "how many works has the author of the best page on topic {topic}",
                    "how much did the author of the best page on topic {topic} write",
                ),
                (
                    _FIND,
                    _OPEN_FOUND,
                    step(
                        "count_works", "count the works of the author of step {1}", author=Output(1, "author")
                    ),
                ),
                "the works are {2[works]}",
            ),
            Plan(
                (
                    "set the rank of the best page on topic {topic} to {rank} and open it",
                    "let the best page on topic {topic} have rank {rank} and open it",
                    "the best page on topic {topic} should be of rank {rank}, open it then",
                ),
                (_FIND, _RANK_FOUND, _OPEN_FOUND),
                _SHOWN % (2, 2),
            ),
            Plan(
                (
                    "open the best page on topic {topic} and file it under topic {topic2}",
                    "who wrote the best page on topic {topic}, and put it under topic {topic2}",
                    "tell me about the best page on topic {topic} and file it where topic {topic2} is",
                ),
                (_FIND, _OPEN_FOUND, _FILE_FOUND),
                _SHOWN % (1, 1) + ". page {0[page]} is filed",
            ),
        ),
        foreign=FOREIGN,
        values={**FOREIGN_VALUES, **_VALUES},
        initial_state=_T.initial_state,
        policies=(
            Policy("set_rank", "page", "never set the rank of page {page}"),
            Policy("file_page", "topic", "never file a page under topic {topic}"),
        ),
    )
)
