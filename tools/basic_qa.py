"""Ask one question about one file: the smallest program that uses the engine.

Variables, of the environment or a .env file: TOGETHER_API_KEY or OPENAI_API_KEY, SUPERVISOR_MODEL,
WORKER_MODEL, BASE_URL, LOG_DIR. Without a key, the builtin pair answers.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

# A file that is run by its path belongs to no package, so that relative imports fail.
from supdist.engine import read_documents, run
from supdist.engine.model_specs import from_environment
from supdist.engine.trust import Bound, Environment, load_environment
from supdist.handlers import BuiltinSupervisor, BuiltinWorker
from supdist.handlers.builtin import NOTICE

_DOCUMENT = Path(__file__).resolve().parent.parent / "tasks/examples/quickstart/report.md"
_QUESTION = "How long must the new deck last, and what may it weigh?"


def main() -> None:
    """Ask, and print the answer."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default=_DOCUMENT, help="by default a report on a bridge")
    parser.add_argument("question", nargs="?", default=_QUESTION, help=f"by default: {_QUESTION}")
    asked = parser.parse_args()
    environment = load_environment()
    supervisor, worker = from_environment("supervisor", environment), from_environment("worker", environment)
    # The builtin pair is no language model, which its user must know.
    if supervisor is None or worker is None:
        print(NOTICE, file=sys.stderr)
    result = run(
        query=asked.question,
        context=read_documents(asked.file),
        supervisor=supervisor or BuiltinSupervisor(),
        worker=worker or BuiltinWorker(),
        log_dir=_log_dir(environment),
    )
    print(result.answer)
    print(f"{result.stop_reason} after {result.iterations} turns, {result.elapsed:.1f} s", file=sys.stderr)


def _log_dir(environment: Environment) -> Path:
    folder = Path(environment.get("LOG_DIR", "logs/basic_qa"))
    if environment.path is None or not environment.is_from_file("LOG_DIR"):
        return folder
    # A .env file is data: it may name only a folder below its own.
    return Bound(environment.path, environment).writable(folder, "LOG_DIR")


if __name__ == "__main__":
    main()
