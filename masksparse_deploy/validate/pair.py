"""An ONNX file, the engine that was made of it, and what both compute for the same samples."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.engine.select import get_backend
from masksparse_deploy.graph.evaluate import evaluate
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import read_graph

__all__ = ["REFERENCE_COUNT", "Deployed", "read_deployed"]

# How many samples the float64 reference takes; accuracy takes all.
REFERENCE_COUNT = 200

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Deployed:
    """One of the two networks, dense or sparse, as a file and as an engine; outputs are computed when first asked for.

    Attributes:
        name: "dense" or "sparse".
        graph: the ONNX file.
        engine: metadata of the engine.
        engine_path: where that metadata lies, the plan beside it.
        samples: labelled images.
        threads: for running the engine; 0 means all cores.
    """

    name: str
    graph: Graph
    engine: EngineArtifact
    engine_path: Path
    samples: Samples
    threads: int

    def run(self, images: npt.NDArray[np.float32]) -> Array:
        """The engine's first output, (count, classes)."""
        with get_backend(self.engine.backend).open(self.engine_path, threads=self.threads) as session:
            return session.run(images)[session.output_names[0]]

    @cached_property
    def outputs(self) -> Array:
        """The engine's first output for all samples, (count, classes)."""
        return self.run(self.samples.images)

    @cached_property
    def reference(self) -> Array:
        """The file evaluated in float64 on the first REFERENCE_COUNT samples; raises UsageError where that is not possible."""
        output = self.graph.outputs[0]
        return evaluate(self.graph, self.samples.first(REFERENCE_COUNT).images, (output,))[output]


def read_deployed(name: str, onnx_path: Path, engine_path: Path, samples: Samples, threads: int) -> Deployed:
    """Read file and metadata; raises ArtifactError if one is damaged, UsageError if one is missing."""
    return Deployed(
        name=name,
        graph=read_graph(onnx_path),
        engine=EngineArtifact.read(engine_path),
        engine_path=engine_path,
        samples=samples,
        threads=threads,
    )
