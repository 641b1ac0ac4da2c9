"""What a worker call costs with a model that answers at once: all that is left is the way there and back.

::

    python -m supdist.tools.bench_calls

Measured from inside a sandbox, medians in milliseconds: ``worker``, ``worker_batch`` of 10 and of 200. The null model
answers conversations one by one (``chat``), and all that wait together (``chat_batch``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from ..engine import run
from ..handlers import Completion, Message, ModelHandler, Price, ScriptedHandler

_CODE = """\
import time
def median(call, times):
    took = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return sorted(took)[times // 2] * 1000
def measure(trials):
    return {
        "worker": median(lambda: worker("x"), 20 * trials),
        "worker_batch of 10": median(lambda: worker_batch(["x"] * 10), 10 * trials),
        "worker_batch of 200": median(lambda: worker_batch(["x"] * 200), 2 * trials),
    }
FINAL(measure(TRIALS))
"""


class One(ModelHandler):
    """Answers each conversation for itself."""

    model = "null, chat"
    price = Price(0, 0)

    async def chat(self, messages: Sequence[Message]) -> Completion:
        """Nothing, at once."""
        return Completion("")


class Many(One):
    """Answers what waits together."""

    model = "null, chat_batch"

    async def chat_batch(self, message_batches: Sequence[Sequence[Message]]) -> Sequence[Completion]:
        """Nothing, at once."""
        return [Completion("")] * len(message_batches)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description="What a worker call costs with a model that answers at once."
    )
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    code = f"```repl\n{_CODE.replace('TRIALS', str(options.trials))}\n```"
    figures: dict[str, dict[str, float]] = {}
    for model in (One(), Many()):
        result = run(query="-", context="-", supervisor=ScriptedHandler([code]), worker=model, cache="off")
        figures[model.model] = json.loads(result.answer or "{}")
    if options.json:
        print(json.dumps(figures))
        return
    for name, medians in figures.items():
        for call, milliseconds in medians.items():
            print(f"{name:<18} {call:<20} {milliseconds:8.3f} ms")


if __name__ == "__main__":
    main()
