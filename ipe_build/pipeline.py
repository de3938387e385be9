"""The order of a whole build, and what comes after the disk image: audit, manifest, proof."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509

from ipe_build.attest.manifest import (
    FILE_NAME,
)
from ipe_build.audit.findings import AuditReport
from ipe_build.audit.html import render_html
from ipe_build.audit.judge import audit
from ipe_build.audit.portrait import Portrait, portrait_of
from ipe_build.audit.report import render_summary
from ipe_build.boot.evidence import Evidence, evidence_table, evidence_value
from ipe_build.config.schema import BootBy, Config, PolicyPlace, Profile
from ipe_build.errors import SignaturePendingError
from ipe_build.examine import examined
from ipe_build.formats.dotconfig import DotConfig, parse_dotconfig
from ipe_build.host import Host
from ipe_build.host.progress import human_bytes
from ipe_build.image.disk import Disk
from ipe_build.image.rootfs import Entry
from ipe_build.kernel.build import Kernel
from ipe_build.policy.ima_policy import appraises_mapped_code
from ipe_build.policy.ledger import Ledger
from ipe_build.policy.parser import Role
from ipe_build.signing.certificates import pem_bundle
from ipe_build.signing.pending import Pending
from ipe_build.steps.disk import command_line, make_image, make_init
from ipe_build.steps.flash import make_flash_outputs, make_update_entries
from ipe_build.steps.ima import (
    Ima,
    check_ima,
    check_no_ima,
    ima_entries,
    ima_finish,
    ima_integrity,
    ima_root_key,
    open_ima,
)
from ipe_build.steps.kernel import initramfs_modules, make_kernel, sign_kernel_modules
from ipe_build.steps.keys import Keys, open_keys
from ipe_build.steps.manifest import make_manifest
from ipe_build.steps.policies import (
    SignedPolicy,
    foreseen_device_policy,
    lint_policies,
    policy_ledger,
    policy_path,
    render_policy,
    sign_device_policy,
)
from ipe_build.steps.proof import prove
from ipe_build.steps.provenance import make_bill_of_materials, make_reference_values, make_statement, materials
from ipe_build.steps.root import VerityRoot, make_probe_entries, make_rootfs, make_verity_root, sign_root
from ipe_build.steps.seal import check_fixpoint, check_sealed_config, make_unsealed_kernel, plain_policy, seal
from ipe_build.steps.uki import check_uki_config, enrolled_certificates, make_uki, secure_boot_material
from ipe_build.steps.unfinished import Unfinished, root_key


def audit_image(
    image: Path | Sequence[Path],
    host: Host,
    *,
    kernel: Path | None = None,
    initramfs: Sequence[Path] = (),
    command_line: str | None = None,
    db: Sequence[x509.Certificate] = (),
    config: DotConfig | None = None,
    ledger: Ledger | None = None,
) -> tuple[AuditReport, Portrait]:
    """Step 9. Returns the findings about an image, read again from its bytes, and what its page for people shows; nothing is run."""
    with examined(image, host, kernel=kernel, initramfs=initramfs, command_line=command_line, db=db, config=config, ledger=ledger) as facts:
        return audit(facts, host), portrait_of(facts)


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A finished build: where it is, its root hash, what the audit found and what the boots showed (None: not booted)."""

    folder: Path
    root_hash: bytes
    audit: AuditReport
    evidence: Evidence | None

    @property
    def ok(self) -> bool:
        """Returns whether the audit found no error and every probe came out as expected."""
        return not self.audit.failed and (self.evidence is None or self.evidence.as_expected)

    def to_json(self) -> dict[str, object]:
        """Returns JSON's values; details are in the folder's audit.json and evidence.json."""
        return {
            "folder": str(self.folder),
            "root_hash": self.root_hash.hex(),
            "ok": self.ok,
            "audit_failed": self.audit.failed,
            "as_expected": self.evidence.as_expected if self.evidence is not None else None,
        }

    def to_text(self) -> str:
        """Returns what a person reads at the end: the audit's lines that did not pass, the table of probes, where everything is."""
        lines = [evidence_table(self.evidence), ""] if self.evidence is not None else []
        return "\n".join([*lines, render_summary(self.audit), f"root hash  {self.root_hash.hex()}", f"output     {self.folder}"])


