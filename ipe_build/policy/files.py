"""Policy texts from files: plain ones, and signed ones (`.p7b`), whose content is taken out as the kernel does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ipe_build.errors import InputError
from ipe_build.formats.cms import decode_signed_data

_SIGNED_ENDINGS = (".p7b", ".p7s", ".p7m", ".der")
_NEVER_POLICIES = (".pem", ".crt", ".cer", ".key", ".p7s", ".j2", ".json", ".toml", ".md", ".ledger")
_READ_MAX = 64 << 20


def read_policy(path: Path) -> bytes:
    """Returns a policy's text; of a signed policy (DER, ending .p7b) the text that was signed, the signature unchecked.

    Raises: InputError when the file cannot be read or a signed one holds no text.
    """
    try:
        if not path.is_file():
            raise InputError("is no file" if path.exists() else "does not exist", where=str(path))
        if path.stat().st_size > _READ_MAX:
            raise InputError("is larger than 64 MiB, no kernel takes such a policy", where=str(path))
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(error.strerror or str(error), where=str(path)) from error
    if path.suffix in _SIGNED_ENDINGS and raw[:1] == b"\x30":
        content = decode_signed_data(raw, str(path)).content
        if content is None:
            raise InputError("the signature is detached: there is no policy text in it", where=str(path), hint="sign with -nodetach")
        return content
    return raw


def policy_files(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Returns the files to check, in the order given; of a folder its files, sorted, without hidden ones, keys, certificates, templates.

    Raises: InputError for a path that does not exist, or a folder without policies.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = [file for file in sorted(path.iterdir()) if _is_policy_file(file)]
        if not inside:
            raise InputError("the folder holds no policies", where=str(path))
        found += inside
    return tuple(found)


def _is_policy_file(file: Path) -> bool:
    """Returns whether a folder's entry is taken for a policy."""
    return file.is_file() and not file.name.startswith(".") and file.suffix not in _NEVER_POLICIES
