"""The packages whose layers are served here: imported when their adapter is asked for, and not before."""

import importlib
import warnings
from types import ModuleType

from hsv import MissingBackendError


def required_package(module: str, distribution: str) -> ModuleType:
    """Import and return `module`, which `pip install distribution` brings.

    Raises
    ------
    hsv.MissingBackendError
        It is not installed. An error inside a package that is there passes unchanged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # what a package calls of its own dependencies
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise MissingBackendError(
            f"the package `{package}` is needed here and not installed; pip install {distribution}"
        ) from error
