"""Signed images read back by other people's tools: evmctl, debugfs, unsquashfs, and the attributes byte for byte as evmctl writes them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from ipe_build.cli import main
from ipe_build.errors import FormatError, InputError, SigningKeyError
from ipe_build.formats.filesystem import FilesystemKind
from ipe_build.formats.ima_xattr import SECURITY_EVM, SECURITY_IMA, IntegrityKind, parse_integrity_xattr
from ipe_build.image.contents import kind_of_image, list_image, read_image
from ipe_build.image.filesystem import FilesystemRequest, FilesystemType, make_filesystem
from ipe_build.image.ima import ImaFiles, ImaRequest, ImaVerdict, sign_rootfs, verify_rootfs
from ipe_build.image.rootfs import Entry, Rootfs, read_folder, sorted_rootfs
from ipe_build.policy.ima_policy import render_ima_policy
from ipe_build.signing.ima import evm_payload
from ipe_build.signing.loading import load_certificate
from ipe_build.signing.profiles import PROFILES
from ipe_build.signing.verify import verify_signature

CAPS = bytes.fromhex("0100000200100000000000000000000000000000")
KINDS = ("folder", "tar", "ext4", "erofs", "erofs-lz4", "squashfs")


@pytest.fixture(scope="module")
def sources(host, need, tmp_path_factory) -> dict[str, Path]:
    """One root filesystem in every form, with all that can go wrong: devices, links, owners, odd names, an empty and a large file."""
    for tool in ("mkfs.erofs", "mksquashfs", "mke2fs", "fakeroot", "tar"):
        need(tool)
    folder = tmp_path_factory.mktemp("sources")
    root = folder / "folder"
    for name in ("bin", "etc", "lib/firmware", "dev"):
        (root / name).mkdir(parents=True)
    (root / "bin/app").write_bytes(b"\x7fELF" + bytes(12) + b"\x02\x00" + bytes(300_000))
    (root / "bin/app").chmod(0o755)
    os.link(root / "bin/app", root / "bin/linked")
    (root / "bin/script").write_text("#!/bin/app\n")
    (root / "bin/script").chmod(0o755)
    (root / "bin/link").symlink_to("app")
    (root / "bin/long").symlink_to("x" * 100)
    (root / "etc/empty").touch()
    (root / 'etc/odd "name" <2> ü').write_text("odd\n")
    (root / "etc/shadow").write_text("secret\n")
    (root / "etc/shadow").chmod(0o600)
    (root / "lib/firmware/f.bin").write_bytes(os.urandom(5000))
    for number in range(70):
        (root / f"etc/file-{number}").write_text(f"{number}\n")
    os.mkfifo(root / "dev/fifo")
    more = (
        Entry.character_device("dev/null", 1, 3, mode=0o666),
        replace(
            Entry.file("bin/ping", b"\x7fELF" + bytes(12) + b"\x02\x00" + bytes(200), mode=0o755, uid=1000, gid=70000),
            xattrs=(("security.capability", CAPS),),
        ),
    )
    found = {"folder": root}
    for kind, compression in (("ext4", ""), ("erofs", "none"), ("erofs-lz4", "lz4"), ("squashfs", "xz")):
        request = FilesystemRequest(root, UUID(int=7), FilesystemType(kind.split("-")[0]), compression, additions=more)
        found[kind] = make_filesystem(request, folder / f"{kind}.img", host).path
    with tarfile.open(folder / "root.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(root, ".")
        null = tarfile.TarInfo("dev/null")
        null.type, null.devmajor, null.devminor, null.mode = tarfile.CHRTYPE, 1, 3, 0o666
        tar.addfile(null)
    return found | {"tar": folder / "root.tar"}


def entries_of(source: Path, host, folder: Path) -> dict[str, Entry]:
    """The entries of an image, without what mke2fs makes."""
    return {entry.path: entry for entry in read_image(source, folder, host).entries if entry.path != "lost+found"}


def plain(entry: Entry) -> tuple[object, ...]:
    """All of an entry but its integrity attributes and where its content lies."""
    kept = tuple(row for row in sorted(entry.xattrs) if row[0] not in (SECURITY_IMA, SECURITY_EVM))
    return entry.mode, entry.uid, entry.gid, entry.target, entry.rdev, entry.hardlink, entry.size_bytes, kept


def content_of(entry: Entry) -> bytes:
    if isinstance(entry.content, bytes):
        return entry.content
    if isinstance(entry.content, Path):
        return entry.content.read_bytes()
    with tarfile.TarFile(entry.content.archive) as tar:
        source = tar.extractfile(entry.content.member)
        assert source is not None
        return source.read()


@pytest.mark.parametrize("evm", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_file_of_every_kind_of_source_is_signed_and_nothing_else_changes(
    kind: str, evm: bool, sources: dict[str, Path], test_keys, host, tmp_path: Path, capsys
) -> None:
    pair, source, out = test_keys.pair("ima"), sources[kind], tmp_path / "out.img"
    words = ["ima", "sign", str(source), "-o", str(out), "--key", pair.uri, "--cert", str(pair.certificate), "--json"]
    assert main([*words, *(["--evm"] if evm else [])]) == 0
    said = json.loads(capsys.readouterr().out)
    after = entries_of(out, host, tmp_path / "after")
    files = [entry for entry in after.values() if entry.is_file and not entry.hardlink]
    assert said["signed"] == len(files) > 70
    certificate = [load_certificate(pair.certificate)]
    for entry in files:
        xattrs = dict(entry.xattrs)
        verify_signature(PROFILES["ima-file"], content_of(entry), xattrs[SECURITY_IMA], certificate)
        assert (SECURITY_EVM in xattrs) == evm
        if evm:
            protected = {name: value for name, value in xattrs.items() if name != SECURITY_EVM}
            payload = evm_payload(protected, uid=entry.uid, gid=entry.gid, mode=entry.mode)
            verify_signature(PROFILES["evm-portable"], payload, xattrs[SECURITY_EVM], certificate)
    assert not any(SECURITY_IMA in dict(entry.xattrs) for entry in after.values() if not entry.is_file)
    if kind not in ("folder", "tar"):
        before = entries_of(source, host, tmp_path / "before")
        assert {path: plain(entry) for path, entry in after.items()} == {path: plain(entry) for path, entry in before.items()}
        assert all(content_of(after[path]) == content_of(entry) for path, entry in before.items() if entry.is_file and not entry.hardlink)
        assert kind_of_image(out) is kind_of_image(source)
    words = ["ima", "verify", str(out), "--trusted", str(pair.certificate)]
    assert main([*words, *(["--evm-trusted", str(pair.certificate)])]) == (0 if evm else 1)
    capsys.readouterr()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_source_signed_twice_gives_the_same_image(kind: str, sources, test_keys, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    pair = test_keys.pair("ima")
    for name, jobs in (("one", "1"), ("two", "2")):
        words = ["ima", "sign", str(sources[kind]), "-o", str(tmp_path / name), "--key", pair.uri, "--cert", str(pair.certificate)]
        assert main([*words, "--evm", "--jobs", jobs]) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    capsys.readouterr()


@pytest.fixture
def signed(sources, test_keys, tmp_path, capsys):
    """`signed("erofs")`: that source signed, with EVM."""

    def make(kind: str, *words: str) -> Path:
        out, pair = tmp_path / f"{kind}.signed", test_keys.pair("ima")
        assert main(["ima", "sign", str(sources[kind]), "-o", str(out), "--key", pair.uri, "--cert", str(pair.certificate), *words]) == 0
        capsys.readouterr()
        return out

    return make


def test_evmctl_verifies_an_extracted_copy_and_makes_the_same_attribute(signed, test_keys, host, need, tmp_path: Path) -> None:
    need("evmctl")
    pair, der = test_keys.pair("ima"), tmp_path / "certificate.der"
    host.run(["openssl", "x509", "-in", pair.certificate, "-outform", "der", "-out", der])
    entries = entries_of(signed("erofs"), host, tmp_path / "extracted")
    for path in ("bin/app", "etc/empty", 'etc/odd "name" <2> ü', "lib/firmware/f.bin"):
        entry = entries[path]
        copy = tmp_path / "copy"
        copy.write_bytes(content_of(entry))
        copy.with_name("copy.sig").write_bytes(dict(entry.xattrs)[SECURITY_IMA])
        host.run(["evmctl", "ima_verify", "--sigfile", "--key", der, copy])
        copy.with_name("copy.sig").unlink()
        host.run(["evmctl", "ima_sign", "--sigfile", "-a", "sha256", "--keyid-from-cert", pair.certificate, "--key", pair.key, copy])
        assert copy.with_name("copy.sig").read_bytes() == dict(entry.xattrs)[SECURITY_IMA]
        copy.write_bytes(content_of(entry) + b"x")
        with pytest.raises(Exception, match="evmctl ended with status"):
            host.run(["evmctl", "ima_verify", "--sigfile", "--key", der, copy])


def test_debugfs_reads_the_same_attributes_from_the_ext4_image(signed, host, need, tmp_path: Path) -> None:
    need("debugfs")
    image = signed("ext4", "--evm")
    host.run(["e2fsck", "-f", "-n", image])
    for row in list_image(image, host):
        if row.path in ("bin/app", "etc/empty", "bin/ping"):
            for name, value in row.xattrs:
                host.run(["debugfs", "-R", f"ea_get -f {tmp_path / 'value'} <{row.number}> {name}", image])
                assert (tmp_path / "value").read_bytes() == value


def test_unsquashfs_lists_the_attributes(signed, host, need, tmp_path: Path) -> None:
    """Under fakeroot, where security.* can be set: what getfattr's system call then gives are our bytes."""
    need("unsquashfs")
    image = signed("squashfs")
    wanted = dict({row.path: row for row in list_image(image, host)}["bin/app"].xattrs)[SECURITY_IMA]
    script = (
        "import os,subprocess,sys;"
        "subprocess.run(['unsquashfs','-no-progress','-xattrs','-d',sys.argv[2],sys.argv[1]],check=True,stdout=2);"
        "sys.stdout.write(os.getxattr(sys.argv[2]+'/bin/app','security.ima').hex())"
    )
    done = subprocess.run(
        ["fakeroot", "--", sys.executable, "-c", script, image, tmp_path / "x"], capture_output=True, check=True, text=True
    )
    assert done.stdout == wanted.hex()


