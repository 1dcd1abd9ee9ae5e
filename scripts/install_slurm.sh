#!/usr/bin/env bash
# Install the SLURM that the tests of sweeps start on this machine (Debian and Ubuntu, as root); nothing is started here.
set -euo pipefail
command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && exit 0
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
  echo "SLURM is not installed, and only root on Debian or Ubuntu can do it here; tests that need it are skipped." >&2
  exit 0
fi
# In this run level no package starts its service.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
packages=(slurmctld slurmd slurm-client munge)
apt() { timeout 120 apt-get -qq -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=60 "$@" </dev/null >/dev/null; }
{ apt update && apt install -y --no-install-recommends "${packages[@]}"; } ||
  echo "${packages[*]} could not be installed; tests that need SLURM are skipped." >&2
