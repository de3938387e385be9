"""Signatures that come from elsewhere: a run asks for all that it can before it stops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ipe_build.errors import SignaturePendingError


class Pending:
    """What a run waits for. Signing that is put off by `later` does not end the run; `stop` does, when something was put off."""

    def __init__(self) -> None:
        """Nothing is waited for yet."""
        self._errors: list[SignaturePendingError] = []

    @contextmanager
    def later(self) -> Iterator[None]:
        """Runs a block that signs; what it would have given is not there when its signature is yet to come."""
        try:
            yield
        except SignaturePendingError as error:
            self._errors.append(error)

    def stop(self) -> None:
        """Raises: SignaturePendingError for everything that was put off; its place is the first's."""
        if not self._errors:
            return
        if len(self._errors) == 1:
            raise self._errors[0]
        message = "; ".join(str(error.message) for error in self._errors)
        raise SignaturePendingError(message, where=self._errors[0].where, hint=self._errors[0].hint)
