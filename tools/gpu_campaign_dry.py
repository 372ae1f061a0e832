"""Everything of a campaign up to the first CUDA call: all ONNX files are made and read, by NVIDIA's parser too where it is."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.core.optional import is_installed, require
from masksparse_deploy.engine.source import Source, read_source
from masksparse_deploy.engine.tensorrt_log import kept_messages
from masksparse_deploy.engine.tensorrt_versions import creation_flags, parser_reason
from masksparse_deploy.forecast.kinds import take_census
from tools.gpu_campaign_record import Case

__all__ = ["dry_run"]

_PACKAGE = "tensorrt_rtx"

# What NVIDIA's parser says of a file: its reasons, empty where it accepts it.
Parse = Callable[[Source], Sequence[str]]


def dry_run(cases: Iterable[Case], folder: Path, say: Callable[[str], None]) -> int:
    """Make the files of all cases, read them, and let NVIDIA's parser read them where it is installed.

    Args:
        cases: of the campaign.
        folder: for the files, each removed when the next case begins, as hundreds of kernels take gigabytes.
        say: told of each case.

    Returns:
        How many cases have a file that could not be made, or that was not accepted.
    """
    failed = 0
    made: dict[object, str] = {}
    with _parser(say) as parse:
        for case in cases:
            same = made.setdefault(_maker(case), case.name)
            if same != case.name:
                say(f"{case.name}: the files of {same}")
                continue
            try:
                found = [_described(path, parse) for path in case.files(folder)]
            except Exception as error:  # one case that cannot be made must not hide the others
                failed += 1
                say(f"{case.name}: FAILED: {type(error).__name__}: {error}")
                continue
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            say(f"{case.name}: {'; '.join(found) or 'no files'}")
    return failed


def _maker(case: Case) -> object:
    """What makes a case's files: cases that differ in the batch alone have the same."""
    files = case.files
    return (files.func, files.args) if isinstance(files, partial) else files


def _described(path: Path, parse: Parse) -> str:
    source = read_source(path)
    reasons = parse(source)
    if reasons:
        raise MachineError(f"NVIDIA's parser does not accept {path.name}: {'; '.join(reasons)}")
    eligible = sum(len(layers) for layers in take_census(source.graph).kinds.values())
    return f"{path.name} {path.stat().st_size / 2**20:.1f} MiB, {source.precision}, {eligible} eligible layers"


@contextmanager
def _parser(say: Callable[[str], None]) -> Iterator[Parse]:
    if not is_installed(_PACKAGE):
        say("NVIDIA's parser is not here (pip install 'masksparse-deploy[preflight]'): files are read by our code alone")
        yield lambda source: ()
        return
    module: Any = require(_PACKAGE, needed_for="reading ONNX files with NVIDIA's parser")
    with kept_messages(module) as (logger, _):
        builder = module.Builder(logger)

        def parse(source: Source) -> Sequence[str]:
            network = builder.create_network(creation_flags(module))
            parser = module.OnnxParser(network, logger)
            if parser.parse(source.content):
                return ()
            return [parser_reason(parser.get_error(index)) for index in range(parser.num_errors)] or ["no reason given"]

        yield parse
