#!/bin/busybox sh
# Owns the way from the kernel's start to the agent: process 1 of the virtual machine, in its initramfs.
# Must not write to the host: its root file system is mounted read-only, and covered by one in memory.
#
# The kernel puts these words of its command line into the environment:
#   NODE     the host's node
#   MODULES  the directory on the host that holds the kernel's modules, indexed by depmod
#   KMOD     the host's path of kmod;  LIBRARIES where the shared libraries it needs are
set -e
export PATH=/bin
/bin/busybox --install -s /bin
# Else the kernel would panic, and push the message of what failed off the console.
trap 'echo "init failed"; poweroff -f' EXIT
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do insmod "/modules/$module"; done </modules/order

mkdir /host /memory /new
# loose: the host's files do not change under us, so what was read once is never asked for again.
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=1048576 host /host
mount -t tmpfs -o mode=755 memory /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work root /new
# One read ahead is one message to the host; the default of 128 KiB makes loading programs slow.
for ahead in /sys/class/bdi/9p-*/read_ahead_kb; do echo 4096 >"$ahead"; done

mount --move /dev /new/dev
mount --move /proc /new/proc
mount --move /sys /new/sys
# Shared, as on a systemd machine: a plugin's slave mounts see what the host mounts later.
mount --make-shared /new
mount -t tmpfs -o mode=755 run /new/run
# For TMPDIR. Not below /run: there every node of a lab has its own; nor where the host may have this checkout.
mkdir /new/vm-tmp
mount -t tmpfs -o mode=1777 tmp /new/vm-tmp
mkdir -p /new/run/lock /new/run/netns /new/run/vm /new/dev/pts /new/dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /new/dev/pts
mount -t tmpfs shm /new/dev/shm
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
ln -s /proc/self/fd /new/dev/fd
ln -s fd/0 /new/dev/stdin
ln -s fd/1 /new/dev/stdout
ln -s fd/2 /new/dev/stderr

cp /bin/busybox /agent.js /new/run/vm/

release=$(uname -r)
mkdir -p "/new/lib/modules/$release"
mount --bind "/new$MODULES" "/new/lib/modules/$release"
# Where the kernel, dockerd and ipvsadm look for it. Debian's own: busybox's knows no soft dependencies, without which
# libcrc32c, and so nf_tables, does not load.
rm -f /new/sbin/modprobe
cat >/new/sbin/modprobe <<SCRIPT
#!/bin/sh
exec /lib64/ld-linux-x86-64.so.2 --library-path "$LIBRARIES" --argv0 modprobe "$KMOD" "\$@"
SCRIPT
chmod 755 /new/sbin/modprobe
# All load by themselves, but for each one it lacks nft starts its whole batch anew: a first ruleset takes 40 s.
chroot /new /sbin/modprobe -a nf_tables nft_chain_nat nft_nat nft_ct nft_fib_inet nft_numgen nft_hash nft_masq \
  nft_redir nft_reject_inet nft_objref nft_limit nft_log nft_compat nf_conntrack_netlink

ip link set lo up
hostname causeway-vm
# The shell stays as process 1 to collect orphans. When the agent ends so does the machine.
exec switch_root /new /run/vm/busybox sh -c \
  '"$NODE" /run/vm/agent.js /dev/vport*p1 </dev/null >/dev/console 2>&1; poweroff -f'
