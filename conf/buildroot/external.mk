################################################################################
#
# Integrity Policy Enforcement (IPE)
#
################################################################################

include $(sort $(wildcard $(BR2_EXTERNAL_IPE_PATH)/package/*/*.mk))

ifeq ($(BR2_IPE),y)

# Boot policy, certificates and the kernel configuration fragment, which
# BR2_LINUX_KERNEL_CONFIG_FRAGMENT_FILES names (see the defconfigs): made when
# ipe-build is installed and the kernel's sources are there, before it is
# configured. linux-dirclean makes them anew.
IPE_STAMP_PREPARED = $(LINUX_DIR)/.stamp_ipe_prepared

$(IPE_STAMP_PREPARED): PKG = LINUX
$(IPE_STAMP_PREPARED): | linux-patch $(if $(BR2_PACKAGE_HOST_IPE_BUILD),host-ipe-build)
	$(call prepare-per-package-directory,$(if $(BR2_PACKAGE_HOST_IPE_BUILD),host-ipe-build))
	PATH=$(BR_PATH) BR2_CONFIG="$(BR2_CONFIG)" BASE_DIR="$(BASE_DIR)" LINUX_DIR="$(LINUX_DIR)" \
		$(BR2_EXTERNAL_IPE_PATH)/board/ipe/prepare-kernel.sh
	$(Q)touch $@

$(BASE_DIR)/ipe/kernel.config: | $(IPE_STAMP_PREPARED)

endif
