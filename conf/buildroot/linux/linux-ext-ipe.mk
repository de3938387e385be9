################################################################################
#
# Integrity Policy Enforcement (IPE)
#
################################################################################

# No extension in Buildroot's sense, nothing in the kernel's sources changes: a
# place to name a dependency before the kernel's rules are made (the rest is in
# external.mk). It must be installed before the kernel is configured.
ifeq ($(BR2_IPE)$(BR2_PACKAGE_HOST_IPE_BUILD),yy)
# check-package disable TypoInPackageVariable
LINUX_KCONFIG_DEPENDENCIES += host-ipe-build
endif
