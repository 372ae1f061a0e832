"""Which masks are kept: those of the user's method, or of the first stage of the recipe that passes the accuracy gate."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from masksparse_deploy.core.artifacts.learning import Stage
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.learn.attach import Method
from masksparse_deploy.learn.methods import Methods, WeightMethod
from masksparse_deploy.learn.sparsifier import Outcome

__all__ = ["Candidate", "Choice", "choose"]

MAGNITUDE = "magnitude"
TRANSPOSABLE = "transposable"
PERMUTATION = " + permutation"
BATCH_NORM = " + batch norm"


@dataclass(frozen=True, eq=False)
class Candidate:
    """Masks with the name of the method that found them."""

    name: str
    outcome: Outcome


# How many of the deciding images a network classifies correctly; None stands for the dense network.
Count = Callable[[Candidate | None], int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Choice:
    """What was tried.

    Attributes:
        tried: baselines and methods; the one that is kept comes last.
        recipe: the stages of method "auto", "dense" first; empty for other methods.
    """

    tried: tuple[Candidate, ...]
    recipe: tuple[Stage, ...] = ()


def choose(methods: Methods, count: Count, *, total: int, largest_drop: float) -> Choice:
    """Run the user's method and its baselines, or the recipe.

    Args:
        methods: what can be done with the network; its options say what is asked for.
        count: correct answers on the images that decide.
        total: the number of these images.
        largest_drop: the accuracy gate of the recipe, in percentage points below the dense network.
    """
    method = methods.options.method
    if method == "auto":
        return _recipe(methods, count, total=total, largest_drop=largest_drop)
    # Where no order keeps more, names must not speak of one.
    permuted = methods.options.permute and bool(methods.permutations)
    tried = list(_baselines(methods, permuted=permuted))
    if method != "magnitude" and method != "transposable":
        tried += _learned(methods, count, method, permuted=permuted)
    elif not methods.options.batch_norm:
        # The baseline with new statistics is shown, the one without is kept.
        tried.sort(key=lambda candidate: not candidate.name.endswith(BATCH_NORM))
    return Choice(tried=tuple(tried))


def _baselines(methods: Methods, *, permuted: bool) -> Iterator[Candidate]:
    # They are of masks of weights.
    if methods.options.method == "positions":
        return
    name, sparsifier = MAGNITUDE, methods.magnitude()
    yield Candidate(name, methods.run(sparsifier, permuted=False))
    if methods.is_transposable:
        name, sparsifier = TRANSPOSABLE, methods.transposable()
        yield Candidate(name, methods.run(sparsifier, permuted=False))
    if permuted:
        name += PERMUTATION
        yield Candidate(name, methods.run(sparsifier, permuted=True))
    # Without batch norm this would be the baseline before once more.
    if methods.has_batch_norm:
        yield Candidate(name + BATCH_NORM, methods.run(methods.reestimated(sparsifier), permuted=permuted))


def _learned(methods: Methods, count: Count, method: Method | WeightMethod, *, permuted: bool) -> list[Candidate]:
    """The learned masks, and the same with new statistics; the one to keep comes last."""
    name = method + (PERMUTATION if permuted else "")
    learned = Candidate(name, methods.run(methods.sparsifier(method), permuted=permuted))
    asked = methods.options.recalibrate
    # Without images to decide on, only statistics of masks drawn at random are sure to gain; of fitted weights see below.
    wanted = methods.options.batch_norm and (methods.may_decide or method in ("gumbel", "adaprune")) if asked is None else asked
    if not (wanted and methods.has_batch_norm):
        return [learned]
    recalibrated = Candidate(name + BATCH_NORM, methods.recalibrated(learned.outcome))
    if asked is None and methods.may_decide:
        # Of equals, the statistics that were learned with stay.
        return sorted([recalibrated, learned], key=count)
    if asked is None and method == "adaprune":
        # A fit that holds the outputs' means needs none; what the answers to the training images say takes no labels.
        return sorted([recalibrated, learned], key=lambda candidate: -methods.divergence(candidate.outcome))
    return [learned, recalibrated]


def _recipe(methods: Methods, count: Count, *, total: int, largest_drop: float) -> Choice:
    """Magnitude, permutation, batch-norm re-estimation, learning: until the gate is passed.

    A stage that classifies fewer images correctly than what it builds on is dropped again. A new order of channels is tried
    once more with new statistics, without which its accuracy says little.
    """
    dense = count(None)
    stages = [Stage(name="dense", correct=dense, total=total, kept=True, passed=True)]
    tried: list[Candidate] = []
    best: tuple[int, Candidate] | None = None
    for stage in ("magnitude", "permutation", "batch norm", "scores"):
        kept_before = best[1] if best else None
        candidate = _next(methods, count, stage, kept_before, tried)
        if isinstance(candidate, str):
            stages.append(Stage(name=stage, correct=None, total=total, kept=False, passed=False, note=candidate))
            continue
        correct = count(candidate)
        kept = best is None or correct >= best[0]
        passed = 100 * (dense - correct) <= largest_drop * total
        reordered = stage == "batch norm" and kept_before and _is_permuted(candidate) != _is_permuted(kept_before)
        note = "in the new order of channels, after all" if reordered else ""
        stages.append(Stage(name=stage, correct=correct, total=total, kept=kept, passed=passed, note=note))
        tried.append(candidate)
        if kept:
            best = (correct, candidate)
        if passed:
            break
    assert best is not None
    tried.sort(key=lambda candidate: candidate is best[1])
    return Choice(tried=tuple(tried), recipe=tuple(stages))


def _is_permuted(candidate: Candidate) -> bool:
    return bool(candidate.outcome.permutations)


def _next(methods: Methods, count: Count, stage: str, before: Candidate | None, tried: Sequence[Candidate]) -> Candidate | str:
    """One stage on top of what was kept, or why there is none."""
    if before is None:
        return Candidate(MAGNITUDE, methods.run(methods.magnitude(), permuted=False))
    if stage == "permutation":
        try:
            found = methods.permutations
        except UsageError as error:
            # The recipe tries what it can; who sets mask.permute gets the error.
            return str(error)
        if not found:
            return "no order of channels keeps more magnitude"
        return Candidate(before.name + PERMUTATION, methods.run(methods.magnitude(), permuted=True))
    if stage == "batch norm":
        if not methods.has_batch_norm:
            return "the network has no batch norm"
        if not methods.options.batch_norm:
            return "mask.batch_norm is false"
        bases = [before, *(candidate for candidate in tried if _is_permuted(candidate) and candidate is not before)]
        candidates = [Candidate(base.name + BATCH_NORM, methods.recalibrated(base.outcome)) for base in bases]
        # Of equal ones the first.
        return max(candidates, key=count)
    return _learned(methods, count, "scores", permuted=_is_permuted(before))[-1]
