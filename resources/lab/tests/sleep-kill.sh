# about: kill -9 at random moments of snapshots and restores: directories are whole or refused, the mtty serves the next
# kernel: debian iommufd
# devices: mtty
# timeout: 200
. /lab/lib.sh
mtty=$(mtty_create 11111111-1111-1111-1111-111111111111) || fail "no mtty device could be created"
boot_sleeper 2 256 "$(vfio_device mtty0 "$mtty")"
tell_vm vm echoes
goes_on vm echo1
assert_equal "what the guest was told to remember" "L2 remembers hazel" "$(ask vm 'remember hazel' remembers)"
ctl_ok vm pause
now_ms() { awk '{print int($1 * 1000)}' /proc/uptime; }
random() { echo $(($(od -An -N4 -tu4 /dev/urandom) % $1)); } # BELOW
begin=$(now_ms)
ctl_ok vm snapshot "$RUN/base"
snapshot_ms=$(($(now_ms) - begin))
kill_vm
begin=$(now_ms)
restore_vm vm "$RUN/base"
expect_state vm Paused 30
restore_ms=$(($(now_ms) - begin))
step "a snapshot takes $snapshot_ms ms, a restore $restore_ms ms"

whole=0 partial=0 none=0 killed=0
for _ in $(seq 10); do
    # On a slow machine there are fewer.
    [ "$killed" -lt 10 ] || [ "$(seconds)" -lt 80 ] || break
    # In the middle of a snapshot of a VM that was restored.
    directory=$RUN/round
    rm -rf "$directory"
    ctl vm snapshot "$directory" > /dev/null 2>&1 &
    client=$!
    # The first snapshot took longer than the next ones do.
    usleep $(($(random $((snapshot_ms * 2 / 3))) * 1000))
    kill_vm
    wait "$client" || true
    if [ ! -e "$directory" ]; then
        none=$((none + 1))
    elif dormouse snapshot verify "$directory" > /dev/null 2> "$RUN/verify.log"; then
        whole=$((whole + 1))
    else
        partial=$((partial + 1))
        refused 'no complete snapshot|incomplete|manifest|not finished' restore --snapshot "$directory" --resume
    fi
    # In the middle of a restore.
    killed=$((killed + 2))
    restore_vm vm "$RUN/base"
    usleep $(($(random "$restore_ms") * 1000))
    kill_vm
    restore_vm vm "$RUN/base"
    expect_state vm Paused 30
done
assert "$killed kills are too few" test "$killed" -ge 10
step "$killed kills: $whole snapshots whole, $partial incomplete, $none not begun"
assert "no kill fell into a snapshot" test "$partial" -gt 0
devices_are vm RESUMING
ctl_ok vm resume
goes_on vm echo1
unbroken "$RUN/vm.serial" echo1
assert_equal "what the guest remembers" "L2 recalls hazel" "$(ask vm recall recalls)"
assert "the first snapshot has changed" dormouse snapshot verify "$RUN/base"
ends_well vm
pass
