# about: devices that cannot be passed through are refused before the guest starts, with cause and remedy; one is wanted back
# kernel: debian iommufd
# devices: nvme mtty
# modules: nvme
# timeout: 120
. /lab/lib.sh
need_kvm
uuid=11111111-1111-1111-1111-111111111111
mtty=$(mtty_create $uuid) || fail "no mtty device could be created"
# refused_device PATTERN DEVICES: a VM with these devices does not come to life.
refused_device() {
    vm_config no 1 256 vmlinuz lab=boot "$2"
    refused "$1" run --config "$RUN/no.json"
    assert "a guest started" test ! -s "$RUN/no.serial"
}
address=$(pci_with_class 0x0108)
disk=/sys/bus/pci/devices/$address

refused_device 'cannot find the device /sys/bus/pci/devices/0000:ff:1f.7; give its sysfs directory' \
    "$(vfio_device vfio0 /sys/bus/pci/devices/0000:ff:1f.7)"
refused_device '/etc is no PCI function and no mediated device|cannot find the device /etc' "$(vfio_device vfio0 /etc)"
refused_device '/sys/class/net/lo .*no PCI function' "$(vfio_device vfio0 /sys/class/net/lo)"
refused_device 'devices\[1\].id: it is the same as devices\[0\].id' "$(vfio_device a "$mtty"), $(vfio_device a "$disk")"
refused_device 'devices\[1\].path: it is the same as devices\[0\].path' "$(vfio_device a "$mtty"), $(vfio_device b "$mtty")"
refused_device "\"a\" and \"b\" are the same device .*$uuid; remove one" \
    "$(vfio_device a "$mtty"), $(vfio_device b "$(readlink -f "$mtty")")"

# The NVMe is in the hands of the host's driver, then in nobody's.
[ -e "$disk/driver" ] || fail "the host's driver does not have the NVMe"
refused_device "device $address .*driver nvme, not to a VFIO driver; bind it: .*drivers_probe" "$(vfio_device vfio0 "$disk")"
echo "$address" > "$disk/driver/unbind"
refused_device "device $address .*no driver; .*vfio-pci" "$(vfio_device vfio0 "$disk")"
assert "the NVMe could not be bound to vfio-pci" vfio_bind "$address"

# Another VM has it.
interactive
vm_config vm 1 256 vmlinuz lab=obey "$(vfio_device mtty0 "$mtty"), $(vfio_device nvme0 "$disk")"
run_vm vm
expect vm 'L2 READY' 60
SERIAL="{\"mode\": \"File\", \"file\": \"$RUN/no.serial\"}"
refused_device "$uuid.*another process uses? the device" "$(vfio_device mtty0 "$mtty")"
refused_device "$address.*another process uses? the device" "$(vfio_device nvme0 "$disk")"
works vm mtty 1
tell_vm vm load nvme
works vm nvme 1

# The host wants the NVMe back: that is told, the VM goes on, and lets go of it when it ends.
echo "$address" > /sys/bus/pci/drivers/vfio-pci/unbind &
unbinding=$!
wait_until 20 grep -q "$address.*the host wants the device back" "$RUN/vm.out" || fail "dormouse does not say that the host wants the device back"
wait_until 5 sh -c "dormouse ctl --api-socket $RUN/vm.sock info | grep -q WANTED_BACK" ||
    fail "vm.info does not tell that the host wants the device back"
works vm nvme 2
assert "the host got the device while the VM had it" kill -0 "$unbinding"
ends_well vm
wait_until 10 test ! -e "$disk/driver" || fail "the device is still bound when its VM is gone"
pass
