# The contract of OE-core's create-spdx-image-3.0 that ipe-spdx builds on: after the image, a document of the files that IMAGE_OUTPUT_MANIFEST
# lists, each read in DEPLOY_DIR_IMAGE; a purpose by image type. Here: a plain JSON list.
SPDX_IMAGE_PURPOSE ?= "filesystemImage"
SPDXIMAGEWORK = "${WORKDIR}/spdx/image-work"
python do_create_image_spdx() {
    import json
    rows = []
    with open(d.getVar("IMAGE_OUTPUT_MANIFEST")) as file:
        for task in json.load(file):
            purpose = d.getVar("SPDX_IMAGE_PURPOSE:" + task["imagetype"]) or d.getVar("SPDX_IMAGE_PURPOSE")
            for image in task["images"]:
                digest = bb.utils.sha256_file(os.path.join(d.getVar("DEPLOY_DIR_IMAGE"), image["filename"]))
                rows.append({"build": task["taskname"], "name": image["filename"], "sha256": digest, "purpose": purpose})
    with open(d.expand("${SPDXIMAGEWORK}/${PN}.image.json"), "w") as file:
        json.dump(rows, file)
}
addtask do_create_image_spdx after do_image_complete before do_build
SSTATETASKS += "do_create_image_spdx"
SSTATE_SKIP_CREATION:task-create-image-spdx = "1"
do_create_image_spdx[sstate-inputdirs] = "${SPDXIMAGEWORK}"
do_create_image_spdx[sstate-outputdirs] = "${DEPLOY_DIR}/spdx"
do_create_image_spdx[cleandirs] = "${SPDXIMAGEWORK}"
python do_create_image_spdx_setscene() {
    sstate_setscene(d)
}
addtask do_create_image_spdx_setscene
