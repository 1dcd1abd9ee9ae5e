#!/usr/bin/env bash
# Install robolearn with its development tools into a virtual environment, and the system libraries the simulators need.
set -euo pipefail
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
cd "$(dirname "$0")/.."

# OpenCV, under the PushT simulator, needs libGL and glib; MuJoCo renders through EGL.
declare -A needs=([libGL.so.1]=libgl1 [libgthread-2.0.so.0]=libglib2.0-0 [libEGL.so.1]=libegl1 [libEGL_mesa.so.0]=libegl-mesa0)
missing=()
for library in "${!needs[@]}"; do
  # Without pipefail's trap: grep -q closes the pipe early.
  [[ $(ldconfig -p) == *"$library"* ]] || missing+=("${needs[$library]}")
done
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if ((${#missing[@]})); then
  if [[ $(id -u) == 0 ]]; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
      "${missing[@]}" libgl1-mesa-dri
  else
    echo "Some system libraries are missing; tests that need them are skipped. To install them:" >&2
    echo "  sudo apt-get install -y ${missing[*]} libgl1-mesa-dri" >&2
  fi
fi

"$PYTHON" -c 'import sys; sys.exit(f"robolearn needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}; set PYTHON=") if sys.version_info < (3, 11) else None'
[[ -x $VENV/bin/python ]] || "$PYTHON" -m venv "$VENV"
pinned=()
# The constraints were tried on this version; elsewhere the ranges of pyproject.toml decide.
[[ $("$VENV/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') == 3.11 ]] && pinned=(-c constraints.txt)
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "${pinned[@]}" -e ".[dev]"
# On Python 3.12 and newer, where its metadata asks for a MuJoCo without wheels; it works with newer ones.
if "$VENV/bin/python" -c 'import sys, importlib.util as u; sys.exit(sys.version_info < (3, 12) or u.find_spec("gym_xarm") is not None)'; then
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "gym-xarm>=0.1.1"
fi
