# about: ten nights in a row: snapshot, kill -9, restore; not one echo through the mtty is lost
# kernel: debian iommufd
# devices: mtty
# timeout: 180
. /lab/lib.sh
mtty=$(mtty_create 11111111-1111-1111-1111-111111111111) || fail "no mtty device could be created"
boot_sleeper 2 256 "$(vfio_device mtty0 "$mtty")"
tell_vm vm echoes
goes_on vm echo1
assert_equal "what the guest was told to remember" "L2 remembers hazel" "$(ask vm 'remember hazel' remembers)"
complaints=$(ask vm complaints complaints)
for night in $(seq 10); do
    fall_asleep vm "$RUN/night$night"
    kill_vm
    restore_vm vm "$RUN/night$night" --resume
    goes_on vm echo1
    rm -r "$RUN/night$night"
done
unbroken "$RUN/vm.serial" echo1
assert_equal "what the guest remembers" "L2 recalls hazel" "$(ask vm recall recalls)"
assert_equal "errors in the guest's log" "$complaints" "$(ask vm complaints complaints)"
ends_well vm
pass
