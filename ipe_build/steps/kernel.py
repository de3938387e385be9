"""The kernel with its trust, and its modules."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.config.schema import Config, KeyPlace
from ipe_build.errors import ConfigError
from ipe_build.host import Host
from ipe_build.image.rootfs import Entry
from ipe_build.kernel.build import Kernel, build_kernel
from ipe_build.kernel.module_order import modules_in_order
from ipe_build.kernel.module_signing import sign_modules
from ipe_build.kernel.prebuilt import take_kernel
from ipe_build.kernel.profiles import DEBIAN_SOURCE, KernelRequest, kernel_request
from ipe_build.kernel.trust import KernelTrust
from ipe_build.policy.parser import Role
from ipe_build.steps.keys import Keys
from ipe_build.steps.policies import properties_of


def kernel_request_of(config: Config, features: Iterable[str], properties: Iterable[str]) -> KernelRequest:
    """Returns what kernel the configuration asks for, with these features, for policies that use these properties."""
    section = config.kernel
    return kernel_request(
        section.source or DEBIAN_SOURCE,
        board=section.board,
        features=features,
        properties=properties,
        filesystem=config.rootfs.filesystem,
        module_compression=config.modules.compression,
        base=section.base,
        fragments=section.fragments,
        patches=section.patches,
    )


def make_kernel(config: Config, boot_policy: bytes, device_policy: bytes, keys: Keys, config_file: Path, host: Host) -> Kernel:
    """Step 2. Returns the kernel with boot policy and certificates linked in (from the cache where it was built), or the named one."""
    section = config.kernel
    properties = properties_of(boot_policy, Role.BOOT) | properties_of(device_policy, Role.DEVICE)
    request = kernel_request_of(config, section.features, properties)
    trust = KernelTrust(boot_policy, tuple(one.public_bytes(Encoding.DER) for one in keys.trusted))
    if section.image is not None:
        return take_kernel(
            section.image,
            section.config,
            section.modules,
            request,
            trust,
            host,
            keys_in_firmware=section.keys is KeyPlace.FIRMWARE,
            loads_modules=bool(config.initramfs.modules),
        )
    if section.source is None:
        raise ConfigError(
            "wanted a kernel: `source`, or an `image` that is built already",
            where=f"{config_file}: [kernel] source",
            hint=f"{DEBIAN_SOURCE} is what Debian's linux-source-6.12 installs",
        )
    return build_kernel(request, trust, host)


def initramfs_modules(config: Config, kernel: Kernel, host: Host) -> tuple[Path, ...]:
    """Returns the modules that the initramfs loads, in order, as whoever built the kernel signed them. Raises: InputError."""
    if not config.initramfs.modules or kernel.modules_folder is None:
        return ()
    return modules_in_order(config.initramfs.modules, kernel.modules_folder, kernel.release, host)


def sign_kernel_modules(config: Config, kernel: Kernel, keys: Keys | None, folder: Path, host: Host) -> tuple[Entry, ...]:
    """Step 3. Returns the modules, signed unless there are no keys, and the indexes that modprobe reads, as entries of the root."""
    place = config.rootfs.modules.strip("/") if config.rootfs.modules else ""
    if not place or kernel.modules_folder is None or not kernel.modules:
        return ()
    tree = folder / "lib/modules" / kernel.release
    if keys is None:
        for path in kernel.modules:
            (tree / path.relative_to(kernel.modules_folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, tree / path.relative_to(kernel.modules_folder))
    else:
        sign_modules(
            kernel.modules,
            keys.module,
            host,
            digest_name=config.modules.digest,
            compression=config.modules.compression,
            out=tree,
            root=kernel.modules_folder,
        )
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        if (kernel.modules_folder / name).is_file():
            shutil.copyfile(kernel.modules_folder / name, tree / name)
    host.run(["depmod", "--basedir", folder, kernel.release])
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    return tuple(Entry.file(f"{place}/{kernel.release}/{path.relative_to(tree).as_posix()}", path) for path in files)
