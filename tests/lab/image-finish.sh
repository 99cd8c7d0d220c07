#!/bin/sh
# The last hook of the node image's recipe (image.py): $1 is the new tree, $KERNEL the release of the running kernel.
set -e
cd "$1"
rm -f etc/resolv.conf etc/hostname var/lib/dbus/machine-id
: > etc/machine-id
echo 'nameserver 192.168.86.1' > etc/resolv.conf
: > etc/apt/sources.list
install -d -m 700 root/.ssh

# bcc looks for headers by the release of the running kernel, which is not Debian's. And modprobe of what is built in
# succeeds only if modules.builtin names it.
modules=lib/modules/$KERNEL
[ ! -e "$modules/build" ] || exit 0
mkdir -p "$modules"
for part in amd64:build common:source; do
    headers=$(cd usr/src && echo linux-headers-*-"${part%:*}")
    ln -s "/usr/src/$headers" "$modules/${part#*:}"
done
: > "$modules/modules.order"
for module in net/bridge/br_netfilter net/netfilter/nf_conntrack net/sched/cls_bpf net/sched/sch_ingress \
    fs/overlayfs/overlay drivers/net/vxlan drivers/net/veth; do
    echo "kernel/$module.ko"
done > "$modules/modules.builtin"
chroot . depmod "$KERNEL"
