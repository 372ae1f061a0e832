"""What a refit says on the console."""

from rich.markup import escape

from masksparse_deploy.core.artifacts.refit import RefitReport

__all__ = ["refit_lines"]


def refit_lines(report: RefitReport) -> list[str]:
    """What was changed, what was zeroed, and how the outputs compare with the reference."""
    zeroed = sum(layer.zeroed_count for layer in report.layers)
    how = "built anew with the old options: this backend cannot change weights" if report.rebuilt else "without building"
    lines = [
        f"{escape(report.engine)}   {len(report.changed_tensors)} tensors changed, {how}   {report.seconds:.1f} s",
        f"{len(report.layers)} masked layers; {zeroed:,} of their new weights were set to zero",
        f"outputs differ from {escape(report.reference)} by {report.relative_error:.1e} of their size   "
        f"tolerance {report.tolerance:.1e}   the new weights moved them by {report.relative_change:.1e}",
    ]
    return lines + [f"[yellow]note:[/] {escape(finding)}" for finding in report.findings]
