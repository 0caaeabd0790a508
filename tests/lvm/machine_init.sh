#!/bin/sh
# Process 1 of a user-mode Linux that has the device mapper and LVM. Its root is the host's own, read-only.
# From the kernel's command line: SHARED, a directory of the host that is /run/host inside. It holds `command` (a line of the
# shell), `directory` (where it runs) and `disks` (the devices that lvm may see); `status` is written at the end.
# Nothing is mounted over /tmp: the checkout and the virtual environment may lie there.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/run TMPDIR=/run
export PYTHONDONTWRITEBYTECODE=1 # the root is read-only
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mkdir -p /dev/shm /run/lock/lvm /run/lvm /run/host
mount -t tmpfs shm /dev/shm
mount -t hostfs -o "$SHARED" none /run/host
hostname machine
ip link set lo up

. "$(dirname "$0")/../support/uml_modules.sh"
for module in loop dm-mod dm-thin-pool dm-snapshot dm-flakey; do load "$module"; done

# There is no udev: libdm makes the nodes in /dev itself. Of the host's devices lvm sees none, and it keeps no copies in /etc.
export LVM_SYSTEM_DIR=/run/lvm-configuration
mkdir "$LVM_SYSTEM_DIR"
cat >"$LVM_SYSTEM_DIR/lvm.conf" <<END
devices {
    obtain_device_list_from_udev=0
    external_device_info_source="none"
    use_devicesfile=0
    filter=[$(sed 's/.*/"a|^&$|",/' /run/host/disks | tr -d '\n')"r|.*|"]
}
activation {
    udev_sync=0
    udev_rules=0
    verify_udev_operations=0
    monitoring=0
    thin_pool_autoextend_threshold=100
}
global {
    locking_dir="/run/lock/lvm"
    use_lvmpolld=0
    event_activation=0
}
backup {
    backup=0
    archive=0
}
END

cd "$(cat /run/host/directory)" && sh -c "$(cat /run/host/command)"
echo $? >/run/host/status
halt -f -p -d
