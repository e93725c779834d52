#!/bin/sh
# Runs a command in a root file system of Debian's firewalls: writable, thrown away with the last process in it, in the network
# namespace of the caller. Says "ready" once it is laid out. Usage: firewall.sh ROOTFS DIRECTORY COMMAND...
# DIRECTORY is empty, and is mounted on.
set -eu
rootfs=$1 directory=$2
shift 2
mount -t tmpfs tmpfs "$directory"
root=$directory/root
mkdir "$directory/upper" "$directory/work" "$root"
mount -t overlay overlay -o "lowerdir=$rootfs,upperdir=$directory/upper,workdir=$directory/work" "$root"
cd "$root"
mkdir -p proc dev tmp run/dbus var/log
mount -t proc proc proc
mount --rbind /dev dev
# What the packages' maintainer scripts do of it when they are installed: Debian's alternatives, ufw's own rules to begin with,
# and the user of D-Bus.
for name in iptables ip6tables; do
  for verb in '' -save -restore; do ln -sf xtables-nft-multi "usr/sbin/$name$verb"; done
done
cp usr/share/ufw/iptables/*.rules usr/share/ufw/*.init usr/share/ufw/ufw.conf etc/ufw/
chmod 640 etc/ufw/*.rules etc/ufw/*.init
printf '%s\n' root:x:0:0::/: messagebus:x:100:100::/: > etc/passwd
printf '%s\n' root:x:0: messagebus:x:100: > etc/group
echo ready
exec chroot . "$@"
