#!/bin/sh
# Runs the built plugin as Docker would, without Docker: its own root file system (writable, thrown away), the mounts of
# config.json, the network namespace of the caller. Usage: run-plugin.sh ROOTFS DIRECTORY ENTRYPOINT...
# DIRECTORY holds run/ (the host's /run), data/ and plugins/ (where the socket appears).
set -eu
rootfs=$1 directory=$2
shift 2
mount --make-rslave /
mount -t tmpfs tmpfs "$directory/root"
mkdir "$directory/root/upper" "$directory/root/work" "$directory/root/merged"
root=$directory/root/merged
mount -t overlay overlay -o "lowerdir=$rootfs,upperdir=$directory/root/upper,workdir=$directory/root/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind "$directory/run" "$root/host/run"
mkdir -p "$directory/run/netns"
mount --rbind /run/netns "$root/host/run/netns"
mount --bind /proc/sys/net "$root/host/sys-net"
mount --bind "$directory/data" "$root/data"
mount --bind "$directory/plugins" "$root/run/docker/plugins"
# As in a plugin, where only the mount above lets kernel settings be written.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
exec chroot "$root" "$@"
