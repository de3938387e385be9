"""What a verifier gets beside the image: reference values, a bill of materials, a signed statement of how the folder was made."""

from __future__ import annotations

import hashlib
import os
import platform
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from ipe_build import __version__
from ipe_build.attest import dsse
from ipe_build.attest.manifest import Artefact, file_sha256, measure_folder
from ipe_build.attest.provenance import FILE_NAME, FILES_TYPE, PAYLOAD_TYPE, Material, Provenance, Tool, named_subjects, subjects_of
from ipe_build.attest.reference import FILE_NAME as REFERENCE_NAME
from ipe_build.attest.sbom import DATABASES, OS_RELEASE, Package, make_sbom, read_packages
from ipe_build.attest.sbom import FILE_NAME as SBOM_NAME
from ipe_build.config.schema import BootBy, Config, Filesystem, Profile
from ipe_build.errors import InputError
from ipe_build.formats.partition_types import PARTITION_TYPES
from ipe_build.host import Host
from ipe_build.host.cache import cache_key
from ipe_build.image.esp import SYSTEMD_BOOT_FOLDER
from ipe_build.image.uki import stub_path
from ipe_build.signing.certificates import Role, create_keys, load_keys
from ipe_build.signing.signer import Signer
from ipe_build.steps.attest import measure_image
from ipe_build.steps.keys import check_certificates, open_signer_of

ROLE = Role("attestation", "build attestation", in_bundle=False)
_TEST_KEYS_BEGIN, _TEST_KEYS_DAYS = datetime(1970, 1, 1, tzinfo=UTC), 36525
_VERSION_OPTIONS = {"mkfs.erofs": "-V", "mke2fs": "-V", "mksquashfs": "-version", "mcopy": "-V"}
_MAKERS = {Filesystem.EROFS: "mkfs.erofs", Filesystem.SQUASHFS: "mksquashfs", Filesystem.EXT4: "mke2fs"}
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


def make_reference_values(disk: Path, folder: Path, host: Host) -> tuple[Artefact, ...]:
    """Returns the disk as it was measured, after writing its reference values into the folder; () for one without a boot loader of its own.

    They are for a device without Secure Boot keys: for another one, `ipe-build attest measure --variables`.
    """
    try:
        values = measure_image(disk)
    except InputError as error:
        host.progress.note(f"no reference values: {error.message}")
        return ()
    (folder / REFERENCE_NAME).write_bytes(values.to_bytes())
    (folder / REFERENCE_NAME).with_suffix(".pcrlock").write_bytes(values.to_pcrlock())
    return (Artefact(disk.relative_to(folder).as_posix(), disk.stat().st_size, values.image_sha256),)


def make_bill_of_materials(
    config: Config, made_from: tuple[Material, ...], kernel_release: str, folder: Path, host: Host, known: Sequence[Artefact] = ()
) -> tuple[Artefact, ...]:
    """Writes the bill of materials of what lies in the folder so far; returns what that is. What is `known` of it is not read again."""
    packages = packages_of(config.rootfs.source)
    epoch = host.source_date_epoch
    measured = measure_folder(folder, known=known)
    bill = make_sbom(config.build.name, __version__, epoch, kernel_release, measured, made_from, packages)
    (folder / SBOM_NAME).write_bytes(bill)
    return measured


def make_statement(
    config: Config,
    config_file: Path,
    made_from: tuple[Material, ...],
    kernel_release: str,
    folder: Path,
    host: Host,
    known: Sequence[Artefact] = (),
) -> None:
    """Writes the signed statement over every file of the folder; nothing where the build has no key for it.

    What is `known` of the folder is not read again.

    A development build without `[keys.attestation]` is signed by a TEST key. Raises: SigningKeyError, SignaturePendingError.
    """
    signer = _signer(config, config_file, host)
    if signer is None:
        host.progress.note("no provenance: [keys] attestation names no key")
        return
    statement = new_statement(config, made_from, kernel_release, folder, host, known)
    (folder / FILE_NAME).write_bytes(dsse.seal(statement.to_bytes(), PAYLOAD_TYPE, signer))


def new_statement(
    config: Config,
    made_from: tuple[Material, ...],
    kernel_release: str,
    folder: Path,
    host: Host,
    known: Sequence[Artefact] = (),
) -> Provenance:
    """Returns the statement about the folder as it is."""
    return Provenance(
        name=config.build.name,
        tool_version=__version__,
        source_date_epoch=host.source_date_epoch,
        kernel_release=kernel_release,
        subjects=subjects_of(folder, known),
        materials=made_from,
        tools=tuple(tools(config, host)),
    )


def files_statement(
    folder: Path, names: Sequence[str], made_from: Iterable[tuple[str, Path]], name: str, builder: str, host: Host
) -> Provenance:
    """Returns a statement about named files that another build system put together from `made_from`, pairs of a name and a path.

    It names no programs of this machine: the same files give the same statement everywhere. Raises: InputError.
    """
    found = []
    for what, path in made_from:
        if not path.exists():
            raise InputError("there is no such file or folder", where=str(path), hint=f"material {what!r} names it")
        found.append(Material(what, f"file:{path.name}", tree_sha256(path) if path.is_dir() else file_sha256(path)))
    epoch, subjects = host.source_date_epoch, named_subjects(folder, names)
    return Provenance(name, __version__, epoch, "", subjects, tuple(found), (), FILES_TYPE, builder)


