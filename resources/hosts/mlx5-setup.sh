#!/bin/sh
# Makes virtual functions of an NVIDIA ConnectX-7 or BlueField-3 that Dormouse can put to sleep: creates them, marks them
# migratable, connects them by a bridge of the host and binds them to mlx5_vfio_pci. What is done already is left as it is.
# Needs root, iproute2 (devlink, ip, bridge) and a kernel with mlx5_vfio_pci. docs/vfio.md explains the steps.
set -eu

BRIDGE=dormouse0
DRIVER=mlx5_vfio_pci

usage() {
    cat <<END
usage: mlx5-setup.sh [--no-bridge] PF COUNT     for example: mlx5-setup.sh 0000:41:00.0 3
       mlx5-setup.sh --undo PF
  PF           address of the physical function; it must have no virtual functions, or COUNT of them
  COUNT        how many virtual functions
  --no-bridge  do not connect the virtual functions by the bridge $BRIDGE
  --undo       remove all virtual functions of PF, the bridge, and go back to legacy mode
END
}
say() { echo "mlx5-setup: $*"; }
die() {
    echo "mlx5-setup: error: $*" >&2
    exit 1
}
# put VALUE FILE: writes to a file of sysfs, and says so.
put() {
    say "echo $1 > $2"
    echo "$1" > "$2" || die "$2 does not take \"$1\""
}
run() {
    say "$*"
    "$@" || die "\"$*\" failed"
}
driver_of() {
    if [ -e "/sys/bus/pci/devices/$1/driver" ]; then
        basename "$(readlink "/sys/bus/pci/devices/$1/driver")"
    else
        echo none
    fi
}
unbind() { [ "$(driver_of "$1")" = none ] || put "$1" "/sys/bus/pci/devices/$1/driver/unbind"; }
# virtual_function N: its address.
virtual_function() { basename "$(readlink "$DEVICE/virtfn$1")"; }
# port N KEY: what stands behind KEY in the description of the devlink port of virtual function N.
port() {
    devlink port show | awk -v parent="pci/$PF/" -v number="$1" -v key="$2" '
        function word(name,    i) {
            for (i = 1; i < NF; i++) if ($i == name) return $(i + 1)
            return ""
        }
        # Lines that are not indented begin a port; the others belong to it.
        /^[^ \t]/ {
            mine = index($1, parent) == 1 && word("flavour") == "pcivf" && word("vfnum") == number &&
                word("external") != "true"
            if (mine && key == "handle") { sub(/:$/, "", $1); print $1; exit }
        }
        mine && word(key) != "" { print word(key); exit }'
}

check_host() {
    [ "$(id -u)" = 0 ] || die "this needs root"
    [ -d "$DEVICE" ] || die "there is no PCI function $PF (write it with its domain: 0000:41:00.0)"
    [ "$(cat "$DEVICE/vendor")" = 0x15b3 ] || die "$PF is not made by NVIDIA (Mellanox)"
    [ -e "$DEVICE/sriov_totalvfs" ] || die "$PF has no SR-IOV: mlxconfig -d $PF set SRIOV_EN=1 NUM_OF_VFS=8, then a cold boot"
    [ "$(driver_of "$PF")" = mlx5_core ] || die "$PF is not bound to mlx5_core"
    for tool in devlink ip awk; do
        command -v "$tool" > /dev/null || die "$tool is missing: install iproute2 and awk"
    done
}

create() {
    total=$(cat "$DEVICE/sriov_totalvfs")
    [ "$COUNT" -le "$total" ] || die "$PF can have $total virtual functions: mlxconfig -d $PF set NUM_OF_VFS=$COUNT, then a cold boot"
    now=$(cat "$DEVICE/sriov_numvfs")
    case $now in
    "$COUNT") say "$PF has $now virtual functions" ;;
    0)
        # A virtual function can be marked only while no driver has it.
        put 0 "$DEVICE/sriov_drivers_autoprobe"
        put "$COUNT" "$DEVICE/sriov_numvfs"
        ;;
    *) die "$PF has $now virtual functions and not $COUNT: remove them with --undo" ;;
    esac
    case $(devlink dev eswitch show "pci/$PF") in
    *"mode switchdev"*) say "$PF is in switchdev mode" ;;
    *) run devlink dev eswitch set "pci/$PF" mode switchdev ;;
    esac
}

