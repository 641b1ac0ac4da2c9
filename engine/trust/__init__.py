"""Decides what files on the command line may do."""

from __future__ import annotations

from .environment import Environment, load_environment
from .permissions import UNBOUND, Bound, Permissions
from .questions import Answer, Question

__all__ = ["UNBOUND", "Answer", "Bound", "Environment", "Permissions", "Question", "load_environment"]
