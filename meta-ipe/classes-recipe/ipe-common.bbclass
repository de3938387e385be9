# What all ipe classes share: the program, what the device is, how a missing or wrong value is reported.

IPE_BUILD_CMD ?= "ipe-build"
IPE_BUILD_CMD[doc] = "The program that the ipe classes call."
IPE_BUILD_DEPENDS ?= "python3-ipe-build-native"
IPE_BUILD_DEPENDS[doc] = "Recipes that provide IPE_BUILD_CMD. Empty when it comes from the host (then add it to HOSTTOOLS)."

IPE_ROOT_FILESYSTEM ??= "erofs"
IPE_ROOT_FILESYSTEM[doc] = "Filesystem of the verity root: erofs, squashfs or ext4."
IPE_ROOT_FILESYSTEM[wanted] = "erofs|squashfs|ext4"
IPE_ARCHITECTURE ??= "${@{'x86_64': 'x86-64', 'aarch64': 'arm64'}.get(d.getVar('TARGET_ARCH'), d.getVar('TARGET_ARCH'))}"
IPE_ARCHITECTURE[doc] = "Whose discoverable-partition types: x86-64, arm64, arm, riscv64."
IPE_SEALED ??= "0"
IPE_SEALED[doc] = "1: no key anywhere. The kernel is built with a reserved boot policy, and the root hash is written into it after the image (ipe-seal). Set it for the whole build."
IPE_SEALED[wanted] = "0|1"

IPE_UPDATE_COMPATIBLE ??= "${MACHINE}"
IPE_UPDATE_COMPATIBLE[doc] = "What devices updates are for, one word: RAUC's compatible, SWUpdate's board name. Device and updates must agree."
IPE_UPDATE_COMPATIBLE[wanted] = "[A-Za-z0-9._/:+-]+"
IPE_UPDATE_BOOTLOADER ??= "efi"
IPE_UPDATE_BOOTLOADER[doc] = "What RAUC switches slots with: efi, uboot, barebox, grub or noop."
IPE_UPDATE_BOOTLOADER[wanted] = "efi|uboot|barebox|grub|noop"

# For a task's [depends]: ipe-build is in the recipe's sysroot, whatever of the tasks before it came from sstate.
IPE_BUILD_TASKS = "${@' '.join(one + ':do_populate_sysroot' for one in (d.getVar('IPE_BUILD_DEPENDS') or '').split())}"

ipe_build () {
    ${IPE_BUILD_CMD} "$@" --quiet || bbfatal "${IPE_BUILD_CMD} $1 failed; it says why above${@ipe_pending(d)}"
}

def ipe_pending(d):
    wanted = "; IPE_SIGNING is plan: a signature that it asks for goes into IPE_SIGNATURES, %s" % d.getVar("IPE_SIGNATURES")
    return wanted if d.getVar("IPE_SIGNING") == "plan" else ""
ipe_pending[vardepsexclude] = "IPE_SIGNING IPE_SIGNATURES"

# ipe_need VARIABLE VALUE: the variable must be set. Single-valued variables that are files: ipe_need_file.
ipe_need () {
    [ -n "$2" ] || bbfatal "$1 is not set; docs/yocto.md says what it is for (conf/ipe-test-keys.inc has test values)"
}

ipe_need_file () {
    ipe_need "$1" "$2"
    [ -f "$2" ] || bbfatal "$1 names '$2', which is no file"
}

# [wanted]: the regular expression that the whole value must match.
python () {
    import re
    for name in sorted(one for one in d.keys() if one.startswith("IPE_")):
        wanted = d.getVarFlag(name, "wanted")
        if wanted and not re.fullmatch(wanted, d.getVar(name) or ""):
            bb.fatal("%s is '%s'; wanted %s" % (name, d.getVar(name), wanted))
}
