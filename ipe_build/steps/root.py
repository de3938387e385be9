"""The root filesystem, its hash tree and the signature over its root hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid5

from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.boot.guest_files import ModuleFixtures, probe_files
from ipe_build.config.schema import Config
from ipe_build.formats.verity_sig import VeritySignature
from ipe_build.host import Host
from ipe_build.image.filesystem import Change, FilesystemImage, FilesystemRequest, FilesystemType, make_filesystem
from ipe_build.image.rootfs import Entry, PathRule
from ipe_build.integrity.verity import VerityParameters, VerityTree, format_image
from ipe_build.kernel.build import Kernel
from ipe_build.kernel.module_signing import sign_module
from ipe_build.signing.profiles import PROFILES, root_hash_payload, sign_payload
from ipe_build.steps.keys import Keys, make_test_keys

_NAMESPACE = UUID("3d1cf9b0-9f0e-5c2c-8a43-6f1f2b8d1c55")
PROBE_MODULE = "dummy.ko"
"""The module that the probes load: it needs no hardware and no other module."""


@dataclass(frozen=True, slots=True)
class VerityRoot:
    """A verity root before its root hash is signed."""

    filesystem: FilesystemImage
    hash_area: Path
    tree: VerityTree


@dataclass(frozen=True, slots=True)
class SignedRoot(VerityRoot):
    """A verity root: filesystem, tree, and the root hash's detached signature."""

    signature: bytes


def derived_uuid(config: Config, purpose: str, host: Host) -> UUID:
    """Returns the UUID of a purpose that follows from [build] name and SOURCE_DATE_EPOCH (version 5, RFC 9562)."""
    return uuid5(_NAMESPACE, f"{config.build.name}/{purpose}/{host.source_date_epoch}")


def chosen_salt(config: Config, host: Host) -> bytes:
    """Returns the salt that the configuration names, else 32 bytes that follow from [build] name and SOURCE_DATE_EPOCH."""
    if config.verity.salt == "-":
        return b""
    if config.verity.salt is not None:
        return bytes.fromhex(config.verity.salt)
    return hashlib.sha256(f"ipe-build salt/{config.build.name}/{host.source_date_epoch}".encode()).digest()


def make_probe_entries(config: Config, kernel: Kernel, keys: Keys | None, host: Host) -> tuple[Entry, ...]:
    """Step 4. Returns what the probes need in the root filesystem: programs of ours, and a module in three forms (two without keys)."""
    if not config.boot.probes:
        return ()
    plain = next((path.read_bytes() for path in kernel.modules if path.name == PROBE_MODULE), None)
    fixtures = None
    if plain is not None:
        foreign = make_test_keys("foreign", host).pair("module").signer(host)
        fixtures = ModuleFixtures(
            signed=sign_module(plain, keys.module, config.modules.digest, None, PROBE_MODULE) if keys is not None else None,
            unsigned=plain,
            foreign=sign_module(plain, foreign, config.modules.digest, None, PROBE_MODULE),
        )
    files = probe_files(host, modules=fixtures, architecture=config.build.architecture)
    return tuple(Entry.file(file.path.strip("/"), file.data, mode=file.mode) for file in files)


def make_rootfs(config: Config, more: tuple[Entry, ...], out: Path, host: Host, finish: Change | None = None) -> FilesystemImage:
    """Step 4. Returns the filesystem image: the source, the files that the configuration adds, and `more`; `finish` may sign them."""
    section = config.rootfs
    files = tuple(
        Entry.file(file.path.strip("/"), file.source, mode=int(file.mode, 8), uid=file.uid, gid=file.gid) for file in section.file
    )
    rules = tuple(PathRule(one.path, one.uid, one.gid, int(one.mode, 8) if one.mode is not None else None) for one in section.owner)
    request = FilesystemRequest(
        source=section.source,
        uuid=UUID(section.uuid) if section.uuid else derived_uuid(config, "filesystem", host),
        filesystem=FilesystemType(section.filesystem),
        compression=section.compression or "",
        keep_owners=section.keep_owners,
        additions=(*files, *more),
        rules=rules,
        finish=finish,
    )
    return make_filesystem(request, out, host)


def make_verity_root(config: Config, filesystem: FilesystemImage, host: Host) -> VerityRoot:
    """Step 5. Returns the verity root; its hash tree lies beside the image, in `.verity`."""
    section = config.verity
    parameters = VerityParameters(
        hash_name=section.hash,
        salt=chosen_salt(config, host),
        uuid=UUID(section.uuid) if section.uuid else derived_uuid(config, "verity", host),
        data_block_size=section.data_block_size,
        hash_block_size=section.hash_block_size,
    )
    hash_area = filesystem.path.with_name(f"{filesystem.path.name}.verity")
    return VerityRoot(filesystem, hash_area, format_image(filesystem.path, hash_area, parameters, host))


def sign_root(root: VerityRoot, keys: Keys) -> SignedRoot:
    """Step 6. Returns the root, its root hash signed; `.roothash`, `.roothash.p7s` and `.verity-sig` lie beside the image."""
    image = root.filesystem.path
    payload = root_hash_payload(root.tree.root_hash)
    signed = SignedRoot(root.filesystem, root.hash_area, root.tree, sign_payload(PROFILES["dm-verity-root-hash"], payload, keys.verity))
    image.with_name(f"{image.name}.roothash").write_bytes(payload + b"\n")
    image.with_name(f"{image.name}.roothash.p7s").write_bytes(signed.signature)
    image.with_name(f"{image.name}.verity-sig").write_bytes(signature_partition(signed, keys))
    return signed


def signature_partition(root: SignedRoot, keys: Keys) -> bytes:
    """Returns the content of the root-verity-sig partition."""
    certificate = keys.verity.certificate.public_bytes(Encoding.DER)
    return VeritySignature(root.tree.root_hash, hashlib.sha256(certificate).digest(), root.signature).build()
