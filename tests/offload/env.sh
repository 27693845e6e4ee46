#!/usr/bin/env bash
# A Python with KServe and ONNX Runtime in DIR, from PyPI (about 600 MB): what it needs does not go
# with what MLServer needs, so it has an environment of its own.
#
#   env.sh DIR
#
# PYTHON names the Python it is made with.
set -euo pipefail
dir=${1:?folder}
"${PYTHON:-python3}" -m venv "$dir"
"$dir/bin/pip" install -q --disable-pip-version-check "kserve>=0.16" "onnxruntime>=1.18"
touch "$dir/ready"
