"""What can be said of meta-ipe without running it: the linter of others, and the traps that BitBake does not report."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ipe_build.image.filesystem import FilesystemType
from ipe_build.image.initramfs import CAPABILITIES
from ipe_build.image.update import BOOTLOADERS
from ipe_build.integrity.hashes import HASHES as VERITY_HASHES
from ipe_build.signing.algorithms import HASHES

ROOT = Path(__file__).parents[2]
LAYER = ROOT / "meta-ipe"
SIGNATURE_DIGESTS = list(HASHES)
CLASSES = sorted((LAYER / "classes-recipe").glob("*.bbclass"))
METADATA = sorted(path for path in LAYER.rglob("*") if path.suffix in (".bb", ".bbclass", ".bbappend", ".inc", ".conf"))

# Rule to why it does not apply; everything else that oelint-adv knows is an error here.
NOT_FOR_US = {
    "oelint.bbclass.underscores": "OE-core's own classes have hyphens",
    "oelint.task.docstrings": "shell helpers are taken for tasks; the tasks have one (test_every_new_task_is_documented)",
    "oelint.task.noanonpython": "what depends on the image types can be known only then",
    "oelint.var.bbclassextend": "policies and initramfs exist for the target only",
    "oelint.var.licenseremotefile": "recipes without sources use COMMON_LICENSE_DIR",
    "oelint.var.mandatoryvar.SRC_URI": "recipes without sources",
    "oelint.var.suggestedvar.BUGTRACKER": "none",
    "oelint.var.suggestedvar.CVE_PRODUCT": "none is registered",
    "oelint.vars.duplicate": "a class read twice through two others",
    "oelint.vars.fileextrapaths": "the sources are the repository that the layer is part of",
    "oelint.vars.homepageping": "no network in tests",
    "oelint.vars.layerconf": "IPE_BUILD_SOURCE: where the layer lies",
    "oelint.vars.mispell": "IMAGE_CMD, IMAGE_TYPEDEP",
    "oelint.vars.mispell.unknown": "our own variables",
    "oelint.vars.noncoreoverride": "classes change only the recipes that inherit them",
    "oelint.vars.outofcontext": "as fileextrapaths",
    "oelint.vars.pathhardcode.libdir": "systemd reads /usr/lib/ipe whatever libdir is",
    "oelint.vars.pathhardcode.sysconfdir": "a path inside the initramfs, which ipe-init reads",
    "oelint.vars.specific": "image types and conversions are taken for overrides",
}


def test_oelint_finds_nothing() -> None:
    suppressed = [word for rule in NOT_FOR_US for word in ("--suppress", rule)]
    words = [sys.executable, "-m", "oelint_adv", "--release=latest", "--quiet", *suppressed, *map(str, METADATA)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and not re.search(r":(error|warning|info):", done.stdout + done.stderr), done.stdout + done.stderr


def test_oelint_would_find_something(tmp_path: Path) -> None:
    recipe = tmp_path / "wrong_1.0.bb"
    recipe.write_text('LICENSE = "MIT"\nA="b" \n')
    done = subprocess.run([sys.executable, "-m", "oelint_adv", "--quiet", str(recipe)], capture_output=True, text=True)
    assert done.returncode != 0


def assigned(text: str) -> set[str]:
    """The IPE_ variables that a metadata file gives a default."""
    return set(re.findall(r"^(IPE_\w+) *\?\??=", text, re.MULTILINE))


def flagged(text: str, flag: str) -> list[tuple[str, str]]:
    """The IPE_ variables with this flag, and its value."""
    return re.findall(rf'^(IPE_\w+)\[{flag}\] = "(.*)"$', text, re.MULTILINE)


def test_every_variable_is_documented_once() -> None:
    documented: list[str] = []
    defaults: set[str] = set()
    for path in METADATA:
        text = path.read_text()
        documented += [name for name, _ in flagged(text, "doc")]
        defaults |= assigned(text)
    assert len(documented) == len(set(documented)) > 60
    assert defaults == set(documented)


def test_variable_with_a_closed_set_of_values_says_so_and_its_default_is_one_of_them() -> None:
    wanted: dict[str, str] = {}
    defaults: dict[str, str] = {}
    for path in METADATA:
        text = path.read_text()
        wanted |= dict(flagged(text, "wanted"))
        defaults |= dict(re.findall(r'^(IPE_\w+) *\?\??= "([^$\n]*)"$', text, re.MULTILINE))
    assert {name for name, value in defaults.items() if value in ("0", "1")} <= wanted.keys()
    for name in wanted.keys() & defaults.keys():
        assert re.fullmatch(wanted[name], defaults[name]), name


@pytest.mark.parametrize(
    ("variable", "known"),
    [
        ("IPE_VERITY_HASH", [row.name for row in VERITY_HASHES]),
        ("IPE_UPDATE_BOOTLOADER", BOOTLOADERS),
        ("IPE_MODULE_DIGEST", SIGNATURE_DIGESTS),
        ("IPE_ROOT_FILESYSTEM", list(FilesystemType)),
        ("IPE_INITRAMFS_DROP", CAPABILITIES),
    ],
)
def test_values_that_a_variable_wants_are_those_that_ipe_build_knows(variable: str, known: Sequence[str]) -> None:
    (wanted,) = (value for path in METADATA for name, value in flagged(path.read_text(), "wanted") if name == variable)
    assert all(re.fullmatch(wanted, name) for name in known)
    assert not re.fullmatch(wanted, "md5") and not re.fullmatch(wanted, f"{known[0]}x")


def test_every_new_task_is_documented() -> None:
    for path in METADATA:
        text = path.read_text()
        for task in re.findall(r"^addtask (?:do_)?(\w+)", text, re.MULTILINE):
            if not task.endswith("_setscene") and task != "deploy":
                assert f"do_{task}[doc]" in text, (path, task)


MORE_THAN_ONE_CALL = {
    "ipe-kernel": (2, "kconfig, the recipe's own, resolves between the fragment and the check"),
    "ipe-policy": (2, "a reserved policy is no template"),
}


@pytest.mark.parametrize("path", CLASSES, ids=lambda path: path.name)
def test_class_is_thin_and_has_a_header(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    assert len(text.splitlines()) <= 80
    calls = re.findall(r"^ +(?:\[.*\] \|\| )?(?:ipe_build|\$\{IPE_BUILD_CMD\}) (?!\"\$@)", text, re.MULTILINE)
    assert len(calls) <= MORE_THAN_ONE_CALL.get(path.stem, (1, ""))[0], calls
    assert "$((" not in text, "BitBake's shell parser rejects it"
    assert not re.search(r"CONVERSIONTYPES *\+=", text), "image.bbclass's own assignment comes later and would overwrite it"
    assert "CONVERSION_DEPENDS:" not in text, "the name has an underscore"
    for function in re.findall(r"^(\w+) \(\) \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        assert "${type}" not in function[1], f"{function[0]}: ${{type}} expands in CONVERSION_CMD only"


@pytest.mark.parametrize("path", CLASSES, ids=lambda path: path.name)
def test_keys_are_in_no_hash_and_certificates_are_by_content(path: Path) -> None:
    text = path.read_text()
    if path.stem != "ipe-keys":
        assert not re.search(r"\$\{IPE_\w+_KEY\}", text), "ipe_key() says the URI, and keeps it out of the hash"
    for name, body in re.findall(r"^(\w+) \(\) \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        for purpose in set(re.findall(r"ipe_key\(d, '(\w+)'\)", body)):
            excluded = re.search(rf'^{name}\[vardepsexclude\] \+= "([^"]*)"', text, re.MULTILINE)
            assert excluded and f"IPE_{purpose}_CERT" in excluded[1].split(), name
            assert f"IPE_{purpose}_CERT" in "".join(re.findall(r"^.*ipe_certificates.*$", text, re.MULTILINE))


def test_shell_of_the_classes_names_no_key_but_through_ipe_key() -> None:
    common = (LAYER / "classes-recipe/ipe-keys.bbclass").read_text()
    assert 'ipe_key[vardepsexclude] = "IPE_SIGNING IPE_SIGNATURES"' in common
    assert sum(path.read_text().count("ipe_key(d, '") for path in CLASSES) >= 10


def test_tasks_after_the_image_go_through_sstate() -> None:
    found = 0
    for path in CLASSES:
        text = path.read_text()
        for task in re.findall(r"^addtask (ipe_\w+)", text, re.MULTILINE):
            found += 1
            assert f'SSTATETASKS += "do_{task}"\n' in text, task
            assert "${IPE_OUT}/" in text and "${DEPLOY_DIR_IMAGE}/" not in " ".join(re.findall(r"-o \S+", text)), task
    assert found >= 10


def test_bbappends_change_nothing_without_the_distro_feature() -> None:
    found = sorted(LAYER.rglob("*.bbappend"))
    assert found
    for path in found:
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        for line in lines:
            assert re.fullmatch(r"require \$\{@bb\.utils\.contains\('DISTRO_FEATURES', 'ipe', '[\w-]+\.inc', '', d\)\}", line), line


def test_recipes_for_the_device_want_the_distro_feature_and_native_ones_cannot() -> None:
    found = sorted(LAYER.rglob("*.bb"))
    assert len(found) >= 7
    for path in found:
        text = path.read_text()
        # OE-core filters DISTRO_FEATURES for native recipes: one that wants `ipe` could never be built.
        native = "BBCLASSEXTEND" in text
        assert native != bool(re.search(r"^inherit .*\bfeatures_check\b", text, re.MULTILINE)), path
        assert native != ('REQUIRED_DISTRO_FEATURES = "ipe"' in text), path


def test_layer_has_what_yocto_check_layer_reads() -> None:
    readme = (LAYER / "README.md").read_text()
    assert "maintainer" in readme.lower() and "patch" in readme.lower() and re.search(r"[^@]+@[^@]+", readme)
    assert "README" not in readme, "then yocto-check-layer looks no further"
    assert (LAYER / "SECURITY.md").stat().st_size
    assert (LAYER / "COPYING.MIT").read_text() == (ROOT / "LICENSE").read_text()
    assert "LAYERSERIES_COMPAT_meta-ipe" in (LAYER / "conf/layer.conf").read_text()


def test_package_recipe_follows_the_package() -> None:
    import hashlib

    from ipe_build import __version__

    (recipe,) = LAYER.rglob("python3-ipe-build_*.bb")
    assert recipe.stem.partition("_")[2] == __version__
    digest = hashlib.md5((ROOT / "LICENSE").read_bytes(), usedforsecurity=False).hexdigest()
    assert f"file://LICENSE;md5={digest}" in recipe.read_text()
    project = (ROOT / "pyproject.toml").read_text()
    listed = project[project.index("dependencies = [") : project.index("[project.optional")]
    wanted = re.findall(r'^  "([\w.-]+)>=[^;"]*",$', listed, re.MULTILINE)  # what has a `;` is in Python 3.14, OE-core's, itself
    assert len(wanted) >= 5
    for name in wanted:
        assert f"python3-{name.replace('.', '-').lower()}" in recipe.read_text(), name
