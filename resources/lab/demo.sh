# about: the main job, told step by step
# devices: mtty
# memory: 2560
# timeout: 150
# What people see are the lines that begin with the narrator's mark; `cargo xtask demo` passes them on. The script runs
# in L1, and on a host whose KVM boots stock Linux; there the VM has no device, unless the host has the mtty module.
. "${LAB:-/lab}/lib.sh"

tell() { echo "demo> $*"; }
show() { sed "s/^/demo>     $1/"; }
uptime() { cut -d' ' -f1 /proc/uptime; }
since() { echo "$(uptime) $1" | awk '{printf "%.1f", $1 - $2}'; }
# last_words N: what the guest said last.
last_words() { grep "^L2 $words" "$RUN/vm.serial" | tail -n "$1" | tr -d '\r' | show 'guest | '; }

tell
tell "Linux $(uname -r) has $(grep -c ^processor /proc/cpuinfo) CPUs and /dev/kvm${LAB_NESTED:+; it runs under emulation, its KVM and VFIO drivers are the real ones}."
need_kvm
tell
device='' words=beat
if [ -d /sys/class/mdev_bus/mtty ] && mtty=$(mtty_create 11111111-1111-1111-1111-111111111111); then
    device=$(vfio_device mtty0 "$mtty") words=echo1
    tell "1. A virtual machine is a JSON file. This one owns a PCI device of the host, a serial card with VFIO migration:"
else
    tell "1. A virtual machine is a JSON file. This host has no device that it could own; \`cargo xtask demo --nested\` has."
fi
interactive
vm_config vm 2 512 vmlinuz "lab=obey 8250.nr_uarts=8" "$device"
show "" < "$RUN/vm.json"

tell
tell "2. It boots: dormouse run --config vm.json"
begin=$(uptime)
run_vm vm
expect vm 'L2 READY' 60
expect vm 'L2 ttyS0' 20
tell "   $(since "$begin") s after the start of the process, the guest's init says:"
grep '^L2 ' "$RUN/vm.serial" | tr -d '\r' | show 'guest | '
check_greeting vm 2 512

tell
ask vm 'remember hazelnut' remembers > /dev/null
if [ -n "$device" ]; then
    tell "3. It works: numbered words go through its serial card and come back, with interrupts. It keeps a word in memory, too:"
    tell_vm vm echoes
else
    tell "3. It works: it counts, and keeps a word in memory:"
    tell_vm vm heartbeat
fi
goes_on vm "$words"
show 'guest | ' <<END
L2 remembers hazelnut
END
last_words 3

tell
tell "4. It falls asleep, together with its device: dormouse ctl pause; dormouse ctl snapshot nest"
ctl_ok vm pause
stands_still vm
begin=$(uptime)
ctl_ok vm snapshot "$RUN/nest"
tell "   Its last words, and what is in the nest after $(since "$begin") s:"
last_words 1
tell
"$DORMOUSE" snapshot inspect "$RUN/nest" | sed "s|$RUN/||" | show ""
last=$(answer vm "L2 $words " | cut -d' ' -f3)

tell
tell "5. Its process dies: kill -9 $VM_PID"
kill_vm
sleep 2

tell
tell "6. It wakes in a new process, right where it was: dormouse restore --snapshot nest --resume"
begin=$(uptime)
restore_vm vm "$RUN/nest" --resume
goes_on vm "$words"
tell "   $(since "$begin") s later:"
grep "^L2 $words" "$RUN/vm.serial" | tr -d '\r' | awk -v last="$last" '$3 > last' | head -n 3 | show 'guest | '
unbroken "$RUN/vm.serial" "$words"
assert_equal "what the guest remembers" "L2 recalls hazelnut" "$(ask vm recall recalls)"
echo "L2 recalls hazelnut" | show 'guest | '

tell
tell "7. Morning's work is done. It powers itself off, and the process ends:"
tell_vm vm rest
ends_well vm
tell "     exit status 0"
tell
pass
