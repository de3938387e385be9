"""Outputs that are whole or not there: written beside their place, flushed, then renamed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ipe_build.errors import OutputError, ToolFailedError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NEXT_TO_NOTHING_BYTES = 1 << 16


@contextmanager
def output_files(paths: Sequence[Path], *, force: bool) -> Iterator[tuple[Path, ...]]:
    """Yields a name beside each path to write to; see `Host.outputs`."""
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise OutputError("is named for two outputs", where=str(twice), hint="name two files")
    with ExitStack() as stack:
        yield tuple(stack.enter_context(output_file(path, force=force)) for path in paths)


@contextmanager
def output_file(path: Path, *, force: bool, flush: bool = True) -> Iterator[Path]:
    """Yields a name beside `path` to write to; see `Host.output`."""
    temporary = _fresh(path) if _is_replaceable(path, force=force) else _beside(path)
    _check_writable(path)
    try:
        with explained(path):
            yield temporary
            if flush:
                _flush(temporary)
            os.replace(temporary, path)
            if flush:
                _flush(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _is_replaceable(path: Path, *, force: bool) -> bool:
    """Returns whether there is a file to replace. Raises: OutputError when something is there that must stay."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise
    if stat.S_ISDIR(mode):
        raise OutputError("wanted a file to write, this is a folder", where=str(path), hint="name a file in it")
    if not stat.S_ISREG(mode):
        raise OutputError("is a device or another special file, not replaced", where=str(path), hint="write to a file, then copy it")
    if not force:
        raise OutputError("exists already and is left as it is", where=str(path), hint="remove it, name another output, or say --force")
    return True


def check_output_directory(path: Path, *, marker: str) -> bool:
    """Returns whether `path` exists and may be replaced: an empty folder, or one that holds `marker`.

    Raises: OutputError when it is something else, or its parent folder is missing.
    """
    _beside(path)
    _check_writable(path)
    if not path.exists():
        return False
    if not path.is_dir():
        raise OutputError("wanted a folder, this is a file", where=str(path), hint="name another output folder")
    if any(path.iterdir()) and not (path / marker).is_file():
        raise OutputError(
            f"is not empty and holds no {marker}, so it is not an earlier output of ours; left as it is",
            where=str(path),
            hint="name an empty or a new folder",
        )
    return True


@contextmanager
def output_directory(path: Path, *, marker: str) -> Iterator[Path]:
    """Yields a new folder beside `path` to fill; see `Host.output_directory`."""
    replaces = check_output_directory(path, marker=marker)
    temporary = _beside(path)
    try:
        with explained(path):
            temporary.mkdir(mode=0o755)
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in names:
                    _flush(Path(folder, name))
            if replaces:
                _exchange(temporary, path)
            else:
                os.rename(temporary, path)
            _flush(path.parent)
    finally:
        import shutil

        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    """Returns a fresh hidden name in `path`'s folder, so that the rename stays within one filesystem."""
    existing_folder(path.parent, of=path)
    return _fresh(path)


def existing_folder(folder: Path, *, of: Path) -> None:
    """Raises OutputError when a folder that the output `of` needs is missing: none is made, since its name may be misspelled."""
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist", where=str(of), hint=f"mkdir -p {folder}")


def _fresh(path: Path) -> Path:
    """Returns a hidden name beside `path` that nobody else uses."""
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")


def _check_writable(path: Path) -> None:
    """Raises OutputError now where the first byte would raise it, perhaps after minutes of work or in a program that says less."""
    if not os.access(path.parent, os.W_OK | os.X_OK):
        reason = "Read-only file system" if os.statvfs(path.parent).f_flag & os.ST_RDONLY else "Permission denied"
        raise OutputError(f"cannot be written: {reason}", where=str(path), hint=f"name a folder that you may write to; not {path.parent}")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write, and a program's that met a full disk, into an OutputError that names `path`."""
    try:
        yield
    except ToolFailedError as error:
        if not _is_full(path.parent):
            raise
        raise _no_space(path) from error
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise _no_space(path) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM) and _is_ours(error, path):
            raise OutputError(f"cannot be written: {error.strerror}", where=str(path)) from error
        raise


def _no_space(path: Path) -> OutputError:
    return OutputError(
        "no space left to write it; what was there before is unchanged", where=str(path), hint=f"free space on {path.parent}"
    )


def _is_full(folder: Path) -> bool:
    """Returns whether a folder's filesystem has next to nothing left (what was written so far still lies there)."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize < _NEXT_TO_NOTHING_BYTES


def _is_ours(error: OSError, path: Path) -> bool:
    """Returns whether the failed operation was on the output (and not on some input that the block reads)."""
    return error.filename is not None and Path(os.fsdecode(error.filename)).is_relative_to(path.parent)


def _flush(path: Path) -> None:
    """Forces a file or folder to the disk; symbolic links and special files have nothing to flush."""
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(new: Path, old: Path) -> None:
    """Swaps two folders in one step (renameat2 RENAME_EXCHANGE); where the filesystem cannot, in two."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(old))
    aside = _beside(old)
    os.rename(old, aside)
    os.rename(new, old)
    os.rename(aside, new)
