# about: a guest that takes the TSC for its clock sleeps twice, and no time has passed for it
# kernel: debian
# timeout: 150
. /lab/lib.sh
need_kvm
interactive
vm_config vm 2 256 vmlinuz "lab=obey tsc=reliable clocksource=tsc"
run_vm vm
expect vm 'L2 READY' 60
expect vm 'L2 clocksource tsc' 5
tell_vm vm heartbeat
goes_on vm beat
# Longer than the gap that a busy machine explains.
night=$((4 * PATIENCE))
ctl_ok vm pause
sleep $night
ctl_ok vm resume
goes_on vm beat
ctl_ok vm pause
sleep $night
ctl_ok vm snapshot "$RUN/snapshot"
kill_vm
restore_vm vm "$RUN/snapshot"
expect_state vm Paused 30
sleep $night
ctl_ok vm resume
goes_on vm beat
unbroken "$RUN/vm.serial" beat
ends_well vm
pass