@dataclass(frozen=True, slots=True)
class Job:
    """One run: what to build, the folder that its files go to, and whether it is booted."""

    config: Config
    config_file: Path
    folder: Path
    host: Host
    prove_it: bool
    ledger: Ledger | None = None


@dataclass(frozen=True, slots=True)
class Ground:
    """What is there once the verity root is made; only what depends on its root hash comes after. `device` None: the policy does too."""

    keys: Keys
    boot_policy: bytes
    kernel: Kernel
    modules: bool
    device: SignedPolicy | None
    root: VerityRoot
    ima: Ima | None


@dataclass(frozen=True, slots=True)
class Built:
    """The disk image and what it is made of. A sealed image has no device policy and no keys, and its root hash is not signed.

    `plain_policy` is the unsigned one that takes over from its boot policy, if any.
    """

    kernel: Kernel
    modules: bool
    boot_policy: bytes
    device: SignedPolicy | None
    root: VerityRoot
    keys: Keys | None
    disk: Disk
    plain_policy: bytes | None = None
    appraised: bool = False

    @property
    def final_policy(self) -> bytes:
        """Returns the policy that is in force when the device's own first program starts."""
        return self.device.text if self.device is not None else self.plain_policy or self.boot_policy


def build(config: Config, config_file: Path, output: Path, host: Host, *, prove_it: bool = True) -> BuildResult:
    """Returns the result of the whole flow; its files replace those of an earlier build in `output` in one step.

    A build whose audit or proof failed does not replace the last good one: it lies beside it, in OUTPUT.failed. One that waits for
    signatures from elsewhere leaves its root in OUTPUT.unfinished, where the next run goes on.
    Raises: IpeBuildError of the step that could not be done; then nothing else was changed.
    """
    check_uki_config(config, config_file)
    ledger = policy_ledger(config, config_file)
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    host.check_output_directory(output, marker=FILE_NAME)
    unfinished = Unfinished.of(output)
    with host.progress.step(f"build {config.build.name}"), host.scratch(".ipe-build-", beside=output) as folder:
        job = Job(config, config_file, folder, host, prove_it, ledger)
        if config.build.profile is Profile.SEALED:
            root_hash, report, evidence = _build_sealed(job)
        else:
            with _ground(job, unfinished) as ground:
                root_hash, report, evidence = _build_on(ground, job)
        ok = not report.failed and (evidence is None or evidence.as_expected)
        place = output if ok else output.with_name(f"{output.name}.failed")
        with host.output_directory(place, marker=FILE_NAME) as finished:
            for path in folder.iterdir():
                path.rename(finished / path.name)
    unfinished.forget()
    return BuildResult(place, root_hash, report, evidence)


