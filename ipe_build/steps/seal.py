"""A sealed image (profile = sealed): no key anywhere, the kernel's boot policy pins the root. Source: docs/sealed-images.md.

The root hash depends on the root, and the boot policy on the root hash; the kernel is not in the root, so one pass is enough.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from ipe_build.boot.entry import read_entry
from ipe_build.config.schema import Config, Seal
from ipe_build.errors import ConfigError, InputError, VerificationError
from ipe_build.formats.dotconfig import parse_dotconfig
from ipe_build.formats.initramfs import unpack_initramfs
from ipe_build.host import Host
from ipe_build.image.disk import Disk
from ipe_build.integrity.hashes import find_hash
from ipe_build.integrity.verity import verify_image
from ipe_build.kernel.build import Kernel, build_kernel
from ipe_build.kernel.inspect import inspect_kernel
from ipe_build.kernel.needs import Need
from ipe_build.kernel.prebuilt import take_kernel
from ipe_build.kernel.profiles import KernelRequest
from ipe_build.kernel.seal import root_hashes_of, seal_kernel
from ipe_build.kernel.slot import policy_of, reserved_policy
from ipe_build.kernel.trust import KernelTrust
from ipe_build.policy.findings import Target
from ipe_build.policy.parser import Role
from ipe_build.policy.versions import KernelVersion
from ipe_build.steps.kernel import kernel_request_of
from ipe_build.steps.policies import lint_policy, properties_of, render_policy
from ipe_build.steps.root import VerityRoot

_KEYS = ("policy", "verity", "module")


def check_sealed_config(config: Config, config_file: Path) -> None:
    """Raises ConfigError for settings that a sealed image cannot have: keys, and a root hash that comes from elsewhere."""
    for name in _KEYS:
        if getattr(config.keys, name) is not None:
            raise ConfigError("a sealed image has no keys: take it out", where=f"{config_file}: [keys] {name}")
    if config.keys.trusted:
        raise ConfigError("a sealed image trusts no certificate: take it out", where=f"{config_file}: [keys] trusted")
    if not config.policy.device.signed and not config.kernel.patches and config.kernel.image is None:
        where = f"{config_file}: [policy.device] signed"
        raise ConfigError("the kernel takes only signed policies", where=where, hint="[kernel] patches: ipe-policy-by-path.patch")
    if config.initramfs.root_hash != "embedded":
        where = f"{config_file}: [initramfs] root_hash"
        raise ConfigError("a sealed image names its root hash itself", where=where, hint='root_hash = "embedded"')


def make_unsealed_kernel(config: Config, config_file: Path, host: Host) -> Kernel:
    """Step 2. Returns the kernel with a reserved boot policy, which denies everything; built, or the named one."""
    request = _request(config, config_file)
    section = config.kernel
    if section.image is None:
        if section.source is None:
            raise ConfigError("wanted a kernel: `source`, or an `image` that is built already", where=f"{config_file}: [kernel] source")
        return build_kernel(request, KernelTrust(reserved_policy(section.reserve)), host)
    if section.seal is Seal.LINK:
        where = f"{config_file}: [kernel] seal"
        raise ConfigError("a kernel that is built already cannot be linked", where=where, hint='seal = "in-place"')
    facts = inspect_kernel(section.image)
    if facts.certificates:
        raise InputError(
            f"trusts {len(facts.certificates)} certificates, and a sealed image trusts none",
            where=str(section.image),
            hint="build it with the feature `sealed`",
        )
    return take_kernel(section.image, section.config, section.modules, request, KernelTrust(facts.boot_policy or b""), host)


def seal(config: Config, config_file: Path, unsealed: Kernel, root: VerityRoot, folder: Path, host: Host) -> tuple[bytes, Kernel]:
    """Step 6. Returns the boot policy that pins the root, and the kernel with it inside (`vmlinuz` in the folder).

    Raises: InputError when the policy cannot do what it says in this kernel, or does not fit into it.
    """
    pinned = (root.tree.parameters.hash_name, root.tree.root_hash)
    policy = _boot_policy(config, config_file, pinned)
    resolved = parse_dotconfig(unsealed.config.read_bytes(), where=str(unsealed.config))
    target = Target(KernelVersion.of_text(unsealed.release), Role.BOOT, resolved)
    lint_policy(config.policy.boot.name, policy, target, host)
    image = root.filesystem.path
    image.with_name(f"{image.name}.roothash").write_text(f"{root.tree.root_hash.hex()}\n", "utf-8")
    place = folder / "vmlinuz"
    if config.kernel.seal is Seal.LINK:
        linked = build_kernel(_request(config, config_file), KernelTrust(policy), host)
        place.write_bytes(linked.image.read_bytes())
        return policy, replace(linked, image=place)
    sealed = seal_kernel(unsealed.image.read_bytes(), policy, host)
    place.write_bytes(sealed.image)
    (folder / "vmlinuz.unsealed.sha256").write_text(f"{sha256(unsealed.image.read_bytes()).hexdigest()}\n", "utf-8")
    return policy, replace(unsealed, image=place)


def check_fixpoint(disk: Disk, root_hash: bytes, host: Host) -> None:
    """Takes the root hash out of the kernel in the finished disk image and holds everything else against it.

    That is: the kernel's boot policy pins this root and no other, the partitions' every block is under that root hash (the tree is
    computed anew), and the initramfs opens it. Raises: VerificationError where they do not agree.
    """
    assert disk.root is not None
    assert disk.root_verity is not None
    with host.scratch() as folder:
        entry = read_entry(disk.path, folder, host)
        text = inspect_kernel(entry.kernel).boot_policy or b""
        initramfs = unpack_initramfs(entry.initrd.read_bytes()).entries if entry.initrd is not None else ()
    pinned = {digest for _algorithm, digest in root_hashes_of(policy_of(text) or text)}
    if pinned != {root_hash}:
        got = ", ".join(sorted(digest.hex() for digest in pinned)) or "none"
        raise VerificationError(f"the kernel's boot policy pins {got}, the root is {root_hash.hex()}", where=str(disk.path))
    (from_kernel,) = pinned
    damaged = verify_image(
        disk.path, disk.path, from_kernel, host, hash_offset=disk.root_verity.offset_bytes, data_offset=disk.root.offset_bytes
    )
    if damaged:
        raise VerificationError(f"{len(damaged)} blocks of the root are not under the kernel's root hash", where=str(disk.path))
    settings = next((one.data for one in initramfs if one.path == "etc/ipe-init.conf"), b"").decode("utf-8", "replace").splitlines()
    if f"root_hash = {from_kernel.hex()}" not in settings:
        raise VerificationError("the initramfs opens another root than the kernel's boot policy pins", where=str(disk.path))


def plain_policy(config: Config, config_file: Path, root: VerityRoot) -> bytes | None:
    """Step 6. Returns the unsigned policy that takes over at the end of the initramfs; None where the boot policy stays in force."""
    if config.policy.device.signed:
        return None
    return render_policy(config.policy.device, Role.DEVICE, config_file, (root.tree.parameters.hash_name, root.tree.root_hash))


def _boot_policy(config: Config, config_file: Path, pinned: tuple[str, bytes]) -> bytes:
    """Returns the boot policy for a root hash; where an unsigned policy takes over, it vouches for that too."""
    section = config.policy.boot
    if not config.policy.device.signed:
        section = replace(section, variables={"policy_by_path": "true", **section.variables})
    return render_policy(section, Role.BOOT, config_file, pinned)


def _request(config: Config, config_file: Path) -> KernelRequest:
    """Returns the kernel to build: that of the configuration, with the feature `sealed`."""
    algorithm = config.verity.hash
    foreseen = _boot_policy(config, config_file, (algorithm, bytes(find_hash(algorithm).digest_size)))
    features = dict.fromkeys((*config.kernel.features, Need.SEALED.value))
    return kernel_request_of(config, features, properties_of(foreseen, Role.BOOT))
