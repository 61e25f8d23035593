"""How long a step takes at the device's peak rates, and what a recipe costs by that."""

from dataclasses import dataclass

from dcore_jax.plan.work import Work


@dataclass(frozen=True)
class Rates:
    """Of one device, at its peak."""

    flops: float  # FLOP/s
    bandwidth: float  # bytes/s of its memory
    interconnect: float  # bytes/s that it sends while it receives as many


@dataclass(frozen=True)
class Phase:
    """A program with its share of an optimizer step (SFT) or of a round of rollouts and updates (RL)."""

    name: str
    runs: int | float  # in a step
    work: Work  # of one run
    wire: int | float  # bytes that one device sends in a run
    devices: int

    def seconds(self, rates: Rates, efficiency: float = 1.0) -> float:
        """Of all runs: the slowest of arithmetic, memory and wire, where the three overlap; each at a share of its peak."""
        return self.runs * max(self.bounds(rates).values()) / efficiency

    def bounds(self, rates: Rates) -> dict[str, float]:
        """Seconds of one run by each of the three alone."""
        return {
            "arithmetic": self.work.flops / self.devices / rates.flops if rates.flops else 0.0,
            "memory": self.work.traffic / rates.bandwidth if rates.bandwidth else 0.0,
            "wire": self.wire / rates.interconnect if rates.interconnect else 0.0,
        }

    def limit(self, rates: Rates) -> str:
        """What the phase waits for."""
        bounds = self.bounds(rates)
        return max(bounds, key=lambda name: bounds[name])


@dataclass(frozen=True)
class Cost:
    """Of a whole run of the recipe."""

    steps: int
    hours: float
    chip_hours: float
    price: float | None  # in the currency of the price per chip-hour


def recipe_cost(step_seconds: int | float, steps: int, devices: int, price: float | None) -> Cost:
    """The steps one after the other; loading, evaluation and checkpoints are not in it."""
    hours = step_seconds * steps / 3600
    return Cost(steps, hours, hours * devices, None if price is None else round(hours * devices * price, 2))
