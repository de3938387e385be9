SUMMARY = "A kernel recipe: configures the tree SMALL_KERNEL_SOURCE"
LICENSE = "MIT"
PROVIDES += "virtual/kernel"
S = "${SMALL_KERNEL_SOURCE}"
inherit deploy
do_configure () {
	oe_runmake -C "${S}" O="${B}" tinyconfig
}
do_deploy () {
	:
}
addtask deploy after do_compile before do_build
