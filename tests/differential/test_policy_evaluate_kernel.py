"""The evaluator against a booted kernel: active policies, real operations, decisions and the audit records' rule text."""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from ipe_build.formats.audit_log import read_log
from ipe_build.formats.audit_record import Access, find_record
from ipe_build.integrity.fsverity import FsVerityParameters, measure
from ipe_build.integrity.table import dm_table
from ipe_build.integrity.verity import VerityParameters, format_image
from ipe_build.kernel.module_signing import sign_module
from ipe_build.kernel.trust import KernelTrust
from ipe_build.policy.evaluate import evaluate
from ipe_build.policy.facts import NO_FILE, Digest, Facts
from ipe_build.policy.learn import Knowledge, Place, learn, place_of
from ipe_build.policy.model import Condition, Default, Policy, PolicyVersion, Rule
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.properties import PROPERTIES, Action, Operation
from ipe_build.policy.versions import DEFAULT_KERNEL
from ipe_build.signing.profiles import PROFILES, root_hash_payload, sign_payload
from tests.fixtures.policy import BOOT_POLICY, boot, policy_signer, sign_policy, tiny_program

POLICIES = 60
AT_BOOT = {"X509_CERT"}
"""The kernel reads a certificate by its path only while it boots: the second test."""
X509_PATH = "etc/keys/x509_ima.der"
"""CONFIG_IMA_X509_PATH of the tests' kernel."""
_INITRAMFS_TRIES = 3
_FIRMWARE_PATH = "/sys/module/firmware_class/parameters/path"


@dataclass(frozen=True, slots=True)
class Subject:
    """A file in the machine and what its kernel knows about it."""

    path: str
    facts: Facts


@dataclass(frozen=True, slots=True)
class Try:
    """One operation: its hook, the expected records (operation, action and rule of each), and whether its errno tells the decision.

    `errno` is the exact one wanted where the operation succeeds, or fails for a reason that is not IPE's.
    """

    tag: str
    hook: str
    expected: tuple[tuple[str, str, str], ...]
    tells: bool
    errno: int | None = None


@pytest.fixture(scope="module")
def setting(host, need, test_keys, kernel_factory, tmp_path_factory):
    """Disks, files and the plan's beginning; the subjects; the kernel."""
    folder = tmp_path_factory.mktemp("subjects")
    signer = test_keys.pair("verity").signer(host)
    tiny = tiny_program(host, need("gcc"), folder)
    kernel = kernel_factory(KernelTrust(BOOT_POLICY, (test_keys.bundle.read_bytes(),)))
    files: dict[str, bytes] = {}
    plan: list[tuple[str, ...]] = [("mkdir", f"/{name}") for name in ("t", "vs", "vu", "v5", "e")]
    files |= signed_kernel(host, need, test_keys.pair("policy"), kernel.image, folder)
    plan += [("mount", "none", "/t", "tmpfs", "rw"), ("copy", "/tiny", "/t/tiny"), ("copy", "/kernel", "/t/kernel")]
    subjects = [Subject("/tiny", Facts(boot_verified=True)), Subject("/t/tiny", Facts())]
    disks: list[Path] = []
    (folder / "root").mkdir()
    (folder / "root" / "tiny").write_bytes(tiny)
    (folder / "root" / "tiny").chmod(0o755)
    need("mkfs.erofs")
    for number, (name, hash_name, signed) in enumerate((("vs", "sha256", True), ("vu", "sha256", False), ("v5", "sha512", True))):
        image, area = folder / f"{name}.erofs", folder / f"{name}.verity"
        (folder / "root" / "name").write_text(name)
        host.run(["mkfs.erofs", "--quiet", "-T0", f"-U{'0' * 8}-0000-0000-0000-{number:012d}", image, folder / "root"], ok=(0,))
        tree = format_image(image, area, VerityParameters(hash_name=hash_name, salt=b"\x5a" * 8), host)
        devices = [f"/dev/vd{letter}" for letter in ("bc", "de", "fg")[number]]
        table = dm_table(tree, devices[0], devices[1], signature_key=f"key-{name}" if signed else "").to_line().split(" ", 3)
        if signed:
            files[f"{name}.p7s"] = sign_payload(PROFILES["dm-verity-root-hash"], root_hash_payload(tree.root_hash), signer)
            plan.append(("key", "user", f"key-{name}", f"/{name}.p7s", "-"))
        plan += [("dm", name, table[1], table[2], table[3]), ("mount", f"/dev/dm-{number}", f"/{name}", "erofs", "ro")]
        subjects.append(Subject(f"/{name}/tiny", Facts(root_hash=Digest(hash_name.encode(), tree.root_hash), root_hash_signed=signed)))
        disks += [image, area]
    disks.append(_fsverity(host, need, folder, tiny, signer, files, plan, subjects))
    from cryptography.hazmat.primitives.serialization import Encoding

    files["verity.der"] = signer.certificate.public_bytes(Encoding.DER)
    module = next(path for path in kernel.modules if path.name.startswith("test_firmware.ko"))
    files["test_firmware.ko"] = sign_module(module.read_bytes(), test_keys.pair("module").signer(host), None, None, module.name)
    plan.append(("finit", "loader", "/test_firmware.ko"))
    return kernel, plan, files, disks, subjects


