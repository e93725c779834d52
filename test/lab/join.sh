#!/bin/sh
# Owns starting a program inside control groups, so that it and all it starts can be found by them.
# Must not do anything else.
#
# usage: sh join.sh CGROUP_PROCS... -- COMMAND...
set -eu
while [ "$1" != -- ]; do
  # 0 stands for the writing process.
  echo 0 >"$1"
  shift
done
shift
exec "$@"
