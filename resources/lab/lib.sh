# The shell library of lab tests, for busybox sh in L1. It runs on a host with /dev/kvm as well: LAB, RUN and DORMOUSE
# say where the kernel, the scratch files and the binary are.
LAB=${LAB:-/lab}
RUN=${RUN:-/tmp/lab}
DORMOUSE=${DORMOUSE:-dormouse}
PATIENCE=$(sed -n 's/.*lab_patience=\([0-9]*\).*/\1/p' /proc/cmdline)
PATIENCE=${PATIENCE:-1}
mkdir -p "$RUN"

# --- verdicts: the first one counts, and nothing runs after it

verdict() {
    [ -z "${LAB_SHELL:-}" ] || { echo "$*"; return; }
    echo "$*" > "$RUN/verdict"
    echo "LAB-RESULT $*"
    stop_all
    exit 0
}
pass() { verdict pass; }
notrun() { verdict "notrun: $*"; }
fail() {
    for log in "$RUN"/*.serial "$RUN"/*.out; do
        [ -s "$log" ] && { echo "--- last lines of $log"; tail -n 12 "$log"; }
    done
    verdict "fail: $*"
}
say() { echo "lab: $*"; }
step() { echo "lab: [$(cut -d' ' -f1 /proc/uptime)] $*"; }

# --- waiting

seconds() { cut -d. -f1 /proc/uptime; }
nap() { usleep 200000 2>/dev/null || sleep 0.2; }

# wait_until SECONDS COMMAND…: runs the command until it succeeds or the time is over.
wait_until() {
    until_deadline=$(($(seconds) + $1 * PATIENCE))
    shift
    until "$@"; do
        [ "$(seconds)" -lt "$until_deadline" ] || return 1
        nap
    done
}

# count FILE PATTERN: how many lines match.
count() {
    [ -e "$1" ] || { echo 0; return; }
    grep -cE "$2" "$1" || true
}

seen_times() { [ "$(count "$1" "$2")" -ge "$3" ] || vm_gone; }
# expect NAME PATTERN SECONDS [TIMES]: the VM's serial file must show it, and the VM must live until it does.
expect() {
    wait_until "$3" seen_times "$RUN/$1.serial" "$2" "${4:-1}" || fail "$1: no \"$2\" within $3 s"
    [ "$(count "$RUN/$1.serial" "$2")" -ge "${4:-1}" ] || fail "$1: dormouse ended before \"$2\""
}
# answer NAME PATTERN: the last line of the serial file that matches, without the carriage return.
answer() { grep -E "$2" "$RUN/$1.serial" | tail -n 1 | tr -d '\r'; }
# value KEY LINE: what follows KEY= in the line.
value() { echo "$2" | sed -n "s/.*$1=\([^ ]*\).*/\1/p"; }
# refuse NAME PATTERN: the VM's serial file must not show it.
refuse() { [ "$(count "$RUN/$1.serial" "$2")" -eq 0 ] || fail "$1: saw \"$(grep -E "$2" "$RUN/$1.serial" | head -n 1)\""; }

assert() { # REASON COMMAND…
    assert_reason=$1
    shift
    "$@" || fail "$assert_reason"
}
assert_equal() { [ "$2" = "$3" ] || fail "$1: expected \"$2\", got \"$3\""; }
assert_between() { [ "$2" -le "$3" ] && [ "$3" -le "$4" ] || fail "$1: $3 is not between $2 and $4"; }

# --- virtual machines

# vm_config NAME CPUS MIB KERNEL WORDS [DEVICES]: writes NAME.json; WORDS go to L2's command line.
vm_config() {
    config_devices=
    [ -z "${6:-}" ] || config_devices=",
  \"devices\": [$6]"
    cat > "$RUN/$1.json" <<END
{
  "cpus": {"boot_vcpus": $2, "max_vcpus": $2},
  "memory": {"size": $(($3 * 1048576))},
  "payload": {
    "kernel": "$LAB/$4",
    "initramfs": "$LAB/l2.cpio",
    "cmdline": "console=ttyS0 quiet panic=-1 mitigations=off ${5}"
  },
  "serial": ${SERIAL:-"{\"mode\": \"File\", \"file\": \"$RUN/$1.serial\"}"},
  "console": {"mode": "Off"}$config_devices
}
END
}

# interactive: from here on a VM's serial port is the process's standard input and output, so that tell_vm reaches a
# guest that was booted with lab=obey.
INTERACTIVE=
interactive() {
    INTERACTIVE=yes
    SERIAL='{"mode": "Tty"}'
}
tell_vm() { # NAME WORDS…
    tell_name=$1
    shift
    echo "$*" > "$RUN/$tell_name.in"
}

VM_PID=
# start NAME ARGUMENTS…: runs dormouse in the background; what it prints goes to NAME.out.
start() {
    start_name=$1
    shift
    if [ -n "$INTERACTIVE" ]; then
        [ -p "$RUN/$start_name.in" ] || mkfifo "$RUN/$start_name.in"
        # Open for both directions: neither side waits for the other, nor sees an end of file.
        exec 4<> "$RUN/$start_name.in"
        "$DORMOUSE" "$@" >> "$RUN/$start_name.serial" 2>> "$RUN/$start_name.out" <&4 &
    else
        "$DORMOUSE" "$@" >> "$RUN/$start_name.out" 2>&1 < /dev/null &
    fi
    VM_PID=$!
    echo "$VM_PID" > "$RUN/pid"
    step "dormouse $* (pid $VM_PID)"
}
# run_vm NAME [ARGUMENTS…]: boots NAME.json, with an API socket at NAME.sock.
run_vm() {
    run_name=$1
    shift
    start "$run_name" run --config "$RUN/$run_name.json" --api-socket "$RUN/$run_name.sock" "$@"
}
ctl() { # NAME VERB…
    ctl_name=$1
    shift
    "$DORMOUSE" ctl --api-socket "$RUN/$ctl_name.sock" "$@"
}
vm_gone() { ! kill -0 "$VM_PID" 2>/dev/null; }
# expect_exit NAME STATUS SECONDS: the process must end by itself with this status.
expect_exit() {
    wait_until "$3" vm_gone || fail "$1: dormouse still runs after $3 s"
    exit_status=0
    wait "$VM_PID" || exit_status=$?
    step "$1: exit status $exit_status"
    VM_PID=
    assert_equal "$1: exit status" "$2" "$exit_status"
}
stop_all() {
    if [ -n "$VM_PID" ] && kill -0 "$VM_PID" 2>/dev/null; then
        kill "$VM_PID"
        wait_until 3 vm_gone || kill -9 "$VM_PID"
    fi
    VM_PID=
}

need_kvm() { [ -c /dev/kvm ] || notrun "this L1 has no /dev/kvm: $(cat /tmp/lab/insmod.log 2>/dev/null | head -n 1)"; }

# check_greeting NAME CPUS MIB [SINCE]: what the guest said it sees is what the config gave it.
check_greeting() {
    greeting=$(answer "$1" 'L2 READY')
    greeting_kib=$(value mem "$greeting")
    greeting_kib=${greeting_kib%kB}
    assert_equal "CPUs that the guest sees" "$2" "$(value cpus "$greeting")"
    # The kernel keeps a share for itself: its image, page structures, the crash area.
    assert_between "KiB that the guest sees" $(($3 * 1024 * 80 / 100 - 65536)) "$greeting_kib" $(($3 * 1024))
    for table in APIC DSDT FACP MCFG; do
        assert "the guest has no ACPI table $table" grep -qE "L2 acpi .*$table" "$RUN/$1.serial"
    done
    assert "the guest has no PCI root at 00:00.0" grep -q 'L2 pci 0000:00:00.0' "$RUN/$1.serial"
}

# --- sleep

# ctl_ok NAME VERB…: as ctl, and it must succeed. ctl_refused NAME PATTERN VERB…: it must fail with such a message.
ctl_ok() {
    ctl "$@" > "$RUN/ctl.out" 2>&1 || fail "ctl $*: $(tr '\n' ' ' < "$RUN/ctl.out")"
}
ctl_refused() {
    refused_name=$1 refused_pattern=$2
    shift 2
    if ctl "$refused_name" "$@" > "$RUN/ctl.out" 2>&1; then fail "ctl $refused_name $* was not refused"; fi
    grep -qE "$refused_pattern" "$RUN/ctl.out" || fail "ctl $* says: $(tr '\n' ' ' < "$RUN/ctl.out")"
    step "refused: $(tr '\n' ' ' < "$RUN/ctl.out")"
}
# refused PATTERN ARGUMENTS…: dormouse with these arguments must end by itself, with an error that matches.
refused() {
    refused_pattern=$1
    shift
    refused_status=0
    timeout $((20 * PATIENCE)) "$DORMOUSE" "$@" > "$RUN/refused.log" 2>&1 < /dev/null || refused_status=$?
    assert_equal "exit status of dormouse $*" 1 "$refused_status"
    grep -qE "$refused_pattern" "$RUN/refused.log" || fail "dormouse $* says: $(tail -n 3 "$RUN/refused.log" | tr '\n' ' ')"
    step "refused: $(tail -n 1 "$RUN/refused.log")"
}

state_is() { ctl "$1" info 2>/dev/null | grep -q "\"state\": *\"$2\""; } # NAME STATE
expect_state() { wait_until "$3" state_is "$1" "$2" || fail "$1: not $2 within $3 s"; } # NAME STATE SECONDS
# devices_are NAME STATE: the migratable devices, as dormouse has them, and as the kernel does where it tells.
devices_are() {
    ctl "$1" info > "$RUN/info.json"
    assert_equal "$1: migration state in vm.info" "$2" \
        "$(grep -o '"migration_state": *"[A-Z_0-9]*"' "$RUN/info.json" | cut -d'"' -f4 | sort -u)"
    for debug_device in $(grep -o '"path": *"[^"]*"' "$RUN/info.json" | cut -d'"' -f4 | sort -u); do
        debug_state=/sys/kernel/debug/vfio/${debug_device##*/}/migration/state
        if [ -e "$debug_state" ]; then
            assert_equal "migration state of $debug_device in the kernel" "$2" "$(cat "$debug_state")"
        elif grep -q '@iommufd' /proc/cmdline; then
            fail "there is no $debug_state"
        fi
    done
    step "$1: devices are $2"
}

# kill_vm: kill -9, which leaves no time for farewells.
kill_vm() {
    kill -9 "$VM_PID"
    wait_until 10 vm_gone || fail "kill -9 did not end the process"
    wait "$VM_PID" 2>/dev/null || true
    step "killed $VM_PID"
    VM_PID=
}
# restore_vm NAME DIRECTORY [ARGUMENTS…]
restore_vm() {
    restore_name=$1 restore_directory=$2
    shift 2
    start "$restore_name" restore --snapshot "$restore_directory" --api-socket "$RUN/$restore_name.sock" "$@"
}

# stands_still NAME: for two seconds nothing comes from the guest, and none of its exits is counted.
stands_still() {
    # What the guest said before goes through a thread of its own.
    sleep 1
    still_bytes=$(wc -c < "$RUN/$1.serial") still_counters=$(ctl "$1" counters)
    sleep 2
    assert_equal "$1: bytes from the sleeping guest" "$still_bytes" "$(wc -c < "$RUN/$1.serial")"
    assert_equal "$1: exits of the sleeping guest" "$still_counters" "$(ctl "$1" counters)"
}

# goes_on NAME WORD…: each numbered line of the guest appears three more times.
goes_on() {
    goes_name=$1
    shift
    for goes_word in "$@"; do
        expect "$goes_name" "L2 $goes_word [0-9]+ up" 30 $(($(count "$RUN/$goes_name.serial" "L2 $goes_word [0-9]+ up") + 3))
    done
}
# unbroken FILE WORD…: the numbered lines have no gap, and the guest's clock none of more than three seconds.
unbroken() {
    # A copy, without the line that the guest is just writing.
    unbroken_file=$RUN/unbroken
    cp "$1" "$unbroken_file"
    [ -z "$(tail -c 1 "$unbroken_file")" ] || sed -i '$d' "$unbroken_file"
    shift
    for unbroken_word in "$@"; do
        unbroken_fault=$(tr -d '\r' < "$unbroken_file" | awk -v word="$unbroken_word" -v limit=$((3 * PATIENCE)) '
            $1 != "L2" || $2 != word { next }
            $3 == "LOST" { print; exit }
            { split($4, clock, "=") }
            seen && $3 != number + 1 { print "after " number " comes " $3; exit }
            seen && clock[2] - uptime > limit { print "the clock went from " uptime " to " clock[2]; exit }
            seen && clock[2] < uptime { print "the clock went back from " uptime " to " clock[2]; exit }
            { seen = 1; number = $3; uptime = clock[2] }
            END { if (!seen) print "there are none" }')
        assert_equal "gaps in $unbroken_word" "" "$unbroken_fault"
    done
}
# ask NAME COMMAND WORD: tells the guest, waits for its next answer "L2 WORD …", and prints it.
ask() {
    ask_times=$(($(count "$RUN/$1.serial" "L2 $3 ") + 1))
    tell_vm "$1" "$2"
    expect "$1" "L2 $3 " 40 "$ask_times" >&2
    answer "$1" "L2 $3 "
}
# ends_well NAME: the guest powers itself off and the process ends with status 0.
ends_well() {
    tell_vm "$1" off
    expect "$1" 'L2 POWERS OFF' 20
    expect_exit "$1" 0 20
}

# boot_sleeper CPUS MIB [DEVICES]: the guest obeys, and has ports enough for several serial devices.
boot_sleeper() {
    need_kvm
    interactive
    vm_config vm "$1" "$2" vmlinuz "lab=obey 8250.nr_uarts=8" "${3:-}"
    run_vm vm
    expect vm 'L2 READY' 60
}
# fall_asleep NAME DIRECTORY: pause and snapshot.
fall_asleep() {
    ctl_ok "$1" pause
    ctl_ok "$1" snapshot "$2"
    step "$1 sleeps in $2, $(du -sm "$2" | cut -f1) MiB"
}

# --- VFIO

# mtty_create UUID: a mediated serial device with two ports; its path is printed.
mtty_create() {
    echo "$1" > /sys/class/mdev_bus/mtty/mdev_supported_types/mtty-2/create || return 1
    echo "/sys/bus/mdev/devices/$1"
}
mtty_remove() { echo 1 > "/sys/bus/mdev/devices/$1/remove"; }

# pci_with_class CLASS [N]: the address of the Nth function whose class begins so, e.g. 0x0108 for NVMe.
pci_with_class() {
    for function in /sys/bus/pci/devices/*; do
        case $(cat "$function/class") in "$1"*) echo "${function##*/}" ;; esac
    done | sed -n "${2:-1}p"
}
pci_with_id() { # VENDOR DEVICE
    for function in /sys/bus/pci/devices/*; do
        [ "$(cat "$function/vendor") $(cat "$function/device")" = "$1 $2" ] && echo "${function##*/}"
    done | head -n 1
}
# vfio_bind BDF: gives the function to vfio-pci.
vfio_bind() {
    bind_function=/sys/bus/pci/devices/$1
    [ -e "$bind_function" ] || return 1
    [ -e "$bind_function/driver" ] && echo "$1" > "$bind_function/driver/unbind"
    echo vfio-pci > "$bind_function/driver_override"
    echo "$1" > /sys/bus/pci/drivers_probe
    [ "$(basename "$(readlink "$bind_function/driver")")" = vfio-pci ]
}

# vfio_device ID PATH: the JSON of a passed-through device.
vfio_device() { echo "{\"id\": \"$1\", \"path\": \"$2\"}"; }
# bound_pci CLASS [N]: gives the function of that class to vfio-pci and prints its path, or nothing.
bound_pci() {
    bound_address=$(pci_with_class "$1" "${2:-1}")
    [ -n "$bound_address" ] && vfio_bind "$bound_address" && echo "/sys/bus/pci/devices/$bound_address"
}

# works NAME WHAT TIMES: tells the guest to use the device; it must report success, with interrupts, for the TIMES-th time.
works() {
    tell_vm "$1" "$2"
    expect "$1" "L2 $2 (OK|FAIL)" 40 "$3"
    refuse "$1" "L2 $2 FAIL"
    works_interrupts=$(value interrupts "$(answer "$1" "L2 $2 OK")")
    assert "$2 works without any interrupt" test "${works_interrupts:-0}" -gt 0
    step "$(answer "$1" "L2 $2 OK")"
}

# --- whole stories

# passthrough_cycle DEVICES WORDS…: boots with the devices; all of them work, and work again after a guest reboot.
passthrough_cycle() {
    need_kvm
    interactive
    vm_config vm 2 512 vmlinuz lab=obey "$1"
    shift
    run_vm vm
    for cycle_round in 1 2; do
        expect vm 'L2 READY' 60 "$cycle_round"
        for cycle_word in "$@"; do
            tell_vm vm "load $(driver_of "$cycle_word")"
            expect vm "L2 loaded $(driver_of "$cycle_word")" 20 "$cycle_round"
            works vm "$cycle_word" "$cycle_round"
        done
        [ "$cycle_round" = 1 ] && tell_vm vm reboot
    done
    tell_vm vm off
    expect vm 'L2 POWERS OFF' 20
    expect_exit vm 0 20
}
driver_of() {
    case $1 in
    mtty) echo builtin ;;
    net) echo e1000e ;;
    net-intx) echo e1000e IntMode=0 ;;
    nvme-second) echo nvme ;;
    *) echo "$1" ;;
    esac
}

