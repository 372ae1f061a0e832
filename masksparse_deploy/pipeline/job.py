"""One configuration on its way through the chain: paths, digests of the inputs, and what several stages read."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from masksparse_deploy.core.config import NO_TIMING_CACHE, DeployConfig, EngineOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.factory import is_factory, source_file
from masksparse_deploy.core.files import sha256_bytes, sha256_file
from masksparse_deploy.core.samples import Samples, read_split

__all__ = ["Job", "source_digest"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """What to do and where.

    Attributes:
        config: the validated configuration.
        folder: where the configuration lies; its relative paths start here.
        out: the output folder.
        command: what the user typed, for the report's provenance.
        config_text: the configuration file as written, likewise.
    """

    config: DeployConfig
    folder: Path
    out: Path
    command: str
    config_text: str

    @property
    def engine(self) -> EngineOptions:
        """The engine's options, with the timing cache from the configuration's folder on, as all its paths are."""
        options = self.config.engine
        if options.timing_cache in (None, NO_TIMING_CACHE):
            return options
        return options.model_copy(update={"timing_cache": str(self.folder / str(options.timing_cache))})

    @cached_property
    def test(self) -> Samples:
        """The test set, read once."""
        return read_split(self.config.data, "test", self.folder)

    @property
    def train(self) -> Samples:
        """The training set; read anew each time, as it may be large."""
        return read_split(self.config.data, "train", self.folder)

    def model_digests(self) -> dict[str, str]:
        """Digests of the checkpoint and of the file that defines the model."""
        model = self.config.model
        weights = sha256_file(self.folder / model.weights, "checkpoint")
        return {"weights": weights, "factory": source_digest(model.factory, self.folder)}

    def digest(self, name: str) -> str:
        """The digest of an output file."""
        return sha256_file(self.out / name)


def source_digest(source: str, folder: Path) -> str:
    """A digest that changes when a data set or factory changes.

    A file and a folder stand for their content, "module:callable" for the source file of the module and the Python files
    beside it: what a factory reads from elsewhere is not seen.
    """
    path = folder / source
    if path.is_file():
        return sha256_file(path)
    if path.is_dir():
        return sha256_bytes("\n".join(_listing(path)).encode())
    if not is_factory(source):
        raise UsageError(f"{path} does not exist; give a file, a folder, or module:callable")
    file = source_file(source, folder)
    if file is None:
        raise UsageError(f"{source}: no module {source.partition(':')[0]!r} in {folder} or on the Python path")
    return sha256_bytes("\n".join([file.name, *_listing(file.parent, "*.py")]).encode())


def _listing(folder: Path, pattern: str = "**/*") -> Iterator[str]:
    for file in sorted(folder.glob(pattern)):
        if file.is_file():
            yield f"{file.relative_to(folder).as_posix()} {sha256_file(file)}"
