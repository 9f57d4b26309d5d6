#!/bin/sh
# Packs the initramfs of the guest that tests mlx5 virtual functions: busybox, the modules of its network driver, its init.
#   mlx5-initramfs.sh KERNEL OUT
# KERNEL is a bzImage whose modules are installed below MODULES (default /lib/modules). Needs busybox-static, cpio, kmod, od.
set -eu

DRIVER=${DRIVER:-mlx5_core}
MODULES=${MODULES:-/lib/modules}
HERE=$(dirname "$(readlink -f "$0")")

die() {
    echo "mlx5-initramfs: error: $*" >&2
    exit 1
}
[ $# = 2 ] || die "usage: mlx5-initramfs.sh KERNEL OUT"
kernel=$1
out=$2

for tool in cpio modprobe od busybox; do
    command -v "$tool" > /dev/null || die "$tool is missing: install busybox-static, cpio and kmod"
done
busybox=$(command -v busybox)
# In a dynamically linked program the loader's name stands near the beginning.
head -c 4096 "$busybox" | grep -q ld-linux && die "$busybox is dynamically linked: install busybox-static"

# The setup header of the boot protocol says where the release is (kernel_version at 0x20e, relative to 0x200).
offset=$(od -An -tu2 -j 526 -N 2 "$kernel" | tr -d ' ')
release=$(tail -c "+$((offset + 513))" "$kernel" | head -c 256 | tr '\0' ' ' | cut -d' ' -f1)
[ -d "$MODULES/$release" ] || die "$kernel is Linux \"$release\", whose modules are not in $MODULES/$release"

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
for directory in bin dev proc sys tmp modules; do
    mkdir "$root/$directory"
done
cp "$busybox" "$root/bin/busybox"
cp "$HERE/mlx5-guest-init" "$root/init"
chmod 755 "$root/init" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"

# Each line is "insmod FILE [PARAMETERS]" in the order of loading, or "builtin NAME".
prefix=${MODULES%/lib/modules}
modprobe --dirname "${prefix:-/}" --set-version "$release" --show-depends "$DRIVER" > "$root/order" ||
    die "Linux $release has no module $DRIVER"
while read -r action file _; do
    [ "$action" = insmod ] || continue
    name=$(basename "$file")
    case $name in
    *.ko) cp "$file" "$root/modules/$name" ;;
    *.ko.xz) xz -dc "$file" > "$root/modules/${name%.xz}" ;;
    *.ko.zst) zstd -qdc "$file" > "$root/modules/${name%.zst}" ;;
    *.ko.gz) gzip -dc "$file" > "$root/modules/${name%.gz}" ;;
    *) die "$file is compressed in a way that this script does not know" ;;
    esac
    name=${name%.xz}
    name=${name%.zst}
    echo "${name%.gz}"
done < "$root/order" > "$root/modules/order"
rm "$root/order"

(cd "$root" && find . | cpio --quiet -o -H newc) > "$out.partial"
mv "$out.partial" "$out"
