# about: the same by MSI, with an mtty that shows it
# kernel: debian iommufd
# devices: mtty-msi
# timeout: 150
. /lab/lib.sh
mtty=$(mtty_create 11111111-1111-1111-1111-111111111111) || fail "no mtty device could be created"
sleep_story 2 "$(vfio_device mtty0 "$mtty")" --resume
assert_equal "message-signalled vectors" 1 "$(value vectors "$(answer woken 'L2 mtty OK')")"
pass
