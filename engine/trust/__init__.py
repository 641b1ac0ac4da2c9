"""What files given to the command line may do: no key to a new host, no path outside their folder, no import.

``permissions.py`` has the rule. A file chooses among what the user has allowed by an option, in the user's own settings
(``settings.py``) or by an answer on the terminal.
"""

from __future__ import annotations

from .environment import Environment, load_environment
from .permissions import UNBOUND, Bound, Permissions
from .questions import Answer, Question

__all__ = ["UNBOUND", "Answer", "Bound", "Environment", "Permissions", "Question", "load_environment"]
