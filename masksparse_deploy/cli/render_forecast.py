"""What a forecast says, in lines for a terminal."""

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from masksparse_deploy.core.artifacts.forecast import Forecast, KindForecast
from masksparse_deploy.core.artifacts.timing import Speedup

__all__ = ["forecast_table"]


def forecast_table(forecast: Forecast) -> Iterable[Table | str]:
    """One row for each kind of layer, then the network as a whole and what follows from it."""
    numbers = ("layers", "dense ms", "sparse ms", "gain ms each")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("kind", *numbers, "tactic"):
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for kind in forecast.kinds:
        table.add_row(str(kind.kind), str(len(kind.layers)), *_times(kind), _tactic(kind))
    if forecast.kinds:
        yield table
        where = f"batch {forecast.batch}, {escape(forecast.precision)}, {escape(' '.join(_place(forecast)))}"
        network = "-" if forecast.network_ms is None else f"{forecast.network_ms:.3f} ms"
        yield f"network as it is {network}   {where}"
    if forecast.estimate is not None:
        yield f"estimate from the layers   {_speedup(forecast.estimate)}   an estimate: layers also act on one another"
    if forecast.trial is not None:
        yield f"trial with half of the weights cut   {_speedup(forecast.trial)}   measured, accuracy disregarded"
    yield f"[{'green' if forecast.worthwhile else 'yellow'}]{escape(forecast.reason)}[/]"
    yield from (f"[yellow]note[/] {escape(remark)}" for remark in forecast.remarks)


def _place(forecast: Forecast) -> tuple[str, ...]:
    return (forecast.device, f"({forecast.architecture})") if forecast.architecture else (forecast.device,)


def _times(kind: KindForecast) -> tuple[str, str, str]:
    if kind.dense_ms is None or kind.sparse_ms is None:
        return "-", "-", "-"
    return f"{kind.dense_ms:.4f}", f"{kind.sparse_ms:.4f}", f"{kind.gain_ms:+.4f}" if kind.gain_interval else "0"


def _tactic(kind: KindForecast) -> str:
    if kind.failure:
        return f"[red]not timed[/]: {escape(kind.failure)}"
    if kind.picked is False:
        return "dense: the builder keeps it"
    return escape(kind.sparse_tactic) or "not told"


def _speedup(speedup: Speedup) -> str:
    interval = speedup.interval
    return escape(f"{speedup.ratio:.2f}x [{interval.low:.2f}, {interval.high:.2f}]")