def signed_kernel(host, need, pair, image: Path, folder: Path) -> dict[str, bytes]:
    """The machine's own kernel image with an Authenticode signature of a key that it trusts, and without one."""
    host.run([need("sbsign"), "--key", pair.key, "--cert", pair.certificate, "--output", folder / "bzImage.signed", image])
    return {"kernel": (folder / "bzImage.signed").read_bytes(), "kernel.unsigned": image.read_bytes()}


def _fsverity(host, need, folder: Path, tiny: bytes, signer, files: dict, plan: list, subjects: list) -> Path:
    """An ext4 disk with a plain file, one with fs-verity and one with a signature too; each has content of its own."""
    need("mke2fs")
    (folder / "ext4").mkdir()
    disk = folder / "ext4.img"
    for name in ("plain", "unsigned", "signed"):
        path = folder / "ext4" / name
        path.write_bytes(tiny + name.encode())
        path.chmod(0o755)
    host.run(["mke2fs", "-q", "-t", "ext4", "-O", "verity", "-b", "4096", "-d", folder / "ext4", disk, "2M"])
    plan += [("key", "asymmetric", "", "/verity.der", ".fs-verity"), ("mount", "/dev/vdh", "/e", "ext4", "rw")]
    subjects.append(Subject("/e/plain", Facts()))
    for name in ("unsigned", "signed"):
        measured = measure(folder / "ext4" / name, FsVerityParameters(), host)
        if name == "signed":
            files["signed.p7s"] = sign_payload(PROFILES["fs-verity-builtin"], measured.payload, signer)
        plan.append(("fsverity", f"/e/{name}", "/signed.p7s" if name == "signed" else "-"))
        subjects.append(Subject(f"/e/{name}", Facts(fsverity_digest=Digest(b"sha256", measured.digest), fsverity_signed=name == "signed")))
    return disk


def random_policy(rng: random.Random, number: int, subjects: list[Subject]) -> Policy:
    """A policy whose rules meet the subjects: their digests, sometimes written otherwise, and all properties."""
    digests = {
        "dmverity_roothash": [subject.facts.root_hash for subject in subjects if subject.facts.root_hash],
        "fsverity_digest": [subject.facts.fsverity_digest for subject in subjects if subject.facts.fsverity_digest],
    }

    def condition() -> Condition:
        row = rng.choice(PROPERTIES)
        if not row.takes_digest:
            return Condition(row, rng.random() < 0.6)
        digest = rng.choice(digests[row.name])
        odd = rng.random()
        if odd < 0.1:
            digest = Digest(digest.algorithm.upper(), digest.value)
        elif odd < 0.2:
            digest = Digest(digest.algorithm, digest.value[:-1])
        elif odd < 0.3:
            digest = Digest(rng.choice((b'q"q', b"\xe9", b"", b"sha384")), digest.value)
        return Condition(row, digest)

    rules = []
    for op in Operation:
        for _ in range(rng.choice((0, 1, 2, 3, 4))):
            conditions = tuple(condition() for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 2, 3)) if rng.random() < 0.9 else 0))
            rules.append(Rule(op, conditions, rng.choice(tuple(Action))))
    rng.shuffle(rules)
    defaults = [Default(op, rng.choice(tuple(Action))) for op in Operation if rng.random() < 0.4]
    return Policy(b"tried", PolicyVersion(0, 1, number), tuple(rules), (Default(None, rng.choice(tuple(Action))), *defaults))


