# about: an NVMe cannot be saved: refused by name; with discard-state the guest's driver recovers from the reset
# kernel: debian iommufd
# devices: nvme
# timeout: 180
. /lab/lib.sh
nvme=$(bound_pci 0x0108) || fail "the NVMe could not be bound to vfio-pci"
boot_sleeper 2 384 "$(vfio_device nvme0 "$nvme")"
tell_vm vm load nvme
expect vm 'L2 loaded nvme' 20
works vm nvme 1
ctl_ok vm pause
ctl_refused vm 'nvme0 .*no VFIO migration support.*discard-state' snapshot "$RUN/refused"
assert "a refused snapshot left something behind" test ! -e "$RUN/refused"
assert "vm.info does not tell what blocks a snapshot" sh -c \
    "dormouse ctl --api-socket $RUN/vm.sock info | grep -q 'snapshot_blocked_by'"
ctl_ok vm resume
works vm nvme 2
ends_well vm

vm_config vm 2 384 vmlinuz lab=obey "{\"id\": \"nvme0\", \"path\": \"$nvme\", \"snapshot\": \"discard-state\"}"
run_vm vm
expect vm 'L2 READY' 60 2
tell_vm vm load nvme
expect vm 'L2 loaded nvme' 20 2
works vm nvme 3
works vm nvme-keep 1
fall_asleep vm "$RUN/snapshot"
ctl_ok vm resume
works vm nvme-find 1
kill_vm
restore_vm woken "$RUN/snapshot" --resume
works woken nvme-find 1
works woken nvme 1
step "$(grep 'state was not saved' "$RUN/woken.out" | head -n 1)"
assert "the restore does not say that the state is lost" grep -q 'nvme0.*state was not saved' "$RUN/woken.out"
# A restored machine can be reset like any other.
tell_vm woken reboot
expect woken 'L2 READY' 60
tell_vm woken load nvme
expect woken 'L2 loaded nvme' 20
works woken nvme 2
ends_well woken
pass
