"""Songs on lists: find the first, play, count an artist's fans, set the volume, add to a list. Held out; three tables."""

from typing import Any

from dcore_jax.calls import JSON
from dcore_jax.toolworld.families.foreign import FOREIGN, FOREIGN_VALUES
from dcore_jax.toolworld.family import Output, Plan, Policy, ToolFamily, ids, register, step
from dcore_jax.toolworld.tables import SMALL, Tables
from dcore_jax.toolworld.tool import Tool, object_schema

_VALUES = {"list": ids("abcdefgh"), "song": ids("ijklmnop"), "artist": ids("qrstuvwx"), "volume": SMALL}
_T = Tables("list", "song", "artist", "volume", _VALUES)


def _find_song(state: Any, list: str) -> JSON:
    return {"song": _T.latest(state, list)}


def _show_song(state: Any, song: str) -> JSON:
    return dict(_T.fields(state, song))


def _count_fans(state: Any, artist: str) -> JSON:
    return {"fans": _T.number(state, artist)}


def _set_volume(state: Any, song: str, volume: int) -> JSON:
    return _T.change(state, song, "volume", volume)


def _add_song(state: Any, song: str, list: str) -> JSON:
    _T.add(state, list, song)
    return {"state": "added"}


_FIND = step("find_song", "find the first song of list {list}", list="list")
_SHOW = step("show_song", "show song {song}", song="song")
_SHOW_FOUND = step("show_song", "show the song of step {0}", song=Output(0, "song"))
_VOLUME_FOUND = step(
    "set_volume",
    "set the volume of the song of step {0} to {volume}",
    song=Output(0, "song"),
    volume="volume",
)
_ADD_FOUND = step(
    "add_song", "add the song of step {0} to list {list2}", song=Output(0, "song"), list="list2"
)
_SHOWN = "the artist is {%d[artist]} and the volume is {%d[volume]}"

FAMILY = register(
    ToolFamily(
        name="music",
        tools=(
            Tool(
                "find_song",
                "Name the first song of a list.",
                object_schema(list="string"),
                _find_song,
                "lead_track",
            ),
            Tool(
                "show_song",
                "Give the artist and the volume of a song.",
                object_schema(song="string"),
                _show_song,
                "view_track",
            ),
            Tool(
                "count_fans",
                "Give the number of fans of an artist.",
                object_schema(artist="string"),
                _count_fans,
                "fan_total",
            ),
            Tool(
                "set_volume",
                "Change the volume of a song.",
                object_schema(song="string", volume="integer"),
                _set_volume,
                "gain_track",
            ),
            Tool(
                "add_song",
                "Put a song on another list.",
                object_schema(song="string", list="string"),
                _add_song,
                "queue_track",
            ),
        ),
        plans=(
            Plan(
                (
                    "find the first song of list {list}",
                    "which song is first on list {list}",
                    "name the song that list {list} begins with",
                ),
                (_FIND,),
                "the first song is {0[song]}",
            ),
            Plan(
                ("show song {song}", "who plays song {song}", "tell me about song {song}"),
                (_SHOW,),
                _SHOWN % (0, 0),
            ),
            Plan(
                (
                    "count the fans of artist {artist}",
                    "how many fans has artist {artist}",
                    "how well is artist {artist} liked",
                ),
                (step("count_fans", "count the fans of artist {artist}", artist="artist"),),
                "the fans are {0[fans]}",
            ),
            Plan(
                (
                    "set the volume of song {song} to {volume}",
                    "let song {song} have volume {volume}",
                    "song {song} should play at volume {volume}",
                ),
                (
                    step(
                        "set_volume",
                        "set the volume of song {song} to {volume}",
                        song="song",
                        volume="volume",
                    ),
                ),
                "song {song} is changed",
            ),
            Plan(
                (
                    "add song {song} to list {list}",
                    "put song {song} on list {list}",
                    "list {list} should have song {song}",
                ),
                (step("add_song", "add song {song} to list {list}", song="song", list="list"),),
                "song {song} is added",
            ),
            Plan(
                (
                    "show the first song of list {list}",
                    "who plays the first song of list {list}",
                    "tell me about the song that list {list} begins with",
                ),
                (_FIND, _SHOW_FOUND),
                _SHOWN % (1, 1),
            ),
            Plan(
                (
                    "set the volume of the first song of list {list} to {volume}",
                    "let the first song of list {list} have volume {volume}",
                    "the first song of list {list} should play at volume {volume}",
                ),
                (_FIND, _VOLUME_FOUND),
                "song {0[song]} is changed",
            ),
            Plan(
                (
                    "add the first song of list {list} to list {list2}",
                    "put the first song of list {list} on list {list2}",
                    "from list {list} list {list2} should have the first song",
                ),
                (_FIND, _ADD_FOUND),
                "song {0[song]} is added",
            ),
            Plan(
                (
                    "count the fans of the artist of song {song}",
                    "how many fans has the artist of song {song}",
                    "how well is the artist of song {song} liked",
                ),
                (
                    _SHOW,
                    step(
                        "count_fans", "count the fans of the artist of step {0}", artist=Output(0, "artist")
                    ),
                ),
                "the fans are {1[fans]}",
            ),
            Plan(
                (
                    "count the fans of the artist of the first song of list {list}",
                    "how many fans has the artist of the first song of list {list}",
                    "how well is the artist of the first song of list {list} liked",
                ),
                (
                    _FIND,
                    _SHOW_FOUND,
                    step(
                        "count_fans", "count the fans of the artist of step {1}", artist=Output(1, "artist")
                    ),
                ),
                "the fans are {2[fans]}",
            ),
            Plan(
                (
                    "set the volume of the first song of list {list} to {volume} and show it",
                    "let the first song of list {list} have volume {volume} and show it",
                    "the first song of list {list} should play at volume {volume}, show it then",
                ),
                (_FIND, _VOLUME_FOUND, _SHOW_FOUND),
                _SHOWN % (2, 2),
            ),
        ),
        foreign=FOREIGN,
        values={**FOREIGN_VALUES, **_VALUES},
        initial_state=_T.initial_state,
        policies=(Policy("set_volume", "song", "never set the volume of song {song}"),),
        held_out=True,
    )
)
