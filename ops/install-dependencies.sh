#!/usr/bin/env bash
# Installs the system libraries that the build needs, when they are missing: liburing and OpenSSL.
# Quiet when all is there; without the right to install, it says what to type and ends with 1.
set -euo pipefail

packages=(liburing-dev libssl-dev)
missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $state == installed ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

# Not Debian or Ubuntu, but the headers are there: nothing to do.
if ! command -v dpkg-query >/dev/null && [[ -e /usr/include/liburing.h && -e /usr/include/openssl/ssl.h ]]; then
    exit 0
fi

if ! command -v apt-get >/dev/null; then
    echo "Missing: ${missing[*]} (Debian's names). Install the headers of liburing and OpenSSL 3" >&2
    echo "with this system's package manager, then try again." >&2
    exit 1
fi
if (($(id -u) == 0)); then
    root=(env)
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    root=(sudo -n env)
else
    echo "Missing: ${missing[*]}. Type this, then try again:" >&2
    echo "    sudo apt-get update && sudo apt-get install -y ${missing[*]}" >&2
    exit 1
fi

echo "installing ${missing[*]}"
install=("${root[@]}" DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 -qq)
if ! "${install[@]}" install -y "${missing[@]}" </dev/null >/dev/null 2>&1; then
    # The lists may be old or empty.
    "${install[@]}" update </dev/null
    "${install[@]}" install -y "${missing[@]}" </dev/null >/dev/null
fi
