# about: the main job, told step by step
# memory: 3072
# timeout: 120
# What people see are the lines that begin with the narrator's mark; `cargo xtask demo` passes them on. The script runs
# in L1, and on a host whose KVM boots stock Linux.
. "${LAB:-/lab}/lib.sh"

tell() { echo "demo> $*"; }
show() { sed "s/^/demo>     $1/"; }

tell
tell "Linux $(uname -r) has $(grep -c ^processor /proc/cpuinfo) CPUs and /dev/kvm${LAB_NESTED:+; it runs under emulation, its KVM and VFIO drivers are the real ones}."
need_kvm
tell
tell "1. A virtual machine is a JSON file:"
vm_config vm 2 512 vmlinuz lab=boot
show "" < "$RUN/vm.json"

tell
tell "2. It boots: dormouse run --config vm.json"
begin=$(cut -d' ' -f1 /proc/uptime)
run_vm vm
expect vm 'L2 READY' 60
end=$(cut -d' ' -f1 /proc/uptime)
tell "   $(echo "$end $begin" | awk '{printf "%.1f", $1 - $2}') s after the start of the process, the guest's init says:"
expect vm 'L2 POWERS OFF' 30
grep '^L2 ' "$RUN/vm.serial" | tr -d '\r' | show 'guest | '
check_greeting vm 2 512

tell
tell "3. It powers itself off, and the process ends:"
expect_exit vm 0 20
tell "     exit status 0"
tell
pass
