"""An update as lines of text."""

from collections.abc import Iterator
from pathlib import Path

from rich.markup import escape

from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.artifacts.updating import Comparison, UpdateReport
from masksparse_deploy.core.masks import MaskSet

__all__ = ["compare_lines", "masks_line", "update_lines"]

_NAMED = 3


def masks_line(masks: MaskSet, statistics: str) -> str:
    """Which masks are used again, and where the batch-norm statistics come from."""
    return f"the masks of {len(masks.layers)} layers ({escape(masks.method)}), for the new weights; statistics: {statistics}"


def compare_lines(folder: Path) -> list[str]:
    """Which certificates are there."""
    names = sorted(path.name for path in folder.glob("certificate.*-old.json"))
    return [f"{name}: {len(Certificate.read(folder / name).layers)} layer bounds" for name in names]


def update_lines(report: UpdateReport) -> list[str]:
    """Accuracy, bounds against the three networks, budgets, and whether to learn the masks again."""
    return [
        *_accuracies(report),
        "masked network with the new weights, against",
        *(_comparison(comparison) for comparison in report.comparisons),
        *_budgets(report),
        f"[{'yellow' if report.relearn is not False else 'green'}]{escape(report.advice)}[/]",
        *(f"[yellow]note[/] {escape(remark)}" for remark in report.remarks),
    ]


def _accuracies(report: UpdateReport) -> Iterator[str]:
    def share(correct: int | None) -> str:
        return "?" if correct is None else f"{correct / report.sample_count:.2%}"

    yield (
        f"accuracy dense {share(report.dense_correct_old)} -> {share(report.dense_correct_new)}, "
        f"masked {share(report.sparse_correct_old)} -> {share(report.sparse_correct_new)}, {report.sample_count:,} images"
    )


def _comparison(comparison: Comparison) -> str:
    words = []
    if comparison.layerwise is not None:
        words.append(f"layer at most {comparison.layerwise:.3g} output l2 per input l2")
    bounds = [claim.bound for claim in comparison.claims if claim.bound is not None]
    measured = [claim.measured for claim in comparison.claims if claim.measured is not None]
    words.append(f"end to end at most {min(bounds):.3g} on the samples" if bounds else "end to end: no bound")
    if measured:
        words.append(f"measured {max(measured):.3g}")
    return f"  {comparison.against}: {', '.join(words)}"


def _budgets(report: UpdateReport) -> Iterator[str]:
    left = sum(not layer.within_layerwise for layer in report.layers)
    above = f"more than {100 * report.growth:g} % above the old one"
    if report.within_layerwise:
        yield f"within the layerwise budget: no layer's bound is {above}, without computing any again"
    else:
        anew = f"beyond the layerwise budget in {left} of {len(report.layers)} layers; computed anew, "
        named = ", ".join(escape(name) for name in report.grown[:_NAMED]) + (" ..." if len(report.grown) > _NAMED else "")
        yield anew + (f"{len(report.grown)} bounds are {above} ({named})" if report.grown else f"no layer's bound is {above}")
    if report.other_changes:
        yield f"changed, and covered by no budget: {escape(', '.join(report.other_changes))}"
    if report.within_end_to_end is None:
        yield "no end-to-end budget: there is no data-free bound"
        return
    now = "none" if report.end_to_end_new is None else f"{report.end_to_end_new:.3g}"
    where = "within" if report.within_end_to_end else "beyond"
    yield (
        f"{where} the end-to-end budget of {report.end_to_end_share:.2e} of each layer's norm; data-free bound "
        f"{report.end_to_end_old:.3g} -> {now}, limit {report.end_to_end_limit:.3g}"
    )
