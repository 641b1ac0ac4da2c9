"""Read the contexts of examples; documents as every command reads them."""

from __future__ import annotations

import asyncio
from typing import Any

from anyio import to_thread

from ...engine.documents.content import content_of
from ...engine.documents.converter import Converter
from ...engine.sandbox.factory import keep_backends
from ...tasks.base import Document, Example, Task
from .model_calls import Note

# Examples often share documents. Characters of the texts that are kept.
_MOST_KEPT = 64 << 20


class Contexts:
    """Reads contexts, and keeps the texts of the last documents."""

    def __init__(self, note: Note) -> None:
        self._note = note
        self._converter = Converter()
        self._kept: dict[Document, Any] = {}
        self._lock = asyncio.Lock()

    async def read(self, task: Task, example: Example) -> str | list[Any] | dict[str, Any]:
        """Return the context of an example.

        Raises:
            TaskDataError: the data is missing or wrong.
            TaskError: a document has no text.
            SandboxUnavailable: a document must be converted, and no sandbox can be had here.
        """
        found = await to_thread.run_sync(task.context, example)
        if not isinstance(found, Document):
            return found
        # One at a time: examples that run together may share it.
        async with self._lock:
            if found not in self._kept:
                async with keep_backends():
                    text = await content_of(
                        found.name, found.data, self._converter, self._note, raw_html=found.raw_html
                    )
                while self._kept and _size(self._kept) + len(text) > _MOST_KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[found] = text
            return self._kept[found]


def _size(kept: dict[Document, Any]) -> int:
    return sum(len(document.data) + len(text) for document, text in kept.items())
