# The contract of OE-core's image.bbclass that ipe-image builds on: a task do_image_TYPE for each type, made of IMAGE_CMD and of the
# CONVERSION_CMDs behind it, expanded with `type`, run in IMGDEPLOYDIR; an image that is only the way to another type is removed;
# classes of IMAGE_CLASSES come in last. What IMAGE_INSTALL names is in the root; IMAGE_OUTPUT_MANIFEST lists what the tasks made.
# mkfs takes a random UUID unless EXTRA_IMAGECMD names one.
CONVERSIONTYPES = "zst"
CONVERSION_CMD:zst = "zstd -q -f ${IMAGE_NAME}.${type}"
IMAGE_TYPES = "erofs ext4"
EXTRA_IMAGECMD = ""
IMAGE_CMD:erofs = "mkfs.erofs -T1700000000 ${EXTRA_IMAGECMD} ${IMGDEPLOYDIR}/${IMAGE_NAME}.erofs ${IMAGE_ROOTFS}"
IMAGE_CMD:ext4 = "rm -f ${IMGDEPLOYDIR}/${IMAGE_NAME}.ext4; mke2fs -q -t ext4 ${EXTRA_IMAGECMD} -E hash_seed=00000000-0000-0000-0000-000000000003 -d ${IMAGE_ROOTFS} ${IMGDEPLOYDIR}/${IMAGE_NAME}.ext4 16M"
IMAGE_BASENAME = "${PN}"
IMAGE_LINK_NAME = "${PN}-${MACHINE}"
IMAGE_VERSION_SUFFIX = "-${DATETIME}"
IMAGE_NAME = "${IMAGE_LINK_NAME}${IMAGE_VERSION_SUFFIX}"
IMAGE_ROOTFS = "${WORKDIR}/rootfs"
IMGDEPLOYDIR = "${WORKDIR}/deploy-${PN}-image-complete"
IMGMANIFESTDIR = "${WORKDIR}/image-task-manifest"
IMAGE_OUTPUT_MANIFEST_DIR = "${WORKDIR}/deploy-image-output-manifest"
IMAGE_OUTPUT_MANIFEST = "${IMAGE_OUTPUT_MANIFEST_DIR}/manifest.json"
IMAGE_INSTALL ?= ""
inherit_defer ${IMAGE_CLASSES}

SMALL_ROOTFS ??= "/nowhere"
do_rootfs[file-checksums] = "${SMALL_ROOTFS}:True"
do_rootfs[vardepsexclude] = "SMALL_ROOTFS"
do_rootfs[dirs] = "${TOPDIR} ${IMGDEPLOYDIR} ${IMGMANIFESTDIR}"
do_rootfs[depends] = "${@' '.join(one + ':do_package' for one in d.getVar('IMAGE_INSTALL').split())}"
do_rootfs () {
	rm -rf "${IMAGE_ROOTFS}"
	cp -a "${SMALL_ROOTFS}" "${IMAGE_ROOTFS}"
	for package in ${IMAGE_INSTALL}; do
		cp -a "${TMPDIR}/packages/$package/." "${IMAGE_ROOTFS}"
	done
}
addtask rootfs after do_install
do_image () {
	:
}
do_image[noexec] = "1"
addtask image after do_rootfs
do_image_complete[dirs] = "${TOPDIR} ${IMAGE_OUTPUT_MANIFEST_DIR}"
python do_image_complete () {
    import glob, json
    made = [row for path in sorted(glob.glob(d.getVar("IMGMANIFESTDIR") + "/*.json")) for row in json.load(open(path))]
    json.dump(made, open(d.getVar("IMAGE_OUTPUT_MANIFEST"), "w"))
}
do_image_complete[sstate-plaindirs] = "${IMAGE_OUTPUT_MANIFEST_DIR}"
addtask image_complete after do_image before do_build
SSTATETASKS += "do_image_complete"
SSTATE_SKIP_CREATION:task-image-complete = "1"
do_image_complete[sstate-inputdirs] = "${IMGDEPLOYDIR}"
do_image_complete[sstate-outputdirs] = "${DEPLOY_DIR_IMAGE}"
python do_image_complete_setscene () {
    sstate_setscene(d)
}
addtask do_image_complete_setscene

def small_conversions(d, name, base):
    """Returns the commands that make BASE.CONVERSION…, in order."""
    commands, kind = [], base
    for conversion in name[len(base):].split(".")[1:]:
        local = bb.data.createCopy(d)
        local.setVar("type", kind)
        local.delVar("TMPDIR")
        commands.append("\t" + local.getVar("CONVERSION_CMD:" + conversion))
        kind += "." + conversion
    return commands

python () {
    wanted, asked = {}, set()
    queue = d.getVar("IMAGE_FSTYPES").split()
    while queue:
        name = queue.pop()
        asked.add(name)
        base = name.split(".")[0]
        if name not in wanted.setdefault(base, []):
            wanted[base].append(name)
            queue += (d.getVar("IMAGE_TYPEDEP:" + base) or "").split()
    for base, names in wanted.items():
        local = bb.data.createCopy(d)
        local.setVar("OVERRIDES", base + ":" + d.getVar("OVERRIDES"))
        local.delVar("TMPDIR")  # stays unexpanded, as in OE-core: no build path in the task's hash
        commands = ["\t" + local.getVar("IMAGE_CMD"), "\tcd ${IMGDEPLOYDIR}"]
        for name in sorted(names, key=len):
            commands += [one for one in small_conversions(d, name, base) if one not in commands]
        for name in [base] + names:
            commands.append("\tln -sf ${IMAGE_NAME}.%s ${IMAGE_LINK_NAME}.%s" % (name, name))
        if base not in asked:
            commands.append("\trm ${IMAGE_NAME}.%s ${IMAGE_LINK_NAME}.%s" % (base, base))
        task = "do_image_" + base
        d.setVar(task, "\n".join(commands) + "\n")
        d.setVarFlag(task, "func", "1")
        before = ["do_image"] + ["do_image_" + dep.split(".")[0] for dep in (d.getVar("IMAGE_TYPEDEP:" + base) or "").split()]
        bb.build.addtask(task, "do_image_complete", " ".join(before), d)
}
