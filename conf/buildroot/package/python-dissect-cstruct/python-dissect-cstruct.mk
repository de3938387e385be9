################################################################################
#
# python-dissect-cstruct
#
################################################################################

# 4.7
PYTHON_DISSECT_CSTRUCT_VERSION = 194b1b556c1474b501d9e120d4750d404786056b
PYTHON_DISSECT_CSTRUCT_SITE = https://github.com/fox-it/dissect.cstruct
PYTHON_DISSECT_CSTRUCT_SITE_METHOD = git
PYTHON_DISSECT_CSTRUCT_SETUP_TYPE = setuptools
PYTHON_DISSECT_CSTRUCT_LICENSE = Apache-2.0
PYTHON_DISSECT_CSTRUCT_LICENSE_FILES = LICENSE
HOST_PYTHON_DISSECT_CSTRUCT_DEPENDENCIES = host-python-setuptools-scm
# There is no repository to read the version from.
HOST_PYTHON_DISSECT_CSTRUCT_ENV = SETUPTOOLS_SCM_PRETEND_VERSION=4.7

$(eval $(host-python-package))
