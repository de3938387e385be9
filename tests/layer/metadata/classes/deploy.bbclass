# The contract: do_deploy writes into DEPLOYDIR, sstate copies that to DEPLOY_DIR_IMAGE.
DEPLOYDIR = "${WORKDIR}/deploy-${PN}"
SSTATETASKS += "do_deploy"
do_deploy[sstate-inputdirs] = "${DEPLOYDIR}"
do_deploy[sstate-outputdirs] = "${DEPLOY_DIR_IMAGE}"
do_deploy[dirs] = "${B}"
do_deploy[cleandirs] = "${DEPLOYDIR}"
python do_deploy_setscene () {
    sstate_setscene(d)
}
addtask do_deploy_setscene
