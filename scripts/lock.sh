#!/usr/bin/env bash
# Print the installed versions of everything robolearn needs, as pip constraints.
set -euo pipefail
echo "# Versions that were tested together on Python 3.11; 'make lock' writes this file."
"${BIN:-.venv/bin}/python" -m pip freeze --exclude-editable --exclude robolearn | grep -v ' @ '
