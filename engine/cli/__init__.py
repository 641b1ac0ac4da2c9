"""The command line. Its modules import heavy ones inside functions: ``--help`` loads them all."""

from __future__ import annotations

TYPE_CHECKING = False  # typing takes 15 ms to import, in which Ctrl-C would be a traceback
if TYPE_CHECKING:
    from .main import app, main, run_app

__all__ = ["app", "main", "run_app"]

if not TYPE_CHECKING:  # to a type checker, a module with __getattr__ has every name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .main import app, main, run_app

        # The import has bound `main` to the module.
        globals().update(app=app, main=main, run_app=run_app)
        return globals()[name]
