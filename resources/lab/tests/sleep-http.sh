# about: the same life over HTTP alone: create, boot, pause, snapshot, delete; restore and resume in another server
# kernel: debian iommufd
# devices: mtty
# timeout: 150
. /lab/lib.sh
need_kvm
mtty=$(mtty_create 11111111-1111-1111-1111-111111111111) || fail "no mtty device could be created"
interactive
vm_config vm 2 384 vmlinuz "lab=obey 8250.nr_uarts=8" "$(vfio_device mtty0 "$mtty")"
answers() { ctl "$1" ping > /dev/null 2>&1; }
start vm serve --api-socket "$RUN/vm.sock"
wait_until 10 answers vm || fail "the server does not answer"
ctl_refused vm 'config is missing|not created' boot
ctl_ok vm create "$RUN/vm.json"
assert "the VM is not Created" state_is vm Created
ctl_ok vm boot
expect vm 'L2 READY' 60
tell_vm vm echoes
goes_on vm echo1
assert "the VM is not Running" state_is vm Running
ctl_refused vm 'running|paused' snapshot "$RUN/snapshot"
ctl_ok vm pause
assert "the VM is not Paused" state_is vm Paused
ctl_refused vm 'already paused|Paused' pause
ctl_ok vm snapshot "$RUN/snapshot"
ctl_refused vm 'snapshot' snapshot "$RUN/snapshot"
ctl_ok vm delete
assert "a deleted VM is still there" sh -c "! dormouse ctl --api-socket $RUN/vm.sock info > /dev/null 2>&1"

first=$VM_PID
start second serve --api-socket "$RUN/second.sock"
wait_until 10 answers second || fail "the second server does not answer"
ctl_ok second restore "$RUN/snapshot"
assert "the restored VM is not Paused" state_is second Paused
devices_are second RESUMING
# The device is in use: the first server is told so and stays alive.
ctl_refused vm 'mtty0|11111111' restore "$RUN/snapshot"
ctl_ok second resume
goes_on second echo1
devices_are second RUNNING
cat "$RUN/vm.serial" "$RUN/second.serial" > "$RUN/story"
unbroken "$RUN/story" echo1
ctl_ok second shutdown
ctl_ok second delete
ctl_ok second shutdown-vmm
expect_exit second 0 10

# And back into the first one, running at once.
VM_PID=$first
ctl_ok vm restore "$RUN/snapshot" --resume
goes_on vm echo1
ctl_ok vm reboot
expect vm 'L2 READY' 60 2
works vm mtty 1
ctl_ok vm shutdown-vmm
expect_exit vm 0 10
pass
