################################################################################
#
# Integrity Policy Enforcement (IPE)
#
################################################################################

# Boot policy, certificates and kernel configuration fragment are written when
# the kernel's sources are there and before it is configured. The fragment is
# named by BR2_LINUX_KERNEL_CONFIG_FRAGMENT_FILES (see the defconfigs). No
# extension in Buildroot's sense: nothing in the kernel's sources changes.
ifeq ($(BR2_IPE),y)

ifeq ($(BR2_PACKAGE_HOST_IPE_BUILD),y)
# check-package disable TypoInPackageVariable
LINUX_PATCH_DEPENDENCIES += host-ipe-build
endif

define IPE_PREPARE_KERNEL
	PATH=$(BR_PATH) BR2_CONFIG="$(BR2_CONFIG)" BASE_DIR="$(BASE_DIR)" \
		HOST_DIR="$(HOST_DIR)" \
		$(BR2_EXTERNAL_IPE_PATH)/board/ipe/prepare-kernel.sh
endef
LINUX_POST_PATCH_HOOKS += IPE_PREPARE_KERNEL

endif
