# about: doctor tells the truth of L1: an NVMe and an mtty, unbound, bound, ready, and in use by a VM
# kernel: debian iommufd
# devices: nvme mtty
# modules: nvme
# timeout: 150
. /lab/lib.sh
need_kvm

# doctor STATUS [ARGUMENTS…]: its report goes to doctor.txt, its exit status must be STATUS.
doctor() {
    doctor_status=$1
    shift
    doctor_got=0
    "$DORMOUSE" doctor "$@" > "$RUN/doctor.txt" 2> "$RUN/doctor.out" || doctor_got=$?
    [ "$doctor_status" = "$doctor_got" ] || cat "$RUN/doctor.txt"
    assert_equal "doctor's exit status" "$doctor_status" "$doctor_got"
}
says() {
    grep -qE "$1" "$RUN/doctor.txt" && return
    cat "$RUN/doctor.txt"
    fail "doctor does not say \"$1\""
}
driver_of_pci() { basename "$(readlink "/sys/bus/pci/devices/$1/driver")"; }

nvme=$(pci_with_class 0x0108)
assert "there is no NVMe" test -n "$nvme"
way='its group'
iommufd=no
if [ -e /dev/iommu ]; then
    way=iommufd
    iommufd=yes
fi

step "the host's own driver has the NVMe"
assert_equal "the NVMe's driver" nvme "$(driver_of_pci "$nvme")"
doctor 0
says '^KVM +usable, API version 12'
says '^IOMMU +on, '
says "iommufd: $iommufd"
says "^$nvme .* NVMe +nvme +[0-9]+ +can be bound"
says "^ +modprobe vfio-pci; echo vfio-pci > /sys/bus/pci/devices/"
assert_equal "the NVMe's driver after doctor" nvme "$(driver_of_pci "$nvme")"

step "both are bound to VFIO drivers"
uuid=11111111-1111-1111-1111-111111111111
mtty=$(mtty_create $uuid) || fail "no mtty device could be created"
assert "the NVMe could not be bound to vfio-pci" vfio_bind "$nvme"
doctor 0
says "^$nvme .* NVMe +vfio-pci +[0-9]+ +ready"
says "^$nvme \\(vfio-pci\\): migration: no; DMA logging: no; reset: yes; .* through $way"
says "^$nvme: its state cannot be saved"
says '"snapshot": "discard-state"'
says "^$uuid \\([a-z_]*mtty\\): migration: STOP_COPY P2P PRE_COPY; DMA logging: yes; reset: not advertised; .* through $way"
says '^Nothing needs action'

step "for programs, and without opening devices"
doctor 0 --json
says '"ready": true'
says '"state": "answered"'
doctor 0 --json --no-probe
says '"probes": \{\}'

step "a VM has both"
interactive
vm_config vm 1 256 vmlinuz lab=obey "$(vfio_device mtty0 "$mtty"), $(vfio_device nvme0 "/sys/bus/pci/devices/$nvme")"
run_vm vm
expect vm 'L2 READY' 60
doctor 0
says "^$nvme \\(vfio-pci\\): in use"
says "^$uuid \\([a-z_]*mtty\\): in use"
tell_vm vm 'load builtin'
expect vm 'L2 loaded builtin' 20
works vm mtty 1
tell_vm vm 'load nvme'
expect vm 'L2 loaded nvme' 20
works vm nvme 1
tell_vm vm off
expect_exit vm 0 30
doctor 0
says "^$nvme \\(vfio-pci\\): migration: no"
mtty_remove $uuid
pass
