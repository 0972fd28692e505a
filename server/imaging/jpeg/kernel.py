"""The compiled module that turns the coefficients of a JPEG: whether it is there, and loading it.

Imports neither Pillow nor the rest of the package, so that the arbiter can ask `why_not` cheaply.
"""

from functools import cache
from importlib import import_module
from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec
from types import ModuleType

_KERNEL = "server.imaging.jpeg.entropy"


class Impossible(Exception):
    """This image or this turn needs its pixels; the text says why."""


def why_not() -> str | None:
    """Say why no JPEG can be turned without loss here; None when it can."""
    spec = find_spec(_KERNEL)
    if spec is None or not isinstance(spec.loader, ExtensionFileLoader):
        return "this service runs without its compiled module"
    return None


@cache
def kernel() -> ModuleType:
    """Load the compiled module.

    It is not loaded together with this module: a process that loads its modules again cannot do so with a
    compiled one, and only engines need it.

    Raises:
        Impossible: there is none.
    """
    if reason := why_not():
        raise Impossible(reason)
    try:
        return import_module(_KERNEL)
    except ImportError as error:
        raise Impossible(f"its kernel cannot be loaded: {error}") from error
