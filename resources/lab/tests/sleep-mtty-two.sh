# about: the same with two mtty devices and four vCPUs
# kernel: debian iommufd
# devices: mtty
# timeout: 180
. /lab/lib.sh
first=$(mtty_create 11111111-1111-1111-1111-111111111111) || fail "no mtty device could be created"
second=$(mtty_create 22222222-2222-2222-2222-222222222222) || fail "no second mtty device could be created"
sleep_story 4 "$(vfio_device mtty0 "$first"), $(vfio_device mtty1 "$second")" --resume
pass