@pytest.mark.parametrize("kind", KINDS)
def test_signing_needs_no_privilege(kind: str, sources, test_keys, need, tmp_path: Path) -> None:
    """The whole verb in a process without a single capability gives the image that it gives to root."""
    setpriv = need("setpriv")
    pair = test_keys.pair("ima")
    base = [sys.executable, "-m", "ipe_build", "ima", "sign", sources[kind], "--key", pair.uri, "--cert", pair.certificate, "--evm"]
    env = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    bare = [setpriv, "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    status = subprocess.run([*bare, "cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    assert "CapEff:\t0000000000000000" in status
    for prefix, name in (([], "root"), (bare, "nobody")):
        done = subprocess.run([*map(str, [*prefix, *base, "-o", tmp_path / name])], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "root").read_bytes() == (tmp_path / "nobody").read_bytes()


def test_flipped_bit_in_the_image_is_found_by_verify(signed, test_keys, host, tmp_path: Path, capsys) -> None:
    image = signed("erofs", "--evm")
    data = bytearray(image.read_bytes())
    data[data.index(b"secret\n")] ^= 1
    image.write_bytes(data)
    certificate = str(test_keys.pair("ima").certificate)
    assert main(["ima", "verify", str(image), "--trusted", certificate, "--evm-trusted", certificate, "--json"]) == 1
    rows = [row for row in json.loads(capsys.readouterr().out)["files"] if row["verdict"] != "signed"]
    assert [(row["path"], row["verdict"]) for row in rows] == [("/etc/shadow", "wrong")]
    assert "not over this payload" in rows[0]["reason"]


def test_foreign_certificate_does_not_vouch(signed, foreign_keys, capsys) -> None:
    assert main(["ima", "verify", str(signed("erofs")), "--trusted", str(foreign_keys.pair("ima").certificate), "--json"]) == 1
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert counts["signed"] == counts["unsigned"] == 0 and counts["wrong"] > 70


def test_files_code_signs_what_the_kernel_runs_or_loads_and_nothing_else(signed, host, tmp_path: Path) -> None:
    entries = entries_of(signed("erofs", "--files", "code"), host, tmp_path / "x")
    assert {path for path, entry in entries.items() if SECURITY_IMA in dict(entry.xattrs)} == {
        "bin/app",
        "bin/ping",
        "bin/script",
        "lib/firmware/f.bin",
    }


def test_policy_is_put_into_the_image_and_signed(signed, host, tmp_path: Path) -> None:
    entries = entries_of(signed("folder", "--policy", "code"), host, tmp_path / "x")
    policy = entries["etc/ima/ima-policy"]
    assert content_of(policy) == render_ima_policy("code") and SECURITY_IMA in dict(policy.xattrs)
    assert stat.S_IMODE(policy.mode) == 0o644


def test_signed_anew_replaces_both_attributes(test_keys, foreign_keys, host) -> None:
    rootfs = Rootfs((Entry.folder(""), Entry.file("app", b"x")))
    theirs, ours = (keys.pair("ima") for keys in (foreign_keys, test_keys))
    once = sign_rootfs(rootfs, ImaRequest(theirs.signer(host), evm=theirs.signer(host)), host)
    again = sign_rootfs(once, ImaRequest(ours.signer(host)), host)
    assert [name for name, _ in again.entries[1].xattrs] == [SECURITY_IMA]
    assert verify_rootfs(again, [load_certificate(ours.certificate)])[0].verdict is ImaVerdict.SIGNED


def test_hash_and_missing_evm_are_unsigned_and_an_hmac_is_wrong(test_keys, host) -> None:
    pair = test_keys.pair("ima")
    certificate = [load_certificate(pair.certificate)]
    whole = sign_rootfs(Rootfs((Entry.folder(""), Entry.file("app", b"x"))), ImaRequest(pair.signer(host), evm=pair.signer(host)), host)
    ima = dict(whole.entries[1].xattrs)[SECURITY_IMA]
    cases = {
        ((SECURITY_IMA, b"\x04\x04" + bytes(32)),): (ImaVerdict.UNSIGNED, ()),
        ((SECURITY_IMA, ima),): (ImaVerdict.UNSIGNED, certificate),
        ((SECURITY_IMA, ima), (SECURITY_EVM, b"\x02" + bytes(20))): (ImaVerdict.WRONG, certificate),
        ((SECURITY_IMA, ima[:-1]),): (ImaVerdict.WRONG, ()),
        whole.entries[1].xattrs: (ImaVerdict.SIGNED, certificate),
    }
    for xattrs, (verdict, evm) in cases.items():
        found = verify_rootfs(Rootfs((Entry.folder(""), replace(whole.entries[1], xattrs=xattrs))), certificate, evm)
        assert found[0].verdict is verdict, (xattrs, found)


def test_nothing_to_sign_and_unknown_sources_are_errors(tmp_path: Path, test_keys, host) -> None:
    pair = test_keys.pair("ima")
    with pytest.raises(InputError, match=r"holds no file to sign\n.*of its files, `code` chose none"):
        sign_rootfs(Rootfs((Entry.folder(""), Entry.file("a", b"text"))), ImaRequest(pair.signer(host), ImaFiles.CODE), host)
    (tmp_path / "junk").write_bytes(b"junk" * 1000)
    for words in (["sign", str(tmp_path / "junk"), "-o", str(tmp_path / "o"), "--key", pair.uri, "--cert", str(pair.certificate)],):
        assert main(["ima", *words]) == 2
    assert main(["ima", "verify", str(tmp_path / "absent"), "--trusted", str(pair.certificate)]) == 2
    assert not (tmp_path / "o").exists()
    with pytest.raises(InputError, match="no EROFS, ext4 or SquashFS"):
        list_image(tmp_path / "junk", host)


def test_image_cut_short_is_an_error_and_leaves_nothing(sources, test_keys, tmp_path: Path, capsys) -> None:
    pair = test_keys.pair("ima")
    for kind in ("erofs", "ext4", "squashfs"):
        cut = tmp_path / f"{kind}.cut"
        whole = sources[kind].read_bytes()
        cut.write_bytes(whole[: len(whole) // 3])
        words = ["ima", "sign", str(cut), "-o", str(tmp_path / "out"), "--key", pair.uri, "--cert", str(pair.certificate)]
        assert main(words) == 2, kind
        assert not (tmp_path / "out").exists()
        assert "error: " in capsys.readouterr().err


def test_ext4_image_that_was_not_unmounted_is_refused(sources, host, tmp_path: Path) -> None:
    data = bytearray(sources["ext4"].read_bytes())
    data[1024 + 96] |= 4
    (tmp_path / "dirty").write_bytes(data)
    with pytest.raises(InputError, match="journal must be replayed"):
        list_image(tmp_path / "dirty", host)


def test_ima_takes_no_mldsa_key(host, tmp_path_factory, tmp_path) -> None:
    from ipe_build.signing.certificates import IMA_ROLE, create_keys
    from tests.fixtures.keys import NOT_BEFORE

    keys = create_keys(tmp_path / "k", host, not_before=NOT_BEFORE, lifetime_days=9, key_type="mldsa65", roles=(IMA_ROLE,))
    with pytest.raises(SigningKeyError, match="take no ml-dsa"):
        sign_rootfs(Rootfs((Entry.folder(""), Entry.file("a", b"x"))), ImaRequest(keys.pair("ima").signer(host)), host)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        (SECURITY_IMA, b"\x01" + bytes(20), IntegrityKind.SHORT_HASH),
        (SECURITY_IMA, b"\x04\x04" + bytes(32), IntegrityKind.HASH),
        (SECURITY_IMA, b"\x04\x06" + bytes(64), IntegrityKind.HASH),
        (SECURITY_IMA, b"\x03\x02\x04" + b"\1\2\3\4" + b"\0\5" + b"abcde", IntegrityKind.SIGNATURE),
        (SECURITY_IMA, b"\x06\x03\x04" + b"\1\2\3\4" + b"\0\5" + b"abcde", IntegrityKind.VERITY_SIGNATURE),
        (SECURITY_EVM, b"\x02" + bytes(20), IntegrityKind.HMAC),
        (SECURITY_EVM, b"\x05\x02\x06" + b"\1\2\3\4" + b"\0\5" + b"abcde", IntegrityKind.PORTABLE_SIGNATURE),
    ],
)
def test_every_kind_of_value_is_told_apart_and_a_shorter_one_is_an_error(name: str, value: bytes, kind: IntegrityKind) -> None:
    found = parse_integrity_xattr(name, value)
    assert found.kind is kind
    assert found.is_signed == (kind in (IntegrityKind.SIGNATURE, IntegrityKind.VERITY_SIGNATURE, IntegrityKind.PORTABLE_SIGNATURE))
    assert not found.is_signed or (found.key_id, found.signature) == (b"\1\2\3\4", b"abcde")
    for bad in (value[:-1], value + b"x", b"\x09" + value[1:], b""):
        with pytest.raises(FormatError):
            parse_integrity_xattr(name, bad)


def test_reader_and_folder_agree(sources, host, tmp_path: Path) -> None:
    """What is read out of an EROFS image is what the folder said that it was made of."""
    folder = {entry.path: entry for entry in sorted_rootfs(read_folder(sources["folder"]).entries).entries}
    image = entries_of(sources["erofs"], host, tmp_path / "x")
    assert {path: plain(entry) for path, entry in folder.items()} == {path: plain(image[path]) for path in folder}
    assert set(image) - set(folder) == {"dev/null", "bin/ping"}
    assert (
        image["dev/null"].rdev == (1, 3)
        and image["bin/ping"].uid == 1000
        and dict(image["bin/ping"].xattrs) == {"security.capability": CAPS}
    )
    assert kind_of_image(sources["tar"]) is None and kind_of_image(sources["squashfs"]) is FilesystemKind.SQUASHFS
