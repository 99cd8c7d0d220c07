#!/bin/sh
# The last hook of the arm64 tree's recipe (tree.py): $1 is the new tree. No maintainer script has run, so what a guest
# or a booted board cannot do without of their work is done here, from outside.
set -e
cd "$1"

# ansible asks dpkg for what is installed.
for package in var/cache/apt/archives/*.deb; do
    dpkg-deb --field "$package"
    printf 'Status: install ok installed\n\n'
done > var/lib/dpkg/status

cp usr/share/base-passwd/passwd.master etc/passwd
cp usr/share/base-passwd/group.master etc/group
cp usr/share/libc-bin/nsswitch.conf etc
systemd-sysusers --root="$PWD"
systemd-sysusers --root="$PWD" --inline 'u messagebus -' 'u sshd - - /run/sshd' 'u haproxy - - /var/lib/haproxy'

# Keys are the only way in, and nothing has set up PAM.
cat > etc/ssh/sshd_config << END
UsePAM no
PasswordAuthentication no
Subsystem sftp /usr/lib/openssh/sftp-server
END
ssh-keygen -q -A -f "$PWD"
mkdir -p etc/systemd/system/multi-user.target.wants
ln -s /lib/systemd/system/ssh.service etc/systemd/system/multi-user.target.wants/ssh.service

mkdir -p home proc root run sys usr/local/bin usr/local/lib usr/local/sbin
chmod 700 root
ln -sfn /run var/run
ln -sfn /run/lock var/lock
rm -f etc/hostname etc/resolv.conf
: > etc/machine-id
echo 'nameserver 192.168.86.1' > etc/resolv.conf
# Caches of what is in /usr: systemd would make them at the first boot, a minute on an interpreted processor.
touch etc/.updated var/.updated

for modules in lib/modules/*; do
    depmod -b . "${modules##*/}"
done
# Else every start of Python compiles what it imports. The files' form is that of the version, not of the processor.
/usr/bin/python3 -m compileall -q -s "$PWD" -p / usr/lib/python3 usr/lib/python3.*
