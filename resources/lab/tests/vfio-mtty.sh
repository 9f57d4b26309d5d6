# about: L2's serial driver echoes through a passed-through mtty, with INTx, before and after a guest reboot
# kernel: debian iommufd
# devices: mtty
# timeout: 180
# full: yes
. /lab/lib.sh
mtty=$(mtty_create 11111111-1111-1111-1111-111111111111) || fail "no mtty device could be created"
passthrough_cycle "$(vfio_device mtty0 "$mtty")" mtty
assert_equal "message-signalled vectors" 0 "$(value vectors "$(answer vm 'L2 mtty OK')")"
pass
