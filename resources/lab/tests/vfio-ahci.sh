# about: L2 reads back what it wrote to the disk of a passed-through AHCI controller, which has plain MSI
# kernel: debian iommufd
# devices: ahci
# timeout: 180
. /lab/lib.sh
ahci=$(bound_pci 0x0106) || fail "the AHCI controller could not be bound to vfio-pci"
passthrough_cycle "$(vfio_device ahci0 "$ahci")" ahci
assert_equal "message-signalled vectors" 1 "$(value vectors "$(answer vm 'L2 ahci OK')")"
pass
