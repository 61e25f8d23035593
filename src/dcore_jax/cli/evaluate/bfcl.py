"""`dcore eval bfcl`: the Berkeley Function Calling Leaderboard, for a model or for stored outputs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dcore_jax.cli.evaluate.closing import close
from dcore_jax.cli.options import parse_options
from dcore_jax.dtypes import DTypeName
from dcore_jax.errors import UserError
from dcore_jax.evaluation.bfcl.client import Client
from dcore_jax.evaluation.bfcl.styles import Mode
from dcore_jax.evaluation.summary import Evaluation
from dcore_jax.player import PlayableModel


@dataclass(frozen=True)
class BFCLOptions:
    """BFCL for a model or for stored outputs."""

    model: str = ""
    """Hugging Face folder or hub id, or the folder of an SFT or RL run: its answers are generated, then scored."""
    results: str = ""
    """In the place of --model: a folder of result files, BFCL_v3_<category>_result.json, or of one such folder for each model."""
    model_name: str | None = None
    """The model among several in --results, and its name in the benchmark's list of models; None: the folder's name."""
    bfcl_version: Literal["v3", "v4"] | None = None
    """Data and checkers of this version; None: that of the result files, v3 for --model."""
    categories: tuple[str, ...] = ()
    """Categories or groups (live, non_live, multi_turn, ...); empty: all that have a file, all that can be played."""
    mode: Literal["auto", "prompt", "fc"] = "auto"
    """Calls as Python text, or function calling; auto: prompt for --model, seen from the outputs for --results."""
    engine: Literal["native", "vllm", "vllm-server", "server"] = "native"
    """What samples: JAX or vLLM in this process, vLLM servers, or any OpenAI-compatible server."""
    servers: tuple[str, ...] = ()
    """Addresses of servers, http://host:port; a key is read from $OPENAI_API_KEY."""
    slots: int = 64
    """Conversations decoded at the same time."""
    rendering: Literal["auto", "handler", "template"] = "auto"
    """Prompts as bfcl-eval's handler of Qwen3 writes them, or by the model's chat template; auto: the handler's for ChatML."""
    thinking: bool = True
    """--no-thinking: Qwen3's no-think mode."""
    temperature: float = 0.001
    """Of sampling; the benchmark's own."""
    max_tokens: int = 4096
    """Most tokens of a step; the benchmark's own."""
    max_length: int = 0
    """Most tokens of a conversation; 0: as many as the model has positions."""
    limit: int = 0
    """Questions of each category, the first ones; 0: all."""
    seed: int = 0
    """Of sampling."""
    dtype: DTypeName = "float32"
    """Type of the model's computation."""
    item_seconds: float = 30.0
    """Time limit of one item's checker, and of one call; past it the answer counts as wrong."""
    bfcl_folder: str | None = None
    """Where bfcl-eval is or goes; None: $DCORE_BFCL_HOME/<version>, or dcore_jax/bfcl/<version> in the user's cache."""
    output: str = "eval"
    """Folder for summary.json, items.jsonl and report.html, and for the answers of --model."""


def run(arguments: Sequence[str]) -> None:
    """Parses, generates where a model is given, scores, writes the summary and prints the table."""
    options = parse_options(
        BFCLOptions,
        arguments,
        description="The Berkeley Function Calling Leaderboard, scored by the package bfcl-eval itself.",
        default_config=lambda _: None,
        program="dcore eval bfcl",
    )
    if bool(options.results) == bool(options.model):
        raise UserError(
            "give --model <Hugging Face folder>, or --results <folder of BFCL_v3_<category>_result.json files>"
        )
    from dcore_jax.evaluation.bfcl.table import table_text

    began = time.monotonic()
    if options.model:
        evaluation = evaluate_model(options)
    else:
        evaluation = score_stored(
            options.results,
            options.model_name,
            version=options.bfcl_version,
            categories=options.categories,
            mode=options.mode,
            seconds=options.item_seconds,
            folder=options.bfcl_folder,
        )
    close(evaluation, options.output, began)
    if table := table_text(evaluation, evaluation.settings["version"]):
        print(f"\n{table}")


def evaluate_model(options: BFCLOptions) -> Evaluation:
    """Answers of a model, generated into `<output>/results/<model>` and scored; a cut run goes on where it was."""
    from dcore_jax.evaluation.bfcl.client import Client
    from dcore_jax.evaluation.bfcl.generate import Generation, generate
    from dcore_jax.evaluation.bfcl.install import install
    from dcore_jax.evaluation.bfcl.score import score_results

    version = options.bfcl_version or "v3"
    installation = install(version, options.bfcl_folder)
    how = Generation(
        version,
        "fc" if options.mode == "fc" else "prompt",
        options.rendering,
        options.thinking,
        options.temperature,
        options.max_tokens,
        options.seed,
        options.limit,
    )
    with Client(installation, version, seconds=options.item_seconds) as client:
        categories = _playable(client, options.categories)
        model = _open_model(options)
        name = options.model_name or model.name
        results = Path(options.output) / "results" / name.replace("/", "_")
        try:
            notes = generate(model, client, categories, results, how, at_once=max(64, 2 * options.slots))
        finally:
            model.engine.close()
    evaluation = score_results(
        results,
        installation,
        version,
        model_name=name,
        categories=categories,
        mode=how.mode,
        seconds=options.item_seconds,
    )
    settings = {
        "engine": options.engine,
        "mode": how.mode,
        "thinking": how.thinking,
        "temperature": how.temperature,
    }
    return replace(
        evaluation,
        left_out=(*notes, *evaluation.left_out),
        settings={**evaluation.settings, **settings, "max_tokens": how.max_tokens, "results": str(results)},
    )


def score_stored(
    results: str,
    model_name: str | None,
    *,
    version: str | None = None,
    categories: Sequence[str] = (),
    mode: Mode = "auto",
    seconds: float = 30.0,
    folder: str | None = None,
) -> Evaluation:
    """The evaluation of stored outputs; None as version: that of the files."""
    from dcore_jax.evaluation.bfcl.install import install
    from dcore_jax.evaluation.bfcl.results import find_result_files
    from dcore_jax.evaluation.bfcl.score import score_results

    _, files = find_result_files(results, model_name)
    version = version or max(file.version for file in files)
    return score_results(
        results,
        install(version, folder),
        version,
        model_name=model_name,
        categories=categories,
        mode=mode,
        seconds=seconds,
    )


def _playable(client: Client, names: Sequence[str]) -> list[str]:
    """The categories that are asked for; without a name all single-turn and multi-turn ones."""
    from dcore_jax.evaluation.bfcl.score import expand

    return expand(names or ("single_turn", "multi_turn"), client.ask("catalogue"))


def _open_model(options: BFCLOptions) -> PlayableModel:
    """The model in its engine."""
    from dcore_jax.engines.config import EngineConfig
    from dcore_jax.player import open_model
    from dcore_jax.player.model import open_served_model

    if options.engine == "server":
        if len(options.servers) != 1:
            raise UserError("--engine server needs one address: --servers http://host:port")
        return open_served_model(
            options.model,
            options.servers[0],
            max_length=options.max_length,
            slots=options.slots,
        )
    return open_model(
        options.model,
        EngineConfig(options.engine, servers=options.servers, slots=options.slots),
        max_length=options.max_length,
        dtype=options.dtype,
        output=options.output,
    )
