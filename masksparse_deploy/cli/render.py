"""What the artifacts say, in lines for a terminal."""

from collections.abc import Iterable, Sequence

from rich.markup import escape
from rich.table import Table

from masksparse_deploy.cli.render_attribution import attribution_lines
from masksparse_deploy.cli.render_survival import survival_line
from masksparse_deploy.core.any_pattern import parse_pattern
from masksparse_deploy.core.artifacts.baking import BakeReport, LintReport, PaddedLayer
from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.artifacts.document import Interval
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.learning import LearnReport, Share
from masksparse_deploy.core.artifacts.selection import DENSE, LayerSelection
from masksparse_deploy.core.artifacts.validation import DeviationQuantile, ValidationReport
from masksparse_deploy.core.blocks import BlockPattern

__all__ = [
    "bake_lines",
    "certify_lines",
    "check_lines",
    "engine_lines",
    "finding_lines",
    "learn_lines",
    "lint_table",
    "selection_table",
    "stage_row",
    "validate_lines",
    "verdict_line",
]

_COLOURS = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow"}
_STATES = {"conforming": "green", "broken claim": "bold red", "wrong axis": "yellow"}


def stage_row(stage: str, lines: Sequence[str], seconds: float) -> Table:
    """One stage of the chain: its name, what it found, and how long it took."""
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(width=9, style="bold")
    table.add_column(ratio=1)
    table.add_column(width=6, justify="right", style="dim")
    minutes, rest = divmod(round(seconds), 60)
    for index, line in enumerate(lines):
        table.add_row(*((stage, line, f"{minutes}:{rest:02d}") if index == 0 else ("", "  " + line, "")))
    return table


def learn_lines(report: LearnReport) -> list[str]:
    """What was masked, what it did to the accuracy, and what was left dense."""
    accuracies = {entry.method: entry.correct / entry.total for entry in report.accuracies}
    dense = accuracies.pop("dense")
    methods = "   ".join(f"{name} {_percent(value)}" for name, value in accuracies.items())
    lines = []
    if report.layers:
        lines.append(
            f"{report.pattern} {_along(report.pattern)}: {_share(report.convolutions)} convolutions, "
            f"{_percent(report.macs.masked / report.macs.total)} of MACs, "
            f"{_percent(report.parameters.masked / report.parameters.total)} of parameters"
        )
    if report.positions:
        dropped = [1 - layer.density for layer in report.positions]
        lines.append(
            f"output positions: {len(dropped)} of {report.convolutions.total} convolutions leave out "
            f"{_percent(min(dropped))} to {_percent(max(dropped))} of theirs"
        )
    lines.append(f"{methods}   (dense {_percent(dense)})")
    lines += _recipe_lines(report)
    if report.permutation_count:
        lines.append(f"channels reordered in {report.permutation_count} tensors; the dense network computes the same")
    statistics = "; batch-norm statistics follow the masks" if report.statistics_updated else ""
    if report.changed_parameters:
        moved = [layer.weight_change for layer in report.layers if layer.weight_change is not None]
        far = f", kept ones moved by {_percent(min(moved))} to {_percent(max(moved))}" if moved else ""
        lines.append(f"new weights in {len(report.changed_parameters)} parameters{far}{statistics}")
    elif report.weights_sha256_before == report.weights_sha256_after:
        lines.append(f"weights bit-identical{statistics}")
    else:
        lines.append("[bold red]the weights changed[/]: this must not happen; do not deploy")
    lines += [f"left dense: {escape(layer.name)} ({escape(layer.reason)})" for layer in report.skipped]
    return lines


def _along(pattern: str) -> str:
    """What the masks run along."""
    parsed = parse_pattern(pattern)
    if isinstance(parsed, BlockPattern):
        return f"in blocks of {parsed.n} output channels"
    return "along input and output channels" if parsed.transposable else "along input channels"


def _recipe_lines(report: LearnReport) -> list[str]:
    """What each stage of the recipe brought, and whether the gate was passed."""
    if not report.recipe:
        return []
    steps, best = [], report.recipe[0].correct
    for stage in report.recipe[1:]:
        if stage.correct is None or best is None:
            steps.append(f"{stage.name}: left out ({escape(stage.note)})")
            continue
        change = "" if stage is report.recipe[1] else f", {100 * (stage.correct - best) / stage.total:+.2f} points"
        steps.append(
            f"{stage.name}: {_percent(stage.correct / stage.total)}{change}{'' if stage.kept else ', dropped again'}"
            f"{', passes the gate' if stage.passed else ''}{f' ({escape(stage.note)})' if stage.note else ''}"
        )
        best = stage.correct if stage.kept else best
    images = "validation" if report.decided_on == "validation" else "test"
    lines = [f"recipe, on the {images} images: {steps[0]}", *steps[1:]]
    if not any(stage.passed for stage in report.recipe[1:]):
        lines.append(f"no stage passes the accuracy gate; the best is kept: {report.method}")
    return lines