@contextmanager
def _ground(job: Job, unfinished: Unfinished) -> Iterator[Ground]:
    """Yields what there is once the verity root is made (or taken from an unfinished build); keeps the root when signatures are missing."""
    config, folder, host = job.config, job.folder, job.host
    step, pending = host.progress.step, Pending()
    device: SignedPolicy | None = None
    modules: tuple[Entry, ...] = ()
    probes: tuple[Entry, ...] = ()
    with step("keys"):
        keys = open_keys(config, job.config_file, host)
        ima = open_ima(config, job.config_file, keys, host)
        (folder / "certificates.pem").write_bytes(pem_bundle(keys.trusted))
    with step("policies"):
        boot_policy = render_policy(config.policy.boot, Role.BOOT, job.config_file)
        foreseen = foreseen_device_policy(config, job.config_file)
        if config.policy.device.place is PolicyPlace.ROOT:
            with pending.later():
                device = sign_device_policy(foreseen, keys)
    with step("kernel"):
        built = make_kernel(config, boot_policy, foreseen, keys, job.config_file, host)
        lint_policies(config, boot_policy, foreseen, built, host)
        if ima is not None:
            check_ima(config, job.config_file, boot_policy, foreseen, built, host)
        kernel = replace(built, image=copy_to(built.image, folder / "vmlinuz"), config=copy_to(built.config, folder / "kernel.config"))
    with host.scratch() as scratch:
        with step(f"modules ({len(kernel.modules)})"), pending.later():
            modules = sign_kernel_modules(config, kernel, keys, scratch, host)
        with pending.later():
            probes = make_probe_entries(config, kernel, keys, host)
        pending.stop()
        policies = (Entry.file(policy_path(config).strip("/"), device.signed),) if device is not None else ()
        more = (*modules, *probes, *policies, *make_update_entries(config), *ima_entries(ima))
        key = root_key(config, more, host, ima_root_key(config, ima))
        root = unfinished.take(key, folder / f"{config.build.name}.{config.rootfs.filesystem}") or _make_root(more, job, ima)
    try:
        yield Ground(keys, boot_policy, kernel, bool(modules), device, root, ima)
    except SignaturePendingError:
        unfinished.keep(key, root, host)
        raise


def _make_root(more: tuple[Entry, ...], job: Job, ima: Ima | None = None) -> VerityRoot:
    """Returns the root filesystem, with `more` in it and its files signed if `ima` says so, and its hash tree."""
    config, host = job.config, job.host
    with host.progress.step(f"root filesystem ({config.rootfs.filesystem})"):
        place = job.folder / f"{config.build.name}.{config.rootfs.filesystem}"
        filesystem = make_rootfs(config, more, place, host, ima_finish(config, ima, host))
    with host.progress.step(f"verity ({human_bytes(filesystem.size_bytes)})"):
        return make_verity_root(config, filesystem, host)


def _build_on(ground: Ground, job: Job) -> tuple[bytes, AuditReport, Evidence | None]:
    """Runs the steps that follow from the root hash; returns it, the audit's report and the evidence."""
    config, folder, host = job.config, job.folder, job.host
    step, keys, kernel, device = host.progress.step, ground.keys, ground.kernel, ground.device
    pending, signed = Pending(), None
    with step("signatures over the root hash"):
        with pending.later():
            signed = sign_root(ground.root, keys)
        if device is None:
            pinned = (ground.root.tree.parameters.hash_name, ground.root.tree.root_hash)
            with pending.later():
                device = sign_device_policy(render_policy(config.policy.device, Role.DEVICE, job.config_file, pinned), keys)
        pending.stop()
    assert signed is not None
    assert device is not None
    (folder / f"{config.policy.boot.name}.pol").write_bytes(ground.boot_policy)
    (folder / f"{config.policy.device.name}.pol").write_bytes(device.text)
    (folder / f"{config.policy.device.name}.p7b").write_bytes(device.signed)
    with step("initramfs"):
        integrity, loaded = ima_integrity(config, ground.ima), initramfs_modules(config, kernel, host)
        initramfs = make_init(config, signed, device, folder / "initrd", host, integrity=integrity, modules=loaded)
    with step("disk image"):
        uki = _make_uki(job, kernel, initramfs, signed)
        disk = make_image(config, kernel, initramfs, uki, signed, keys, folder / f"{config.build.name}.raw", host)
    appraised = ground.ima is not None and appraises_mapped_code(ground.ima.policy)
    return _finish(Built(kernel, ground.modules, ground.boot_policy, device, signed, keys, disk, appraised=appraised), job)


