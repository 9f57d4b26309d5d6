# about: without devices: memory comes on demand; --eager and --verify read it all; damage is found
# kernel: debian iommufd
# timeout: 150
. /lab/lib.sh
boot_sleeper 2 384
tell_vm vm heartbeat
goes_on vm beat
assert_equal "what the guest was told to remember" "L2 remembers hazel" "$(ask vm 'remember hazel' remembers)"
complaints=$(ask vm complaints complaints)
fall_asleep vm "$RUN/snapshot"
kill_vm
cp "$RUN/vm.serial" "$RUN/before"
assert "the snapshot is not intact" dormouse snapshot verify "$RUN/snapshot"

resident() { awk '/^VmRSS/ {print $2}' "/proc/$VM_PID/status"; }
for how in on-demand eager verify; do
    case $how in on-demand) set -- ;; *) set -- "--$how" ;; esac
    restore_vm "$how" "$RUN/snapshot" "$@"
    expect_state "$how" Paused 30
    kib=$(resident)
    case $how in
    on-demand) assert "$kib KiB are resident before the guest runs" test "$kib" -lt 20000 ;;
    *) assert "only $kib KiB are resident after all of memory was read" test "$kib" -gt 60000 ;;
    esac
    ctl_ok "$how" resume
    goes_on "$how" beat
    cat "$RUN/before" "$RUN/$how.serial" > "$RUN/story"
    unbroken "$RUN/story" beat
    assert_equal "what the guest remembers" "L2 recalls hazel" "$(ask "$how" recall recalls)"
    assert_equal "errors in the guest's log" "$complaints" "$(ask "$how" complaints complaints)"
    tell_vm "$how" rest
    ends_well "$how"
done

# A few bytes in the middle of memory: seen by all who look at every byte.
printf 'damaged!' | dd of="$RUN/snapshot/memory.bin" bs=1 seek=$((20 * 1048576 + 77)) conv=notrunc 2>/dev/null
refused 'memory.bin' snapshot verify "$RUN/snapshot"
refused 'memory.bin' restore --snapshot "$RUN/snapshot" --verify --resume
pass
