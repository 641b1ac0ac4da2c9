"""Decide which key goes to an endpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import TaskError
from .environment import Environment
from .hosts import DEFAULT_KEY, ENDPOINT_VARIABLES, Origin, keys_of, origin_of, parse_host
from .questions import Answer, Ask, Question, command, shown
from .servers import SERVERS
from .settings import HostRule, Settings, change_settings


@dataclass(slots=True)
class KeyRules:
    """The rules for one file.

    Attributes:
        trust_endpoint: whether every endpoint of the file may get keys.
        withheld: messages about keys that were not sent.
    """

    subject: Path
    environment: Environment
    settings: Settings
    ask: Ask
    trust_endpoint: bool = False
    withheld: list[str] = field(default_factory=list[str])

    def default_variable(self, url: str) -> str | None:
        """Return the variable for a file that names none, if there is one.

        Raises:
            TaskError: the URL is no endpoint.
        """
        origin = origin_of(url)
        own, allowed = (
            _keys_at(url, origin),
            [rule.key for rule in self.settings.hosts if _covers(rule, origin)],
        )
        for variable in (*own, *allowed, *ENDPOINT_VARIABLES["BASE_URL"]):
            if self._is_set(variable) and self._is_allowed(origin, url, variable):
                return variable
        if own and not origin.is_loopback:
            # It is not set; the handler reports that.
            return own[0]
        if not self._is_set(DEFAULT_KEY):
            return None
        # A server on this machine rarely needs a key, so the user is not asked.
        if not origin.is_loopback and self._decision(origin, DEFAULT_KEY) is None:
            named = [self.environment.file.get(each) for each in ENDPOINT_VARIABLES]
            who = self.environment.path if url in named else self.subject
            if self._ask(origin, DEFAULT_KEY, f"{shown(who)} names this endpoint, and no key for it"):
                return DEFAULT_KEY
        self.withheld.append(
            f"{DEFAULT_KEY} was not sent to {origin}; to allow it: {_allow_command(origin, DEFAULT_KEY)}"
        )
        return None

    def named_variable(self, url: str, variable: str, name: str) -> str:
        """Return the variable that the file names.

        Raises:
            TaskError: its key may not go there, or the URL is no endpoint.
        """
        origin = origin_of(url)
        if not self._is_set(variable) or self._is_allowed(origin, url, variable):
            # If it is not set, the handler reports that.
            return variable
        if self._decision(origin, variable) is None and self._ask(
            origin, variable, f"{shown(self.subject)} asks for it ({name})"
        ):
            return variable
        plain = " over http, where the network can read it" if origin.is_readable_by_network else ""
        raise TaskError(
            f"{shown(self.subject)}: {name} would send the key in {variable} to {origin}{plain}, and "
            "you have not allowed that. "
            f"If you trust this host with this key: {_allow_command(origin, variable)} (or --trust-endpoint, "
            "for this time)"
        )

    def _is_set(self, variable: str) -> bool:
        return bool(self.environment.get(variable, "").strip())

    def _is_allowed(self, origin: Origin, url: str, variable: str) -> bool:
        if self.trust_endpoint or variable in _keys_at(url, origin) or self._decision(origin, variable):
            return True
        # The last rule: one place (the process, or the .env) sets both the URL and the key.
        environment = self.environment
        return any(
            environment.get(each, "").rstrip("/") == url.rstrip("/")
            and variable in keys
            and not environment.redirects(each, variable)
            for each, keys in ENDPOINT_VARIABLES.items()
        ) or any(
            environment.get(server.variable)
            and server.key == variable
            and server.url(environment) == url
            and not environment.redirects(server.variable, variable)
            for server in SERVERS.values()
        )

    def _decision(self, origin: Origin, variable: str) -> bool | None:
        found = [
            rule.allowed for rule in self.settings.hosts if rule.key == variable and _covers(rule, origin)
        ]
        return found[-1] if found else None

    def _ask(self, origin: Origin, variable: str, why: str) -> bool:
        text = f"Send the key in {variable} to {origin.url}? {why}."
        if origin.is_readable_by_network:
            text += "\nIt is plain http: everyone on the network between can read the key."
        answers: tuple[Answer, ...] = ("once", "always", "no", "never")
        answer = self.ask(Question(text, answers))
        if answer in ("always", "never"):
            rule = HostRule(host=origin.url, key=variable, allowed=answer == "always")
            self.settings = change_settings(lambda settings: settings.with_host(rule))
        return answer in ("once", "always")


def _keys_at(url: str, origin: Origin) -> tuple[str, ...]:
    # A query could lead to another path than that of the chat API.
    return () if "?" in url else keys_of(origin)


def _covers(rule: HostRule, origin: Origin) -> bool:
    return parse_host(rule.host).covers(origin)


def _allow_command(origin: Origin, variable: str) -> str:
    return f"{command('supdist-engine trust host', origin.url)} {command('--key', variable)}"
