"""CURVE keys of a model server and its clients, as ``zmq.auth`` reads them.

::

    DIR/server.key, server.key_secret       of the server
    DIR/authorized_keys/NAME.key            clients that may connect
    DIR/clients/NAME/                       all that a client needs
"""

from __future__ import annotations

import os
import re
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.auth import load_certificate, load_certificates  # pyright: ignore[reportUnknownVariableType]  # pyzmq's types are partial
from zmq.utils import z85

from ..errors import TaskError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public and a secret key, in Z85."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """A server's keys, and the folder of its clients' public keys."""

    pair: KeyPair
    authorized: Path

    def is_authorized(self, public: bytes) -> bool:
        """Return whether a client with this key may connect."""
        with suppress(OSError):
            return any(_is_key(path, public) for path in self.authorized.glob("*.key"))
        return False


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """A client's keys, and the server's public key."""

    pair: KeyPair
    server: bytes


def make_server_keys(folder: Path) -> None:
    """Write the keys of a server.

    Raises:
        TaskError: they exist or cannot be written.
    """
    try:
        _make_folder(folder)
        _make_folder(folder / "authorized_keys")
        _ignore_in_git(folder)
        _write_pair(folder, "server")
    except OSError as error:
        raise _cannot_write(error) from error


def make_client_keys(folder: Path, name: str) -> Path:
    """Write a new client's keys; return its folder.

    Raises:
        TaskError: they exist or cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise TaskError(f"{name!r} is no name for a client: use letters, digits, '_', '-' and '.'")
    server = _public(folder / "server.key")
    client = folder / "clients" / name
    try:
        _make_folder(folder / "clients")
        _make_folder(client)
        # The client's folder is copied to another machine.
        _ignore_in_git(client)
        public = _write_pair(client, "client")
        _write(client / "server.key", server)
        # Last, so that only a complete client may connect.
        _write(folder / "authorized_keys" / f"{name}.key", public)
    except OSError as error:
        raise _cannot_write(error) from error
    return client


def read_server_keys(folder: Path) -> ServerKeys:
    """Read the keys of a server.

    Raises:
        TaskError: they are missing or not private.
    """
    _check_folder(folder, f"supdist-engine broker keygen {folder}")
    authorized = folder / "authorized_keys"
    pair = _pair(folder / "server.key_secret", f"supdist-engine broker keygen {folder}")
    try:
        load_certificates(authorized)
    except (OSError, ValueError) as error:
        raise TaskError(f"cannot read the clients' keys in {authorized}: {error}") from error
    return ServerKeys(pair, authorized)


def read_client_keys(folder: Path) -> ClientKeys:
    """Read the keys of a client.

    Raises:
        TaskError: they are missing or not private.
    """
    if (folder / "server.key_secret").exists():
        raise TaskError(f"{folder} has the server's keys; give a client's folder, {folder}/clients/NAME")
    remedy = "the server's owner makes one with `supdist-engine broker keygen DIR --client NAME`"
    _check_folder(folder, remedy)
    return ClientKeys(_pair(folder / "client.key_secret", remedy), _public(folder / "server.key"))


def _check_folder(folder: Path, remedy: str) -> None:
    if not os.path.isdir(folder):
        what = "it is no folder" if os.path.lexists(folder) else "no such folder"
        raise TaskError(f"{folder}: {what}: {remedy}")


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _ignore_in_git(folder: Path) -> None:
    with suppress(FileExistsError):
        descriptor = os.open(folder / ".gitignore", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write("# Secret keys: not for a repository.\n*\n")


def _write_pair(folder: Path, name: str) -> bytes:
    public, secret = zmq.curve_keypair()
    _write(folder / f"{name}.key_secret", public, secret)
    _write(folder / f"{name}.key", public)
    return public


def _write(path: Path, public: bytes, secret: bytes | None = None) -> None:
    lines = ["metadata", "curve", f'    public-key = "{public.decode()}"']
    if secret is not None:
        lines.append(f'    secret-key = "{secret.decode()}"')
    # O_EXCL: no key is written over, and no link is followed.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("\n".join(lines) + "\n")


def _cannot_write(error: OSError) -> TaskError:
    if isinstance(error, FileExistsError):
        return TaskError(
            f"{error.filename} exists, and keys are not overwritten: remove it, or choose another name"
        )
    return TaskError(f"cannot write the keys: {error}")


# A file that is being written holds no key yet.
def _is_key(path: Path, public: bytes) -> bool:
    try:
        return load_certificate(path)[0] == public
    except (OSError, ValueError):
        return False


def _pair(path: Path, remedy: str) -> KeyPair:
    public, secret = _load(path, remedy)
    if path.stat().st_mode & 0o077:
        raise TaskError(f"other users can read the secret key {path}: run chmod 600 {path}, or make new keys")
    if secret is None:
        raise TaskError(f"no secret key in {path}: {remedy}")
    return KeyPair(public, secret)


def _public(path: Path) -> bytes:
    return _load(path, "make it with `supdist-engine broker keygen`")[0]


def _load(path: Path, remedy: str) -> tuple[bytes, bytes | None]:
    try:
        public, secret = load_certificate(path)
        if any(key is not None and len(z85.decode(key)) != 32 for key in (public, secret)):
            raise ValueError("a key must be 32 bytes in Z85")  # noqa: TRY301 - as all that z85 cannot read
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise TaskError(f"no key in {path} ({error}): {remedy}") from error
    return public, secret
