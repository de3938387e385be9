"""Which patches may wait for the link, what they touch, and that the tree they are for stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipe_build.errors import InputError
from ipe_build.kernel.patches import are_late, patched_tree, patches_digest, touched
from ipe_build.kernel.source import SourceTree
from ipe_build.policy.versions import KernelVersion

SHIPPED = Path(__file__).parents[2] / "meta-ipe/recipes-kernel/linux/files"


def diff(path: str, old: str = "old", new: str = "new") -> str:
    return f"--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-{old}\n+{new}\n"


def patch_file(folder: Path, text: str, name: str = "one.patch") -> Path:
    (folder / name).write_text(f"Subject: why\n---\n{text}")
    return folder / name


@pytest.mark.parametrize(
    ("text", "late"),
    [
        (diff("security/ipe/fs.c"), True),
        (diff("security/ipe/fs.c") + diff("security/ipe/eval.h"), True),
        (diff("security/ipe/Kconfig"), False),
        (diff("security/ipe/Makefile"), False),
        (diff("security/ipe/fs.c") + diff("kernel/fork.c"), False),
        ("--- /dev/null\n+++ b/security/ipe/more.c\n@@ -0,0 +1 @@\n+new\n", False),
        ("--- a/security/ipe/fs.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-old\n", False),
    ],
)
def test_only_changes_of_ipes_own_code_wait_for_the_link(tmp_path: Path, text: str, late: bool) -> None:
    assert are_late((patch_file(tmp_path, text),)) is late


def test_the_shipped_patches_wait_for_the_link() -> None:
    names = ("ipe-policy-by-path.patch", "ipe-policy-digest-6.12.patch", "ipe-policy-digest-6.18.patch")
    assert {path.name for path in SHIPPED.glob("ipe-policy-*.patch")} == set(names)
    for name in names:
        assert are_late((SHIPPED / name,)), name
        assert "Upstream-Status: " in (SHIPPED / name).read_text()
        assert "Signed-off-by: " in (SHIPPED / name).read_text()


@pytest.mark.parametrize("text", ["", "no diff at all\n", diff("../../etc/passwd")])
def test_what_is_no_patch_of_the_tree_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError):
        touched((patch_file(tmp_path, text),))


def test_the_order_of_patches_counts(tmp_path: Path) -> None:
    one, two = patch_file(tmp_path, diff("a.c"), "1.patch"), patch_file(tmp_path, diff("b.c"), "2.patch")
    assert patches_digest((one, two)) != patches_digest((two, one))
    assert patches_digest(()) == ""


def test_the_original_stays_as_it_was_and_what_does_not_apply_is_said(host, need, tmp_path: Path) -> None:
    need("patch")
    tree = tmp_path / "linux"
    (tree / "security/ipe").mkdir(parents=True)
    (tree / "security/ipe/fs.c").write_text("old\n")
    (tree / "other.c").write_text("other\n")
    source = SourceTree(tree, f"test {tmp_path}", KernelVersion(6, 12, 0))
    patched = patched_tree(source, (patch_file(tmp_path, diff("security/ipe/fs.c")),), host)
    assert (patched.folder / "security/ipe/fs.c").read_text() == "new\n"
    assert (patched.folder / "other.c").read_text() == "other\n"
    assert (tree / "security/ipe/fs.c").read_text() == "old\n"
    assert patched.digest != source.digest
    with pytest.raises(InputError, match="does not apply"):
        patched_tree(source, (patch_file(tmp_path, diff("security/ipe/fs.c", old="something else")),), host)
