SUMMARY = "Test keys for trying meta-ipe out"
DESCRIPTION = "Makes a root and signing keys in IPE_TEST_KEYS_DIR, once. They are never in TMPDIR or sstate; their subjects say TEST."
HOMEPAGE = "https://docs.kernel.org/admin-guide/LSM/ipe.html"
SECTION = "base"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

inherit features_check nopackages
inherit ipe-keys

REQUIRED_DISTRO_FEATURES = "ipe"
INHIBIT_DEFAULT_DEPS = "1"
DEPENDS:append = " ${IPE_BUILD_DEPENDS}"
EXCLUDE_FROM_WORLD = "1"

python () {
    if d.getVar("IPE_ALLOW_TEST_KEYS") != "1":
        raise bb.parse.SkipRecipe("test keys are refused: IPE_ALLOW_TEST_KEYS is not 1")
}

do_create_keys[doc] = "Makes the test keys in IPE_TEST_KEYS_DIR, unless there are some"
# Not nostamp: that would taint the hash of everything that is signed, and so make the kernel again in every build.
do_create_keys () {
    if [ ! -e "${IPE_TEST_KEYS_DIR}" ]; then
        ipe_build keys create "${IPE_TEST_KEYS_DIR}" --organisation "meta-ipe" --secure-boot --attestation
    fi
}
addtask create_keys after do_prepare_recipe_sysroot before do_build
