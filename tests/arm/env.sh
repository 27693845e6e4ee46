#!/usr/bin/env bash
# An aarch64 Python with numpy under qemu-user: runs here what was compiled for arm-cpu.
#
#   env.sh setup DIR           fetch everything into DIR: Debian packages of the system's own release
#                              for arm64, numpy from PyPI, qemu if the system has none (about 100 MB)
#   env.sh setup-tvm DIR       then TVM of PYTHON's version too, with what its RPC server needs
#                              (another 100 MB); its compiler stays out (TVM_USE_RUNTIME_LIB=1)
#   env.sh python DIR ARGS...  run that Python, as a Cortex-A72 unless the variable CPU says otherwise
#   env.sh program DIR ARGS... run another program in the same way
#
# No root rights, nothing is installed outside DIR. PYTHON names the Python whose pip is used.
# For correctness only: times under emulation mean nothing.
set -euo pipefail
verb=${1:?setup, setup-tvm, python or program}
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

interpreter() { ls -d "$dir"/root/usr/bin/python3.*[0-9] | head -1; }

wheels() { # these distributions, for that Python
    local version platforms=() p
    version=$(interpreter)
    version=${version##*python}
    for p in 2_28 2_27 2_26 2_24 2_17; do platforms+=(--platform "manylinux_${p}_aarch64"); done
    "${PYTHON:-python3}" -m pip download -q --disable-pip-version-check --no-deps \
        --only-binary=:all: --python-version "$version" --implementation cp \
        --abi "cp${version/./}" --abi none "${platforms[@]}" -d "$dir/wheels" "$@"
    for wheel in "$dir"/wheels/*.whl; do "${PYTHON:-python3}" -m zipfile -e "$wheel" "$dir/site"; done
    rm -rf "$dir/wheels"
}

setup_tvm() {
    local names=(apache-tvm apache-tvm-ffi ml-dtypes typing-extensions cloudpickle) name exact=()
    for name in "${names[@]}"; do
        exact+=("$name==$("${PYTHON:-python3}" -c "import importlib.metadata as m; print(m.version('$name'))")")
    done
    wheels "${exact[@]}"
    rm -f "$dir"/site/tvm/lib/libtvm_{compiler,runtime_cuda}.so # 260 MB that the server needs not
    TVM_USE_RUNTIME_LIB=1 run -c 'import tvm.rpc' # ready only if it works
    touch "$dir/ready-tvm"
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
    wheels "numpy>=2.0"
    ln -sf "$(interpreter)" "$dir/python"
    run -c 'import numpy' # ready only if it works
    rm -rf "$dir/apt" "$dir"/*.deb
    touch "$dir/ready"
}

run() ( # a shell of its own: what it exports is for that Python alone
    export PYTHONHOME="$dir/root/usr" PYTHONPATH="$dir/site${PYTHONPATH:+:$PYTHONPATH}"
    program "$dir/python" "$@"
)

program() {
    local emulator
    emulator=$(qemu)
    QEMU_LD_PREFIX="$dir/root" "$emulator" -cpu "${CPU:-cortex-a72}" "$@"
}

case $verb in
setup)
    exec 9>"$dir/lock"
    flock 9 # one at a time; the next finds it ready
    [ -e "$dir/ready" ] || setup
    ;;
setup-tvm)
    exec 9>"$dir/lock"
    flock 9
    [ -e "$dir/ready" ] || setup
    [ -e "$dir/ready-tvm" ] || setup_tvm
    ;;
python) run "$@" ;;
program) program "$@" ;;
*)
    echo "unknown verb $verb" >&2
    exit 2
    ;;
esac
