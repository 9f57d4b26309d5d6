# about: the VM wakes on another mtty, its own one being gone, and stays paused until it is resumed
# kernel: debian iommufd
# devices: mtty
# timeout: 150
. /lab/lib.sh
mtty=$(mtty_create 11111111-1111-1111-1111-111111111111) || fail "no mtty device could be created"
other=$(mtty_create 22222222-2222-2222-2222-222222222222) || fail "no second mtty device could be created"
sleep_story 2 "$(vfio_device mtty0 "$mtty")" --device "mtty0=$other"
pass
