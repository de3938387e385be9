"""The proof: the image and damaged copies of it, booted."""

from __future__ import annotations

from pathlib import Path

from ipe_build.boot.evidence import Evidence
from ipe_build.boot.probe_disk import PolicyMaterial
from ipe_build.boot.prove import BootRequest, boot_image
from ipe_build.boot.qemu import Machine
from ipe_build.boot.secure_boot_proof import SecureBoot
from ipe_build.config.schema import Config
from ipe_build.host import Host
from ipe_build.signing.backends.plan import PlanSigner
from ipe_build.steps.disk import dropped_capabilities
from ipe_build.steps.keys import Keys, make_test_keys


def prove(
    config: Config,
    disk: Path,
    policy: bytes,
    keys: Keys | None,
    modules: bool,
    host: Host,
    *,
    secure_boot: SecureBoot | None = None,
    appraised: bool = False,
) -> Evidence:
    """Step 11. Returns what was seen when the image and its damaged copies were booted in QEMU. `policy` is the one in force at the end.

    `appraised` says that the IMA policy appraises mapped code.
    """
    foreign = make_test_keys("foreign", host)
    is_here = keys is None or not isinstance(keys.policy, PlanSigner)
    material = PolicyMaterial(policy, keys.policy if keys is not None else None, foreign.pair("policy").signer(host))
    request = BootRequest(
        disk=disk,
        machine=Machine(
            config.build.architecture,
            config.boot.memory_mib,
            timeout_s=config.boot.timeout_s,
            time=host.source_date_epoch,
            accelerator=config.boot.accelerator,
        ),
        application=config.boot.application,
        interpreter=config.boot.interpreter,
        policy=material if is_here else None,
        foreign=foreign.pair("verity").signer(host),
        modules=modules,
        dropped_capabilities=frozenset(dropped_capabilities(config)),
        on_corruption=config.initramfs.on_corruption,
        destructive=config.boot.destructive,
        keyless=keys is None,
        appraised=appraised,
        frozen_initramfs=keys is None,
        firmware=config.boot.firmware,
        secure_boot=secure_boot,
    )
    return boot_image(request, host)
