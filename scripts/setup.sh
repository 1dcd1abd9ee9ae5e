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
# What asks for packages without wheels for newer Pythons, but works without them (docs/environments.md).
apart=$("$VENV/bin/python" - <<'END'
import importlib.util, sys
since = {"gym_xarm": (3, 12, "gym-xarm>=0.1.1"), "gym_aloha": (3, 13, "gym-aloha>=0.1.5"), "dm_control": (3, 13, "dm-control==1.0.41")}
needed = [found for name, found in since.items() if sys.version_info >= found[:2] and not importlib.util.find_spec(name)]
print(*(requirement for *_, requirement in needed))
END
)
# shellcheck disable=SC2086 # one word for each requirement
[[ -z $apart ]] || "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps $apart