def bake_lines(report: BakeReport) -> list[str]:
    """The files and whether every layer conforms."""
    broken = [layer for layer in report.layers if layer.violation_count]
    conforming = len(report.layers) - len(broken)
    head = f"dense.onnx, sparse.onnx   opset {report.opset}, {report.precision.upper()}"
    if report.layers or not report.positions:
        head += "   1 layer conforms" if conforming == 1 else f"   {conforming} layers conform"
        head += f", {len(broken)} do not" if broken else ", none lost"
    lines = [head]
    if report.weights_updated:
        lines.append("sparse.onnx has the new weights, dense.onnx those of the trained network")
    if report.positions:
        count, kept = (sum(getattr(row, name) for row in report.positions) for name in ("position_count", "kept_count"))
        several = f"{len(report.positions)} convolutions compute"
        computing = "1 convolution computes" if len(report.positions) == 1 else several
        lines.append(f"{computing} {kept:,} of {count:,} output positions ({_percent(kept / count)})")
    if report.padded:
        lines.append(_padding_line(report.padded))
    if report.ranges:
        lines.append(_ranges_line(report))
    return lines + [f"[yellow]note[/] {escape(remark)}" for remark in report.remarks]


def _ranges_line(report: BakeReport) -> str:
    """What the precision costs: weights that become zero, and outputs beyond its range where they were measured."""
    nonzero_count = sum(row.weight_nonzero_count for row in report.ranges)
    flushed_count = sum(row.weight_flushed_count for row in report.ranges)
    weights = f"{flushed_count:,} of {nonzero_count:,} nonzero constants become 0 in {report.precision.upper()}"
    measured = [row.output_overflow_count for row in report.ranges if row.output_overflow_count is not None]
    if not measured:
        return f"{weights}; outputs were not measured: give --calibration"
    return f"{weights}; {sum(measured):,} outputs on the calibration images are beyond its range"


def _padding_line(layers: Sequence[PaddedLayer]) -> str:
    """What channels of zeros cost, zeros included."""
    macs = [layer.extra_mac_count for layer in layers if layer.extra_mac_count is not None]
    unknown = "" if len(macs) == len(layers) else " or more"
    nodes = sum(layer.by == "pad node" for layer in layers)
    return (
        f"zero channels in {len(layers)} layers: {sum(layer.extra_weight_count for layer in layers):,} weights and "
        f"{sum(macs):,}{unknown} MACs a sample more; {nodes} of them behind a Pad operator"
    )


def engine_lines(artifact: EngineArtifact, choice: str) -> list[str]:
    """The backend and why it was chosen, the device, whether sparse kernels are in use, and what else the user should know."""
    lines = [f"{escape(choice)}   ({escape(artifact.device.name)})", escape(artifact.sparse_kernels)]
    return lines + finding_lines(artifact)


def finding_lines(artifact: EngineArtifact, whose: str = "") -> list[str]:
    """What the user should know about a build; `whose` stands in front of each."""
    return [f"[yellow]note:[/] {whose}{escape(finding)}" for finding in artifact.findings]


def certify_lines(certificate: Certificate) -> list[str]:
    """How many layers have a bound, and what the end-to-end claims are worth."""
    lines = [f"{len(certificate.layers)} layer bounds"]
    for claim in certificate.claims:
        words = [f"{claim.bound:.3g} {claim.unit}" if claim.bound is not None else "no bound"]
        if claim.tightness is not None:
            words.append(f"{_times(claim.tightness)} measured")
        if claim.certified_count is not None and claim.sample_count is not None:
            words.append(f"certifies {claim.certified_count} of {claim.sample_count} samples")
        colour = "green" if claim.status == "useful" else "yellow"
        smallest = " (the smallest)" if claim.name == certificate.smallest else ""
        lines.append(f"{escape(claim.name)}: [{colour}]{claim.status}[/]   {', '.join(words)}{smallest}")
    return lines


def validate_lines(report: ValidationReport) -> list[str]:
    """Layers within their bound, agreement and accuracy, and every check that did not pass."""
    within = sum(layer.verdict == "pass" for layer in report.layers)
    accuracy = report.accuracy
    lines = [
        (f"layerwise {within} of {len(report.layers)} within bound   " if report.layers else "layerwise not checked   ")
        + f"top-1 agreement {accuracy.total - accuracy.disagreement_count} of {accuracy.total}",
        f"accuracy {_percent(accuracy.dense_correct / accuracy.total)} -> "
        f"{_percent(accuracy.sparse_correct / accuracy.total)}, drop {accuracy.drop_points:.2f} "
        f"{_interval(accuracy.drop_interval, 1.0, '.2f')} points",
    ]
    if report.deviation is not None:
        lines.append(_deviation_line(report.deviation))
    if report.attribution is not None:
        lines += attribution_lines(report.attribution)
    if report.survival:
        lines.append(survival_line(report.survival))
    lines += [line for check, line in zip(report.checks, check_lines(report), strict=True) if check.verdict != "pass"]
    return lines


def check_lines(report: ValidationReport) -> list[str]:
    """Every check, with its verdict and what it rests on."""
    return [
        f"[{_COLOURS[check.verdict]}]{check.verdict}[/] {escape(check.name)}: {escape(check.detail)}" for check in report.checks
    ]


