SUMMARY = "Kernel modules: the files of SMALL_MODULES"
LICENSE = "MIT"
inherit ipe-modules
do_package[cleandirs] = "${PKGD}"
do_package () {
	cp -a "${SMALL_MODULES}" "${PKGD}/lib"
}
