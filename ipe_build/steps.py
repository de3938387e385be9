"""The steps of a build up to the disk image: one typed function each, from the values of earlier ones to a value.

The order is `pipeline.build`'s; a step's files lie where it is told.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid5

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.boot.guest_files import ModuleFixtures, probe_files
from ipe_build.config.schema import Compression as ModuleCompression
from ipe_build.config.schema import Config, KeySection, OnCorruption, PolicyPlace, PolicySection, Profile
from ipe_build.errors import ConfigError, InputError, SigningKeyError
from ipe_build.formats.cpio import regular_file
from ipe_build.formats.dotconfig import parse_dotconfig
from ipe_build.formats.verity_sig import VeritySignature
from ipe_build.host import Host
from ipe_build.host.cache import cache_key
from ipe_build.image.disk import Disk, DiskRequest, make_disk
from ipe_build.image.esp import BootEntry
from ipe_build.image.filesystem import FilesystemImage, FilesystemRequest, FilesystemType, make_filesystem
from ipe_build.image.initramfs import Compression, InitramfsRequest, OnFailure, make_initramfs
from ipe_build.image.rootfs import Entry, PathRule
from ipe_build.integrity.hashes import find_hash
from ipe_build.integrity.verity import VerityParameters, VerityTree, format_image
from ipe_build.kernel.build import Kernel, build_kernel
from ipe_build.kernel.modules import sign_module, sign_modules
from ipe_build.kernel.prebuilt import take_kernel
from ipe_build.kernel.profiles import DEBIAN_SOURCE, kernel_request
from ipe_build.kernel.trust import KernelTrust
from ipe_build.policy.findings import Severity as LintSeverity
from ipe_build.policy.findings import Target
from ipe_build.policy.lint import check
from ipe_build.policy.model import Policy
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.render import render
from ipe_build.policy.versions import KernelVersion
from ipe_build.signing.backends import open_signer
from ipe_build.signing.certificate_checks import Severity, check_certificate
from ipe_build.signing.certificates import KeySet, create_keys, load_keys
from ipe_build.signing.loading import load_certificates
from ipe_build.signing.profiles import PROFILES, root_hash_payload, sign_payload
from ipe_build.signing.signer import Signer

_NAMESPACE = UUID("3d1cf9b0-9f0e-5c2c-8a43-6f1f2b8d1c55")
PROBE_MODULE = "dummy.ko"
"""The module that the probes load: it needs no hardware and no other module."""
_TEST_KEYS_BEGIN = datetime(1970, 1, 1, tzinfo=UTC)
"""Before any SOURCE_DATE_EPOCH."""
_TEST_KEYS_DAYS = 36525
_MODULE_SUFFIX = {ModuleCompression.NONE: "none", ModuleCompression.GZIP: "gz", ModuleCompression.XZ: "xz", ModuleCompression.ZSTD: "zst"}


@dataclass(frozen=True, slots=True)
class Keys:
    """Who signs what, and the certificates that go into the kernel (the signers' own included: most signatures carry none)."""

    policy: Signer
    verity: Signer
    module: Signer
    trusted: tuple[x509.Certificate, ...]


@dataclass(frozen=True, slots=True)
class SignedPolicy:
    """A device policy: parsed, its text, and the text inside its signature."""

    policy: Policy
    text: bytes
    signed: bytes


@dataclass(frozen=True, slots=True)
class SignedRoot:
    """A verity root: filesystem, tree, and the root hash's detached signature."""

    filesystem: FilesystemImage
    hash_area: Path
    tree: VerityTree
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


def make_test_keys(name: str, host: Host) -> KeySet:
    """Returns the user's test keys of a name, made the first time: from the cache folder, so that a second build is signed by the same."""

    def make(folder: Path) -> None:
        create_keys(folder / "keys", host, not_before=_TEST_KEYS_BEGIN, lifetime_days=_TEST_KEYS_DAYS, organisation=name)

    return load_keys(host.cache.entry("test-keys", cache_key(name, str(_TEST_KEYS_BEGIN), str(_TEST_KEYS_DAYS)), make) / "keys")


def open_keys(config: Config, config_file: Path, host: Host) -> Keys:
    """Step 1. Returns the signers that the configuration names, test keys for the others, and the trusted certificates.

    Raises: SigningKeyError, also where profile = production meets a TEST, weak or expired certificate or a purpose without a key.
    """
    named = {"policy": config.keys.policy, "verity": config.keys.verity, "module": config.keys.module}
    trusted = [one for path in config.keys.trusted for one in load_certificates(path)]
    test = None
    if None in named.values():
        if config.build.profile is Profile.PRODUCTION:
            missing = next(role for role, section in named.items() if section is None)
            raise SigningKeyError("a production build needs a key of its own", where=f"{config_file}: [keys] {missing}")
        test = make_test_keys("ipe-build", host)
        trusted += load_certificates(test.root.certificate)
    signers = {role: _open_signer(role, section, test, config_file, host) for role, section in named.items()}
    everyone = _unique([*trusted, *(signer.certificate for signer in signers.values())])
    _check_certificates(config, everyone, host)
    return Keys(signers["policy"], signers["verity"], signers["module"], everyone)


def _open_signer(role: str, section: KeySection | None, test: KeySet | None, config_file: Path, host: Host) -> Signer:
    """Returns the signer of a role: the named one, else the test key. A relative `file:` counts from the configuration's folder."""
    if section is None:
        assert test is not None
        return test.pair(role).signer(host)
    uri = section.key
    if uri.startswith("file:") and not uri.startswith("file:/"):
        uri = f"file:{config_file.absolute().parent}/{uri.removeprefix('file:')}"
    return open_signer(uri, section.certificate, host)


def _unique(certificates: Iterable[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """Returns each certificate once, in order."""
    return tuple({one.public_bytes(Encoding.DER): one for one in certificates}.values())


def _check_certificates(config: Config, certificates: tuple[x509.Certificate, ...], host: Host) -> None:
    """Raises SigningKeyError for a certificate that must not go into a device; warns of the rest."""
    production = config.build.profile is Profile.PRODUCTION
    at = datetime.fromtimestamp(host.source_date_epoch, UTC) if host.source_date_epoch else datetime.now(UTC)
    for certificate in certificates:
        for finding in check_certificate(certificate, at=at, production=production):
            if finding.severity is Severity.ERROR:
                raise SigningKeyError(finding.message, where=finding.subject, hint=finding.hint)
            if finding.severity is Severity.WARNING and production:
                host.progress.warn(f"{finding.subject}: {finding.message}")


def render_policy(section: PolicySection, role: Role, config_file: Path, root_hash: tuple[str, bytes] | None = None) -> bytes:
    """Step 6. Returns the text of the boot or the device policy, checked as the kernel would.

    `root_hash` (algorithm, digest) becomes the template's `root_hashes`, unless [policy] variables names them.
    """
    template: str | Path = section.template
    if section.template.startswith("file:"):
        template = config_file.absolute().parent / section.template.removeprefix("file:")
    variables: dict[str, object] = {"role": str(role)}
    if root_hash is not None:
        variables["root_hashes"] = ((root_hash[0], root_hash[1].hex()),)
    return render(template, {**variables, **section.variables, "name": section.name, "version": section.version})


def foreseen_device_policy(config: Config, config_file: Path) -> bytes:
    """Returns the device policy as it will be but for the root hash: what the kernel must be able to judge, and a check before the work."""
    section = config.policy.device
    if section.place is PolicyPlace.ROOT:
        return render_policy(section, Role.DEVICE, config_file)
    algorithm = config.verity.hash
    return render_policy(section, Role.DEVICE, config_file, (algorithm, bytes(find_hash(algorithm).digest_size)))


def sign_device_policy(text: bytes, keys: Keys) -> SignedPolicy:
    """Step 6. Returns the device policy with its signature (attached PKCS#7)."""
    policy = parse(text, role=Role.DEVICE).policy
    assert policy is not None
    return SignedPolicy(policy, text, sign_payload(PROFILES["ipe-policy"], text, keys.policy))


def make_kernel(config: Config, boot_policy: bytes, device_policy: bytes, keys: Keys, config_file: Path, host: Host) -> Kernel:
    """Step 2. Returns the kernel with boot policy and certificates linked in (from the cache where it was built), or the named one."""
    section = config.kernel
    request = kernel_request(
        section.source or DEBIAN_SOURCE,
        board=section.board,
        features=section.features,
        properties=_properties(boot_policy, Role.BOOT) | _properties(device_policy, Role.DEVICE),
        filesystem=config.rootfs.filesystem,
        module_compression=config.modules.compression,
        base=section.base,
        fragments=section.fragments,
    )
    trust = KernelTrust(boot_policy, tuple(one.public_bytes(Encoding.DER) for one in keys.trusted))
    if section.image is not None:
        return take_kernel(section.image, section.config, section.modules, request, trust, host)
    if section.source is None:
        raise ConfigError(
            "wanted a kernel: `source`, or an `image` that is built already",
            where=f"{config_file}: [kernel] source",
            hint=f"{DEBIAN_SOURCE} is what Debian's linux-source-6.12 installs",
        )
    return build_kernel(request, trust, host)


def lint_policies(config: Config, boot_policy: bytes, device_policy: bytes, kernel: Kernel, host: Host) -> None:
    """Step 6. Looks at both policies for this very kernel: warnings are printed, a policy that cannot do what it says ends the build.

    Raises: InputError for the first error of the linter.
    """
    resolved = parse_dotconfig(kernel.config.read_bytes(), where=str(kernel.config))
    version = KernelVersion.of_text(kernel.release)
    boot = Target(version, Role.BOOT, resolved)
    device = Target(version, Role.DEVICE, resolved, stem=config.policy.device.name, active=parse(boot_policy, version, Role.BOOT).policy)
    for name, text, target in ((config.policy.boot.name, boot_policy, boot), (config.policy.device.name, device_policy, device)):
        for finding in check(text, target).findings:
            where = f"{name}.pol:{finding.line}"
            if finding.severity is LintSeverity.ERROR:
                raise InputError(f"{finding.message} ({finding.rule})", where=where, hint=finding.hint)
            if finding.severity is LintSeverity.WARNING:
                host.progress.warn(f"{where}: {finding.message} ({finding.rule})")


def _properties(text: bytes, role: Role) -> frozenset[str]:
    """Returns the names of the IPE properties that a policy uses."""
    policy = parse(text, role=role).policy
    assert policy is not None
    return frozenset(condition.property.name for rule in policy.rules for condition in rule.conditions)


def sign_kernel_modules(config: Config, kernel: Kernel, keys: Keys, folder: Path, host: Host) -> tuple[Entry, ...]:
    """Step 3. Returns the signed modules, and the indexes that modprobe reads, as entries of the root filesystem."""
    place = config.rootfs.modules.strip("/") if config.rootfs.modules else ""
    if not place or kernel.modules_folder is None or not kernel.modules:
        return ()
    tree = folder / "lib/modules" / kernel.release
    sign_modules(
        kernel.modules,
        keys.module,
        host,
        digest_name=config.modules.digest,
        compression=_MODULE_SUFFIX[config.modules.compression],
        out=tree,
        root=kernel.modules_folder,
    )
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        if (kernel.modules_folder / name).is_file():
            shutil.copyfile(kernel.modules_folder / name, tree / name)
    host.run(["depmod", "--basedir", folder, kernel.release])
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    return tuple(Entry.file(f"{place}/{kernel.release}/{path.relative_to(tree).as_posix()}", path) for path in files)


def make_rootfs(config: Config, more: tuple[Entry, ...], out: Path, host: Host) -> FilesystemImage:
    """Step 4. Returns the filesystem image: the source, the files that the configuration adds, and `more`."""
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
    )
    return make_filesystem(request, out, host)


def policy_path(config: Config) -> str:
    """Returns the device's path of the signed policy: in [rootfs] policies, named as systemd and ipe-init want it."""
    return f"{config.rootfs.policies.rstrip('/')}/{config.policy.device.name}.p7b"


def make_verity_root(config: Config, filesystem: FilesystemImage, keys: Keys, host: Host) -> SignedRoot:
    """Step 5. Returns the verity root; its sidecars `.verity`, `.roothash`, `.roothash.p7s` and `.verity-sig` lie beside the image."""
    section = config.verity
    parameters = VerityParameters(
        hash_name=section.hash,
        salt=chosen_salt(config, host),
        uuid=UUID(section.uuid) if section.uuid else derived_uuid(config, "verity", host),
        data_block_size=section.data_block_size,
        hash_block_size=section.hash_block_size,
    )
    image = filesystem.path
    hash_area = image.with_name(f"{image.name}.verity")
    tree = format_image(image, hash_area, parameters, host)
    payload = root_hash_payload(tree.root_hash)
    signature = sign_payload(PROFILES["dm-verity-root-hash"], payload, keys.verity)
    image.with_name(f"{image.name}.roothash").write_bytes(payload + b"\n")
    image.with_name(f"{image.name}.roothash.p7s").write_bytes(signature)
    root = SignedRoot(filesystem, hash_area, tree, signature)
    image.with_name(f"{image.name}.verity-sig").write_bytes(signature_partition(root, keys))
    return root


def signature_partition(root: SignedRoot, keys: Keys) -> bytes:
    """Returns the content of the root-verity-sig partition."""
    certificate = keys.verity.certificate.public_bytes(Encoding.DER)
    return VeritySignature(root.tree.root_hash, hashlib.sha256(certificate).digest(), root.signature).build()


def make_init(config: Config, root: SignedRoot, device_policy: SignedPolicy, out: Path, host: Host) -> Path:
    """Step 7. Returns the initramfs: ipe-init and its configuration."""
    section = config.initramfs
    carried = config.policy.device.place is PolicyPlace.INITRAMFS
    corruption = {OnCorruption.EIO: (), OnCorruption.RESTART: ("restart_on_corruption",), OnCorruption.PANIC: ("panic_on_corruption",)}
    request = InitramfsRequest(
        root_hash=root.tree.root_hash if section.root_hash == "embedded" else None,
        filesystem=root.filesystem.filesystem,
        init=section.init,
        init_from_command_line=section.init_override,
        verity_options=corruption[section.on_corruption],
        policies=(f"initramfs:{policy_path(config)}" if carried else policy_path(config),),
        extra=(regular_file(policy_path(config).strip("/"), device_policy.signed, mtime=host.source_date_epoch),) if carried else (),
        drop_capabilities=section.drop_capabilities,
        on_failure=OnFailure(section.on_failure),
        recovery=section.recovery,
        compression=Compression(section.compression),
    )
    return make_initramfs(request, out, host).path


def make_image(config: Config, kernel: Kernel, initramfs: Path, root: SignedRoot, keys: Keys, out: Path, host: Host) -> Disk:
    """Step 8. Returns the disk image: EFI system partition with the boot entry, root, root-verity, root-verity-sig."""
    section = config.disk
    words = config.kernel.command_line.split()
    if config.initramfs.root_hash == "command-line":
        words.append(f"roothash={root.tree.root_hash.hex()}")
    request = DiskRequest(
        filesystem=root.filesystem.path,
        hash_area=root.hash_area,
        root_hash=root.tree.root_hash,
        signature=signature_partition(root, keys),
        disk_uuid=UUID(section.uuid) if section.uuid else derived_uuid(config, "disk", host),
        entry=BootEntry(config.build.name, f"{config.build.name} ({kernel.release})", kernel.image, initramfs, " ".join(words)),
        architecture=config.build.architecture,
        esp_bytes=section.esp_mib << 20,
        boot_loader=section.boot_loader,
    )
    return make_disk(request, out, host)


def make_probe_entries(config: Config, kernel: Kernel, keys: Keys, host: Host) -> tuple[Entry, ...]:
    """Step 4. Returns what the probes need in the root filesystem: programs of ours, and a module in three forms."""
    if not config.boot.probes:
        return ()
    plain = next((path.read_bytes() for path in kernel.modules if path.name == PROBE_MODULE), None)
    fixtures = None
    if plain is not None:
        foreign = make_test_keys("foreign", host).pair("module").signer(host)
        fixtures = ModuleFixtures(
            signed=sign_module(plain, keys.module, config.modules.digest, None, PROBE_MODULE),
            unsigned=plain,
            foreign=sign_module(plain, foreign, config.modules.digest, None, PROBE_MODULE),
        )
    files = probe_files(host, modules=fixtures, architecture=config.build.architecture)
    return tuple(Entry.file(file.path.strip("/"), file.data, mode=file.mode) for file in files)