# boot_cycle CPUS MIB KERNEL: boots, checks the machine, reboots inside the process, powers off, exit status 0.
boot_cycle() {
    need_kvm
    vm_config vm "$1" "$2" "$3" lab=reboot-once
    run_vm vm
    cycle_pid=$VM_PID
    expect vm 'L2 READY' 60
    expect vm 'L2 waits for its host' 10
    check_greeting vm "$1" "$2"
    step "first greeting"
    date -s '2040-01-01 00:00' > /dev/null
    expect vm 'L2 REBOOTS' 20
    expect vm 'L2 READY' 60 2
    assert "another process took over" kill -0 "$cycle_pid"
    step "second greeting"
    expect vm 'L2 POWERS OFF' 30
    expect_exit vm 0 20
    check_greeting vm "$1" "$2"
}

# sleep_story CPUS DEVICES [RESTORE ARGUMENTS…]: a guest echoes through its sample serial devices, is paused, saved and
# resumed, dies with its process, and goes on in a new one as if nothing had been.
sleep_story() {
    story_cpus=$1 story_devices=$2
    shift 2
    boot_sleeper "$story_cpus" 384 "$story_devices"
    story_echoes=$(echo "$story_devices" | grep -o '"id"' | awk '{print "echo" NR}')
    tell_vm vm echoes
    # shellcheck disable=SC2086 # a list of words
    goes_on vm $story_echoes
    assert_equal "what the guest was told to remember" "L2 remembers hazel" "$(ask vm 'remember hazel' remembers)"
    story_complaints=$(ask vm complaints complaints)
    devices_are vm RUNNING

    ctl_ok vm pause
    step "paused"
    stands_still vm
    devices_are vm STOP
    ctl_ok vm snapshot "$RUN/snapshot"
    step "saved, $(du -sm "$RUN/snapshot" | cut -f1) MiB"
    devices_are vm STOP
    cp "$RUN/vm.serial" "$RUN/story"
    ctl_ok vm resume
    # shellcheck disable=SC2086
    goes_on vm $story_echoes
    devices_are vm RUNNING
    # shellcheck disable=SC2086
    unbroken "$RUN/vm.serial" $story_echoes
    kill_vm

    restore_vm woken "$RUN/snapshot" "$@"
    case " $* " in *" --resume "*) ;; *)
        expect_state woken Paused 30
        devices_are woken RESUMING
        stands_still woken
        ctl_ok woken resume ;;
    esac
    # shellcheck disable=SC2086
    goes_on woken $story_echoes
    step "awake"
    devices_are woken RUNNING
    cat "$RUN/woken.serial" >> "$RUN/story"
    # shellcheck disable=SC2086
    unbroken "$RUN/story" $story_echoes
    assert_equal "what the guest remembers" "L2 recalls hazel" "$(ask woken recall recalls)"
    assert_equal "errors in the guest's log" "$story_complaints" "$(ask woken complaints complaints)"
    tell_vm woken rest
    expect woken 'L2 rests' 10
    works woken mtty 1
    ends_well woken
}
