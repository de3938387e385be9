"""Key URIs and the secrets that they point to: a secret is in the environment or in a file, never in the URI itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from ipe_build.errors import SigningKeyError


@dataclass(frozen=True, slots=True)
class KeyUri:
    """A key URI's parts: `scheme:body?name=value&…`. Values are percent-decoded, the body is not: its form is the backend's."""

    scheme: str
    body: str
    query: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        """Returns the value of a query attribute, None when it is absent."""
        return dict(self.query).get(name)

    def get_all(self, name: str) -> tuple[str, ...]:
        """Returns every value of a query attribute that may be repeated, in order."""
        return tuple(value for key, value in self.query if key == name)

    def choose(self, name: str, allowed: tuple[str, ...]) -> str:
        """Returns a query attribute's value, the first allowed one when it is absent. Raises: SigningKeyError for another value."""
        value = self.get(name) or allowed[0]
        if value not in allowed:
            raise SigningKeyError(f"{name}= wants {' or '.join(allowed)}, got {value[:40]!r}", where=f"{self.scheme}: URI")
        return value


def parse_key_uri(uri: str, known: tuple[str, ...]) -> KeyUri:
    """Returns the parts of a key URI. `known` are the query attributes that the backend takes.

    Raises: SigningKeyError on an unknown attribute or one that holds a secret; the secret is not repeated in the message.
    """
    scheme, _, rest = uri.partition(":")
    body, _, query = rest.partition("?")
    pairs = []
    for item in filter(None, query.split("&")):
        name, _, value = item.partition("=")
        if name in ("passphrase", "password", "pin-value", "pin"):
            message = f"the attribute {name} would put a secret on the command line"
            raise SigningKeyError(message, where=f"{scheme}: URI", hint=f"use {' or '.join(known)}" if known else "")
        if name not in known:
            hint = f"known are {', '.join(known) or 'none'}"
            raise SigningKeyError(f"unknown attribute {name[:40]!r}", where=f"{scheme}: URI", hint=hint)
        pairs.append((name, unquote(value)))
    return KeyUri(scheme, body, tuple(pairs))


def read_secret(*, variable: str | None, path: str | None, default_variable: str, env: Mapping[str, str]) -> str | None:
    """Returns a secret from the named file (its first line) or variable, else from the default variable; None when unset.

    Raises: SigningKeyError when a source that was named does not exist or is empty.
    """
    if path is not None:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
            raise SigningKeyError(f"the secret cannot be read: {reason}", where=path) from None
        if not lines or not lines[0]:
            raise SigningKeyError("the file that should hold the secret is empty", where=path)
        return lines[0]
    if variable is not None:
        if not env.get(variable):
            raise SigningKeyError(f"the variable {variable} that should hold the secret is not set", where="environment")
        return env[variable]
    return env.get(default_variable) or None
