# about: an mtty and an NVMe in one VM
# kernel: debian iommufd
# devices: nvme mtty
# timeout: 180
. /lab/lib.sh
mtty=$(mtty_create 11111111-1111-1111-1111-111111111111) || fail "no mtty device could be created"
nvme=$(bound_pci 0x0108) || fail "the NVMe could not be bound to vfio-pci"
passthrough_cycle "$(vfio_device mtty0 "$mtty"), $(vfio_device nvme0 "$nvme")" mtty nvme
pass
