# shellcheck shell=sh
# Read by the scripts beside it: the values of Buildroot's configuration, the
# keys, and the one way to run ipe-build.

# br2 NAME [DEFAULT]: the value of a symbol in Buildroot's .config, in which a
# backslash stands before a quote or a backslash.
br2() {
	value=$(sed -n "s/^BR2_IPE_$1=//p" "${BR2_CONFIG:?}" | sed 's/^"//; s/"$//; s/\\\(.\)/\1/g')
	printf '%s\n' "${value:-${2-}}"
}

fail() {
	echo "error: $*" >&2
	exit 1
}

# need NAME: the value of a symbol that must be set.
need() {
	value=$(br2 "$1")
	[ -n "$value" ] || fail "BR2_IPE_$1 is not set (menuconfig, External options, IPE)"
	printf '%s\n' "$value"
}

upper() {
	echo "$1" | tr '[:lower:]' '[:upper:]'
}

ipe_build() {
	program=$(br2 BUILD_CMD ipe-build)
	command -v "$program" > /dev/null || fail "BR2_IPE_BUILD_CMD: there is no program '$program'"
	"$program" "$@" --quiet || fail "ipe-build $1 failed, see above"
}

# key ROLE, cert ROLE, trusted: URI and paths, from the configuration or the
# test keys, which are made once.
key() {
	if [ "$(br2 TEST_KEYS)" = y ]; then
		test_keys
		echo "file:$IPE_WORK/test-keys/$1.key.pem"
	else
		need "$(upper "$1")_KEY"
	fi
}

cert() {
	if [ "$(br2 TEST_KEYS)" = y ]; then
		echo "$IPE_WORK/test-keys/$1.cert.pem"
	else
		need "$(upper "$1")_CERT"
	fi
}

trusted() {
	if [ "$(br2 TEST_KEYS)" = y ]; then
		test_keys
		echo "$IPE_WORK/test-keys/trusted-keys.pem"
	else
		need TRUSTED_CERTS
	fi
}

test_keys() {
	[ -e "$IPE_WORK/test-keys" ] || ipe_build keys create "$IPE_WORK/test-keys" --organisation Buildroot > /dev/null
}

# selected SYMBOL: whether a symbol of any kind is y.
selected() {
	grep -qx "$1=y" "${BR2_CONFIG:?}"
}

# update_words: what target and updates agree on, one word each.
update_words() {
	echo --compatible "$(br2 UPDATE_COMPATIBLE buildroot)"
	echo --update-version "$(br2 UPDATE_VERSION 1)"
	echo --bootloader "$(br2 UPDATE_BOOTLOADER efi)"
}

IPE_WORK="${BASE_DIR:?}/ipe"
mkdir -p "$IPE_WORK"