def _deviation_line(found: DeviationQuantile) -> str:
    """What a fresh image is expected to do: statistics, with the sample sizes."""
    if found.quantile is None:
        return f"a fresh image: nothing is said, {found.sample_count} samples are too few (needed: {found.needed_count})"
    return (
        f"a fresh image: outputs at most {found.quantile:.3g} apart with probability {_percent(found.confidence)} (statistics, "
        f"{found.sample_count} samples); {found.wide_margin_count} of {found.fresh_count} others have a margin above "
        f"{found.margin:.3g}, {found.kept_count} of them keep their class"
    )


def verdict_line(report: ValidationReport, path: str) -> str:
    """The verdict, and where to read on."""
    return f"[{_COLOURS[report.verdict]}]{report.verdict.upper()}[/]      {escape(path)}"


def lint_table(report: LintReport) -> Iterable[Table | str]:
    """One row a layer, then what does not hold, what else is to be known, the counts and the Amdahl limit."""
    numbers = ("MACs", "density")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("layer", "weight", "type", *numbers, "state", "why"):
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for layer in report.layers:
        table.add_row(
            escape(layer.weight.removesuffix(".weight")),
            "x".join(map(str, layer.shape)),
            layer.dtype or "?",
            "?" if layer.mac_share is None else f"{layer.mac_share:.1%}",
            f"{layer.density:.0%}",
            f"[{_STATES[layer.state]}]{layer.state}[/]" if layer.state in _STATES else layer.state,
            escape(f"in {layer.where}: {layer.why}" if layer.where else layer.why),
        )
    counts: dict[str, int] = {}
    for layer in report.layers:
        counts[layer.state] = counts.get(layer.state, 0) + 1
    summary = ", ".join(f"{count} {state}" for state, count in counts.items()) or "none"
    limit = "unknown" if report.amdahl_limit is None else f"{report.amdahl_limit:.2f}x at most"
    yield table
    for layer in report.layers:
        yield from (f"drift in {escape(layer.weight)}: {escape(change)}" for change in layer.drift)
    for row in report.positions:
        share = "" if row.mac_share is None else f" ({row.mac_share:.1%} of the file's MACs)"
        state = f"[{_STATES[row.state]}]{row.state}[/]"
        yield f"positions of {escape(row.layer or row.node)}: {state}: {escape(row.why)}{share}"
    yield from (f"[bold red]broken claim[/]: {escape(finding)}" for finding in report.findings)
    yield from (escape(remark) for remark in report.remarks)
    yield f"{len(report.layers)} layers with weights: {summary}. If every conforming layer ran at its ideal speed: {limit}."


def selection_table(selection: LayerSelection) -> Iterable[Table | str]:
    """One row an eligible layer in the order in which they were tried, then what the choice costs and saves."""
    numbers = ("MACs", "divergence", "points alone", "together")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("layer", "weight", *numbers, "becomes", "why"):
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    together = {step.layer: f"{step.joint.drop_points:.2f}" for step in selection.steps}
    for layer in selection.layers:
        assigned = selection.assignment[layer.name]
        stays_dense = assigned.pattern == DENSE
        table.add_row(
            escape(layer.name),
            "x".join(map(str, layer.shape)),
            f"{layer.mac_count / selection.macs.total:.1%}",
            f"{layer.alone.divergence:.2e}",
            f"{layer.alone.drop_points:.2f}",
            together.get(layer.name, "-"),
            DENSE if stays_dense else f"[green]{assigned.pattern}[/]",
            escape(assigned.reason) if stays_dense else "",
        )
    yield table
    tried = {layer.name for layer in selection.layers}
    for name, assigned in sorted(selection.assignment.items()):
        if name not in tried:
            yield f"left dense: {escape(name)} ({escape(assigned.reason)})"
    yield (
        f"{selection.pattern} on {len(selection.chosen)} of {len(tried)} eligible layers: "
        f"{_percent(selection.macs.masked / selection.macs.total)} of MACs, {selection.amdahl_limit:.2f}x at most"
    )
    total, joint = selection.total, selection.joint
    masks = f"{selection.method} masks" + (" and re-estimated batch-norm statistics" if joint.statistics_updated else "")
    budget = "no limit" if selection.budget_points is None else f"{selection.budget_points:g} allowed"
    yield (
        f"accuracy {_percent(selection.dense_correct / total)} -> {_percent(joint.correct / total)}, "
        f"{joint.drop_points:.2f} points lost ({budget}) with {masks}, {total} {selection.decided_on} images"
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _times(factor: float) -> str:
    return f"{factor:.1f}x" if factor < 1000 else f"{factor:.0e}x"


def _share(share: Share) -> str:
    return f"{share.masked} of {share.total}"


def _interval(interval: Interval, scale: float, spec: str) -> str:
    # The opening bracket would start rich markup.
    return escape(f"[{interval.low * scale:{spec}}, {interval.high * scale:{spec}}]")
