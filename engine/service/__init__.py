"""The model server: models for the engines of many processes."""

from __future__ import annotations

from .keys import ClientKeys, KeyPair, ServerKeys, make_client_keys, make_server_keys, read_server_keys
from .remote import RemoteHandler, handlers_at
from .service import Load, Service

__all__ = [
    "ClientKeys",
    "KeyPair",
    "Load",
    "RemoteHandler",
    "ServerKeys",
    "Service",
    "handlers_at",
    "make_client_keys",
    "make_server_keys",
    "read_server_keys",
]
