"""`dcore serve`: an OpenAI-compatible server over the native engine, or any other."""

from collections.abc import Sequence

from dcore_jax.cli.options import parse_options
from dcore_jax.serve.config import ServeConfig

DESCRIPTION = "\n\n".join(
    [
        "Serve a checkpoint to any OpenAI client: /v1/models, /v1/completions, /v1/chat/completions with tools and streaming.",
        "It listens at loopback and asks for an API key, which it prints, unless it is told otherwise. Ctrl-C ends it.",
    ]
)


def run(arguments: Sequence[str]) -> None:
    """Parses, loads the model, serves."""
    config = parse_options(
        ServeConfig, arguments, description=DESCRIPTION, default_config=lambda _: None, program="dcore serve"
    )
    from dcore_jax.serve.run import serve

    serve(config)
