"""Several trials of the same tasks: pass^k, the chance that k of them are all right (tau-bench, arXiv 2406.12045, section 4)."""

from collections import defaultdict
from collections.abc import Sequence

from dcore_jax.evaluation.statistics import pass_hat_k
from dcore_jax.evaluation.summary import Item


def pass_hat_metrics(items: Sequence[Item]) -> dict[str, float]:
    """pass^1 to pass^n over all tasks and by category, n the fewest trials that a task has; none for a single trial."""
    tasks: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for item in items:
        tasks[item.category, item.id].append(item.correct)
    most = min(map(len, tasks.values()), default=0)
    if most < 2:
        return {}
    categories = list(dict.fromkeys(category for category, _ in tasks))
    metrics = {}
    for name in ("", *(categories if len(categories) > 1 else ())):
        chosen = [found for (category, _), found in tasks.items() if name in ("", category)]
        for k in range(1, most + 1):
            right, trials = [sum(found) for found in chosen], [len(found) for found in chosen]
            metrics[f"{name} pass^{k}".strip()] = pass_hat_k(right, trials, k)
    return metrics