# mark N: makes virtual function N migratable.
mark() {
    wanted=10
    until handle=$(port "$1" handle) && [ -n "$handle" ]; do
        wanted=$((wanted - 1))
        [ "$wanted" -gt 0 ] || die "virtual function $1 has no devlink port"
        sleep 1
    done
    case $(port "$1" migratable) in
    enable) say "$handle is migratable" ;;
    disable)
        unbind "$(virtual_function "$1")"
        run devlink port function set "$handle" migratable enable
        ;;
    *) die "$handle cannot be marked migratable: Linux 6.2 or newer, iproute2 6.2 or newer, ConnectX-7 or BlueField-3, and mlxconfig -d $PF set VF_MIGRATION_MODE=2 with a cold boot are needed" ;;
    esac
}

# connect N: puts the representor of virtual function N into the bridge.
connect() {
    representor=$(port "$1" netdev)
    [ -n "$representor" ] || die "virtual function $1 has no representor"
    [ -d "/sys/class/net/$BRIDGE" ] || run ip link add "$BRIDGE" type bridge
    [ "$(basename "$(readlink "/sys/class/net/$representor/master" || true)")" = "$BRIDGE" ] ||
        run ip link set "$representor" master "$BRIDGE"
    run ip link set "$representor" up
    run ip link set "$BRIDGE" up
}

# bind N: gives virtual function N to the VFIO driver that can save its state.
bind() {
    address=$(virtual_function "$1")
    if [ "$(driver_of "$address")" = "$DRIVER" ]; then
        say "$address is bound to $DRIVER"
        return
    fi
    unbind "$address"
    put "$DRIVER" "/sys/bus/pci/devices/$address/driver_override"
    put "$address" /sys/bus/pci/drivers_probe
    [ "$(driver_of "$address")" = "$DRIVER" ] || die "$address is not taken by $DRIVER: look into dmesg"
}

set_up() {
    modprobe "$DRIVER" || die "this kernel has no $DRIVER (CONFIG_MLX5_VFIO_PCI)"
    create
    list=
    number=0
    while [ "$number" -lt "$COUNT" ]; do
        mark "$number"
        [ "$WITH_BRIDGE" = no ] || connect "$number"
        bind "$number"
        list=${list:+$list,}$(virtual_function "$number")
        number=$((number + 1))
    done
    say "ready; for the tests: DORMOUSE_MLX5_VFS=$list"
}

undo() {
    for link in "$DEVICE"/virtfn*; do
        [ -e "$link" ] || continue
        address=$(basename "$(readlink "$link")")
        unbind "$address"
        put "" "/sys/bus/pci/devices/$address/driver_override"
    done
    [ "$(cat "$DEVICE/sriov_numvfs")" = 0 ] || put 0 "$DEVICE/sriov_numvfs"
    case $(devlink dev eswitch show "pci/$PF") in
    *"mode switchdev"*) run devlink dev eswitch set "pci/$PF" mode legacy ;;
    esac
    [ "$(cat "$DEVICE/sriov_drivers_autoprobe")" = 1 ] || put 1 "$DEVICE/sriov_drivers_autoprobe"
    # Another physical function's may still be in it.
    if [ -d "/sys/class/net/$BRIDGE" ] && [ -z "$(ls "/sys/class/net/$BRIDGE/brif")" ]; then
        run ip link delete "$BRIDGE"
    fi
    say "$PF has no virtual functions"
}

UNDO=no
WITH_BRIDGE=yes
while [ $# -gt 0 ]; do
    case $1 in
    --undo) UNDO=yes ;;
    --no-bridge) WITH_BRIDGE=no ;;
    --help | -h) usage; exit 0 ;;
    -*) usage >&2; exit 2 ;;
    *) break ;;
    esac
    shift
done
PF=${1:-}
COUNT=${2:-}
DEVICE=/sys/bus/pci/devices/$PF
if [ "$UNDO" = yes ]; then
    [ $# = 1 ] || { usage >&2; exit 2; }
    check_host
    undo
else
    [ $# = 2 ] || { usage >&2; exit 2; }
    case $COUNT in
    '' | *[!0-9]* | 0) die "COUNT is a number from 1 on, not \"$COUNT\"" ;;
    esac
    check_host
    set_up
fi
