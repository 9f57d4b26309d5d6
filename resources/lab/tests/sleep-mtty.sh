# about: echoes through an mtty go on over pause, snapshot, resume, kill -9 and restore, with memory and interrupts
# kernel: debian iommufd
# devices: mtty
# timeout: 150
. /lab/lib.sh
mtty=$(mtty_create 11111111-1111-1111-1111-111111111111) || fail "no mtty device could be created"
sleep_story 2 "$(vfio_device mtty0 "$mtty")" --resume
pass
