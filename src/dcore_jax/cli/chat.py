"""`dcore chat`: talk to a checkpoint in the terminal, with tools that run or that you answer."""

from collections.abc import Sequence

from dcore_jax.chat.session import ChatConfig
from dcore_jax.cli.options import parse_options

DESCRIPTION = "\n\n".join(
    [
        "Talk to a checkpoint through the native engine: thoughts dim, calls as they are read, tools run or answered by hand.",
        "/reset begins again, /tools shows the schemas, /quit leaves. A pipe works too: one line, one message.",
    ]
)


def run(arguments: Sequence[str]) -> None:
    """Parses, loads the model, talks."""
    config = parse_options(
        ChatConfig, arguments, description=DESCRIPTION, default_config=lambda _: None, program="dcore chat"
    )
    from dcore_jax.chat import open_session, open_tools, talk

    tools = open_tools(config.tools, config.seed)  # before the minutes that a model may take to load
    talk(open_session(config), tools)
