"""One page design for every run: sections of tables, figures and trajectories in a single HTML file that loads nothing.

page.py puts a page together, blocks.py makes its parts, chart.py draws curves, trajectory.py shows what a model wrote,
facts.py says of a run what its header needs.
"""

from dcore_jax.report.blocks import Count, bars
from dcore_jax.report.chart import SMOOTHED, Chart, Curve, Series, density_chart, line_chart, moving_average
from dcore_jax.report.facts import code_commit, flat_settings, run_facts
from dcore_jax.report.page import Page, Section
from dcore_jax.report.trajectory import Turn, shorten, turns_of

__all__ = [
    "SMOOTHED",
    "Chart",
    "Count",
    "Curve",
    "Page",
    "Section",
    "Series",
    "Turn",
    "bars",
    "code_commit",
    "density_chart",
    "flat_settings",
    "line_chart",
    "moving_average",
    "run_facts",
    "shorten",
    "turns_of",
]
