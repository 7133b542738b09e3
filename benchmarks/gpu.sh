#!/usr/bin/env bash
# Everything that is worth running on a machine with a GPU, within a time: what gpu_parts.py says. Results: one folder, summary.md first.
#
#     SECONDS_BUDGET=540 bash benchmarks/gpu.sh [--out FOLDER] [--parts NAME ...]
#     bash benchmarks/gpu.sh --device cpu          a trial without one, with the smallest shapes
#
# PYTHON names the interpreter. Packages that it lacks, on a machine without a network, come from wheels/ (git ignores it), which is filled
# elsewhere: mmjax's step needs the first two, the parts that read a recipe or rows the others.
#
#     python3 -m pip download --no-deps -d wheels clu einops ml_collections grain
#
# Exit code: 0 all that could run did, 1 a part failed or was stopped, 2 there is no GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-python3}"
if compgen -G "wheels/*.whl" > /dev/null; then
    echo "from wheels/:" wheels/*.whl
    "$PYTHON" -m pip install --quiet --no-index --no-deps --upgrade --target wheels/installed wheels/*.whl
    export PYTHONPATH="$PWD/wheels/installed${PYTHONPATH:+:$PYTHONPATH}"
fi
exec "$PYTHON" benchmarks/gpu_parts.py --seconds "${SECONDS_BUDGET:-540}" "$@"
