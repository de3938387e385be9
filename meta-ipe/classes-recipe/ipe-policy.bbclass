# A recipe of one policy: rendered from a template, checked as the target kernel would, signed (a device policy), deployed.
#
#   inherit ipe-policy
#   IPE_POLICY_TEMPLATE = "signed-verity"
#
# Deployed: NAME.pol (text) and, for a device policy, NAME.p7b (what the kernel loads). Packaged: NAME.p7b in IPE_POLICY_DIR.

inherit ipe-keys deploy

IPE_POLICY_ROLE ?= "device"
IPE_POLICY_ROLE[wanted] = "device|boot|reserved"
IPE_POLICY_ROLE[doc] = "device: loaded and activated at boot. boot: compiled into the kernel, not signed, not packaged. reserved: the same, with room for ipe-seal."
IPE_POLICY_TEMPLATE ?= "signed-verity"
IPE_POLICY_TEMPLATE[doc] = "A named template (`ipe-build policy render --list`) or the path of a jinja2 file; add that to SRC_URI."
IPE_POLICY_NAME ?= "${PN}"
IPE_POLICY_NAME[doc] = "policy_name. systemd's older readers want ipe-policy."
IPE_POLICY_VERSION ?= "0.0.1"
IPE_POLICY_VERSION[wanted] = "[0-9]+[.][0-9]+[.][0-9]+"
IPE_POLICY_VERSION[doc] = "policy_version A.B.C; must grow with every change, or the device refuses the update."
IPE_POLICY_VARIABLES ?= ""
IPE_POLICY_VARIABLES[doc] = "NAME=VALUE words for the template, such as allow_modules=true."
IPE_POLICY_DIR ?= "/usr/lib/ipe"
IPE_POLICY_DIR[doc] = "Folder of signed policies in the package; systemd >= 257 loads them from there."
IPE_POLICY_KERNEL_CONFIG ?= "${DEPLOY_DIR_IMAGE}/ipe-kernel-${MACHINE}.config"
IPE_POLICY_KERNEL_CONFIG[doc] = "Resolved configuration that a device policy is checked against; ipe-kernel deploys it. Empty: no such check."
IPE_POLICY_KERNEL_VERSION ?= ""
IPE_POLICY_KERNEL_VERSION[doc] = "Kernel whose rules the policy is checked by, such as 6.12. Empty: the one that IPE_POLICY_KERNEL_CONFIG is of; for a boot policy 6.12, the first."
IPE_POLICY_CHECK_ARGS ?= ""
IPE_POLICY_CHECK_ARGS[doc] = "More arguments for `ipe-build policy make`, such as --strict or --ledger FILE."

DEPENDS:append = " ${IPE_BUILD_DEPENDS}"
PACKAGE_ARCH = "${MACHINE_ARCH}"
FILES:${PN} += "${IPE_POLICY_DIR}"

do_compile[depends] += "${IPE_KEYS_TASK} ${@'virtual/kernel:do_deploy' if d.getVar('IPE_POLICY_ROLE') == 'device' and d.getVar('IPE_POLICY_KERNEL_CONFIG') else ''}"
do_compile[file-checksums] += "${@ipe_certificates(d, 'IPE_POLICY_CERT') if d.getVar('IPE_POLICY_ROLE') == 'device' else ''}"
do_compile[cleandirs] += "${B}"
do_compile () {
    if [ "${IPE_POLICY_ROLE}" = "reserved" ]; then
        ipe_build kernel reserve -o "${B}/${IPE_POLICY_NAME}.pol"
        return
    fi
    set -- --name "${IPE_POLICY_NAME}" --policy-version "${IPE_POLICY_VERSION}" --role "${IPE_POLICY_ROLE}"
    for variable in ${IPE_POLICY_VARIABLES}; do
        set -- "$@" --set "$variable"
    done
    [ -z "${IPE_POLICY_KERNEL_VERSION}" ] || set -- "$@" --kernel-version "${IPE_POLICY_KERNEL_VERSION}"
    if [ "${IPE_POLICY_ROLE}" = "device" ]; then
        ipe_need IPE_POLICY_KEY "${@ipe_key(d, 'POLICY')}"
        ipe_need_file IPE_POLICY_CERT "${IPE_POLICY_CERT}"
        set -- "$@" --key "${@ipe_key(d, 'POLICY')}" --cert "${IPE_POLICY_CERT}"
        if [ -n "${IPE_POLICY_KERNEL_CONFIG}" ]; then
            ipe_need_file IPE_POLICY_KERNEL_CONFIG "${IPE_POLICY_KERNEL_CONFIG}"
            set -- "$@" --target-config "${IPE_POLICY_KERNEL_CONFIG}"
        fi
    fi
    ipe_build policy make "${IPE_POLICY_TEMPLATE}" "$@" ${IPE_POLICY_CHECK_ARGS} -o "${B}"
}
do_compile[vardepsexclude] += "IPE_POLICY_CERT"

do_install () {
    if [ "${IPE_POLICY_ROLE}" = "device" ]; then
        install -D -m 0644 "${B}/${IPE_POLICY_NAME}.p7b" "${D}${IPE_POLICY_DIR}/${IPE_POLICY_NAME}.p7b"
    fi
}

do_deploy () {
    for file in "${B}/${IPE_POLICY_NAME}".*; do
        install -m 0644 "$file" "${DEPLOYDIR}/"
    done
}
addtask deploy after do_compile before do_build
