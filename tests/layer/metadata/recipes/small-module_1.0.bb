SUMMARY = "Kernel modules: the files of SMALL_MODULES"
LICENSE = "MIT"
inherit ipe-modules
SMALL_MODULES ??= "/nowhere"
do_install[file-checksums] = "${SMALL_MODULES}:True"
do_install[vardepsexclude] = "SMALL_MODULES"
do_install () {
	[ ! -d "${SMALL_MODULES}" ] || cp -a "${SMALL_MODULES}" "${D}/lib"
}
