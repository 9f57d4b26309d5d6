# about: two NVMes in one VM, each with its own interrupts, and a way for DMA between them
# kernel: debian iommufd
# devices: nvme nvme2
# timeout: 180
. /lab/lib.sh
first=$(bound_pci 0x0108 1) || fail "the first NVMe could not be bound to vfio-pci"
second=$(bound_pci 0x0108 2) || fail "the second NVMe could not be bound to vfio-pci"
assert "the NVMes are the same" test "$first" != "$second"
passthrough_cycle "$(vfio_device nvme0 "$first"), $(vfio_device nvme1 "$second")" nvme nvme-second
pass
