"""End a command at Ctrl-C, SIGTERM or SIGHUP."""

# It imports next to nothing: until ``end_at_signals`` runs, a signal is a traceback.
from __future__ import annotations

import os
import time

TYPE_CHECKING = False  # typing takes 15 ms to import, and signal 6
if not TYPE_CHECKING:
    import _signal as signal
else:
    import signal
    from collections.abc import Callable, Coroutine
    from types import FrameType, TracebackType
    from typing import Any, NoReturn, TypeVar

    T = TypeVar("T")
    Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None

_ENDING: dict[int, str] = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "ended by SIGTERM",
    signal.SIGHUP: "ended by SIGHUP",
}
_CLEAN_UP_SECONDS = 10.0
# `timeout` sends its signal to the program and then to its group, and other wrappers do the like.
_SAME_SECONDS = 0.3
# A terminal gets its cursor back: a live panel hides it.
_SHOW_CURSOR = b"\x1b[?25h"


class Stopped(BaseException):
    """A signal stopped the work. Like KeyboardInterrupt it is no error."""

    def __init__(self, number: int) -> None:
        super().__init__(_ENDING[number])
        self.number = number

    @property
    def status(self) -> int:
        """The exit code, as a shell reports it: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP."""
        return 128 + self.number


def end_at_signals() -> None:
    """From now on, let a signal end this program at once with one line."""
    _set(_end_at_once)


def run_until_signal(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end. At a signal, cancel the work and wait for its clean-up.

    Raises:
        Stopped: by the signal.
    """
    import asyncio

    async def watched() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        received: list[int] = []

        def stop(number: int) -> None:
            received.append(number)
            # Threadsafe, since it wakes the loop.
            loop.call_soon_threadsafe(task.cancel)

        with at_signal(stop):
            try:
                return await work
            except asyncio.CancelledError:
                if received:
                    raise Stopped(received[0]) from None
                raise

    return asyncio.run(watched())


class at_signal:  # noqa: N801 - used as a function; contextlib takes 5 ms to import
    """Within the block, call ``act`` at the first signal.

    The next signal ends the program at once, and so do ten seconds. What it started ends with it.
    """

    def __init__(self, act: Callable[[int], None]) -> None:
        self._act = act
        self._before: dict[int, Handler] = {}
        self._received = False

    def __enter__(self) -> None:
        self._before = _set(self._first)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._received:
            # The program is ending.
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _first(self, number: int, _: FrameType | None) -> None:
        first = time.monotonic()
        self._received = True

        def again(second: int, _: FrameType | None) -> None:
            if time.monotonic() - first > _SAME_SECONDS:
                _end_at_once(second)

        def give_up(_alarm: int, _frame: FrameType | None) -> NoReturn:
            _end_at_once(number)

        _set(again)
        # The clean-up may wait for a thread that never ends.
        signal.signal(signal.SIGALRM, give_up)
        signal.setitimer(signal.ITIMER_REAL, _CLEAN_UP_SECONDS)
        self._act(number)


def raise_at_signal() -> at_signal:
    """Within the block, raise ``Stopped`` at the first signal."""

    def stop(number: int) -> NoReturn:
        raise Stopped(number)

    return at_signal(stop)


def _set(handler: Handler) -> dict[int, Handler]:
    # A signal that is ignored stays so: nohup and a shell's background jobs ask for that.
    handled = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in handled}


def _end_at_once(number: int, *_: object) -> NoReturn:
    try:
        if os.isatty(2):
            os.write(2, _SHOW_CURSOR)
        os.write(2, f"supdist-engine: {_ENDING[number]}\n".encode())
    except OSError:
        pass  # stderr is closed or full
    # Not sys.exit(): an import may catch its exception, or a thread delay its end.
    os._exit(128 + number)
