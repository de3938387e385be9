#!/bin/sh
# BR2_ROOTFS_POST_BUILD_SCRIPT: signs the kernel modules in the target folder,
# and puts there what a device with slots needs.
set -eu
# shellcheck source=/dev/null
. "$(dirname "$0")/common.sh"

target=$1
if [ -n "$(find "$target/lib/modules" -name '*.ko*' 2> /dev/null)" ]; then
	uri=$(key module)
	pem=$(cert module)
	ipe_build modules sign "$target/lib/modules" --key "$uri" --cert "$pem"
fi

if [ "$(br2 SLOTS)" = y ]; then
	# shellcheck disable=SC2046 # words
	ipe_build update device $(update_words) -o "$target" --force
fi