def tries(number: int, policy: Policy, subjects: list[Subject], rng: random.Random) -> tuple[list[tuple[str, ...]], list[Try]]:
    """The plan's commands for one active policy, and what the evaluator expects of them."""
    plan: list[tuple[str, ...]] = []
    expected: list[Try] = []

    def add(letter: str, index: int, words: tuple[str, ...], hook: str, op: Operation, facts: Facts, tells: bool = True) -> None:
        tag = f"{number}{letter}{index}"
        decision = evaluate(policy, op, facts)
        plan.append((words[0], tag, *words[1:]))
        expected.append(Try(tag, hook, ((op.value, decision.action.value, decision.audit_rule),), tells))

    def add_initramfs(index: int, kernel: Subject, initramfs: Subject, signed: bool) -> None:
        """The kernel asks for the initramfs after it took the image: allowed, and signed by a trusted key."""
        image = evaluate(policy, Operation.KEXEC_IMAGE, kernel.facts)
        records = [(Operation.KEXEC_IMAGE.value, image.action.value, image.audit_rule)]
        number_wanted = errno.EACCES if image.action is Action.DENY else errno.ENODATA
        if image.action is Action.ALLOW and signed:
            decision = evaluate(policy, Operation.KEXEC_INITRAMFS, initramfs.facts)
            records.append((Operation.KEXEC_INITRAMFS.value, decision.action.value, decision.audit_rule))
            number_wanted = errno.EACCES if decision.action is Action.DENY else 0
        plan.append(("kexec", f"{number}r{index}", kernel.path, initramfs.path))
        expected.append(Try(f"{number}r{index}", "KERNEL_READ", tuple(records), True, number_wanted))

    for index, subject in enumerate(subjects):
        path, facts = subject.path, subject.facts
        add("x", index, ("exec", path), "BPRM_CHECK", Operation.EXECUTE, facts)
        add("m", index, ("mmap", path), "MMAP", Operation.EXECUTE, facts)
        add("p", index, ("mprotect", path), "MPROTECT", Operation.EXECUTE, facts)
        add("f", index, ("finit", path), "KERNEL_READ", Operation.KMODULE, facts)
        add("k", index, ("kexec", path), "KERNEL_READ", Operation.KEXEC_IMAGE, facts)
        add("i", index, ("policy", path), "KERNEL_READ", Operation.POLICY, facts)
        plan.append(("write", _FIRMWARE_PATH, str(Path(path).parent)))
        add("w", index, ("firmware", Path(path).name), "KERNEL_READ", Operation.FIRMWARE, facts, tells=False)
    add("a", 0, ("anon",), "MMAP", Operation.EXECUTE, NO_FILE)
    add("n", 0, ("init",), "KERNEL_LOAD", Operation.KMODULE, NO_FILE)
    kernels = [Subject("/kernel", Facts(boot_verified=True)), Subject("/t/kernel", Facts())]
    for index, initramfs in enumerate(rng.sample(subjects, _INITRAMFS_TRIES)):
        add_initramfs(index, rng.choice(kernels), initramfs, signed=True)
    add_initramfs(_INITRAMFS_TRIES, Subject("/kernel.unsigned", Facts(boot_verified=True)), subjects[0], signed=False)
    return plan, expected


@pytest.mark.boot
@pytest.mark.slow
def test_booted_kernel_decides_operations_as_the_evaluator(setting, host, test_keys, policy_agent) -> None:
    kernel, prelude, files, disks, subjects = setting
    seed = random.SystemRandom().randrange(1 << 32)
    rng = random.Random(seed)
    signer = policy_signer(test_keys, host)
    plan, expected, files = list(prelude), [], dict(files)
    for number in range(POLICIES):
        policy = random_policy(rng, number, subjects)
        files[f"p{number}"] = sign_policy(policy.to_text(), signer)
        plan.append(("activate", f"/p{number}", "tried"))
        commands, wanted = tries(number, policy, subjects, rng)
        plan += commands
        expected += wanted
    answers = policy_agent(kernel.image, plan, files, disks)
    setup = [row for row in answers.rows if row[1] in ("mkdir", "mount", "copy", "key", "dm", "fsverity", "activate") and row[3] != "0"]
    assert not setup, setup
    seen = observed(answers.audit)
    status = {row[2]: int(row[3]) for row in answers.rows if row[0] == "did"}
    wrong = []
    for row in expected:
        got = tuple((record.op, record.action, record.rule) for record in seen.get(row.tag, ()))
        hooks = {record.hook for record in seen.get(row.tag, ())}
        denied = row.expected[-1][1] == "DENY"
        told = not row.tells or (status[row.tag] == errno.EACCES) is denied
        if got != row.expected or hooks != {row.hook} or not told or row.errno not in (None, status[row.tag]):
            wrong.append((row, got, status[row.tag]))
    assert not wrong, f"seed {seed}, {len(wrong)} of {len(expected)}: {wrong[:4]}"
    assert len(expected) > 2000
    records = [record for row in expected for record in row.expected]
    decisions = {(op.value, action.value) for op in Operation for action in Action if op.value not in AT_BOOT}
    assert {(op, action) for op, action, _ in records} == decisions
    assert sum(op == "KEXEC_INITRAMFS" for op, _, _ in records) > POLICIES // 2
    learnt(answers.audit)


