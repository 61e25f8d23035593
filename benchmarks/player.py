"""How busy the player keeps the native engine's slots, and how fast it plays.

    python benchmarks/player.py [--model nano-base] [--conversations 192] [--at-once 64] [--slots 64]

Conversations of up to four turns with a tool between them; turns end at random, as a model's do, so their lengths differ. Printed
are the share of slots that were busy while there were enough conversations to fill them, the share over the whole run with its
end, in which ever fewer conversations are left, and tokens a second.
"""

import argparse
import time

from dcore_jax.calls import Call, ParsedResponse
from dcore_jax.engines import EngineConfig, SamplingParams
from dcore_jax.player import Limits, Opening, Session, open_model, play
from heading import heading

_STOPS = 12  # further stop tokens, so that turns of a model at temperature 1.5 end early


class Lookup(Session):
    """Each turn, whatever it says, is answered as if it had called a tool."""

    instant = True

    def __init__(self, number):
        self.id = str(number)

    def open(self):
        return Opening([{"role": "user", "content": f"look up number {self.id}."}])

    def parse(self, text):
        return ParsedResponse(None, (Call("lookup"),), "")

    def call(self, call):
        return f"found {self.id}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano-base")
    parser.add_argument("--conversations", type=int, default=192)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--turns", type=int, default=4)
    words = parser.parse_args()
    print(heading(["dcore-jax", "jax"]))
    model = open_model(words.model, EngineConfig(slots=words.slots, cache_length=512), max_length=512)
    limits = Limits(max_length=512, max_tokens=64, max_turns=words.turns, at_once=words.at_once)
    sampling = SamplingParams(temperature=1.5, stop_token_ids=tuple(range(40, 40 + _STOPS)))

    def run(count):
        done, full = 0, model.engine.occupancy

        def watch(played):
            nonlocal done, full
            done += 1
            if count - done >= words.at_once:
                full = model.engine.occupancy

        before, began = model.engine.occupancy, time.perf_counter()
        found = play(
            [Lookup(i) for i in range(count)],
            model.engine,
            model.bridge(),
            limits,
            sampling=sampling,
            on_played=watch,
        )
        return found, before, full, model.engine.occupancy, time.perf_counter() - began

    run(words.at_once)  # compiles
    played, before, full, after, seconds = run(words.conversations)
    steady = (full.busy - before.busy) / max(full.total - before.total, 1)
    whole = (after.busy - before.busy) / max(after.total - before.total, 1)
    turns = [len(turn.ids) for one in played for turn in one.turns]
    print(f"conversations           {len(played)}, {words.at_once} at once, {words.slots} slots")
    print(
        f"turns                   {len(turns)} of {min(turns)} to {max(turns)} tokens, mean {sum(turns) / len(turns):.1f}"
    )
    print(
        f"slots busy              {steady:.1%} while {words.at_once} are to be played, {whole:.1%} over all"
    )
    print(
        f"speed                   {sum(turns) / seconds:,.0f} sampled tokens/s, {len(played) / seconds:.2f} conversations/s"
    )


if __name__ == "__main__":
    main()
