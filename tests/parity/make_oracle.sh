#!/usr/bin/env bash
# Makes .oracle, a Python 3.11 environment with PyTorch and transformers. The parity tests then also compare with them live, not only with the
# recorded references. ORACLE_PYTHON=/path/to/python3.11 overrides the interpreter that is found.
set -euo pipefail
cd "$(dirname "$0")/../.."

is_python311() { command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }

python=""
for candidate in ${ORACLE_PYTHON:+"$ORACLE_PYTHON"} python3.11 /usr/bin/python3.11 python3; do
    if is_python311 "$candidate"; then
        python="$candidate"
        break
    fi
done
if [ -z "$python" ]; then
    echo "The oracle needs Python 3.11; none was found (set ORACLE_PYTHON=/path/to/python3.11)" >&2
    exit 1
fi

"$python" -m venv .oracle
.oracle/bin/python -m pip install --quiet --disable-pip-version-check numpy pillow torch==2.13.0 'transformers==5.24.0' \
    accelerate==1.15.0 gguf==0.19.0 jinja2==3.1.6 protobuf sentencepiece==0.2.3 tiktoken==0.14.0
.oracle/bin/python -c 'import torch, transformers; print("oracle: torch", torch.__version__, "transformers", transformers.__version__)'
