"""The one door to packages that are not always installed."""

import importlib
import importlib.util
from types import ModuleType

from masksparse_deploy.core.errors import MachineError

__all__ = ["EXTRAS", "is_installed", "require"]

# Import name -> the extra of this package that brings it.
EXTRAS = {
    "accelerate": "learn",
    "cuda": "gpu",
    "jinja2": "report",
    "onnx_ir": "learn",
    "onnxscript": "learn",
    "openvino": "openvino",
    "ortools": "transposable",
    "plotly": "report",
    "polygraphy": "tensorrt",
    "pynvml": "gpu",
    "tensorboard": "tensorboard",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "preflight",
    "torch": "learn",
}


def require(module: str, *, needed_for: str) -> ModuleType:
    """Import and return `module`.

    Args:
        module: dotted import name, for example "tensorrt".
        needed_for: what the user was doing, as in "building an engine"; completes "... is needed for ...".

    Raises:
        MachineError: the package is missing or cannot be imported; names the extra to install and chains the cause.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken binary package may raise anything, not only ImportError
        package = module.partition(".")[0]
        extra = EXTRAS.get(package)
        remedy = f"pip install 'masksparse-deploy[{extra}]'" if extra else f"pip install {package}"
        raise MachineError(
            f"{package} is needed for {needed_for} and could not be imported ({type(error).__name__}: {error}); "
            f"install it with: {remedy}"
        ) from error


def is_installed(module: str) -> bool:
    """Whether the top-level package of `module` can be found, without importing it."""
    return importlib.util.find_spec(module.partition(".")[0]) is not None
