"""The packages whose layers are served here: imported when their adapter is asked for, and not before."""

import importlib
import sys
import warnings
from types import ModuleType

from torch import nn

from hsv import MissingBackendError

SERVED = {
    "transformers": (
        "transformers.models.mamba.modeling_mamba.MambaMixer",
        "transformers.models.falcon_mamba.modeling_falcon_mamba.FalconMambaMixer",
        "transformers.models.mamba2.modeling_mamba2.Mamba2Mixer",
    ),
    "mamba_ssm": ("mamba_ssm.modules.mamba_simple.Mamba", "mamba_ssm.modules.mamba2.Mamba2"),
    "flash_linear_attention": (
        "fla.layers.gla.GatedLinearAttention",
        "fla.layers.simple_gla.SimpleGatedLinearAttention",
    ),
    "mambapy": ("mambapy.mamba.MambaBlock",),
    "s5_pytorch": ("s5.s5_model.S5SSM",),
}
"""The layers that each module here serves, by name: known before the module, and the package that it needs, are imported."""


def missing_imports(model: nn.Module) -> list[str]:
    """What is to be imported so that layers of the model can be cut, each as ``"import hsv_torch.third_party... first, which serves its ..."``."""
    types = {f"{base.__module__}.{base.__qualname__}" for part in model.modules() for base in type(part).__mro__}
    needed = []
    for module, served in SERVED.items():
        found = [name.rpartition(".")[2] for name in served if name in types]
        if found and f"{__package__}.{module}" not in sys.modules:
            needed.append(f"import {__package__}.{module} first, which serves its {' and '.join(found)}")
    return needed


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
