# With create-spdx (SPDX 3): what the tasks after the image deploy is in the image's document, and so in its SBOM, like the image itself.
#
# OE-core lists what do_image_complete made. Here its document is made after ours, out of a list with ours at its end: each task is a build,
# its files (as sstate recorded them) are the build's output, with their digests. Evidence, audit and statement are about the image, not of it.

IPE_SPDX_TASKS = "ipe_sign ipe_seal ipe_uki ipe_disk ipe_update"
SPDX_IMAGE_PURPOSE:ipe-sign ?= "evidence"
SPDX_IMAGE_PURPOSE:ipe-seal ?= "operatingSystem"
SPDX_IMAGE_PURPOSE:ipe-uki ?= "executable"
SPDX_IMAGE_PURPOSE:ipe-disk ?= "diskImage"
SPDX_IMAGE_PURPOSE:ipe-update ?= "install"

python ipe_spdx_manifest () {
    import json
    with open(d.getVar("IMAGE_OUTPUT_MANIFEST")) as file:
        manifest = json.load(file)
    folder = d.getVar("DEPLOY_DIR_IMAGE")
    for task in d.getVar("IPE_SPDX_TASKS").split():
        if d.getVarFlag("do_" + task, "task"):
            with open(d.expand("${SSTATE_MANFILEPREFIX}.") + task) as file:
                files = sorted(path for path in file.read().splitlines() if os.path.isfile(path))
            images = [{"filename": os.path.relpath(path, folder)} for path in files]
            manifest.append({"taskname": task, "imagetype": task.replace("_", "-"), "images": images})
    # For this task only: the next build must not find ours in the image's own list.
    whole = d.expand("${WORKDIR}/ipe-image-manifest.json")
    with open(whole, "w") as file:
        json.dump(manifest, file)
    d.setVar("IMAGE_OUTPUT_MANIFEST", whole)
}

python () {
    if d.getVarFlag("do_create_image_spdx", "task"):
        d.prependVarFlag("do_create_image_spdx", "prefuncs", "ipe_spdx_manifest ")
        d.appendVarFlag("do_create_image_spdx", "vardeps", " ipe_spdx_manifest")
        for task in d.getVar("IPE_SPDX_TASKS").split():
            if d.getVarFlag("do_" + task, "task"):
                bb.build.addtask("do_" + task, "do_create_image_spdx", None, d)
}
