#!/bin/sh
# What of netstack is left on this node, a line each; no line = nothing. Only looks.
# Routes and rules of ours carry protocol 78, filters the name netstack/PROGRAM.
for path in /sys/class/net/*; do
    device=${path##*/}
    for direction in ingress egress; do
        tc filter show dev "$device" "$direction" 2>/dev/null | grep -o 'netstack/[a-z_0-9]*' |
            sed "s|^|attached: $device $direction |"
    done
done
[ ! -e /sys/fs/bpf/netstack ] || echo "pinned: /sys/fs/bpf/netstack"
for family in -4 -6; do
    ip "$family" route show table all proto 78 2>/dev/null | sed "s|^|route $family: |"
    ip "$family" rule show 2>/dev/null | grep 'proto 78' | sed "s|^|rule $family: |"
done
ip netns list 2>/dev/null | grep -o '^netstack-ingress' | sed 's|^|network namespace: |'
for address in 169.254.1.53 '[fd6e:6574::53]'; do
    ss -Hlntup src "$address" 2>/dev/null | sed 's|^|listening: |'
done
for path in /run/netstack /run/netstack-haproxy; do
    [ ! -e "$path" ] || echo "running: $path"
done
for path in /opt/netstack /opt/netstack.tar.gz /etc/netstack/*.yaml /etc/netstack/*.key /etc/netstack/*kubeconfig \
    /var/lib/netstack /var/cache/netstack /opt/cni/bin/netstack /usr/lib/cni/netstack /usr/local/bin/netstack \
    /etc/cni/net.d/05-netstack.conflist /etc/systemd/system/netstack-*; do
    if [ -e "$path" ] || [ -L "$path" ]; then
        echo "installed: $path"
    fi
done
