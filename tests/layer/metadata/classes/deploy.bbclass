# The contract: do_deploy writes into DEPLOYDIR, sstate copies that to DEPLOY_DIR_IMAGE.
DEPLOYDIR = "${WORKDIR}/deploy-${PN}"
SSTATETASKS += "do_deploy"
do_deploy[cleandirs] = "${DEPLOYDIR}"
do_deploy[dirs] = "${B}"
do_deploy[postfuncs] += "small_deployed"
small_deployed () {
	mkdir -p "${DEPLOY_DIR_IMAGE}"
	cp -P "${DEPLOYDIR}"/* "${DEPLOY_DIR_IMAGE}/"
}
