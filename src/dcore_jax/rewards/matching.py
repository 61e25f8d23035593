"""How predicted calls are compared with reference calls: the arithmetic that all the papers share."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from dcore_jax.calls import JSON, Call, values_equal


class Match(NamedTuple):
    """A reference call and the prediction that was matched to it."""

    reference: Call
    predicted: Call | None  # None: no prediction has the name, or none that has it agrees in anything
    keys: float  # J of the parameter names, in [0, 1]; 0 without a prediction
    values: int  # parameters of the reference that have an equal value in the prediction


def jaccard(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """J: size of the multiset intersection over that of the union; 1 for two empty lists, 0 if only one is empty."""
    if not a and not b:
        return 1.0
    shared = (Counter(a) & Counter(b)).total()
    return shared / (len(a) + len(b) - shared)


def match_calls(predicted: Sequence[Call], reference: Sequence[Call]) -> tuple[Match, ...]:
    """Matches each reference call, in order, with the best unused prediction of the same name.

    The best has the largest J(parameter names) + number of equal values, the first one among equals; a prediction that
    scores 0 is left for a later reference. Values are compared by type and size (`values_equal`).

    Source:
      ToolRL, 2504.13958, section 3.3.
    """
    unused: dict[str, list[Call]] = {}
    for call in predicted:
        unused.setdefault(call.name, []).append(call)
    matches = []
    for call in reference:
        candidates = unused.get(call.name, [])
        best, best_index = Match(call, None, 0.0, 0), -1
        for i, candidate in enumerate(candidates):
            keys, most = _shared_keys(call.arguments, candidate.arguments)
            if keys + most <= best.keys + best.values:
                continue  # not even if every shared parameter had an equal value
            values = 0
            for name, value in call.arguments.items():
                values += name in candidate.arguments and values_equal(candidate.arguments[name], value)
            if keys + values > best.keys + best.values:
                best, best_index = Match(call, candidate, keys, values), i
        if best.predicted is not None:
            candidates.pop(best_index)
        matches.append(best)
    return tuple(matches)


def _shared_keys(a: Mapping[str, JSON], b: Mapping[str, JSON]) -> tuple[float, int]:
    """J of the keys, and how many both have; keys of a mapping are unique, so sets serve as multisets."""
    if not a and not b:
        return 1.0, 0
    shared = len(a.keys() & b.keys())
    return shared / (len(a) + len(b) - shared), shared


def accuracy(predicted: Sequence[Call], reference: Sequence[Call]) -> float:
    """ToolRL's and ResT's score as a share of its maximum, in [0, 1]; 1 for the reference itself.

    (J(names) + sum over reference calls of [J(parameter names) + equal values])
        / (1 + number of reference calls + number of reference parameters)

    Source:
      ToolRL, 2504.13958, section 3.3; ResT, 2509.21826, Eq. 10-14.
    """
    score = jaccard([call.name for call in reference], [call.name for call in predicted])
    score += sum(match.keys + match.values for match in match_calls(predicted, reference))
    return score / (1 + sum(1 + len(call.arguments) for call in reference))
