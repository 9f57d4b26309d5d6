# about: the lab is what the other tests think it is: KVM, mtty, NVMe behind an IOMMU (needs no dormouse)
# kernel: debian iommufd
# devices: nvme mtty
# modules: nvme
# timeout: 90
. /lab/lib.sh
need_kvm
assert "kvm_amd is not loaded" test -d /sys/module/kvm_amd
assert "mtty is not loaded" test -d /sys/module/mtty
uuid=11111111-1111-1111-1111-111111111111
mtty=$(mtty_create $uuid) || fail "no mtty device could be created"
assert "mtty has no IOMMU group" test -e "$mtty/iommu_group"
group=$(basename "$(readlink "$mtty/iommu_group")")
assert "mtty's group has no file" test -c "/dev/vfio/$group"
disk=$(pci_with_class 0x0108)
assert "there is no NVMe" test -n "$disk"
assert "the NVMe is not behind an IOMMU" test -e "/sys/bus/pci/devices/$disk/iommu_group"
assert "the NVMe could not be bound to vfio-pci" vfio_bind "$disk"
group=$(basename "$(readlink "/sys/bus/pci/devices/$disk/iommu_group")")
assert "the NVMe's group has no file" test -c "/dev/vfio/$group"
if grep -q '@iommufd' /proc/cmdline; then
    assert "there is no /dev/iommu" test -c /dev/iommu
    for device in "$mtty" "/sys/bus/pci/devices/$disk"; do
        assert "$device has no cdev" test -c "/dev/vfio/devices/$(ls "$device/vfio-dev")"
    done
    assert "VFIO has no debugfs" test -d /sys/kernel/debug/vfio
fi
mtty_remove $uuid
assert "mtty stayed" test ! -e "$mtty"
pass
