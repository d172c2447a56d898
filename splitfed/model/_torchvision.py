"""Lets timm be imported where torchvision's compiled extension does not fit the installed torch.

timm imports torchvision, and torchvision registers Python kernels for `nms` and `qnms`, whose schemas its extension
declares. A CUDA build of torchvision beside a CPU build of torch fails to load that extension, and the import dies with
`operator torchvision::nms does not exist`. Nothing here uses those operators, so declaring their schemas is enough.
"""

import importlib.util
from pathlib import Path

import torch


def _extension_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # not installed: the import itself will say so
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except (OSError, RuntimeError):
            return False
    return True


def declare_missing() -> None:
    """Declare the operators that torchvision expects, unless its extension did; harmless when called again."""
    if _library or _extension_loads():
        return
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.append(library)  # the declarations live as long as this object


_library: list[torch.library.Library] = []
declare_missing()
