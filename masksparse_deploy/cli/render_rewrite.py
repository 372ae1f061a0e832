"""What the rewrite of layers brought, in lines for a terminal."""

from collections import Counter
from collections.abc import Iterator

from rich.markup import escape

from masksparse_deploy.core.artifacts.rewriting import RewriteReport

__all__ = ["rewrite_lines"]


def rewrite_lines(report: RewriteReport) -> list[str]:
    """How many layers were rewritten into which form, what that brought, and why the others stay as they are."""
    return [*_lines(report), *(f"[yellow]note[/] {escape(remark)}" for remark in report.remarks)]


def _lines(report: RewriteReport) -> Iterator[str]:
    if not report.layers:
        yield "nothing to rewrite: no layer has 1xN blocks or masked positions"
        return
    forms = Counter(layer.form for layer in report.layers if layer.form != "dense")
    words = ", ".join(f"{count} {form}" for form, count in sorted(forms.items())) or "none"
    head = f"{forms.total()} of {len(report.layers)} layers rewritten: {words}"
    if report.speedup is not None:
        ends = report.interval
        # the opening bracket would start rich markup
        interval = "" if ends is None else escape(f" [{ends.low:.2f}, {ends.high:.2f}]")
        head += f"   {report.speedup:.2f}x{interval} the speed of sparse.onnx, batch {report.batch}"
    yield head
    if report.rewritten_sha256 is None:
        yield "sparse.onnx is deployed as it is"
    reasons = Counter(layer.reason for layer in report.layers if layer.form == "dense")
    for reason, count in reasons.items():
        yield f"dense: {count} layer{'' if count == 1 else 's'} ({escape(reason)})"
