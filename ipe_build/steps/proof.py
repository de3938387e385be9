"""The proof: the image and damaged copies of it, booted."""

from __future__ import annotations

from pathlib import Path

from ipe_build.boot.evidence import Evidence
from ipe_build.boot.probe_disk import PolicyMaterial
from ipe_build.boot.prove import BootRequest, boot_image
from ipe_build.boot.qemu import Machine
from ipe_build.config.schema import Config
from ipe_build.host import Host
from ipe_build.signing.backends.plan import PlanSigner
from ipe_build.steps.keys import Keys, make_test_keys
from ipe_build.steps.policies import SignedPolicy


def prove(config: Config, disk: Path, device: SignedPolicy, keys: Keys, modules: bool, host: Host) -> Evidence:
    """Step 11. Returns what was seen when the image and its damaged copies were booted in QEMU."""
    foreign = make_test_keys("foreign", host)
    is_here = not isinstance(keys.policy, PlanSigner)
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
        policy=PolicyMaterial(device.text, keys.policy, foreign.pair("policy").signer(host)) if is_here else None,
        foreign=foreign.pair("verity").signer(host),
        modules=modules,
        dropped_capabilities=frozenset(config.initramfs.drop_capabilities),
        on_corruption=config.initramfs.on_corruption,
        destructive=config.boot.destructive,
        firmware=config.boot.firmware,
    )
    return boot_image(request, host)
