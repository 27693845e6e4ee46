#!/usr/bin/env bash
# An aarch64 Python with numpy under qemu-user: runs here what was compiled for arm-cpu.
#
#   env.sh setup DIR           fetch everything into DIR: Debian packages of the system's own release
#                              for arm64, numpy from PyPI, qemu if the system has none (about 100 MB)
#   env.sh python DIR ARGS...  run that Python, as a Cortex-A72 unless the variable CPU says otherwise
#
# No root rights, nothing is installed outside DIR. PYTHON names the Python whose pip is used.
# For correctness only: times under emulation mean nothing.
set -euo pipefail
verb=${1:?setup or python}
mkdir -p "${2:?folder}"
dir=$(cd "$2" && pwd)
shift 2

private_apt() { # apt-get that sees an empty arm64 system and keeps everything in DIR
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 \
        -o Dir::State="$dir/apt/state" -o Dir::State::status="$dir/apt/status" \
        -o Dir::Cache="$dir/apt/cache" -o APT::Sandbox::User="" -o Debug::NoLocking=1 "$@"
}

qemu() { # path of the emulator; fails where there is none
    local found
    for found in qemu-aarch64-static qemu-aarch64 "$dir"/qemu/usr/bin/qemu-aarch64{-static,}; do
        if command -v "$found"; then return; fi
    done
    echo "no qemu-aarch64" >&2
    return 1
}

setup() {
    mkdir -p "$dir"/apt/state/lists/partial "$dir"/apt/cache/archives/partial "$dir/root" "$dir/site"
    : >"$dir/apt/status"
    private_apt update
    private_apt install --download-only --yes --no-install-recommends \
        python3-minimal libpython3-stdlib libstdc++6
    for deb in "$dir"/apt/cache/archives/*.deb; do dpkg-deb -x "$deb" "$dir/root"; done
    [ -e "$dir/root/lib" ] || ln -s usr/lib "$dir/root/lib"
    if ! qemu >/dev/null 2>&1; then # the package with static programs has had two names
        (cd "$dir" && { apt-get -qq download qemu-user-static || apt-get -qq download qemu-user; })
        dpkg-deb -x "$dir"/qemu-user*.deb "$dir/qemu"
    fi
    local interpreter version platforms=() p
    interpreter=$(ls -d "$dir"/root/usr/bin/python3.*[0-9] | head -1)
    version=${interpreter##*python}
    for p in 2_28 2_27 2_26 2_24 2_17; do platforms+=(--platform "manylinux_${p}_aarch64"); done
    "${PYTHON:-python3}" -m pip download -q --disable-pip-version-check --no-deps \
        --only-binary=:all: --python-version "$version" --implementation cp \
        --abi "cp${version/./}" "${platforms[@]}" -d "$dir/wheels" "numpy>=2.0"
    for wheel in "$dir"/wheels/*.whl; do "${PYTHON:-python3}" -m zipfile -e "$wheel" "$dir/site"; done
    ln -sf "$interpreter" "$dir/python"
    run -c 'import numpy' # ready only if it works
    rm -rf "$dir/apt" "$dir/wheels" "$dir"/*.deb
    touch "$dir/ready"
}

run() {
    export QEMU_LD_PREFIX="$dir/root" PYTHONHOME="$dir/root/usr"
    export PYTHONPATH="$dir/site${PYTHONPATH:+:$PYTHONPATH}"
    local emulator
    emulator=$(qemu)
    "$emulator" -cpu "${CPU:-cortex-a72}" "$dir/python" "$@"
}

case $verb in
setup)
    exec 9>"$dir/lock"
    flock 9 # one at a time; the next finds it ready
    [ -e "$dir/ready" ] || setup
    ;;
python) run "$@" ;;
*)
    echo "unknown verb $verb" >&2
    exit 2
    ;;
esac
