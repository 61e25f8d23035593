"""Plays conversations against environments with any engine, many at once; ids are appended and never rendered again."""

from dcore_jax.player.history import Bridge, History, Rerender, new_bridge, new_rerender
from dcore_jax.player.limits import Limits
from dcore_jax.player.play import play, turn_seed
from dcore_jax.player.session import Cut, Ended, Opening, Played, Session, TokenSequence, Turn
from dcore_jax.player.stand_ins import BatchEngine, scripted_engine

__all__ = [
    "BatchEngine",
    "Bridge",
    "Cut",
    "Ended",
    "History",
    "Limits",
    "Opening",
    "Played",
    "Rerender",
    "Session",
    "TokenSequence",
    "Turn",
    "new_bridge",
    "new_rerender",
    "play",
    "scripted_engine",
    "turn_seed",
]
