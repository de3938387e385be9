bbfatal () {
	echo "ERROR: $*"
	bb_message "$*"
	exit 1
}
# OE-core's bbfatal writes to the log FIFO; the message reaches the event log as text of the failing task's log.
bb_message () {
	echo "$*" >> "${TMPDIR}/fatal"
}
oe_runmake () {
	make "$@"
}
do_fetch () {
	:
}
do_unpack () {
	:
}
do_configure () {
	:
}
do_compile () {
	:
}
do_install () {
	:
}
# What packaging calls after it stripped: OE-core's package.bbclass does more before and after.
python do_package () {
    import shutil
    shutil.copytree(d.getVar("D"), d.getVar("PKGD"), dirs_exist_ok=True)
    for function in (d.getVar("PACKAGESPLITFUNCS") or "").split():
        bb.build.exec_func(function, d)
}
do_package[cleandirs] = "${PKGD}"
do_package[sstate-inputdirs] = "${PKGD}"
do_package[sstate-outputdirs] = "${TMPDIR}/packages/${PN}"
SSTATETASKS += "do_package"
python do_package_setscene () {
    sstate_setscene(d)
}
addtask do_package_setscene
do_build () {
	:
}
# Nothing to do: the run queue passes them by.
do_fetch[noexec] = "1"
do_unpack[noexec] = "1"
do_prepare_recipe_sysroot[noexec] = "1"
do_build[noexec] = "1"
do_configure[dirs] = "${B}"
do_compile[dirs] = "${B}"
do_install[dirs] = "${B}"
do_install[cleandirs] = "${D}"
addtask fetch
addtask unpack after do_fetch
addtask prepare_recipe_sysroot after do_fetch
addtask configure after do_unpack do_prepare_recipe_sysroot
addtask compile after do_configure
addtask install after do_compile
addtask package after do_install
addtask build after do_package
do_prepare_recipe_sysroot () {
	:
}
