# about: L2's serial driver echoes through an mtty that shows its MSI, before and after a guest reboot
# kernel: debian iommufd
# devices: mtty-msi
# timeout: 180
. /lab/lib.sh
mtty=$(mtty_create 11111111-1111-1111-1111-111111111111) || fail "no mtty device could be created"
passthrough_cycle "$(vfio_device mtty0 "$mtty")" mtty
assert_equal "message-signalled vectors" 1 "$(value vectors "$(answer vm 'L2 mtty OK')")"
pass
