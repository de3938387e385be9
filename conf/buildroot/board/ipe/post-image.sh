#!/bin/sh
# BR2_ROOTFS_POST_IMAGE_SCRIPT: root hash, signatures, device policy,
# initramfs, disk image, audit, flash files, updates and their policies. Result:
# images/ipe.raw and its parts.
set -eu
# shellcheck source=/dev/null
. "$(dirname "$0")/common.sh"

images=$1
filesystem=$(br2 FILESYSTEM erofs)
root="$images/rootfs.$filesystem"
[ -f "$root" ] || fail "there is no $root: enable the filesystem that BR2_IPE_FILESYSTEM names"
kernel=
for name in bzImage Image zImage; do
	[ ! -f "$images/$name" ] || kernel="$images/$name"
done
[ -n "$kernel" ] || fail "no kernel image in $images (BR2_LINUX_KERNEL)"
case "$(sed -n 's/^BR2_ARCH="\(.*\)"/\1/p' "${BR2_CONFIG:?}")" in
	x86_64) architecture=x86-64 ;;
	aarch64) architecture=arm64 ;;
	arm) architecture=arm ;;
	riscv) architecture=riscv64 ;;
	*) fail "BR2_ARCH: ipe-build knows x86_64, aarch64, arm and riscv" ;;
esac

verity_key=$(key verity)
verity_cert=$(cert verity)
policy_key=$(key policy)
policy_cert=$(cert policy)
update_key=$(br2 UPDATE_KEY)
update_cert=
[ -z "$update_key" ] || update_cert=$(need UPDATE_CERT)
old_roots=$(br2 UPDATE_OLD_ROOTHASH)
ledger=
[ -z "$old_roots" ] || ledger=$(need UPDATE_LEDGER)
[ -f "$IPE_WORK/linux-dir" ] || fail "$IPE_WORK/kernel.config is not in BR2_LINUX_KERNEL_CONFIG_FRAGMENT_FILES"
config="$(cat "$IPE_WORK/linux-dir")/.config"
ipe_build kernel check "$config" --feature ipe --feature dm-verity-signature --feature "$filesystem"

ipe_build root "$root" --salt-from "rootfs.$filesystem" --pad --key "$verity_key" --cert "$verity_cert" --force

policy="$images/ipe-policy"
ipe_build policy make "$(br2 POLICY_TEMPLATE signed-verity)" --name ipe-policy --policy-version "$(br2 POLICY_VERSION 0.0.1)" \
	--role device --set allow_modules=true --set allow_firmware=true --target-config "$config" \
	--key "$policy_key" --cert "$policy_cert" -o "$images" --force

# shellcheck disable=SC2046 # words
set -- $(br2 INITRAMFS_ARGS)
for capability in $(br2 DROP_CAPABILITIES); do
	set -- "$@" --drop-capability "$capability"
done
ipe_build image initramfs --root-hash cmdline --filesystem "$filesystem" --architecture "$architecture" "$@" \
	--policy initramfs:/etc/ipe/ipe-policy.p7b --carry "/etc/ipe/ipe-policy.p7b=$policy.p7b" \
	--compiler "$(find "${HOST_DIR:-/nowhere}/bin" -name '*-linux-*gcc' 2> /dev/null | sort | head -n 1 | grep . || echo gcc)" \
	-o "$images/ipe-initrd" --force

# systemd-boot on the disk, or none: U-Boot or QEMU starts the kernel then, and
# the audit is told which.
loader=
if selected BR2_PACKAGE_SYSTEMD_BOOT; then
	loader=$(find "$images/efi-part/EFI/BOOT" -name 'boot*.efi' | head -n 1)
fi
if [ -n "$loader" ]; then
	set -- --boot-loader "$loader"
else
	set -- --no-boot-loader
fi
if [ "$(br2 SLOTS)" = y ]; then
	set -- "$@" --slots --slot-root-mib "$(br2 SLOT_ROOT_MIB 0)"
fi
for kind in bmap zstd partitions sparse; do
	[ "$(br2 "$(upper "$kind")")" != y ] || set -- "$@" "--$kind"
done
ipe_build image disk "$root" --root-hash "$root.roothash" --verity-sig "$root.verity-sig" --architecture "$architecture" \
	--kernel "$kernel" --initramfs "$images/ipe-initrd" --name buildroot "$@" \
	--command-line "$(br2 COMMAND_LINE) roothash=$(cat "$root.roothash")" -o "$images/ipe.raw" --force

set --
[ -n "$loader" ] || set -- --kernel "$kernel"
ipe_build audit "$images/ipe.raw" "$@" --findings "$images/ipe-audit.json" --sarif "$images/ipe-audit.sarif" --force

if [ "$(br2 SLOTS)" = y ]; then
	set --
	[ -z "$update_key" ] || set -- --key "$update_key" --cert "$update_cert"
	for updater in rauc swupdate; do
		if [ -n "$update_key" ] && selected "BR2_PACKAGE_$(upper "$updater")"; then
			set -- "$@" --updater "$updater"
		fi
	done
	# shellcheck disable=SC2046 # words
	ipe_build update make "$images/ipe.raw" $(update_words) "$@" -o "$images/ipe" --force
fi

if [ -n "$old_roots" ]; then
	cp "$ledger" "$images/ipe.policies.json"
	set --
	for old in $old_roots; do
		set -- "$@" --old "$old"
	done
	ipe_build update policy "$@" --new "$root.roothash" --ledger "$images/ipe.policies.json" --name "$(br2 UPDATE_POLICY_NAME ipe-policy)" \
		--key "$policy_key" --cert "$policy_cert" -o "$images/ipe.policies" --force
fi
