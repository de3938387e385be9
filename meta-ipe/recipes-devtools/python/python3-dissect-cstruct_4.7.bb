SUMMARY = "Parser for C-like structures"
DESCRIPTION = "Reads C structure definitions and parses binary data with them. OE-core has no recipe for it."
HOMEPAGE = "https://docs.dissect.tools/en/latest/projects/dissect.cstruct"
SECTION = "devel/python"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=59b3beacede03efeed35c5f2b14fc186"

DEPENDS = "python3-setuptools-scm-native"

PYPI_PACKAGE = "dissect_cstruct"
SRC_URI[sha256sum] = "4bf821a381312b9b2fdefea307f7e33548158d39d7d154f1b3007472c51a1fc4"

inherit pypi python_setuptools_build_meta

BBCLASSEXTEND = "native nativesdk"
