"""The dispatcher: one queue for each handler."""

from __future__ import annotations

from weakref import WeakValueDictionary

from anyio.lowlevel import RunVar

from ...handlers import ModelHandler
from .batch_queue import BatchQueue
from .handler_queue import ChatQueue, HandlerQueue, RequestQueue


class Dispatcher:
    """The handler queues of one event loop."""

    def __init__(self) -> None:
        # Keyed by id: the queue keeps its handler alive, and its users keep the queue.
        self._handler_queues: WeakValueDictionary[int, HandlerQueue] = WeakValueDictionary()

    @classmethod
    def current(cls) -> Dispatcher:
        """Return the running event loop's dispatcher."""
        try:
            return _current.get()
        except LookupError:
            _current.set(cls())
            return _current.get()

    def queue(self, handler: ModelHandler) -> RequestQueue:
        """Return a new queue for a handler."""
        handler_queue = self._handler_queues.get(id(handler))
        if handler_queue is None:
            batches = type(handler).chat_batch is not ModelHandler.chat_batch
            handler_queue = BatchQueue(handler) if batches else ChatQueue(handler)
            self._handler_queues[id(handler)] = handler_queue
        # One queue for each run: a free slot goes to the next run in turn.
        return RequestQueue(handler_queue)


_current: RunVar[Dispatcher] = RunVar("supdist dispatcher")
