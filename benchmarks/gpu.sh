#!/usr/bin/env bash
# Everything that is worth running on a machine with a GPU, within a time: what gpu_parts.py says. Results: one folder, summary.md first.
#
#     SECONDS_BUDGET=540 bash benchmarks/gpu.sh [--out FOLDER] [--parts NAME ...]
#     bash benchmarks/gpu.sh --device cpu          a trial without one, with the smallest shapes
#
# PYTHON names the interpreter. Exit code: 0 all that could run did, 1 a part failed or was stopped, 2 there is no GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python3}" benchmarks/gpu_parts.py --seconds "${SECONDS_BUDGET:-540}" "$@"
