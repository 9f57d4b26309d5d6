# about: what the kernel itself was asked on pause, snapshot, restore and resume comes in the order that invariants 1 to 6 want
# kernel: debian iommufd
# devices: mtty
# timeout: 150
. /lab/lib.sh
# The kernel's own record: every ioctl, and what mtty's driver is asked. Offset 4 of region 7, configuration space, is PCI_COMMAND.
trace=/sys/kernel/tracing
mount -t tracefs tracefs $trace 2>/dev/null
record() {
    [ -e $trace/events/kprobes/set_state ] || {
        echo 'p:set_state mtty:mtty_set_state to=%si:u32' >> $trace/kprobe_events
        echo 'p:write mtty:mtty_write at=+0(%cx):x64' >> $trace/kprobe_events
    } || fail "this kernel cannot trace"
    echo 8192 > $trace/buffer_size_kb
    echo > $trace/trace
    for event in syscalls/sys_enter_ioctl kprobes/set_state kprobes/write; do
        echo 1 > $trace/events/$event/enable || fail "this kernel cannot trace $event"
    done
}
# recorded FILE: one word for each event that matters. Several in a row count as one.
recorded() {
    for event in syscalls/sys_enter_ioctl kprobes/set_state kprobes/write; do
        echo 0 > $trace/events/$event/enable
    done
    cp $trace/trace "$RUN/raw"
    sed -n -e 's/.*cmd: ae80,.*/run/p' \
        -e 's/.*cmd: 3b71,.*/map-dma/p' -e 's/.*cmd: 3b85,.*/map-dma/p' -e 's/.*cmd: 3b6e,.*/set-irqs/p' -e 's/.*cmd: 3b6f,.*/reset/p' \
        -e 's/.*cmd: c208ae62,.*/read-irqchip/p' -e 's/.*cmd: 8208ae63,.*/write-irqchip/p' \
        -e 's/.*cmd: 8400ae8e,.*/read-lapic/p' -e 's/.*cmd: 4400ae8f,.*/write-lapic/p' \
        -e 's/.*cmd: 8090ae81,.*/read-registers/p' -e 's/.*cmd: 4090ae82,.*/write-registers/p' \
        -e 's/.* write: .*at=0x70000000004$/command/p' \
        -e 's/.* set_state: .*to=1$/STOP/p' -e 's/.* set_state: .*to=2$/RUNNING/p' -e 's/.* set_state: .*to=3$/STOP_COPY/p' \
        -e 's/.* set_state: .*to=4$/RESUMING/p' -e 's/.* set_state: .*to=5$/RUNNING_P2P/p' "$RUN/raw" | uniq > "$1"
    rm "$RUN/raw"
}
# place FIRST-OR-LAST WORD FILE: the line of its first or last occurrence.
place() { grep -nx "$2" "$3" | "$1" -n 1 | cut -d: -f1; }
# all_before FILE WORD OTHER: each WORD is there before any OTHER is.
all_before() {
    before_word=$(place tail "$2" "$1") before_other=$(place head "$3" "$1")
    [ -n "$before_word" ] && [ -n "$before_other" ] && [ "$before_word" -lt "$before_other" ] ||
        fail "$2 does not come before $3: $(tr '\n' ' ' < "$1")"
}
states() { grep -xE 'STOP|RUNNING|STOP_COPY|RESUMING|RUNNING_P2P' "$1" | tr '\n' ' '; }

mtty=$(mtty_create 11111111-1111-1111-1111-111111111111) || fail "no mtty device could be created"
boot_sleeper 2 256 "$(vfio_device mtty0 "$mtty")"
tell_vm vm echoes
goes_on vm echo1

record
ctl_ok vm pause
ctl_ok vm snapshot "$RUN/snapshot"
recorded "$RUN/saved"
assert_equal "states on pause and snapshot" "RUNNING_P2P STOP STOP_COPY STOP " "$(states "$RUN/saved")"
all_before "$RUN/saved" run RUNNING_P2P
for word in read-irqchip read-lapic read-registers; do
    all_before "$RUN/saved" STOP $word
done
step "saved: $(tr '\n' ' ' < "$RUN/saved")"
kill_vm

record
restore_vm woken "$RUN/snapshot"
expect_state woken Paused 30
recorded "$RUN/loaded"
assert_equal "states on restore" "RESUMING " "$(states "$RUN/loaded")"
for word in write-irqchip write-lapic write-registers map-dma; do
    all_before "$RUN/loaded" $word RESUMING
done
assert "a vCPU ran before it was told to" test -z "$(place head run "$RUN/loaded")"
assert_equal "after RESUMING" "RESUMING command set-irqs " "$(sed -n '/RESUMING/,$p' "$RUN/loaded" | tr '\n' ' ')"
step "loaded: $(tr '\n' ' ' < "$RUN/loaded")"

record
ctl_ok woken resume
goes_on woken echo1
recorded "$RUN/resumed"
assert_equal "states on resume" "RUNNING_P2P RUNNING " "$(states "$RUN/resumed")"
all_before "$RUN/resumed" RUNNING run
step "resumed: $(head -n 12 "$RUN/resumed" | tr '\n' ' ')"
ends_well woken
pass
