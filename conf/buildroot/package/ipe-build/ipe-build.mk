################################################################################
#
# ipe-build
#
################################################################################

IPE_BUILD_VERSION = 0.1.0
# The checkout that this tree is part of.
IPE_BUILD_SITE = $(BR2_EXTERNAL_IPE_PATH)/../..
IPE_BUILD_SITE_METHOD = local
HOST_IPE_BUILD_OVERRIDE_SRCDIR_RSYNC_EXCLUSIONS = \
	--exclude='*.so' --exclude=__pycache__ \
	--include=/ipe_build --include=/pyproject.toml --include=/setup.py \
	--include=/README.md --include=/LICENSE --exclude='/*'
IPE_BUILD_SETUP_TYPE = setuptools
IPE_BUILD_LICENSE = MIT
IPE_BUILD_LICENSE_FILES = LICENSE
# All but setuptools are run-time dependencies: Python packages, and the
# programs that make the EFI system partition and compress images.
HOST_IPE_BUILD_DEPENDENCIES = \
	host-dosfstools \
	host-mtools \
	host-openssl \
	host-pkgconf \
	host-python-asn1crypto \
	host-python-cryptography \
	host-python-dissect-cstruct \
	host-python-jinja2 \
	host-python-pyelftools \
	host-zstd

$(eval $(host-python-package))
