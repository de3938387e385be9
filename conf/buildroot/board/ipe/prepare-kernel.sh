#!/bin/sh
# Before the kernel is configured: boot policy, trusted certificates and the
# configuration fragment, in output/ipe.
set -eu
# shellcheck source=/dev/null
. "$(dirname "$0")/common.sh"

bundle=$(trusted)
[ -f "$bundle" ] || fail "BR2_IPE_TRUSTED_CERTS: there is no file '$bundle'"
cp "$bundle" "$IPE_WORK/trusted.pem"
ipe_build policy make allow-initramfs --name ipe-boot --policy-version 0.0.1 --role boot -o "$IPE_WORK" --force
set --
for feature in ipe dm-verity dm-verity-signature modules initramfs "$(br2 FILESYSTEM erofs)"; do
	set -- "$@" --feature "$feature"
done
rm -f "$IPE_WORK/kernel.config"
ipe_build kernel fragment "$@" --property boot_verified --property dmverity_signature \
	--boot-policy "$IPE_WORK/ipe-boot.pol" --trusted-keys "$IPE_WORK/trusted.pem" -o "$IPE_WORK/kernel.config"
# Where post-image.sh finds the configuration that came out.
echo "${LINUX_DIR:?}" > "$IPE_WORK/linux-dir"
