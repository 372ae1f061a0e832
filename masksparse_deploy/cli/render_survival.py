"""The four checkpoints of every masked layer on the terminal."""

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from masksparse_deploy.core.artifacts.survival import STAGES, LayerSurvival, StageState

__all__ = ["survival_line", "survival_table"]

_COLOURS = {"conforming": "green", "broken": "red", "missing": "red", "not checked": "yellow"}


def survival_line(layers: tuple[LayerSurvival, ...]) -> str:
    """How many layers were found conforming at each stage."""
    counts = ", ".join(f"{stage} {sum(layer.at(stage).state == 'conforming' for layer in layers)}" for stage in STAGES)
    return f"sparsity seen of {len(layers)} masked layers: {counts}"


def survival_table(layers: tuple[LayerSurvival, ...]) -> Iterable[Table | str]:
    """One row a layer, with the first stage that lost it; then why stages were not checked, each reason once."""
    if not layers:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("layer", *STAGES, "lost at"):
        table.add_column(column, overflow="fold")
    for layer in layers:
        states = (_state(layer.at(stage)) for stage in STAGES)
        table.add_row(escape(layer.layer), *states, f"[red]{layer.lost_at}[/]" if layer.lost_at else "-")
    yield table
    reasons = {(stage, layer.at(stage).why): None for stage in STAGES for layer in layers if layer.at(stage).why}
    for stage, why in reasons:
        yield f"[yellow]{stage}[/] {escape(why)}"


def _state(state: StageState) -> str:
    words = state.state if state.why else str(state)
    return f"[{_COLOURS[state.state]}]{words}[/]"
