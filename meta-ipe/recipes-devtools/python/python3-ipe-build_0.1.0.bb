SUMMARY = "Makes and proves images whose kernel runs only authorised code"
DESCRIPTION = "Hash trees, signatures, policies, kernel configuration and disk images for Integrity Policy Enforcement (IPE)."
HOMEPAGE = "https://docs.kernel.org/admin-guide/LSM/ipe.html"
SECTION = "devel/python"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://LICENSE;md5=6b6f800613034febd4971ba0404e7b54"

DEPENDS = "openssl"

# The sources are the repository that this layer is part of.
FILESEXTRAPATHS:prepend := "${IPE_BUILD_SOURCE}:"
SRC_URI = "file://ipe_build \
           file://pyproject.toml \
           file://setup.py \
           file://README.md \
           file://LICENSE"
# scarthgap has no UNPACKDIR.
S = "${@d.getVar('UNPACKDIR') or d.getVar('WORKDIR')}"

inherit python_setuptools_build_meta

# scarthgap's setuptools is 69, which neither is what pyproject.toml wants nor knows a licence by its SPDX name (PEP 639).
do_configure:prepend () {
    if [ -z "${UNPACKDIR}" ]; then
        sed -e '/^requires = /s/setuptools>=[0-9.]*/setuptools/' -e 's/^license = "MIT"$/license = { text = "MIT" }/' \
            -e '/^license-files = /d' -i "${S}/pyproject.toml"
    fi
}

RDEPENDS:${PN} += "\
    python3-asn1crypto \
    python3-core \
    python3-cryptography \
    python3-dissect-cstruct \
    python3-jinja2 \
    python3-json \
    python3-pyelftools \
"

BBCLASSEXTEND = "native nativesdk"
