# about: L2 reads back what it wrote to a passed-through NVMe, its MSI-X interrupts rise, before and after a reboot
# kernel: debian iommufd
# devices: nvme
# timeout: 180
# full: yes
. /lab/lib.sh
nvme=$(bound_pci 0x0108) || fail "the NVMe could not be bound to vfio-pci"
passthrough_cycle "$(vfio_device nvme0 "$nvme")" nvme
pass
