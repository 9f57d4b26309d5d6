# about: a network card with several MSI-X vectors
# kernel: debian iommufd
# devices: e1000e
# timeout: 180
. /lab/lib.sh
card=$(bound_pci 0x0200) || fail "the network card could not be bound to vfio-pci"
passthrough_cycle "$(vfio_device net0 "$card")" net
assert "the card has one vector only" test "$(value vectors "$(answer vm 'L2 net OK')")" -gt 1
pass
