# What the tasks of an image recipe behind do_image_complete share. A class says
#
#   SSTATETASKS += "do_ipe_disk"
#   do_ipe_disk () { … -o "${IPE_OUT}/…" }
#   addtask ipe_disk after do_image_complete before do_build
#
# and what the task writes to IPE_OUT is deployed, and shared by sstate. A recipe whose images have no hash tree (an initramfs, say) gets none.

inherit ipe-common

# The root's image; its sidecars lie beside it.
IPE_ROOT = "${DEPLOY_DIR_IMAGE}/${IMAGE_LINK_NAME}.${IPE_ROOT_FILESYSTEM}"

def ipe_verity_types(d):
    return [one[: -len(".verity")] for one in (d.getVar("IMAGE_FSTYPES") or "").split() if one.endswith(".verity")]

python ipe_setscene () {
    sstate_setscene(d)
}

def ipe_task(d, task):
    folder = "${WORKDIR}/" + task[3:].replace("_", "-")
    d.setVar("IPE_OUT:task-" + task[3:].replace("_", "-"), folder)
    d.setVarFlag(task, "sstate-inputdirs", folder)
    d.setVarFlag(task, "sstate-outputdirs", "${DEPLOY_DIR_IMAGE}")
    d.appendVarFlag(task, "cleandirs", " " + folder)
    d.appendVarFlag(task, "depends", " ${IPE_BUILD_TASKS}")
    d.setVar(task + "_setscene", d.getVar("ipe_setscene", False))
    d.setVarFlags(task + "_setscene", d.getVarFlags("ipe_setscene"))
    bb.build.addtask(task + "_setscene", None, None, d)

python () {
    for task in [one for one in d.getVar("SSTATETASKS").split() if one.startswith("do_ipe_")]:
        if ipe_verity_types(d):
            ipe_task(d, task)
        else:
            bb.build.deltask(task, d)
}
