# Image recipes (IMAGE_CLASSES += "ipe-update-policy"): the signed policies of an update, for devices whose policy names root hashes: the old
# one and this image's while both may start, then this image's alone. docs/updates.md says when which is installed.
#
# The ledger is a file of yours (`ipe-build policy record --begin` makes it of the policies that are out). The one that is deployed has this
# update's versions too; it takes its place when the update goes out.

inherit ipe-task ipe-keys

IPE_UPDATE_OLD_ROOTHASH ??= ""
IPE_UPDATE_OLD_ROOTHASH[doc] = "Root hashes of the images that devices run now: .roothash files, or ALG:HEX, with spaces between."
IPE_UPDATE_LEDGER ??= ""
IPE_UPDATE_LEDGER[doc] = "Ledger (JSON) of the policy versions that went out: a device takes higher ones only."
IPE_UPDATE_POLICY_NAME ??= "ipe-policy"
IPE_UPDATE_POLICY_NAME[doc] = "policy_name of the policy that the update replaces."
IPE_UPDATE_POLICY_TEMPLATE ??= "pinned-roothash"
IPE_UPDATE_POLICY_TEMPLATE[doc] = "Built-in profile, or a jinja2 file, that uses root_hashes."

SSTATETASKS += "do_ipe_update_policy"
do_ipe_update_policy[doc] = "Makes the policies that are in force while an update is in flight, and after it"
do_ipe_update_policy[depends] += "${IPE_KEYS_TASK}"
do_ipe_update_policy[file-checksums] += "${@ipe_certificates(d, 'IPE_POLICY_CERT', 'IPE_UPDATE_LEDGER')} ${@ipe_update_files(d)}"
do_ipe_update_policy[vardepsexclude] += "IPE_POLICY_CERT IPE_UPDATE_LEDGER"
do_ipe_update_policy () {
    ipe_need IPE_UPDATE_OLD_ROOTHASH "${IPE_UPDATE_OLD_ROOTHASH}"
    ipe_need IPE_POLICY_KEY "${@ipe_key(d, 'POLICY')}"
    ipe_need_file IPE_POLICY_CERT "${IPE_POLICY_CERT}"
    ipe_need_file IPE_UPDATE_LEDGER "${IPE_UPDATE_LEDGER}"
    ledger="${IPE_OUT}/${IMAGE_LINK_NAME}.policies.json"
    install -m 0644 "${IPE_UPDATE_LEDGER}" "$ledger"
    set --
    for old in ${IPE_UPDATE_OLD_ROOTHASH}; do
        set -- "$@" --old "$old"
    done
    ipe_build update policy "$@" --new "${IPE_ROOT}.roothash" --ledger "$ledger" --name "${IPE_UPDATE_POLICY_NAME}" \
        --template "${IPE_UPDATE_POLICY_TEMPLATE}" --key "${@ipe_key(d, 'POLICY')}" --cert "${IPE_POLICY_CERT}" \
        -o "${IPE_OUT}/${IMAGE_LINK_NAME}.policies"
}
addtask ipe_update_policy after do_image_complete before do_build

def ipe_update_files(d):
    return " ".join(one + ":True" for one in d.getVar("IPE_UPDATE_OLD_ROOTHASH").split() if os.path.isfile(one))

python () {
    if d.getVar("IPE_SEALED") == "1":
        bb.fatal("IPE_SEALED is 1 and ipe-update-policy inherited: a sealed image has no signed policy; its root hash is in its kernel")
}
