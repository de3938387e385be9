"""A booted kernel and `verify_signature`, `verify_module`, `keys check --keyring` give the same answers."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.errors import FormatError, IpeBuildError, SignatureError
from ipe_build.formats.cms import decode_signed_data
from ipe_build.formats.module_signature import MARKER, append_signature, strip_signatures
from ipe_build.host import Host
from ipe_build.kernel.build import Kernel
from ipe_build.kernel.module_compression import unpack
from ipe_build.kernel.modules import verify_module
from ipe_build.kernel.trust import KernelTrust
from ipe_build.signing.certificate_checks import check_certificate
from ipe_build.signing.certificates import KeySet
from ipe_build.signing.loading import load_certificate, load_certificates
from ipe_build.signing.profiles import PROFILES, sign_payload
from ipe_build.signing.verify import verify_signature
from tests.fixtures.keys import NOT_BEFORE
from tests.fixtures.policy import BOOT_POLICY, packed

pytestmark = [pytest.mark.boot, pytest.mark.slow]
POLICY = b"policy_name=signed policy_version=1.0.0\nDEFAULT action=ALLOW\n"
PROFILE = PROFILES["ipe-policy"]
FLIPS = 700


class World(NamedTuple):
    """A kernel, what it trusts and what it revokes, and one signer set of each kind."""

    kernel: Kernel
    trusted: tuple[x509.Certificate, ...]
    revoked: tuple[x509.Certificate, ...]
    sets: dict[str, KeySet]


@pytest.fixture(scope="module")
def world(kernel_factory, test_keys: KeySet, foreign_keys: KeySet, revoked_keys: KeySet, curve_keys: dict[str, KeySet]) -> World:
    trusted = [test_keys, revoked_keys, *curve_keys.values()]
    revoked = tuple(load_certificate(revoked_keys.pair(role).certificate) for role in ("policy", "module"))
    bundle = b"".join(keys.bundle.read_bytes() for keys in trusted)
    kernel = kernel_factory(KernelTrust(BOOT_POLICY, (bundle,), tuple(item.public_bytes(Encoding.PEM) for item in revoked)))
    sets = {"rsa": test_keys, "foreign": foreign_keys, "revoked": revoked_keys, **curve_keys}
    return World(kernel, tuple(item for keys in trusted for item in load_certificates(keys.bundle)), revoked, sets)


def _by_openssl(host: Host, keys: KeySet, folder: Path, *flags: str | Path) -> bytes:
    (folder / "policy").write_bytes(POLICY)
    pair = keys.pair("policy")
    argv = ["openssl", "smime", "-sign", "-binary", "-outform", "der", "-signer", pair.certificate, "-inkey", pair.key, *flags]
    host.run([*argv, "-in", folder / "policy", "-out", folder / "signature"])
    return (folder / "signature").read_bytes()


def _policies(world: World, host: Host, folder: Path) -> dict[str, bytes]:
    """Signed policies by what is special about them."""
    signers = {name: keys.pair("policy").signer(host) for name, keys in world.sets.items()}
    made = {name: sign_payload(PROFILE, POLICY, signer) for name, signer in signers.items()}
    made |= {f"rsa {digest}": sign_payload(PROFILE, POLICY, signers["rsa"], digest) for digest in ("sha384", "sha512")}
    made["p256 sha512"] = sign_payload(PROFILE, POLICY, signers["p256"], "sha512")
    made["p384 sha256"] = sign_payload(PROFILE, POLICY, signers["p384"], "sha256")
    detached = PROFILES["dm-verity-root-hash"].envelope
    made["detached"] = detached.seal(POLICY, signers["rsa"], "sha256")
    made["with attributes"] = _by_openssl(host, world.sets["rsa"], folder, "-nodetach", "-nosmimecap")
    made["with S/MIME capabilities"] = _by_openssl(host, world.sets["rsa"], folder, "-nodetach")
    made["foreign with attributes"] = _by_openssl(host, world.sets["foreign"], folder, "-nodetach", "-nosmimecap")
    made["without certificate"] = _by_openssl(host, world.sets["rsa"], folder, "-nodetach", "-noattr", "-nocerts")
    made["with its root"] = _by_openssl(
        host, world.sets["rsa"], folder, "-nodetach", "-noattr", "-certfile", world.sets["rsa"].root.certificate
    )
    made["two signers"] = _two_signers(host, world, "p256", folder)
    made["one foreign of two signers"] = _two_signers(host, world, "foreign", folder)
    made["text"] = POLICY
    made["cut"] = made["rsa"][:-1]
    made["longer"] = made["rsa"] + b"\0"
    return made


def _two_signers(host: Host, world: World, other: str, folder: Path) -> bytes:
    pair = world.sets[other].pair("policy")
    return _by_openssl(host, world.sets["rsa"], folder, "-nodetach", "-noattr", "-signer", pair.certificate, "-inkey", pair.key)


def _our_answer(world: World, signed: bytes) -> str | None:
    """None when accepted, else why not."""
    try:
        content = decode_signed_data(signed).content
        verify_signature(PROFILE, content if content is not None else POLICY, signed, world.trusted, world.revoked)
    except IpeBuildError as error:
        return f"{error.errno if isinstance(error, SignatureError) else type(error).__name__}: {error.message}"
    return None


def test_kernel_and_verify_agree_on_signed_policies(world: World, policy_agent, host: Host, tmp_path: Path, need) -> None:
    need("openssl")
    made = _policies(world, host, tmp_path)
    seed = 20261122
    rng = random.Random(seed)
    for number in range(FLIPS):
        name = ("rsa", "p384", "with attributes", "two signers")[number % 4]
        flipped = bytearray(made[name])
        place = rng.randrange(len(flipped))
        flipped[place] ^= 1 << rng.randrange(8)
        made[f"{name}, byte {place} of {len(flipped)} is {flipped[place]:#x} (seed {seed})"] = bytes(flipped)
    answers = policy_agent(world.kernel.image, [("loads", "/blobs")], {"blobs": packed(list(made.values()))})
    kernel = [int(row[2]) for row in answers.rows if row[0] == "load"]
    assert len(kernel) == len(made)
    wrong = []
    for (name, signed), said in zip(made.items(), kernel, strict=True):
        ours = _our_answer(world, signed)
        # Nothing that we accept may be refused by the kernel. The other way round it may be only for a changed or longer message: the
        # kernel reads it more loosely (BER, what follows it, damaged copies of certificates that it has).
        is_made = "seed" not in name and name != "longer"
        if (ours is None and said) or (ours is not None and not said and is_made):
            wrong.append(f"{name}: the kernel says {errno.errorcode.get(said, said)}, we say {ours or 'accepted'}")
        elif ours and is_made and ours.startswith("E") and ours.split(":")[0] != errno.errorcode[said]:
            wrong.append(f"{name}: the kernel says {errno.errorcode.get(said, said)}, we say {ours}")
    assert wrong == [], "\n".join(wrong)
    accepted = {name for name, said in zip(made, kernel, strict=True) if said == 0 and "seed" not in name}
    assert accepted >= {"rsa", "rsa sha384", "rsa sha512", "p256", "p384", "with attributes", "without certificate"}
    assert accepted.isdisjoint({"foreign", "revoked", "detached", "text", "cut", "foreign with attributes", "with S/MIME capabilities"})


def _modules(world: World, host: Host, payload: bytes) -> dict[str, bytes]:
    """One module in many states."""
    profile = PROFILES["module"]

    def signed(name: str, digest: str | None = None) -> bytes:
        return append_signature(payload, sign_payload(profile, payload, world.sets[name].pair("module").signer(host), digest))

    made = {name: signed(name) for name in world.sets}
    made["rsa sha512"] = signed("rsa", "sha512")
    made["unsigned"] = payload
    made["empty signature"] = payload + bytes([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0]) + MARKER
    made["garbage signature"] = append_signature(payload, b"garbage")
    made["signature longer than the file"] = payload + bytes([0, 0, 2, 0, 0, 0, 0, 0, 0x7F, 0, 0, 0]) + MARKER
    made["other kind of signature"] = made["rsa"][:-38] + b"\1" + made["rsa"][-37:]
    made["non-zero padding"] = made["rsa"][:-36] + b"\1" + made["rsa"][-35:]
    made["signed twice, ours last"] = append_signature(made["foreign"], _sign(world, host, made["foreign"], "rsa"))
    made["signed twice, foreign last"] = append_signature(made["rsa"], _sign(world, host, made["rsa"], "foreign"))
    made["changed"] = bytes([*made["rsa"][:5000], made["rsa"][5000] ^ 1, *made["rsa"][5001:]])
    made["signature changed"] = made["rsa"][:-60] + bytes([made["rsa"][-60] ^ 1]) + made["rsa"][-59:]
    made["cut"] = made["rsa"][:-1]
    return made


def _sign(world: World, host: Host, payload: bytes, name: str) -> bytes:
    return sign_payload(PROFILES["module"], payload, world.sets[name].pair("module").signer(host))


def test_kernel_and_verify_agree_on_modules(world: World, policy_agent, host: Host, tmp_path: Path) -> None:
    assert world.kernel.modules, "the tests' kernel has modules"
    source = min(world.kernel.modules, key=lambda path: path.stat().st_size)
    made = _modules(world, host, strip_signatures(unpack(source.read_bytes(), str(source))[0]))
    plan = [("finit", name.replace(" ", "-")[:15] + str(number), f"/m{number}") for number, name in enumerate(made)]
    files = {f"m{number}": data for number, data in enumerate(made.values())}
    said = policy_agent(world.kernel.image, plan, files).did("finit")
    wrong = {}
    for (name, data), (_, tag, _) in zip(made.items(), plan, strict=True):
        (tmp_path / "m.ko").write_bytes(data)
        verdict = verify_module(tmp_path / "m.ko", world.trusted, revoked=world.revoked)
        # A second module of one name is EEXIST, and one whose dependency is missing ENOENT: both come after the signature was accepted.
        kernel = "" if said[tag] in (0, errno.EEXIST, errno.ENOENT) else errno.errorcode[said[tag]]
        if kernel != verdict.errno:
            wrong[name] = (kernel, verdict.errno, verdict.reason)
    assert wrong == {}


@pytest.mark.parametrize("keyring", [".ima", ".secondary_trusted_keys"])
def test_kernel_and_check_agree_on_certificates_for_a_keyring(keyring: str, world: World, policy_agent) -> None:
    made = {f"{name} {role}": world.sets[name].pair(role).certificate for name in ("rsa", "foreign", "p384") for role in ("ima", "policy")}
    made |= {f"{name} root": world.sets[name].root.certificate for name in ("rsa", "foreign")}
    ders = {name: load_certificate(path).public_bytes(Encoding.DER) for name, path in made.items()}
    plan = [("key", "asymmetric", name.replace(" ", "-"), f"/{number}", keyring) for number, name in enumerate(made)]
    answers = policy_agent(world.kernel.image, plan, {str(number): der for number, der in enumerate(ders.values())})
    said = [int(row[3]) for row in answers.rows if row[0] == "did" and row[1] == "key"]
    if errno.ENOENT in said:
        pytest.skip(f"the tests' kernel has no keyring {keyring}")
    ours = {}
    for name, path in made.items():
        found = check_certificate(load_certificate(path), at=NOT_BEFORE, bundle=world.trusted, keyring=keyring)
        ours[name] = not any(finding.rule == "kept-out-of-keyring" for finding in found)
    assert {name: code == 0 for name, code in zip(made, said, strict=True)} == ours
    assert set(ours.values()) == {True, False}


def test_garbage_is_refused_by_both_without_a_crash(world: World, policy_agent, host: Host, tmp_path: Path) -> None:
    rng = random.Random(7)
    whole = sign_payload(PROFILE, POLICY, world.sets["rsa"].pair("policy").signer(host))
    blobs = [rng.randbytes(rng.randrange(1, 200)) for _ in range(60)] + [whole[: rng.randrange(1, len(whole))] for _ in range(60)]
    answers = policy_agent(world.kernel.image, [("loads", "/blobs")], {"blobs": packed(blobs)})
    assert all(int(row[2]) != 0 for row in answers.rows if row[0] == "load")
    for blob in blobs:
        with pytest.raises(FormatError):
            decode_signed_data(blob)
