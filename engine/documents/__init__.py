"""Read files, folders and patterns as the context of a run."""

from __future__ import annotations

from .reading import Context, aread_documents, read_context, read_documents

__all__ = ["Context", "aread_documents", "read_context", "read_documents"]
