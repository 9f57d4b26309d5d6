# about: while the guest uses an NVMe, accesses to its BARs cause no exits, and no thread of ours sees its interrupts
# kernel: debian iommufd
# devices: nvme
# timeout: 120
. /lab/lib.sh
nvme=$(bound_pci 0x0108) || fail "the NVMe could not be bound to vfio-pci"
boot_sleeper 2 384 "$(vfio_device nvme0 "$nvme")"
exits() { ctl vm counters | grep -o '"mmio_exits": *[0-9]*' | grep -o '[0-9]*$'; }
# How often threads other than vCPUs were woken.
wakes() {
    for status in "/proc/$VM_PID"/task/*/status; do
        grep -q '^Name:.*vcpu' "$status" || grep '^voluntary' "$status"
    done | awk '{sum += $2} END {print sum}'
}
tell_vm vm load nvme
expect vm 'L2 loaded nvme' 20
works vm nvme 1
assert "no vCPU thread has a name" grep -q vcpu "/proc/$VM_PID"/task/*/comm
before=$(exits) wakes_before=$(wakes)
interrupts=0
for round in 2 3 4; do
    works vm nvme "$round"
    interrupts=$((interrupts + $(value interrupts "$(answer vm 'L2 nvme OK')")))
done
woken=$(($(wakes) - wakes_before))
step "3 MiB written and read: $interrupts interrupts, $(($(exits) - before)) MMIO exits, $woken wake-ups of other threads"
assert "the driver's set-up caused no MMIO exit, so they are not counted" test "$before" -gt 0
assert_equal "MMIO exits during I/O" "$before" "$(exits)"
assert "interrupts pass through our threads" test "$woken" -lt "$interrupts"
ends_well vm
pass
