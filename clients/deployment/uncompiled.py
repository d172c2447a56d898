"""Keeps torch's compiler out of a client's process, which compiles nothing.

It takes 100 MiB and over a second to load. torchvision, which timm brings, imports it to ask whether a kernel could be
compiled, and torch's optimisers to mark where a compiled program would be divided. A stand-in is there for these two;
whoever asks it for anything else gets the compiler, which takes its place.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_COMPILER, _UTILS = "torch._dynamo", "torch._dynamo.utils"


class _StandIn(ModuleType):
    """The compiler, or a module of it, until something is asked that it alone can answer."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what importlib and inspect ask of every module
            raise AttributeError(name)
        _load()
        return getattr(import_module(self.__name__), name)


class _Submodules(MetaPathFinder, Loader):
    """Finds the compiler's modules that have no stand-in, in the compiler itself."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.startswith(f"{_COMPILER}.") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        _load()
        return import_module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: it has been loaded."""


def leave_out_compiler() -> None:
    """Put the stand-in where the compiler would be, unless that is loaded; harmless when called again."""
    if _COMPILER in sys.modules:
        return
    compiler, utils = _StandIn(_COMPILER), _StandIn(_UTILS)
    compiler.__path__ = []
    compiler.__dict__.update(utils=utils, graph_break=_graph_break, disable=_disable)
    utils.__dict__.update(is_compile_supported=_is_compile_supported)
    sys.modules.update({_COMPILER: compiler, _UTILS: utils})
    sys.meta_path.insert(0, _submodules)


def _load() -> None:
    """Let the compiler take its place."""
    if isinstance(sys.modules.get(_COMPILER), _StandIn):
        del sys.modules[_COMPILER], sys.modules[_UTILS]
        sys.meta_path.remove(_submodules)
        import_module(_COMPILER)


def _graph_break(msg: str = "") -> None:
    """Do nothing, as outside of what is compiled."""


def _disable(fn: Callable, recursive: bool = True, **_: object) -> Callable:
    return fn


def _is_compile_supported(device_type: object) -> bool:
    _load()
    return import_module(_UTILS).is_compile_supported(device_type)


_submodules = _Submodules()