@pytest.fixture(scope="module")
def certificate_world(host, need, test_keys, agent_content, tmp_path_factory):
    """The agent's files with an IMA certificate that the kernel's root vouches for, and the same as an EROFS root with its hash tree."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    folder = tmp_path_factory.mktemp("certificate")
    certificate = x509.load_pem_x509_certificate(test_keys.pair("ima").certificate.read_bytes())
    plan, files = [("holds", ".ima")], {X509_PATH: certificate.public_bytes(Encoding.DER)}
    for name in ("dev", "proc", "sys"):
        (folder / "root" / name).mkdir(parents=True)
    for name, data in agent_content(plan, files).items():
        path = folder / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o755)
    image, area = folder / "root.erofs", folder / "root.verity"
    host.run([need("mkfs.erofs"), "--quiet", "--all-root", "-T0", f"-U{'0' * 8}-0000-0000-0000-{1:012d}", image, folder / "root"])
    return plan, files, folder, (image, area), format_image(image, area, VerityParameters(salt=b"\x5a" * 8), host)


CERTIFICATE_RULES = {
    "initramfs alone": (
        "op=X509_CERT dmverity_signature=TRUE action=ALLOW\nop=X509_CERT boot_verified=TRUE dmverity_signature=FALSE action=ALLOW\n"
    ),
    "root alone": ("op=X509_CERT boot_verified=TRUE action=DENY\nop=X509_CERT dmverity_roothash=sha256:{root} action=ALLOW\n"),
}
"""Rules of boot policies, by what of the two they let the certificate come from."""


@pytest.mark.boot
@pytest.mark.slow
@pytest.mark.parametrize("rules", CERTIFICATE_RULES)
def test_booting_kernel_decides_the_certificate_of_ima_as_the_evaluator(
    rules: str, certificate_world, host, test_keys, kernel_factory, policy_agent, tmp_path: Path
) -> None:
    plan, files, _, disks, tree = certificate_world
    text = "policy_name=x509 policy_version=0.0.1\nDEFAULT action=ALLOW\nDEFAULT op=X509_CERT action=DENY\n"
    text += CERTIFICATE_RULES[rules].format(root=tree.root_hash.hex())
    policy = parse(text.encode(), DEFAULT_KERNEL, Role.BOOT).policy
    assert policy is not None
    kernel = kernel_factory(KernelTrust(text.encode(), (test_keys.bundle.read_bytes(),)))
    table = dm_table(tree, "/dev/vdb", "/dev/vdc").to_dm_mod_create("root")
    line = f"{table} dm-mod.waitfor=/dev/vdb,/dev/vdc root=/dev/dm-0 rootfstype=erofs ro init=/init"
    boots = {
        "initramfs alone": (Facts(boot_verified=True), policy_agent(kernel.image, plan, files)),
        "root alone": (Facts(root_hash=Digest(b"sha256", tree.root_hash)), boot(kernel.image, tmp_path, disks, host, line)),
    }
    for origin, (facts, answers) in boots.items():
        decision = evaluate(policy, Operation.X509_CERT, facts)
        assert (decision.action is Action.ALLOW) is (origin == rules)
        records = [row for rows in observed(answers.audit).values() for row in rows if row.op == "X509_CERT"]
        assert [(row.action, row.rule, row.hook) for row in records] == [(decision.action.value, decision.audit_rule, "KERNEL_READ")], (
            origin
        )
        assert answers.did("holds") == {".ima": 0 if origin == rules else errno.ENOKEY}, origin


def learnt(audit: tuple[str, ...]) -> None:
    """The same lines, read as a log: every denial is explained, nothing allows all, and the policies' activations are told."""
    log = read_log("\n".join(audit).encode())
    assert not log.skipped
    lesson = learn(log.records, Knowledge())
    assert lesson.denials
    assert all(denial.sentence and denial.fix for denial in lesson.denials)
    assert {place_of(denial.access) for denial in lesson.denials} == set(Place) - {Place.OTHER}
    assert lesson.rules
    assert all(any(condition.value is not False for condition in rule.conditions) for rule in lesson.rules)
    assert sum("was activated" in event for event in lesson.events) == POLICIES


def observed(audit: tuple[str, ...]) -> dict[str, list[Access]]:
    """The access records by the tag that their comm is."""
    found: dict[str, list[Access]] = {}
    for line in audit:
        record = find_record(line)
        if record is not None and isinstance(record.event, Access):
            found.setdefault(record.event.comm, []).append(record.event)
    return found