def materials(config: Config, config_file: Path) -> tuple[Material, ...]:
    """Returns what the build is made from: configuration, root filesystem, kernel source or image, and every other file it names.

    A folder's digest is `tree_sha256`. URIs are relative to the configuration's folder where they lie below it, else plain names: they
    do not say where on which machine the build ran.
    """
    section = config.kernel
    named = [("configuration", config_file), ("root filesystem", config.rootfs.source)]
    named += [("kernel source", section.source)] if section.source and not section.image else []
    named += [(f"kernel {what}", path) for what, path in (("image", section.image), ("configuration", section.config)) if path]
    named += [("kernel modules", section.modules)] if section.modules else []
    named += [(f"kernel fragment {number}", path) for number, path in enumerate(section.fragments, 1)]
    named += [(f"file {one.path}", one.source) for one in config.rootfs.file]
    for role, policy in (("boot", config.policy.boot), ("device", config.policy.device)):
        if policy.template.startswith("file:"):
            named.append((f"{role} policy template", config_file.absolute().parent / policy.template.removeprefix("file:")))
    if config.disk.boot is BootBy.UKI:
        named.append(("UKI stub", stub_path(config.build.architecture)))
    elif config.disk.boot_loader:
        named.append(("boot loader", SYSTEMD_BOOT_FOLDER / PARTITION_TYPES[config.build.architecture].boot_loader))
    base = config_file.absolute().parent
    return tuple(Material(what, _uri(path, base), tree_sha256(path) if path.is_dir() else file_sha256(path)) for what, path in named)


def tree_sha256(folder: Path) -> bytes:
    """Returns SHA-256 over a folder: for each entry below it, sorted by path, a line `TYPE MODE CONTENT PATH` that ends with NUL.

    TYPE is d, f, l or o (others), MODE octal, CONTENT the SHA-256 of a file or of a link's target, `-` for the rest. Owners and times
    are left out: they differ where the same tree was unpacked twice.
    """
    digest = hashlib.sha256()
    for path in _walk(folder):
        status = path.lstat()
        if path.is_symlink():
            kind, content = "l", hashlib.sha256(os.fsencode(path.readlink())).hexdigest()
        elif path.is_file():
            kind, content = "f", file_sha256(path).hex()
        else:
            kind, content = "d" if path.is_dir() else "o", "-"
        digest.update(f"{kind} {status.st_mode & 0o7777:o} {content} ".encode() + os.fsencode(path.relative_to(folder)) + b"\0")
    return digest.digest()


def packages_of(source: Path) -> tuple[Package, ...]:
    """Returns the packages that a root filesystem (a folder or a tar) says are installed in it; none for a finished image."""
    wanted = (*DATABASES, *OS_RELEASE)
    if source.is_dir():
        return read_packages({name: (source / name).read_bytes() for name in wanted if (source / name).is_file()})
    if not source.name.endswith(_TAR_SUFFIXES):
        return ()
    try:
        with tarfile.open(source) as archive:
            members = {one.name.removeprefix("./").lstrip("/"): one for one in archive if one.isfile()}
            files = {name: handle.read() for name in wanted if name in members and (handle := archive.extractfile(members[name]))}
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"cannot be read: {error}", where=str(source)) from error
    return read_packages(files)


def tools(config: Config, host: Host) -> Iterator[Tool]:
    """Yields the programs that take part in this build and are installed, with their versions; Python and its cryptography first."""
    import cryptography

    yield Tool("python", platform.python_version())
    yield Tool("cryptography", cryptography.__version__)
    wanted = ["gcc", "ld", "make", "fakeroot", "mkfs.vfat", "mcopy", "xz", "zstd", _MAKERS[config.rootfs.filesystem]]
    for name in sorted(wanted):
        if host.has_tool(name):
            done = host.run([name, _VERSION_OPTIONS.get(name, "--version")], ok=range(256))
            said = (done.stdout.strip() or done.stderr.strip()).decode("utf-8", "replace").splitlines()
            yield Tool(name, said[0].strip() if said else "unknown")


def _signer(config: Config, config_file: Path, host: Host) -> Signer | None:
    """Returns who signs: the named key, a test key in a development build, nobody in another one."""
    if config.keys.attestation is not None:
        signer = open_signer_of(ROLE.name, config.keys.attestation, config_file, host)
        check_certificates(config, (signer.certificate,), host)
        return signer
    return attestation_test_key(host) if config.build.profile is Profile.DEVELOPMENT else None


def attestation_test_key(host: Host) -> Signer:
    """Returns the user's TEST key for statements, made the first time. No device trusts it: it is in no bundle."""

    def make(folder: Path) -> None:
        create_keys(folder / "keys", host, not_before=_TEST_KEYS_BEGIN, lifetime_days=_TEST_KEYS_DAYS, roles=(ROLE,))

    key = cache_key("attestation", str(_TEST_KEYS_BEGIN), str(_TEST_KEYS_DAYS))
    return load_keys(host.cache.entry("test-keys", key, make) / "keys").pair(ROLE.name).signer(host)


def _uri(path: Path, base: Path) -> str:
    """Returns where a material lies: below the configuration's folder, or its name."""
    absolute = path.absolute()
    return f"file:{absolute.relative_to(base).as_posix()}" if absolute.is_relative_to(base) else f"file:{path.name}"


def _walk(folder: Path) -> Iterator[Path]:
    """Yields everything below a folder, sorted by path; links are not followed."""
    for child in sorted(folder.iterdir()):
        yield child
        if child.is_dir() and not child.is_symlink():
            yield from _walk(child)