def _build_sealed(job: Job) -> tuple[bytes, AuditReport, Evidence | None]:
    """Runs the steps of a sealed image: no keys; the kernel's boot policy is written when the root hash is known; then as `_finish`."""
    config, folder, host = job.config, job.folder, job.host
    step = host.progress.step
    check_sealed_config(config, job.config_file)
    check_no_ima(config, job.config_file)
    with step("kernel"):
        unsealed = make_unsealed_kernel(config, job.config_file, host)
        unsealed = replace(unsealed, config=copy_to(unsealed.config, folder / "kernel.config"))
    with host.scratch() as scratch:
        modules = sign_kernel_modules(config, unsealed, None, scratch, host)
        root = _make_root((*modules, *make_probe_entries(config, unsealed, None, host), *make_update_entries(config)), job)
    with step("seal"):
        policy, kernel = seal(config, job.config_file, unsealed, root, folder, host)
        (folder / f"{config.policy.boot.name}.pol").write_bytes(policy)
        later = plain_policy(config, job.config_file, root)
        if later is not None:
            (folder / f"{config.policy.device.name}.pol").write_bytes(later)
    with step("initramfs"):
        initramfs = make_init(config, root, None, folder / "initrd", host, plain_policy=later)
    with step("disk image"):
        uki = _make_uki(job, kernel, initramfs, root)
        disk = make_image(config, kernel, initramfs, uki, root, None, folder / f"{config.build.name}.raw", host)
    with step("fixpoint"):
        check_fixpoint(disk, root.tree.root_hash, host)
    return _finish(Built(kernel, bool(modules), policy, None, root, None, disk, later), job)


def _make_uki(job: Job, kernel: Kernel, initramfs: Path, root: VerityRoot) -> Path | None:
    """Returns the signed unified kernel image, None when the image has a boot loader instead."""
    if job.config.disk.boot is not BootBy.UKI:
        return None
    return make_uki(job.config, job.config_file, kernel, initramfs, command_line(job.config, root), job.folder, job.host)


def _finish(built: Built, job: Job) -> tuple[bytes, AuditReport, Evidence | None]:
    """Runs the steps after the disk image; returns the root hash, the audit's report and the evidence."""
    config, folder, host = job.config, job.folder, job.host
    step, disk, root, device, keys = host.progress.step, built.disk, built.root, built.device, built.keys
    with step("flash files"):
        make_flash_outputs(config, disk, host)
    with step("audit"):
        described = parse_dotconfig(built.kernel.config.read_bytes(), where=str(built.kernel.config))
        report, portrait = audit_image(disk.path, host, db=enrolled_certificates(config, keys), config=described, ledger=job.ledger)
        _write_json(folder / "audit.json", report.to_json())
        (folder / "audit.html").write_text(render_html(report, portrait), encoding="utf-8")
    with step("reference values"):
        known = make_reference_values(disk.path, folder, host)
        made_from = materials(config, job.config_file)
        measured = make_bill_of_materials(config, made_from, built.kernel.release, folder, host, known)
    with step("manifest"):
        manifest = make_manifest(config, job.config_file, built.kernel, built.boot_policy, device, root, keys, host, measured)
        (folder / FILE_NAME).write_bytes(manifest.to_bytes())
    with step("provenance"):
        make_statement(config, job.config_file, made_from, built.kernel.release, folder, host, manifest.artefacts)
    if not (job.prove_it and config.boot.probes) or report.failed:
        return root.tree.root_hash, report, None
    with step("boot and probe"):
        policy = built.final_policy
        secure_boot = secure_boot_material(config, job.config_file, keys, host)
        evidence = prove(config, disk.path, policy, keys, built.modules, host, secure_boot=secure_boot, appraised=built.appraised)
        _write_json(folder / "evidence.json", evidence_value(evidence))
    return root.tree.root_hash, report, evidence


def _write_json(path: Path, value: object) -> None:
    """Writes a value as indented UTF-8 JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_to(source: Path, target: Path) -> Path:
    """Returns `target`, a copy of `source` (which lies in the cache and is shared)."""
    shutil.copyfile(source, target)
    return target
