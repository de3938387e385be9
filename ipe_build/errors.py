"""Every error the package raises, each with the exit status the command line ends with.

An error names where it happened, what was wanted, what was got and what to do:

    error: boot.pol:4: action= must be the last token, got "op=EXECUTE"
      hint: a rule is op=, then properties, then action=

Raise the most exact class; catch `IpeBuildError` only in `cli`.
"""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """The process's exit statuses (the contract of the command line)."""

    OK = 0
    FINDING = 1
    """A finding of severity error, or a verification that failed."""
    BAD_INPUT = 2
    """Bad input or usage."""
    TOOL = 3
    """A needed tool is missing or failed."""
    INTERRUPTED = 130


class IpeBuildError(Exception):
    """Base of all errors. `message` is one line without a trailing full stop; `hint` says what to do."""

    status: ExitStatus = ExitStatus.BAD_INPUT

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        """`where` is a file, `file:line`, `file: offset 0x10` or `[section] key`; empty when there is no place."""
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        """Returns `where: message` and, on a second line, the hint."""
        head = f"{self.where}: {self.message}" if self.where else self.message
        return f"{head}\n  hint: {self.hint}" if self.hint else head


class UsageError(IpeBuildError):
    """The command line's words do not fit together."""


class InputError(IpeBuildError):
    """A file or value given to us cannot be used."""


class FormatError(InputError):
    """Bytes are not in the format they should be in: says the offset, what was wanted and what was found."""


class ConfigError(InputError):
    """The TOML configuration is wrong: `where` is `file: [section] key`."""


class OutputError(InputError):
    """An output cannot be written: it exists, the disk is full, the folder is not writable."""


class SigningKeyError(InputError):
    """A key or certificate cannot be used for what was asked."""


class KeyMismatchError(SigningKeyError):
    """A private key and a certificate do not belong together."""


class VerificationError(IpeBuildError):
    """A check that the caller asked for came out negative."""

    status = ExitStatus.FINDING


class SignatureError(VerificationError):
    """A signature that the kernel would refuse; `errno` is the answer it would give, such as EKEYREJECTED."""

    def __init__(self, message: str, *, errno: str, where: str = "", hint: str = "") -> None:
        """`errno` is the symbolic name, upper case."""
        super().__init__(f"{message} ({errno})", where=where, hint=hint)
        self.errno = errno


class SignaturePendingError(IpeBuildError):
    """Signatures are wanted from elsewhere (a `plan:` key); what they are to be made over was written down."""

    status = ExitStatus.FINDING


class ToolMissingError(IpeBuildError):
    """A program we need is not installed: the hint names the Debian package."""

    status = ExitStatus.TOOL


class ToolFailedError(IpeBuildError):
    """A program we ran exited non-zero, hung or printed what cannot be used."""

    status = ExitStatus.TOOL


class InterruptedRunError(IpeBuildError):
    """The run was stopped by a signal; nothing that existed before was changed."""

    status = ExitStatus.INTERRUPTED
