# about: the same card with its legacy INTx
# kernel: debian iommufd
# devices: e1000e
# timeout: 180
. /lab/lib.sh
card=$(bound_pci 0x0200) || fail "the network card could not be bound to vfio-pci"
passthrough_cycle "$(vfio_device net0 "$card")" net-intx
assert_equal "message-signalled vectors" 0 "$(value vectors "$(answer vm 'L2 net-intx OK')")"
pass
