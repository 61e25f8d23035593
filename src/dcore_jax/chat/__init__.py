"""Talk to a checkpoint: session.py (conversation and engine), tools.py (who answers calls), terminal.py (the dialogue)."""

from dcore_jax.chat.session import ChatConfig, Reply, Session, open_session
from dcore_jax.chat.terminal import talk
from dcore_jax.chat.tools import HandTools, Toolbox, WorldTools, open_tools

__all__ = [
    "ChatConfig",
    "HandTools",
    "Reply",
    "Session",
    "Toolbox",
    "WorldTools",
    "open_session",
    "open_tools",
    "talk",
]
