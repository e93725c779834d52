#!/bin/sh
# Owns turning a process into a lab node: it becomes process 1 of the node's pid, mount and uts namespaces.
# Must not touch anything outside them: every mount below is private to the node.
#
# usage: unshare --cgroup --mount --uts --pid --fork --mount-proc sh node.sh HOSTNAME DIR GROUP TINI
#   DIR/run          becomes the node's /run
#   DIR/resolv.conf  becomes its /etc/resolv.conf
#   DIR/aside        an empty directory, used for a moment
#   GROUP            the node's control group, a path in each hierarchy; becomes the root of what the node sees
set -eu
hostname=$1 dir=$2 group=$3 tini=$4

echo "$hostname" >/proc/sys/kernel/hostname
mount --make-rprivate /

# The node's own groups as if they were the machine's: all that Docker and runc make of them stays below GROUP.
if [ -e /sys/fs/cgroup/cgroup.procs ]; then
  mount --bind "/sys/fs/cgroup$group" "$dir/aside"
  # In cgroup v2 a group that has processes cannot hand controllers to those below it: leave the root free.
  mkdir "$dir/aside/init"
  echo 0 >"$dir/aside/init/cgroup.procs"
else
  mount -t tmpfs cgroup "$dir/aside"
  for hierarchy in /sys/fs/cgroup/*; do
    here=$dir/aside/${hierarchy##*/}
    if [ -L "$hierarchy" ]; then
      cp -P "$hierarchy" "$here"
    elif [ -e "$hierarchy/cgroup.procs" ]; then
      mkdir "$here"
      mount --bind "$hierarchy$group" "$here"
    fi
  done
fi
# /sys must show this network namespace's devices; a new sysfs does, but comes without the cgroup mounts.
mount -t sysfs sysfs /sys
mount --move "$dir/aside" /sys/fs/cgroup

# On many machines /etc/resolv.conf leads into /run: make its target there before it is covered.
resolv=$(readlink --canonicalize-missing /etc/resolv.conf)
mount --bind "$dir/run" /run
# Shared as on a systemd machine: a plugin's slave mount of /run is to see the sandboxes Docker mounts later.
mount --make-shared /run
if [ ! -e "$resolv" ]; then
  mkdir -p "$(dirname "$resolv")"
  : >"$resolv"
fi
mount --bind "$dir/resolv.conf" "$resolv"

echo ready >"$dir/ready"
# Process 1 must collect orphans, or every ended container would leave a zombie.
exec "$tini" -- sleep infinity
