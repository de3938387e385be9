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
do_package () {
	:
}
do_build () {
	:
}
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
