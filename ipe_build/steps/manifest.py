"""The manifest: what was built, out of what, signed by whom."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build import __version__
from ipe_build.attest.manifest import (
    Artefact,
    CertificateEntry,
    Manifest,
    PolicyEntry,
    VerityEntry,
    file_sha256,
    measure_folder,
)
from ipe_build.config.schema import Config
from ipe_build.host import Host
from ipe_build.kernel.build import Kernel
from ipe_build.policy.parser import Role, parse
from ipe_build.steps.keys import Keys
from ipe_build.steps.policies import SignedPolicy
from ipe_build.steps.root import VerityRoot


def make_manifest(
    config: Config,
    config_file: Path,
    kernel: Kernel,
    boot_policy: bytes,
    device: SignedPolicy | None,
    root: VerityRoot,
    keys: Keys | None,
    host: Host,
    known: Sequence[Artefact] = (),
) -> Manifest:
    """Step 10. Returns the manifest of the folder that the root's filesystem image lies in; what is `known` of it is not read again."""
    boot = parse(boot_policy, role=Role.BOOT).policy
    assert boot is not None
    parameters = root.tree.parameters
    signs = {"device policy": keys.policy, "root hash": keys.verity, "modules": keys.module} if keys is not None else {}
    policies = [PolicyEntry("boot", boot.display_name, str(boot.version), hashlib.sha256(boot_policy).digest(), None)]
    if device is not None:
        digest, signer = hashlib.sha256(device.text).digest(), _certificate_sha256(signs["device policy"].certificate)
        policies.append(PolicyEntry("device", device.policy.display_name, str(device.policy.version), digest, signer))
    return Manifest(
        name=config.build.name,
        tool_version=__version__,
        source_date_epoch=host.source_date_epoch,
        configuration_sha256=file_sha256(config_file),
        kernel_release=kernel.release,
        verity=VerityEntry(
            parameters.hash_name,
            root.tree.root_hash,
            parameters.salt,
            parameters.data_block_size,
            parameters.hash_block_size,
            root.tree.data_blocks,
        ),
        policies=tuple(policies),
        certificates=tuple(
            CertificateEntry(
                one.subject.rfc4514_string(),
                _certificate_sha256(one),
                tuple(what for what, signer in signs.items() if signer.certificate == one),
            )
            for one in (keys.trusted if keys is not None else ())
        ),
        artefacts=measure_folder(root.filesystem.path.parent, known=known),
    )


def _certificate_sha256(certificate: x509.Certificate) -> bytes:
    """Returns SHA-256 of the DER certificate."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()
