SUMMARY = "A kernel recipe: configures the tree SMALL_KERNEL_SOURCE; the compiled kernel is SMALL_KERNEL, when there is one"
LICENSE = "MIT"
PROVIDES += "virtual/kernel"
S = "${SMALL_KERNEL_SOURCE}"
SMALL_KERNEL_SOURCE ??= "/nowhere"
SMALL_KERNEL_SOURCE[vardepvalue] = ""
SMALL_KERNEL ??= ""
inherit deploy
do_configure () {
	oe_runmake -C "${S}" O="${B}" tinyconfig
}
do_compile[file-checksums] = "${SMALL_KERNEL}:True"
do_compile[vardepsexclude] = "SMALL_KERNEL"
do_compile () {
	[ -z "${SMALL_KERNEL}" ] || cp "${SMALL_KERNEL}" "${B}/bzImage"
}
do_deploy () {
	[ ! -e "${B}/bzImage" ] || install -m 0644 "${B}/bzImage" "${DEPLOYDIR}/bzImage"
}
addtask deploy after do_compile before do_build
