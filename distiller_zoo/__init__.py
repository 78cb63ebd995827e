"""Distillation methods: each file that does not start with an underscore is one, found by itself.

METHODS maps the name that `--distill` takes to the method's class. The public loss classes, those
that a file names in `__all__`, can be imported from here.
"""
import importlib
import pkgutil

from distiller_zoo._base import Flag, Method, MethodError, Setup, Stage, Term

METHODS: dict[str, type[Method]] = {}
__all__ = ["METHODS", "Method", "MethodError", "Setup", "Stage", "Term", "flags_of"]

for _name in sorted(found.name for found in pkgutil.iter_modules(__path__)):
    if _name.startswith("_"):
        continue
    _module = importlib.import_module(f"{__name__}.{_name}")
    for _public in getattr(_module, "__all__", ()):
        globals()[_public] = getattr(_module, _public)
        __all__.append(_public)
    for _value in vars(_module).values():
        if isinstance(_value, type) and issubclass(_value, Method) and _value.__module__ == _module.__name__:
            if _value.name in METHODS:
                _other = METHODS[_value.name].__module__
                raise ValueError(f"{_module.__name__} and {_other} both define the method '{_value.name}'")
            METHODS[_value.name] = _value


def flags_of(method: type[Method]) -> tuple[Flag, ...]:
    """The flags that `--distill method` takes beside the common ones: its own, and those of the added KD loss."""
    added = METHODS["kd"].flags if method.alpha_adds_kd and method.alpha is not None else ()
    return tuple(dict.fromkeys((*method.flags, *added)))
