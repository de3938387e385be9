"""`ipe-build attest snp`: the launch digest and ID block of an image in a SEV-SNP virtual machine (computed, not run)."""

from __future__ import annotations

import argparse
import base64
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.cli import Outcome
from ipe_build.cli.inputs import in_image
from ipe_build.errors import UsageError

if TYPE_CHECKING:
    from ipe_build.host import Host


def configure(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the sub-verb."""
    snp = verbs.add_parser("snp", help="launch digest and ID block for AMD SEV-SNP (computed, not run on hardware)")
    snp.add_argument("image", type=Path, metavar="IMAGE", help="a disk image or UKI: QEMU is given its kernel, initramfs, command line")
    snp.add_argument("--firmware", type=Path, required=True, metavar="OVMF.fd", help="OVMF built for SEV-SNP with kernel hashes")
    snp.add_argument("--processors", type=int, default=1, metavar="N", help="virtual processors (default: %(default)s)")
    snp.add_argument("--processor-type", default="EPYC-v4", metavar="TYPE", help="QEMU's -cpu (default: %(default)s)")
    snp.add_argument("--guest-features", type=lambda text: int(text, 0), default=1, metavar="BITS", help="VMSA SEV features (default: 0x1)")
    snp.add_argument("--key", metavar="URI", help="makes an ID block, signed by this key (ECDSA P-384)")
    snp.add_argument("--cert", type=Path, metavar="PEM", help="the key's certificate")
    snp.add_argument("--guest-svn", type=int, default=0, metavar="N", help="security version in the ID block (default: %(default)s)")


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Returns the launch digest, and the ID block in QEMU's form when a key was given."""
    from ipe_build.attest.snp import DEFAULT_POLICY, Launch, launch_digest, make_id_block
    from ipe_build.signing.backends import open_signer
    from ipe_build.steps.attest import kernel_files

    if (arguments.key is None) != (arguments.cert is None):
        raise UsageError("--key and --cert go together", where="attest snp")
    if arguments.processors < 1:
        raise UsageError(f"wanted at least one processor, got {arguments.processors}", where="attest snp")
    with host.scratch() as folder:
        with in_image(arguments.image):
            kernel, initrd, options = kernel_files(arguments.image, folder)
        machine = (arguments.processors, arguments.processor_type, arguments.guest_features)
        digest = launch_digest(Launch(arguments.firmware, kernel, initrd, options, *machine))
    value: dict[str, object] = {"launch_digest": digest.hex(), "command_line": options, "run_on_hardware": False}
    lines = [f"launch digest  {digest.hex()}", f"command line   {options}", "note: computed, not run on hardware"]
    if arguments.key is not None:
        made = make_id_block(digest, open_signer(arguments.key, arguments.cert, host), guest_svn=arguments.guest_svn)
        block, authentication = (base64.b64encode(part).decode() for part in (made.block, made.authentication))
        value |= {"policy": DEFAULT_POLICY, "id_block": block, "id_auth": authentication, "id_key_digest": made.id_key_digest.hex()}
        lines[2:2] = [f"id-block       {block}", f"id-auth        {authentication}", f"id key digest  {made.id_key_digest.hex()}"]
    return Outcome(value, "\n".join(lines))
